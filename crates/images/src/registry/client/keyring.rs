//! Credentials: from Docker's configuration file and from Kubernetes' image pull secrets.
//!
//! An entry is for a registry, or for a part of it by path, and the most specific one that fits comes first, as the
//! kubelet has it. What a pull secret says never starts a program; what the user's own file says may start Docker's
//! credential helpers. Secrets show neither in `Debug` nor in errors.

use super::error::RegistryError;
use super::helper;
use base64::Engine;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// Largest file or secret that is read, in bytes: what Kubernetes lets a secret have.
const MAX_FILE: usize = 1 << 20;
/// What Docker calls its own registry in credentials.
pub(super) const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// Text that is not shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(pub(super) String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

/// What proves who one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Credential {
    /// User and password.
    Password { user: String, password: Secret },
    /// A token that is exchanged for others at the token service.
    Identity(Secret),
    /// A token for the registry itself.
    Registry(Secret),
}

/// Credentials for registries. Empty by default: everything is asked for anonymously.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    entries: Vec<(Scope, Credential)>,
    /// Registry → credential helper.
    helpers: BTreeMap<String, String>,
    /// The helper for all other registries.
    store: Option<String>,
}

/// Which images an entry is for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Scope {
    /// Labels of the host, in which `*` stands for anything.
    host: String,
    port: Option<String>,
    /// Without slashes around it; may be empty.
    path: String,
}

impl Keyring {
    /// Reads a Kubernetes pull secret: `.dockerconfigjson`, or the older `.dockercfg`. Helpers that it may name are
    /// ignored.
    ///
    /// # Errors
    /// When it is malformed; the message tells where, not what.
    pub fn from_docker_config(bytes: &[u8]) -> Result<Self, RegistryError> {
        let (entries, _) = read("of the secret", bytes)?;
        Ok(Self { entries, ..Self::default() })
    }

    /// Reads a user's own `config.json`, with its credential helpers. Empty when there is no such file.
    ///
    /// # Errors
    /// When it cannot be read or is malformed.
    pub fn from_file(path: &Path) -> Result<Self, RegistryError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(crate::error::io("read", path)(error).into()),
        };
        let origin = format!("in {}", path.display());
        let (entries, root) = read(&origin, &bytes)?;
        let word = |value: &Value| value.as_str().filter(|word| !word.is_empty()).map(str::to_owned);
        let helpers = match root.get("credHelpers") {
            Some(Value::Object(helpers)) => {
                helpers.iter().filter_map(|(host, name)| Some((host.clone(), word(name)?))).collect()
            }
            _ => BTreeMap::new(),
        };
        Ok(Self { entries, helpers, store: root.get("credsStore").and_then(word) })
    }

    /// The current user's own: `$DOCKER_CONFIG/config.json`, or `~/.docker/config.json`.
    ///
    /// # Errors
    /// When it cannot be read or is malformed.
    pub fn of_user() -> Result<Self, RegistryError> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        match (set("DOCKER_CONFIG"), set("HOME")) {
            (Some(dir), _) => Self::from_file(&Path::new(&dir).join("config.json")),
            (None, Some(home)) => Self::from_file(&Path::new(&home).join(".docker/config.json")),
            (None, None) => Ok(Self::default()),
        }
    }

    /// Both: where they are equally specific, what is in `self` comes first.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.entries.extend(other.entries);
        for (host, name) in other.helpers {
            self.helpers.entry(host).or_insert(name);
        }
        self.store = self.store.or(other.store);
        self
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.helpers.is_empty() && self.store.is_none()
    }

    /// What to try for a repository of a registry, best first. May run a credential helper.
    pub(super) async fn lookup(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Vec<Credential>, RegistryError> {
        let mut found = self.entries_for(registry, repository);
        let canonical = Scope::parse(registry).host;
        let own = |key: &&String| Scope::parse(key) == Scope::parse(registry);
        let helper =
            self.helpers.keys().find(own).and_then(|key| Some((key.as_str(), self.helpers.get(key)?)));
        let server = if canonical == "docker.io" { DOCKER_HUB_KEY } else { registry };
        if let Some((server, name)) = helper.or(self.store.as_ref().map(|name| (server, name)))
            && let Some(credential) = helper::ask(name, server).await?
        {
            found.insert(0, credential);
        }
        Ok(found)
    }

    fn entries_for(&self, registry: &str, repository: &str) -> Vec<Credential> {
        let wanted = Scope { path: repository.to_owned(), ..Scope::parse(registry) };
        let mut fitting: Vec<&(Scope, Credential)> =
            self.entries.iter().filter(|(scope, _)| scope.covers(&wanted)).collect();
        // Stable: of equals, the first one stays the first.
        fitting.sort_by_key(|(scope, _)| std::cmp::Reverse((scope.path.len(), scope.host.len())));
        fitting.into_iter().map(|(_, credential)| credential.clone()).collect()
    }
}

