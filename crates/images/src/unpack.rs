//! Unpacking a layer into a directory, in the form that overlayfs stacks.
//!
//! Confinement: every entry is reached from the layer's directory one component at a time, without following any
//! symbolic link, so nothing outside can be named. Refused with the entry's name: `..`, an entry below a symbolic
//! link or file, hard links to anything but a file of this layer, device nodes, reserved attributes, too much data.
//! A symbolic link itself may point anywhere: it is resolved later, inside the container.
//!
//! Whiteouts: `.wh.NAME` becomes a character device 0/0, `.wh..wh..opq` the attribute `trusted.overlay.opaque=y` of
//! its directory; other names starting with `.wh..wh.` are bookkeeping of aufs and skipped.

use crate::error::io;
use crate::tarball::{Entry, Kind, TarReader};
use crate::{ImageError, Limits};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{self, FileStat, Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, mkfifoat, symlinkat, unlinkat};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use xattr::FileExt;

pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

/// Unpacks a tar stream into `dir`, which is an empty directory. Reads the stream to its end.
pub(crate) fn unpack<R: Read>(stream: R, label: &str, dir: &Path, limits: &Limits) -> Result<R, ImageError> {
    let root = File::open(dir).map_err(io("open", dir))?;
    let mut tar = TarReader::new(stream, label, limits.layer_entries);
    let mut layer = Layer {
        label,
        root: root.into(),
        parent: None,
        directories: vec![(Vec::new(), (0, 0))],
        bytes_left: limits.layer_bytes,
    };
    while let Some(entry) = tar.next()? {
        layer.apply(&entry, &mut tar)?;
    }
    layer.finish()?;
    Ok(tar.into_inner())
}

type Components = Vec<Vec<u8>>;

struct Layer<'a> {
    label: &'a str,
    root: OwnedFd,
    /// The directory of the entry before, since entries come in order.
    parent: Option<(Components, OwnedFd)>,
    /// Modification times of directories, set last because work inside changes them.
    directories: Vec<(Components, (i64, i64))>,
    bytes_left: u64,
}

