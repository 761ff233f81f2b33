//! Real machines: the distribution's kernel with the smallest agent, in software emulation.
//!
//! The kernel's package comes from `cargo xtask setup`. The agent is compiled here (`guest/init.c`).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use cumulet_vmm::{
    Accelerator, Boot, ConsoleSpec, Disk, DiskFormat, DiskImage, Failure, Isolation, Kernel, Machine,
    MachineSpec, Memory, Nic, OnReboot, Qemu, State, initramfs, kvm, rootfs, scratch, sealed_memory,
    virtiofs::Virtiofsd,
};
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// A boot takes three seconds; a machine with other work on it may need ten times that.
const PATIENCE: Duration = Duration::from_secs(60);
const USER: u32 = 64_123;
const MEMORY: u64 = 128 << 20;

/// What all tests share: made once.
struct Parts {
    _dir: tempfile::TempDir,
    qemu: Qemu,
    kernel: Kernel,
    initramfs: PathBuf,
}

/// The machine's QEMU, or another one to be tried.
fn qemu() -> Qemu {
    std::env::var_os("CUMULET_TEST_QEMU")
        .map_or_else(Qemu::find, |program| Qemu::at(Path::new(&program)))
        .unwrap()
}

fn parts() -> &'static Parts {
    static PARTS: OnceLock<Parts> = OnceLock::new();
    PARTS.get_or_init(|| {
        let cache = std::env::var_os("CUMULET_CACHE").map_or_else(
            || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/cumulet-build"),
            PathBuf::from,
        );
        let package = cache.join("guest-kernel");
        assert!(package.is_dir(), "{} is missing: run `cargo xtask setup`", package.display());
        let dir = tempfile::tempdir().unwrap();
        let kernel = Kernel::install(&package, &dir.path().join("kernel")).unwrap();
        kernel.verify().unwrap();
        assert_eq!(kernel.slow_because(), None);
        let agent = dir.path().join("agent");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/init.c");
        let gcc =
            Command::new("gcc").args(["-static", "-O2", "-o"]).arg(&agent).arg(source).status().unwrap();
        assert!(gcc.success());
        let initramfs = initramfs::build(&kernel, &agent, dir.path()).unwrap();
        assert_eq!(initramfs, initramfs::build(&kernel, &agent, dir.path()).unwrap());
        Parts { qemu: qemu(), kernel, initramfs, _dir: dir }
    })
}

/// Whether QEMU can be given a user of its own.
fn isolation() -> Isolation {
    let user = nix::unistd::geteuid().is_root().then_some((USER, USER));
    Isolation { user, ..Isolation::default() }
}

/// The host's end of the channel.
struct Channel(BufReader<UnixStream>);

impl Channel {
    async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.0.read_line(&mut line);
        tokio::time::timeout(PATIENCE, read).await.expect("the guest says nothing").unwrap();
        line.trim().to_owned()
    }

    async fn ask(&mut self, command: &str) -> String {
        self.0.get_mut().write_all(format!("{command}\n").as_bytes()).await.unwrap();
        self.line().await
    }
}

fn order(dir: &Path) -> (MachineSpec, Channel) {
    let (ours, theirs) = StdUnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let parts = parts();
    let boot = Boot::Kernel {
        image: File::open(parts.kernel.image()).unwrap(),
        initramfs: File::open(&parts.initramfs).unwrap(),
        parameters: Vec::new(),
    };
    let spec = MachineSpec {
        name: "test".to_owned(),
        accelerator: Accelerator::Tcg,
        cpu_model: None,
        vcpus: 1,
        memory_bytes: MEMORY,
        memory: Memory::Own,
        boot,
        channel: Some(theirs.into()),
        console: ConsoleSpec {
            log: dir.join("console.log"),
            log_limit_bytes: 1 << 20,
            socket: Some(dir.join("console.sock")),
            output: None,
        },
        disks: Vec::new(),
        nics: Vec::new(),
        page_reporting: true,
        directories: Vec::new(),
        on_reboot: OnReboot::Fail,
        translation_cache_bytes: None,
        isolation: isolation(),
    };
    (spec, Channel(BufReader::new(UnixStream::from_std(ours).unwrap())))
}

