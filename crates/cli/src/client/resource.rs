//! From what people type (`deploy`, `po`, `Service`) to a resource's URL, by the server's own discovery.

use super::get_json;
use anyhow::bail;
use kube::Client;
use serde_json::Value;

/// One resource of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resource {
    /// `v1`, `apps/v1`.
    pub api_version: String,
    /// `Pod`.
    pub kind: String,
    /// `pods`.
    pub plural: String,
    /// `pod`.
    singular: String,
    short_names: Vec<String>,
    /// Objects live in namespaces.
    pub namespaced: bool,
}

impl Resource {
    /// The URL path of the collection, or of one object.
    pub(super) fn path(&self, namespace: Option<&str>, name: Option<&str>) -> String {
        let root = if self.api_version.contains('/') { "/apis" } else { "/api" };
        let mut path = format!("{root}/{}", self.api_version);
        if let (true, Some(namespace)) = (self.namespaced, namespace) {
            path.push_str(&format!("/namespaces/{}", segment(namespace)));
        }
        path.push('/');
        path.push_str(&self.plural);
        if let Some(name) = name {
            path.push_str(&format!("/{}", segment(name)));
        }
        path
    }

    /// `deployment.apps/web`, as kubectl names things.
    pub(super) fn named(&self, name: &str) -> String {
        let singular = self.kind.to_lowercase();
        match self.api_version.split_once('/') {
            Some((group, _)) => format!("{singular}.{group}/{name}"),
            None => format!("{singular}/{name}"),
        }
    }

    fn answers_to(&self, word: &str) -> bool {
        let (name, group) = word.split_once('.').map_or((word, None), |(name, group)| (name, Some(group)));
        let in_group = group.is_none_or(|group| self.api_version.split('/').next() == Some(group));
        in_group
            && (name == self.plural
                || name == self.singular
                || name.eq_ignore_ascii_case(&self.kind)
                || self.short_names.iter().any(|short| short == name))
    }
}

/// Escapes what would change the meaning of a URL path. Names never need it; mistakes do.
fn segment(text: &str) -> String {
    let keep = |b: &u8| b.is_ascii_alphanumeric() || b"-._~:".contains(b);
    text.bytes().map(|b| if keep(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Every resource of the server.
pub(super) struct Resources(Vec<Resource>);

impl Resources {
    /// Asks the server.
    pub(super) async fn discover(client: &Client) -> anyhow::Result<Self> {
        let mut versions = vec![("/api/v1".to_owned(), "v1".to_owned())];
        let groups = get_json(client, "/apis").await?;
        for group in groups["groups"].as_array().into_iter().flatten() {
            if let Some(version) = group["preferredVersion"]["groupVersion"].as_str() {
                versions.push((format!("/apis/{version}"), version.to_owned()));
            }
        }
        let mut found = Vec::new();
        for (path, version) in versions {
            found.extend(parse(&version, &get_json(client, &path).await?));
        }
        Ok(Self(found))
    }

    /// The resource that a word means.
    pub(super) fn find(&self, word: &str) -> anyhow::Result<&Resource> {
        match self.0.iter().find(|resource| resource.answers_to(word)) {
            Some(resource) => Ok(resource),
            None => bail!("the server has no resource {word:?}"),
        }
    }

    /// The resource of an object's apiVersion and kind.
    pub(super) fn of_kind(&self, api_version: &str, kind: &str) -> anyhow::Result<&Resource> {
        match self.0.iter().find(|r| r.api_version == api_version && r.kind == kind) {
            Some(resource) => Ok(resource),
            None => bail!("the server has no kind {kind:?} in version {api_version:?}"),
        }
    }
}

/// The resources of an `APIResourceList`, subresources apart.
fn parse(version: &str, list: &Value) -> Vec<Resource> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rows = list["resources"].as_array().into_iter().flatten();
    rows.filter(|row| row["name"].as_str().is_some_and(|name| !name.contains('/')))
        .map(|row| Resource {
            api_version: version.to_owned(),
            kind: text(&row["kind"]),
            plural: text(&row["name"]),
            singular: text(&row["singularName"]),
            short_names: row["shortNames"].as_array().into_iter().flatten().map(text).collect(),
            namespaced: row["namespaced"].as_bool().unwrap_or_default(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn words_find_resources() {
        let list = json!({"resources": [
            {"name": "deployments", "singularName": "deployment", "kind": "Deployment", "namespaced": true, "shortNames": ["deploy"]},
            {"name": "deployments/scale", "kind": "Scale", "namespaced": true},
        ]});
        let all = Resources(parse("apps/v1", &list));
        for word in ["deployments", "deployment", "Deployment", "deploy", "deployments.apps"] {
            let found = all.find(word).unwrap();
            assert_eq!(
                found.path(Some("a"), Some("b")),
                "/apis/apps/v1/namespaces/a/deployments/b",
                "{word}"
            );
            assert_eq!(found.named("b"), "deployment.apps/b");
        }
        assert!(all.find("deployments.batch").is_err());
        assert!(all.find("pods").is_err());
        assert_eq!(
            all.find("deploy").unwrap().path(Some("../x"), None),
            "/apis/apps/v1/namespaces/..%2Fx/deployments"
        );
    }
}
