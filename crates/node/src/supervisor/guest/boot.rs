//! From a pod's [`VmSpec`] to a running machine, and to what its agent is told first.

use super::clone::micros;
use super::files::{Files, tag};
use crate::supervisor::files::{CONSOLE_LOG, CONSOLE_SOCKET, MACHINE, SCRATCH};
use crate::supervisor::log::last_bytes;
use crate::supervisor::proto::{PodNetwork, SandboxSpec, VmSpec, VmVolume};
use crate::supervisor::record::{Record, now_us};
use crate::vm::{TRANSLATION_CACHE_BYTES, text};
use cumulet_container::cgroup::Cgroup;
use cumulet_container::disk;
use cumulet_guest_proto::spec::{FileTree, Network, Pod, Route};
use cumulet_vmm::scratch;
use cumulet_vmm::virtiofs::{Served, Virtiofsd};
use cumulet_vmm::{
    Accelerator, Boot, ConsoleSpec, Disk, DiskFormat, Isolation, Machine, MachineSpec, Memory, Nic, OnReboot,
    State,
};
use nix::sched::{CloneFlags, unshare};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;
use tokio::net::UnixStream;
use tokio::process::Child;

/// Size at which the console's log is rotated, in bytes; two parts are kept.
pub(in crate::supervisor) const CONSOLE_LOG_BYTES: u64 = 1 << 20;
/// Most bytes of the console that are looked at for the reason of a failure, and that are in it.
const CONSOLE_READ: u64 = 16 << 10;
const CONSOLE_TAIL: usize = 400;
/// How the kernel begins its last words.
const PANIC: &str = "Kernel panic - ";
/// MTU where the network names none.
const MTU: u16 = 1500;
/// Bytes of entropy for the guest's random generator.
const ENTROPY_BYTES: usize = 64;

/// The machine of a pod.
#[derive(Clone)]
pub(super) struct Qemu {
    machine: Machine,
    /// What serves directories of the host to the guest; killed when this goes.
    _daemons: Rc<[Child]>,
}

impl Qemu {
    /// Process id.
    pub(super) fn pid(&self) -> u32 {
        self.machine.pid()
    }

    /// Starts QEMU and lets the guest boot. `channel` is the machine's end of the channel.
    /// `memory` is what a template's is to be in.
    pub(super) async fn start(
        record: &Record,
        vm: &VmSpec,
        network: &PodNetwork,
        channel: UnixStream,
        memory: Option<&File>,
    ) -> Result<Self, String> {
        let mut spec = machine_spec(record, vm, network, channel)?;
        if let Some(memory) = memory {
            spec.memory = Memory::Shared(memory.try_clone().map_err(|e| format!("memory: {e}"))?);
            // A clone has the same devices, and must not have a balloon.
            spec.page_reporting = false;
        }
        let served = serve(vm, &record.dir.join(MACHINE))?;
        let (directories, daemons): (Vec<_>, Vec<_>) =
            served.into_iter().map(|served| (served.directory, served.process)).unzip();
        spec.directories = directories;
        let machine = Machine::spawn(&vm.qemu, spec).await.map_err(|e| text(&e))?;
        machine.start().await.map_err(|e| text(&e))?;
        Ok(Self { machine, _daemons: daemons.into() })
    }

    /// Starts QEMU as a clone that stands where the devices' state in `state` was taken, and lets the agent go on. `memory`
    /// is what the guest's was then. With microseconds until QEMU answered, and for the state.
    pub(super) async fn restore(
        record: &Record,
        vm: &VmSpec,
        network: &PodNetwork,
        channel: UnixStream,
        (state, memory): (&Path, &File),
    ) -> Result<(Self, [u64; 2]), String> {
        let mut spec = machine_spec(record, vm, network, channel)?;
        spec.boot = Boot::Incoming;
        spec.memory = Memory::CopyOnWrite(memory.try_clone().map_err(|e| format!("memory: {e}"))?);
        spec.page_reporting = false;
        let state = File::open(state).map_err(|e| format!("{}: {e}", state.display()))?;
        let began = Instant::now();
        let machine = Machine::spawn(&vm.qemu, spec).await.map_err(|e| text(&e))?;
        let spawned = micros(began);
        machine.load(state).await.map_err(|e| text(&e))?;
        let loaded = micros(began) - spawned;
        machine.start().await.map_err(|e| text(&e))?;
        Ok((Self { machine, _daemons: Rc::default() }, [spawned, loaded]))
    }

    /// Stops the machine and writes its devices' state.
    pub(super) async fn save(&self, state: File) -> Result<(), String> {
        self.machine.pause().await.map_err(|e| text(&e))?;
        self.machine.save(state).await.map_err(|e| text(&e))
    }

    /// Writes the memory of a machine that was stopped.
    pub(super) async fn copy_memory(&self, to: File) -> Result<(), String> {
        let machine = self.machine.clone();
        let copied = tokio::task::spawn_blocking(move || machine.copy_memory(&to)).await;
        copied.map_err(|e| e.to_string())?.map(drop).map_err(|e| text(&e))
    }