impl Layer<'_> {
    fn refuse(&self, entry: &Entry, reason: impl Into<String>) -> ImageError {
        ImageError::Entry { archive: self.label.to_owned(), entry: entry.name(), reason: reason.into() }
    }

    /// Puts a system error on the entry that caused it; running out of space is not the entry's fault.
    fn failed(&self, entry: &Entry, verb: &str, error: impl Into<std::io::Error>) -> ImageError {
        let what = format!("{}: {verb} \"{}\"", self.label, entry.name());
        ImageError::Io { what, source: error.into() }
    }

    fn apply(&mut self, entry: &Entry, tar: &mut TarReader<impl Read>) -> Result<(), ImageError> {
        let mut path = components(&entry.path).map_err(|reason| self.refuse(entry, reason))?;
        let Some(name) = path.pop() else {
            if entry.kind != Kind::Directory {
                return Err(self.refuse(entry, "only a directory can be the root of a layer"));
            }
            let root = self.root.try_clone().map_err(|error| self.failed(entry, "open", error))?;
            self.dress(&root.into(), entry)?;
            self.directories.push((Vec::new(), entry.mtime));
            return Ok(());
        };
        let parent = self.enter(&path, entry)?;
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            self.white_out(parent.as_fd(), hidden, entry)?;
        } else {
            self.place(parent.as_fd(), &path, &name, entry, tar)?;
        }
        self.parent = Some((path, parent));
        Ok(())
    }

    /// Opens the directory at `path`, making what is missing of it.
    fn enter(&mut self, path: &[Vec<u8>], entry: &Entry) -> Result<OwnedFd, ImageError> {
        if let Some((cached, parent)) = self.parent.take()
            && cached == path
        {
            return Ok(parent);
        }
        let mut at = self.root.try_clone().map_err(|error| self.failed(entry, "open", error))?;
        for (depth, component) in path.iter().enumerate() {
            let name = OsStr::from_bytes(component);
            at = match open_dir(at.as_fd(), name) {
                Err(Errno::ENOENT) => {
                    self.directories.push((path[..=depth].to_vec(), (0, 0)));
                    stat::mkdirat(&at, name, Mode::from_bits_truncate(0o755))
                        .and_then(|()| open_dir(at.as_fd(), name))
                        .map_err(|error| self.failed(entry, "make the directory of", error))?
                }
                Err(Errno::ENOTDIR | Errno::ELOOP) => {
                    let above = String::from_utf8_lossy(&path[..=depth].join(&b'/')).into_owned();
                    return Err(self.refuse(entry, format!("\"{above}\" is a link or file, not a directory")));
                }
                other => other.map_err(|error| self.failed(entry, "open the directory of", error))?,
            };
        }
        Ok(at)
    }

    fn white_out(&self, parent: BorrowedFd<'_>, hidden: &[u8], entry: &Entry) -> Result<(), ImageError> {
        if hidden == b".wh..opq" {
            return make_opaque(parent).map_err(|error| self.failed(entry, "mark as opaque", error));
        }
        if hidden.starts_with(b".wh.") {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(self.refuse(entry, "a whiteout of nothing"));
        }
        let name = OsStr::from_bytes(hidden);
        match lookup(parent, name).map_err(|error| self.failed(entry, "look up", error))? {
            // The layer hides what is below and brings its own: a directory must not show the lower one's files.
            Some(there) if is_dir(&there) => open_dir(parent, name)
                .map_err(std::io::Error::from)
                .and_then(|dir| make_opaque(dir.as_fd()))
                .map_err(|error| self.failed(entry, "mark as opaque", error)),
            Some(_) => Ok(()),
            None => {
                make_whiteout(parent, name).map_err(|error| self.failed(entry, "make the whiteout", error))
            }
        }
    }

    fn place(
        &mut self,
        parent: BorrowedFd<'_>,
        path: &[Vec<u8>],
        name: &[u8],
        entry: &Entry,
        tar: &mut TarReader<impl Read>,
    ) -> Result<(), ImageError> {
        let os_name = OsStr::from_bytes(name);
        let there = lookup(parent, os_name).map_err(|error| self.failed(entry, "look up", error))?;
        let keep = matches!(&there, Some(there) if is_dir(there) && entry.kind == Kind::Directory);
        if let Some(there) = &there
            && !keep
        {
            if is_dir(there) {
                return Err(self.refuse(entry, "it would replace a directory of the same layer"));
            }
            unlinkat(parent, os_name, UnlinkatFlags::NoRemoveDir)
                .map_err(|error| self.failed(entry, "replace", error))?;
        }
        match entry.kind {
            Kind::Directory => {
                if !keep {
                    let made = stat::mkdirat(parent, os_name, Mode::from_bits_truncate(0o755));
                    made.map_err(|error| self.failed(entry, "make", error))?;
                }
                let dir = open_dir(parent, os_name).map_err(|error| self.failed(entry, "open", error))?;
                if there.as_ref().is_some_and(is_whiteout) {
                    make_opaque(dir.as_fd()).map_err(|error| self.failed(entry, "mark as opaque", error))?;
                }
                self.dress(&dir.into(), entry)?;
                self.directories.push((path.iter().cloned().chain([name.to_vec()]).collect(), entry.mtime));
                Ok(())
            }
            Kind::File => self.write_file(parent, os_name, entry, tar),
            Kind::Symlink => {
                symlinkat(OsStr::from_bytes(&entry.link), parent, os_name)
                    .map_err(|error| self.failed(entry, "link", error))?;
                self.dress_unopened(parent, os_name, entry)
            }
            Kind::Fifo => {
                mkfifoat(parent, os_name, permissions(entry))
                    .map_err(|error| self.failed(entry, "make", error))?;
                self.dress_unopened(parent, os_name, entry)
            }
            Kind::HardLink => self.link(parent, os_name, entry),
            // overlayfs' own form of a whiteout.
            Kind::Device { block: false, major: 0, minor: 0 } => {
                make_whiteout(parent, os_name).map_err(|error| self.failed(entry, "make the whiteout", error))
            }
            Kind::Device { block, major, minor } => {
                let kind = if block { "block" } else { "character" };
                Err(self.refuse(
                    entry,
                    format!("{kind} device {major}/{minor}: images must not hold device nodes"),
                ))
            }
        }
    }

    fn write_file(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        entry: &Entry,
        tar: &mut TarReader<impl Read>,
    ) -> Result<(), ImageError> {
        self.bytes_left = self.bytes_left.checked_sub(entry.size).ok_or_else(|| {
            self.refuse(entry, "the layer is larger than the limit for one layer when unpacked")
        })?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(parent, name, flags, Mode::from_bits_truncate(0o600))
            .map_err(|error| self.failed(entry, "make", error))?;
        let mut file = File::from(fd);
        let mut buffer = [0; 32 * 1024];
        loop {
            let n = tar.read(&mut buffer).map_err(|error| tar.unreadable(&error))?;
            if n == 0 {
                break;
            }
            std::io::Write::write_all(&mut file, &buffer[..n])
                .map_err(|error| self.failed(entry, "write", error))?;
        }
        self.dress(&file, entry)?;
        let time = time_spec(entry.mtime);
        stat::futimens(&file, &time, &time).map_err(|error| self.failed(entry, "set the time of", error))
    }

    fn link(&self, parent: BorrowedFd<'_>, name: &OsStr, entry: &Entry) -> Result<(), ImageError> {
        if entry.link.starts_with(b"/") {
            return Err(self.refuse(entry, "hard link to an absolute path"));
        }
        let mut target = components(&entry.link).map_err(|reason| self.refuse(entry, reason))?;
        let missing = || {
            let target = String::from_utf8_lossy(&entry.link).into_owned();
            self.refuse(entry, format!("hard link to \"{target}\", which is no file of this layer"))
        };
        let Some(last) = target.pop() else { return Err(missing()) };
        let mut at = self.root.try_clone().map_err(|error| self.failed(entry, "open", error))?;
        for component in &target {
            at = open_dir(at.as_fd(), OsStr::from_bytes(component)).map_err(|_| missing())?;
        }
        let last = OsStr::from_bytes(&last);
        match lookup(at.as_fd(), last) {
            Ok(Some(there)) if !is_dir(&there) && !is_whiteout(&there) => {}
            _ => return Err(missing()),
        }
        linkat(&at, last, parent, name, AtFlags::empty()).map_err(|error| self.failed(entry, "link", error))
    }

    /// Owner, then mode, then attributes: changing the owner clears set-id bits and capabilities.
    fn dress(&self, file: &File, entry: &Entry) -> Result<(), ImageError> {
        let (uid, gid) = self.owner(entry)?;
        fchown(file, Some(uid), Some(gid)).map_err(|error| self.failed(entry, "set the owner of", error))?;
        stat::fchmod(file, permissions(entry))
            .map_err(|error| self.failed(entry, "set the mode of", error))?;
        for (name, value) in &entry.xattrs {
            if name.starts_with("trusted.") || name.starts_with("user.overlay.") {
                return Err(self.refuse(entry, format!("attribute \"{name}\" is reserved")));
            }
            // Others, such as security.selinux, belong to the machine that made the archive.
            if name == "security.capability" || name.starts_with("user.") {
                file.set_xattr(name, value)
                    .map_err(|error| self.failed(entry, "set an attribute of", error))?;
            }
        }
        Ok(())
    }

    /// The same for what cannot be opened: a link or fifo.
    fn dress_unopened(&self, parent: BorrowedFd<'_>, name: &OsStr, entry: &Entry) -> Result<(), ImageError> {
        let (uid, gid) = self.owner(entry)?;
        fchownat(parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|error| self.failed(entry, "set the owner of", error))?;
        let time = time_spec(entry.mtime);
        stat::utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)
            .map_err(|error| self.failed(entry, "set the time of", error))
    }

    fn owner(&self, entry: &Entry) -> Result<(Uid, Gid), ImageError> {
        match (u32::try_from(entry.uid), u32::try_from(entry.gid)) {
            // The largest number means "unchanged" to the kernel.
            (Ok(uid), Ok(gid)) if uid != u32::MAX && gid != u32::MAX => {
                Ok((Uid::from_raw(uid), Gid::from_raw(gid)))
            }
            _ => Err(self.refuse(entry, "its owner is no valid user or group")),
        }
    }

    /// Sets the times of directories. The last word on a directory counts, so later ones overwrite earlier ones.
    fn finish(&mut self) -> Result<(), ImageError> {
        for (path, mtime) in &self.directories {
            let set = || -> nix::Result<()> {
                let mut at = openat(&self.root, ".", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
                for component in path {
                    at = open_dir(at.as_fd(), OsStr::from_bytes(component))?;
                }
                let time = time_spec(*mtime);
                stat::futimens(&at, &time, &time)
            };
            set().map_err(|error| ImageError::Io {
                what: format!("{}: set the time of a directory", self.label),
                source: error.into(),
            })?;
        }
        Ok(())
    }
}

