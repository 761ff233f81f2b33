//! What a pod's virtual machine needs before its supervisor can be started: images as disks, and the host's parts.

use super::sandbox::blocking;
use super::task::PodContext;
use crate::images::ResolvedImage;
use crate::supervisor::proto::{VmImage, VmSpec};
use crate::vm::{Host, vm_spec};
use cumulet_cluster::events::{EventType, reference};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long images may take before the sandbox counts as failed and is tried again.
const IMAGES: Duration = Duration::from_secs(60);

/// All that a machine is made of, but for its address.
pub(super) struct Parts {
    host: Arc<Host>,
    disks: Vec<VmImage>,
}

impl Parts {
    /// Collects the parts. Disks are attached when a machine boots, so all images of the pod have to be there.
    pub(super) async fn collect(context: &Arc<PodContext>, pod: &Pod) -> Result<Self, String> {
        let host = context.shared.machines.get().await?;
        if let Some(why) = &host.emulation {
            let message = format!("The machine runs in software emulation, which is slow: {why}");
            let recorder = &context.shared.recorder;
            recorder.event(&reference(pod), EventType::Normal, "SoftwareEmulation", &message);
        }
        let images = timeout(IMAGES, images(context, pod))
            .await
            .map_err(|_| "the images and volumes of the pod are not all there yet".to_owned())?;
        let maker = host.clone();
        let disks = blocking(move || {
            let mut disks: BTreeMap<String, VmImage> = BTreeMap::new();
            for image in images {
                let disk = maker.disk(&image)?;
                disks.insert(disk.serial.clone(), disk);
            }
            Ok(disks.into_values().collect())
        });
        Ok(Self { host, disks: disks.await? })
    }

    /// The machine with this address.
    pub(super) fn spec(
        self,
        context: &PodContext,
        pod: &Pod,
        address: Ipv4Addr,
        overhead: &BTreeMap<String, Quantity>,
    ) -> VmSpec {
        let cpus = context.shared.machine.cpus;
        vm_spec(pod, &self.host, self.disks, address, &context.dirs, (overhead, cpus))
    }
}

/// Waits for the images of all containers, which are looked for meanwhile, and for directories of the host.
async fn images(context: &PodContext, pod: &Pod) -> Vec<ResolvedImage> {
    let spec = pod.spec.iter();
    let names = spec.flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers)).map(|c| &c.name);
    let names: Vec<&String> = names.collect();
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let shares = volumes.into_iter().any(|volume| volume.host_path.is_some());
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
