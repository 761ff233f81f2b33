//! Starting QEMU's process, and what it costs the host.
//!
//! The process ends with the thread that started it (`PDEATHSIG`), so a killed owner leaves no machine behind that
//! nobody watches. It has no privilege that its user lacks, and never gains one.

use super::args::CommandLine;
use super::spec::{Accelerator, Isolation};
use crate::error::system;
use crate::{Error, Qemu};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, getppid, setgid, setgroups, setuid};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use tokio::process::{Child, Command};

/// Starts QEMU. Its standard error is a pipe.
pub(super) fn start(
    qemu: &Qemu,
    line: &CommandLine,
    isolation: Isolation,
    accelerator: Accelerator,
) -> Result<Child, Error> {
    let mut command = Command::new(&qemu.program);
    command
        .args(&line.arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let descriptors: Vec<RawFd> = line.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let parent = nix::unistd::getpid();
    let mut isolation = isolation;
    // QEMU opens KVM's device itself, which belongs to a group.
    let groups: Vec<Gid> = match accelerator {
        Accelerator::Kvm => {
            std::fs::metadata(crate::kvm::DEVICE).map(|m| Gid::from_raw(m.gid())).into_iter().collect()
        }
        Accelerator::Tcg => Vec::new(),
    };
    // SAFETY: between fork and exec the closure only makes system calls on values that were prepared before; it
    // neither allocates nor takes locks. JUSTIFICATION: the only way to set a process up between fork and exec.
    unsafe {
        command.pre_exec(move || {
            if let Some(prepare) = &mut isolation.prepare {
                prepare()?;
            }
            become_user(&isolation, &groups)?;
            // After the change of user, which clears it.
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            if getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            nix::sys::prctl::set_no_new_privs()?;
            descriptors.iter().try_for_each(|fd| keep_open(*fd))
        });
    }
    command.spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::MissingProgram {
            program: qemu.program.display().to_string(),
            package: "qemu-system-x86",
            source,
        },
        _ => system::<io::Error>("start QEMU")(source),
    })
}

fn become_user(isolation: &Isolation, groups: &[Gid]) -> io::Result<()> {
    if let Some(limit) = isolation.max_open_files {
        setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?;
    }
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    if let Some((user, group)) = isolation.user {
        setgroups(groups)?;
        setgid(Gid::from_raw(group))?;
        setuid(Uid::from_raw(user))?;
    }
    Ok(())
}

/// Lets a descriptor live through exec.
pub(crate) fn keep_open(fd: RawFd) -> io::Result<()> {
    // SAFETY: the descriptor belongs to this process and only its flag changes. JUSTIFICATION: in the child there is
    // no owned or borrowed value of it, only the number that the command line names.
    match unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What QEMU's process uses on the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessUsage {
    /// Processor time in nanoseconds, emulation included.
    pub cpu_ns: u64,
    /// Resident memory in bytes, the guest's included.
    pub rss_bytes: u64,
    /// Resident memory with shared pages divided among those who share them.
    pub pss_bytes: u64,
    /// The part of `pss_bytes` that is anonymous: the emulator's own, and pages that a clone has changed.
    pub pss_anonymous_bytes: u64,
    /// The part that is files: programs, libraries, the kernel's file.
    pub pss_file_bytes: u64,
    /// The part that is shared memory: the guest's.
    pub pss_shared_memory_bytes: u64,
    /// The part that is the emulator's cache of translated code.
    pub pss_translated_bytes: u64,
}

impl ProcessUsage {
    /// Reads `/proc` for a process.
    pub(super) fn read(pid: u32) -> Result<Self, Error> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            std::fs::read_to_string(&path).map_err(crate::error::file("read", path))
        };
        let mut usage = Self { cpu_ns: cpu_ns(&read("stat")?).unwrap_or_default(), ..Self::default() };
        for line in read("smaps_rollup")?.lines() {
            let mut words = line.split_whitespace();
            let (Some(name), Some(kib)) = (words.next(), words.next().and_then(|n| n.parse::<u64>().ok()))
            else {
                continue;
            };
            let field = match name {
                "Rss:" => &mut usage.rss_bytes,
                "Pss:" => &mut usage.pss_bytes,
                "Pss_Anon:" => &mut usage.pss_anonymous_bytes,
                "Pss_File:" => &mut usage.pss_file_bytes,
                "Pss_Shmem:" => &mut usage.pss_shared_memory_bytes,
                _ => continue,
            };
            *field = kib << 10;
        }
        usage.pss_translated_bytes = translated_bytes(&read("smaps")?);
        Ok(usage)
    }
}