/// A tap that goes with its descriptor.
fn tap() -> OwnedFd {
    let device = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // linux/if_tun.h: TUNSETIFF, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR. The name is the kernel's choice.
    let mut request = [0u8; 40];
    request[16..18].copy_from_slice(&0x5002u16.to_ne_bytes());
    // SAFETY: the request is as large as struct ifreq. JUSTIFICATION: taps are only made by ioctl.
    let made = unsafe { libc::ioctl(device.as_raw_fd(), 0x4004_54ca, request.as_mut_ptr()) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    device.into()
}

async fn until(machine: &Machine, fits: impl Fn(&State) -> bool) -> State {
    let mut watch = machine.watch();
    let state = tokio::time::timeout(PATIENCE, watch.wait_for(|s| fits(s))).await.expect("no such state");
    state.unwrap().clone()
}

fn console(dir: &Path) -> String {
    String::from_utf8_lossy(&fs::read(dir.join("console.log")).unwrap_or_default()).into_owned()
}

#[tokio::test]
async fn a_life() {
    let dir = tempfile::tempdir().unwrap();
    let layer = dir.path().join("layer");
    fs::create_dir(&layer).unwrap();
    fs::write(layer.join("greeting"), "hello from the image").unwrap();
    let digest = format!("sha256:{}", "ab".repeat(32));
    let image = rootfs::build(&dir.path().join("images"), &digest, &[layer]).unwrap();
    let (mut spec, mut channel) = order(dir.path());
    let disk = |file, serial: &str, read_only| Disk {
        file,
        serial: serial.to_owned(),
        read_only,
        volatile: !read_only,
        format: DiskFormat::Raw,
    };
    spec.disks = vec![
        disk(File::open(image).unwrap(), &rootfs::serial(&digest), true),
        disk(scratch::create(&dir.path().join("scratch"), 64 << 20).unwrap(), scratch::SERIAL, false),
    ];
    // Devices that only root can make.
    let mut served = None;
    if nix::unistd::geteuid().is_root() {
        let shared = dir.path().join("shared");
        fs::create_dir(&shared).unwrap();
        fs::write(shared.join("greeting"), "hello from the host").unwrap();
        let daemon = Virtiofsd::find().unwrap().serve(&shared, "shared", false, dir.path()).unwrap();
        spec.directories.push(daemon.directory);
        served = Some((daemon.process, shared.join("answer")));
        spec.nics.push(Nic { tap: tap(), mac: [2, 0, 0, 0, 0, 7], mtu: 1400 });
        spec.isolation.prepare =
            Some(Box::new(|| Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?)));
    }
    let begin = Instant::now();
    let machine = Machine::spawn(&parts().qemu, spec).await.unwrap();
    assert_eq!(machine.state(), State::Created);
    let spawned = begin.elapsed();
    machine.start().await.unwrap();
    let hello = channel.line().await;
    assert!(hello.starts_with("hello"), "{hello}");
    println!("QMP after {spawned:?}, channel after {:?}: {hello}", begin.elapsed());
    machine.guest_ready();
    until(&machine, |s| *s == State::Running).await;

    // The guest's clock runs as the host's does, however busy that is.
    let (start, guest_start): (_, f64) = (Instant::now(), channel.ask("t").await.parse().unwrap());
    let early = begin.elapsed().as_secs_f64();
    assert!(guest_start < early + 0.5, "the guest counts {guest_start} s in {early} s");

    // Disks are found by their serial numbers.
    assert_eq!(channel.ask(&format!("e {}", rootfs::serial(&digest))).await, "hello from the image");
    assert_eq!(channel.ask(&format!("s {}", scratch::SERIAL)).await, "written");
    let stats = machine.stats().await.unwrap();
    assert_eq!(stats.memory_bytes, Some(MEMORY));
    assert!(stats.disks.iter().any(|(s, c)| s == scratch::SERIAL && c.wr_bytes > 0), "{stats:?}");
    let usage = machine.process_usage().unwrap();
    println!(
        "{usage:?}; neither guest nor translated code: {} MB",
        (usage.pss_bytes - usage.pss_shared_memory_bytes - usage.pss_translated_bytes) >> 20
    );
    assert!(usage.cpu_ns > 0 && usage.pss_shared_memory_bytes > 0);

    // Who it is on the host.
    let status = fs::read_to_string(format!("/proc/{}/status", machine.pid())).unwrap();
    if nix::unistd::geteuid().is_root() {
        assert!(status.contains(&format!("Uid:\t{USER}\t{USER}\t{USER}\t{USER}\n")), "{status}");
        assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    }
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");

    if let Some((mut process, answer)) = served {
        assert_eq!(channel.ask("m").await, "02:00:00:00:00:07");
        assert_eq!(channel.ask("v shared").await, "hello from the host");
        assert_eq!(fs::read_to_string(answer).unwrap(), "answer");
        assert!(process.try_wait().unwrap().is_none());
        let namespace = |pid: String| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        assert_ne!(namespace(machine.pid().to_string()), namespace("self".to_owned()));
    }

    // A paused guest does nothing, and does not notice.
    machine.pause().await.unwrap();
    let paused = Instant::now();
    assert_eq!(machine.state(), State::Paused { booted: true });
    channel.0.get_mut().write_all(b"t\n").await.unwrap();
    let silent = tokio::time::timeout(Duration::from_millis(500), channel.0.fill_buf()).await;
    assert!(silent.is_err(), "a paused guest answers");
    let paused = paused.elapsed();
    machine.resume().await.unwrap();
    let guest_now: f64 = channel.line().await.parse().unwrap();
    let (host, guest) = ((start.elapsed() - paused).as_secs_f64(), guest_now - guest_start);
    println!("the guest counts {guest} s in {host} s");
    assert!((guest - host).abs() < 0.25 + host * 0.01, "the guest counts {guest} s in {host} s");

    // People at the console.
    let mut person = UnixStream::connect(dir.path().join("console.sock")).await.unwrap();
    person.write_all(b"x").await.unwrap();
    let mut echo = [0; 1];
    tokio::time::timeout(PATIENCE, person.read_exact(&mut echo)).await.expect("no echo").unwrap();
    assert_eq!(&echo, b"x");
    assert!(console(dir.path()).contains("agent: console works"));

    channel.0.get_mut().write_all(b"q\n").await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, machine.ended()).await.unwrap(), State::Gone);
    assert!(machine.start().await.is_err());
    assert!(!Path::new(&format!("/proc/{}", machine.pid())).exists());
}

