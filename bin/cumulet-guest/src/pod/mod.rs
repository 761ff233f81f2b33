//! The pod as a whole: what [`cumulet_guest_proto::spec::Pod`] asks for, made true once.
//!
//! ```text
//!   /run/images/<serial>        erofs images, shared by containers and attempts
//!   /run/writable               tmpfs or the scratch disk: writable layers, emptyDirs
//!   /run/pod/etc                files that every container sees in /etc
//!   /run/pod/volumes            files and mount points of volumes
//!   /run/pod/identity           /run/cumulet in containers
//! ```

mod disks;
mod files;
mod volumes;

pub(crate) use volumes::{Found, is_name};

use crate::clock;
use crate::container::cgroup::Cgroup;
use crate::container::launch;
use crate::container::{Bind, Layout};
use crate::error::{Doing, Error};
use crate::net;
use crate::random;
use cumulet_guest_proto::spec::{self, ContainerStart, FileTree, SCRATCH_SERIAL};
use nix::mount::{MsFlags, mount};
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use volumes::Volumes;

const IMAGES: &str = "/run/images";
const WRITABLE: &str = "/run/writable";
const POD: &str = "/run/pod";
/// Where containers find the pod's identity.
const IDENTITY_IN_CONTAINER: &str = "/run/cumulet";
const SHM_BYTES: u64 = 64 << 20;

/// A configured pod.
pub(crate) struct Pod {
    /// The order without what only counts at its moment, to tell a repetition from another order.
    order: spec::Pod,
    volumes: Volumes,
    images: BTreeSet<String>,
    /// First process of the shared pid namespace.
    pub(crate) pause: Option<(i32, OwnedFd)>,
}

impl Pod {
    /// Makes the guest this pod.
    pub(crate) fn configure(order: spec::Pod) -> Result<Self, Error> {
        if !order.entropy.0.is_empty() {
            random::reseed(&order.entropy.0)?;
        }
        if order.clock_us > 0 {
            clock::set(order.clock_us, None)?;
        }
        set_hostname(&order.hostname)?;
        net::loopback_up()?;
        if let Some(network) = &order.network {
            net::configure(network)?;
        }
        let shm = if order.shm_bytes == 0 { SHM_BYTES } else { order.shm_bytes };
        let options = format!("size={shm},mode=1777");
        let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_REMOUNT;
        mount(None::<&str>, "/dev/shm", None::<&str>, strict, Some(options.as_str()))
            .doing(|| "limit /dev/shm".to_owned())?;
        writable()?;
        let base = Path::new(POD);
        let large = Path::new(WRITABLE).join("volumes");
        let volumes = Volumes::create(base.join("volumes"), large, &order.volumes)?;
        let pod = Self { order: comparable(&order), volumes, images: BTreeSet::new(), pause: None };
        pod.write_etc(&order.etc)?;
        fs::create_dir_all(base.join("identity")).doing(|| "make /run/pod/identity".to_owned())?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        pod.write_names(&order.machine_id, boot_id.trim_end())?;
        order.sysctls.iter().try_for_each(|(name, value)| set_sysctl(name, value))?;
        let pause = if order.share_process_namespace { Some(launch::pause()?) } else { None };
        Ok(Self { pause, ..pod })
    }

    /// Whether the order is the one that made this pod.
    pub(crate) fn is(&self, order: &spec::Pod) -> bool {
        self.order == comparable(order)
    }

    /// The network that was asked for last.
    pub(crate) fn network(&self) -> Option<&spec::Network> {
        self.order.network.as_ref()
    }

    /// Another network, name and files from now on.
    pub(crate) fn set_network(&mut self, network: Option<spec::Network>) -> Result<(), Error> {
        if let Some(network) = &network {
            net::configure(network)?;
        }
        self.order.network = network;
        Ok(())
    }

    /// Writes files that containers see in `/etc`.
    pub(crate) fn write_etc(&self, tree: &FileTree) -> Result<(), Error> {
        files::write_in_place(&Path::new(POD).join("etc"), tree).doing(|| "write files of /etc".to_owned())
    }

    /// Replaces the files of a volume.
    pub(crate) fn write_volume(&mut self, name: &str, tree: FileTree) -> Result<(), Error> {
        self.volumes.update(name, tree)
    }

