//! The bare floor: the same QEMU with the same machine and the same kernel, started by hand, whose first process is a
//! static program that answers over HTTP and does nothing else ([`init.c`](init.c)).
//!
//! Its options are those of a machine that the cloud has just started, read from its command line, so that the floor
//! follows when the cloud's machines change. Left out is what only a pod has: the agent, its channel, disks, the balloon,
//! namespaces, another user. It loads three modules for the network; a pod's machine loads twenty.

use super::host;
use anyhow::{Context, bail};
use cumulet_e2e::succeed;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The tap, and the two addresses on it, of the range for benchmarks (RFC 2544).
const TAP: &str = "cumperf0";
const HERE: &str = "198.18.77.1";
pub(crate) const THERE: &str = "198.18.77.2";
const MAC: &str = "02:00:00:00:00:02";
/// What the network needs, in the order in which it loads.
const NET: &[&str] = &[
    "virtio_ring",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];
const SERIAL: &[&str] = &["virtio_console"];
/// What the init writes to the port when it is asked to, in bytes.
const FLOOD: usize = 128 << 20;
/// Options of the cloud's machine that the floor's has as well.
const SAME: &[&str] = &["-display", "-sandbox", "-accel", "-cpu", "-smp", "-m", "-rtc", "-bios"];
const LIMIT: Duration = Duration::from_secs(60);

/// What a machine that is started by hand has in common with one of the cloud's.
pub(crate) struct Like {
    /// As the cloud's machine has them.
    options: Vec<String>,
    /// Bytes of memory.
    pub(crate) memory: String,
    parameters: String,
    /// The directory of the cloud's kernel.
    pub(crate) kernel: PathBuf,
}

impl Like {
    /// Reads the command line of a cloud's machine; `machine` is the process of its QEMU.
    pub(crate) fn of(machine: i32, cloud: &Path) -> anyhow::Result<Self> {
        let words = host::command_line(machine)?;
        let value = |name: &str| words.iter().position(|w| w == name).and_then(|at| words.get(at + 1));
        let mut options: Vec<String> = SAME
            .iter()
            .filter_map(|name| Some([(*name).to_owned(), value(name)?.clone()]))
            .flatten()
            .collect();
        let board = value("-machine").context("a machine without -machine")?;
        let memory = value("-m").and_then(|m| m.strip_prefix("size=")).context("a machine without -m")?;
        options.extend(["-machine".to_owned(), board.clone()]);
        let parameters = format!("{} address={THERE}", value("-append").context("no kernel parameters")?);
        let memory = memory.trim_end_matches('B').to_owned();
        Ok(Self { options, memory, parameters, kernel: cloud.join("kernel/current") })
    }

    /// QEMU with these options, a kernel, and a network device on the tap; without memory and console. `unpacked` is what the
    /// cloud starts; without it the distribution's packed kernel and QEMU's own firmware.
    pub(crate) fn command(&self, unpacked: bool, initramfs: &Path) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        let firmware = self.options.iter().position(|o| o == "-bios").filter(|_| !unpacked);
        for (at, option) in self.options.iter().enumerate() {
            if firmware.is_none_or(|bios| at != bios && at != bios + 1) {
                command.arg(option);
            }
        }
        let kernel = self.kernel.join(if unpacked { "vmlinux" } else { "vmlinuz" });
        command.args(["-nodefaults", "-no-user-config", "-kernel"]).arg(kernel);
        command.arg("-initrd").arg(initramfs).args(["-append", &self.parameters]);
        command.args(["-device", "isa-serial,chardev=console"]);
        command.args(["-netdev", &format!("tap,id=net0,ifname={TAP},script=no,downscript=no")]);
        command
            .args(["-device", &format!("virtio-net-pci,netdev=net0,mac={MAC},romfile=,disable-legacy=on")]);
        command
    }
}

/// The host's side of the network of such a machine; removed when dropped.
pub(crate) struct Tap(());

impl Tap {
    pub(crate) fn new() -> anyhow::Result<Self> {
        ip(&["tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"])?;
        let tap = Self(());
        ip(&["addr", "add", &format!("{HERE}/30"), "dev", TAP])?;
        ip(&["link", "set", TAP, "up"])?;
        // Nobody has to ask for the guest's hardware address, which would take a second when the guest is not up.
        ip(&["neigh", "replace", THERE, "lladdr", MAC, "dev", TAP, "nud", "permanent"])?;
        Ok(tap)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // A tap that cannot be removed is seen by the check for what tests leave behind.
        let _ = ip(&["link", "del", TAP]);
    }
}

/// Everything that does not differ between runs. The tap goes with it.
pub(super) struct Floor {
    dir: tempfile::TempDir,
    like: Like,
    _tap: Tap,
}

impl Floor {
    /// Prepares machines like that of a process with the kernel of a cloud.
    pub(super) fn like(machine: i32, cloud: &Path) -> anyhow::Result<Self> {
        let like = Like::of(machine, cloud)?;
        let dir = tempfile::tempdir()?;
        let lists = [("net", NET), ("serial", SERIAL)];
        archive(&like.kernel, &build_init(dir.path())?, &lists, &[], &dir.path().join("initramfs"))?;
        Ok(Self { dir, like, _tap: Tap::new()? })
    }

    /// Boots one until it has answered; seconds from the start of QEMU. `unpacked` is what the cloud starts; without it the distribution's packed
    /// kernel and QEMU's own firmware, as a command line written by hand has them.
    pub(super) fn boot(&self, unpacked: bool) -> anyhow::Result<f64> {
        let (machine, begin) = self.start(unpacked, None)?;
        get("/")?;
        let took = begin.elapsed().as_secs_f64();
        drop(machine);
        Ok(took)
    }

