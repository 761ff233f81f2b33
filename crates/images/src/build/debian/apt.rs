//! The machine's own apt, as a planner and downloader: it reads the index of a release, checks its signatures, decides
//! which packages are needed and in which order, and fetches them. It installs nothing and touches nothing of the
//! machine: state, lists and archives are in a directory of ours, per release and architecture.
//!
//! ```text
//!   DIR/<suite>-<arch>/lists/     the index, with the signed InRelease files whose digest names it
//!                     archives/   packages, kept between builds
//!                     sources.list, apt.conf, status (an empty package database), updated (when the index came)
//!                     lock        flock of whoever works here
//! ```
//!
//! Mirror, proxy and whatever else says how to reach it come from the machine's configuration. Signatures are
//! always checked, also where the machine's own configuration would not insist.

use crate::build::progress::{Event, Report};
use crate::error::io;
use crate::store::lock_file;
use crate::{Digest, ImageError};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long an index is used before it is fetched again.
const INDEX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Debian's own keys, as its packages and other distributions' `debian-archive-keyring` install them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The mirror of a machine whose own sources are not Debian's.
const MIRROR: &str = "http://deb.debian.org/debian";
/// Most bytes of a program's messages that are kept.
const MAX_MESSAGES: u64 = 1 << 20;

/// A release for one architecture, ready to be asked.
#[derive(Debug)]
pub(super) struct Apt {
    dir: PathBuf,
    suite: String,
    _lock: File,
}

/// Why apt did not do it.
#[derive(Debug)]
pub(super) enum AptError {
    /// These packages do not exist in the release.
    Unknown(Vec<String>),
    /// The mirror has no such release.
    NoRelease(String),
    /// Anything else, in apt's words.
    Failed(String),
    Image(ImageError),
}

impl From<ImageError> for AptError {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

/// One thing to do with a package, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Unpack(String),
    Configure(String),
    Remove(String),
}

/// A package file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Archive {
    /// Name in the archive directory.
    pub(super) file: String,
    pub(super) size: u64,
    /// Hexadecimal SHA-256, from the signed index.
    pub(super) sha256: String,
}

/// What it takes to install some packages.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) actions: Vec<Action>,
    /// By package name.
    pub(super) archives: BTreeMap<String, Archive>,
}

impl Apt {
    /// Prepares the directory for a release below `root`, and waits until nobody else works there.
    pub(super) fn open(root: &Path, suite: &str, architecture: &str) -> Result<Self, AptError> {
        let dir = root.join(format!("{suite}-{architecture}"));
        for sub in ["lists/partial", "archives/partial", "empty/partial"] {
            fs::create_dir_all(dir.join(sub)).map_err(io("make", &dir.join(sub)))?;
        }
        let lock = lock_file(&dir.join("lock"))?;
        lock.lock().map_err(io("lock", &dir))?;
        let apt = Self { dir, suite: suite.to_owned(), _lock: lock };
        let dir = apt.dir.canonicalize().map_err(io("open", &apt.dir))?;
        let apt = Self { dir, ..apt };
        apt.write("status", "")?;
        apt.write("apt.conf", &configuration(&apt.dir, architecture))?;
        Ok(apt)
    }

    /// An empty package database.
    pub(super) fn empty_status(&self) -> PathBuf {
        self.dir.join("status")
    }

    /// Where packages are.
    pub(super) fn archives(&self) -> PathBuf {
        self.dir.join("archives")
    }

    fn write(&self, name: &str, text: &str) -> Result<(), ImageError> {
        let path = self.dir.join(name);
        // What is unchanged keeps its date, which apt compares with that of its caches.
        match fs::read_to_string(&path) {
            Ok(there) if there == text => Ok(()),
            _ => fs::write(&path, text).map_err(io("write", &path)),
        }
    }

