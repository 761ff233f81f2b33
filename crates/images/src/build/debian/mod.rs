//! Layers made of Debian packages: a minimal base per release, and packages on top of a stack of layers.
//!
//! ```text
//!   base      plan on an empty database ─► fetch ─► extract here ─► dpkg --install in the sandbox ─► merge ─► strip
//!   packages  plan on the stack's database ─► fetch ─► dpkg in the sandbox, in apt's order ─► what changed ─► strip
//! ```
//!
//! apt only plans and downloads (see [`apt`]); all maintainer scripts run in the build sandbox, without network.
//! A result is known by two keys: what was asked of which index, which needs no run of apt at all, and which packages
//! that came to, so that a new index with the same packages gives the same layer.

mod apt;
mod keystore;
pub(super) mod strip;

use super::description::{Word, closest};
use super::layer::{Members, Packing};
use super::progress::Event;
use super::record::{Key, KeyMaker, Layer};
use super::sandbox::SandboxJob;
use super::steps::{Builder, Stack};
use super::tree::Tree;
use crate::ImageError;
use crate::error::io;
use crate::oci::Platform;
use apt::{Action, Apt, AptError, Plan};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// Releases by name, for suggestions.
const SUITES: [&str; 8] =
    ["bullseye", "bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing"];
/// What every package may rely on without saying so, and nothing else. apt counts itself in.
const ESSENTIAL: &str = "?and(?essential,?not(?exact-name(apt)))";
/// Lets the base do without the program that converts old installations.
const MERGED: &str = "usr-is-merged";
/// The release of packages that are unpacked without a base.
const UNPACKED_SUITE: &str = "bookworm";
/// Where the sandbox shows packages and the installation's script.
const PACKAGES_AT: &str = "/run/packages";
const SCRIPT_AT: &str = "/run/cumulet";
/// Lines of a failed installation that are shown.
const SHOWN_LINES: usize = 15;
/// Says to maintainer scripts that no service may be started.
const POLICY: &str = "#!/bin/sh\nexit 101\n";
/// Options of every call of dpkg: nothing is flushed, since what fails is thrown away whole.
const DPKG: &str = "dpkg --force-unsafe-io --force-confdef --force-confold";

/// The release that `base: debian:NAME` means; `None` when the base is no release of Debian.
pub(super) fn suite_of(base: &str) -> Option<&str> {
    let name = base.strip_prefix("debian:")?;
    let name = name.strip_suffix("-slim").unwrap_or(name);
    Some(match name {
        "11" => "bullseye",
        "12" => "bookworm",
        "13" => "trixie",
        "latest" => "stable",
        name => name,
    })
}