    /// Writes the files of `/run/cumulet`, each replaced as a whole: programs watch the directory.
    pub(crate) fn write_identity(&self, tree: &FileTree) -> Result<(), Error> {
        let dir = Path::new(POD).join("identity");
        let what = || "write /run/cumulet".to_owned();
        for (name, file) in tree {
            let aside = dir.join(format!(".{name}"));
            fs::write(&aside, &file.content.0).doing(what)?;
            fs::set_permissions(&aside, fs::Permissions::from_mode(file.mode)).doing(what)?;
            fs::rename(&aside, dir.join(name)).doing(what)?;
        }
        Ok(())
    }

    /// Writes machine-id and boot_id; an empty one is left alone.
    pub(crate) fn write_names(&self, machine_id: &str, boot_id: &str) -> Result<(), Error> {
        for (name, value) in [("machine-id", machine_id), ("boot_id", boot_id)] {
            if !value.is_empty() {
                let at = Path::new(POD).join(name);
                fs::write(&at, format!("{value}\n")).doing(|| format!("write {name}"))?;
                let permissions = fs::Permissions::from_mode(0o444);
                fs::set_permissions(&at, permissions).doing(|| format!("write {name}"))?;
            }
        }
        Ok(())
    }

    /// Mounts what a container needs, as far as it is there, and says how its file system is to be made.
    pub(crate) fn layout(&mut self, order: &ContainerStart) -> Result<Found<Layout>, Error> {
        let mut images = vec![];
        for serial in &order.root.images {
            match self.image(serial)? {
                Found::Ready(path) => images.push(path),
                Found::NotYet(serial) => return Ok(Found::NotYet(serial)),
            }
        }
        let mut binds = self.standard_binds(order);
        for wanted in &order.mounts {
            match self.volumes.source(&wanted.volume)? {
                Found::Ready(source) => binds.push(Bind {
                    source: source.path,
                    sub_path: wanted.sub_path.clone(),
                    destination: wanted.destination.clone(),
                    read_only: wanted.read_only || source.read_only,
                    only_over_existing: false,
                }),
                Found::NotYet(serial) => return Ok(Found::NotYet(serial)),
            }
        }
        let mut devices = vec![];
        for wanted in &order.devices {
            match self.volumes.device(&wanted.volume)? {
                Found::Ready(path) => devices.push((path, wanted.path.clone())),
                Found::NotYet(serial) => return Ok(Found::NotYet(serial)),
            }
        }
        if !order.termination_message_path.is_empty() {
            let source =
                make_termination_file(order).doing(|| "make the termination message file".to_owned())?;
            binds.push(Bind {
                source,
                destination: order.termination_message_path.clone(),
                ..Bind::default()
            });
        }
        Ok(Found::Ready(Layout {
            images,
            writable: writable_dir(order),
            read_only_root: order.root.read_only,
            privileged: order.security.privileged,
            unmasked: order.security.unmasked_proc,
            binds,
            devices,
            cwd: order.process.cwd.clone(),
            boot_id: Some(Path::new(POD).join("boot_id")),
        }))
    }

    fn image(&mut self, serial: &str) -> Result<Found<PathBuf>, Error> {
        if !is_name(serial) {
            return Err(Error::Invalid(format!("{serial:?} cannot be the serial of an image's disk")));
        }
        let at = Path::new(IMAGES).join(serial);
        if !self.images.contains(serial) {
            let Some(disk) = disks::find(serial) else { return Ok(Found::NotYet(serial.to_owned())) };
            disks::mount_at(&disk, &at, "erofs", true)?;
            self.images.insert(serial.to_owned());
        }
        Ok(Found::Ready(at))
    }

    /// Files that every container sees, unless it mounts something there itself.
    fn standard_binds(&self, order: &ContainerStart) -> Vec<Bind> {
        let taken = |destination: &str| order.mounts.iter().any(|mount| mount.destination == destination);
        let base = Path::new(POD);
        let etc = self.order.etc.keys().map(|name| Bind {
            source: base.join("etc").join(name),
            destination: format!("/etc/{name}"),
            ..Bind::default()
        });
        let identity = Bind {
            source: base.join("identity"),
            destination: IDENTITY_IN_CONTAINER.to_owned(),
            read_only: true,
            ..Bind::default()
        };
        let machine_id = base.join("machine-id");
        let machine_id = machine_id.exists().then(|| Bind {
            source: machine_id,
            destination: "/etc/machine-id".to_owned(),
            read_only: true,
            only_over_existing: true,
            ..Bind::default()
        });
        etc.chain([identity]).chain(machine_id).filter(|bind| !taken(&bind.destination)).collect()
    }
}

