//! Names of images, normalised as Docker does: `hello` is `docker.io/library/hello:latest`.

use crate::{Digest, ImageError};

/// A full image name: registry, repository, and a tag or digest (or both).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

const DEFAULT_REGISTRY: &str = "docker.io";
const OFFICIAL: &str = "library/";
const MAX_NAME: usize = 255;

impl Reference {
    /// Reads a name in short or full form. Without tag and digest the tag is `latest`.
    ///
    /// # Errors
    /// When it breaks the grammar of references.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        let bad = |reason| ImageError::BadReference { text: text.to_owned(), reason };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
            None => (text, None),
        };
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[last..].find(':') {
            Some(colon) => (&rest[..last + colon], Some(&rest[last + colon + 1..])),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad(
                "a tag is up to 128 letters, digits, '_', '.' and '-', not starting with '.' or '-'",
            ));
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if is_registry(first) => (first, path),
            _ => (DEFAULT_REGISTRY, name),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        if path.is_empty() {
            return Err(bad("the name is empty"));
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad("repository names are lower case"));
        }
        if !path.split('/').all(is_component) {
            return Err(bad(
                "a repository is made of lower-case letters, digits and single '.', '_', '-' or '/'",
            ));
        }
        let official = registry == DEFAULT_REGISTRY && !path.contains('/');
        let repository = if official { format!("{OFFICIAL}{path}") } else { path.to_owned() };
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(bad("the name is longer than 255 characters"));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }

    /// Host and perhaps port of the registry.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Repository within the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if the reference has one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference has one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The form for people: without the default registry, where that still names the same image.
    pub fn short(&self) -> String {
        let full = self.to_string();
        let Some(path) = full.strip_prefix("docker.io/") else { return full };
        // `library/a/b` and `a.b/c` would be read as something else without what is before them.
        let same = |text: &&str| Self::parse(text).is_ok_and(|read| read == *self);
        [path.strip_prefix(OFFICIAL), Some(path)].into_iter().flatten().find(same).unwrap_or(&full).to_owned()
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Reference {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        Self::parse(text)
    }
}

/// Docker's rule for telling a registry from the first part of a repository.
fn is_registry(first: &str) -> bool {
    let looks =
        first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase());
    let (host, port) = first.split_once(':').map_or((first, None), |(host, port)| (host, Some(port)));
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let port_ok = port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    looks && port_ok && host.split('.').all(label)
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

/// Alphanumeric runs separated by one `.`, one or two `_`, or any number of `-`.
fn is_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let edges = [component.bytes().next(), component.bytes().next_back()];
    if !edges.into_iter().all(|edge| edge.is_some_and(alphanumeric)) {
        return false;
    }
    component
        .split(|c: char| c.is_ascii() && alphanumeric(c as u8))
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised() {
        let hex = "a".repeat(64);
        let pinned = format!("busybox@sha256:{hex}");
        let full_pinned = format!("docker.io/library/busybox@sha256:{hex}");
        let both = format!("reg.example.com/a/b:1@sha256:{hex}");
        let table = [
            ("hello", "docker.io/library/hello:latest", "hello:latest"),
            ("hello:1", "docker.io/library/hello:1", "hello:1"),
            ("docker.io/library/hello:1", "docker.io/library/hello:1", "hello:1"),
            ("index.docker.io/hello:1", "docker.io/library/hello:1", "hello:1"),
            ("docker.io/me/app", "docker.io/me/app:latest", "me/app:latest"),
            ("me/app:v1.0", "docker.io/me/app:v1.0", "me/app:v1.0"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("127.0.0.1:5000/a/b:1", "127.0.0.1:5000/a/b:1", "127.0.0.1:5000/a/b:1"),
            ("k8s.gcr.io/pause:3.9", "k8s.gcr.io/pause:3.9", "k8s.gcr.io/pause:3.9"),
            ("a-b__c.d---e", "docker.io/library/a-b__c.d---e:latest", "a-b__c.d---e:latest"),
            ("docker.io/library/a/b:1", "docker.io/library/a/b:1", "library/a/b:1"),
            ("docker.io/a.b/c:1", "docker.io/a.b/c:1", "docker.io/a.b/c:1"),
            (&pinned, &full_pinned, &pinned),
            (&both, &both, &both),
        ];
        for (text, full, short) in table {
            let reference = Reference::parse(text).expect(text);
            assert_eq!((reference.to_string().as_str(), reference.short().as_str()), (full, short), "{text}");
            assert_eq!(Reference::parse(full).expect(full), reference);
            assert_eq!(Reference::parse(short).expect(short), reference);
        }
    }

    #[test]
    fn bad_names_are_refused() {
        let long = "a".repeat(260);
        let table = [
            "",
            ":1",
            "/",
            "a//b",
            "Hello",
            "hello:",
            "hello:-x",
            "hello:a b",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "../x",
            "hello@sha256:12",
            "hello@md5:00",
            "localhost:port/x",
            "a/./b",
            "hello:1:2",
            &long,
        ];
        for text in table {
            let error = Reference::parse(text).expect_err(text);
            assert!(matches!(error, ImageError::BadReference { .. }), "{text}: {error}");
        }
    }
}
