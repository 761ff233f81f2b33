//! Volumes behind claims: where a bound claim's volume lies on this machine.
//!
//! What lies where is the PersistentVolume's word, which an administrator or the provisioner gave: the paths are
//! trusted as those of `hostPath` are. A directory is mounted as it is. A file or a block device is a disk: with
//! `volumeMode: Filesystem` what is on it is mounted, with `Block` it is a device.

use super::host_path;
use k8s_openapi::api::core::v1::PersistentVolume;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

/// File system of a disk whose volume names none.
const FS_TYPE: &str = "ext4";

/// Where a volume lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a directory.
    Directory {
        /// The directory.
        path: PathBuf,
        /// Its group may be set: it is nobody else's.
        ours: bool,
    },
    /// On a disk with a file system.
    Disk {
        /// A file or a block device.
        path: PathBuf,
        /// What is on it.
        fs_type: String,
    },
    /// On a disk that is used as it is.
    Device {
        /// A file or a block device.
        path: PathBuf,
    },
}

/// A pod's volume that is a claim's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claimed {
    /// Where it lies.
    pub(crate) place: Place,
    /// No container may write it.
    pub(crate) read_only: bool,
}

/// Finds the volume on this machine.
///
/// # Errors
/// A message for the event `FailedMount`.
pub(crate) fn place(volume: &PersistentVolume) -> Result<Place, String> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let spec = volume.spec.as_ref().ok_or_else(|| format!("PersistentVolume {name} has no spec"))?;
    let block = spec.volume_mode.as_deref() == Some("Block");
    let (path, ours, fs_type) = match (&spec.host_path, &spec.local) {
        (Some(source), _) => (host_path::prepare(source)?, false, None),
        (None, Some(source)) => (PathBuf::from(&source.path), true, source.fs_type.clone()),
        (None, None) => {
            return Err(format!(
                "PersistentVolume {name} is of a kind that this version has not; it has local and hostPath"
            ));
        }
    };
    let found =
        fs::metadata(&path).map_err(|e| format!("path \"{}\" of volume {name}: {e}", path.display()))?;
    let disk = found.is_file() || found.file_type().is_block_device();
    let fs_type = fs_type.filter(|t| !t.is_empty()).unwrap_or_else(|| FS_TYPE.to_owned());
    match (found.is_dir(), disk, block) {
        (true, _, false) => Ok(Place::Directory { path, ours }),
        (_, true, false) => Ok(Place::Disk { path, fs_type }),
        (_, true, true) => Ok(Place::Device { path }),
        _ => Err(format!("path \"{}\" of volume {name} does not fit its volumeMode", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn places() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("disk"), "").unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let check = |spec: Value, expected: Result<Place, &str>| {
            let volume = serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": spec})).unwrap();
            match (place(&volume), expected) {
                (Err(message), Err(text)) => assert!(message.contains(text), "{message}"),
                (got, expected) => assert_eq!(got, expected.map_err(str::to_owned), "{spec}"),
            }
        };
        let here = dir.path().to_owned();
        check(json!({"local": {"path": at("")}}), Ok(Place::Directory { path: here.join(""), ours: true }));
        check(
            json!({"hostPath": {"path": at("")}}),
            Ok(Place::Directory { path: here.join(""), ours: false }),
        );
        let disk = Place::Disk { path: here.join("disk"), fs_type: "xfs".to_owned() };
        check(json!({"local": {"path": at("disk"), "fsType": "xfs"}}), Ok(disk));
        let device = json!({"local": {"path": at("disk")}, "volumeMode": "Block"});
        check(device, Ok(Place::Device { path: here.join("disk") }));
        check(json!({"local": {"path": at("")}, "volumeMode": "Block"}), Err("does not fit its volumeMode"));
        check(json!({"local": {"path": at("none")}}), Err("No such file"));
        check(json!({"nfs": {"server": "s", "path": "/"}}), Err("it has local and hostPath"));
    }
}
