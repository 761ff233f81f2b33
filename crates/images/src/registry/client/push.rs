//! Pushing: from the store to a registry, only what it does not have.

use super::error::{Failure, RegistryError};
use super::keyring::{Credential, Keyring};
use super::manifest::Held;
use super::progress::Progress;
use super::session::{Call, Session};
use super::token::form;
use super::transport::Payload;
use super::{Client, Meter, blocking};
use crate::document::is_foreign;
use crate::oci::Descriptor;
use crate::{Digest, ImageError, ImageStore, Reference};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Most blobs that are under way; how many move at a time is the client's option.
const UNDER_WAY: usize = 16;
/// Most repositories from which blobs are mounted in one push.
const MAX_ORIGINS: usize = 4;
/// How deep indexes may be within indexes.
const MAX_DEPTH: usize = 4;

/// What a push did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Digest of what the name stands for in the registry.
    pub digest: Digest,
    /// Bytes of configurations and layers that went over the network.
    pub bytes_sent: u64,
    /// How many different configurations and layers there are.
    pub blobs: usize,
    /// How many of them the registry had already.
    pub blobs_reused: usize,
    /// Whether all platforms of an index were pushed. If not, `digest` is the image for this machine, which is all
    /// that the store has.
    pub whole: bool,
}

/// What is to be pushed.
struct Cargo {
    /// Each after all that it names.
    documents: Vec<Held>,
    blobs: BTreeMap<Digest, Descriptor>,
    /// Repository of the same registry → the blobs that it has.
    origins: BTreeMap<String, BTreeSet<Digest>>,
    whole: bool,
}

/// A push as one user.
struct Push<'a> {
    name: String,
    session: Session<'a>,
    cargo: &'a Cargo,
    progress: &'a dyn Progress,
    sent: AtomicU64,
    reused: AtomicUsize,
}

impl Client {
    /// Gives a registry the image or artifact `source` of the store under the name `target`.
    ///
    /// # Errors
    /// See [`RegistryError`]; `BadReference` when `target` has a digest.
    pub async fn push(
        &self,
        source: &str,
        target: &Reference,
        keyring: &Keyring,
        progress: &dyn Progress,
    ) -> Result<Pushed, RegistryError> {
        let name = target.short();
        let Some(tag) = target.tag().filter(|_| target.digest().is_none()) else {
            let reason = "an image is pushed to a tag, and gets its digest there";
            return Err(ImageError::BadReference { text: name, reason }.into());
        };
        let what = || format!("push {}", target.short());
        let (store, from, to) = (self.store.clone(), source.to_owned(), target.clone());
        let cargo = blocking(move || Cargo::load(&store, &from, &to)).await;
        let cargo = cargo.map_err(|failure| failure.on(what(), target.registry()))?;
        let source = self.options.registries.origin(target.registry());
        let source = source.map_err(|words| Failure::Peer(words).on(what(), target.registry()))?;
        let found = keyring.lookup(source.authority.as_str(), target.repository()).await?;
        let anonymous = found.is_empty().then_some(None);
        let credentials: Vec<Option<Credential>> = found.into_iter().map(Some).chain(anonymous).collect();
        progress.total(cargo.blobs.values().fold(0, |sum, blob| sum.saturating_add(blob.size)));
        let also: Vec<String> = cargo.origins.keys().map(|name| format!("repository:{name}:pull")).collect();
        let mut refused = Failure::Peer("there are no credentials".to_owned()).on(what(), target.registry());
        for credential in credentials {
            let repository = target.repository();
            let session = Session::new(self, source.clone(), repository, credential, "pull,push", &also);
            let (sent, reused) = (AtomicU64::new(0), AtomicUsize::new(0));
            let push = Push { name: name.clone(), session, cargo: &cargo, progress, sent, reused };
            match push.run(tag).await {
                Err(error @ RegistryError::Unauthorized { .. }) => refused = error,
                done => return done,
            }
        }
        Err(refused)
    }
}

impl Cargo {
    fn load(store: &ImageStore, from: &str, to: &Reference) -> Result<Self, ImageError> {
        let root = store.find(from)?;
        let mut documents = Vec::new();
        let whole = gather(store, &root, MAX_DEPTH, &mut documents)?;
        if !whole {
            let image = store.runnable(&root)?;
            documents.clear();
            if !gather(store, &image, 0, &mut documents)? {
                let reason = format!("part of {image} is missing from the store: pull or load it again");
                return Err(ImageError::Archive { archive: from.to_owned(), reason });
            }
        }
        let blobs: BTreeMap<Digest, Descriptor> = documents
            .iter()
            .flat_map(|held: &Held| held.document.blobs())
            .filter(|blob| !is_foreign(blob))
            .map(|blob| (blob.digest.clone(), blob.clone()))
            .collect();
        Ok(Self { origins: origins(store, to, &blobs)?, documents, blobs, whole })
    }
}

/// Adds a document after what it names, each once, and tells whether all of it is in the store.
fn gather(
    store: &ImageStore,
    digest: &Digest,
    depth: usize,
    documents: &mut Vec<Held>,
) -> Result<bool, ImageError> {
    if documents.iter().any(|held| held.digest == *digest) {
        return Ok(true);
    }
    let corrupt = |reason| ImageError::Corrupt { path: store.blob(digest), reason };
    let held = Held::new(digest.clone(), store.document_bytes(digest)?.into()).map_err(corrupt)?;
    for child in held.document.children() {
        let there = depth > 0 && store.blob_on_lease(&child.digest)?.is_some();
        if !there || !gather(store, &child.digest, depth - 1, documents)? {
            return Ok(false);
        }
    }
    for blob in held.document.blobs().filter(|blob| !is_foreign(blob)) {
        if store.blob_on_lease(&blob.digest)? != Some(blob.size) {
            return Ok(false);
        }
    }
    documents.push(held);
    Ok(true)
}

