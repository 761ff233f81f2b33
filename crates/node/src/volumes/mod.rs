//! Volumes of a pod: what is made on the host, and the mounts of its containers.
//!
//! Preparing is idempotent and runs again when an object that a volume shows has changed; a directory that exists is
//! kept. Nothing is mounted on the host but the tmpfs of `emptyDir` volumes with `medium: Memory`, which have to be
//! shared by containers and to survive their restarts.
//!
//! Absent: PersistentVolumeClaims and the volume kinds of other systems; a pod that wants one waits with an event
//! that says so.

pub(crate) mod atomic;
pub(crate) mod etc;
mod host_path;
pub(crate) mod payload;
mod sub_path;

use crate::convert::id;
use crate::dirs::{PodDirs, component};
use crate::env::{Environment, Objects, PodFacts};
use cumulet_api::Quantity;
use cumulet_container::{Mount, MountSource, Propagation};
use cumulet_vmm::virtiofs::Virtiofsd;
use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, Pod, Volume, VolumeMount};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::collections::HashMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// Host paths of a pod's volumes, by volume name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prepared {
    paths: HashMap<String, PathBuf>,
}

/// Prepares all volumes of the pod, which is a virtual machine or not.
///
/// # Errors
/// A message in the kubelet's words, for the event `FailedMount`.
pub(crate) fn prepare(
    pod: &Pod,
    dirs: &PodDirs,
    facts: &PodFacts,
    objects: &dyn Objects,
    machine: bool,
) -> Result<Prepared, String> {
    let spec = pod.spec.as_ref();
    let group = spec.and_then(|s| s.security_context.as_ref()).and_then(|s| s.fs_group).map(id);
    let mut prepared = Prepared::default();
    for volume in spec.and_then(|s| s.volumes.as_ref()).into_iter().flatten() {
        let path = match machine {
            true => in_machine(volume, dirs),
            false => Ok(None),
        };
        let path = path
            .and_then(|path| match path {
                Some(path) => Ok(path),
                None => prepare_one(volume, pod, dirs, facts, objects, group),
            })
            .map_err(|e| format!("MountVolume.SetUp failed for volume \"{}\" : {e}", volume.name))?;
        prepared.paths.insert(volume.name.clone(), path);
    }
    Ok(prepared)
}

/// Volumes that a virtual machine has inside itself need nothing here; of the host it can have directories.
fn in_machine(volume: &Volume, dirs: &PodDirs) -> Result<Option<PathBuf>, String> {
    if let Some(source) = &volume.host_path {
        Virtiofsd::find()
            .map_err(|e| format!("a virtual machine gets directories of the host by virtiofs: {e}"))?;
        let path = host_path::prepare(source)?;
        if !path.is_dir() {
            return Err(format!(
                "hostPath {} is not a directory, which is all that virtiofs has",
                source.path
            ));
        }
        return Ok(Some(path));
    }
    Ok(volume.empty_dir.is_some().then(|| dirs.volumes().join(&volume.name)))
}

fn prepare_one(
    volume: &Volume,
    pod: &Pod,
    dirs: &PodDirs,
    facts: &PodFacts,
    objects: &dyn Objects,
    group: Option<u32>,
) -> Result<PathBuf, String> {
    if let Some(source) = &volume.host_path {
        return host_path::prepare(source);
    }
    component(&volume.name).map_err(|e| e.to_string())?;
    let dir = dirs.volumes().join(&volume.name);
    if let Some(source) = &volume.empty_dir {
        empty_dir(&dir, source, group).map_err(|e| format!("emptyDir: {e}"))?;
    } else if payload::is_payload(volume) {
        let payload = payload::payload(volume, pod, facts, objects)?;
        atomic::write(&dir, &payload, group).map_err(|e| format!("cannot write the files: {e}"))?;
    } else {
        return Err(
            "this version has no volumes of this kind; it has emptyDir, hostPath, configMap, secret, \
                    downwardAPI and projected"
                .to_owned(),
        );
    }
    Ok(dir)
}

