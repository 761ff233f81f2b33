//! How the disk starts: its first sectors, GRUB's configuration, and the command lines of the tools.
//!
//! GRUB lies where the firmware's world expects it: the boot sector in the first sector, its core image right behind it
//! (where boot sector and core image look by default), before the one partition. So nothing has to be installed from
//! inside a running system.

use super::super::layer::{Content, Members};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

const SECTOR: u64 = 512;
/// Where the partition begins, in bytes.
pub(super) const PARTITION_START: u64 = 1 << 20;
/// Where the code of the boot sector ends, and the table of partitions begins.
const CODE_BYTES: usize = 440;
const TABLE: usize = 446;

/// Paths in the sandbox.
pub(super) const CORE: &str = "/core.img";
pub(super) const RAW: &str = "/disk.raw";
pub(super) const QCOW2: &str = "/disk.qcow2";
pub(super) const TREE: &str = "/tree";
/// Below the tools' layer.
pub(super) const BOOT_SECTOR: &str = "usr/lib/grub/i386-pc/boot.img";
/// Where GRUB looks for its configuration.
pub(super) const CONFIGURATION: &str = "boot/grub/grub.cfg";

/// What tells this disk from others.
pub(super) struct Identity {
    /// Of the filesystem.
    uuid: String,
    /// Of the table of partitions.
    signature: [u8; 4],
}

impl Identity {
    /// Out of the digest of everything that the disk is made from.
    pub(super) fn of(key: &str) -> Self {
        let part = |range: std::ops::Range<usize>| key.get(range).unwrap_or("0000");
        let signature = u32::from_str_radix(part(32..40), 16).unwrap_or(1);
        Self {
            uuid: format!(
                "{}-{}-4{}-8{}-{}",
                part(0..8),
                part(8..12),
                part(13..16),
                part(17..20),
                part(20..32)
            ),
            signature: signature.to_le_bytes(),
        }
    }

    /// How Linux names the partition.
    fn partition(&self) -> String {
        format!("{:08x}-01", u32::from_le_bytes(self.signature))
    }
}

/// What is started.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Start {
    kernel: String,
    initrd: Option<String>,
    /// The image has a configuration of its own.
    pub(super) configured: bool,
}

impl Start {
    /// Looks for kernel and initial RAM disk where distributions put them. Links to the newest ones come first: they
    /// follow updates.
    pub(super) fn find(members: &Members) -> Result<Self, String> {
        let is_file = |path: &str| {
            members.get(path.as_bytes()).is_some_and(|m| !matches!(m.content, Content::Directory))
        };
        let newest = |prefix: &str| {
            let found = members.keys().filter(|place| place.starts_with(prefix.as_bytes())).max();
            found.map(|place| OsStr::from_bytes(place).to_string_lossy().into_owned())
        };
        let first = |paths: &[&str]| paths.iter().find(|path| is_file(path)).map(|path| (*path).to_owned());
        let kernel = first(&["vmlinuz", "boot/vmlinuz"]).or_else(|| newest("boot/vmlinuz-"));
        let kernel = kernel.ok_or(
            "disk: there is no kernel in the image (/vmlinuz, /boot/vmlinuz or /boot/vmlinuz-VERSION): name one in \
             disk.packages, such as linux-image-cloud-amd64",
        )?;
        let initrd = first(&["initrd.img", "boot/initrd.img"]).or_else(|| newest("boot/initrd.img-"));
        Ok(Self { kernel, initrd, configured: is_file(CONFIGURATION) })
    }

    /// GRUB's configuration: on the serial line, without a menu.
    pub(super) fn configuration(&self, identity: &Identity, parameters: &str) -> String {
        let mut text =
            "serial --unit=0 --speed=115200\nterminal_input serial\nterminal_output serial\n".to_owned();
        let partition = identity.partition();
        let more = if parameters.is_empty() { String::new() } else { format!(" {parameters}") };
        text.push_str(&format!(
            "linux /{} root=PARTUUID={partition} rw console=ttyS0 net.ifnames=0 panic=5{more}\n",
            self.kernel
        ));
        if let Some(initrd) = &self.initrd {
            text.push_str(&format!("initrd /{initrd}\n"));
        }
        text.push_str("boot\n");
        text
    }
}

