//! Tap devices: a virtual machine's end of the network.
//!
//! A tap is made persistent by the one who owns the network and opened by the one who runs the machine, so that
//! neither has to pass a descriptor to the other and the machine outlives a restart of the network's owner.

use nix::libc;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

const CONTROL: &str = "/dev/net/tun";
/// Frames of a tap, without a header of our own but with virtio's, in which offloads are described
/// (linux/if_tun.h). Creator and opener must agree.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Opens the tap of this name for a machine.
///
/// # Errors
/// The kernel's refusal: no such tap, or somebody has it open.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    // Without this the kernel would make a new one, which goes unnoticed.
    nix::net::if_::if_nametoindex(name)?;
    attach(name).map(OwnedFd::from)
}

/// Creates a tap that stays.
pub(crate) fn create(name: &str) -> io::Result<()> {
    let file = attach(name)?;
    let persistent: libc::c_ulong = 1;
    // SAFETY: the descriptor is open and the argument is a plain number. JUSTIFICATION: taps are only made by ioctl.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, persistent) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn attach(name: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(CONTROL).map_err(|error| {
        io::Error::new(error.kind(), format!("{CONTROL}: {error}; `modprobe tun` may bring it"))
    })?;
    // SAFETY: all zeroes are a valid ifreq. JUSTIFICATION: it is the kernel's struct and has no other constructor.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is too long for a link")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = FLAGS as libc::c_short;
    // SAFETY: the descriptor is open, and the kernel reads and writes one ifreq, which lives here.
    // JUSTIFICATION: taps are only made by ioctl.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(file) }
}
