//! The files that the guest gets: volumes made of files, and `/etc`. Read from the pod's directory, where the node
//! keeps them up to date, and sent again when they have changed.

use crate::supervisor::proto::VmVolume;
use cumulet_guest_proto::message::Request;
use cumulet_guest_proto::spec::{File, FileTree, Volume};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Most bytes of one volume; the API allows a ConfigMap or Secret of 1 MiB, and a projected volume joins some.
const MAX_BYTES: u64 = 8 << 20;
/// The link that names the current version of a volume of files.
const DATA: &str = "..data";

/// What the guest was sent.
#[derive(Default)]
pub(super) struct Files {
    /// The version of every volume of files.
    versions: RefCell<BTreeMap<String, PathBuf>>,
    etc: RefCell<FileTree>,
}

impl Files {
    /// The volumes as the guest is to have them at first. Those of files begin empty: [`Self::changes`] fills them.
    pub(super) fn volumes(volumes: &BTreeMap<String, VmVolume>) -> BTreeMap<String, Volume> {
        let one = |(number, volume): (usize, &VmVolume)| match volume {
            VmVolume::Files { gid, .. } => Volume::Files { files: FileTree::new(), gid: *gid },
            VmVolume::Directory { read_only, .. } => {
                Volume::Virtiofs { tag: tag(number), read_only: *read_only }
            }
            VmVolume::Disk { fs_type, read_only, gid, .. } => Volume::Disk {
                serial: tag(number),
                fs_type: fs_type.clone(),
                read_only: *read_only,
                gid: *gid,
            },
            VmVolume::Block { .. } => Volume::Block { serial: tag(number) },
            VmVolume::EmptyDir { size_bytes, memory, gid } => {
                Volume::EmptyDir { size_bytes: *size_bytes, memory: *memory, gid: *gid }
            }
        };
        let numbered = volumes.iter().enumerate();
        numbered.map(|(number, (name, volume))| (name.clone(), one((number, volume)))).collect()
    }

    /// The files of `/etc`.
    pub(super) fn etc(&self, dir: &Path) -> io::Result<FileTree> {
        let tree = read_tree(dir)?;
        self.etc.replace(tree.clone());
        Ok(tree)
    }

    /// What the guest has to be told, because it was never told or has changed since. Volumes that the node has not
    /// written yet are left out.
    pub(super) fn changes(
        &self,
        etc: &Path,
        volumes: &BTreeMap<String, VmVolume>,
    ) -> io::Result<Vec<Request>> {
        let mut requests = Vec::new();
        for (name, volume) in volumes {
            let VmVolume::Files { dir, .. } = volume else { continue };
            let version = match fs::read_link(dir.join(DATA)) {
                Ok(version) => version,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if self.versions.borrow().get(name) == Some(&version) {
                continue;
            }
            let files = read_tree(&dir.join(&version))?;
            requests.push(Request::WriteFiles { volume: name.clone(), files });
            self.versions.borrow_mut().insert(name.clone(), version);
        }
        let now = read_tree(etc)?;
        if *self.etc.borrow() != now {
            requests.push(Request::WriteEtc { files: now.clone() });
            self.etc.replace(now);
        }
        Ok(requests)
    }

    /// A change could not be told: it is found again.
    pub(super) fn forget(&self) {
        self.versions.borrow_mut().clear();
        self.etc.borrow_mut().clear();
    }
}

/// What the guest finds the directory or the disk by that is the volume of this number: names of volumes may be too
/// long.
pub(super) fn tag(number: usize) -> String {
    format!("volume{number}")
}

/// All regular files below a directory. Symbolic links are not followed.
fn read_tree(root: &Path) -> io::Result<FileTree> {
    let mut tree = FileTree::new();
    let mut left = MAX_BYTES;
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() {
                dirs.push(path);
            } else if kind.is_file() {
                let name = path.strip_prefix(root).ok().and_then(Path::to_str);
                let name = name.ok_or_else(|| io::Error::other("a file name is not text"))?.to_owned();
                let mut content = Vec::new();
                let read = fs::File::open(&path)?.take(left + 1).read_to_end(&mut content)? as u64;
                left = left.checked_sub(read).ok_or_else(|| {
                    let text =
                        format!("{} has more than {MAX_BYTES} bytes, too many for a guest", root.display());
                    io::Error::new(io::ErrorKind::FileTooLarge, text)
                })?;
                let mode = entry.metadata()?.permissions().mode() & 0o7777;
                tree.insert(name, File { content: content.into(), mode, uid: None });
            }
        }
    }
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_changes_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let (etc, volume) = (dir.path().join("etc"), dir.path().join("v"));
        fs::create_dir_all(&etc).unwrap();
        fs::write(etc.join("hosts"), "h").unwrap();
        let volumes =
            BTreeMap::from([("v".to_owned(), VmVolume::Files { dir: volume.clone(), gid: Some(7) })]);
        let files = Files::default();
        assert_eq!(files.etc(&etc).unwrap().len(), 1);
        assert!(files.changes(&etc, &volumes).unwrap().is_empty(), "nothing was written yet");
        let write = |version: &str, text: &str| {
            fs::create_dir_all(volume.join(version).join("d")).unwrap();
            fs::write(volume.join(version).join("d/key"), text).unwrap();
            let _ = fs::remove_file(volume.join(DATA));
            symlink(version, volume.join(DATA)).unwrap();
        };
        for (version, text) in [("..1", "one"), ("..2", "two")] {
            write(version, text);
            let told = files.changes(&etc, &volumes).unwrap();
            let [Request::WriteFiles { volume, files: tree }] = &told[..] else { panic!("{told:?}") };
            assert_eq!((volume.as_str(), &tree["d/key"].content.0[..]), ("v", text.as_bytes()));
            assert!(files.changes(&etc, &volumes).unwrap().is_empty());
        }
        fs::write(etc.join("hosts"), "new").unwrap();
        assert!(matches!(&files.changes(&etc, &volumes).unwrap()[..], [Request::WriteEtc { .. }]));
        files.forget();
        assert_eq!(files.changes(&etc, &volumes).unwrap().len(), 2);
    }

    #[test]
    fn too_much_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let big = fs::File::create(dir.path().join("big")).unwrap();
        big.set_len(MAX_BYTES + 1).unwrap();
        assert!(read_tree(dir.path()).is_err());
    }
}
