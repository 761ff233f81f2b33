//! `/openapi/v3`: the index, and one document per group-version, made when it is first asked for.
//!
//! Documents follow from the program and its rows alone, so one hash over the version and the names of the rows names
//! them all: clients may keep a document under that hash for ever, and the index costs no document.

use crate::codec::encode;
use crate::config::GIT_VERSION;
use crate::discovery;
use crate::handlers::{Answer, Ask, not_found};
use crate::registry::{GroupVersion, Registry, Resource};
use axum::body::Body;
use bytes::Bytes;
use cumulet_api::openapi::{self, OpenApiResource};
use http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// The documents made so far, by path (`api/v1`, `apis/apps/v1`), and their common hash.
pub(crate) struct Documents {
    made: Mutex<HashMap<String, Bytes>>,
    hash: String,
}

impl Documents {
    pub(crate) fn new(registry: &Registry) -> Self {
        let mut text = GIT_VERSION.to_owned();
        for version in registry.versions() {
            for resource in &version.resources {
                text.push_str(&resource.api_version_kind());
                for (name, kind) in subresources(resource) {
                    text.push_str(name);
                    text.push_str(kind);
                }
            }
        }
        Self { made: Mutex::default(), hash: hash(text.as_bytes()) }
    }

    fn get(&self, path: &str, version: &GroupVersion) -> Bytes {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.entry(path.to_owned()).or_insert_with(|| make(version)).clone()
    }
}

/// Answers below `/openapi/v3`; `rest` is the path behind it.
pub(crate) fn v3(documents: &Documents, registry: &Registry, rest: &str, ask: &Ask<'_>) -> Answer {
    let headers = &ask.parts.headers;
    if rest.is_empty() {
        let versions = registry.versions().iter().map(|v| (v.group, v.version));
        let index = openapi::index(versions, &documents.hash).to_string();
        return Ok(cached(index.into(), &documents.hash, headers));
    }
    let version = registry.versions().iter().find(|v| openapi::path_of(v.group, v.version) == rest);
    let version = version.ok_or_else(not_found)?;
    let mut response = cached(documents.get(rest, version), &documents.hash, headers);
    if ask.query.get("hash") == Some(&documents.hash) {
        let forever = HeaderValue::from_static("public, immutable, max-age=31536000");
        response.headers_mut().insert(CACHE_CONTROL, forever);
    }
    Ok(response)
}

/// An answer that clients may keep as long as its tag is the same.
fn cached(body: Bytes, hash: &str, headers: &HeaderMap) -> Response<Body> {
    let tag = format!("\"{hash}\"");
    let known = headers.get(IF_NONE_MATCH).is_some_and(|sent| sent.as_bytes() == tag.as_bytes());
    let mut response = if known {
        encode::reply(StatusCode::NOT_MODIFIED, encode::JSON, Body::empty())
    } else {
        encode::reply(StatusCode::OK, encode::JSON, body)
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

fn hash(body: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(body).iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing into a string cannot fail.
        let _ = write!(text, "{byte:02X}");
        text
    })
}

/// Names of a resource's subresources with the kinds of their bodies.
fn subresources(resource: &Resource) -> Vec<(&'static str, &'static str)> {
    discovery::subresources(resource)
        .iter()
        .map(|s| (s.name, if s.name == "log" { "" } else { s.kind.2 }))
        .collect()
}

fn make(version: &GroupVersion) -> Bytes {
    let subs: Vec<Vec<(&str, &str)>> = version.resources.iter().map(subresources).collect();
    let resources: Vec<OpenApiResource<'_>> = version
        .resources
        .iter()
        .zip(&subs)
        .map(|(resource, subresources)| OpenApiResource {
            kind: resource.row.kind,
            plural: resource.row.plural,
            namespaced: resource.row.namespaced,
            subresources,
        })
        .collect();
    Bytes::from(openapi::document(version.group, version.version, &resources).to_string())
}