    /// Bytes per second through a virtio-serial port into a socket, and no further.
    pub(super) fn serial(&self) -> anyhow::Result<f64> {
        let path = self.dir.path().join("port");
        let listener = UnixListener::bind(&path)?;
        let reader = std::thread::spawn(move || -> anyhow::Result<f64> {
            let (mut port, _) = listener.accept()?;
            let mut buffer = vec![0; 64 << 10];
            let (mut seen, mut begin) = (0, Instant::now());
            while seen < FLOOD {
                let length = port.read(&mut buffer)?;
                if length == 0 {
                    bail!("the port ended after {seen} bytes");
                }
                if seen == 0 {
                    begin = Instant::now();
                }
                seen += length;
            }
            #[expect(clippy::cast_precision_loss, reason = "a count of bytes far below 2^52")]
            Ok(seen as f64 / begin.elapsed().as_secs_f64())
        });
        let (machine, _) = self.start(true, Some(&path))?;
        get("/flood")?;
        let rate = reader.join().map_err(|_| anyhow::anyhow!("the reader of the port panicked"))?;
        drop(machine);
        rate
    }

    fn start(&self, unpacked: bool, port: Option<&Path>) -> anyhow::Result<(Running, Instant)> {
        let mut command = self.like.command(unpacked, &self.dir.path().join("initramfs"));
        let memory = format!("memory-backend-memfd,id=ram,size={},share=on", self.like.memory);
        command.args(["-object", &memory, "-chardev", "stdio,id=console"]);
        if let Some(port) = port {
            command.args(["-device", "virtio-serial-pci,id=serial,max_ports=2,disable-legacy=on"]);
            command.args(["-chardev", &format!("socket,id=channel,path={}", port.display())]);
            command.args(["-device", "virtserialport,bus=serial.0,chardev=channel,name=flood"]);
        }
        let begin = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run QEMU")?;
        let mut machine = Running(child);
        let mut console = machine.0.stdout.take().context("QEMU has no output")?;
        let mut said = Vec::new();
        let mut buffer = [0; 1024];
        // The console ends with the machine, and the machine with a panic: this waits for no clock.
        while !said.windows(9).any(|w| w == b"listening") {
            match console.read(&mut buffer)? {
                0 => bail!("the bare machine ended: {}", String::from_utf8_lossy(&said)),
                length => said.extend_from_slice(&buffer[..length]),
            }
        }
        Ok((machine, begin))
    }
}

/// A bare machine; killed when dropped.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ip(words: &[&str]) -> anyhow::Result<String> {
    succeed(Command::new("ip").args(words))
}

fn get(path: &str) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect((THERE, 8080)).context("the bare machine does not listen")?;
    stream.set_read_timeout(Some(LIMIT))?;
    // At once: the init reads a request once.
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if !answer.starts_with("HTTP/1.1 200") {
        bail!("the bare machine answered {answer:?}");
    }
    Ok(())
}

/// Compiles the init, static.
pub(crate) fn build_init(dir: &Path) -> anyhow::Result<Vec<u8>> {
    let (source, program) = (dir.join("init.c"), dir.join("init"));
    fs::write(&source, include_str!("init.c"))?;
    succeed(Command::new("gcc").args(["-static", "-O2", "-o"]).arg(&program).arg(&source))?;
    Ok(fs::read(program)?)
}

/// Writes the initramfs: the init, lists of modules with what they name, and other files.
pub(crate) fn archive(
    kernel: &Path,
    init: &[u8],
    lists: &[(&str, &[&str])],
    files: &[(&str, &[u8])],
    to: &Path,
) -> anyhow::Result<()> {
    let modules = kernel.join("modules");
    const DIRECTORY: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;
    const CONSOLE: u32 = 0o020_600;
    let mut out = Vec::new();
    entry(&mut out, "dev", DIRECTORY, 0, &[]);
    entry(&mut out, "dev/console", CONSOLE, (5 << 8) | 1, &[]);
    entry(&mut out, "modules", DIRECTORY, 0, &[]);
    for (list, names) in lists {
        let mut order = String::new();
        // A kernel may have some of them built in.
        for name in names.iter().filter(|name| modules.join(format!("{name}.ko")).is_file()) {
            let path = format!("modules/{name}.ko");
            entry(&mut out, &path, PROGRAM, 0, &fs::read(modules.join(format!("{name}.ko")))?);
            order.push_str(&format!("/{path}\n"));
        }
        entry(&mut out, &format!("modules/{list}"), PROGRAM, 0, order.as_bytes());
    }
    for (name, contents) in files {
        entry(&mut out, name, PROGRAM, 0, contents);
    }
    entry(&mut out, "init", PROGRAM, 0, init);
    entry(&mut out, "TRAILER!!!", 0, 0, &[]);
    Ok(fs::write(to, out)?)
}

/// One entry of a cpio archive (`newc`). `device` is major × 256 + minor.
fn entry(out: &mut Vec<u8>, name: &str, mode: u32, device: u32, contents: &[u8]) {
    let fields = [
        1,
        mode,
        0,
        0,
        1,
        0,
        contents.len() as u32,
        0,
        0,
        device >> 8,
        device & 0xff,
        name.len() as u32 + 1,
        0,
    ];
    out.extend_from_slice(b"070701");
    fields.iter().for_each(|field| out.extend_from_slice(format!("{field:08x}").as_bytes()));
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(contents);
    out.resize(out.len().next_multiple_of(4), 0);
}