impl Builder<'_> {
    /// The layer of a release's minimal system, and whether it was there already.
    pub(super) fn debian_base(&self, suite: &str, at: &Word) -> Result<(Layer, bool), ImageError> {
        let valid = !suite.is_empty() && suite.bytes().all(|c| c.is_ascii_lowercase() || c == b'-');
        if !valid {
            return Err(self.unknown_suite(suite, at, ""));
        }
        let explain = |error: AptError| match error {
            AptError::NoRelease(told) => self.unknown_suite(suite, at, &told),
            other => self.explain("base", std::slice::from_ref(at), None, other),
        };
        let apt = self.apt(suite).map_err(explain)?;
        let index = apt.index(self.options.refresh, self.report()).map_err(explain)?;
        let asked = self.asked("base", suite, index.as_str()).finish();
        if let Some(known) = self.known(&asked) {
            return Ok((known, true));
        }
        let status = apt.empty_status();
        let mut wanted = vec![ESSENTIAL.to_owned(), MERGED.to_owned()];
        let plan = match apt.plan(&wanted, &status) {
            // Older releases have no such package and need none.
            Err(AptError::Unknown(names)) if names.iter().all(|name| name == MERGED) => {
                wanted.pop();
                apt.plan(&wanted, &status)
            }
            other => other,
        }
        .map_err(explain)?;
        let key = self.result_key("base", &plan).finish();
        if let Some(layer) = self.known_result(&asked, &key) {
            return Ok((layer, true));
        }
        apt.fetch(&wanted, &status, &plan, self.report()).map_err(explain)?;
        let members = self.bootstrap(&apt, &plan)?;
        let layer = self.publish(&format!("debian:{suite}"), &members, Packing::Gzip)?;
        self.note(&asked, &key, &layer);
        Ok((layer, false))
    }

    /// The layer that packages add to a stack, and whether it was there already.
    pub(super) fn debian_packages(
        &self,
        kind: &str,
        stack: &Stack,
        words: &[Word],
    ) -> Result<(Layer, bool), ImageError> {
        let dirs = stack.dirs(self.store);
        let (status, suite) = self.database(kind, &dirs, &words[0])?;
        let wanted: Vec<String> = words.iter().map(|word| word.text.clone()).collect();
        let apt = self.apt(&suite).map_err(|error| self.explain(kind, words, None, error))?;
        let explain = |error| self.explain(kind, words, Some(&apt), error);
        let index = apt.index(self.options.refresh, self.report()).map_err(explain)?;
        let below = stack.diff_ids();
        let asked =
            self.asked("packages", &suite, index.as_str()).with_all(&wanted).with_all(&below).finish();
        if let Some(known) = self.known(&asked) {
            return Ok((known, true));
        }
        let plan = apt.plan(&wanted, &status).map_err(explain)?;
        let key = self.result_key("packages", &plan).with_all(&below).finish();
        if let Some(layer) = self.known_result(&asked, &key) {
            return Ok((layer, true));
        }
        apt.fetch(&wanted, &status, &plan, self.report()).map_err(explain)?;
        let upper = self.install(&apt, &plan, dirs, &script(&plan))?;
        let mut members = Tree::read(&upper.join("upper"))?.finish();
        self.strip(&mut members, false)?;
        let layer = self.publish(kind, &members, Packing::Gzip)?;
        let _ = fs::remove_dir_all(&upper);
        self.note(&asked, &key, &layer);
        Ok((layer, false))
    }

    /// The layer of packages without a base: they and what they depend on, unpacked. Their scripts are not run, since
    /// there is nothing that could run them.
    pub(super) fn debian_unpacked(&self, kind: &str, words: &[Word]) -> Result<(Layer, bool), ImageError> {
        let wanted: Vec<String> = words.iter().map(|word| word.text.clone()).collect();
        let apt = self.apt(UNPACKED_SUITE).map_err(|error| self.explain(kind, words, None, error))?;
        let explain = |error| self.explain(kind, words, Some(&apt), error);
        let index = apt.index(self.options.refresh, self.report()).map_err(explain)?;
        let asked = self.asked("unpacked", UNPACKED_SUITE, index.as_str()).with_all(&wanted).finish();
        if let Some(known) = self.known(&asked) {
            return Ok((known, true));
        }
        let status = apt.empty_status();
        let plan = apt.plan(&wanted, &status).map_err(explain)?;
        let key = self.result_key("unpacked", &plan).finish();
        if let Some(layer) = self.known_result(&asked, &key) {
            return Ok((layer, true));
        }
        apt.fetch(&wanted, &status, &plan, self.report()).map_err(explain)?;
        let root = self.work.fresh();
        self.extract(&root, &apt, &plan)?;
        let mut members = Tree::read(&root)?.finish();
        self.strip(&mut members, true)?;
        let layer = self.publish(kind, &members, Packing::Gzip)?;
        let _ = fs::remove_dir_all(&root);
        self.note(&asked, &key, &layer);
        Ok((layer, false))
    }

    fn apt(&self, suite: &str) -> Result<Apt, AptError> {
        let root = self.options.apt_cache.clone().unwrap_or_else(|| self.store.root.join("apt"));
        Apt::open(&root, suite, &Platform::here().architecture)
    }

    fn asked(&self, kind: &str, suite: &str, index: &str) -> KeyMaker {
        let maker = KeyMaker::new(kind).with("asked").with(suite).with(index);
        self.with_options(maker)
    }

    fn result_key(&self, kind: &str, plan: &Plan) -> KeyMaker {
        let maker = KeyMaker::new(kind).with(&Platform::here().architecture);
        let hashes = plan.archives.values().map(|archive| &archive.sha256);
        let order = plan.actions.iter().map(|action| format!("{action:?}"));
        self.with_options(maker.with_all(hashes).with_all(order))
    }

    fn with_options(&self, maker: KeyMaker) -> KeyMaker {
        maker
            .with([u8::from(self.keep.docs), u8::from(self.keep.locales)])
            .with(self.options.source_date_epoch.to_le_bytes())
    }

    fn known(&self, asked: &Key) -> Option<Layer> {
        let key: Key = self.record.get(asked)?;
        self.record.layers(&key)?.pop()
    }

    fn known_result(&self, asked: &Key, key: &Key) -> Option<Layer> {
        let layer = self.record.layers(key)?.pop()?;
        self.record.put(asked, key);
        Some(layer)
    }

    fn note(&self, asked: &Key, key: &Key, layer: &Layer) {
        self.record.put(key, &[layer]);
        self.record.put(asked, key);
    }

    /// The package database of a stack, and the release that it belongs to.
    fn database(&self, kind: &str, dirs: &[PathBuf], at: &Word) -> Result<(PathBuf, String), ImageError> {
        let none = || {
            let hint = "use for example \"base: debian:bookworm\"";
            self.wrong(at.at, format!("{kind}: the base has no Debian package database; {hint}"))
        };
        let status = find(dirs, "var/lib/dpkg/status").ok_or_else(none)?;
        let release =
            find(dirs, "usr/lib/os-release").or_else(|| find(dirs, "etc/os-release")).ok_or_else(none)?;
        let text = String::from_utf8(crate::store::read_capped(&release, 1 << 16)?).map_err(|_| none())?;
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
            Some(line.trim_matches('"').to_owned())
        };
        match (value("ID").as_deref(), value("VERSION_CODENAME")) {
            // What is not released yet does not know its name.
            (Some("debian"), suite) => Ok((status, suite.unwrap_or_else(|| "sid".to_owned()))),
            _ => Err(none()),
        }
    }

    /// Extracts the packages here and configures them in the sandbox. Gives the members of the whole tree.
    fn bootstrap(&self, apt: &Apt, plan: &Plan) -> Result<Members, ImageError> {
        self.say(Event::Advance(0.0, "unpacking"));
        let root = self.work.fresh();
        self.extract(&root, apt, plan)?;
        let status = root.join("var/lib/dpkg/status");
        fs::write(&status, "").map_err(io("make", &status))?;
        let files: Vec<String> =
            plan.archives.values().map(|archive| format!("{PACKAGES_AT}/{}", archive.file)).collect();
        // Everything is there already in its final form, so that scripts work in any order.
        let script = format!("{DPKG} --force-depends --install {}\n", files.join(" "));
        let upper = self.install(apt, plan, vec![root.clone()], &script)?;
        let mut tree = Tree::read(&root)?;
        tree.apply(Tree::read(&upper.join("upper"))?);
        let mut members = tree.finish();
        self.strip(&mut members, true)?;
        Ok(members)
    }

    fn strip(&self, members: &mut Members, whole: bool) -> Result<(), ImageError> {
        strip::strip(members, self.keep, self.options.source_date_epoch, whole)
            .map_err(|source| ImageError::Io { what: "pack installed packages".to_owned(), source })
    }

    /// Extracts packages, enough to run their own installation.
    fn extract(&self, root: &Path, apt: &Apt, plan: &Plan) -> Result<(), ImageError> {
        fs::create_dir(root).map_err(io("make", root))?;
        fs::set_permissions(root, fs::Permissions::from_mode(0o755)).map_err(io("make", root))?;
        let mut merged = vec!["bin", "lib", "sbin"];
        if Platform::here().architecture == "amd64" {
            merged.push("lib64");
        }
        for name in merged {
            let target = root.join("usr").join(name);
            fs::create_dir_all(&target).map_err(io("make", &target))?;
            symlink(format!("usr/{name}"), root.join(name)).map_err(io("link", &target))?;
        }
        let first = |name: &&String| usize::from(*name != "base-files");
        let mut names: Vec<&String> = plan.archives.keys().collect();
        names.sort_by_key(first);
        for (i, name) in names.iter().enumerate() {
            self.say(Event::Advance(i as f32 / names.len() as f32 / 3.0, "unpacking"));
            extract_one(&apt.archives().join(&plan.archives[*name].file), root)?;
        }
        Ok(())
    }

    /// Runs an installation in the sandbox, and gives the directory of its writable layer.
    fn install(
        &self,
        apt: &Apt,
        plan: &Plan,
        layers: Vec<PathBuf>,
        script: &str,
    ) -> Result<PathBuf, ImageError> {
        let (writable, help) = (self.work.fresh(), self.work.fresh());
        for dir in [&writable, &help] {
            fs::create_dir(dir).map_err(io("make", dir))?;
        }
        let write = |name: &str, text: &str| -> Result<PathBuf, ImageError> {
            let path = help.join(name);
            fs::write(&path, text)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
                .map_err(io("write", &path))?;
            Ok(path)
        };
        let policy = write("policy-rc.d", POLICY)?;
        write("install", script)?;
        let told = Mutex::new((Vec::new(), 0_usize));
        let steps = plan.archives.len().max(1) * 2;
        let output = |line: &str| {
            let mut told = told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if line.starts_with("Unpacking ") || line.starts_with("Setting up ") {
                told.1 += 1;
                self.say(Event::Advance((told.1 as f32 / steps as f32).min(1.0), line));
            }
            told.0.push(line.to_owned());
        };
        let epoch = format!("SOURCE_DATE_EPOCH={}", self.options.source_date_epoch);
        let env = [
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/root",
            "LC_ALL=C.UTF-8",
            "DEBIAN_FRONTEND=noninteractive",
            "DEBCONF_NONINTERACTIVE_SEEN=true",
            "PYTHONHASHSEED=0",
            "PERL_HASH_SEED=0",
            "TZ=UTC",
            &epoch,
        ];
        let job = SandboxJob {
            layers,
            writable: writable.clone(),
            args: ["/bin/sh", "-e", &format!("{SCRIPT_AT}/install")].map(str::to_owned).to_vec(),
            env: env.map(str::to_owned).to_vec(),
            cwd: "/".to_owned(),
            network: false,
            shown: vec![
                (apt.archives(), PACKAGES_AT.to_owned()),
                (help.clone(), SCRIPT_AT.to_owned()),
                (policy, "/usr/sbin/policy-rc.d".to_owned()),
            ],
            output: &output,
        };
        let outcome =
            self.sandbox(None)?.run(&job).map_err(|error| self.wrong(None, format!("packages: {error}")))?;
        if outcome.exit_code != 0 {
            let told = told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let last = told.0.len().saturating_sub(SHOWN_LINES);
            let message = format!(
                "packages: dpkg failed with exit code {}:\n{}",
                outcome.exit_code,
                told.0[last..].join("\n")
            );
            return Err(self.wrong(None, message));
        }
        Ok(writable)
    }

    fn unknown_suite(&self, suite: &str, at: &Word, told: &str) -> ImageError {
        let meant = closest(suite, &SUITES).filter(|meant| *meant != suite);
        let hint = match meant {
            Some(meant) => format!("did you mean \"debian:{meant}\"?"),
            None if told.is_empty() => format!("known are {}", SUITES.join(", ")),
            None => told.to_owned(),
        };
        self.wrong(at.at, format!("base: Debian has no release \"{suite}\": {hint}"))
    }

    /// Words apt's failure, at the package that it is about.
    fn explain(&self, key: &str, words: &[Word], apt: Option<&Apt>, error: AptError) -> ImageError {
        let first = words.first().and_then(|word| word.at);
        match error {
            AptError::Image(error) => error,
            AptError::Failed(told) | AptError::NoRelease(told) => self.wrong(first, format!("{key}: {told}")),
            AptError::Unknown(names) => {
                let all = apt.map(Apt::names).unwrap_or_default();
                let known: Vec<&str> = all.iter().map(String::as_str).collect();
                let one = |name: &String| match closest(name, &known) {
                    Some(meant) => format!("there is no package \"{name}\": did you mean \"{meant}\"?"),
                    None => format!("there is no package \"{name}\" in this release"),
                };
                let at = words.iter().find(|word| names.contains(&word.text)).and_then(|word| word.at);
                let texts: Vec<String> = names.iter().map(one).collect();
                self.wrong(at.or(first), format!("{key}: {}", texts.join("; ")))
            }
        }
    }
}