    /// Lets a machine go on that may have been stopped.
    pub(super) async fn resume(&self) {
        if let Err(error) = self.machine.resume().await {
            tracing::warn!(error = text(&error), "the machine does not go on");
        }
    }

    /// The guest has answered.
    pub(super) fn answered(&self) {
        self.machine.guest_ready();
    }

    /// Waits for the end of the machine and says why it ended.
    pub(super) async fn ended(&self) -> String {
        match self.machine.ended().await {
            State::Failed(failure) => failure.to_string(),
            _ => "the guest powered itself off".to_owned(),
        }
    }

    /// Ends the machine at once.
    pub(super) async fn kill(&self) {
        self.machine.kill().await;
    }
}

fn machine_spec(
    record: &Record,
    vm: &VmSpec,
    network: &PodNetwork,
    channel: UnixStream,
) -> Result<MachineSpec, String> {
    let open = |path: &Path| File::open(path).map_err(|e| format!("{}: {e}", path.display()));
    let channel = channel.into_std().and_then(|c| c.set_nonblocking(false).map(|()| c));
    let channel = channel.map_err(|e| format!("channel: {e}"))?;
    let mut disks = Vec::new();
    for image in &vm.images {
        disks.push(Disk {
            file: open(&image.path)?,
            serial: image.serial.clone(),
            read_only: true,
            volatile: false,
            format: DiskFormat::Raw,
        });
    }
    let runtime = record.dir.join(MACHINE);
    make_private(&runtime)?;
    if let Some(size) = vm.scratch_bytes {
        disks.push(Disk {
            file: scratch::create(&runtime.join(SCRATCH), size).map_err(|e| text(&e))?,
            serial: scratch::SERIAL.to_owned(),
            read_only: false,
            // It ends with the machine, so nothing has to reach the disk.
            volatile: true,
            format: DiskFormat::Raw,
        });
    }
    disks.extend(volumes(vm)?);
    Ok(MachineSpec {
        name: machine_name(&record.sandbox()),
        accelerator: if vm.kvm { Accelerator::Kvm } else { Accelerator::Tcg },
        cpu_model: None,
        vcpus: vm.vcpus,
        memory_bytes: vm.memory_bytes,
        memory: Memory::Own,
        boot: Boot::Kernel {
            image: open(&vm.kernel)?,
            initramfs: open(&vm.initramfs)?,
            parameters: Vec::new(),
        },
        channel: Some(channel.into()),
        console: ConsoleSpec {
            log: record.dir.join(CONSOLE_LOG),
            log_limit_bytes: CONSOLE_LOG_BYTES,
            socket: Some(runtime.join(CONSOLE_SOCKET)),
            output: None,
        },
        disks,
        nics: vec![nic(vm, network)?],
        directories: Vec::new(),
        page_reporting: true,
        on_reboot: OnReboot::Fail,
        translation_cache_bytes: Some(TRANSLATION_CACHE_BYTES),
        isolation: isolation(record, vm)?,
    })
}

/// Makes a directory that only root may enter.
pub(in crate::supervisor) fn make_private(dir: &Path) -> Result<(), String> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| format!("{}: {e}", dir.display()))
}

/// The network device on the pod's tap.
pub(in crate::supervisor) fn nic(vm: &VmSpec, network: &PodNetwork) -> Result<Nic, String> {
    let tap = network.tap.as_deref().ok_or("the pod has no tap device")?;
    let tap = cumulet_net::tap::open(tap).map_err(|e| format!("tap {tap}: {e}"))?;
    let mtu = u16::try_from(network.mtu).ok().filter(|m| *m > 0).unwrap_or(MTU);
    Ok(Nic { tap, mac: vm.mac, mtu })
}

/// The disks that are volumes. What the guest flushes reaches them.
fn volumes(vm: &VmSpec) -> Result<Vec<Disk>, String> {
    let mut disks = Vec::new();
    for (number, volume) in vm.volumes.values().enumerate() {
        if let VmVolume::Disk { path, read_only, .. } | VmVolume::Block { path, read_only } = volume {
            let file = disk::open(path, *read_only).map_err(|e| format!("{}: {e}", path.display()))?;
            let serial = tag(number);
            disks.push(Disk {
                file,
                serial,
                read_only: *read_only,
                volatile: false,
                format: DiskFormat::Raw,
            });
        }
    }
    Ok(disks)
}

/// Serves the directories of the host that are volumes.
fn serve(vm: &VmSpec, work: &Path) -> Result<Vec<Served>, String> {
    let mut served = Vec::new();
    for (number, volume) in vm.volumes.values().enumerate() {
        if let VmVolume::Directory { path, read_only } = volume {
            let daemon = Virtiofsd::find().map_err(|e| text(&e))?;
            served.push(daemon.serve(path, &tag(number), *read_only, work).map_err(|e| text(&e))?);
        }
    }
    Ok(served)
}

