//! `/openapi/v3`: the index, and one document per group-version, made when it is first asked for.
//!
//! A document is named by its hash in the index, so clients may keep it for ever; without the hash they revalidate
//! by `ETag`.

use crate::codec::encode;
use crate::handlers::{Answer, Ask, not_found};
use crate::registry::{GroupVersion, Registry};
use axum::body::Body;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// A document and its hash.
#[derive(Clone)]
struct Document {
    body: Bytes,
    hash: String,
}

/// The documents made so far, by path (`api/v1`, `apis/apps/v1`).
#[derive(Default)]
pub(crate) struct Documents {
    made: Mutex<HashMap<String, Document>>,
}

impl Documents {
    fn get(&self, path: &str, version: &GroupVersion) -> Document {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.entry(path.to_owned()).or_insert_with(|| make(version)).clone()
    }
}

/// Answers below `/openapi/v3`; `rest` is the path behind it.
pub(crate) fn v3(documents: &Documents, registry: &Registry, rest: &str, ask: &Ask<'_>) -> Answer {
    if rest.is_empty() {
        return Ok(index(documents, registry, &ask.parts.headers));
    }
    let version = registry.versions().iter().find(|v| path(v) == rest).ok_or_else(not_found)?;
    let document = documents.get(rest, version);
    let mut response = cached(document.body, &document.hash, &ask.parts.headers);
    if ask.query.get("hash") == Some(&document.hash) {
        let forever = HeaderValue::from_static("public, immutable, max-age=31536000");
        response.headers_mut().insert(CACHE_CONTROL, forever);
    }
    Ok(response)
}

fn path(version: &GroupVersion) -> String {
    if version.group.is_empty() {
        format!("api/{}", version.version)
    } else {
        format!("apis/{}/{}", version.group, version.version)
    }
}

fn index(documents: &Documents, registry: &Registry, headers: &HeaderMap) -> Response<Body> {
    let mut paths = Map::new();
    for version in registry.versions() {
        let path = path(version);
        let hash = documents.get(&path, version).hash;
        let url = format!("/openapi/v3/{path}?hash={hash}");
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    let body = Bytes::from(json!({"paths": paths}).to_string());
    let hash = hash(&body);
    cached(body, &hash, headers)
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

fn make(version: &GroupVersion) -> Document {
    let document: Value = crate::openapi_paths::document(version);
    let body = Bytes::from(document.to_string());
    Document { hash: hash(&body), body }
}
