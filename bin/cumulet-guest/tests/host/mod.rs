//! A host for tests: one machine, one conversation, everything that came.

use cumulet_guest_proto::Channel;
use cumulet_guest_proto::host::{FromGuest, HostLink};
use cumulet_guest_proto::message::{Event, Reply, Request, Snapshot, ToHost};
use cumulet_guest_proto::spec::SCRATCH_SERIAL;
use cumulet_vmm::{
    Accelerator, Boot, ConsoleSpec, Disk, DiskFormat, Isolation, Kernel, Machine, MachineSpec, Memory, Nic,
    OnReboot, Qemu, initramfs, rootfs, scratch,
};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Serial of the busybox image.
pub(crate) const SERIAL: &str = "abababababababababab";
/// A boot takes three seconds; a machine with other work on it may need ten times that.
const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) struct Host {
    pub(crate) machine: Machine,
    pub(crate) link: HostLink,
    pub(crate) events: Vec<Event>,
    pub(crate) replies: BTreeMap<u64, Reply>,
    pub(crate) snapshot: Option<Snapshot>,
    outputs: BTreeMap<(u32, Channel), (Vec<u8>, usize)>,
    channel: UnixStream,
    epoch: u64,
    log: PathBuf,
    /// Kept as long as the machine.
    parts: Option<Parts>,
}

/// Output beyond this is counted only.
const KEPT: usize = 100_000;

fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/cumulet-build");
    std::env::var_os("CUMULET_CACHE").map_or_else(home, PathBuf::from)
}

/// A root file system of nothing but busybox.
fn layer(dir: &Path) -> PathBuf {
    let layer = dir.join("layer");
    for name in ["bin", "etc", "tmp"] {
        fs::create_dir_all(layer.join(name)).unwrap();
    }
    let busybox = std::env::var_os("CUMULET_BUSYBOX").map_or_else(|| "/bin/busybox".into(), PathBuf::from);
    fs::copy(&busybox, layer.join("bin/busybox")).unwrap();
    let applets = std::process::Command::new(busybox).arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout).unwrap().lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", layer.join("bin").join(applet)).unwrap();
    }
    fs::write(layer.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n")
        .unwrap();
    fs::write(layer.join("etc/machine-id"), "").unwrap();
    layer
}

fn disk(file: File, serial: &str, read_only: bool) -> Disk {
    Disk { file, serial: serial.to_owned(), read_only, volatile: !read_only, format: DiskFormat::Raw }
}

/// What machines are made of; everything in a directory that goes with it.
pub(crate) struct Parts {
    pub(crate) dir: tempfile::TempDir,
    qemu: Qemu,
    kernel: Kernel,
    initramfs: PathBuf,
    image: PathBuf,
}

impl Parts {
    pub(crate) fn make() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let agent = std::env::var_os("CUMULET_GUEST").expect("CUMULET_GUEST names the static agent");
        let kernel = Kernel::install(&cache().join("guest-kernel"), &dir.path().join("kernel")).unwrap();
        let initramfs = initramfs::build(&kernel, Path::new(&agent), dir.path()).unwrap();
        let digest = format!("sha256:{}", "ab".repeat(32));
        let image = rootfs::build(&dir.path().join("images"), &digest, &[layer(dir.path())]).unwrap();
        Self { qemu: Qemu::find().unwrap(), dir, kernel, initramfs, image }
    }

    fn spec(&self, name: &str, channel: std::os::unix::net::UnixStream) -> MachineSpec {
        let log = self.dir.path().join(format!("{name}.log"));
        MachineSpec {
            name: name.to_owned(),
            accelerator: Accelerator::Tcg,
            cpu_model: None,
            vcpus: 1,
            memory_bytes: 192 << 20,
            memory: Memory::Own,
            boot: Boot::Kernel {
                image: File::open(self.kernel.image()).unwrap(),
                initramfs: File::open(&self.initramfs).unwrap(),
                // What the kernel says in between, for those who look for time: CUMULET_TEST_KERNEL="loglevel=7".
                parameters: std::env::var("CUMULET_TEST_KERNEL").into_iter().collect(),
            },
            channel: Some(channel.into()),
            console: ConsoleSpec { log, log_limit_bytes: 1 << 20, socket: None, output: None },
            disks: vec![disk(File::open(&self.image).unwrap(), SERIAL, true)],
            nics: Vec::new(),
            // A machine with it could not be a template.
            page_reporting: false,
            directories: Vec::new(),
            on_reboot: OnReboot::Fail,
            translation_cache_bytes: None,
            isolation: Isolation::default(),
        }
    }
}

impl Host {
    /// Boots a machine and waits for its greeting.
    pub(crate) async fn boot(nics: Vec<Nic>) -> Self {
        let parts = Parts::make();
        let mut host = Self::boot_with(&parts, nics, None).await;
        host.parts = Some(parts);
        host
    }

