//! From a pod to its machine: CPUs, memory, volumes, mounts. Pure.

use crate::convert::id;
use crate::dirs::PodDirs;
use crate::env::Environment;
use crate::supervisor::files::SEED;
use crate::supervisor::proto::{VmDisk, VmImage, VmMemory, VmSpec, VmVolume};
use crate::vm::Host;
use crate::volumes::claim::{Claimed, Place};
use crate::volumes::{Prepared, payload};
use cumulet_api::Quantity;
use cumulet_container::Resources;
use cumulet_guest_proto::spec::{Device, Mount};
use k8s_openapi::api::core::v1::{Container, Pod, Volume, VolumeMount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// Guest memory where the pod does not say what it needs, in bytes.
const DEFAULT_MEMORY: i64 = 256 << 20;
/// What the guest's kernel, its agent and the page cache of the image need beside the containers, in bytes.
const GUEST_OVERHEAD: i64 = 96 << 20;
/// Memory of a guest with a system of its own, where the pod does not say what it needs, in bytes.
const DEFAULT_OWN_MEMORY: i64 = 512 << 20;
/// Translated code that is kept of a machine in software emulation, in bytes. A distribution that boots, or a Java
/// program, fills it; QEMU alone would take as much as a gigabyte.
pub(crate) const TRANSLATION_CACHE_BYTES: u64 = 160 << 20;
/// What the monitor needs on the host beside the guest's memory, in bytes: itself, that cache, and pages of disks that
/// are in use.
const MONITOR_OVERHEAD: i64 = 320 << 20;
/// Guest memory comes in units of this, in bytes.
const UNIT: i64 = 2 << 20;

/// What the pod's machine is given.
struct Size {
    vcpus: u32,
    memory_bytes: i64,
    limits: Resources,
}

/// What a machine starts from.
#[derive(Clone)]
pub(crate) enum Root {
    /// Our kernel and agent, with the images of its containers.
    Images(Vec<VmImage>),
    /// A disk of its own.
    Disk(PathBuf),
}

/// The machine of a pod.
pub(crate) fn vm_spec(
    pod: &Pod,
    host: &Host,
    root: Root,
    address: Ipv4Addr,
    (dirs, prepared): (&PodDirs, &Prepared),
    (overhead, cpus): (&BTreeMap<String, ApiQuantity>, i64),
) -> VmSpec {
    let own = matches!(root, Root::Disk(_));
    let size = size(pod, overhead, cpus, own);
    let (images, disk) = match root {
        Root::Images(images) => (images, None),
        Root::Disk(image) => (Vec::new(), Some(image)),
    };
    let disk =
        disk.map(|image| VmDisk { image, min_bytes: scratch(pod).unwrap_or(0), seed: dirs.root.join(SEED) });
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let group = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|s| s.fs_group).map(id);
    VmSpec {
        qemu: host.qemu.clone(),
        vcpus: size.vcpus,
        memory_bytes: u64::try_from(size.memory_bytes).unwrap_or_default(),
        kvm: host.emulation.is_none(),
        user: host.user(address),
        kernel: host.kernel.clone(),
        initramfs: host.initramfs.clone(),
        images,
        scratch_bytes: scratch(pod),
        mac: cumulet_net::hardware_address(address),
        etc: dirs.etc(),
        volumes: volumes
            .filter_map(|v| {
                let claimed = prepared.claims.get(&v.name).map(|claimed| claim(claimed, &v.name, pod, group));
                let found = claimed.or_else(|| volume(v, pod, (dirs, prepared), group))?;
                Some((v.name.clone(), found))
            })
            .collect(),
        memory: VmMemory::Own,
        share_process_namespace: pod.spec.as_ref().and_then(|s| s.share_process_namespace) == Some(true),
        limits: size.limits,
        disk,
    }
}

/// Kinds that a machine does not have were refused when the volumes were prepared.
fn volume(
    volume: &Volume,
    pod: &Pod,
    (dirs, prepared): (&PodDirs, &Prepared),
    gid: Option<u32>,
) -> Option<VmVolume> {
    if let Some(source) = &volume.empty_dir {
        let limit = source.size_limit.as_ref().and_then(|q| Quantity::parse(&q.0).ok());
        return Some(VmVolume::EmptyDir {
            size_bytes: limit.filter(|q| q.sign() > 0).and_then(|q| u64::try_from(q.units()).ok()),
            memory: source.medium.as_deref() == Some("Memory"),
            gid,
        });
    }
    if let Some(source) = &volume.host_path {
        let alone = prepared.files.contains_key(&volume.name).then(|| dirs.volumes().join(&volume.name));
        let path = alone.unwrap_or_else(|| source.path.clone().into());
        return Some(VmVolume::Directory { path, read_only: never_written(pod, &volume.name) });
    }
    payload::is_payload(volume).then(|| VmVolume::Files { dir: dirs.volumes().join(&volume.name), gid })
}