    /// Makes sure that the index is there and not old, and gives the digest of its signed parts.
    pub(super) fn index(&self, refresh: bool, report: Report<'_>) -> Result<Digest, AptError> {
        let stamp = self.dir.join("updated");
        let young = fs::metadata(&stamp)
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|time| time.elapsed().is_ok_and(|age| age < INDEX_AGE));
        if refresh || !young {
            self.update(report)?;
            File::create(&stamp).map_err(io("make", &stamp))?;
        }
        let lists = self.dir.join("lists");
        let mut names = Vec::new();
        for entry in fs::read_dir(&lists).map_err(io("read", &lists))? {
            let name = entry.map_err(io("read", &lists))?.file_name().to_string_lossy().into_owned();
            if name.ends_with("_InRelease") {
                names.push(name);
            }
        }
        names.sort();
        if names.is_empty() {
            let _ = fs::remove_file(&stamp);
            return Err(AptError::Failed("the mirror gave no signed index".to_owned()));
        }
        let mut all = Vec::new();
        for name in names {
            let path = lists.join(&name);
            all.extend_from_slice(name.as_bytes());
            all.extend_from_slice(Digest::of(&fs::read(&path).map_err(io("read", &path))?).hex().as_bytes());
        }
        Ok(Digest::of(&all))
    }

    /// Fetches the index. Old lists are used as they are when the mirror cannot be reached.
    fn update(&self, report: Report<'_>) -> Result<(), AptError> {
        self.write("sources.list", &self.sources())?;
        let mut apt = self.apt_get();
        apt.args(["-o", "APT::Status-Fd=1", "-o", "APT::Update::Error-Mode=any", "update"]);
        let (good, messages) = self.run(apt, &format!("index of {}", self.suite), report)?;
        if good {
            return Ok(());
        }
        let failed = errors(&messages);
        if failed.contains("does not have a Release file") || failed.contains("404") {
            return Err(AptError::NoRelease(failed));
        }
        if self.dir.join("updated").exists() {
            report(Event::Note(&format!(
                "the index could not be fetched, going on with the old one: {failed}"
            )));
            return Ok(());
        }
        Err(AptError::Failed(failed))
    }

    /// Sources for the release: those of the machine if they have it, else its mirror of Debian with another name.
    fn sources(&self) -> String {
        let format = "$(SITE) $(RELEASE) $(SIGNED_BY)";
        let output = Command::new("apt-get")
            .args(["indextargets", "--format", format, "Created-By: Packages"])
            .env("LC_ALL", "C")
            .stderr(Stdio::null())
            .output();
        let text =
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        sources_for(&self.suite, &text, Path::new(KEYRING).exists())
    }

    /// Decides how to install `wanted` (names or patterns) on top of what the package database `status` has.
    pub(super) fn plan(&self, wanted: &[String], status: &Path) -> Result<Plan, AptError> {
        let ask = |options: &[&str]| -> Result<String, AptError> {
            let mut apt = self.apt_get();
            apt.arg("-y").args(options).args(["-o", &format!("Dir::State::status={}", status.display())]);
            apt.arg("install").args(wanted);
            let output = apt.output().map_err(not_there)?;
            let failed = String::from_utf8_lossy(&output.stderr);
            if output.status.success() {
                return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
            }
            let unknown: Vec<String> = failed.lines().filter_map(unknown_package).collect();
            // What is in the way is explained on standard output.
            let told = String::from_utf8_lossy(&output.stdout);
            let reasons: Vec<&str> = told.lines().filter(|line| line.starts_with(' ')).collect();
            match unknown.is_empty() {
                false => Err(AptError::Unknown(unknown)),
                true => Err(AptError::Failed(format!("{} {}", errors(&failed), reasons.join(" ")))),
            }
        };
        let empty = format!("Dir::Cache::archives={}/", self.dir.join("empty").display());
        // Two questions at once: apt takes a second for each.
        let (order, files) = std::thread::scope(|scope| {
            let files = scope
                .spawn(|| ask(&["-qq", "--print-uris", "-o", "Acquire::ForceHash=SHA256", "-o", &empty]));
            let order = ask(&["-qq", "-s"]);
            (order, files.join().unwrap_or_else(|_| Err(AptError::Failed("apt-get".to_owned()))))
        });
        let (order, files) = (order?, files?);
        let actions: Vec<Action> = order.lines().filter_map(action).collect();
        let archives: BTreeMap<String, Archive> = files.lines().filter_map(archive).collect();
        for action in &actions {
            if let Action::Unpack(name) = action
                && !archives.contains_key(name)
            {
                return Err(AptError::Failed(format!("apt names no file for the package {name}")));
            }
        }
        Ok(Plan { actions, archives })
    }

    /// Fetches what a plan needs, and verifies every file against the signed index.
    pub(super) fn fetch(
        &self,
        wanted: &[String],
        status: &Path,
        plan: &Plan,
        report: Report<'_>,
    ) -> Result<(), AptError> {
        let good = |archive: &Archive| -> bool {
            let path = self.archives().join(&archive.file);
            fs::metadata(&path).is_ok_and(|metadata| metadata.len() == archive.size)
                && fs::read(&path).is_ok_and(|bytes| Digest::of(&bytes).hex() == archive.sha256)
        };
        let missing: Vec<&Archive> = plan.archives.values().filter(|archive| !good(archive)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        for archive in &missing {
            let _ = fs::remove_file(self.archives().join(&archive.file));
        }
        let mut apt = self.apt_get();
        apt.args(["-y", "-o", "APT::Status-Fd=1", "--download-only"])
            .args(["-o", &format!("Dir::State::status={}", status.display())])
            .arg("install")
            .args(wanted);
        let (done, messages) = self.run(apt, &format!("{} packages", missing.len()), report)?;
        if !done {
            return Err(AptError::Failed(errors(&messages)));
        }
        match missing.iter().find(|archive| !good(archive)) {
            Some(bad) => Err(AptError::Failed(format!("{} is not what the index says", bad.file))),
            None => Ok(()),
        }
    }

    /// Names of all packages of the release.
    pub(super) fn names(&self) -> Vec<String> {
        let mut apt = self.command("apt-cache");
        let output = apt.args(["pkgnames"]).output();
        let text =
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(self.dir.join("apt.conf")).env("LC_ALL", "C").current_dir("/");
        command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        command
    }

    fn apt_get(&self) -> Command {
        self.command("apt-get")
    }

    /// Runs a download, passes its progress on, and gives its messages.
    fn run(&self, mut apt: Command, what: &str, report: Report<'_>) -> Result<(bool, String), AptError> {
        let mut child = apt.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(not_there)?;
        let errors = child.stderr.take();
        let messages = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut text = Vec::new();
                let _ = errors.map(|stream| stream.take(MAX_MESSAGES).read_to_end(&mut text));
                String::from_utf8_lossy(&text).into_owned()
            });
            for line in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines()) {
                let Ok(line) = line else { break };
                // dlstatus:1:20.5:Retrieving file 1 of 61 (5s remaining)
                let mut fields = line.splitn(4, ':');
                if fields.next() == Some("dlstatus")
                    && let Some(percent) = fields.nth(1).and_then(|text| text.trim().parse::<f32>().ok())
                {
                    report(Event::Advance(percent / 100.0, what));
                }
            }
            reader.join().unwrap_or_default()
        });
        let status = child.wait().map_err(|source| {
            AptError::Image(ImageError::Io { what: "wait for apt-get".to_owned(), source })
        })?;
        Ok((status.success(), messages))
    }
}

