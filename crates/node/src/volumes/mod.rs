//! Volumes of a pod: what is made on the host, and the mounts of its containers.
//!
//! Preparing is idempotent and runs again when an object that a volume shows has changed; a directory that exists is
//! kept. Three things are mounted on the host, below the pod's directory: the tmpfs of `emptyDir` volumes with
//! `medium: Memory` and disks of claims, which have to be shared by containers and to survive their restarts, and
//! single files that a virtual machine is to see.
//!
//! Absent: the volume kinds of other systems; a pod that wants one waits with an event that says so.

pub(crate) mod atomic;
pub(crate) mod claim;
pub(crate) mod etc;
mod group;
mod host_path;
pub(crate) mod payload;
mod sub_path;

use crate::convert::id;
use crate::dirs::{PodDirs, component};
use crate::env::{Environment, Objects, PodFacts};
use crate::inputs::is_claim;
use claim::{Claimed, Place};
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

/// What was prepared of a pod's volumes, by volume name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prepared {
    /// Where they are on the host.
    paths: HashMap<String, PathBuf>,
    /// Those that are claims'.
    pub(crate) claims: HashMap<String, Claimed>,
    /// Names of single files, for a virtual machine: the path is a directory with nothing else.
    pub(crate) files: HashMap<String, String>,
}

/// What volumes are prepared from.
#[derive(Clone, Copy)]
pub(crate) struct Setting<'a> {
    /// The pod's directories.
    pub(crate) dirs: &'a PodDirs,
    /// What fields of the pod resolve to.
    pub(crate) facts: &'a PodFacts,
    /// What the pod refers to.
    pub(crate) objects: &'a dyn Objects,
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
    let setting = Setting { dirs, facts, objects };
    let mut prepared = Prepared::default();
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let one = match is_claim(volume) {
            true => prepare_claim(volume, pod, setting, machine, &mut prepared),
            false if machine => in_machine(volume, pod, setting, &mut prepared),
            false => prepare_one(volume, pod, setting),
        };
        let path =
            one.map_err(|e| format!("MountVolume.SetUp failed for volume \"{}\" : {e}", volume.name))?;
        prepared.paths.insert(volume.name.clone(), path);
    }
    Ok(prepared)
}

fn group_of(pod: &Pod) -> Option<u32> {
    pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|s| s.fs_group).map(id)
}

/// Volumes that a virtual machine has inside itself need nothing here; of the host it can have directories and files.
fn in_machine(
    volume: &Volume,
    pod: &Pod,
    setting: Setting<'_>,
    prepared: &mut Prepared,
) -> Result<PathBuf, String> {
    let dirs = setting.dirs;
    if let Some(source) = &volume.host_path {
        needs_virtiofs()?;
        let path = host_path::prepare(source)?;
        if path.is_dir() {
            return Ok(path);
        }
        component(&volume.name).map_err(|e| e.to_string())?;
        let dir = dirs.volumes().join(&volume.name);
        let name = host_path::alone(&path, &dir)?;
        prepared.files.insert(volume.name.clone(), name);
        return Ok(dir);
    }
    match volume.empty_dir.is_some() {
        true => Ok(dirs.volumes().join(&volume.name)),
        false => prepare_one(volume, pod, setting),
    }
}

fn needs_virtiofs() -> Result<(), String> {
    let found = Virtiofsd::find();
    found.map(drop).map_err(|e| format!("a virtual machine gets directories of the host by virtiofs: {e}"))
}

/// A claim's volume: on a directory, on a disk that is mounted here, or for a virtual machine on a disk.
fn prepare_claim(
    volume: &Volume,
    pod: &Pod,
    setting: Setting<'_>,
    machine: bool,
    prepared: &mut Prepared,
) -> Result<PathBuf, String> {
    let found = setting.objects.claimed(&volume.name)?;
    let read_only = is_read_only(volume);
    let claimed = Claimed { place: claim::place(&found)?, read_only };
    let path = match &claimed.place {
        Place::Directory { path, ours } => {
            if machine {
                needs_virtiofs()?;
            }
            let group = group_of(pod).filter(|_| *ours && !read_only);
            give_to_group(path, group, pod)?;
            path.clone()
        }
        Place::Disk { path, .. } | Place::Device { path } if machine => path.clone(),
        Place::Disk { path, fs_type } => {
            let at = mount_disk(volume, setting.dirs, (path, fs_type), read_only)?;
            give_to_group(&at, group_of(pod).filter(|_| !read_only), pod)?;
            at
        }
        Place::Device { .. } => {
            return Err("a volume of volumeMode Block can be had by a virtual machine only: give the pod \
                        `runtimeClassName: vm`, or the claim volumeMode Filesystem"
                .to_owned());
        }
    };
    prepared.claims.insert(volume.name.clone(), claimed);
    Ok(path)
}

