//! Names: which document each name stands for, and which documents each repository of the registry shows.

use crate::error::io;
use crate::store::sync_dir;
use crate::{Digest, ImageError, ImageStore, Reference, oci};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;

/// Contents of `refs.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Refs {
    pub(crate) format: u32,
    /// Full name → digest of a manifest or index.
    pub(crate) refs: BTreeMap<String, Digest>,
    /// Documents without a name, kept until they are pruned.
    pub(crate) untagged: BTreeSet<Digest>,
    /// Those of the names that came with a pull, so that their registry may know something newer.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) pulled: BTreeSet<String>,
    /// `registry/repository` → documents that were pushed there and not deleted there. Keeps nothing from pruning.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) repositories: BTreeMap<String, BTreeSet<Digest>>,
}

const FORMAT: u32 = 1;

impl Refs {
    /// Gives `name` to an image. The image that had it stays, nameless if it was its only name.
    pub(crate) fn tag(&mut self, name: &Reference, digest: &Digest) {
        if let Some(old) = self.refs.insert(name.to_string(), digest.clone()) {
            self.keep_untagged(old);
        }
        self.untagged.remove(digest);
        self.pulled.remove(&name.to_string());
    }

    /// As [`Refs::tag`], for what a registry has under that name.
    pub(crate) fn tag_pulled(&mut self, name: &Reference, digest: &Digest) {
        self.tag(name, digest);
        self.pulled.insert(name.to_string());
    }

    /// Takes a name away, and tells whether there was one.
    pub(crate) fn untag(&mut self, name: &str) -> bool {
        let found = self.refs.remove(name);
        self.pulled.remove(name);
        if let Some(digest) = found.clone() {
            self.keep_untagged(digest);
        }
        found.is_some()
    }

    /// Keeps an image that may have no name.
    pub(crate) fn keep_untagged(&mut self, digest: Digest) {
        if !self.refs.values().any(|tagged| *tagged == digest) {
            self.untagged.insert(digest);
        }
    }

    /// Every document there is, apart from those that only an index names.
    pub(crate) fn digests(&self) -> BTreeSet<Digest> {
        self.refs.values().chain(&self.untagged).cloned().collect()
    }

    /// Forgets what repositories show and is no longer there.
    pub(crate) fn tidy_repositories(&mut self) {
        let there = self.digests();
        self.repositories.values_mut().for_each(|shown| shown.retain(|digest| there.contains(digest)));
        self.repositories.retain(|_, shown| !shown.is_empty());
    }
}

/// Where an image in the store has its name from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was built, loaded, tagged or pushed here.
    Local,
    /// It was pulled: its registry may have a newer one under the same name.
    Registry,
}

impl ImageStore {
    /// Where the image that is in the store under this name is from; `None` when there is none.
    ///
    /// # Errors
    /// `BadReference`, or a store that cannot be read.
    pub fn origin(&self, reference: &str) -> Result<Option<Origin>, ImageError> {
        match self.find(reference) {
            Err(ImageError::NotFound { .. }) => return Ok(None),
            found => found.map(drop)?,
        }
        // What is asked for by digest never changes.
        let name = Reference::parse(reference).map(|name| name.to_string()).unwrap_or_default();
        let pulled = self.refs()?.pulled.contains(&name);
        Ok(Some(if pulled { Origin::Registry } else { Origin::Local }))
    }

    pub(crate) fn refs(&self) -> Result<Refs, ImageError> {
        let path = self.refs_path();
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Refs { format: FORMAT, ..Refs::default() });
            }
            Err(error) => return Err(io("read", &path)(error)),
        };
        let corrupt = |reason| ImageError::Corrupt { path: path.clone(), reason };
        let refs: Refs =
            serde_json::from_slice(&text).map_err(|error| corrupt(format!("malformed: {error}")))?;
        match refs.format {
            FORMAT => Ok(refs),
            other => Err(corrupt(format!("has format {other}, this program reads format {FORMAT}"))),
        }
    }

    /// Replaces `refs.json`. The caller holds the lock.
    pub(crate) fn write_refs(&self, refs: &Refs) -> Result<(), ImageError> {
        let path = self.refs_path();
        let fresh = path.with_extension("json.new");
        let mut file = File::create(&fresh).map_err(io("make", &fresh))?;
        file.write_all(&oci::encode(refs)?).and_then(|()| file.sync_all()).map_err(io("write", &fresh))?;
        std::fs::rename(&fresh, &path).map_err(io("replace", &path))?;
        sync_dir(&self.root)
    }

    /// Gives an image another name, which it takes from the image that has it.
    ///
    /// # Errors
    /// `NotFound`; `BadReference`, also when `target` has a digest; or a store that cannot be written.
    pub fn tag(&self, source: &str, target: &str) -> Result<(), ImageError> {
        let name = Reference::parse(target)?;
        if name.digest().is_some() {
            let reason = "a digest cannot be given away: use a tag";
            return Err(ImageError::BadReference { text: target.to_owned(), reason });
        }
        let _lock = self.lock()?;
        let digest = self.find(source)?;
        let mut refs = self.refs()?;
        refs.tag(&name, &digest);
        self.write_refs(&refs)
    }

    /// Takes a name from its image, or with a digest all its names. The content stays until [`ImageStore::prune`],
    /// since containers may be running on it.
    ///
    /// # Errors
    /// `NotFound`, `BadReference`, or a store that cannot be written.
    pub fn remove(&self, reference: &str) -> Result<(), ImageError> {
        let _lock = self.lock()?;
        let digest = self.find(reference)?;
        let mut refs = self.refs()?;
        match Reference::parse(reference).map(|name| name.to_string()) {
            Ok(name) if refs.untag(&name) => {}
            _ => {
                refs.refs.retain(|_, tagged| *tagged != digest);
                refs.pulled.retain(|name| refs.refs.contains_key(name));
                refs.keep_untagged(digest);
            }
        }
        self.write_refs(&refs)
    }
}
