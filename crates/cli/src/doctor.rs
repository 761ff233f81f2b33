//! `doctor`: what this machine can and cannot do, and the command that fixes it.
//!
//! Every check looks at the machine itself and changes nothing. A failed check of something that is needed gives exit
//! code 4; a check of something that only some pods want is a note.

use crate::args::Format;
use crate::{StateDir, exit, table};
use cumulet_vmm::{Qemu, kvm};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// As it should be.
    Ok,
    /// Not there, and only some features want it.
    Note,
    /// Not there, and the cloud needs it.
    Missing,
}

struct Check {
    what: &'static str,
    verdict: Verdict,
    found: String,
    remedy: String,
}

/// Prints every check. Exit code 4 when something needed is missing.
pub(crate) fn run(state: &StateDir, format: Format) -> anyhow::Result<u8> {
    let checks = [
        root(),
        cgroups(),
        namespaces(),
        overlay(),
        nftables(),
        library("libnftables.so.1", "libnftables1"),
        library("libseccomp.so.2", "libseccomp2"),
        machines(),
        kvm(),
        resource_capability(),
        disk(state),
        kubectl(),
    ];
    let word = |verdict| match verdict {
        Verdict::Ok => "ok",
        Verdict::Note => "note",
        Verdict::Missing => "missing",
    };
    let unfit = checks.iter().any(|check| check.verdict == Verdict::Missing);
    match format {
        Format::Json | Format::Yaml => {
            let list: Vec<Value> = checks
                .iter()
                .map(|c| json!({"check": c.what, "verdict": word(c.verdict), "found": c.found, "remedy": c.remedy}))
                .collect();
            let report = json!({"fit": !unfit, "checks": list});
            if format == Format::Json {
                println!("{}", serde_json::to_string_pretty(&report)?);
            } else {
                print!("{}", serde_saphyr::to_string(&report)?);
            }
        }
        Format::Table | Format::Wide | Format::Name => {
            let row = |c: &Check| {
                vec![word(c.verdict).to_owned(), c.what.to_owned(), c.found.clone(), c.remedy.clone()]
            };
            table::print(&["", "CHECK", "FOUND", "REMEDY"], &checks.iter().map(row).collect::<Vec<_>>());
        }
    }
    Ok(if unfit { exit::UNFIT } else { exit::OK })
}

fn ok(what: &'static str, found: impl Into<String>) -> Check {
    Check { what, verdict: Verdict::Ok, found: found.into(), remedy: String::new() }
}

fn not(what: &'static str, verdict: Verdict, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { what, verdict, found: found.into(), remedy: remedy.into() }
}

fn root() -> Check {
    if nix::unistd::geteuid().is_root() {
        return ok("root", "yes");
    }
    not("root", Verdict::Missing, "no", "run with sudo: namespaces, mounts and networks need it")
}

fn cgroups() -> Check {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
        let lacking: Vec<&str> = ["cpu", "memory", "pids"]
            .into_iter()
            .filter(|c| !controllers.split_whitespace().any(|w| w == *c))
            .collect();
        if lacking.is_empty() {
            return ok("cgroups", "version 2");
        }
        let found = format!("version 2 without {}", lacking.join(", "));
        return not("cgroups", Verdict::Note, found, "limits of these kinds are not enforced");
    }
    if Path::new("/sys/fs/cgroup/memory").is_dir() && Path::new("/sys/fs/cgroup/cpu").exists() {
        let hybrid = Path::new("/sys/fs/cgroup/unified").is_dir();
        return ok("cgroups", if hybrid { "version 1 (hybrid)" } else { "version 1" });
    }
    not("cgroups", Verdict::Missing, "none mounted", "mount -t cgroup2 cgroup2 /sys/fs/cgroup")
}

fn namespaces() -> Check {
    let lacking: Vec<&str> = ["net", "mnt", "pid", "ipc", "uts"]
        .into_iter()
        .filter(|n| !Path::new("/proc/self/ns").join(n).exists())
        .collect();
    if lacking.is_empty() {
        return ok("namespaces", "net mnt pid ipc uts");
    }
    not("namespaces", Verdict::Missing, format!("no {}", lacking.join(", ")), "use a kernel that has them")
}

fn overlay() -> Check {
    let systems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if systems.lines().any(|line| line.trim() == "nodev\toverlay" || line.ends_with("overlay")) {
        return ok("overlayfs", "yes");
    }
    not("overlayfs", Verdict::Missing, "not loaded", "modprobe overlay")
}