fn not_there(error: std::io::Error) -> AptError {
    AptError::Failed(format!(
        "cannot run apt-get: {error}; images from Debian packages need a machine with apt and dpkg-deb"
    ))
}

/// Configuration on top of the machine's: places of ours, none of its hooks, signatures always.
fn configuration(dir: &Path, architecture: &str) -> String {
    let dir = dir.display();
    format!(
        r#"#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
#clear Acquire::IndexTargets::deb::Contents-deb;
#clear Acquire::IndexTargets::deb::DEP-11;
#clear Acquire::IndexTargets::deb::DEP-11-icons;
#clear Acquire::IndexTargets::deb::DEP-11-icons-small;
#clear Acquire::IndexTargets::deb::DEP-11-icons-large;
#clear Acquire::Languages;
#clear APT::Architectures;
#clear APT::Default-Release;
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Sandbox::User "root";
APT::Get::AllowUnauthenticated "false";
APT::Get::Show-User-Simulation-Note "false";
APT::Color "0";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::Languages {{ "none"; }};
Acquire::Retries "3";
Dir::Etc::sourcelist "{dir}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{dir}";
Dir::State::lists "{dir}/lists";
Dir::State::status "{dir}/status";
Dir::State::extended_states "{dir}/extended_states";
Dir::Cache "{dir}";
Dir::Cache::archives "{dir}/archives/";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
Dir::Log "{dir}/log";
Debug::NoLocking "true";
"#
    )
}

/// `targets` is what the machine has, one `SITE RELEASE KEYRING` a line.
fn sources_for(suite: &str, targets: &str, keyring: bool) -> String {
    let parts = |line: &str| {
        let mut fields = line.splitn(3, ' ');
        let (site, release) = (fields.next()?.to_owned(), fields.next()?.to_owned());
        let key = fields.next().map(str::trim).filter(|key| !key.is_empty() && !key.starts_with("$("));
        Some((site, release, key.map(str::to_owned)))
    };
    let all: Vec<(String, String, Option<String>)> = targets.lines().filter_map(parts).collect();
    let debian = |site: &str| {
        let path = site.trim_end_matches('/');
        path.ends_with("/debian") || path.contains("/archive/debian/")
    };
    // Other repositories often use Debian's names for their releases; only mirrors of Debian itself count.
    let main = all.iter().find(|(site, release, _)| release == suite && debian(site));
    let main = main.or_else(|| all.iter().find(|(site, ..)| debian(site)));
    let site = main.map_or(MIRROR, |(site, ..)| site.as_str());
    let key = main.and_then(|(.., key)| key.clone()).or_else(|| keyring.then(|| KEYRING.to_owned()));
    let security =
        all.iter().find(|(site, ..)| site.contains("debian-security")).map(|(site, ..)| site.clone());
    let security = security.unwrap_or_else(|| site.trim_end_matches('/').to_owned() + "-security");
    let signed = key.map_or_else(String::new, |key| format!("[signed-by={key}] "));
    let mut text = format!("deb {signed}{site} {suite} main\n");
    if !matches!(suite, "sid" | "unstable" | "experimental") {
        text += &format!("deb {signed}{site} {suite}-updates main\n");
        text += &format!("deb {signed}{security} {suite}-security main\n");
    }
    text
}

