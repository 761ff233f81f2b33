//! Whether this machine's KVM can be used.
//!
//! `/dev/kvm` can exist, open and create machines, and still not get a kernel through its boot (nested virtualization
//! does that). Only running guest code tells: the probe boots the very kernel and agent that pods get, with a limit,
//! and takes the first byte on the agent's channel for the proof. That costs up to the limit on a machine where KVM is
//! useless, so the verdict is kept until the host, QEMU or the guest's kernel change.

use crate::error::{file, system};
use crate::files::Aside;
use crate::machine::spec::{
    Accelerator, Boot, ConsoleSpec, Isolation, MIN_MEMORY_BYTES, MachineSpec, Memory, OnReboot,
};
use crate::{Error, Kernel, Machine, Qemu};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;

/// The device.
pub const DEVICE: &str = "/dev/kvm";

/// Where verdicts are kept unless there is a reason for another place: a verdict is the machine's, and ends with the
/// machine's boot.
pub const VERDICTS: &str = "/run/cumulet";

/// With KVM that works the guest answers within a second.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(10);

const FILE: &str = "kvm.json";

/// The one version of the interface that there ever was (linux/kvm.h).
const API_VERSION: i32 = 12;

mod ioctl {
    // linux/kvm.h: KVM_GET_API_VERSION is _IO(0xAE, 0x00).
    nix::ioctl_none!(api_version, 0xAE, 0x00);
}

/// What the probe needs.
#[derive(Debug, Clone, Copy)]
pub struct Probe<'a> {
    /// The QEMU that will be used.
    pub qemu: &'a Qemu,
    /// The kernel that will be used.
    pub kernel: &'a Kernel,
    /// The initramfs with the agent.
    pub initramfs: &'a Path,
    /// Where the verdict is kept.
    pub dir: &'a Path,
    /// Who QEMU will be.
    pub user: Option<(u32, u32)>,
    /// What the agent must hear before it speaks.
    pub greeting: &'a [u8],
    /// How long the guest may take to its first word.
    pub limit: Duration,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether machines should use KVM.
    pub usable: bool,
    /// What was seen, for people.
    pub reason: String,
}

/// A verdict and what it was about.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    host_boot: String,
    qemu: crate::qmp::Version,
    kernel: String,
    verdict: Verdict,
}

/// The last verdict in `dir` since the host's boot, whatever QEMU and kernel it was about; for people who ask. `None` when
/// nobody has tried yet.
#[must_use]
pub fn last_verdict(dir: &Path) -> Option<Verdict> {
    Record::read(dir).filter(|record| record.host_boot == host_boot()).map(|record| record.verdict)
}

impl Record {
    fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join(FILE)).ok()?).ok()
    }
}

/// Changes with every boot of the host.
fn host_boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

