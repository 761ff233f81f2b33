//! The objects that pods refer to: ConfigMaps, Secrets, Services, volumes through their claims.
//!
//! They come from informers, so that a change of one reaches the pods that use it. An informer may lag behind the
//! one of the pods by a moment; what is missing in a cache is therefore asked for once more at the API before it
//! counts as missing.

use crate::config::NodeConfig;
use crate::env::Objects;
use cumulet_api::storage;
use cumulet_cluster::api::Kind;
use cumulet_cluster::{Api, Cluster, Informer, ListOptions};
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service, ServicePort,
    ServiceSpec, Volume,
};
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
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            if is_claim(volume) {
                set.claimed.insert(volume.name.clone(), self.claimed(pod, volume).await);
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

    /// The volume behind a pod's volume. Asked of the API each time: it does not change while a pod uses it.
    async fn claimed(&self, pod: &Pod, volume: &Volume) -> Result<Arc<PersistentVolume>, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let source = volume.persistent_volume_claim.as_ref();
        let own = storage::ephemeral_claim(pod.metadata.name.as_deref().unwrap_or_default(), &volume.name);
        let name = source.map_or(own, |source| source.claim_name.clone());
        let claims = Api::<PersistentVolumeClaim>::new(self.cluster.clone());
        let claim = claims.get(namespace, &name).await.map_err(|e| e.to_string())?;
        let owners = claim.metadata.owner_references.iter().flatten();
        let mine = owners
            .into_iter()
            .any(|o| o.controller == Some(true) && Some(&o.uid) == pod.metadata.uid.as_ref());
        if source.is_none() && !mine {
            return Err(format!(
                "PVC {namespace}/{name} was not created for the pod: the pod is not its owner"
            ));
        }
        let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
        let wanted = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
        if phase != "Bound" || wanted.is_empty() {
            return Err(format!(
                "PVC {namespace}/{name} has non-bound phase (\"{phase}\") or empty pvc.Spec.VolumeName (\"{wanted}\")"
            ));
        }
        let volumes = Api::<PersistentVolume>::new(self.cluster.clone());
        let found = volumes.get("", wanted).await.map_err(|e| e.to_string())?;
        let holder = found.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).and_then(|c| c.uid.as_ref());
        if holder != claim.metadata.uid.as_ref() {
            return Err(format!(
                "PersistentVolume {wanted} is bound to a claim other than {namespace}/{name}"
            ));
        }
        Ok(Arc::new(found))
    }

    async fn find<K: Kind>(&self, informer: &Informer<K>, namespace: &str, name: &str) -> Option<Arc<K>> {
        if let Some(object) = informer.get(namespace, name) {
            return Some(object);
        }
        Api::<K>::new(self.cluster.clone()).get(namespace, name).await.ok().map(Arc::new)
    }
}

/// Whether a pod's volume is what a claim has got.
pub(crate) fn is_claim(volume: &Volume) -> bool {
    volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
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
    /// What claims have got, or why nothing, by volume of the pod.
    pub(crate) claimed: HashMap<String, Result<Arc<PersistentVolume>, String>>,
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

    fn claimed(&self, volume: &str) -> Result<Arc<PersistentVolume>, String> {
        let unknown = || Err(format!("the pod has no claim for volume \"{volume}\""));
        self.claimed.get(volume).cloned().unwrap_or_else(unknown)
    }
}
