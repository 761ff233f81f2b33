//! What the store keeps: keys, records, events, and the operations of a commit.
//!
//! Records are immutable and shared (`Arc<Record>`): the current state, the history and every reader hold the
//! same bytes. Nothing here knows what is in a body, except that the writer puts the revision between its two
//! halves.

use bytes::{BufMut, Bytes, BytesMut};
use std::sync::Arc;

/// Names a collection of objects, such as `apps/deployments`. Opaque to the store; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceTag(Arc<str>);

impl ResourceTag {
    /// A tag of this name.
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<Arc<str>> for ResourceTag {
    fn from(name: Arc<str>) -> Self {
        Self(name)
    }
}

impl From<&str> for ResourceTag {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl std::fmt::Display for ResourceTag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where an object is. Ordered by resource, namespace, name. The namespace is empty where there is none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The collection.
    pub resource: ResourceTag,
    /// Namespace; empty when the collection has none.
    pub namespace: Arc<str>,
    /// Name within the namespace.
    pub name: Arc<str>,
}

impl Key {
    /// The key of an object.
    pub fn new(resource: &ResourceTag, namespace: &str, name: &str) -> Self {
        Self { resource: resource.clone(), namespace: Arc::from(namespace), name: Arc::from(name) }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &*self.namespace {
            "" => write!(f, "{}/{}", self.resource, self.name),
            namespace => write!(f, "{}/{namespace}/{}", self.resource, self.name),
        }
    }
}

/// One entry of a secondary index: the record can be found under `value` in the index called `name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IndexTerm {
    /// The index, such as `owner` or `node`.
    pub name: Arc<str>,
    /// What to find the record under, such as a uid.
    pub value: Arc<str>,
}

impl IndexTerm {
    /// A term of the index `name`.
    pub fn new(name: &str, value: &str) -> Self {
        Self { name: Arc::from(name), value: Arc::from(value) }
    }
}

/// An encoded object with a gap where its revision belongs: only the writer knows the revision, and it writes
/// `head`, the revision in decimal, `tail`.
#[derive(Clone, Debug, Default)]
pub struct Body {
    /// Everything before the revision.
    pub head: Bytes,
    /// Everything after it.
    pub tail: Bytes,
}

impl Body {
    /// A body of two halves.
    pub fn new(head: impl Into<Bytes>, tail: impl Into<Bytes>) -> Self {
        Self { head: head.into(), tail: tail.into() }
    }

    pub(crate) fn len(&self) -> usize {
        self.head.len() + self.tail.len() + MAX_DECIMAL
    }

    pub(crate) fn at(&self, revision: u64) -> Bytes {
        let mut whole = BytesMut::with_capacity(self.len());
        whole.put_slice(&self.head);
        whole.put_slice(revision.to_string().as_bytes());
        whole.put_slice(&self.tail);
        whole.freeze()
    }
}

/// Digits of `u64::MAX`.
const MAX_DECIMAL: usize = 20;

/// One object as it is (or was) at one revision.
#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it is.
    pub key: Key,
    /// The encoded object, its revision included.
    pub body: Bytes,
    /// Revision of the last change.
    pub revision: u64,
    /// Revision at which it was created.
    pub created_revision: u64,
    /// The index entries under which it is found.
    pub index: Vec<IndexTerm>,
}

/// One change within a commit.
#[derive(Clone, Debug)]
pub enum Op {
    /// Fails with `AlreadyExists` when the key is taken.
    Create {
        /// Where.
        key: Key,
        /// The object.
        body: Body,
        /// Its index entries.
        index: Vec<IndexTerm>,
    },
    /// Fails with `NotFound` when the key is free, with `Conflict` when the object is not at `expected`.
    Update {
        /// Where.
        key: Key,
        /// Revision that the object must be at; any when `None`.
        expected: Option<u64>,
        /// The new object.
        body: Body,
        /// Its new index entries.
        index: Vec<IndexTerm>,
    },
    /// Fails as `Update` does.
    Delete {
        /// Where.
        key: Key,
        /// Revision that the object must be at; any when `None`.
        expected: Option<u64>,
        /// The last state of the object, as watchers are told it; its revision is that of the deletion.
        tombstone: Body,
    },
}

impl Op {
    /// The key it changes.
    pub fn key(&self) -> &Key {
        match self {
            Self::Create { key, .. } | Self::Update { key, .. } | Self::Delete { key, .. } => key,
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Create { body, .. } | Self::Update { body, .. } => body.len(),
            Self::Delete { tombstone, .. } => tombstone.len(),
        }
    }
}

/// What a commit did. It is durable.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The one revision that all its changes have.
    pub revision: u64,
    /// One record per operation, in their order; for a deletion the tombstone.
    pub records: Vec<Arc<Record>>,
}

/// How an object changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It appeared.
    Created,
    /// It changed.
    Updated,
    /// It is gone.
    Deleted,
}

/// One change of one object, in the order in which changes happened.
#[derive(Debug, PartialEq, Eq)]
pub struct Event {
    /// How it changed.
    pub kind: EventKind,
    /// The object after the change; for a deletion the tombstone.
    pub record: Arc<Record>,
    /// The object before the change; `None` for a creation.
    pub previous: Option<Arc<Record>>,
}

impl Event {
    /// Revision of the change.
    pub fn revision(&self) -> u64 {
        self.record.revision
    }
}
