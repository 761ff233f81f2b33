//! A network of one machine: a tap device in a network namespace of the test's thread.

use cumulet_vmm::Nic;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

pub(crate) const GATEWAY: &str = "10.9.0.1";
pub(crate) const GATEWAY_MAC: &str = "02:00:00:00:00:01";

/// Makes the namespace and the device, whose other side is the machine's interface.
pub(crate) fn make(mac: [u8; 6]) -> Nic {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut request = [0_u8; 40];
    request[..4].copy_from_slice(b"tap0");
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    // SAFETY: the kernel reads and writes one struct ifreq of 40 bytes. JUSTIFICATION: there is no safe way.
    let made = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(made, 0);
    for command in
        [format!("link set tap0 address {GATEWAY_MAC} up"), format!("addr add {GATEWAY}/24 dev tap0")]
    {
        assert!(Command::new("ip").args(command.split(' ')).status().unwrap().success(), "ip {command}");
    }
    Nic { tap: tun.into(), mac, mtu: 1500 }
}

/// The answer of a server in the machine.
pub(crate) fn get(address: &str) -> String {
    let mut stream = TcpStream::connect((address, 80)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(b"GET /f HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}
