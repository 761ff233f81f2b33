//! The file that says where else to look for images, and which registries speak plain HTTP.
//!
//! ```yaml
//! mirrors:
//!   docker.io: [https://mirror.example.com, http://127.0.0.1:5000]   # asked in this order, then docker.io itself
//! insecure: [registry.lab:5000]                                       # plain HTTP
//! ```
//!
//! Plain HTTP is used with this machine itself and with what is listed as insecure, never else, and never because a
//! registry says so.

use super::error::RegistryError;
use crate::Reference;
use http::Uri;
use http::uri::{Authority, Scheme};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Mirrors and insecure registries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistriesConfig {
    /// Registry as image names begin with it → where to look first, as `https://HOST[/PATH]`, `http://HOST` or `HOST`.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Hosts, with port unless it is 80, that speak plain HTTP.
    pub insecure: Vec<String>,
}

/// A server that may have an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(super) scheme: Scheme,
    pub(super) authority: Authority,
    /// What comes before `/v2/`: empty, or a path that begins with a slash.
    pub(super) prefix: String,
}

/// Where the images of docker.io really are.
const DOCKER_HUB: &str = "registry-1.docker.io";

impl RegistriesConfig {
    /// Reads the file; without it there are no mirrors and no insecure registries.
    ///
    /// # Errors
    /// When the file cannot be read or has a mistake, with its place.
    pub fn load(path: &Path) -> Result<Self, RegistryError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(crate::error::io("read", path)(error).into()),
        }
    }

    /// Reads the text of the file at `path`, which errors name.
    ///
    /// # Errors
    /// When it has a mistake.
    pub fn parse(path: &Path, text: &str) -> Result<Self, RegistryError> {
        let wrong = |at, message| RegistryError::Config { path: path.to_owned(), at, message };
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let config: Self = serde_saphyr::from_str(text).map_err(|error| {
            let error = error.without_snippet();
            let message = match error {
                serde_saphyr::Error::SerdeUnknownField { field, expected, .. } => {
                    format!("unknown key \"{field}\": known are {}", expected.join(", "))
                }
                other => other.to_string(),
            };
            wrong(error.location().map(|location| (location.line(), location.column())), message)
        })?;
        config.check().map_err(|message| wrong(None, message))?;
        Ok(config)
    }

    /// Whether everything in it can be used.
    pub(super) fn check(&self) -> Result<(), String> {
        for host in &self.insecure {
            let authority = host.parse::<Authority>();
            if authority.is_err() || host.contains('@') {
                return Err(format!("insecure: \"{host}\" is not a host, or host and port"));
            }
        }
        for (registry, mirrors) in &self.mirrors {
            let known = Reference::parse(&format!("{registry}/a"));
            if known.is_err() || known.is_ok_and(|known| known.registry() != registry) {
                return Err(format!("mirrors: \"{registry}\" is not a registry, such as docker.io"));
            }
            mirrors.iter().try_for_each(|mirror| self.mirror(mirror).map(drop))?;
        }
        Ok(())
    }

    fn mirror(&self, text: &str) -> Result<Source, String> {
        let bad = || format!("mirrors: \"{text}\" is not a registry: write https://HOST or http://HOST:PORT");
        if !text.contains("://") {
            let authority: Authority = text.parse().map_err(|_| bad())?;
            return Ok(self.source(authority, String::new()));
        }
        let uri: Uri = text.parse().map_err(|_| bad())?;
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else { return Err(bad()) };
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(bad());
        }
        let prefix = uri.path().trim_end_matches('/').to_owned();
        if *scheme == Scheme::HTTPS {
            return Ok(Source { scheme: Scheme::HTTPS, authority: authority.clone(), prefix });
        }
        match *scheme == Scheme::HTTP && self.is_plain(authority) {
            true => Ok(Source { scheme: Scheme::HTTP, authority: authority.clone(), prefix }),
            false => Err(format!(
                "mirrors: \"{text}\" would be used without encryption: write https, or list \"{authority}\" under insecure"
            )),
        }
    }

    fn source(&self, authority: Authority, prefix: String) -> Source {
        let scheme = if self.is_plain(&authority) { Scheme::HTTP } else { Scheme::HTTPS };
        Source { scheme, authority, prefix }
    }

    fn is_plain(&self, authority: &Authority) -> bool {
        is_loopback(authority.host()) || self.insecure.iter().any(|host| host == authority.as_str())
    }

    /// Where to look for the images of a registry, best first: its mirrors, then itself.
    pub(crate) fn sources(&self, registry: &str) -> Result<Vec<Source>, String> {
        let mut sources = Vec::new();
        for mirror in self.mirrors.get(registry).into_iter().flatten() {
            sources.push(self.mirror(mirror)?);
        }
        sources.push(self.origin(registry)?);
        Ok(sources)
    }

    /// The registry itself.
    pub(super) fn origin(&self, registry: &str) -> Result<Source, String> {
        let host = if registry == "docker.io" { DOCKER_HUB } else { registry };
        let authority = host.parse().map_err(|_| format!("\"{registry}\" is not a host"))?;
        Ok(self.source(authority, String::new()))
    }
}