/// Splits a path; leading slashes and `.` mean nothing in an archive.
fn components(path: &[u8]) -> Result<Components, &'static str> {
    let mut found = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err("\"..\" in a path: it could reach outside the image"),
            name => found.push(name.to_vec()),
        }
    }
    Ok(found)
}

fn open_dir(at: BorrowedFd<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

fn lookup(at: BorrowedFd<'_>, name: &OsStr) -> nix::Result<Option<FileStat>> {
    match stat::fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(there) => Ok(Some(there)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn kind_of(there: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(there.st_mode) & SFlag::S_IFMT
}

fn is_dir(there: &FileStat) -> bool {
    kind_of(there) == SFlag::S_IFDIR
}

fn is_whiteout(there: &FileStat) -> bool {
    kind_of(there) == SFlag::S_IFCHR && there.st_rdev == 0
}

fn make_whiteout(parent: BorrowedFd<'_>, name: &OsStr) -> nix::Result<()> {
    stat::mknodat(parent, name, SFlag::S_IFCHR, Mode::empty(), 0)
}

fn make_opaque(dir: BorrowedFd<'_>) -> std::io::Result<()> {
    File::from(dir.try_clone_to_owned()?).set_xattr(OPAQUE, b"y")
}

fn permissions(entry: &Entry) -> Mode {
    Mode::from_bits_truncate(entry.mode & 0o7777)
}

fn time_spec((seconds, nanos): (i64, i64)) -> TimeSpec {
    TimeSpec::new(seconds, nanos)
}