impl Scope {
    /// Reads a key of the configuration, which may be a URL.
    fn parse(key: &str) -> Self {
        let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
        let (authority, path) = bare.split_once('/').unwrap_or((bare, ""));
        // The version of the protocol, which older tools put behind the host.
        let path = match path.split_once('/').unwrap_or((path, "")) {
            ("v1" | "v2", rest) => rest,
            _ => path,
        };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.to_owned())),
            None => (authority, None),
        };
        let host = match host {
            "index.docker.io" | "registry-1.docker.io" => "docker.io",
            other => other,
        };
        Self { host: host.to_ascii_lowercase(), port, path: path.trim_matches('/').to_owned() }
    }

    fn covers(&self, wanted: &Self) -> bool {
        let (mut own, mut other) = (self.host.split('.'), wanted.host.split('.'));
        let host = loop {
            match (own.next(), other.next()) {
                (None, None) => break true,
                (Some(pattern), Some(label)) if matches(pattern, label) => {}
                _ => break false,
            }
        };
        let path = wanted.path.strip_prefix(self.path.as_str());
        host && self.port == wanted.port
            && (self.path.is_empty() || path.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    }
}

/// Whether a label is of a form in which `*` stands for anything.
fn matches(pattern: &str, label: &str) -> bool {
    let Some((front, back)) = pattern.split_once('*') else { return pattern == label };
    let Some(rest) = label.strip_prefix(front) else { return false };
    match back.contains('*') {
        false => rest.ends_with(back),
        true => (0..=rest.len()).filter_map(|at| rest.get(at..)).any(|rest| matches(back, rest)),
    }
}

type Entries = Vec<(Scope, Credential)>;

/// Reads both forms of the file, and returns it whole beside its entries.
fn read(origin: &str, bytes: &[u8]) -> Result<(Entries, Map<String, Value>), RegistryError> {
    let bad = |reason: String| RegistryError::Credentials { origin: origin.to_owned(), reason };
    if bytes.len() > MAX_FILE {
        return Err(bad(format!("larger than {MAX_FILE} bytes")));
    }
    // The parser's own message may quote what it found there.
    let root: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| {
        bad(format!(
            "not valid JSON of the form {{\"auths\": …}}: line {}, column {}",
            error.line(),
            error.column()
        ))
    })?;
    let auths = match root.get("auths") {
        None => &root,
        Some(Value::Object(auths)) => auths,
        Some(_) => return Err(bad("\"auths\" is not an object".to_owned())),
    };
    let mut entries = Vec::new();
    for (key, entry) in auths.iter().filter_map(|(key, entry)| Some((key, entry.as_object()?))) {
        match credential(entry) {
            Ok(Some(credential)) => entries.push((Scope::parse(key), credential)),
            Ok(None) => {}
            Err(reason) => return Err(bad(format!("\"{}\": {reason}", super::error::clean(key)))),
        }
    }
    Ok((entries, root))
}

