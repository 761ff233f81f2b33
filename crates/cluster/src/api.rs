//! Typed access: `Api<Pod>` over any [`Cluster`].

use crate::access::{Cluster, DeleteOptions, ListOptions, ObjectRef, PatchKind, ResourceId};
use bytes::Bytes;
use cumulet_api::Status;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{Metadata, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::marker::PhantomData;
use std::sync::Arc;

/// What a kind needs for typed access; every built-in kind of k8s-openapi has it.
pub trait Kind:
    Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Clone + Send + Sync + 'static
{
}
impl<K> Kind for K where
    K: Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Clone + Send + Sync + 'static
{
}

/// Typed access to one kind. Cheap to clone.
pub struct Api<K> {
    cluster: Arc<dyn Cluster>,
    resource: ResourceId,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Api<K> {
    fn clone(&self) -> Self {
        Self { cluster: self.cluster.clone(), resource: self.resource.clone(), kind: PhantomData }
    }
}

impl<K: Kind> Api<K> {
    /// Access to the objects of kind `K`.
    pub fn new(cluster: Arc<dyn Cluster>) -> Self {
        Self { cluster, resource: ResourceId::of::<K>(), kind: PhantomData }
    }

    /// The place of an object; an empty namespace means cluster scope.
    pub fn at(&self, namespace: &str, name: &str) -> ObjectRef {
        let namespace = (!namespace.is_empty()).then(|| namespace.to_owned());
        ObjectRef { resource: self.resource.clone(), namespace, name: name.to_owned() }
    }

    /// Reads one object.
    pub async fn get(&self, namespace: &str, name: &str) -> Result<K, Status> {
        decode(&self.cluster.get(&self.at(namespace, name)).await?)
    }

    /// Lists objects with the revision at which the list was true.
    pub async fn list(&self, options: &ListOptions) -> Result<(Vec<K>, u64), Status> {
        let list = self.cluster.list(&self.resource, options).await?;
        let items = list.items.iter().map(decode).collect::<Result<_, _>>()?;
        Ok((items, list.revision))
    }

    /// Creates an object in the namespace that its metadata names.
    pub async fn create(&self, object: &K) -> Result<K, Status> {
        let namespace = object.metadata().namespace.as_deref();
        decode(&self.cluster.create(&self.resource, namespace, encode(object)?).await?)
    }

    /// Replaces an object.
    pub async fn update(&self, object: &K) -> Result<K, Status> {
        self.put(object, None).await
    }

    /// Replaces the status of an object.
    pub async fn update_status(&self, object: &K) -> Result<K, Status> {
        self.put(object, Some("status")).await
    }

    async fn put(&self, object: &K, subresource: Option<&str>) -> Result<K, Status> {
        let meta = object.metadata();
        let at = self.at(meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""));
        decode(&self.cluster.update(&at, subresource, encode(object)?).await?)
    }

    /// Applies a merge patch to an object, or to a subresource of it.
    pub async fn patch(
        &self,
        namespace: &str,
        name: &str,
        subresource: Option<&str>,
        kind: PatchKind,
        patch: &serde_json::Value,
    ) -> Result<K, Status> {
        let body = Bytes::from(patch.to_string());
        decode(&self.cluster.patch(&self.at(namespace, name), subresource, kind, body).await?)
    }

    /// Deletes an object.
    pub async fn delete(&self, namespace: &str, name: &str, options: &DeleteOptions) -> Result<(), Status> {
        self.cluster.delete(&self.at(namespace, name), options).await
    }

    /// The untyped access below.
    pub fn cluster(&self) -> &Arc<dyn Cluster> {
        &self.cluster
    }
}

pub(crate) fn decode<K: DeserializeOwned>(bytes: &Bytes) -> Result<K, Status> {
    serde_json::from_slice(bytes).map_err(|e| Status::internal(format!("stored object does not decode: {e}")))
}

fn encode<K: Serialize>(object: &K) -> Result<Bytes, Status> {
    serde_json::to_vec(object)
        .map(Bytes::from)
        .map_err(|e| Status::internal(format!("object does not encode: {e}")))
}
