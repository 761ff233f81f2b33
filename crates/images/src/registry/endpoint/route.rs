//! Which part of the protocol a path asks for. Repository names have slashes, so the end of a path decides.

use super::reply::{Code, Refusal};
use crate::{Digest, Reference};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// `/v2/`
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/NAME/tags/list`
    Tags { name: String },
    /// `/v2/NAME/referrers/DIGEST`
    Referrers { name: String, digest: Digest },
    /// `/v2/NAME/manifests/REFERENCE`
    Manifest { name: String, target: Target },
    /// `/v2/NAME/blobs/DIGEST`
    Blob { name: String, digest: Digest },
    /// `/v2/NAME/blobs/uploads/`
    Uploads { name: String },
    /// `/v2/NAME/blobs/uploads/ID`
    Upload { name: String, id: String },
}

/// What a manifest is asked for by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Tag(String),
    Digest(Digest),
}

impl Route {
    /// Reads a path; `host` is the name of the endpoint, which counts for how long a name may be.
    pub(super) fn parse(path: &str, host: &str) -> Result<Self, Refusal> {
        let unknown = || Refusal::new(Code::NameUnknown, format!("there is nothing at {path}"));
        // Some clients write the colon of a digest as an escape.
        let path = path.replace("%3A", ":").replace("%3a", ":");
        let rest = path.strip_prefix("/v2").ok_or_else(unknown)?;
        let rest = match rest.strip_prefix('/') {
            None if rest.is_empty() => return Ok(Self::Base),
            None => return Err(unknown()),
            Some("") => return Ok(Self::Base),
            Some("_catalog") => return Ok(Self::Catalog),
            Some(rest) => rest,
        };
        let name = |name: &str| check_name(name, host);
        if let Some(repository) = rest.strip_suffix("/tags/list") {
            return Ok(Self::Tags { name: name(repository)? });
        }
        if let Some(repository) =
            rest.strip_suffix("/blobs/uploads/").or_else(|| rest.strip_suffix("/blobs/uploads"))
        {
            return Ok(Self::Uploads { name: name(repository)? });
        }
        let (front, last) = rest.rsplit_once('/').ok_or_else(unknown)?;
        if let Some(repository) = front.strip_suffix("/blobs/uploads") {
            return Ok(Self::Upload { name: name(repository)?, id: last.to_owned() });
        }
        if let Some(repository) = front.strip_suffix("/manifests") {
            return Ok(Self::Manifest { name: name(repository)?, target: target(last, host)? });
        }
        if let Some(repository) = front.strip_suffix("/blobs") {
            return Ok(Self::Blob { name: name(repository)?, digest: digest(last)? });
        }
        if let Some(repository) = front.strip_suffix("/referrers") {
            return Ok(Self::Referrers { name: name(repository)?, digest: digest(last)? });
        }
        Err(unknown())
    }
}

fn check_name(name: &str, host: &str) -> Result<String, Refusal> {
    match Reference::parse(&format!("{host}/{name}")) {
        Ok(parsed) if parsed.repository() == name && parsed.digest().is_none() => Ok(name.to_owned()),
        Ok(_) => Err(Refusal::new(Code::NameInvalid, format!("\"{name}\" is not a repository name"))),
        Err(error) => Err(Refusal::new(Code::NameInvalid, error.to_string())),
    }
}

pub(super) fn digest(text: &str) -> Result<Digest, Refusal> {
    Digest::parse(text).map_err(|error| Refusal::new(Code::DigestInvalid, error.to_string()))
}

fn target(text: &str, host: &str) -> Result<Target, Refusal> {
    if text.contains(':') {
        return digest(text).map(Target::Digest);
    }
    match Reference::parse(&format!("{host}/a:{text}")) {
        Ok(_) => Ok(Target::Tag(text.to_owned())),
        Err(error) => Err(Refusal::new(Code::ManifestInvalid, error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let digest = Digest::of(b"x");
        let name = || "a/b".to_owned();
        let table = [
            ("/v2".to_owned(), Some(Route::Base)),
            ("/v2/".to_owned(), Some(Route::Base)),
            ("/v2/_catalog".to_owned(), Some(Route::Catalog)),
            ("/v2/a/b/tags/list".to_owned(), Some(Route::Tags { name: name() })),
            (
                "/v2/a/b/manifests/1".to_owned(),
                Some(Route::Manifest { name: name(), target: Target::Tag("1".into()) }),
            ),
            (
                format!("/v2/a/b/manifests/{digest}"),
                Some(Route::Manifest { name: name(), target: Target::Digest(digest.clone()) }),
            ),
            (
                format!("/v2/a/b/blobs/{}", digest.as_str().replace(':', "%3A")),
                Some(Route::Blob { name: name(), digest: digest.clone() }),
            ),
            (format!("/v2/a/b/referrers/{digest}"), Some(Route::Referrers { name: name(), digest })),
            ("/v2/a/b/blobs/uploads/".to_owned(), Some(Route::Uploads { name: name() })),
            ("/v2/a/b/blobs/uploads".to_owned(), Some(Route::Uploads { name: name() })),
            ("/v2/a/b/blobs/uploads/7".to_owned(), Some(Route::Upload { name: name(), id: "7".into() })),
            ("/v2/tags/list/tags/list".to_owned(), Some(Route::Tags { name: "tags/list".into() })),
            ("/v3/".to_owned(), None),
            ("/v2/a".to_owned(), None),
            ("/v2/A/tags/list".to_owned(), None),
            ("/v2/../tags/list".to_owned(), None),
            ("/v2//tags/list".to_owned(), None),
            ("/v2/a:1/tags/list".to_owned(), None),
            ("/v2/a/manifests/".to_owned(), None),
            ("/v2/a/manifests/-x".to_owned(), None),
            ("/v2/a/manifests/sha256:12".to_owned(), None),
            ("/v2/a/blobs/latest".to_owned(), None),
        ];
        for (path, expected) in table {
            let found = Route::parse(&path, "127.0.0.1:5000");
            assert_eq!(found.as_ref().ok(), expected.as_ref(), "{path}: {found:?}");
        }
    }
}