/// Other repositories of the registry that have some of the blobs, as far as the names in the store tell.
fn origins(
    store: &ImageStore,
    to: &Reference,
    blobs: &BTreeMap<Digest, Descriptor>,
) -> Result<BTreeMap<String, BTreeSet<Digest>>, ImageError> {
    let mut origins: BTreeMap<String, BTreeSet<Digest>> = BTreeMap::new();
    let mut open: BTreeSet<&Digest> = blobs.keys().collect();
    for (name, root) in &store.refs()?.refs {
        let name = Reference::parse(name)?;
        if name.registry() != to.registry() || name.repository() == to.repository() {
            continue;
        }
        let document = store.described(root)?;
        let here = document.for_here().filter(|child| store.blob(&child.digest).exists());
        let image = here.map(|child| store.described(&child.digest)).transpose()?;
        for blob in image.as_ref().unwrap_or(&document).blobs() {
            if open.remove(&blob.digest) {
                let known = origins.entry(name.repository().to_owned()).or_default();
                known.insert(blob.digest.clone());
            }
        }
        if origins.len() >= MAX_ORIGINS || open.is_empty() {
            break;
        }
    }
    Ok(origins)
}

impl Push<'_> {
    fn what(&self, of: &Digest) -> String {
        format!("push {}: {of}", self.name)
    }

    async fn run(&self, tag: &str) -> Result<Pushed, RegistryError> {
        let work: Vec<_> = self.cargo.blobs.values().map(|blob| self.blob(blob)).collect();
        stream::iter(work).buffer_unordered(UNDER_WAY).try_collect::<()>().await?;
        let Some((root, children)) = self.cargo.documents.split_last() else {
            let nothing = Failure::Content("there is nothing to push".to_owned());
            return Err(nothing.on(format!("push {}", self.name), self.session.host()));
        };
        for (target, held) in children.iter().map(|held| (held.digest.as_str(), held)).chain([(tag, root)]) {
            let put = self.session.put_manifest(target, held).await;
            put.map_err(|failure| failure.on(self.what(&held.digest), self.session.host()))?;
        }
        Ok(Pushed {
            digest: root.digest.clone(),
            bytes_sent: self.sent.load(Ordering::Relaxed),
            blobs: self.cargo.blobs.len(),
            blobs_reused: self.reused.load(Ordering::Relaxed),
            whole: self.cargo.whole,
        })
    }

    async fn blob(&self, blob: &Descriptor) -> Result<(), RegistryError> {
        // The semaphore is never closed.
        let _slot = self.session.client.slots.acquire().await.ok();
        let meter = Meter::new(self.progress);
        let mut retry = self.session.client.retry();
        let moved = loop {
            match self.attempt(blob, &meter).await {
                Ok(moved) => break moved,
                Err(failure) => {
                    let again = retry.after(failure).await;
                    again.map_err(|failure| failure.on(self.what(&blob.digest), self.session.host()))?;
                }
            }
        };
        meter.reach(blob.size);
        match moved {
            true => _ = self.sent.fetch_add(blob.size, Ordering::Relaxed),
            false => _ = self.reused.fetch_add(1, Ordering::Relaxed),
        }
        self.progress.done(&blob.digest, moved);
        Ok(())
    }

    /// Sees to it that the registry has a blob, and tells whether it had to be sent.
    async fn attempt(&self, blob: &Descriptor, meter: &Meter<'_>) -> Result<bool, Failure> {
        let head = self.session.call(Method::HEAD, &format!("blobs/{}", blob.digest))?;
        match self.session.send(&head).await {
            Ok(_) => return Ok(false),
            Err(Failure::Status { status: StatusCode::NOT_FOUND, .. }) => {}
            Err(failure) => return Err(failure),
        }
        let origin = self.cargo.origins.iter().find(|(_, blobs)| blobs.contains(&blob.digest));
        let query = origin.map_or_else(String::new, |(from, _)| {
            format!("?{}", form([("mount", blob.digest.as_str()), ("from", from)]))
        });
        let mut begin = self.session.call(Method::POST, &format!("blobs/uploads/{query}"))?;
        begin.headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
        let begun = self.session.send(&begin).await?;
        if begun.status() == StatusCode::CREATED {
            return Ok(false);
        }
        let place = self.session.location(&begin.uri, begun.headers())?;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, HeaderValue::from(blob.size));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        let path = self.session.client.store.blob(&blob.digest);
        let sent = |bytes| meter.reach(bytes);
        let payload = Payload::File { path: &path, sent: &sent };
        let uri = with_digest(&place, &blob.digest)?;
        self.session.send(&Call { method: Method::PUT, uri, headers, payload }).await?;
        Ok(true)
    }
}

/// The address that ends an upload.
fn with_digest(place: &Uri, digest: &Digest) -> Result<Uri, Failure> {
    let separator = if place.query().is_some() { '&' } else { '?' };
    let text = format!("{place}{separator}{}", form([("digest", digest.as_str())]));
    text.parse().map_err(|_| Failure::Content("an upload at an address that is none".to_owned()))
}