fn credential(entry: &Map<String, Value>) -> Result<Option<Credential>, &'static str> {
    let word = |name: &str| entry.get(name).and_then(Value::as_str).filter(|word| !word.is_empty());
    if let Some(token) = word("identitytoken") {
        return Ok(Some(Credential::Identity(Secret(token.to_owned()))));
    }
    if let Some(token) = word("registrytoken") {
        return Ok(Some(Credential::Registry(Secret(token.to_owned()))));
    }
    if let Some(user) = word("username") {
        let password = Secret(word("password").unwrap_or_default().to_owned());
        return Ok(Some(Credential::Password { user: user.to_owned(), password }));
    }
    let Some(encoded) = word("auth") else { return Ok(None) };
    let engines =
        [base64::engine::general_purpose::STANDARD, base64::engine::general_purpose::STANDARD_NO_PAD];
    let decoded = engines.iter().find_map(|engine| engine.decode(encoded.trim()).ok());
    let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or("\"auth\" is not base64")?;
    // Docker pads with NUL bytes.
    let (user, password) = text.split_once(':').ok_or("\"auth\" is not the base64 of USER:PASSWORD")?;
    let password = Secret(password.trim_matches('\0').to_owned());
    Ok(Some(Credential::Password { user: user.to_owned(), password }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(credential: &Credential) -> String {
        match credential {
            Credential::Password { user, password } => format!("{user}:{}", password.0),
            Credential::Identity(token) => format!("identity {}", token.0),
            Credential::Registry(token) => format!("registry {}", token.0),
        }
    }

    #[test]
    fn the_most_specific_entry_comes_first() {
        let keyring = Keyring::from_docker_config(
            br#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
                "gcr.io": {"username": "gcr", "password": "p"},
                "gcr.io/proj/": {"auth": "cHJvajpwOnEAAA=="},
                "*.example.com:5000": {"username": "wild"},
                "https://reg.lab/v2/": {"identitytoken": "it"},
                "http://tok.lab": {"registrytoken": "rt"},
                "empty.lab": {}
            }, "credsStore": "evil", "credHelpers": {"x": "y"}}"#,
        )
        .expect("config");
        let check = |registry: &str, repository: &str, expected: &[&str]| {
            let found: Vec<String> = keyring.entries_for(registry, repository).iter().map(user).collect();
            assert_eq!(found, expected, "{registry}/{repository}");
        };
        check("registry-1.docker.io", "library/x", &["hub:pw"]);
        check("docker.io", "library/x", &["hub:pw"]);
        check("gcr.io", "proj/app", &["proj:p:q", "gcr:p"]);
        check("gcr.io", "project/app", &["gcr:p"]);
        check("gcr.io:443", "proj/app", &[]);
        check("a.example.com:5000", "x", &["wild:"]);
        check("a.b.example.com:5000", "x", &[]);
        check("reg.lab", "x", &["identity it"]);
        check("tok.lab", "x", &["registry rt"]);
        check("empty.lab", "x", &[]);
        assert!(keyring.store.is_none() && keyring.helpers.is_empty(), "a secret starts no program");
        let shown = format!("{keyring:?}");
        assert!(!shown.contains("pw") && !shown.contains("p:q") && !shown.contains("\"it\""), "{shown}");
    }

    #[test]
    fn the_older_form_and_merging() {
        let old =
            Keyring::from_docker_config(br#"{"a.lab": {"auth": "YTpi", "email": "x@y"}}"#).expect("old");
        let new = Keyring::from_docker_config(br#"{"auths": {"a.lab": {"auth": "Yzpk"}}}"#).expect("new");
        let both = old.merge(new);
        let found: Vec<String> = both.entries_for("a.lab", "x").iter().map(user).collect();
        assert_eq!(found, ["a:b", "c:d"]);
        assert!(Keyring::default().is_empty() && !both.is_empty());
    }

    #[test]
    fn mistakes_do_not_show_secrets() {
        let table: [&[u8]; 5] = [
            br#"{"auths": "hunter2"}"#,
            br#"{"auths": {"a": {"auth": "hunter2!"}}}"#,
            br#"{"auths": {"a": {"auth": "aHVudGVyMg=="}}}"#,
            br#"["hunter2"]"#,
            b"{\"auths\": hunter2",
        ];
        for text in table {
            let error = Keyring::from_docker_config(text).expect_err("malformed").to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn anything(text in "\\PC{0,60}", pattern in "[a*]{0,8}", label in "[ab]{0,8}") {
            let _ = Keyring::from_docker_config(text.as_bytes());
            Scope::parse(&text);
            matches(&pattern, &label);
        }
    }
}
