//! What the HTTP server and the in-process access share: the store, the registry, the allocators, and the verbs.
//!
//! ```text
//!   handlers (HTTP: negotiate, decode, encode) ─┐
//!                                               ├─► verbs on Core ─► store
//!   access (trait Cluster) ─────────────────────┘
//! ```
//!
//! Nothing below this line knows of HTTP; nothing above it touches the store.

use crate::alloc::ServiceAllocator;
use crate::auth::Identity;
use crate::object::body;
use crate::registry::{Registry, Resource};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use cumulet_api::{Status, StatusReason};
use cumulet_cluster::PodStreams;
use cumulet_store::{Key, Op, Range, Record, Store, StoreError};
use serde_json::Value;
use std::sync::Arc;

/// The state of an API server.
pub(crate) struct Core {
    pub(crate) store: Store,
    pub(crate) registry: Registry,
    pub(crate) services: ServiceAllocator,
    /// Who runs the pods of this machine; nobody until the node has started.
    pub(crate) streams: ArcSwapOption<Arc<dyn PodStreams>>,
}

/// One call of a verb: on what, for whom, and whether it may have effects.
#[derive(Clone)]
pub(crate) struct Call<'a> {
    pub(crate) resource: &'a Resource,
    /// `None` for cluster-scoped objects and for lists over all namespaces.
    pub(crate) namespace: Option<&'a str>,
    /// Empty for collections.
    pub(crate) name: &'a str,
    pub(crate) user: &'a Identity,
    pub(crate) dry_run: bool,
}

impl Call<'_> {
    /// Where the object is.
    pub(crate) fn key(&self) -> Key {
        self.key_of(self.name)
    }

    /// Where the object of this name is.
    pub(crate) fn key_of(&self, name: &str) -> Key {
        Key::new(&self.resource.tag, self.namespace.unwrap_or(""), name)
    }

    pub(crate) fn not_found(&self) -> Status {
        Status::not_found(self.resource.row.group, self.resource.row.plural, self.name)
    }

    pub(crate) fn conflict(&self, why: &str) -> Status {
        Status::conflict(self.resource.row.group, self.resource.row.plural, self.name, why)
    }

    /// 403, as an admission rule says it.
    pub(crate) fn forbidden(&self, why: &str) -> Status {
        forbidden(self.resource, self.name, why)
    }
}

/// 403 about an object.
pub(crate) fn forbidden(resource: &Resource, name: &str, why: &str) -> Status {
    // The details of a 404 are those of a 403, too.
    let about = Status::not_found(resource.row.group, resource.row.plural, name);
    let what = about.message.trim_end_matches(" not found");
    let message = format!("{what} is forbidden: {why}");
    Status { message, details: about.details.clone(), ..Status::new(StatusReason::Forbidden, "") }
}

impl Core {
    /// The object, or 404.
    pub(crate) fn get(&self, call: &Call<'_>) -> Result<Arc<Record>, Status> {
        self.store.get(&call.key()).ok_or_else(|| call.not_found())
    }

    /// The object of another resource, when it is there.
    pub(crate) fn lookup(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<Record>> {
        let resource = self.registry.resources().find(|r| r.is(group, plural))?;
        self.store.get(&Key::new(&resource.tag, namespace, name))
    }

    /// All objects of a resource.
    pub(crate) fn all(&self, group: &str, plural: &str) -> Vec<Arc<Record>> {
        let Some(resource) = self.registry.resources().find(|r| r.is(group, plural)) else {
            return Vec::new();
        };
        self.store.list(&resource.tag, &Range::default()).items
    }

    /// Commits one operation and returns the object as stored. `Err(None)` says that the object has changed in
    /// between and the caller should look again.
    pub(crate) async fn commit(&self, call: &Call<'_>, op: Op) -> Result<Bytes, Option<Status>> {
        let creating = matches!(op, Op::Create { .. });
        tracing::trace!(user = %call.user.user, key = %op.key(), "commit");
        match self.store.commit(vec![op]).await {
            Ok(done) => Ok(done.records.first().map(|record| record.body.clone()).unwrap_or_default()),
            Err(StoreError::AlreadyExists { key }) if creating => Err(Some(self.already_exists(call, &key))),
            Err(StoreError::Conflict { .. } | StoreError::NotFound { .. }) => Err(None),
            Err(error) => Err(Some(store_failure(&error))),
        }
    }

    fn already_exists(&self, call: &Call<'_>, key: &Key) -> Status {
        let row = call.resource.row;
        let mut status = Status::already_exists(row.group, row.plural, &key.name);
        let existing = self.store.get(key).and_then(|record| body::parse(&record).ok());
        if existing.is_some_and(|object| cumulet_api::meta::deletion_timestamp(&object).is_some()) {
            status.message = format!("object is being deleted: {}", status.message);
        }
        status
    }
}

/// The operation that stores a new object.
pub(crate) fn create_op(key: Key, object: &Value) -> Op {
    Op::Create { key, body: body::encode(object), index: body::index_terms(object) }
}

/// The operation that replaces an object that is still at `record`.
pub(crate) fn update_op(record: &Record, object: &Value) -> Op {
    Op::Update {
        key: record.key.clone(),
        expected: Some(record.revision),
        body: body::encode(object),
        index: body::index_terms(object),
    }
}

/// The operation that removes an object that is still at `record`; watchers are told `last`.
pub(crate) fn delete_op(record: &Record, last: &Value) -> Op {
    Op::Delete { key: record.key.clone(), expected: Some(record.revision), tombstone: body::encode(last) }
}

/// A failure of the store that is nobody's precondition.
fn store_failure(error: &StoreError) -> Status {
    match error {
        StoreError::Unavailable { .. } | StoreError::Closed => {
            Status::new(StatusReason::ServiceUnavailable, error.to_string())
        }
        StoreError::InvalidKey { .. } | StoreError::DuplicateKey { .. } => {
            Status::bad_request(error.to_string())
        }
        _ => Status::internal(error),
    }
}