/// Runs dpkg in the order that apt decided on: as many packages at a time as possible.
fn script(plan: &Plan) -> String {
    let mut text = String::new();
    let mut actions = plan.actions.iter().peekable();
    while let Some(action) = actions.next() {
        let word = |action: &Action| match action {
            Action::Unpack(name) => format!("{PACKAGES_AT}/{}", plan.archives[name].file),
            Action::Configure(name) | Action::Remove(name) => name.clone(),
        };
        let same = |next: &&Action| std::mem::discriminant(*next) == std::mem::discriminant(action);
        let mut words = vec![word(action)];
        while let Some(next) = actions.next_if(same) {
            words.push(word(next));
        }
        let task = match action {
            Action::Unpack(_) => "--unpack --auto-deconfigure",
            Action::Configure(_) => "--configure",
            Action::Remove(_) => "--remove --force-depends",
        };
        text += &format!("{DPKG} {task} {}\n", words.join(" "));
    }
    // What is left is triggers.
    text + &format!("{DPKG} --configure --pending\n")
}

/// Extracts one package into a tree whose top directories may be links.
fn extract_one(package: &Path, root: &Path) -> Result<(), ImageError> {
    let failed = |what: &str| ImageError::Io {
        what: format!("unpack {}", package.display()),
        source: std::io::Error::other(what.to_owned()),
    };
    let run = |error: std::io::Error| failed(&format!("dpkg-deb and tar are needed: {error}"));
    let mut reader = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(run)?;
    let stream = reader.stdout.take().ok_or_else(|| failed("no output"))?;
    let tar = Command::new("tar")
        .args(["-x", "--keep-directory-symlink", "--numeric-owner", "-p", "-C"])
        .arg(root)
        .stdin(stream)
        .status()
        .map_err(run)?;
    let status = reader.wait().map_err(run)?;
    match status.success() && tar.success() {
        true => Ok(()),
        false => Err(failed("dpkg-deb or tar failed")),
    }
}

/// Where a stack of layers, lowest first, has a file. The path must not pass through links.
fn find(dirs: &[PathBuf], path: &str) -> Option<PathBuf> {
    for dir in dirs.iter().rev() {
        let mut at = dir.clone();
        let mut hidden = false;
        let mut there = true;
        for part in path.split('/') {
            hidden |= xattr::get(&at, "trusted.overlay.opaque").is_ok_and(|value| value.is_some());
            at.push(part);
            match fs::symlink_metadata(&at) {
                Ok(found) if !found.is_dir() && !found.is_file() => return None,
                Ok(_) => {}
                Err(_) => {
                    there = false;
                    break;
                }
            }
        }
        if there {
            return Some(at).filter(|at| at.is_file());
        }
        if hidden {
            return None;
        }
    }
    None
}