#[tokio::test]
async fn memory_that_a_guest_frees_returns_to_the_host() {
    const USED: u64 = 128 << 20;
    let dir = tempfile::tempdir().unwrap();
    let (mut spec, mut channel) = order(dir.path());
    // Linux reports free pages only while more than 64 MB of them are left (32 blocks of 2 MB, mm/page_reporting.c).
    spec.memory_bytes = 2 * MEMORY;
    let machine = Machine::spawn(&parts().qemu, spec).await.unwrap();
    machine.start().await.unwrap();
    channel.line().await;
    let on_the_host = || machine.process_usage().unwrap().pss_shared_memory_bytes;
    let before = on_the_host();
    assert_eq!(channel.ask(&format!("a {USED}")).await, "used");
    let peak = on_the_host();
    // A part of it the guest had touched before.
    assert!(peak > before + USED / 2, "{before} {peak}");
    assert_eq!(channel.ask("f").await, "freed");
    // The guest's kernel looks for free pages every two seconds.
    let returned = async {
        while on_the_host() > peak - USED / 4 * 3 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, returned).await.is_ok();
    println!("guest memory on the host: {} → {} → {} MB", before >> 20, peak >> 20, on_the_host() >> 20);
    assert!(in_time, "the guest's free memory stays on the host");
    machine.kill().await;
}

#[tokio::test]
async fn a_panic_is_a_failure_with_its_message_on_the_console() {
    let dir = tempfile::tempdir().unwrap();
    let (spec, mut channel) = order(dir.path());
    let machine = Machine::spawn(&parts().qemu, spec).await.unwrap();
    machine.start().await.unwrap();
    channel.line().await;
    machine.guest_ready();
    channel.0.get_mut().write_all(b"p\n").await.unwrap();
    let state = tokio::time::timeout(PATIENCE, machine.ended()).await.unwrap();
    assert_eq!(state, State::Failed(Failure::GuestPanicked));
    assert!(console(dir.path()).contains("Attempted to kill init"), "{}", console(dir.path()));
}

#[tokio::test]
async fn the_process_ends_when_it_is_killed_when_it_is_dropped_and_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let spawn = async || Machine::spawn(&parts().qemu, order(dir.path()).0).await.unwrap();

    let killed = spawn().await;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(killed.pid()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let state = tokio::time::timeout(PATIENCE, killed.ended()).await.unwrap();
    assert_eq!(state, State::Failed(Failure::ProcessEnded { code: None, signal: Some(9) }));

    let dropped = spawn().await;
    let mut watch = dropped.watch();
    drop(dropped);
    let gone = async { while watch.changed().await.is_ok() {} };
    tokio::time::timeout(PATIENCE, gone).await.expect("still there");

    let asked = spawn().await;
    assert_eq!(tokio::time::timeout(PATIENCE, asked.kill()).await.unwrap(), State::Gone);
    assert_eq!(asked.kill().await, State::Gone);
}

