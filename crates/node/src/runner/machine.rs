//! What a pod's virtual machine needs before its supervisor can be started: images as disks or a disk of its own, and
//! the host's parts.

use super::image::on_disk;
use super::sandbox::blocking;
use super::task::{PodContext, container};
use crate::images::ResolvedImage;
use crate::inputs::{ObjectSet, is_claim};
use crate::supervisor::proto::{VmImage, VmSpec};
use crate::vm::disk::{self, SeedNetwork};
use crate::vm::{Host, Root, vm_spec};
use cumulet_cluster::events::{EventType, reference};
use cumulet_net::PodSide;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long images may take before the sandbox counts as failed and is tried again.
const IMAGES: Duration = Duration::from_secs(60);

/// All that a machine is made of, but for its address.
pub(super) struct Parts {
    host: Arc<Host>,
    root: Root,
}

impl Parts {
    /// Collects the parts. Disks are attached when a machine boots, so all images of the pod have to be there.
    pub(super) async fn collect(context: &Arc<PodContext>, pod: &Pod) -> Result<Self, String> {
        let host = context.shared.machines.for_pod(pod).await?;
        if let Some(why) = &host.emulation {
            let message = format!("The machine runs in software emulation, which is slow: {why}");
            let recorder = &context.shared.recorder;
            recorder.event(&reference(pod), EventType::Normal, "SoftwareEmulation", &message);
        }
        known_images(context).await;
        let images = timeout(IMAGES, images(context, pod))
            .await
            .map_err(|_| "the images and volumes of the pod are not all there yet".to_owned())?;
        let (maker, of) = (host.clone(), pod.clone());
        let root = blocking(move || {
            if let Some(disk) = disk::of(&of, &images)? {
                return Ok(Root::Disk(disk));
            }
            let mut disks: BTreeMap<String, VmImage> = BTreeMap::new();
            for image in images {
                let disk = maker.disk(&image)?;
                disks.insert(disk.serial.clone(), disk);
            }
            Ok(Root::Images(disks.into_values().collect()))
        });
        Ok(Self { host, root: root.await? })
    }

    /// What was found on this machine.
    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    /// The machine with this address.
    pub(super) fn spec(
        &self,
        context: &PodContext,
        pod: &Pod,
        address: Ipv4Addr,
        overhead: &BTreeMap<String, Quantity>,
    ) -> VmSpec {
        let cpus = context.shared.machine.cpus;
        let prepared = context.live().prepared.clone().unwrap_or_default();
        vm_spec(pod, &self.host, self.root.clone(), address, (&context.dirs, &prepared), (overhead, cpus))
    }
}

/// What a machine with a disk of its own is told about itself.
pub(super) struct Seed {
    path: PathBuf,
    mac: [u8; 6],
    side: PodSide,
    objects: ObjectSet,
}

impl Seed {
    /// What is to be told; `None` to any other sandbox.
    pub(super) async fn of(
        context: &PodContext,
        pod: &Pod,
        vm: Option<&VmSpec>,
        address: Option<Ipv4Addr>,
    ) -> Option<Self> {
        let (vm, address) = (vm?, address?);
        let path = vm.disk.as_ref()?.seed.clone();
        let objects = context.shared.inputs.collect(pod).await;
        Some(Self { path, mac: vm.mac, side: context.shared.network.pod_side(address), objects })
    }

    /// Writes it, when the pod's files of `/etc` are there. Blocks.
    pub(super) fn write(&self, context: &PodContext, pod: &Pod, hostname: &str) -> Result<(), String> {
        let resolver = context.dirs.etc().join("resolv.conf");
        let resolver =
            std::fs::read_to_string(&resolver).map_err(|e| format!("{}: {e}", resolver.display()))?;
        let network = SeedNetwork {
            mac: self.mac,
            address: &self.side.address.to_string(),
            gateway: &self.side.gateway.to_string(),
            resolver: &resolver,
        };
        disk::write_seed(&self.path, pod, hostname, &network, &self.objects)
    }
}

/// Finds the images of containers that ran before. Those are started again when the sandbox is there, and nobody looks
/// for their images until then. What is not found here is waited for.
async fn known_images(context: &Arc<PodContext>) {
    for (name, reference) in earlier(&context.pod()) {
        if context.live().images.contains_key(&name) {
            continue;
        }
        let images = context.shared.images.clone();
        if let Ok(image) = on_disk(move || images.present(&reference, None)).await {
            context.live().images.entry(name).or_insert(image);
        }
    }
}

/// The containers of which an instance ran, with their images.
fn earlier(pod: &Pod) -> Vec<(String, String)> {
    let statuses = pod.status.iter().flat_map(|status| {
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten())
    });
    let ran = statuses.filter(|status| status.container_id.as_ref().is_some_and(|id| !id.is_empty()));
    ran.filter_map(|status| Some((status.name.clone(), container(pod, &status.name)?.image.clone()?)))
        .collect()
}

/// Waits for the images of all containers, which are looked for meanwhile, and for directories and disks of the host.
async fn images(context: &PodContext, pod: &Pod) -> Vec<ResolvedImage> {
    let spec = pod.spec.iter();
    let names = spec.flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers)).map(|c| &c.name);
    let names: Vec<&String> = names.collect();
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let shares = volumes.into_iter().any(|volume| volume.host_path.is_some() || is_claim(volume));
    loop {
        let news = context.news.notified();
        let found: Vec<_> = {
            let live = context.live();
            names.iter().filter_map(|name| live.images.get(*name).cloned()).collect()
        };
        if found.len() == names.len() && (!shares || context.live().prepared.is_some()) {
            return found;
        }
        news.await;
    }
}