    /// With a disk for writable layers, of that many bytes.
    pub(crate) async fn boot_with(parts: &Parts, nics: Vec<Nic>, scratch_bytes: Option<u64>) -> Self {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut spec = parts.spec("first", theirs);
        spec.nics = nics;
        if let Some(bytes) = scratch_bytes {
            let file = scratch::create(&parts.dir.path().join("scratch"), bytes).unwrap();
            spec.disks.push(disk(file, SCRATCH_SERIAL, false));
        }
        let log = spec.console.log.clone();
        let began = Instant::now();
        let machine = Machine::spawn(&parts.qemu, spec).await.unwrap();
        let mut host = Self::of(machine, ours, log);
        host.machine.start().await.unwrap();
        host.reconnect().await;
        let uptime = host.snapshot.as_ref().unwrap().uptime_us / 1000;
        println!(
            "QEMU start to greeting: {} ms, {uptime} ms of them in the kernel",
            began.elapsed().as_millis()
        );
        host.machine.guest_ready();
        host
    }

    /// Stops the machine and writes what clones begin with: its memory and its devices.
    pub(crate) async fn save(&self, parts: &Parts) {
        let at = |name: &str| File::create(parts.dir.path().join(name)).unwrap();
        self.machine.pause().await.unwrap();
        self.machine.save(at("state")).await.unwrap();
        let copied = self.machine.copy_memory(&at("memory")).unwrap();
        println!("template: {copied:?}");
    }

    /// A machine that goes on where the saved one was.
    pub(crate) async fn clone_of(parts: &Parts, name: &str) -> Self {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut spec = parts.spec(name, theirs);
        let open = |name: &str| File::open(parts.dir.path().join(name)).unwrap();
        spec.boot = Boot::Incoming;
        spec.memory = Memory::CopyOnWrite(open("memory"));
        let log = spec.console.log.clone();
        let began = Instant::now();
        let machine = Machine::spawn(&parts.qemu, spec).await.unwrap();
        let spawned = began.elapsed().as_millis();
        let mut host = Self::of(machine, ours, log);
        host.machine.load(open("state")).await.unwrap();
        host.machine.start().await.unwrap();
        let loaded = began.elapsed().as_millis();
        host.epoch = 1000;
        host.reconnect().await;
        println!("{name}: QMP {spawned} ms, loaded {loaded} ms, greeting {} ms", began.elapsed().as_millis());
        host.machine.guest_ready();
        host
    }

    fn of(machine: Machine, channel: std::os::unix::net::UnixStream, log: PathBuf) -> Self {
        channel.set_nonblocking(true).unwrap();
        Self {
            machine,
            link: HostLink::new(),
            events: vec![],
            replies: BTreeMap::new(),
            snapshot: None,
            outputs: BTreeMap::new(),
            channel: UnixStream::from_std(channel).unwrap(),
            epoch: 0,
            log,
            parts: None,
        }
    }

    /// Begins a conversation.
    pub(crate) async fn reconnect(&mut self) {
        self.epoch += 1;
        self.snapshot = None;
        self.link.begin(self.epoch, "test");
        self.until("a snapshot", |host| host.snapshot.is_some()).await;
    }

    pub(crate) async fn ask(&mut self, request: Request) -> Reply {
        let id = self.link.request(request);
        self.until("an answer", |host| host.replies.contains_key(&id)).await;
        self.replies.remove(&id).unwrap()
    }

    /// Goes on until something is so.
    pub(crate) async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "waiting for {what}\n{:?}\n{}", self.events, self.console());
            self.step().await;
        }
    }

    /// Sends what there is and takes what comes, for a second at most.
    pub(crate) async fn step(&mut self) {
        let bytes = self.link.take_output();
        self.channel.write_all(&bytes).await.unwrap();
        let mut buffer = vec![0; 256 * 1024];
        let read = tokio::time::timeout(Duration::from_secs(1), self.channel.read(&mut buffer)).await;
        let Ok(length) = read else { return };
        let mut came = vec![];
        self.link.receive(&buffer[..length.unwrap()], &mut came).unwrap();
        for one in came {
            self.take(one);
        }
    }

    fn take(&mut self, came: FromGuest) {
        match came {
            FromGuest::Message(ToHost::Snapshot(snapshot)) => self.snapshot = Some(*snapshot),
            FromGuest::Message(ToHost::Reply { id, reply }) => drop(self.replies.insert(id, reply)),
            FromGuest::Message(ToHost::Event(event)) => self.events.push(event),
            FromGuest::Output { stream, channel, bytes } => {
                let (kept, count) = self.outputs.entry((stream, channel)).or_default();
                *count += bytes.len();
                if kept.len() < KEPT {
                    kept.extend_from_slice(&bytes);
                }
                self.link.consumed(stream, channel, bytes.len());
            }
            FromGuest::Hello(_) | FromGuest::Closed { .. } | FromGuest::StdinRoom { .. } => {}
        }
    }

    pub(crate) fn output(&self, stream: u32, channel: Channel) -> String {
        let kept = self.outputs.get(&(stream, channel)).map(|(kept, _)| kept.as_slice());
        String::from_utf8_lossy(kept.unwrap_or_default()).into_owned()
    }

    /// Bytes of standard output so far.
    pub(crate) fn counted(&self, stream: u32) -> usize {
        self.outputs.get(&(stream, Channel::Stdout)).map_or(0, |(_, count)| *count)
    }

    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}
