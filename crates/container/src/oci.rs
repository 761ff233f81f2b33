//! From a [`ContainerSpec`] to the OCI runtime specification that libcontainer reads (`config.json`).
//!
//! What is missing in the result on purpose: `seccomp`, `capabilities` and `oomScoreAdj`, which are applied by
//! [`crate::executor`] and by the caller, and `resources`, which [`crate::cgroup`] has set before.

use crate::cgroup::Cgroup;
use crate::spec::{Mount, MountSource, Propagation};
use crate::users::User;
use crate::{ContainerSpec, Error};
use serde_json::{Value, json};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// What programs find in `PATH` when neither image nor pod says.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Paths that tell or change things of the host; hidden.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Paths that can be read but not written.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Where the container's parts are.
pub(crate) struct Places<'a> {
    pub(crate) rootfs: &'a Path,
    pub(crate) cgroup: &'a Cgroup,
    /// Directory that is `/dev/shm`; a private one when `None`.
    pub(crate) shm: Option<&'a Path>,
    pub(crate) terminal: bool,
}

pub(crate) fn runtime_spec(spec: &ContainerSpec, user: &User, places: &Places<'_>) -> Result<Value, Error> {
    let privileged = spec.security.privileged;
    let mut linux = json!({
        "namespaces": namespaces(spec),
        "cgroupsPath": places.cgroup.name(),
        "rootfsPropagation": "slave",
    });
    if !privileged && !spec.security.unmasked_proc {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
    }
    if privileged {
        linux["devices"] = Value::Array(host_devices(Path::new("/dev")));
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "root": { "path": places.rootfs, "readonly": spec.read_only_root },
        "process": process(spec, user, places.terminal),
        "mounts": mounts(spec, places)?,
        "linux": linux,
    }))
}

fn process(spec: &ContainerSpec, user: &User, terminal: bool) -> Value {
    let mut env = spec.env.clone();
    let has = |env: &[String], name: &str| env.iter().any(|e| e.starts_with(name));
    if !has(&env, "PATH=") {
        env.insert(0, DEFAULT_PATH.to_owned());
    }
    if !has(&env, "HOME=") {
        env.push(format!("HOME={}", user.home));
    }
    if terminal && !has(&env, "TERM=") {
        env.push("TERM=xterm".to_owned());
    }
    let mut process = json!({
        "terminal": terminal,
        "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.groups },
        "args": spec.args,
        "env": env,
        "cwd": if spec.cwd.is_empty() { "/" } else { &spec.cwd },
    });
    if spec.security.no_new_privileges && !spec.security.privileged {
        process["noNewPrivileges"] = json!(true);
    }
    process
}

fn namespaces(spec: &ContainerSpec) -> Value {
    let mut all = vec![json!({ "type": "mount" }), json!({ "type": "cgroup" })];
    let wanted = &spec.namespaces;
    for (kind, path) in [("network", &wanted.net), ("ipc", &wanted.ipc), ("uts", &wanted.uts)] {
        all.push(match path {
            Some(path) => json!({ "type": kind, "path": path }),
            None => json!({ "type": kind }),
        });
    }
    match &wanted.pid {
        _ if wanted.host_pid => {}
        Some(path) => all.push(json!({ "type": "pid", "path": path })),
        None => all.push(json!({ "type": "pid" })),
    }
    Value::Array(all)
}

fn mount(kind: &str, source: &str, destination: &str, options: &[&str]) -> Value {
    json!({ "type": kind, "source": source, "destination": destination, "options": options })
}

fn mounts(spec: &ContainerSpec, places: &Places<'_>) -> Result<Value, Error> {
    let access = if spec.security.privileged { "rw" } else { "ro" };
    let mut all = vec![
        mount("proc", "proc", "/proc", &["nosuid", "noexec", "nodev"]),
        mount("tmpfs", "tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "devpts",
            "devpts",
            "/dev/pts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("mqueue", "mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        mount("sysfs", "sysfs", "/sys", &["nosuid", "noexec", "nodev", access]),
    ];
    all.push(match places.shm {
        Some(dir) => mount("bind", &text(dir)?, "/dev/shm", &["rbind", "rw", "nosuid", "nodev", "noexec"]),
        None => {
            let options = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"];
            mount("tmpfs", "shm", "/dev/shm", &options)
        }
    });
    let views = places.cgroup.views();
    if views.iter().any(|(_, below)| !below.is_empty()) {
        let options = ["nosuid", "noexec", "nodev", "mode=755", "size=64k"];
        all.push(mount("tmpfs", "tmpfs", "/sys/fs/cgroup", &options));
    }
    for (source, below) in views {
        let at = format!("/sys/fs/cgroup/{below}");
        let options = ["rbind", access, "nosuid", "noexec", "nodev"];
        all.push(mount("bind", &text(&source)?, at.trim_end_matches('/'), &options));
    }
    for wanted in &spec.mounts {
        all.push(own_mount(wanted)?);
    }
    Ok(Value::Array(all))
}

fn own_mount(wanted: &Mount) -> Result<Value, Error> {
    let destination = Path::new(&wanted.destination);
    if !destination.is_absolute() || destination.components().any(|c| c == std::path::Component::ParentDir) {
        return Err(Error::Invalid(format!(
            "mount path {:?} must be absolute and without ..",
            wanted.destination
        )));
    }
    let access = if wanted.read_only { "ro" } else { "rw" };
    let propagation = match wanted.propagation {
        Propagation::Private => "rprivate",
        Propagation::Rslave => "rslave",
        Propagation::Rshared => "rshared",
    };
    match &wanted.source {
        MountSource::Bind(source) => {
            // libcontainer's own message would not name the path.
            if let Err(e) = source.metadata() {
                return Err(Error::Invalid(format!("mount source {}: {e}", source.display())));
            }
            Ok(mount("bind", &text(source)?, &wanted.destination, &["rbind", access, propagation]))
        }
        MountSource::Tmpfs { size_bytes } => {
            let size = size_bytes.map(|bytes| format!("size={bytes}"));
            let mut options = vec!["nosuid", "nodev", access, "mode=1777"];
            options.extend(size.as_deref());
            Ok(mount("tmpfs", "tmpfs", &wanted.destination, &options))
        }
    }
}

fn text(path: &Path) -> Result<String, Error> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::Invalid(format!("path {} is not valid UTF-8", path.display())))
}

/// The host's device nodes, for privileged containers.
fn host_devices(dir: &Path) -> Vec<Value> {
    const SKIPPED: [&str; 6] =
        ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console", "/dev/fd", "/dev/ptmx"];
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(found) = std::fs::symlink_metadata(&path) else { continue };
        if SKIPPED.iter().any(|skipped| path == Path::new(skipped)) {
            continue;
        }
        let kind = found.file_type();
        if kind.is_dir() {
            all.extend(host_devices(&path));
        } else if kind.is_char_device() || kind.is_block_device() {
            all.push(json!({
                "path": path,
                "type": if kind.is_char_device() { "c" } else { "b" },
                "major": nix::sys::stat::major(found.rdev()),
                "minor": nix::sys::stat::minor(found.rdev()),
                "fileMode": found.mode() & 0o7777,
                "uid": found.uid(),
                "gid": found.gid(),
            }));
        }
    }
    all
}