/// What a clone has of its own and what it shares with its template, as far as it has touched it. From counters of the
/// kernel, see proc_pid_status(5): reading them takes microseconds however large the guest is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResidentMemory {
    /// Anonymous memory: the emulator's own, and pages of the guest that the clone has changed.
    pub own_bytes: u64,
    /// Pages of the template.
    pub shared_bytes: u64,
}

impl ResidentMemory {
    /// Reads the counters of a QEMU process; `None` when it is gone.
    pub fn of(pid: u32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
    }

    fn parse(status: &str) -> Option<Self> {
        let field = |name: &str| {
            let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(rest.split_whitespace().next()?.parse::<u64>().ok()? << 10)
        };
        Some(Self { own_bytes: field("RssAnon:")?, shared_bytes: field("RssShmem:")? })
    }
}

/// The emulator's cache is the only anonymous memory that is both written and executed.
fn translated_bytes(smaps: &str) -> u64 {
    let mut inside = false;
    let mut total = 0;
    for line in smaps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["Pss:", kib, _] if inside => total += kib.parse::<u64>().unwrap_or_default() << 10,
            [_, mode, _, _, "0"] => inside = mode == "rwxp",
            [_, _, _, _, _, ..] if line.contains('-') => inside = false,
            _ => {}
        }
    }
    total
}

/// User and system time out of `/proc/PID/stat`. The program's name may contain anything, so the fields are counted
/// from the last parenthesis.
fn cpu_ns(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    // The kernel's user-visible tick is 1/100 s on every architecture that we run on.
    Some(ticks * 10_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (stat, expected) in [
            ("1 (qemu) S 1 1 1 0 -1 0 0 0 0 0 7 3 0 0 20", Some(100_000_000)),
            ("1 (a) b) S 1 1 1 0 -1 0 0 0 0 0 1 0 0 0 20", Some(10_000_000)),
            ("1 (x", None),
            ("1 (x) S 1", None),
        ] {
            assert_eq!(cpu_ns(stat), expected, "{stat}");
        }
    }

    #[test]
    fn translated_code() {
        let smaps = "7f00-7f10 rwxp 00000000 00:00 0 \nSize: 64 kB\nPss: 12 kB\nVmFlags: rd wr ex\n\
                     7f10-7f20 rw-p 00000000 00:00 0 \nPss: 5 kB\n\
                     7f20-7f30 rwxp 00000000 08:01 77 /lib/x\nPss: 7 kB\n\
                     7f30-7f40 rwxp 00000000 00:00 0\nPss: 1 kB\n";
        assert_eq!(translated_bytes(smaps), 13 << 10);
        assert_eq!(translated_bytes(""), 0);
    }

    #[test]
    fn resident_memory() {
        let status = "Name:\tqemu\nRssAnon:\t     12 kB\nRssFile:\t 5 kB\nRssShmem:\t  7 kB\n";
        let expected = ResidentMemory { own_bytes: 12 << 10, shared_bytes: 7 << 10 };
        assert_eq!(ResidentMemory::parse(status), Some(expected));
        assert_eq!(ResidentMemory::parse("Name:\tkthread\n"), None);
        assert!(ResidentMemory::of(std::process::id()).is_some_and(|memory| memory.own_bytes > 0));
    }

    #[test]
    fn our_own_usage_can_be_read() {
        let usage = ProcessUsage::read(std::process::id()).unwrap();
        assert!(usage.rss_bytes >= usage.pss_bytes && usage.pss_bytes > 0);
    }
}
