//! Answers: objects and lists in the form that the client accepts.

use crate::codec::negotiate::{Accepted, Encoding, Shape};
use crate::codec::table::{Include, Writer, partial};
use crate::object::body;
use crate::registry::Resource;
use crate::verbs::list::Listed;
use axum::body::Body;
use bytes::Bytes;
use cumulet_api::{Status, meta};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, VARY};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::{Value, json};
use std::io::Write;

/// Answers from this size on are compressed when the client asks for it, as in Kubernetes.
const GZIP_FROM: usize = 128 * 1024;

pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");
const YAML: HeaderValue = HeaderValue::from_static("application/yaml");

/// An answer with a body of a given type.
pub(crate) fn reply(code: StatusCode, content_type: HeaderValue, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// A JSON answer.
pub(crate) fn json(code: StatusCode, value: &Value) -> Response<Body> {
    reply(code, JSON, value.to_string())
}

/// A plain text answer.
pub(crate) fn text(code: StatusCode, body: impl Into<Body>) -> Response<Body> {
    reply(code, HeaderValue::from_static("text/plain; charset=utf-8"), body)
}

/// Counters, in the text format of OpenMetrics.
pub(crate) fn metrics(text: String) -> Response<Body> {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    reply(StatusCode::OK, HeaderValue::from_static(kind), text)
}

/// A failure.
pub(crate) fn failure(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(code, &status.to_json());
    if let Some(seconds) = status.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0) {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// What about an answer depends on the request.
pub(crate) struct Form<'a> {
    pub(crate) accepted: Accepted,
    pub(crate) include: Include,
    pub(crate) headers: &'a HeaderMap,
    /// The client is on this machine, where compressing costs more than it saves.
    pub(crate) local: bool,
}

/// One object.
pub(crate) fn object(
    form: &Form<'_>,
    code: StatusCode,
    resource: &Resource,
    object: Bytes,
) -> Result<Response<Body>, Status> {
    if form.accepted.is_plain() && resource.view.is_none() {
        return Ok(reply(code, JSON, object));
    }
    let value = || decode(&object);
    match form.accepted.shape {
        Shape::Objects | Shape::Discovery if resource.view.is_some() => {
            written(form, code, resource.served(&value()?).to_string().into())
        }
        Shape::Objects | Shape::Discovery => written(form, code, object),
        Shape::Metadata => written(form, code, partial(&value()?).to_string().into()),
        Shape::Table => {
            let value = value()?;
            let metadata = json!({"resourceVersion": meta::resource_version(&value)});
            let mut table = Writer::new(resource, form.include, &metadata, true);
            table.push(&value);
            written(form, code, table.finish().into())
        }
    }
}

/// A value that is no object of a row (a Scale, a Status).
pub(crate) fn value(form: &Form<'_>, code: StatusCode, value: &Value) -> Result<Response<Body>, Status> {
    written(form, code, value.to_string().into())
}

/// A list.
pub(crate) fn list(form: &Form<'_>, resource: &Resource, listed: &Listed) -> Result<Response<Body>, Status> {
    let mut metadata = json!({"resourceVersion": listed.revision.to_string()});
    if let Some(next) = &listed.next {
        metadata["continue"] = next.as_str().into();
    }
    if let Some(remaining) = listed.remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    let (kind, version) = match form.accepted.shape {
        Shape::Table => {
            let mut table = Writer::new(resource, form.include, &metadata, true);
            for record in &listed.items {
                table.push(&body::parse(record)?);
            }
            return written(form, StatusCode::OK, table.finish().into());
        }
        Shape::Metadata => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
        Shape::Objects | Shape::Discovery => (format!("{}List", resource.row.kind), resource.api_version()),
    };
    let items: usize = listed.items.iter().map(|record| record.body.len() + 1).sum();
    let mut out = Vec::with_capacity(items + 256);
    out.extend_from_slice(
        format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{version}\",\"metadata\":{metadata},\"items\":[")
            .as_bytes(),
    );
    for (index, record) in listed.items.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        if form.accepted.shape == Shape::Metadata {
            // Writing into a vector cannot fail.
            let _ = serde_json::to_writer(&mut out, &partial(&body::parse(record)?));
        } else if resource.view.is_some() {
            let _ = serde_json::to_writer(&mut out, &*resource.served(&body::parse(record)?));
        } else {
            out.extend_from_slice(&record.body);
        }
    }
    out.extend_from_slice(b"]}");
    written(form, StatusCode::OK, out.into())
}

/// Sends JSON as it is or as YAML, compressed when that pays.
fn written(form: &Form<'_>, code: StatusCode, json: Bytes) -> Result<Response<Body>, Status> {
    let (content_type, bytes) = match form.accepted.encoding {
        Encoding::Json => (JSON, json),
        Encoding::Yaml => {
            let text = serde_saphyr::to_string(&decode(&json)?).map_err(Status::internal)?;
            (YAML, Bytes::from(text))
        }
    };
    if bytes.len() < GZIP_FROM || form.local || !accepts_gzip(form.headers) {
        return Ok(reply(code, content_type, bytes));
    }
    let mut gzip = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
    let packed = gzip.write_all(&bytes).and_then(|()| gzip.finish()).map_err(Status::internal)?;
    let mut response = reply(code, content_type, packed);
    response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    Ok(response)
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get(ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or_default();
    accepted.split(',').any(|coding| coding.split(';').next().unwrap_or_default().trim() == "gzip")
}

fn decode(object: &Bytes) -> Result<Value, Status> {
    serde_json::from_slice(object)
        .map_err(|e| Status::internal(format!("stored object does not decode: {e}")))
}
