//! A directory of the host in a guest: virtiofsd, one process per directory.
//!
//! There are two of that name: the one in C that came with QEMU up to 7.2, and the one in Rust that followed. They take
//! different options and are told apart by their version. The daemon serves what its user may read and write, so it
//! runs as its caller; it confines itself to the directory by a mount namespace and a seccomp filter of its own.

use crate::error::{file, system};
use crate::{Error, SharedDirectory};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::{Child, Command};

/// Where distributions put it: it is no program for people.
const PLACES: &[&str] = &["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd"];

/// A virtiofsd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Virtiofsd {
    program: PathBuf,
    /// Whether it is the one in C.
    classic: bool,
}

/// A directory that is being served. The process is killed when this is dropped; it also ends with its machine.
#[derive(Debug)]
pub struct Served {
    /// For the machine's order.
    pub directory: SharedDirectory,
    /// The daemon.
    pub process: Child,
}

impl Virtiofsd {
    /// Finds it.
    ///
    /// # Errors
    /// There is none.
    pub fn find() -> Result<Self, Error> {
        let program = PLACES.iter().map(PathBuf::from).find(|path| path.is_file());
        let program = program.ok_or_else(|| Error::MissingProgram {
            program: "virtiofsd".to_owned(),
            package: "virtiofsd",
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        let output = std::process::Command::new(&program).arg("--version").output();
        let output = output.map_err(system("ask virtiofsd for its version"))?;
        let text = [output.stdout, output.stderr].concat();
        Ok(Self { program, classic: is_classic(&String::from_utf8_lossy(&text)) })
    }

    /// Serves a directory under a tag. `work` is a directory for a socket that is gone when this returns.
    ///
    /// # Errors
    /// The directory is none, or the daemon cannot be started.
    pub fn serve(&self, directory: &Path, tag: &str, read_only: bool, work: &Path) -> Result<Served, Error> {
        let path = directory.to_str().filter(|p| !p.contains([',', '\n']) && directory.is_dir());
        let path = path.ok_or_else(|| Error::Spec(format!("cannot share {}", directory.display())))?;
        // The daemon takes a listening socket, so that one needs a name for a moment.
        let aside = crate::files::Aside::name(work);
        let listener = UnixListener::bind(aside.path()).map_err(file("make a socket", aside.path()))?;
        let socket = UnixStream::connect(aside.path()).map_err(file("connect to", aside.path()))?;
        fs::remove_file(aside.path()).map_err(file("remove", aside.path()))?;
        let number = listener.as_raw_fd();
        let mut command = Command::new(&self.program);
        command
            .args(self.arguments(path, number, read_only))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        // SAFETY: between fork and exec the closure only makes system calls on numbers; it neither allocates nor takes
        // locks. JUSTIFICATION: the only way to hand on a descriptor and to end with the parent.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
                crate::machine::keep_open(number)
            });
        }
        let process = command.spawn().map_err(system("start virtiofsd"))?;
        let directory = SharedDirectory { socket: OwnedFd::from(socket), tag: tag.to_owned() };
        Ok(Served { directory, process })
    }

    fn arguments(&self, path: &str, socket: RawFd, read_only: bool) -> Vec<String> {
        let words: Vec<String> = if self.classic {
            // The default cache of metadata for a second would hide what others change in the directory.
            vec![format!("--fd={socket}"), "-o".into(), format!("source={path},cache=none,sandbox=namespace")]
        } else {
            let mut words: Vec<String> =
                ["--sandbox", "namespace", "--cache", "never", "--shared-dir"].map(str::to_owned).to_vec();
            words.extend([path.to_owned(), "--fd".into(), socket.to_string()]);
            if read_only {
                words.push("--readonly".into());
            }
            words
        };
        words
    }

    /// Whether the daemon itself can keep a guest from writing. Else the guest's mount is all that does, and a hostile
    /// guest's root can write what the daemon may.
    #[must_use]
    pub fn enforces_read_only(&self) -> bool {
        !self.classic
    }
}

fn is_classic(version: &str) -> bool {
    version.contains("FUSE kernel interface") || version.contains("QEMU Project")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_are_told_apart() {
        for (version, classic) in [
            (
                "virtiofsd version 7.2.22 (Debian)\nCopyright (c) 2003-2022 Fabrice Bellard and the QEMU Project",
                true,
            ),
            ("virtiofsd 1.13.2", false),
            ("virtiofsd backend 1.5.0", false),
        ] {
            assert_eq!(is_classic(version), classic, "{version}");
        }
    }
}
