//! Manifests and indexes over the wire.

use super::error::Failure;
use super::session::{Call, Session};
use super::transport::Payload;
use crate::document::{Document, MEDIA_DOCKER_MANIFEST};
use crate::{Digest, oci};
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method};

const CONTENT_DIGEST: &str = "docker-content-digest";

/// A document and the bytes that have its digest.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) digest: Digest,
    pub(super) bytes: Bytes,
    pub(super) document: Document,
}

impl Held {
    /// Reads what a registry or the store gave.
    pub(super) fn new(digest: Digest, bytes: Bytes) -> Result<Self, String> {
        Ok(Self { document: Document::parse(&bytes)?, digest, bytes })
    }
}

impl Session<'_> {
    /// Gets a document by tag or digest, at most `attempts` times. With `wanted` it has to have this digest.
    pub(super) async fn manifest(
        &self,
        target: &str,
        wanted: Option<&Digest>,
        attempts: u32,
    ) -> Result<Held, Failure> {
        let mut call = self.call(Method::GET, &format!("manifests/{target}"))?;
        for media in [oci::MEDIA_INDEX, oci::MEDIA_MANIFEST, oci::MEDIA_DOCKER_LIST, MEDIA_DOCKER_MANIFEST] {
            call.headers.append(ACCEPT, HeaderValue::from_static(media));
        }
        let mut retry = super::Retry::new(attempts, self.client.options.backoff);
        loop {
            match self.get_manifest(&call, wanted).await {
                Ok(held) => return Ok(held),
                Err(failure) => retry.after(failure).await?,
            }
        }
    }

    async fn get_manifest(&self, call: &Call<'_>, wanted: Option<&Digest>) -> Result<Held, Failure> {
        let response = self.send(call).await?;
        let told = told_digest(response.headers());
        let bytes = self.client.transport.read(response.into_body(), oci::MAX_JSON).await?;
        let digest = Digest::of(&bytes);
        for expected in wanted.into_iter().chain(&told) {
            if *expected != digest {
                return Err(Failure::Content(format!(
                    "a manifest with digest {digest} instead of {expected}"
                )));
            }
        }
        Held::new(digest, bytes).map_err(Failure::Content)
    }

    /// Stores a document under a tag or digest.
    pub(super) async fn put_manifest(&self, target: &str, held: &Held) -> Result<(), Failure> {
        let mut headers = HeaderMap::new();
        let media = HeaderValue::from_str(held.document.media_type());
        headers.insert(CONTENT_TYPE, media.map_err(|error| Failure::Content(error.to_string()))?);
        headers.insert(CONTENT_LENGTH, HeaderValue::from(held.bytes.len()));
        let uri = self.uri(&format!("manifests/{target}"))?;
        let call = Call { method: Method::PUT, uri, headers, payload: Payload::Bytes(held.bytes.clone()) };
        let mut retry = self.client.retry();
        loop {
            match self.send(&call).await {
                Ok(response) => match told_digest(response.headers()) {
                    Some(told) if told != held.digest => {
                        let reason = format!("it made {told} of manifest {}", held.digest);
                        return Err(Failure::Content(reason));
                    }
                    _ => return Ok(()),
                },
                Err(failure) => retry.after(failure).await?,
            }
        }
    }
}

/// What the registry says the digest is. One of another algorithm says nothing.
fn told_digest(headers: &HeaderMap) -> Option<Digest> {
    Digest::parse(headers.get(CONTENT_DIGEST)?.to_str().ok()?).ok()
}
