//! `cumulet.yaml`: what it may say, and helpful words when it says something else.

use super::{disk, set_env, set_of};
use crate::oci::RunConfig;
use crate::store::read_capped;
use crate::{ImageError, Reference};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;
use std::collections::BTreeMap;
use std::path::Path;

/// The file that describes an image.
pub(super) const DESCRIPTION: &str = "cumulet.yaml";
/// Largest description, in bytes.
const MAX_DESCRIPTION: u64 = 1 << 20;

/// Kernel, init, what sets up the network that a machine is told of, and what lets its root grow with its disk.
const DISK_PACKAGES: [&str; 7] = [
    "cloud-guest-utils",
    "cloud-init",
    "e2fsprogs",
    "linux-image-cloud-amd64",
    "netplan.io",
    "systemd-resolved",
    "systemd-sysv",
];

/// Line and column in the description, from 1.
pub(super) type Place = Option<(u64, u64)>;

/// The description of an image. Keys not listed here are mistakes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Description {
    name: String,
    version: Option<String>,
    base: Option<Spanned<String>>,
    /// Debian packages on top of the base.
    #[serde(default)]
    packages: Vec<Spanned<String>>,
    /// Debian packages that only the commands of the build see.
    #[serde(default)]
    build_packages: Vec<Spanned<String>>,
    /// Keep what locales and documentation packages bring.
    #[serde(default)]
    pub(super) locales: bool,
    #[serde(default)]
    pub(super) docs: bool,
    /// Images whose layers are put on top.
    #[serde(default)]
    require: Vec<Spanned<String>>,
    /// Commands of a shell.
    #[serde(default)]
    build: Vec<Spanned<String>>,
    /// What the commands see below `/src`; everything when absent.
    sources: Option<Vec<Spanned<String>>>,
    /// Whether the commands may use the network.
    #[serde(default)]
    pub(super) network: bool,
    /// Path in the directory → absolute path in the image.
    #[serde(default)]
    pub(super) files: Files,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    user: Option<String>,
    workdir: Option<String>,
    #[serde(default)]
    expose: Vec<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    disk: Option<DiskPart>,
}

/// What counts only when a disk is built.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiskPart {
    /// Debian packages that a machine needs and a container does not.
    packages: Option<Vec<Spanned<String>>>,
    /// `512Mi`, `8Gi`.
    size: Option<Spanned<String>>,
    /// More parameters for the kernel.
    parameters: Option<String>,
}

impl DiskPart {
    /// Size of the disk in bytes, if it is given.
    pub(super) fn size_bytes(&self, path: &Path) -> Result<Option<u64>, ImageError> {
        let Some(size) = &self.size else { return Ok(None) };
        let units = [("Mi", 20), ("Gi", 30), ("Ti", 40)];
        let bytes = units.iter().find_map(|(unit, bits)| {
            size.value.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(1 << bits)
        });
        match bytes.filter(|bytes| (disk::MIN_BYTES..=disk::MAX_BYTES).contains(bytes)) {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(ImageError::Build {
                path: path.to_owned(),
                at: place(&size.referenced),
                message: format!("disk.size: \"{}\": write 512Mi or 8Gi, from 16Mi to 2Ti", size.value),
            }),
        }
    }

    pub(super) fn parameters(&self) -> String {
        self.parameters.as_deref().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// A word of the description, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) at: Place,
}

impl From<&Spanned<String>> for Word {
    fn from(spanned: &Spanned<String>) -> Self {
        Self { text: spanned.value.clone(), at: place(&spanned.referenced) }
    }
}

fn place(location: &serde_saphyr::Location) -> Place {
    Some((location.line(), location.column())).filter(|(line, _)| *line != 0)
}

/// One line of `files`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) source: String,
    pub(super) destination: String,
    pub(super) at: Place,
}

/// The map `files`, with the places of its lines. Sorted by source.
#[derive(Debug, Default)]
pub(super) struct Files(pub(super) Vec<Entry>);

impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = BTreeMap::<String, Spanned<String>>::deserialize(deserializer)?;
        let entry = |(source, destination): (String, Spanned<String>)| Entry {
            source,
            at: place(&destination.referenced),
            destination: destination.value,
        };
        Ok(Self(map.into_iter().map(entry).collect()))
    }
}

impl Description {
    /// Reads the description of a directory.
    pub(super) fn read(path: &Path) -> Result<Self, ImageError> {
        let text = String::from_utf8(read_capped(path, MAX_DESCRIPTION)?).map_err(|_| ImageError::Build {
            path: path.to_owned(),
            at: None,
            message: "not UTF-8 text".to_owned(),
        })?;
        Self::parse(path, &text)
    }

    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, ImageError> {
        let description: Self = serde_saphyr::from_str(text).map_err(|error| explain(path, &error))?;
        description.check(path)?;
        Ok(description)
    }