/// Mounts the pod's emptyDirs of medium Memory. A supervisor sees the mounts that exist when it starts, so this comes
/// before it; doing it again is fine.
pub(crate) fn mount_memory(pod: &Pod, dirs: &PodDirs) -> Result<(), String> {
    let spec = pod.spec.as_ref();
    let group = spec.and_then(|s| s.security_context.as_ref()).and_then(|s| s.fs_group).map(id);
    for volume in spec.and_then(|s| s.volumes.as_ref()).into_iter().flatten() {
        if let Some(source) = volume.empty_dir.as_ref().filter(|e| e.medium.as_deref() == Some("Memory")) {
            component(&volume.name).map_err(|e| e.to_string())?;
            let dir = dirs.volumes().join(&volume.name);
            empty_dir(&dir, source, group).map_err(|e| format!("volume \"{}\": {e}", volume.name))?;
        }
    }
    Ok(())
}

/// Writes the changed objects into the volumes that show them. Errors leave the old content.
pub(crate) fn refresh(
    pod: &Pod,
    dirs: &PodDirs,
    facts: &PodFacts,
    objects: &dyn Objects,
) -> Result<(), String> {
    let spec = pod.spec.as_ref();
    let group = spec.and_then(|s| s.security_context.as_ref()).and_then(|s| s.fs_group).map(id);
    for volume in spec.and_then(|s| s.volumes.as_ref()).into_iter().flatten() {
        if payload::is_payload(volume) {
            prepare_one(volume, pod, dirs, facts, objects, group)
                .map_err(|e| format!("{}: {e}", volume.name))?;
        }
    }
    Ok(())
}

fn empty_dir(dir: &Path, source: &EmptyDirVolumeSource, group: Option<u32>) -> io::Result<()> {
    if dir.exists() && (source.medium.as_deref() != Some("Memory") || is_mount_point(dir)?) {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o777).create(dir)?;
    if source.medium.as_deref() == Some("Memory") {
        let limit = source.size_limit.as_ref().and_then(|q| Quantity::parse(&q.0).ok());
        let size =
            limit.filter(|q| q.sign() > 0).map_or_else(String::new, |q| format!(",size={}", q.units()));
        let options = format!("mode=0777{size}");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some(options.as_str()))?;
    }
    let mode = match group {
        Some(gid) => {
            chown(dir, None, Some(gid))?;
            0o2777
        }
        None => 0o777,
    };
    // Explicitly, since the process' umask applies to what is created.
    fs::set_permissions(dir, Permissions::from_mode(mode))
}

fn is_mount_point(dir: &Path) -> io::Result<bool> {
    let parent = dir.parent().unwrap_or(Path::new("/"));
    Ok(fs::metadata(dir)?.dev() != fs::metadata(parent)?.dev())
}

/// Unmounts what [`prepare`] mounted; nothing being mounted is fine.
///
/// # Errors
/// Those of reading the directory.
pub(crate) fn unmount(dirs: &PodDirs) -> io::Result<()> {
    let entries = match fs::read_dir(dirs.volumes()) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let path = entry?.path();
        // Detached, so that a process that still sits in it holds up nothing.
        while is_mount_point(&path).unwrap_or(false) {
            if umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_err() {
                break;
            }
        }
    }
    Ok(())
}

/// The mounts of a container: its volumes, and the files that the node manages.
///
/// # Errors
/// A message that says what cannot be mounted.
pub(crate) fn mounts(
    pod: &Pod,
    container: &Container,
    prepared: &Prepared,
    dirs: &PodDirs,
    environment: &Environment,
) -> Result<Vec<Mount>, String> {
    let mut mounts = Vec::new();
    let taken = |path: &str| {
        container.volume_mounts.iter().flatten().any(|m| m.mount_path.trim_end_matches('/') == path)
    };
    for name in ["hosts", "hostname", "resolv.conf"] {
        let destination = format!("/etc/{name}");
        let host_network = pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
        if !(taken(&destination) || host_network && name == "hostname") {
            mounts.push(bind(dirs.etc().join(name), destination, false));
        }
    }
    // Outer mounts first, so that none hides another.
    let mut wanted: Vec<&VolumeMount> = container.volume_mounts.iter().flatten().collect();
    wanted.sort_by_key(|m| m.mount_path.matches('/').count());
    for one in wanted {
        mounts.push(volume_mount(one, pod, prepared, environment)?);
    }
    Ok(mounts)
}

