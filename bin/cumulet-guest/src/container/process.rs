//! The last steps of a child, inside its container, up to `execve`.
//!
//! The order is what makes it sound: limits and the bounding set while the process is root, the seccomp filter while it
//! has `CAP_SYS_ADMIN` (every filter lets user and capabilities be changed), then user, then capabilities, then the
//! program.

use super::rootfs::Tree;
use super::users::{self, User};
use crate::error::{Doing, Error, plain};
use crate::sys;
use cumulet_guest_proto::spec::{Process, Security};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::Path;

/// What programs find in `PATH` when neither image nor pod says.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to run and under what restrictions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    pub(crate) process: Process,
    pub(crate) security: Security,
    pub(crate) oom_score_adj: i32,
}

/// Who will run it; looked up before standard input and output are given away.
pub(super) fn user(program: &Program) -> Result<User, Error> {
    let root = Tree::open(Path::new("/")).doing(|| "open the root".to_owned())?;
    users::resolve(&root, &program.process)
}

/// Becomes the program; returns only what went wrong.
pub(super) fn run(program: &Program, user: &User, terminal: bool) -> Error {
    match run_or_explain(program, user, terminal) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn run_or_explain(program: &Program, user: &User, terminal: bool) -> Result<std::convert::Infallible, Error> {
    let Program { process, security, .. } = program;
    let env = environment(process, user, terminal);
    let cwd = if process.cwd.is_empty() { "/" } else { &process.cwd };
    for (name, limit) in &process.rlimits {
        let number = limit_number(name).ok_or_else(|| Error::Invalid(format!("unknown limit {name:?}")))?;
        sys::set_limit(number, limit.soft, limit.hard).doing(|| format!("set limit {name}"))?;
    }
    fs::write("/proc/self/oom_score_adj", program.oom_score_adj.to_string())
        .doing(|| "set oom_score_adj".to_owned())?;
    if user.uid != 0 {
        // So that the program can open /dev/stdout again.
        for fd in [&io::stdin() as &dyn std::os::fd::AsFd, &io::stdout(), &io::stderr()] {
            let _ = fchown(fd.as_fd(), Some(user.uid), None);
        }
    }
    let entered = std::env::set_current_dir(cwd);
    let wanted = if security.privileged { u64::MAX } else { security.capabilities };
    let known = sys::bound_capabilities(wanted).doing(|| "drop capabilities".to_owned())?;
    if security.no_new_privileges {
        nix::sys::prctl::set_no_new_privs().doing(|| "set no_new_privs".to_owned())?;
    }
    if !security.seccomp.0.is_empty() && !security.privileged {
        sys::install_seccomp(&security.seccomp.0).doing(|| "install the seccomp filter".to_owned())?;
    }
    sys::become_user(user.uid, user.gid, &user.groups).doing(|| format!("become user {}", user.uid))?;
    // The user may be let in where root without capabilities is not.
    entered
        .or_else(|_| std::env::set_current_dir(cwd))
        .doing(|| format!("enter the working directory {cwd}"))?;
    let own = if user.uid == 0 { known } else { 0 };
    sys::set_capabilities(own).doing(|| "set capabilities".to_owned())?;
    let name = process.args.first().ok_or_else(|| Error::Invalid("no command specified".to_owned()))?;
    let path = find(name, &env).map_err(Error::Start)?;
    let error = sys::exec(&path, &process.args, &env);
    Err(Error::Start(format!("exec {path}: {}", plain(&error))))
}

fn environment(process: &Process, user: &User, terminal: bool) -> Vec<String> {
    let mut env = process.env.clone();
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
    env
}

/// Where the program is; messages as Go's `exec.LookPath` words them, since people search the web for them.
fn find(name: &str, env: &[String]) -> Result<String, String> {
    let check = |path: &str| -> io::Result<()> {
        let found = fs::metadata(path)?;
        if found.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::EISDIR));
        }
        if found.permissions().mode() & 0o111 == 0 {
            return Err(ErrorKind::PermissionDenied.into());
        }
        Ok(())
    };
    if name.contains('/') {
        return match check(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                Err(format!("exec: {name:?}: stat {name}: no such file or directory"))
            }
            Err(e) => Err(format!("exec: {name:?}: {}", plain(&e))),
        };
    }
    let path = env.iter().rev().find_map(|e| e.strip_prefix("PATH=")).unwrap_or("");
    let mut denied = false;
    for dir in path.split(':') {
        let candidate = format!("{}/{name}", if dir.is_empty() { "." } else { dir });
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(e) => denied |= e.kind() == ErrorKind::PermissionDenied,
        }
    }
    let why = if denied { "permission denied" } else { "executable file not found in $PATH" };
    Err(format!("exec: {name:?}: {why}"))
}

/// The kernel's number of a limit: `nofile`, or `RLIMIT_NOFILE` as OCI has it.
fn limit_number(name: &str) -> Option<u32> {
    const NAMES: [&str; 16] = [
        "cpu",
        "fsize",
        "data",
        "stack",
        "core",
        "rss",
        "nproc",
        "nofile",
        "memlock",
        "as",
        "locks",
        "sigpending",
        "msgqueue",
        "nice",
        "rtprio",
        "rttime",
    ];
    let lower = name.to_ascii_lowercase();
    let lower = lower.strip_prefix("rlimit_").unwrap_or(&lower);
    NAMES.iter().position(|known| *known == lower).map(|number| number as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        for (name, mode) in [("run", 0o755), ("data", 0o644)] {
            fs::write(path(name), "").unwrap();
            fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let env = [format!("PATH=/nowhere:{}", dir.path().display())];
        assert_eq!(find("run", &env), Ok(path("run")));
        assert_eq!(find("data", &env), Err("exec: \"data\": permission denied".to_owned()));
        assert_eq!(find("none", &env), Err("exec: \"none\": executable file not found in $PATH".to_owned()));
        assert_eq!(
            find("/none", &[]),
            Err("exec: \"/none\": stat /none: no such file or directory".to_owned())
        );
        assert_eq!(find(&path("run"), &[]), Ok(path("run")));
    }

    #[test]
    fn limits_have_the_kernels_numbers() {
        assert_eq!(limit_number("nofile"), Some(7));
        assert_eq!(limit_number("RLIMIT_CORE"), Some(4));
        assert_eq!(limit_number("flying"), None);
    }

    #[test]
    fn missing_variables_are_added() {
        let user = User { uid: 0, gid: 0, groups: vec![], home: "/root".into() };
        let process = Process { env: vec!["HOME=/x".into()], ..Process::default() };
        assert_eq!(environment(&process, &user, true), [DEFAULT_PATH, "HOME=/x", "TERM=xterm"]);
    }
}