/// QEMU's own user, the pod's cgroup, and namespaces without any interface.
pub(in crate::supervisor) fn isolation(record: &Record, vm: &VmSpec) -> Result<Isolation, String> {
    let pod = Cgroup::new(&record.sandbox().cgroup).map_err(|e| text(&e))?;
    let own = pod.child(MACHINE).map_err(|e| text(&e))?;
    own.create().and_then(|()| pod.limit(&vm.limits)).map_err(|e| text(&e))?;
    let prepare = move || {
        // This process has one thread, so that the new one can allocate as it likes.
        own.enter().map_err(io::Error::other)?;
        let apart = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
        Ok(unshare(apart)?)
    };
    Ok(Isolation { user: Some(vm.user), prepare: Some(Box::new(prepare)), max_open_files: None })
}

/// The pod's name as far as QEMU takes it.
pub(in crate::supervisor) fn machine_name(sandbox: &SandboxSpec) -> String {
    let mut name = format!("{}_{}", sandbox.namespace, sandbox.name);
    name.retain(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    name.truncate(100);
    name
}

/// What makes the guest the pod.
pub(super) fn pod(
    sandbox: &SandboxSpec,
    vm: &VmSpec,
    network: &PodNetwork,
    etc: FileTree,
) -> Result<Pod, String> {
    let [a, b, c, d, e, f] = vm.mac;
    // As the kubelet sets it on nodes: who asks for more memory than there is, is killed when he uses it, not refused.
    let mut sysctls = sandbox.sysctls.clone();
    sysctls.entry("vm.overcommit_memory".to_owned()).or_insert_with(|| "1".to_owned());
    Ok(Pod {
        hostname: sandbox.hostname.clone(),
        clock_us: now_us(),
        machine_id: machine_id(&sandbox.uid),
        entropy: random::<ENTROPY_BYTES>().map_err(|e| format!("/dev/urandom: {e}"))?.to_vec().into(),
        network: Some(Network {
            interface: network.interface.clone(),
            mac: format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
            addresses: vec![network.address.clone()],
            routes: vec![Route {
                destination: "0.0.0.0/0".to_owned(),
                gateway: network.gateway.clone(),
                onlink: true,
            }],
            neighbours: Vec::new(),
            mtu: network.mtu,
        }),
        etc,
        volumes: Files::volumes(&vm.volumes),
        sysctls,
        share_process_namespace: vm.share_process_namespace,
        shm_bytes: 0,
    })
}

/// A pod's uid is a random UUID, which is what a machine id is too.
fn machine_id(uid: &str) -> String {
    let digits: String = uid.chars().filter(char::is_ascii_hexdigit).collect();
    if digits.len() == 32 { digits.to_ascii_lowercase() } else { String::new() }
}

/// A random UUID (RFC 9562, version 4), as a kernel has one for every boot.
pub(super) fn boot_id() -> io::Result<String> {
    let mut bytes = random::<16>()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

/// A number that no other conversation has.
pub(super) fn epoch() -> u64 {
    random().map_or_else(|_| now_us().cast_unsigned(), u64::from_ne_bytes)
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The end of what the guest wrote to its console, as the end of a sentence; nothing when it wrote nothing.
pub(super) fn console_tail(dir: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(dir.join(CONSOLE_LOG))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(CONSOLE_READ)))?;
        let mut bytes = Vec::new();
        file.take(CONSOLE_READ).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    last_words(&String::from_utf8_lossy(&bytes))
}

fn last_words(console: &str) -> String {
    let panic = console.lines().rev().find_map(|line| line.find(PANIC).map(|at| &line[at..]));
    let end = last_bytes(console.to_owned(), CONSOLE_TAIL);
    let words = panic.map_or(end, |line| line.chars().take(CONSOLE_TAIL).collect());
    let words = words.replace(|c: char| c.is_control() || c == '\u{fffd}', " ");
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.as_str() {
        "" => String::new(),
        words if panic.is_some() => format!(": {words}"),
        words => format!("; its console ends with: {words}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_the_panic_or_the_end() {
        let trace = "x".repeat(1000);
        for (console, expected) in [
            ("", ""),
            ("\r\n", ""),
            ("a\r\nb\u{7}c\n", "; its console ends with: a b c"),
            (
                "[ 1.0] Kernel panic - not syncing: sysrq\r\n[ 1.1] CPU: 0\n",
                ": Kernel panic - not syncing: sysrq",
            ),
        ] {
            assert_eq!(last_words(console), expected);
        }
        assert_eq!(last_words(&trace).len(), CONSOLE_TAIL + "; its console ends with: ".len());
    }

    #[test]
    fn machine_ids() {
        assert_eq!(machine_id("01017A1B-ce8c-46f0-92cc-c4254b323674"), "01017a1bce8c46f092ccc4254b323674");
        assert_eq!(machine_id("static"), "");
    }
}
