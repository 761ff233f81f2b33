//! Which QEMU this machine has.

use crate::Error;
use crate::qmp::Version;
use crate::tsc::Reading;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest QEMU that is known to work.
pub const OLDEST: Version = Version { major: 7, minor: 2, micro: 0 };

/// Where the quick firmware may be.
const QBOOT: &[&str] = &["/usr/share/qemu/qboot.rom", "/usr/local/share/qemu/qboot.rom"];

/// A QEMU. Found once, then handed to whoever starts machines: asking for the version costs a process start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qemu {
    /// The program.
    pub program: PathBuf,
    /// Its version.
    pub version: Version,
    /// A firmware that does only what a directly started kernel needs; without it SeaBIOS runs, some tenths of a
    /// second longer in emulation.
    pub qboot: Option<PathBuf>,
    /// Rate of this machine's time stamp counter in kHz, when it has one rate. In emulation it is the guest's, and part
    /// of a snapshot: a clone on a machine with another rate has wrong clocks.
    pub tsc_khz: Option<u32>,
}

impl Qemu {
    /// Finds QEMU on the path.
    ///
    /// # Errors
    /// There is none, or it is too old.
    pub fn find() -> Result<Self, Error> {
        Self::at(Path::new("qemu-system-x86_64"))
    }

    /// Looks at this program.
    ///
    /// # Errors
    /// It cannot be started, or is too old.
    pub fn at(program: &Path) -> Result<Self, Error> {
        let name = program.display().to_string();
        // The program's run is the time over which the counter is measured.
        let before = Reading::take();
        let output = Command::new(program).arg("--version").output().map_err(|source| {
            Error::MissingProgram { program: name.clone(), package: "qemu-system-x86", source }
        })?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = parse_version(&text).ok_or_else(|| Error::Program {
            program: name.clone(),
            message: format!("no version in {:?}", text.lines().next().unwrap_or_default()),
        })?;
        if version < OLDEST {
            return Err(Error::Program {
                program: name,
                message: format!("{version} is older than {OLDEST}"),
            });
        }
        let tsc_khz = before.zip(Reading::take()).and_then(|(before, after)| after.khz_since(before));
        let qboot = QBOOT.iter().map(PathBuf::from).find(|path| path.is_file());
        Ok(Self { program: program.to_owned(), version, qboot, tsc_khz })
    }

    /// Whether a file can be mapped copy-on-write without being opened for writing.
    pub(crate) fn can_map_read_only(&self) -> bool {
        self.version >= Version { major: 8, minor: 2, micro: 0 }
    }
}

/// The version out of `QEMU emulator version 7.2.22 (Debian …)`.
fn parse_version(text: &str) -> Option<Version> {
    let number = text.split_once("version ")?.1.split([' ', '\n', '(']).next()?;
    let mut parts = number.split('.').map(|p| p.parse().ok());
    let version =
        Version { major: parts.next()??, minor: parts.next()??, micro: parts.next().flatten().unwrap_or(0) };
    Some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, expected) in [
            ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright", Some((7, 2, 22))),
            ("QEMU emulator version 10.0.2\n", Some((10, 0, 2))),
            ("QEMU emulator version 9.1.50", Some((9, 1, 50))),
            ("QEMU emulator version x.y", None),
            ("", None),
        ] {
            let expected = expected.map(|(major, minor, micro)| Version { major, minor, micro });
            assert_eq!(parse_version(text), expected, "{text}");
        }
    }
}
