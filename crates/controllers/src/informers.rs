//! The caches that the controllers share: one informer per kind, created once.

use cumulet_cluster::api::Kind;
use cumulet_cluster::{Cluster, Informer, ListOptions};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
    ReplicationController, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::storage::v1::StorageClass;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Name of the ConfigMap with the cluster's CA that every namespace has.
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";

/// All informers. Observers are added while the controllers are built, which is before any of them runs.
pub(crate) struct Informers {
    pub(crate) pods: Arc<Informer<Pod>>,
    pub(crate) nodes: Arc<Informer<Node>>,
    pub(crate) namespaces: Arc<Informer<Namespace>>,
    pub(crate) services: Arc<Informer<Service>>,
    pub(crate) endpoints: Arc<Informer<Endpoints>>,
    pub(crate) endpoint_slices: Arc<Informer<EndpointSlice>>,
    pub(crate) service_accounts: Arc<Informer<ServiceAccount>>,
    /// Only the ConfigMaps named [`ROOT_CA`].
    pub(crate) root_cas: Arc<Informer<ConfigMap>>,
    pub(crate) replica_sets: Arc<Informer<ReplicaSet>>,
    pub(crate) replication_controllers: Arc<Informer<ReplicationController>>,
    pub(crate) deployments: Arc<Informer<Deployment>>,
    pub(crate) volumes: Arc<Informer<PersistentVolume>>,
    pub(crate) claims: Arc<Informer<PersistentVolumeClaim>>,
    pub(crate) storage_classes: Arc<Informer<StorageClass>>,
}

impl Informers {
    /// Starts all informers; they run until `shutdown`.
    pub(crate) fn spawn(cluster: &Arc<dyn Cluster>, shutdown: &CancellationToken) -> Self {
        let root_ca =
            ListOptions { field_selector: Some(format!("metadata.name={ROOT_CA}")), ..Default::default() };
        Self {
            pods: start(cluster, shutdown),
            nodes: start(cluster, shutdown),
            namespaces: start(cluster, shutdown),
            services: start(cluster, shutdown),
            endpoints: start(cluster, shutdown),
            endpoint_slices: start(cluster, shutdown),
            service_accounts: start(cluster, shutdown),
            root_cas: Informer::spawn(cluster.clone(), root_ca, shutdown.clone()),
            replica_sets: start(cluster, shutdown),
            replication_controllers: start(cluster, shutdown),
            deployments: start(cluster, shutdown),
            volumes: start(cluster, shutdown),
            claims: start(cluster, shutdown),
            storage_classes: start(cluster, shutdown),
        }
    }

    /// Waits until every cache holds its first list.
    pub(crate) async fn wait_synced(&self) {
        self.pods.wait_synced().await;
        self.nodes.wait_synced().await;
        self.namespaces.wait_synced().await;
        self.services.wait_synced().await;
        self.endpoints.wait_synced().await;
        self.endpoint_slices.wait_synced().await;
        self.service_accounts.wait_synced().await;
        self.root_cas.wait_synced().await;
        self.replica_sets.wait_synced().await;
        self.replication_controllers.wait_synced().await;
        self.deployments.wait_synced().await;
        self.volumes.wait_synced().await;
        self.claims.wait_synced().await;
        self.storage_classes.wait_synced().await;
    }
}

fn start<K: Kind>(cluster: &Arc<dyn Cluster>, shutdown: &CancellationToken) -> Arc<Informer<K>> {
    Informer::spawn(cluster.clone(), ListOptions::default(), shutdown.clone())
}