    fn check(&self, path: &Path) -> Result<(), ImageError> {
        let wrong =
            |at: Place, message: String| Err(ImageError::Build { path: path.to_owned(), at, message });
        if let Some(name) = self.env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return wrong(None, format!("env: \"{name}\" cannot be the name of a variable"));
        }
        if let Some(workdir) = self.workdir.as_ref().filter(|workdir| !workdir.starts_with('/')) {
            return wrong(None, format!("workdir: \"{workdir}\" must be an absolute path"));
        }
        if let Some(port) = self.expose.iter().find(|port| !is_port(port)) {
            return wrong(None, format!("expose: \"{port}\" is no port: write 8080, 8080/tcp or 53/udp"));
        }
        self.disk().size_bytes(path)?;
        let all = self.packages().into_iter().chain(self.build_packages()).chain(self.disk_packages());
        if let Some(bad) = all.into_iter().find(|word| !is_package(&word.text)) {
            return wrong(bad.at, format!("packages: \"{}\" is not the name of a Debian package", bad.text));
        }
        if let Some(bad) = self.commands().into_iter().find(|word| word.text.trim().is_empty()) {
            return wrong(bad.at, "build: an empty command".to_owned());
        }
        Ok(())
    }

    /// The name that the image gets: `tag` is another tag, or a whole name.
    pub(super) fn reference(&self, path: &Path, tag: Option<&str>) -> Result<Reference, ImageError> {
        let wrong = |message: String| ImageError::Build { path: path.to_owned(), at: None, message };
        let named = match (tag, &self.version) {
            (Some(tag), _) if tag.contains(['/', ':']) => tag.to_owned(),
            (Some(tag), _) => format!("{}:{tag}", self.name),
            (None, Some(version)) => format!("{}:{version}", self.name),
            (None, None) => {
                return Err(wrong("the key \"version\" is missing: write it, or give --tag".to_owned()));
            }
        };
        Reference::parse(&named).map_err(|error| wrong(format!("name and version: {error}")))
    }

    /// What the image starts from.
    pub(super) fn base(&self) -> Word {
        self.base.as_ref().map_or_else(|| Word { text: "scratch".to_owned(), at: None }, Word::from)
    }

    /// Packages, sorted and without duplicates.
    pub(super) fn packages(&self) -> Vec<Word> {
        sorted(&self.packages)
    }

    /// Packages for the commands alone, sorted and without duplicates.
    pub(super) fn build_packages(&self) -> Vec<Word> {
        sorted(&self.build_packages)
    }

    /// What counts only for a disk.
    pub(super) fn disk(&self) -> &DiskPart {
        static NONE: DiskPart = DiskPart { packages: None, size: None, parameters: None };
        self.disk.as_ref().unwrap_or(&NONE)
    }

    /// Packages for a disk alone; on a Debian base, what makes it a system that finds its network, unless others are
    /// named.
    pub(super) fn disk_packages(&self) -> Vec<Word> {
        let base = self.base();
        match &self.disk().packages {
            Some(packages) => sorted(packages),
            None if super::debian::suite_of(&base.text).is_some() => {
                DISK_PACKAGES.map(|name| Word { text: name.to_owned(), at: base.at }).to_vec()
            }
            None => Vec::new(),
        }
    }

    /// Whether the image has a program to run; the shell of a base is none.
    pub(super) fn runs(&self, config: &RunConfig) -> bool {
        config.entrypoint.as_ref().is_some_and(|words| !words.is_empty()) || self.cmd.is_some()
    }

    /// Images to merge, in order.
    pub(super) fn required(&self) -> Vec<Word> {
        self.require.iter().map(Word::from).collect()
    }

    /// Commands of the build, in order.
    pub(super) fn commands(&self) -> Vec<Word> {
        self.build.iter().map(Word::from).collect()
    }

    /// What the commands of the build see below `/src`.
    pub(super) fn sources(&self) -> Vec<Entry> {
        let entry =
            |word: Word| Entry { destination: format!("/src/{}", word.text), source: word.text, at: word.at };
        match &self.sources {
            Some(sources) => sources.iter().map(Word::from).map(entry).collect(),
            None => vec![Entry { source: ".".to_owned(), destination: "/src".to_owned(), at: None }],
        }
    }

    /// Puts on top of the base's configuration what the description says. A new entrypoint drops the base's
    /// arguments, since they were meant for the old one.
    pub(super) fn configure(&self, config: &mut RunConfig) {
        if self.entrypoint.is_some() {
            config.entrypoint.clone_from(&self.entrypoint);
            config.cmd = None;
        }
        if self.cmd.is_some() {
            config.cmd.clone_from(&self.cmd);
        }
        if self.user.is_some() {
            config.user.clone_from(&self.user);
        }
        if self.workdir.is_some() {
            config.working_dir.clone_from(&self.workdir);
        }
        for (name, value) in &self.env {
            set_env(config.env.get_or_insert_default(), name, value);
        }
        if !self.expose.is_empty() {
            let full = |port: &String| if port.contains('/') { port.clone() } else { format!("{port}/tcp") };
            config.exposed_ports.get_or_insert_default().extend(set_of(self.expose.iter().map(full)));
        }
        if !self.labels.is_empty() {
            config.labels.get_or_insert_default().extend(self.labels.clone());
        }
    }
}