#[tokio::test]
async fn what_qemu_refuses_is_in_the_error() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spec, _channel) = order(dir.path());
    spec.cpu_model = Some("NoSuchModel".to_owned());
    let error = Machine::spawn(&parts().qemu, spec).await.err().unwrap().to_string();
    assert!(error.contains("NoSuchModel"), "{error}");
}

/// One template, two clones at once: each goes on where the template was, with memory of its own.
#[tokio::test]
async fn clones_go_on_where_their_template_was() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spec, mut channel) = order(dir.path());
    spec.page_reporting = false;
    let (state_path, memory_path) = (dir.path().join("state"), dir.path().join("memory"));
    let file = File::options().read(true).write(true).create_new(true).open(&memory_path).unwrap();
    give(&memory_path);
    spec.memory = Memory::Shared(file);
    let template = Machine::spawn(&parts().qemu, spec).await.unwrap();
    template.start().await.unwrap();
    channel.line().await;
    template.guest_ready();
    assert_eq!(channel.ask("x").await, "x");
    let before: f64 = channel.ask("t").await.parse().unwrap();
    assert!(
        template.save(File::create(&state_path).unwrap()).await.is_err(),
        "a running machine is not saved"
    );
    let begin = Instant::now();
    template.pause().await.unwrap();
    template.save(File::create(&state_path).unwrap()).await.unwrap();
    let saved = begin.elapsed();
    let copied_path = dir.path().join("memory-copy");
    let copy = template.copy_memory(&File::create(&copied_path).unwrap()).unwrap();
    println!(
        "devices' state: {} bytes in {saved:?}; {copy:?} after {:?}",
        fs::metadata(&state_path).unwrap().len(),
        begin.elapsed()
    );
    let before_clones = sha256(&memory_path);
    assert_eq!(before_clones, sha256(&copied_path));
    // From the file, and from memory that nobody can change.
    let (sealed, _) = sealed_memory(&File::open(&copied_path).unwrap()).unwrap();
    let file = File::open(&memory_path).unwrap();
    let (one, two) = tokio::join!(clone(dir.path(), "x-one", file), clone(dir.path(), "x-two", sealed));
    for (machine, mut channel) in [one, two] {
        let after: f64 = channel.ask("t").await.parse().unwrap();
        assert!(after >= before && after < before + 20.0, "{before} {after}");
        println!("clone: {:?}", machine.process_usage().unwrap());
        machine.kill().await;
    }
    assert_eq!(before_clones, sha256(&memory_path), "clones have written into their template");
    // A saved machine goes on when it is let.
    template.resume().await.unwrap();
    assert_eq!(channel.ask("x again").await, "x again");
    template.kill().await;
}

/// QEMU's user opens it again.
fn give(path: &Path) {
    if let Some((user, group)) = isolation().user {
        std::os::unix::fs::chown(path, Some(user), Some(group)).unwrap();
    }
}

fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg("-b").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

async fn clone(dir: &Path, name: &str, memory: File) -> (Machine, Channel) {
    let own = dir.join(name);
    fs::create_dir(&own).unwrap();
    let (mut spec, mut channel) = order(&own);
    spec.page_reporting = false;
    spec.boot = Boot::Incoming;
    spec.memory = Memory::CopyOnWrite(memory);
    let begin = Instant::now();
    let machine = Machine::spawn(&parts().qemu, spec).await.unwrap();
    let spawned = begin.elapsed();
    machine.load(File::open(dir.join("state")).unwrap()).await.unwrap();
    let loaded = begin.elapsed();
    machine.start().await.unwrap();
    assert_eq!(channel.ask(name).await, name);
    println!("clone {name}: QMP {spawned:?}, loaded {loaded:?}, first answer {:?}", begin.elapsed());
    machine.guest_ready();
    (machine, channel)
}

/// A state that does not fit is refused with QEMU's reason, and nothing runs.
#[tokio::test]
async fn a_broken_state_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("state"), b"no state of any machine, but long enough to be read").unwrap();
    let memory = File::create(dir.path().join("memory")).unwrap();
    memory.set_len(MEMORY).unwrap();
    give(&dir.path().join("memory"));
    let (mut spec, _channel) = order(dir.path());
    spec.page_reporting = false;
    spec.boot = Boot::Incoming;
    spec.memory = Memory::CopyOnWrite(File::open(dir.path().join("memory")).unwrap());
    let machine = Machine::spawn(&parts().qemu, spec).await.unwrap();
    let error = machine.load(File::open(dir.path().join("state")).unwrap()).await.unwrap_err().to_string();
    println!("{error}");
    assert!(error.contains("migrate-incoming"), "{error}");
}

