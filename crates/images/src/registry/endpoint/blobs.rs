//! Blobs: reading, uploading in all the protocol's ways, mounting, deleting.
//!
//! A blob belongs to the store, not to a repository: a blob that is in the store is in every repository, so nothing
//! is uploaded twice. Whoever is told that a blob is there gets a lease on it.

use super::Endpoint;
use super::reply::{Answer, CONTENT_DIGEST, Code, Refusal, UPLOAD_ID, blocking, created, empty, text};
use super::route::digest;
use super::sessions::range_header;
use crate::Digest;
use crate::registry::sink_error;
use axum::body::Body;
use axum::extract::{Query, Request};
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName, LOCATION, RANGE,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use std::io::SeekFrom;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use uuid::Uuid;

/// Bytes that are read from the disk at a time.
const CHUNK: usize = 512 * 1024;

#[derive(Debug, Default, serde::Deserialize)]
pub(super) struct UploadQuery {
    digest: Option<String>,
    mount: Option<String>,
}

impl UploadQuery {
    fn of(request: &Request) -> Result<Self, Refusal> {
        let query = Query::<Self>::try_from_uri(request.uri());
        query
            .map(|Query(query)| query)
            .map_err(|error| Refusal::new(Code::BlobUploadInvalid, error.body_text()))
    }
}

pub(super) async fn blob(endpoint: Arc<Endpoint>, request: Request, wanted: Digest) -> Answer {
    let head = match *request.method() {
        Method::GET => false,
        Method::HEAD => true,
        Method::DELETE => return delete(endpoint, wanted).await,
        _ => return Err(unsupported(request.method())),
    };
    let store = endpoint.store.clone();
    let lookup = wanted.clone();
    let size = blocking(move || Ok(store.blob_on_lease(&lookup)?)).await?.ok_or_else(|| unknown(&wanted))?;
    let range = match request.headers().get(RANGE) {
        None => None,
        Some(value) => parse_range(value, size)?,
    };
    let (first, length) = range.unwrap_or((0, size));
    let mut response = empty(if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK });
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_DIGEST, text(wanted.as_str()));
    headers.insert(ETAG, text(&format!("\"{wanted}\"")));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if range.is_some() {
        headers.insert(CONTENT_RANGE, text(&format!("bytes {first}-{}/{size}", first + length - 1)));
    }
    if !head {
        let path = endpoint.store.blob(&wanted);
        let mut file =
            tokio::fs::File::open(&path).await.map_err(|error| sink_error("open", &path, error))?;
        if first > 0 {
            let sought = file.seek(SeekFrom::Start(first)).await;
            sought.map_err(|error| sink_error("read", &path, error))?;
        }
        file.set_max_buf_size(CHUNK);
        let stream = tokio_util::io::ReaderStream::with_capacity(file.take(length), CHUNK);
        *response.body_mut() = Body::from_stream(stream);
    }
    Ok(response)
}

/// First byte and length of the one range that is supported; `None` for what is to be ignored.
fn parse_range(value: &HeaderValue, size: u64) -> Result<Option<(u64, u64)>, Refusal> {
    let bad = || {
        let refusal = Refusal::new(Code::RangeInvalid, format!("the blob has {size} bytes"));
        refusal.header(CONTENT_RANGE, &format!("bytes */{size}"))
    };
    let Some((first, last)) = value
        .to_str()
        .ok()
        .and_then(|text| text.strip_prefix("bytes="))
        .filter(|ranges| !ranges.contains(','))
        .and_then(|range| range.split_once('-'))
    else {
        return Ok(None);
    };
    let (first, last) = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) => (first, last.min(size.saturating_sub(1))),
        (Ok(first), Err(_)) if last.trim().is_empty() => (first, size.saturating_sub(1)),
        (Err(_), Ok(suffix)) if first.trim().is_empty() && suffix > 0 => {
            (size.saturating_sub(suffix), size.saturating_sub(1))
        }
        _ => return Ok(None),
    };
    match first < size && first <= last {
        true => Ok(Some((first, last - first + 1))),
        false => Err(bad()),
    }
}

async fn delete(endpoint: Arc<Endpoint>, wanted: Digest) -> Answer {
    blocking(move || match endpoint.store.remove_blob(&wanted)? {
        crate::gc::BlobRemoval::Removed => Ok(empty(StatusCode::ACCEPTED)),
        crate::gc::BlobRemoval::Unknown => Err(unknown(&wanted)),
        crate::gc::BlobRemoval::Needed(by) => Err(Refusal::new(
            Code::Unsupported,
            format!("{by} needs this blob: delete that and prune the store"),
        )),
    })
    .await
}

/// `POST /v2/NAME/blobs/uploads/`: opens an upload, or does all at once.
pub(super) async fn begin(endpoint: Arc<Endpoint>, request: Request, name: String) -> Answer {
    if request.method() != Method::POST {
        return Err(unsupported(request.method()));
    }
    let query = UploadQuery::of(&request)?;
    if let Some(wanted) = &query.mount {
        let wanted = digest(wanted)?;
        let (store, lookup) = (endpoint.store.clone(), wanted.clone());
        if blocking(move || Ok(store.blob_on_lease(&lookup)?)).await?.is_some() {
            return Ok(created(&format!("/v2/{name}/blobs/{wanted}"), &wanted));
        }
    }
    let expected = query.digest.as_deref().map(digest).transpose()?;
    let opener = Arc::clone(&endpoint);
    let repository = name.clone();
    let id = blocking(move || opener.sessions.open(&repository)).await?;
    match expected {
        Some(expected) => complete(endpoint, request, name, id, expected).await,
        None => Ok(progress(StatusCode::ACCEPTED, &name, id, 0)),
    }
}

