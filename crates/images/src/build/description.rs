//! `cumulet.yaml`: what it may say, and helpful words when it says something else.

use super::{set_env, set_of};
use crate::oci::RunConfig;
use crate::{ImageError, Reference};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The description of an image. Keys not listed here are mistakes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Description {
    name: String,
    version: String,
    #[serde(default = "scratch")]
    pub(super) base: String,
    /// Path in the directory → absolute path in the image.
    #[serde(default)]
    pub(super) files: BTreeMap<String, String>,
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
}

fn scratch() -> String {
    "scratch".to_owned()
}

impl Description {
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, ImageError> {
        let description: Self = serde_saphyr::from_str(text).map_err(|error| explain(path, &error))?;
        description.check(path)?;
        Ok(description)
    }

    fn check(&self, path: &Path) -> Result<(), ImageError> {
        let wrong = |message: String| Err(ImageError::Build { path: path.to_owned(), at: None, message });
        if let Some(name) = self.env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return wrong(format!("env: \"{name}\" cannot be the name of a variable"));
        }
        if let Some(workdir) = self.workdir.as_ref().filter(|workdir| !workdir.starts_with('/')) {
            return wrong(format!("workdir: \"{workdir}\" must be an absolute path"));
        }
        if let Some(port) = self.expose.iter().find(|port| !is_port(port)) {
            return wrong(format!("expose: \"{port}\" is no port: write 8080, 8080/tcp or 53/udp"));
        }
        Ok(())
    }

    /// The name that the image gets.
    pub(super) fn reference(&self, path: &Path) -> Result<Reference, ImageError> {
        Reference::parse(&format!("{}:{}", self.name, self.version)).map_err(|error| ImageError::Build {
            path: path.to_owned(),
            at: None,
            message: format!("name and version: {error}"),
        })
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

fn is_port(text: &str) -> bool {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    number.parse::<u16>().is_ok_and(|number| number != 0) && matches!(protocol, "tcp" | "udp" | "sctp")
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
fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
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
    }

    #[test]
    fn numbers_are_taken_as_text() {
        let text =
            "name: a\nversion: 1.20\nexpose: [8080, 53/udp]\nenv: {PORT: 8080, ON: true}\nuser: 1000\n";
        let description = Description::parse(Path::new("cumulet.yaml"), text).expect("valid");
        let mut config = RunConfig::default();
        description.configure(&mut config);
        assert_eq!(description.reference(Path::new("x")).expect("name").short(), "a:1.20");
        assert_eq!(config.env, Some(vec!["ON=true".to_owned(), "PORT=8080".to_owned()]));
        assert_eq!(config.user.as_deref(), Some("1000"));
        let ports: Vec<String> = config.exposed_ports.expect("ports").into_keys().collect();
        assert_eq!(ports, ["53/udp", "8080/tcp"]);
    }
}