fn sorted(words: &[Spanned<String>]) -> Vec<Word> {
    let mut words: Vec<Word> = words.iter().map(Word::from).collect();
    words.sort_by(|a, b| a.text.cmp(&b.text));
    words.dedup_by(|a, b| a.text == b.text);
    words
}

fn is_port(text: &str) -> bool {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    number.parse::<u16>().is_ok_and(|number| number != 0) && matches!(protocol, "tcp" | "udp" | "sctp")
}

/// Names as Debian's policy allows them.
fn is_package(name: &str) -> bool {
    let first = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() >= 2
        && name.bytes().next().is_some_and(first)
        && name.bytes().all(|c| first(c) || matches!(c, b'+' | b'-' | b'.'))
}

fn explain(path: &Path, error: &serde_saphyr::Error) -> ImageError {
    let error = error.without_snippet();
    let message = match error {
        serde_saphyr::Error::SerdeUnknownField { field, expected, .. } => match closest(field, expected) {
            Some(meant) => format!("unknown key \"{field}\": did you mean \"{meant}\"?"),
            None => format!("unknown key \"{field}\": known are {}", expected.join(", ")),
        },
        serde_saphyr::Error::SerdeMissingField { field, .. } => format!("the key \"{field}\" is missing"),
        other => other.to_string(),
    };
    let at = error.location().map(|location| (location.line(), location.column()));
    ImageError::Build { path: path.to_owned(), at, message }
}

/// The known word that a misspelt one is nearest to, if it is near.
pub(super) fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let (distance, best) = known.iter().map(|candidate| (edits(word, candidate), *candidate)).min()?;
    (distance <= 1 + best.len() / 4).then_some(best)
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let error = Description::parse(Path::new("cumulet.yaml"), text).expect_err(text).to_string();
        assert!(error.contains(expected), "{text:?}\n got: {error}\nwant: {expected}");
    }

    #[test]
    fn mistakes_are_placed_and_explained() {
        check(
            "name: a\nversion: \"1\"\nentrypont: [x]\n",
            "cumulet.yaml:3:1: unknown key \"entrypont\": did you mean \"entrypoint\"?",
        );
        check("name: a\nversion: \"1\"\nfile: {}\n", "did you mean \"files\"?");
        check("name: a\nversion: \"1\"\nzzzzzzz: 1\n", "known are name, version, base");
        check("version: \"1\"\n", "the key \"name\" is missing");
        check("name: a\nversion: \"1\"\nworkdir: app\n", "must be an absolute path");
        check("name: a\nversion: \"1\"\nexpose: [http]\n", "is no port");
        check("name: a\nversion: \"1\"\nexpose: [0]\n", "is no port");
        check("name: a\nversion: \"1\"\nenv: {\"A=B\": c}\n", "name of a variable");
        check("name: a\nversion: \"1\"\nentrypoint: run me\n", "cumulet.yaml:3:");
        check("name: a\nname: b\nversion: \"1\"\n", "cumulet.yaml:2:");
        check("name: [\n", "cumulet.yaml:");
        check("name: a\nversion: \"1\"\ndisk: {size: 8G}\n", "cumulet.yaml:3:14: disk.size: \"8G\"");
        check("name: a\nversion: \"1\"\ndisk: {size: 4Ti}\n", "from 16Mi to 2Ti");
        check("name: a\nversion: \"1\"\ndisk: {sice: 8Gi}\n", "did you mean \"size\"?");
    }

    #[test]
    fn numbers_are_taken_as_text() {
        let text =
            "name: a\nversion: 1.20\nexpose: [8080, 53/udp]\nenv: {PORT: 8080, ON: true}\nuser: 1000\n";
        let description = Description::parse(Path::new("cumulet.yaml"), text).expect("valid");
        let mut config = RunConfig::default();
        description.configure(&mut config);
        assert_eq!(description.reference(Path::new("x"), None).expect("name").short(), "a:1.20");
        assert_eq!(config.env, Some(vec!["ON=true".to_owned(), "PORT=8080".to_owned()]));
        assert_eq!(config.user.as_deref(), Some("1000"));
        let ports: Vec<String> = config.exposed_ports.expect("ports").into_keys().collect();
        assert_eq!(ports, ["53/udp", "8080/tcp"]);
    }
}