/// The errors among some messages, in one line.
fn errors(messages: &str) -> String {
    let lines: Vec<&str> = messages.lines().filter_map(|line| line.strip_prefix("E: ")).collect();
    match lines.is_empty() {
        true => messages.trim().replace('\n', " "),
        false => lines.join("; "),
    }
}

fn unknown_package(line: &str) -> Option<String> {
    let rest = line.strip_prefix("E: ")?;
    let named = rest.strip_prefix("Unable to locate package ").map(str::to_owned);
    named.or_else(|| {
        let name = rest.strip_prefix("Package '")?.strip_suffix("' has no installation candidate")?;
        Some(name.to_owned())
    })
}

/// `Inst name [old] (version ...)`, `Conf name (...)`, `Remv name [...]`.
fn action(line: &str) -> Option<Action> {
    let mut words = line.split(' ');
    let (verb, name) = (words.next()?, words.next()?.to_owned());
    match verb {
        "Inst" => Some(Action::Unpack(name)),
        "Conf" => Some(Action::Configure(name)),
        "Remv" | "Purg" => Some(Action::Remove(name)),
        _ => None,
    }
}

/// `'URI' name_version_architecture.deb SIZE SHA256:HEX`.
fn archive(line: &str) -> Option<(String, Archive)> {
    let mut words = line.strip_prefix('\'')?.split("' ").nth(1)?.split(' ');
    let (file, size, hash) = (words.next()?.to_owned(), words.next()?.parse().ok()?, words.next()?);
    let sha256 = hash.strip_prefix("SHA256:")?.to_owned();
    let name = file.split('_').next()?.to_owned();
    if file.contains('/') || !file.ends_with(".deb") {
        return None;
    }
    Some((name, Archive { file, size, sha256 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_apt() {
        assert_eq!(action("Inst a [1] (2 Debian:12 [amd64])"), Some(Action::Unpack("a".into())));
        assert_eq!(action("Conf a (2 Debian:12 [amd64])"), Some(Action::Configure("a".into())));
        assert_eq!(action("Remv a [1]"), Some(Action::Remove("a".into())));
        assert_eq!(action("Note, selecting"), None);
        let line = "'http://d/pool/b/bash/bash_5%2b1_amd64.deb' bash_1%3a5+1_amd64.deb 12 SHA256:ab";
        let expected = Archive { file: "bash_1%3a5+1_amd64.deb".into(), size: 12, sha256: "ab".into() };
        assert_eq!(archive(line), Some(("bash".into(), expected)));
        assert_eq!(archive("'x' ../e.deb 1 SHA256:00"), None);
        assert_eq!(unknown_package("E: Unable to locate package x"), Some("x".into()));
        assert_eq!(unknown_package("E: Package 'x' has no installation candidate"), Some("x".into()));
    }

    #[test]
    fn sources_come_from_the_machine() {
        let check = |suite: &str, targets: &str, expected: &[&str]| {
            let lines: Vec<String> = sources_for(suite, targets, false).lines().map(str::to_owned).collect();
            assert_eq!(lines, expected, "{suite} {targets:?}");
        };
        let own = "http://m/debian bookworm /k.gpg\nhttp://m/debian-security bookworm-security \nhttp://x/apt bookworm \n";
        check(
            "bookworm",
            own,
            &[
                "deb [signed-by=/k.gpg] http://m/debian bookworm main",
                "deb [signed-by=/k.gpg] http://m/debian bookworm-updates main",
                "deb [signed-by=/k.gpg] http://m/debian-security bookworm-security main",
            ],
        );
        check("sid", "http://m/debian trixie $(SIGNED_BY)\n", &["deb http://m/debian sid main"]);
        check(
            "trixie",
            "",
            &[
                "deb http://deb.debian.org/debian trixie main",
                "deb http://deb.debian.org/debian trixie-updates main",
                "deb http://deb.debian.org/debian-security trixie-security main",
            ],
        );
    }
}