fn comparable(order: &spec::Pod) -> spec::Pod {
    spec::Pod { clock_us: 0, entropy: Vec::new().into(), ..order.clone() }
}

/// Mounts what writable layers lie on: the scratch disk, or memory.
fn writable() -> Result<(), Error> {
    let at = Path::new(WRITABLE);
    if let Some(disk) = disks::find(SCRATCH_SERIAL) {
        return disks::mount_at(&disk, at, "ext4", false);
    }
    fs::create_dir_all(at).doing(|| format!("make {WRITABLE}"))?;
    let (flags, options) = (MsFlags::MS_NOATIME | MsFlags::MS_NODEV, Some("mode=755,size=75%"));
    mount(Some("tmpfs"), at, Some("tmpfs"), flags, options).doing(|| format!("mount {WRITABLE}"))
}

/// Where the layer of a container's instance lies.
pub(crate) fn writable_dir(order: &ContainerStart) -> PathBuf {
    Path::new(WRITABLE).join("containers").join(format!("{}-{}", order.name, order.attempt))
}

/// The cgroup of a container's instance.
pub(crate) fn cgroup(order: &ContainerStart) -> Cgroup {
    Cgroup::pod().below(&format!("{}-{}", order.name, order.attempt))
}

/// The file behind a container's termination message path.
pub(crate) fn termination_file(order: &ContainerStart) -> PathBuf {
    Path::new(POD).join("termination").join(format!("{}-{}", order.name, order.attempt))
}

fn make_termination_file(order: &ContainerStart) -> std::io::Result<PathBuf> {
    let file = termination_file(order);
    fs::create_dir_all(file.parent().unwrap_or(&file))?;
    fs::write(&file, "")?;
    // Whoever the container runs as.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666))?;
    Ok(file)
}

pub(crate) fn set_hostname(name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Ok(());
    }
    nix::unistd::sethostname(name).doing(|| format!("set the host name to {name:?}"))
}

fn set_sysctl(name: &str, value: &str) -> Result<(), Error> {
    let path =
        sysctl_path(name).ok_or_else(|| Error::Invalid(format!("{name:?} is not a kernel parameter")))?;
    fs::write(&path, value).doing(|| format!("set kernel parameter {name} to {value:?}"))
}

/// The file of a kernel parameter: `net.ipv4.conf.eth0/1.forwarding` or `net/ipv4/…`; the first separator counts, as
/// for `sysctl`.
fn sysctl_path(name: &str) -> Option<PathBuf> {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let dotted = name.find(['.', '/']).is_some_and(|at| name.as_bytes()[at] == b'.');
    let path = if dotted { name.chars().map(swap).collect() } else { name.to_owned() };
    let plain = path.split('/').all(is_name);
    plain.then(|| Path::new("/proc/sys").join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_parameters_are_files() {
        let check = |name: &str, expected: Option<&str>| {
            assert_eq!(sysctl_path(name), expected.map(|path| Path::new("/proc/sys").join(path)), "{name}");
        };
        check("net.core.somaxconn", Some("net/core/somaxconn"));
        check("net/ipv4/conf/eth0.1/forwarding", Some("net/ipv4/conf/eth0.1/forwarding"));
        check("net.ipv4.conf.eth0/1.forwarding", Some("net/ipv4/conf/eth0.1/forwarding"));
        check("../x", None);
        check("kernel/../../x", None);
        check("/etc/passwd", None);
        check("", None);
    }

    #[test]
    fn a_repetition_is_recognised() {
        let order = spec::Pod { hostname: "a".into(), clock_us: 5, ..spec::Pod::default() };
        let again = spec::Pod { clock_us: 6, entropy: "x".into(), ..order.clone() };
        assert_eq!(comparable(&order), comparable(&again));
        let other = spec::Pod { hostname: "b".into(), ..order.clone() };
        assert_ne!(comparable(&order), comparable(&other));
    }
}