/// True when every container that mounts the volume does so read-only.
fn never_written(pod: &Pod, volume: &str) -> bool {
    let mut mounts = containers(pod).flat_map(|c| c.volume_mounts.iter().flatten());
    mounts.all(|m| m.name != volume || m.read_only == Some(true))
}

/// What a claim has got.
fn claim(claimed: &Claimed, name: &str, pod: &Pod, gid: Option<u32>) -> VmVolume {
    let read_only = claimed.read_only;
    match claimed.place.clone() {
        Place::Directory { path, .. } => {
            VmVolume::Directory { path, read_only: read_only || never_written(pod, name) }
        }
        Place::Disk { path, fs_type } => VmVolume::Disk { path, fs_type, read_only, gid },
        Place::Device { path } => VmVolume::Block { path, read_only },
    }
}

/// The block volumes of a container.
pub(crate) fn devices(container: &Container) -> Vec<Device> {
    let devices = container.volume_devices.iter().flatten();
    devices.map(|d| Device { volume: d.name.clone(), path: d.device_path.clone() }).collect()
}

/// The mounts of a container, outer ones first.
pub(crate) fn mounts(container: &Container, environment: &Environment, prepared: &Prepared) -> Vec<Mount> {
    let mut wanted: Vec<&VolumeMount> = container.volume_mounts.iter().flatten().collect();
    wanted.sort_by_key(|m| m.mount_path.matches('/').count());
    let one = |mount: &VolumeMount| Mount {
        volume: mount.name.clone(),
        sub_path: match (&mount.sub_path, &mount.sub_path_expr) {
            (_, Some(expr)) if !expr.is_empty() => environment.expand(expr),
            (Some(path), _) if !path.is_empty() => path.clone(),
            _ => prepared.files.get(&mount.name).cloned().unwrap_or_default(),
        },
        destination: mount.mount_path.clone(),
        read_only: mount.read_only.unwrap_or(false),
    };
    wanted.into_iter().map(one).collect()
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers))
}

/// Containers run together, init containers one after the other: a pod needs what its containers need in sum, or what
/// one init container needs if that is more. `None` when a container does not say.
fn needed(pod: &Pod, limits: bool, name: &str, of: fn(&Quantity) -> i64) -> Option<i64> {
    let spec = pod.spec.as_ref()?;
    let one = |c: &Container| {
        let given = c.resources.as_ref()?;
        let limit = || given.limits.as_ref().and_then(|map| map.get(name));
        let request = given.requests.as_ref().filter(|_| !limits).and_then(|map| map.get(name));
        let quantity = Quantity::parse(&request.or_else(limit)?.0).ok()?;
        (quantity.sign() > 0).then(|| of(&quantity))
    };
    let apps = spec.containers.iter().map(one).try_fold(0_i64, |sum, n| Some(sum.saturating_add(n?)))?;
    let init = spec.init_containers.iter().flatten().map(one).collect::<Option<Vec<_>>>()?;
    Some(init.into_iter().fold(apps, i64::max))
}

/// Containers that say how much they store on the node get it, in sum, on a disk instead of in memory, emptyDirs
/// included. The disk is sparse.
fn scratch(pod: &Pod) -> Option<u64> {
    let given = containers(pod).filter_map(|c| c.resources.as_ref());
    let amount = |map: Option<&BTreeMap<String, ApiQuantity>>| {
        map.and_then(|m| m.get("ephemeral-storage"))
            .and_then(|q| Quantity::parse(&q.0).ok())
            .map(|q| q.units())
    };
    let asked = given.filter_map(|r| amount(r.limits.as_ref()).or_else(|| amount(r.requests.as_ref())));
    let sum = asked.fold(0_i64, i64::saturating_add);
    u64::try_from(sum).ok().filter(|bytes| *bytes > 0)
}