fn bind(source: PathBuf, destination: String, read_only: bool) -> Mount {
    Mount { source: MountSource::Bind(source), destination, read_only, propagation: Propagation::Private }
}

fn volume_mount(
    one: &VolumeMount,
    pod: &Pod,
    prepared: &Prepared,
    env: &Environment,
) -> Result<Mount, String> {
    let volume =
        prepared.paths.get(&one.name).ok_or_else(|| format!("volume \"{}\" is not prepared", one.name))?;
    let sub = match (&one.sub_path, &one.sub_path_expr) {
        (_, Some(expr)) if !expr.is_empty() => Some(env.expand(expr)),
        (Some(path), _) if !path.is_empty() => Some(path.clone()),
        _ => None,
    };
    let source = match sub {
        Some(sub) => sub_path::resolve(volume, &sub)
            .map_err(|e| format!("failed to prepare subPath for volumeMount \"{}\": {e}", one.name))?,
        None => volume.clone(),
    };
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
    let files = volumes.into_iter().flatten().any(|v| v.name == one.name && payload::is_payload(v));
    let mut mount = bind(source, one.mount_path.clone(), one.read_only.unwrap_or(false) || files);
    mount.propagation = match one.mount_propagation.as_deref() {
        Some("HostToContainer") => Propagation::Rslave,
        Some("Bidirectional") => Propagation::Rshared,
        _ => Propagation::Private,
    };
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inputs::ObjectSet;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "w", "namespace": "ns"}, "spec": spec})).unwrap()
    }

    fn dirs(root: &Path) -> PodDirs {
        let dirs = PodDirs { root: root.join("p"), logs: root.join("l") };
        dirs.create().unwrap();
        dirs
    }

    #[test]
    fn prepares_and_mounts() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = dirs(dir.path());
        let pod = pod(json!({"securityContext": {"fsGroup": 7}, "volumes": [{"name": "e", "emptyDir": {}},
            {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "d", "downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.name"}}]}}],
            "containers": [{"name": "a", "volumeMounts": [
                {"name": "e", "mountPath": "/data/sub", "subPath": "x/y"}, {"name": "d", "mountPath": "/info"}]}]}));
        let objects = ObjectSet::default();
        let prepared = prepare(&pod, &dirs, &PodFacts::default(), &objects, false).unwrap();
        let again = prepare(&pod, &dirs, &PodFacts::default(), &objects, false).unwrap();
        assert_eq!(prepared.paths, again.paths);
        let empty = fs::metadata(dirs.volumes().join("e")).unwrap();
        assert_eq!((empty.permissions().mode() & 0o7777, empty.gid()), (0o2777, 7));
        assert!(is_mount_point(&dirs.volumes().join("m")).unwrap());
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        let env = crate::env::build(&pod, &container, &[], &PodFacts::default(), &objects).unwrap();
        let mounts = mounts(&pod, &container, &prepared, &dirs, &env).unwrap();
        let places: Vec<_> = mounts.iter().map(|m| (m.destination.as_str(), m.read_only)).collect();
        let etc = [("/etc/hosts", false), ("/etc/hostname", false), ("/etc/resolv.conf", false)];
        assert_eq!(places[..3], etc);
        assert_eq!(places[3..], [("/info", true), ("/data/sub", false)]);
        unmount(&dirs).unwrap();
        assert!(!is_mount_point(&dirs.volumes().join("m")).unwrap());
    }

    #[test]
    fn says_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = dirs(dir.path());
        for (volume, text) in [
            (json!({"name": "v", "configMap": {"name": "no"}}), "configmap \"no\" not found"),
            (json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}}), "no volumes of this kind"),
            (
                json!({"name": "v", "hostPath": {"path": "/etc/passwd", "type": "Directory"}}),
                "is not a directory",
            ),
        ] {
            let pod = pod(json!({"containers": [], "volumes": [volume]}));
            let error = prepare(&pod, &dirs, &PodFacts::default(), &ObjectSet::default(), false).unwrap_err();
            assert!(error.starts_with("MountVolume.SetUp failed for volume \"v\" : "), "{error}");
            assert!(error.contains(text), "{error}");
        }
    }
}