impl Probe<'_> {
    /// The verdict, from an earlier probe since the host's boot or from a new one.
    ///
    /// # Errors
    /// The verdict cannot be kept, or QEMU cannot be started at all. That KVM does not work is no error.
    pub async fn run(&self) -> Result<Verdict, Error> {
        let path = self.dir.join(FILE);
        let host_boot = host_boot();
        if let Some(record) = Record::read(self.dir)
            && record.host_boot == host_boot
            && record.qemu == self.qemu.version
            && record.kernel == self.kernel.digest()
        {
            return Ok(record.verdict);
        }
        let verdict = match look() {
            Some(reason) => Verdict { usable: false, reason },
            None => self.boot().await?,
        };
        tracing::info!(usable = verdict.usable, reason = verdict.reason, "KVM was tried");
        let record = Record {
            host_boot,
            qemu: self.qemu.version,
            kernel: self.kernel.digest().to_owned(),
            verdict: verdict.clone(),
        };
        fs::create_dir_all(self.dir).map_err(file("make", self.dir))?;
        let aside = Aside::name(self.dir);
        let bytes = serde_json::to_vec(&record).map_err(|e| Error::Spec(e.to_string()))?;
        crate::files::write(aside.path(), &bytes)?;
        aside.publish(&path)?;
        Ok(verdict)
    }

    /// Boots the kernel with KVM and waits for the agent.
    async fn boot(&self) -> Result<Verdict, Error> {
        fs::create_dir_all(self.dir).map_err(file("make", self.dir))?;
        let work = Aside::dir(self.dir)?;
        let (ours, theirs) = StdUnixStream::pair().map_err(system("make a pair of sockets"))?;
        // An empty socket takes a greeting whole.
        (&ours).write_all(self.greeting).map_err(system("greet the guest's agent"))?;
        ours.set_nonblocking(true).map_err(system("make a socket non-blocking"))?;
        let ours = UnixStream::from_std(ours).map_err(system("register a socket"))?;
        let spec = self.order(work.path(), theirs.into())?;
        let begin = Instant::now();
        let machine = match Machine::spawn(self.qemu, spec).await {
            Ok(machine) => machine,
            Err(Error::Start(words)) => {
                return Ok(Verdict {
                    usable: false,
                    reason: format!("QEMU does not start with KVM: {words}"),
                });
            }
            Err(error) => return Err(error),
        };
        machine.start().await?;
        let mut byte = [0; 1];
        let spoke = async {
            loop {
                if ours.readable().await.is_err() {
                    return false;
                }
                match ours.try_read(&mut byte) {
                    Ok(n) => return n > 0,
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(_) => return false,
                }
            }
        };
        let outcome = tokio::time::timeout(self.limit, spoke).await;
        let reason = match outcome {
            Ok(true) => format!("a guest booted with it in {} ms", begin.elapsed().as_millis()),
            Ok(false) => {
                format!("a guest failed: {} {}", machine.state().name(), machine.last_words().trim())
            }
            Err(_) => format!("a guest did not get through its boot in {} ms", self.limit.as_millis()),
        };
        machine.kill().await;
        Ok(Verdict { usable: outcome == Ok(true), reason })
    }

    fn order(&self, work: &Path, channel: OwnedFd) -> Result<MachineSpec, Error> {
        let image = self.kernel.image();
        Ok(MachineSpec {
            name: "kvm-probe".to_owned(),
            accelerator: Accelerator::Kvm,
            cpu_model: None,
            vcpus: 1,
            memory_bytes: 2 * MIN_MEMORY_BYTES,
            memory: Memory::Own,
            boot: Boot::Kernel {
                image: File::open(&image).map_err(file("open", &image))?,
                initramfs: File::open(self.initramfs).map_err(file("open", self.initramfs))?,
                parameters: Vec::new(),
            },
            channel: Some(channel),
            console: ConsoleSpec {
                log: work.join("console.log"),
                log_limit_bytes: 1 << 16,
                socket: None,
                output: None,
            },
            disks: Vec::new(),
            nics: Vec::new(),
            page_reporting: false,
            directories: Vec::new(),
            on_reboot: OnReboot::Fail,
            translation_cache_bytes: None,
            isolation: Isolation { user: self.user, ..Isolation::default() },
        })
    }
}

/// Why KVM cannot be used, as far as it shows without a guest.
fn look() -> Option<String> {
    let device = match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(device) => device,
        Err(error) => return Some(format!("{DEVICE} cannot be opened: {error}")),
    };
    // SAFETY: the descriptor is open and the request has no argument. JUSTIFICATION: KVM is only reached by ioctl.
    match unsafe { ioctl::api_version(device.as_raw_fd()) } {
        Ok(API_VERSION) => None,
        Ok(other) => Some(format!("{DEVICE} has interface version {other}, want {API_VERSION}")),
        Err(error) => Some(format!("{DEVICE} does not answer: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_verdicts_since_the_boot_count() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(last_verdict(dir.path()), None);
        let verdict = Verdict { usable: true, reason: "it ran".to_owned() };
        for (host_boot, expected) in [(host_boot(), Some(verdict.clone())), ("before".to_owned(), None)] {
            let record =
                Record { host_boot, qemu: crate::OLDEST, kernel: "k".to_owned(), verdict: verdict.clone() };
            fs::write(dir.path().join(FILE), serde_json::to_vec(&record).unwrap()).unwrap();
            assert_eq!(last_verdict(dir.path()), expected);
        }
        fs::write(dir.path().join(FILE), "not JSON").unwrap();
        assert_eq!(last_verdict(dir.path()), None);
    }
}