/// A machine with a disk of its own has as much memory as its container may use: everything in it is the container.
fn size(pod: &Pod, overhead: &BTreeMap<String, ApiQuantity>, cpus: i64, own: bool) -> Size {
    let fixed = |name: &str| overhead.get(name).and_then(|q| Quantity::parse(&q.0).ok());
    let cpu_limit = needed(pod, true, "cpu", Quantity::millis);
    let cpu_request = needed(pod, false, "cpu", Quantity::millis);
    let vcpus = cpu_limit.map_or(1, |m| m.saturating_add(999) / 1000).clamp(1, cpus.max(1));
    let memory_limit = needed(pod, true, "memory", Quantity::units);
    let memory_request = needed(pod, false, "memory", Quantity::units).unwrap_or(0);
    // A limit is what the containers can use; a request is only what they need at least.
    let containers = memory_limit.unwrap_or(memory_request);
    let (ours, least) = if own { (0, DEFAULT_OWN_MEMORY) } else { (GUEST_OVERHEAD, DEFAULT_MEMORY) };
    let wanted = if containers > 0 { containers.saturating_add(ours) } else { 0 };
    let wanted = match (memory_limit, memory_request) {
        (Some(_), _) => wanted,
        (None, 1..) if own => wanted,
        _ => wanted.max(least),
    };
    let memory_bytes = wanted.saturating_add(UNIT - 1) / UNIT * UNIT;
    let least = if own { MONITOR_OVERHEAD } else { 0 };
    let monitor = fixed("memory").map_or(MONITOR_OVERHEAD, |q| q.units().max(least));
    let extra_cpu = fixed("cpu").map_or(0, |q| q.millis());
    let limits = Resources {
        memory_limit_bytes: memory_limit.map(|_| memory_bytes.saturating_add(monitor)),
        cpu_shares: cpu_request
            .and_then(|m| u64::try_from(m.saturating_mul(1024) / 1000).ok())
            .map(|s| s.max(2)),
        cpu_quota_us: cpu_limit.map(|m| m.saturating_add(extra_cpu).saturating_mul(100).max(1000)),
        ..Resources::default()
    };
    Size { vcpus: u32::try_from(vcpus).unwrap_or(1), memory_bytes, limits }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const MIB: i64 = 1 << 20;

    fn check(spec: Value, overhead: Value, expected: (u32, i64, Option<i64>, Option<i64>)) {
        let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
        let overhead = serde_json::from_value(overhead).unwrap();
        let got = size(&pod, &overhead, 4, false);
        let got = (
            got.vcpus,
            got.memory_bytes / MIB,
            got.limits.memory_limit_bytes.map(|b| b / MIB),
            got.limits.cpu_quota_us,
        );
        assert_eq!(got, expected, "{spec}");
    }

    fn container(cpu: &str, memory: &str, kind: &str) -> Value {
        json!({"name": "c", "resources": {kind: {"cpu": cpu, "memory": memory}}})
    }

    #[test]
    fn sizes() {
        let none = json!({});
        check(json!({"containers": [{"name": "c"}]}), none.clone(), (1, 256, None, None));
        let small = container("1500m", "100Mi", "limits");
        check(json!({"containers": [small]}), none.clone(), (2, 196, Some(516), Some(150_000)));
        let fixed = json!({"memory": "64Mi", "cpu": "100m"});
        check(json!({"containers": [small, small]}), fixed, (3, 296, Some(360), Some(310_000)));
        // One that does not say has no limit, and so has the pod.
        check(json!({"containers": [small, {"name": "d"}]}), none.clone(), (1, 256, None, None));
        check(
            json!({"containers": [container("1", "1Gi", "requests")]}),
            none.clone(),
            (1, 1120, None, None),
        );
        let init = container("100", "512Mi", "limits");
        check(
            json!({"containers": [small], "initContainers": [init]}),
            none,
            (4, 608, Some(928), Some(10_000_000)),
        );
    }

    #[test]
    fn a_disk_of_its_own_has_what_the_container_may_use() {
        for (container, mib) in [
            (json!({"name": "c"}), 512),
            (container("1", "300Mi", "limits"), 300),
            (container("1", "200Mi", "requests"), 200),
        ] {
            let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [container]}})).unwrap();
            assert_eq!(size(&pod, &BTreeMap::new(), 4, true).memory_bytes, mib * MIB);
        }
    }

    #[test]
    fn storage() {
        let check = |containers: Value, expected| {
            let pod: Pod = serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap();
            assert_eq!(scratch(&pod), expected);
        };
        check(json!([{"name": "a"}]), None);
        let of = |kind: &str, n: &str| json!({"name": "a", "resources": {kind: {"ephemeral-storage": n}}});
        check(
            json!([of("limits", "1Gi"), of("requests", "1Mi"), {"name": "b"}]),
            Some((1 << 30) + (1 << 20)),
        );
    }

    #[test]
    fn mounts_are_in_order() {
        let container: Container = serde_json::from_value(json!({"name": "c", "volumeMounts": [
            {"name": "b", "mountPath": "/a/b", "subPath": "x"}, {"name": "a", "mountPath": "/a", "readOnly": true}]}))
        .unwrap();
        let none = crate::inputs::ObjectSet::default();
        let env = crate::env::build(&Pod::default(), &container, &[], &Default::default(), &none).unwrap();
        let got = mounts(&container, &env, &Prepared::default());
        let got: Vec<_> =
            got.iter().map(|m| (m.destination.as_str(), m.sub_path.as_str(), m.read_only)).collect();
        assert_eq!(got, [("/a", "", true), ("/a/b", "x", false)]);
    }
}