impl Source {
    /// The address of something below `/v2/`.
    pub(crate) fn uri(&self, rest: &str) -> Result<Uri, http::Error> {
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(format!("{}/v2/{rest}", self.prefix))
            .build()
    }

    /// Whether somebody whom this server names may be asked too: with encryption anybody, without it only the server
    /// itself, so that it cannot make us talk to what only we can reach.
    pub(super) fn may_lead_to(&self, there: &Uri) -> bool {
        let Some(host) = there.host() else { return false };
        if there.authority().is_none_or(|authority| authority.as_str().contains('@')) {
            return false;
        }
        let here = self.authority.host();
        match there.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => {
                self.scheme == Scheme::HTTP
                    && (host.eq_ignore_ascii_case(here) || (is_loopback(host) && is_loopback(here)))
            }
            _ => false,
        }
    }
}

/// Whether a host is this machine.
fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RegistriesConfig, String> {
        RegistriesConfig::parse(Path::new("registries.yaml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn sources() {
        let config = parse(
            "mirrors:\n  docker.io: [https://m.example.com/hub/, 'http://127.0.0.1:5000', plain.lab:5000]\n\
             insecure: ['plain.lab:5000']\n",
        )
        .expect("config");
        let check = |registry: &str, expected: &[&str]| {
            let found = config.sources(registry).expect(registry);
            let uris: Vec<String> =
                found.iter().map(|source| source.uri("a/b").expect("uri").to_string()).collect();
            assert_eq!(uris, expected);
        };
        check(
            "docker.io",
            &[
                "https://m.example.com/hub/v2/a/b",
                "http://127.0.0.1:5000/v2/a/b",
                "http://plain.lab:5000/v2/a/b",
                "https://registry-1.docker.io/v2/a/b",
            ],
        );
        check("plain.lab:5000", &["http://plain.lab:5000/v2/a/b"]);
        check("plain.lab:5001", &["https://plain.lab:5001/v2/a/b"]);
        check("localhost:5000", &["http://localhost:5000/v2/a/b"]);
        check("ghcr.io", &["https://ghcr.io/v2/a/b"]);
        assert_eq!(parse("").expect("empty"), RegistriesConfig::default());
    }

    #[test]
    fn mistakes() {
        let table = [
            ("mirors: {}", "registries.yaml:1:1: unknown key \"mirors\": known are mirrors, insecure"),
            ("mirrors: {docker.io: [ftp://x]}", "without encryption"),
            ("mirrors: {docker.io: ['http://x.example.com']}", "list \"x.example.com\" under insecure"),
            ("mirrors: {docker.io: ['https://u:p@x.example.com']}", "is not a registry"),
            ("mirrors: {docker: []}", "is not a registry, such as docker.io"),
            ("insecure: ['http://x']", "is not a host"),
            ("insecure: 7", "registries.yaml:1:"),
        ];
        for (text, expected) in table {
            let error = parse(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn where_a_server_may_lead() {
        let config = RegistriesConfig { insecure: vec!["lab:5000".into()], ..RegistriesConfig::default() };
        let table = [
            ("ghcr.io", "https://cdn.example.com/x", true),
            ("ghcr.io", "http://ghcr.io/x", false),
            ("ghcr.io", "http://127.0.0.1/x", false),
            ("ghcr.io", "https://user@ghcr.io/x", false),
            ("lab:5000", "http://lab:5001/token", true),
            ("lab:5000", "http://127.0.0.1:80/", false),
            ("lab:5000", "http://169.254.169.254/", false),
            ("127.0.0.1:5000", "http://localhost:99/token", true),
            ("127.0.0.1:5000", "http://10.0.0.1/", false),
            ("127.0.0.1:5000", "https://10.0.0.1/", true),
            ("127.0.0.1:5000", "/relative", false),
        ];
        for (registry, there, expected) in table {
            let source = config.origin(registry).expect("origin");
            assert_eq!(source.may_lead_to(&there.parse().expect("uri")), expected, "{registry} {there}");
        }
    }
}
