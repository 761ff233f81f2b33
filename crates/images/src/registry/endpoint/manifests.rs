//! Manifests and indexes: pushing makes a name in the store, so that a pod can use it at once.

use super::Endpoint;
use super::blobs::unsupported;
use super::reply::{Answer, CONTENT_DIGEST, Code, Refusal, SUBJECT, blocking, created, empty, full, text};
use super::route::Target;
use crate::document::{Document, Kind, check_layer_type, is_foreign};
use crate::oci::{self, ConfigFile};
use crate::refs::Refs;
use crate::store::check_config;
use crate::{Digest, ImageError, ImageStore, Reference};
use axum::body::Body;
use axum::extract::Request;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG};
use http::{HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::sync::Arc;

pub(super) async fn manifest(
    endpoint: Arc<Endpoint>,
    request: Request,
    name: String,
    target: Target,
) -> Answer {
    match *request.method() {
        Method::GET => blocking(move || get(&endpoint, &name, &target, false)).await,
        Method::HEAD => blocking(move || get(&endpoint, &name, &target, true)).await,
        Method::PUT => put(endpoint, request, name, target).await,
        Method::DELETE => blocking(move || delete(&endpoint, &name, &target)).await,
        _ => Err(unsupported(request.method())),
    }
}

fn unknown(name: &str, target: &Target) -> Refusal {
    let what = match target {
        Target::Tag(tag) => tag,
        Target::Digest(digest) => digest.as_str(),
    };
    Refusal::new(Code::ManifestUnknown, format!("{name} has no manifest {what}"))
        .detail(serde_json::json!({"name": name, "reference": what}))
}

/// What a repository shows under a tag or digest.
fn find(endpoint: &Endpoint, refs: &Refs, name: &str, target: &Target) -> Result<Option<Digest>, ImageError> {
    let digest = match target {
        Target::Tag(tag) => return Ok(refs.refs.get(&endpoint.full_name(name, tag)).cloned()),
        Target::Digest(digest) => digest,
    };
    let pushed =
        refs.repositories.get(&endpoint.repository(name)).is_some_and(|shown| shown.contains(digest));
    if pushed {
        return Ok(Some(digest.clone()));
    }
    for (_, root) in endpoint.tags(refs, name) {
        let tagged = root == digest
            || (endpoint.store.blob(digest).exists()
                && endpoint.store.described(root)?.children().iter().any(|child| child.digest == *digest));
        if tagged {
            return Ok(Some(digest.clone()));
        }
    }
    Ok(None)
}

fn get(endpoint: &Endpoint, name: &str, target: &Target, head: bool) -> Answer {
    let refs = endpoint.store.refs()?;
    let digest = find(endpoint, &refs, name, target)?.ok_or_else(|| unknown(name, target))?;
    let bytes = endpoint.store.document_bytes(&digest)?;
    let document = Document::parse(&bytes).map_err(|reason| Refusal::new(Code::Unknown, reason))?;
    let length = bytes.len();
    let mut response = full(StatusCode::OK, document.media_type(), bytes);
    response.headers_mut().insert(CONTENT_DIGEST, text(digest.as_str()));
    response.headers_mut().insert(ETAG, text(&format!("\"{digest}\"")));
    if head {
        *response.body_mut() = Body::empty();
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(response)
}

async fn put(endpoint: Arc<Endpoint>, request: Request, name: String, target: Target) -> Answer {
    let most = usize::try_from(oci::MAX_JSON).unwrap_or(usize::MAX);
    let sent_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let sent_type = sent_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
    let body = Limited::new(request.into_body(), most).collect();
    let stalled = || Refusal::new(Code::ManifestInvalid, "the manifest does not come");
    let body = tokio::time::timeout(endpoint.stall, body).await.map_err(|_| stalled())?;
    let bytes = body.map(|body| body.to_bytes()).map_err(|error| match error.is::<LengthLimitError>() {
        true => Refusal::new(Code::SizeInvalid, format!("a manifest may have {most} bytes at the most")),
        false => Refusal::new(Code::ManifestInvalid, format!("the manifest broke off: {error}")),
    })?;
    let publisher = Arc::clone(&endpoint);
    let (digest, response) =
        blocking(move || publish(&publisher, &name, &target, &sent_type, &bytes)).await?;
    // Unpacked while nobody waits for it; who does not want to wait for that shares the work.
    tokio::task::spawn_blocking(move || endpoint.prepare(&digest));
    Ok(response)
}

fn publish(
    endpoint: &Endpoint,
    name: &str,
    target: &Target,
    sent_type: &str,
    bytes: &[u8],
) -> Result<(Digest, http::Response<Body>), Refusal> {
    let digest = Digest::of(bytes);
    if let Target::Digest(expected) = target
        && *expected != digest
    {
        let message = format!("the manifest has digest {digest}, not {expected}");
        return Err(Refusal::new(Code::DigestInvalid, message));
    }
    let invalid = |reason: String| Refusal::new(Code::ManifestInvalid, reason);
    let document = Document::parse(bytes).map_err(invalid)?;
    if !sent_type.is_empty() && sent_type != document.media_type() {
        let own = document.media_type();
        return Err(invalid(format!("sent as \"{sent_type}\", but it is \"{own}\"")));
    }
    check_content(&endpoint.store, &document)?;
    let (repository, root) = (endpoint.repository(name), digest.clone());
    let names = match target {
        Target::Tag(tag) => endpoint.full_names(name, tag)?,
        Target::Digest(_) => Vec::new(),
    };
    endpoint.store.publish_documents(&[(&digest, bytes)], |refs| {
        names.iter().for_each(|name| refs.tag(name, &root));
        refs.keep_untagged(root.clone());
        refs.repositories.entry(repository).or_default().insert(root);
    })?;
    let mut response = created(&format!("/v2/{name}/manifests/{digest}"), &digest);
    if let Some(subject) = document.subject() {
        response.headers_mut().insert(SUBJECT, text(subject.digest.as_str()));
    }
    Ok((digest, response))
}

/// What a manifest names has to be there, in the size it says, and an image for this machine has to be runnable.
fn check_content(store: &ImageStore, document: &Document) -> Result<(), Refusal> {
    let limits = &store.limits;
    if document.layers().len() > limits.layers {
        return Err(Refusal::new(Code::ManifestInvalid, format!("more than {} layers", limits.layers)));
    }
    for named in document.blobs().chain(document.children()).filter(|blob| !is_foreign(blob)) {
        match store.blob_on_lease(&named.digest)? {
            None => {
                let message = format!("{} is not here: push it first", named.digest);
                let detail = serde_json::json!({"digest": named.digest.as_str()});
                return Err(Refusal::new(Code::ManifestBlobUnknown, message).detail(detail));
            }
            Some(size) if size != named.size => {
                let message = format!("{} has {size} bytes, not {}", named.digest, named.size);
                return Err(Refusal::new(Code::ManifestInvalid, message));
            }
            Some(_) => {}
        }
    }
    let (Kind::Image, Some(config)) = (document.kind(), document.config()) else { return Ok(()) };
    let invalid = |reason: String| Refusal::new(Code::ManifestInvalid, reason);
    if config.size > oci::MAX_JSON {
        return Err(invalid(format!("the configuration is larger than {} bytes", oci::MAX_JSON)));
    }
    let config: ConfigFile = store.document(&config.digest).map_err(|error| invalid(error.to_string()))?;
    if !config.platform.fits() {
        return Ok(());
    }
    document.layers().iter().try_for_each(check_layer_type).map_err(invalid)?;
    check_config("the configuration", &config, document.layers().len())
        .map_err(|error| invalid(error.to_string()))
}

fn delete(endpoint: &Endpoint, name: &str, target: &Target) -> Answer {
    let _lock = endpoint.store.lock()?;
    let mut refs = endpoint.store.refs()?;
    let digest = find(endpoint, &refs, name, target)?.ok_or_else(|| unknown(name, target))?;
    match target {
        Target::Tag(tag) => {
            for name in endpoint.full_names(name, tag)? {
                refs.untag(&name.to_string());
            }
        }
        Target::Digest(_) => {
            let tags: Vec<String> = endpoint
                .tags(&refs, name)
                .filter(|(_, root)| **root == digest)
                .map(|(tag, _)| tag.to_owned())
                .collect();
            for tag in tags {
                let names: Vec<Reference> = endpoint.full_names(name, &tag)?;
                names.iter().for_each(|name| _ = refs.untag(&name.to_string()));
            }
            if let Some(shown) = refs.repositories.get_mut(&endpoint.repository(name)) {
                shown.remove(&digest);
            }
        }
    }
    endpoint.store.write_refs(&refs)?;
    Ok(empty(StatusCode::ACCEPTED))
}
