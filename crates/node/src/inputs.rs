//! The objects that pods refer to: ConfigMaps, Secrets, Services.
//!
//! They come from informers, so that a change of one reaches the pods that use it. An informer may lag behind the
//! one of the pods by a moment; what is missing in a cache is therefore asked for once more at the API before it
//! counts as missing.

use crate::config::NodeConfig;
use crate::env::Objects;
use cumulet_cluster::api::Kind;
use cumulet_cluster::{Api, Cluster, Informer, ListOptions};
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Names of the objects that a pod refers to, all in its own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct References {
    /// ConfigMaps.
    pub(crate) config_maps: BTreeSet<String>,
    /// Secrets.
    pub(crate) secrets: BTreeSet<String>,
}

impl References {
    /// Collects the references of a pod: environment and volumes.
    pub(crate) fn of(pod: &Pod) -> Self {
        let mut refs = Self::default();
        let Some(spec) = &pod.spec else { return refs };
        refs.secrets.extend(spec.image_pull_secrets.iter().flatten().map(|secret| secret.name.clone()));
        refs.secrets.extend(crate::vm::disk::secret_name(pod).map(str::to_owned));
        for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
            refs.add_container(container);
        }
        for volume in spec.volumes.iter().flatten() {
            if let Some(source) = &volume.config_map {
                refs.config_maps.insert(source.name.clone());
            }
            if let Some(source) = &volume.secret {
                refs.secrets.extend(source.secret_name.clone());
            }
            for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
                refs.config_maps.extend(source.config_map.iter().map(|s| s.name.clone()));
                refs.secrets.extend(source.secret.iter().map(|s| s.name.clone()));
            }
        }
        refs
    }

    fn add_container(&mut self, container: &Container) {
        for source in container.env_from.iter().flatten() {
            self.config_maps.extend(source.config_map_ref.iter().map(|r| r.name.clone()));
            self.secrets.extend(source.secret_ref.iter().map(|r| r.name.clone()));
        }
        for from in container.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
            self.config_maps.extend(from.config_map_key_ref.iter().map(|r| r.name.clone()));
            self.secrets.extend(from.secret_key_ref.iter().map(|r| r.name.clone()));
        }
    }
}

/// The informers that a node keeps of what its pods refer to.
pub(crate) struct Inputs {
    cluster: Arc<dyn Cluster>,
    pub(crate) config_maps: Arc<Informer<ConfigMap>>,
    pub(crate) secrets: Arc<Informer<Secret>>,
    services: Arc<Informer<Service>>,
    /// Stands in for the `kubernetes` Service while that does not exist.
    api_service: Arc<Service>,
}

impl Inputs {
    pub(crate) fn spawn(
        cluster: Arc<dyn Cluster>,
        config: &NodeConfig,
        shutdown: &CancellationToken,
    ) -> Self {
        let all = ListOptions::default;
        Self {
            config_maps: Informer::spawn(cluster.clone(), all(), shutdown.clone()),
            secrets: Informer::spawn(cluster.clone(), all(), shutdown.clone()),
            services: Informer::spawn(cluster.clone(), all(), shutdown.clone()),
            api_service: Arc::new(api_service(&config.api_host, config.api_port)),
            cluster,
        }
    }

    pub(crate) async fn wait_synced(&self) {
        self.config_maps.wait_synced().await;
        self.secrets.wait_synced().await;
        self.services.wait_synced().await;
    }

    /// Everything that the pod refers to, as far as it exists.
    pub(crate) async fn collect(&self, pod: &Pod) -> ObjectSet {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let refs = References::of(pod);
        let mut set = ObjectSet::default();
        for name in refs.config_maps {
            if let Some(object) = self.find(&self.config_maps, namespace, &name).await {
                set.config_maps.insert(name, object);
            }
        }
        for name in refs.secrets {
            if let Some(object) = self.find(&self.secrets, namespace, &name).await {
                set.secrets.insert(name, object);
            }
        }
        let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
        if links {
            set.services = self.services.list_namespace(namespace);
        }
        let api = self.services.get("default", "kubernetes").unwrap_or_else(|| self.api_service.clone());
        // The API server's own service is told of in every namespace, whatever the links say.
        set.services.retain(|s| s.metadata.name.as_deref() != Some("kubernetes"));
        set.services.push(api);
        set
    }

    async fn find<K: Kind>(&self, informer: &Informer<K>, namespace: &str, name: &str) -> Option<Arc<K>> {
        if let Some(object) = informer.get(namespace, name) {
            return Some(object);
        }
        Api::<K>::new(self.cluster.clone()).get(namespace, name).await.ok().map(Arc::new)
    }
}

fn api_service(host: &str, port: u16) -> Service {
    let port = ServicePort {
        name: Some("https".into()),
        port: i32::from(port),
        protocol: Some("TCP".into()),
        ..ServicePort::default()
    };
    Service {
        metadata: ObjectMeta { name: Some("kubernetes".into()), ..ObjectMeta::default() },
        spec: Some(ServiceSpec {
            cluster_ip: Some(host.to_owned()),
            ports: Some(vec![port]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The objects that one pod refers to.
#[derive(Clone, Debug, Default)]
pub(crate) struct ObjectSet {
    /// By name.
    pub(crate) config_maps: HashMap<String, Arc<ConfigMap>>,
    /// By name.
    pub(crate) secrets: HashMap<String, Arc<Secret>>,
    /// Services whose variables containers get.
    pub(crate) services: Vec<Arc<Service>>,
}

impl Objects for ObjectSet {
    fn config_map(&self, name: &str) -> Option<Arc<ConfigMap>> {
        self.config_maps.get(name).cloned()
    }

    fn secret(&self, name: &str) -> Option<Arc<Secret>> {
        self.secrets.get(name).cloned()
    }

    fn services(&self) -> Vec<Arc<Service>> {
        self.services.clone()
    }
}