/// Mounts a claim's disk below the pod's directory; one that is mounted stays.
fn mount_disk(
    volume: &Volume,
    dirs: &PodDirs,
    (disk, fs_type): (&Path, &str),
    read_only: bool,
) -> Result<PathBuf, String> {
    component(&volume.name).map_err(|e| e.to_string())?;
    let at = dirs.volumes().join(&volume.name);
    if !at.exists() || !is_mount_point(&at).map_err(|e| e.to_string())? {
        crate::dirs::private_dir(&at).map_err(|e| format!("{}: {e}", at.display()))?;
        let mounted = cumulet_container::disk::mount_file(disk, fs_type, &at, read_only);
        mounted.map_err(|e| e.to_string())?;
    }
    Ok(at)
}

fn is_read_only(volume: &Volume) -> bool {
    volume.persistent_volume_claim.as_ref().and_then(|c| c.read_only) == Some(true)
}

fn give_to_group(path: &Path, group: Option<u32>, pod: &Pod) -> Result<(), String> {
    let Some(group) = group else { return Ok(()) };
    let security = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let policy = security.and_then(|s| s.fs_group_change_policy.as_deref());
    group::give(path, group, policy == Some("OnRootMismatch"))
        .map_err(|e| format!("applyFSGroup failed for {}: {e}", path.display()))
}

fn prepare_one(volume: &Volume, pod: &Pod, setting: Setting<'_>) -> Result<PathBuf, String> {
    let (Setting { dirs, facts, objects }, group) = (setting, group_of(pod));
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
                    downwardAPI, projected, persistentVolumeClaim and ephemeral"
                .to_owned(),
        );
    }
    Ok(dir)
}

/// Mounts what is to be mounted on the host: the pod's emptyDirs of medium Memory, and disks of claims. A supervisor
/// sees the mounts that exist when it starts, so this comes before it; doing it again is fine.
pub(crate) fn mount_first(pod: &Pod, dirs: &PodDirs, objects: &dyn Objects) -> Result<(), String> {
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let failed = |e: String| format!("volume \"{}\": {e}", volume.name);
        if let Some(source) = volume.empty_dir.as_ref().filter(|e| e.medium.as_deref() == Some("Memory")) {
            component(&volume.name).map_err(|e| failed(e.to_string()))?;
            let dir = dirs.volumes().join(&volume.name);
            empty_dir(&dir, source, group_of(pod)).map_err(|e| failed(e.to_string()))?;
        }
        if is_claim(volume)
            && let Place::Disk { path, fs_type } =
                objects.claimed(&volume.name).and_then(|found| claim::place(&found)).map_err(failed)?
        {
            mount_disk(volume, dirs, (&path, &fs_type), is_read_only(volume)).map_err(failed)?;
        }
    }
    Ok(())
}

/// Whether [`mount_first`] has to see what claims have got.
pub(crate) fn has_claims(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).any(is_claim)
}

/// Writes the changed objects into the volumes that show them. Errors leave the old content.
pub(crate) fn refresh(
    pod: &Pod,
    dirs: &PodDirs,
    facts: &PodFacts,
    objects: &dyn Objects,
) -> Result<(), String> {
    let setting = Setting { dirs, facts, objects };
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        if payload::is_payload(volume) {
            prepare_one(volume, pod, setting).map_err(|e| format!("{}: {e}", volume.name))?;
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
    // The innermost first; the table has the outermost first.
    for path in mounts_below(&dirs.volumes())?.iter().rev() {
        // Detached, so that a process that still sits in it holds up nothing.
        let _ = umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
    Ok(())
}

/// What is mounted in a directory, outer mounts first.
fn mounts_below(root: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table.lines().filter_map(mount_point).filter(|path| path.starts_with(root)).collect())
}

/// The mount point in a line of `mountinfo`, in which some characters are octal numbers.
fn mount_point(line: &str) -> Option<PathBuf> {
    let field = line.split(' ').nth(4)?;
    let mut parts = field.split('\\');
    let mut path = parts.next()?.to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok())?;
        path.push(char::from(code));
        path.push_str(&part[3..]);
    }
    Some(PathBuf::from(path))
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
    let files = files || prepared.claims.get(&one.name).is_some_and(|claimed| claimed.read_only);
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
            (json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}}), "has no claim"),
            (json!({"name": "v", "nfs": {"server": "s", "path": "/"}}), "no volumes of this kind"),
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