/// Whatever this machine's KVM is worth, the verdict is reached in time, kept, and true.
#[tokio::test]
async fn kvm_is_judged_by_a_guest() {
    let dir = tempfile::tempdir().unwrap();
    let parts = parts();
    let probe = kvm::Probe {
        qemu: &parts.qemu,
        kernel: &parts.kernel,
        initramfs: &parts.initramfs,
        dir: dir.path(),
        user: isolation().user,
        greeting: b"",
        limit: Duration::from_secs(5),
    };
    let verdict = probe.run().await.unwrap();
    println!("{verdict:?}");
    let begin = Instant::now();
    assert_eq!(probe.run().await.unwrap(), verdict);
    assert!(begin.elapsed() < Duration::from_millis(500), "the verdict was not kept");
    if verdict.usable {
        let (mut spec, mut channel) = order(dir.path());
        spec.accelerator = Accelerator::Kvm;
        let machine = Machine::spawn(&parts.qemu, spec).await.unwrap();
        machine.start().await.unwrap();
        assert!(channel.line().await.starts_with("hello"));
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with(".partial")), "{left:?}");
}

/// A disk with its own boot code, as the difference to another one: the code writes to the serial line and halts.
#[tokio::test]
async fn a_disk_image_starts_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    // mov dx, 3f8h; for each letter: mov al, letter; out dx, al; then cli; hlt.
    let mut sector = vec![0xba, 0xf8, 0x03];
    sector.extend(b"started".iter().flat_map(|letter| [0xb0, *letter, 0xee]));
    sector.extend([0xfa, 0xf4]);
    sector.resize(1 << 20, 0);
    sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    let base = dir.path().join("base.raw");
    fs::write(&base, sector).unwrap();
    let (mut spec, _channel) = order(dir.path());
    spec.boot = Boot::Firmware;
    spec.on_reboot = OnReboot::Reset;
    let image = DiskImage::open(&base).unwrap();
    spec.disks = vec![image.overlay(&dir.path().join("top.qcow2"), 64 << 20, "root").unwrap()];
    let machine = Machine::spawn(&parts().qemu, spec).await.unwrap();
    let mut person = UnixStream::connect(dir.path().join("console.sock")).await.unwrap();
    machine.start().await.unwrap();
    let mut seen = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&seen).contains("started") {
            assert_ne!(person.read_buf(&mut seen).await.unwrap(), 0);
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("it does not start");
    machine.kill().await;
}

/// An image that names a file of the host as what it is a difference to does not get it opened.
#[tokio::test]
async fn what_an_image_names_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let (secret, top) = (dir.path().join("secret"), dir.path().join("top.qcow2"));
    fs::write(&secret, vec![1; 1 << 20]).unwrap();
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .args([&secret, &top])
        .status()
        .unwrap();
    assert!(made.success());
    let (mut spec, _channel) = order(dir.path());
    spec.isolation.user = None;
    spec.disks = vec![Disk {
        file: File::options().read(true).write(true).open(&top).unwrap(),
        serial: "hostile".to_owned(),
        read_only: false,
        volatile: false,
        format: DiskFormat::Qcow2 { backing: None },
    }];
    let machine = Machine::spawn(&parts().qemu, spec).await.unwrap();
    let open: Vec<PathBuf> = fs::read_dir(format!("/proc/{}/fd", machine.pid()))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .collect();
    assert!(open.contains(&top) && !open.contains(&secret), "{open:?}");
    machine.kill().await;
}

/// The thread that started it is the machine's life line, even when nothing of it is dropped.
#[test]
fn a_machine_ends_with_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let owner = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let machine =
            runtime.block_on(async { Machine::spawn(&parts().qemu, order(&path).0).await.unwrap() });
        let pid = machine.pid();
        // SAFETY: a plain system call on a process that is not reaped yet. JUSTIFICATION: no safe wrapper.
        let watched = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        std::mem::forget((machine, runtime));
        watched
    });
    let watched = i32::try_from(owner.join().unwrap()).unwrap();
    assert!(watched >= 0);
    let mut ended = libc::pollfd { fd: watched, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid entry. JUSTIFICATION: a pidfd can only be polled.
    let ready = unsafe { libc::poll(&raw mut ended, 1, 30_000) };
    assert_eq!(ready, 1, "QEMU lives on without its owner");
}
