//! Lists: repositories, tags, and what refers to a manifest. The first two come in pages.

use super::Endpoint;
use super::reply::{Answer, Code, FILTERS, Refusal, full, text};
use crate::oci;
use crate::{Digest, Reference};
use axum::extract::Query;
use http::header::LINK;
use http::{StatusCode, Uri};
use serde_json::{Value, json};
use std::collections::BTreeSet;

#[derive(Debug, Default, serde::Deserialize)]
pub(super) struct Page {
    n: Option<usize>,
    last: Option<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    artifact_type: Option<String>,
}

impl Page {
    fn of(uri: &Uri) -> Result<Self, Refusal> {
        let page = Query::<Self>::try_from_uri(uri);
        page.map(|Query(page)| page).map_err(|error| Refusal::new(Code::Unsupported, error.body_text()))
    }

    /// The part of a sorted list that is asked for, and the last of it if there is more.
    fn cut(&self, all: BTreeSet<String>) -> (Vec<String>, Option<String>) {
        let after = |item: &String| self.last.as_ref().is_none_or(|last| item > last);
        let mut rest = all.into_iter().filter(after);
        let page: Vec<String> = rest.by_ref().take(self.n.unwrap_or(usize::MAX)).collect();
        let more = rest.next().and(page.last().cloned());
        (page, more)
    }

    fn answer(&self, path: &str, body: &Value, more: Option<String>) -> http::Response<axum::body::Body> {
        let mut response = full(StatusCode::OK, "application/json", body.to_string().into_bytes());
        if let (Some(last), Some(n)) = (more, self.n) {
            let next = format!("<{path}?n={n}&last={last}>; rel=\"next\"");
            response.headers_mut().insert(LINK, text(&next));
        }
        response
    }
}

pub(super) fn tags(endpoint: &Endpoint, uri: &Uri, name: &str) -> Answer {
    let page = Page::of(uri)?;
    let refs = endpoint.store.refs()?;
    let all: BTreeSet<String> = endpoint.tags(&refs, name).map(|(tag, _)| tag.to_owned()).collect();
    if all.is_empty() && !refs.repositories.contains_key(&endpoint.repository(name)) {
        return Err(Refusal::new(Code::NameUnknown, format!("there is no repository {name}")));
    }
    let (tags, more) = page.cut(all);
    Ok(page.answer(uri.path(), &json!({"name": name, "tags": tags}), more))
}

pub(super) fn catalog(endpoint: &Endpoint, uri: &Uri) -> Answer {
    let page = Page::of(uri)?;
    let refs = endpoint.store.refs()?;
    let tagged = refs.refs.keys().filter_map(|name| {
        let name = Reference::parse(name).ok()?;
        (name.registry() == endpoint.host()).then(|| name.repository().to_owned())
    });
    let prefix = endpoint.repository("");
    let pushed = refs.repositories.keys().filter_map(|name| name.strip_prefix(&prefix)).map(str::to_owned);
    let (repositories, more) = page.cut(tagged.chain(pushed).collect());
    Ok(page.answer(uri.path(), &json!({"repositories": repositories}), more))
}

pub(super) fn referrers(endpoint: &Endpoint, uri: &Uri, name: &str, subject: &Digest) -> Answer {
    let filter = Query::<Filter>::try_from_uri(uri).map(|Query(filter)| filter.artifact_type);
    let filter = filter.map_err(|error| Refusal::new(Code::Unsupported, error.body_text()))?;
    let refs = endpoint.store.refs()?;
    let mut found = Vec::new();
    for digest in refs.repositories.get(&endpoint.repository(name)).into_iter().flatten() {
        let document = endpoint.store.described(digest)?;
        if document.subject().is_none_or(|described| described.digest != *subject) {
            continue;
        }
        let artifact_type = document.artifact_type();
        if filter.as_deref().is_some_and(|wanted| artifact_type != Some(wanted)) {
            continue;
        }
        let path = endpoint.store.blob(digest);
        let size = std::fs::metadata(&path).map_err(crate::error::io("read", &path))?.len();
        let mut described =
            json!({"mediaType": document.media_type(), "digest": digest.as_str(), "size": size});
        described.as_object_mut().into_iter().for_each(|described| {
            described.extend(artifact_type.map(|kind| ("artifactType".to_owned(), json!(kind))));
            described.extend(document.annotations.as_ref().map(|all| ("annotations".to_owned(), json!(all))));
        });
        found.push(described);
    }
    let index = json!({"schemaVersion": 2, "mediaType": oci::MEDIA_INDEX, "manifests": found});
    let mut response = full(StatusCode::OK, oci::MEDIA_INDEX, index.to_string().into_bytes());
    if filter.is_some() {
        response.headers_mut().insert(FILTERS, text("artifactType"));
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages() {
        let check = |n: Option<usize>, last: Option<&str>, expected: &[&str], more: Option<&str>| {
            let page = Page { n, last: last.map(str::to_owned) };
            let all = ["a", "b", "c", "d"].map(str::to_owned).into();
            let (found, next) = page.cut(all);
            assert_eq!(
                (found.as_slice(), next.as_deref()),
                (expected.map_strings().as_slice(), more),
                "{page:?}"
            );
        };
        check(None, None, &["a", "b", "c", "d"], None);
        check(Some(2), None, &["a", "b"], Some("b"));
        check(Some(2), Some("b"), &["c", "d"], None);
        check(Some(4), None, &["a", "b", "c", "d"], None);
        check(None, Some("bb"), &["c", "d"], None);
        check(Some(0), None, &[], None);
        check(Some(9), Some("z"), &[], None);
    }

    trait Strings {
        fn map_strings(&self) -> Vec<String>;
    }

    impl Strings for &[&str] {
        fn map_strings(&self) -> Vec<String> {
            self.iter().map(|text| (*text).to_owned()).collect()
        }
    }
}