/// `/v2/NAME/blobs/uploads/ID`
pub(super) async fn upload(endpoint: Arc<Endpoint>, request: Request, name: String, id: String) -> Answer {
    let gone = || Refusal::new(Code::BlobUploadUnknown, "there is no such upload: begin a new one");
    let id = Uuid::parse_str(&id).map_err(|_| gone())?;
    match *request.method() {
        Method::GET => {
            let received = endpoint.sessions.received(&name, id)?;
            Ok(progress(StatusCode::NO_CONTENT, &name, id, received))
        }
        Method::PATCH => {
            let received = append(&endpoint, request, &name, id).await?;
            Ok(progress(StatusCode::ACCEPTED, &name, id, received))
        }
        Method::PUT => {
            let query = UploadQuery::of(&request)?;
            let missing = || Refusal::new(Code::DigestInvalid, "the query has no digest");
            let expected = digest(&query.digest.ok_or_else(missing)?)?;
            complete(endpoint, request, name, id, expected).await
        }
        Method::DELETE => {
            blocking(move || endpoint.sessions.cancel(&name, id)).await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        _ => Err(unsupported(request.method())),
    }
}

/// Appends the body. In a task of its own: when the connection breaks, the server drops the request's future, and the
/// upload is to keep what has come.
async fn append(endpoint: &Arc<Endpoint>, request: Request, name: &str, id: Uuid) -> Result<u64, Refusal> {
    let announced = (content_range(request.headers())?, content_length(request.headers()));
    let (endpoint, name) = (Arc::clone(endpoint), name.to_owned());
    let task =
        tokio::spawn(
            async move { endpoint.sessions.receive(&name, id, announced, request.into_body()).await },
        );
    task.await.unwrap_or_else(|error| Err(Refusal::new(Code::Unknown, error.to_string())))
}

async fn complete(
    endpoint: Arc<Endpoint>,
    request: Request,
    name: String,
    id: Uuid,
    expected: Digest,
) -> Answer {
    if content_length(request.headers()) != Some(0) {
        append(&endpoint, request, &name, id).await?;
    }
    let location = format!("/v2/{name}/blobs/{expected}");
    let digest = expected.clone();
    blocking(move || endpoint.sessions.finish(&name, id, &expected)).await?;
    Ok(created(&location, &digest))
}

fn progress(status: StatusCode, name: &str, id: Uuid, received: u64) -> http::Response<Body> {
    let mut response = empty(status);
    let headers = response.headers_mut();
    if status == StatusCode::NO_CONTENT {
        headers.remove(CONTENT_LENGTH);
    }
    headers.insert(LOCATION, text(&format!("/v2/{name}/blobs/uploads/{id}")));
    headers.insert(RANGE, text(&range_header(received)));
    headers.insert(UPLOAD_ID, text(&id.to_string()));
    response
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// `Content-Range: FIRST-LAST`, as the distribution specification writes it, or as HTTP does.
fn content_range(headers: &HeaderMap) -> Result<Option<(u64, u64)>, Refusal> {
    const NAME: HeaderName = CONTENT_RANGE;
    let Some(value) = headers.get(NAME) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| {
        let text = text.trim_start_matches("bytes").trim_start_matches(['=', ' ']);
        let (first, last) = text.split('/').next()?.split_once('-')?;
        Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
    });
    let bad = || Refusal::new(Code::RangeInvalid, "Content-Range must be FIRST-LAST in bytes");
    parsed.map(Some).ok_or_else(bad)
}

fn unknown(digest: &Digest) -> Refusal {
    Refusal::new(Code::BlobUnknown, format!("blob {digest} is not here"))
        .detail(serde_json::json!({"digest": digest.as_str()}))
}

pub(super) fn unsupported(method: &Method) -> Refusal {
    Refusal::new(Code::Unsupported, format!("{method} is not possible here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let table = [
            ("bytes=0-9", Some(Some((0, 10)))),
            ("bytes=5-", Some(Some((5, 95)))),
            ("bytes=90-200", Some(Some((90, 10)))),
            ("bytes=-10", Some(Some((90, 10)))),
            ("bytes=-200", Some(Some((0, 100)))),
            ("bytes=0-1,5-6", Some(None)),
            ("bytes=a-b", Some(None)),
            ("bytes=-", Some(None)),
            ("rows=1-2", Some(None)),
            ("bytes=100-", None),
            ("bytes=9-8", None),
        ];
        for (text, expected) in table {
            let found = parse_range(&HeaderValue::from_static(text), 100).ok();
            assert_eq!(found, expected, "{text}");
        }
        assert_eq!(parse_range(&HeaderValue::from_static("bytes=0-"), 0).ok(), None);
        assert_eq!(parse_range(&HeaderValue::from_static("bytes=-1"), 0).ok(), None);
    }

    #[test]
    fn content_ranges() {
        for (text, expected) in [
            ("0-9", Some(Some((0, 9)))),
            ("bytes 3-9/20", Some(Some((3, 9)))),
            ("bytes=3-9", Some(Some((3, 9)))),
            ("9", None),
            ("-9", None),
            ("a-b", None),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_RANGE, HeaderValue::from_static(text))]);
            assert_eq!(content_range(&headers).ok(), expected, "{text}");
        }
    }
}