fn nftables() -> Check {
    // The kernel shows the hooks' owners here as soon as netfilter's nft part is there; a module loads on first use.
    let known = Path::new("/proc/net/netfilter").is_dir() || Path::new("/proc/sys/net/netfilter").is_dir();
    if known {
        return ok("netfilter", "yes");
    }
    not("netfilter", Verdict::Missing, "no", "modprobe nf_tables")
}

/// A shared library that is loaded when it is needed. Looked for where the dynamic linker looks.
fn library(name: &'static str, package: &str) -> Check {
    let cache = fs::read("/etc/ld.so.cache").unwrap_or_default();
    if cache.windows(name.len()).any(|window| window == name.as_bytes()) {
        return ok(name, "yes");
    }
    not(name, Verdict::Missing, "not found", format!("apt-get install {package}"))
}

/// What pods need that are virtual machines.
fn machines() -> Check {
    let qemu = match Qemu::find() {
        Ok(qemu) => qemu,
        Err(error) => {
            let remedy = "apt-get install qemu-system-x86 qemu-utils erofs-utils";
            return not("virtual machines", Verdict::Note, error.to_string(), remedy);
        }
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<_> = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
    // Root filesystems of images, and the copies that machines with a disk of their own write.
    for (program, package) in [("mkfs.erofs", "erofs-utils"), ("qemu-img", "qemu-utils")] {
        if !dirs.iter().any(|dir| dir.join(program).is_file()) {
            let remedy = format!("apt-get install {package}");
            return not("virtual machines", Verdict::Note, format!("no {program}"), remedy);
        }
    }
    let exe = std::env::current_exe().unwrap_or_default();
    let beside = exe.parent().unwrap_or(Path::new("/"));
    let there = |variable: &str, name: &str| {
        std::env::var_os(variable).map_or_else(|| beside.join(name), Into::into).exists()
    };
    match (there("CUMULET_GUEST", "vm/cumulet-guest"), there("CUMULET_KERNEL", "vm/kernel")) {
        (true, true) => ok("virtual machines", format!("QEMU {}, agent and kernel", qemu.version)),
        (agent, _) => {
            let found = if agent { "no kernel" } else { "no agent" };
            let remedy =
                format!("cargo xtask guest puts agent and kernel into {}", beside.join("vm").display());
            not("virtual machines", Verdict::Note, found, remedy)
        }
    }
}

fn kvm() -> Check {
    const EMULATION: &str = "VM pods use software emulation";
    if let Some(known) = kvm::last_verdict(Path::new(kvm::VERDICTS)) {
        let reason = known.reason.lines().next().unwrap_or_default();
        return match known.usable {
            true => ok("kvm", "a guest ran on it"),
            false => not("kvm", Verdict::Note, reason, EMULATION),
        };
    }
    match fs::OpenOptions::new().read(true).write(true).open(kvm::DEVICE) {
        // Opening proves little: some machines have a /dev/kvm in which no guest gets anywhere.
        Ok(_) => {
            not("kvm", Verdict::Note, "/dev/kvm opens", "the first VM pod tries whether a guest runs on it")
        }
        Err(error) => not("kvm", Verdict::Note, error.to_string(), EMULATION),
    }
}

fn resource_capability() -> Check {
    const CAP_SYS_RESOURCE: u64 = 24;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or_default();
    if bits >> CAP_SYS_RESOURCE & 1 == 1 {
        return ok("CAP_SYS_RESOURCE", "yes");
    }
    not("CAP_SYS_RESOURCE", Verdict::Note, "no", "oom_score_adj is not lowered for Guaranteed pods")
}

fn disk(state: &StateDir) -> Check {
    let existing = state.path().ancestors().find(|dir| dir.is_dir()).unwrap_or_else(|| Path::new("/"));
    match nix::sys::statvfs::statvfs(existing) {
        Ok(stat) => {
            let free = stat.blocks_available() * stat.fragment_size();
            let found = format!("{} free at {}", table::bytes(free), existing.display());
            if free < 1_000_000_000 {
                return not("disk", Verdict::Note, found, "make room, or choose another --state-dir");
            }
            ok("disk", found)
        }
        Err(error) => not("disk", Verdict::Note, error.to_string(), "choose another --state-dir"),
    }
}

fn kubectl() -> Check {
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path).map(|dir| dir.join("kubectl")).find(|file| file.is_file()) {
        Some(file) => ok("kubectl", file.display().to_string()),
        None => not(
            "kubectl",
            Verdict::Note,
            "not on PATH",
            "apt-get install kubernetes-client, or use `cumulet get` …",
        ),
    }
}