/// The disk's bytes before its partition.
pub(super) fn head(
    sector: &[u8],
    core: &[u8],
    identity: &Identity,
    size_bytes: u64,
) -> Result<Vec<u8>, String> {
    let room = usize::try_from(PARTITION_START - SECTOR).unwrap_or_default();
    if sector.len() < CODE_BYTES || core.len() > room {
        return Err("disk: GRUB does not fit before the partition".to_owned());
    }
    let sectors =
        |bytes: u64| u32::try_from(bytes / SECTOR).map_err(|_| "disk: larger than 2 TiB".to_owned());
    let mut head = sector[..CODE_BYTES].to_vec();
    head.extend(identity.signature);
    head.resize(TABLE, 0);
    // Active, Linux; what is written as cylinders, heads and sectors says "too large for that".
    head.extend([0x80, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff]);
    head.extend(sectors(PARTITION_START)?.to_le_bytes());
    head.extend(sectors(size_bytes - PARTITION_START)?.to_le_bytes());
    head.resize(usize::try_from(SECTOR).unwrap_or_default() - 2, 0);
    head.extend([0x55, 0xaa]);
    head.extend(core);
    Ok(head)
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

pub(super) fn grub_mkimage() -> Vec<String> {
    words(&format!(
        "/usr/bin/grub-mkimage -O i386-pc -d /usr/lib/grub/i386-pc -p (hd0,msdos1)/boot/grub -o {CORE} biosdisk \
         part_msdos ext2 linux normal configfile serial terminal test echo search"
    ))
}

/// Everything is initialized here: the guest would do it while it boots.
pub(super) fn mke2fs(identity: &Identity, size_bytes: u64) -> Vec<String> {
    let uuid = &identity.uuid;
    words(&format!(
        "/sbin/mke2fs -q -F -t ext4 -m 1 -U {uuid} -O ^metadata_csum_seed,^orphan_file -E \
         offset={PARTITION_START},hash_seed={uuid},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0 -d {TREE} {RAW} \
         {}k",
        size_bytes / 1024
    ))
}

pub(super) fn qemu_img() -> Vec<String> {
    words(&format!("/usr/bin/qemu-img convert -q -f raw -O qcow2 -c -o compression_type=zstd {RAW} {QCOW2}"))
}

#[cfg(test)]
mod tests {
    use super::super::super::layer::Member;
    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn the_first_sectors() {
        let identity = Identity::of(KEY);
        let head_of = |core: usize, size| head(&[0xeb; 512], &vec![7; core], &identity, size);
        let made = head_of(1000, 64 << 20).unwrap();
        assert_eq!(made.len(), 1512);
        assert_eq!((made[439], made[510], made[511], made[512]), (0xeb, 0x55, 0xaa, 7));
        assert_eq!(made[440..446], [0x67, 0x45, 0x23, 0x01, 0, 0]);
        assert_eq!(made[446..454], [0x80, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff]);
        assert_eq!(made[454..462], [0, 8, 0, 0, 0, 0xf8, 1, 0]);
        assert!(head_of(1 << 20, 64 << 20).is_err() && head_of(10, 4 << 40).is_err());
        assert_eq!(identity.uuid, "01234567-89ab-4def-8123-456789abcdef");
        assert_eq!(identity.partition(), "01234567-01");
    }

    #[test]
    fn kernels_are_found() {
        let check = |files: &[&str], expected: Option<(&str, Option<&str>)>| {
            let member = || Member::of_root(Content::Bytes(Vec::new()), 0o644);
            let members = files.iter().map(|file| (file.as_bytes().to_vec(), member())).collect();
            let found = Start::find(&members).ok();
            let found = found.as_ref().map(|s| (s.kernel.as_str(), s.initrd.as_deref()));
            assert_eq!(found, expected, "{files:?}");
        };
        check(&["etc/passwd"], None);
        check(&["boot/vmlinuz"], Some(("boot/vmlinuz", None)));
        let debian = ["vmlinuz", "initrd.img", "boot/vmlinuz-6.1", "boot/initrd.img-6.1"];
        check(&debian, Some(("vmlinuz", Some("initrd.img"))));
        check(&debian[2..], Some(("boot/vmlinuz-6.1", Some("boot/initrd.img-6.1"))));
    }

    #[test]
    fn configurations() {
        let start =
            Start { kernel: "vmlinuz".to_owned(), initrd: Some("initrd.img".to_owned()), configured: false };
        let text = start.configuration(&Identity::of(KEY), "quiet");
        let linux = "linux /vmlinuz root=PARTUUID=01234567-01 rw console=ttyS0 net.ifnames=0 panic=5 quiet\n";
        assert!(text.contains(linux) && text.ends_with("initrd /initrd.img\nboot\n"), "{text}");
    }
}
