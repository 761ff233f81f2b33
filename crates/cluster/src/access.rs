//! Untyped access to objects: what an API server offers to everybody who works with it.
//!
//! Objects travel as encoded JSON (`Bytes`), which is how the store keeps them, so that reading copies nothing.
//! Every call is subject to the same defaulting, validation and admission as a call over HTTPS.

use crate::{BoxFuture, BoxStream};
use bytes::Bytes;
use cumulet_api::Status;
use std::borrow::Cow;

/// A resource: API group (empty for core), version, and plural name as in the URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceId {
    /// API group, empty for the core group.
    pub group: Cow<'static, str>,
    /// Version within the group.
    pub version: Cow<'static, str>,
    /// Plural name, lower case.
    pub plural: Cow<'static, str>,
}

impl ResourceId {
    /// The resource of a typed kind.
    pub fn of<K: k8s_openapi::Resource>() -> Self {
        Self::new(K::GROUP, K::VERSION, K::URL_PATH_SEGMENT)
    }

    /// A resource known at compile time.
    pub const fn new(group: &'static str, version: &'static str, plural: &'static str) -> Self {
        Self { group: Cow::Borrowed(group), version: Cow::Borrowed(version), plural: Cow::Borrowed(plural) }
    }
}

/// One object's place. `namespace` is `None` for cluster-scoped resources.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectRef {
    /// Which resource.
    pub resource: ResourceId,
    /// Namespace, if the resource has one.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
}

/// What to list or watch.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Only this namespace; all when `None`.
    pub namespace: Option<String>,
    /// Label selector in Kubernetes' text form.
    pub label_selector: Option<String>,
    /// Field selector in Kubernetes' text form.
    pub field_selector: Option<String>,
}

/// A consistent list.
#[derive(Clone, Debug)]
pub struct List {
    /// The encoded objects, ordered by namespace and name.
    pub items: Vec<Bytes>,
    /// The global revision at which the list was true.
    pub revision: u64,
}

/// One thing that a watch tells.
#[derive(Clone, Debug)]
pub enum WatchItem {
    /// The object appeared, or began to match the selector.
    Added(Bytes),
    /// The object changed and still matches.
    Modified(Bytes),
    /// The object is gone or no longer matches; its last state.
    Deleted(Bytes),
    /// All events up to this revision have been delivered.
    Bookmark(u64),
}

/// How a patch body is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7396.
    Merge,
    /// Kubernetes' strategic merge patch.
    Strategic,
}

/// What happens to the dependents of a deleted object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// The garbage collector deletes them afterwards.
    Background,
    /// They go first.
    Foreground,
    /// They stay, without their owner reference.
    Orphan,
}

/// How to delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Seconds between the request and removal; the kind's default when `None`.
    pub grace_period_seconds: Option<i64>,
    /// Only if the object has this uid.
    pub uid: Option<String>,
    /// Only if the object has this resourceVersion.
    pub resource_version: Option<String>,
    /// What happens to dependents; the kind's default when `None`.
    pub propagation: Option<Propagation>,
}

/// Access to the objects of a cloud. Object-safe; cheap to share as `Arc<dyn Cluster>`.
pub trait Cluster: Send + Sync + 'static {
    /// Reads one object.
    fn get<'a>(&'a self, at: &'a ObjectRef) -> BoxFuture<'a, Result<Bytes, Status>>;

    /// Lists objects, consistently at one revision.
    fn list<'a>(
        &'a self,
        resource: &'a ResourceId,
        options: &'a ListOptions,
    ) -> BoxFuture<'a, Result<List, Status>>;

    /// Watches from just after revision `from`. The stream ends with an error (`Expired`) when the revision is
    /// no longer held: list again. Dropping the stream ends the watch.
    fn watch<'a>(
        &'a self,
        resource: &'a ResourceId,
        options: &'a ListOptions,
        from: u64,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<WatchItem, Status>>, Status>>;

    /// Creates an object from its JSON and returns it as stored, once it is durable.
    fn create<'a>(
        &'a self,
        resource: &'a ResourceId,
        namespace: Option<&'a str>,
        object: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Status>>;

    /// Creates through a subresource of an existing object (`pods/binding`, `serviceaccounts/token`).
    fn create_sub<'a>(
        &'a self,
        at: &'a ObjectRef,
        subresource: &'a str,
        object: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Status>>;

    /// Replaces an object, or its `status` when `subresource` says so. A `metadata.resourceVersion` in the body
    /// is a precondition.
    fn update<'a>(
        &'a self,
        at: &'a ObjectRef,
        subresource: Option<&'a str>,
        object: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Status>>;

    /// Patches an object or a subresource; retried inside against concurrent writers.
    fn patch<'a>(
        &'a self,
        at: &'a ObjectRef,
        subresource: Option<&'a str>,
        kind: PatchKind,
        patch: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Status>>;

    /// Deletes an object, or starts its graceful deletion.
    fn delete<'a>(
        &'a self,
        at: &'a ObjectRef,
        options: &'a DeleteOptions,
    ) -> BoxFuture<'a, Result<(), Status>>;

    /// The resources that can be listed and deleted, with their kind and whether they live in namespaces:
    /// what the namespace controller and the garbage collector go through.
    fn resources(&self) -> Vec<ResourceInfo>;
}

/// One row of [`Cluster::resources`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceInfo {
    /// Which resource.
    pub id: ResourceId,
    /// Its kind, such as `Pod`.
    pub kind: String,
    /// True when its objects live in namespaces.
    pub namespaced: bool,
}
