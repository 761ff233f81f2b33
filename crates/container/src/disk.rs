//! Disks in files: a file with a file system in it, mounted through a loop device.
//!
//! Nobody has to tidy up: the device is told to clear itself, which it does with its last mount. The file is locked as
//! long as it is mounted, since the kernel's loop driver keeps the description that the lock belongs to; so no two
//! mounts, and no mount and a virtual machine, ever write one file system at a time.

use nix::mount::{MsFlags, mount};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Devices that are tried: another program may take a free one first.
const ATTEMPTS: usize = 16;
const CONFIGURE: libc::c_ulong = 0x4c0a;
const GET_FREE: libc::c_ulong = 0x4c82;
const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// `struct loop_info64`.
#[repr(C)]
struct Info {
    /// Device, inode, rdevice, offset, size limit.
    places: [u64; 5],
    number: u32,
    encryption: [u32; 2],
    flags: u32,
    names: [[u8; 64]; 2],
    key: [u8; 32],
    init: [u64; 2],
}

/// Opens a disk for one user: fails while another has it, unless both only read.
///
/// # Errors
/// Those of opening; `ResourceBusy` when somebody has it.
pub fn open(path: &Path, read_only: bool) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(!read_only).open(path)?;
    let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
    match locked {
        // The lock belongs to the open file: it ends with the last descriptor.
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let text = format!("{} is in use: one pod at a time can have a disk", path.display());
            Err(io::Error::new(io::ErrorKind::ResourceBusy, text))
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Mounts the file system in a file at a directory.
///
/// # Errors
/// Those of [`open`], of the loop driver and of mounting, with what was tried.
pub fn mount_file(path: &Path, fs_type: &str, at: &Path, read_only: bool) -> io::Result<()> {
    let file = open(path, read_only)?;
    let doing = |what: String| move |e: io::Error| io::Error::new(e.kind(), format!("{what}: {e}"));
    // A block device is its own.
    let device = match file.metadata()?.file_type().is_block_device() {
        true => (path.to_owned(), None),
        false => attach(&file, read_only).map(|(path, held)| (path, Some(held))).map_err(doing(format!(
            "cannot make a loop device for {}; a virtual machine (runtimeClassName: vm) needs none",
            path.display()
        )))?,
    };
    let plain = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    let flags = if read_only { plain | MsFlags::MS_RDONLY } else { plain };
    mount(Some(&device.0), at, Some(fs_type), flags, None::<&str>)
        .map_err(io::Error::from)
        .map_err(doing(format!("cannot mount {} ({fs_type}) at {}", path.display(), at.display())))
}

/// A loop device for the file. It clears itself when the descriptor is closed and nothing is mounted from it.
fn attach(file: &File, read_only: bool) -> io::Result<(PathBuf, File)> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    let mut last = io::Error::from(io::ErrorKind::ResourceBusy);
    for _ in 0..ATTEMPTS {
        // SAFETY: the call takes no argument and returns a number or an error.
        // JUSTIFICATION: the kernel's interface to loop devices is ioctl only.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new().read(true).write(!read_only).open(&path)?;
        let config = Config {
            fd: u32::try_from(file.as_raw_fd()).unwrap_or(u32::MAX),
            block_size: 0,
            info: Info {
                places: [0; 5],
                number: 0,
                encryption: [0; 2],
                flags: AUTOCLEAR | if read_only { READ_ONLY } else { 0 },
                names: [[0; 64]; 2],
                key: [0; 32],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        // SAFETY: the kernel reads a `struct loop_config`, which `config` is laid out as, and keeps no pointer.
        // JUSTIFICATION: as above.
        let done = unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, &raw const config) };
        if done == 0 {
            return Ok((path, device));
        }
        last = io::Error::last_os_error();
        if last.raw_os_error() != Some(libc::EBUSY) {
            break;
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::mount::{MntFlags, umount2};
    use std::process::Command;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, "").unwrap();
        let first = open(&path, false).unwrap();
        assert_eq!(open(&path, false).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        let twin = first.try_clone().unwrap();
        drop(first);
        assert!(open(&path, true).is_err(), "the lock goes with the last descriptor");
        drop(twin);
        let readers = [open(&path, true).unwrap(), open(&path, true).unwrap()];
        assert!(open(&path, false).is_err());
        drop(readers);
        open(&path, false).unwrap();
    }

    #[test]
    fn a_mounted_disk_is_taken() {
        if !Path::new("/dev/loop-control").exists() || !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (path, at) = (dir.path().join("disk"), dir.path().join("at"));
        std::fs::create_dir(&at).unwrap();
        File::create(&path).unwrap().set_len(16 << 20).unwrap();
        let made = Command::new("/usr/sbin/mkfs.ext4").args(["-q", "-F"]).arg(&path).status();
        if !made.is_ok_and(|status| status.success()) {
            return;
        }
        for text in ["one", "two"] {
            mount_file(&path, "ext4", &at, false).unwrap();
            assert_eq!(open(&path, false).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
            std::fs::write(at.join(text), text).unwrap();
            umount2(&at, MntFlags::empty()).unwrap();
        }
        // The device clears itself; the kernel may take a moment for it.
        mount_file(&path, "ext4", &at, false).unwrap();
        assert_eq!(std::fs::read_to_string(at.join("one")).unwrap(), "one");
        umount2(&at, MntFlags::empty()).unwrap();
    }
}
