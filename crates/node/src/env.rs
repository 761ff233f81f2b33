//! Environment of a container, in Kubernetes' order and precedence.
//!
//! Lowest first: the image's variables, `HOSTNAME`, then what the pod gives. Within the pod: `envFrom` in order, `env`
//! in order; service variables only where nothing of the pod has the name. `$(NAME)` refers to what was defined
//! before by the pod or by services, `$$` is a dollar sign, an unknown reference stays as written.

use crate::fields;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvFromSource, EnvVar, PersistentVolume, Pod, Secret, Service,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where the objects that an environment refers to are read from.
pub(crate) trait Objects {
    /// A ConfigMap of the pod's namespace.
    fn config_map(&self, name: &str) -> Option<Arc<ConfigMap>>;
    /// A Secret of the pod's namespace.
    fn secret(&self, name: &str) -> Option<Arc<Secret>>;
    /// The services whose variables the container gets.
    fn services(&self) -> Vec<Arc<Service>>;
    /// The volume that a volume of the pod has got through its claim; why there is none otherwise.
    fn claimed(&self, volume: &str) -> Result<Arc<PersistentVolume>, String> {
        Err(format!("nobody has looked for the claim of volume \"{volume}\""))
    }
}

/// What the fields of the pod resolve to, beyond the object itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct PodFacts {
    /// `status.podIPs`.
    pub(crate) pod_ips: Vec<String>,
    /// `status.hostIPs`.
    pub(crate) host_ips: Vec<String>,
    /// The pod's host name.
    pub(crate) hostname: String,
    /// What an absent CPU limit amounts to, in thousandths of a CPU.
    pub(crate) node_millicpu: i64,
    /// What an absent memory limit amounts to, in bytes.
    pub(crate) node_memory_bytes: i64,
}

/// Why an environment cannot be made; Display is Kubernetes' text, the reason is `CreateContainerConfigError`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EnvError {
    /// A ConfigMap or Secret is not there.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// It has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A value is not text.
    #[error("key {key} in Secret {name} is not valid UTF-8, so it cannot be an environment variable")]
    NotText {
        /// The secret.
        name: String,
        /// The key.
        key: String,
    },
    /// A field path that the downward API does not have.
    #[error("{0}")]
    Field(#[from] fields::FieldPathError),
}

/// Ordered variables in which a name occurs once.
#[derive(Clone, Debug, Default)]
struct Vars {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Vars {
    fn set(&mut self, name: &str, value: String) {
        if self.values.insert(name.to_owned(), value).is_none() {
            self.order.push(name.to_owned());
        }
    }

    fn list(&self) -> Vec<String> {
        self.order.iter().filter_map(|n| self.values.get(n).map(|v| format!("{n}={v}"))).collect()
    }
}

/// The finished environment.
#[derive(Clone, Debug)]
pub(crate) struct Environment {
    /// `NAME=value`, in order.
    pub(crate) vars: Vec<String>,
    /// What `$(NAME)` in command and arguments refers to.
    references: BTreeMap<String, String>,
}

impl Environment {
    /// Expands `$(NAME)` in an element of command or arguments.
    pub(crate) fn expand(&self, text: &str) -> String {
        expand(text, |name| self.references.get(name).cloned())
    }
}

/// Makes the environment of a container.
///
/// # Errors
/// [`EnvError`], when something not optional is missing.
pub(crate) fn build(
    pod: &Pod,
    container: &Container,
    image_env: &[String],
    facts: &PodFacts,
    objects: &dyn Objects,
) -> Result<Environment, EnvError> {
    let services = service_vars(&objects.services());
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut own = Vars::default();
    for source in container.env_from.iter().flatten() {
        from_source(source, objects, &mut own)?;
    }
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (_, Some(_)) => value_from(var, pod, container, facts, objects, namespace)?,
            (value, None) => {
                let known = |name: &str| own.values.get(name).or_else(|| services.get(name)).cloned();
                Some(expand(value.as_deref().unwrap_or_default(), known))
            }
        };
        if let Some(value) = value {
            own.set(&var.name, value);
        }
    }
    for (name, value) in services {
        if !own.values.contains_key(&name) {
            own.set(&name, value);
        }
    }
    let mut all = Vars::default();
    all.set("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    for line in image_env {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        all.set(name, value.to_owned());
    }
    all.set("HOSTNAME", facts.hostname.clone());
    if container.tty == Some(true) {
        all.set("TERM", "xterm".into());
    }
    for name in &own.order {
        all.set(name, own.values.get(name).cloned().unwrap_or_default());
    }
    Ok(Environment { vars: all.list(), references: own.values })
}

fn from_source(source: &EnvFromSource, objects: &dyn Objects, own: &mut Vars) -> Result<(), EnvError> {
    let prefix = source.prefix.as_deref().unwrap_or_default();
    if let Some(from) = &source.config_map_ref {
        match objects.config_map(&from.name) {
            Some(map) => {
                for (key, value) in map.data.iter().flatten() {
                    own.set(&format!("{prefix}{key}"), value.clone());
                }
            }
            None if from.optional == Some(true) => {}
            None => return Err(EnvError::NotFound { kind: "configmap", name: from.name.clone() }),
        }
    }
    if let Some(from) = &source.secret_ref {
        match objects.secret(&from.name) {
            Some(secret) => {
                for (key, value) in secret.data.iter().flatten() {
                    own.set(&format!("{prefix}{key}"), text(&value.0, &from.name, key)?);
                }
            }
            None if from.optional == Some(true) => {}
            None => return Err(EnvError::NotFound { kind: "secret", name: from.name.clone() }),
        }
    }
    Ok(())
}

fn text(bytes: &[u8], name: &str, key: &str) -> Result<String, EnvError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| EnvError::NotText { name: name.into(), key: key.into() })
}

fn value_from(
    var: &EnvVar,
    pod: &Pod,
    container: &Container,
    facts: &PodFacts,
    objects: &dyn Objects,
    namespace: &str,
) -> Result<Option<String>, EnvError> {
    let Some(from) = &var.value_from else { return Ok(None) };
    if let Some(field) = &from.field_ref {
        return Ok(Some(fields::field(pod, facts, &field.field_path)?));
    }
    if let Some(resource) = &from.resource_field_ref {
        let divisor = resource.divisor.as_ref().map(|q| q.0.as_str());
        return Ok(Some(fields::resource(pod, container, facts, (&resource.resource, divisor))?));
    }
    let no_key = |kind: &'static str, name: &str, key: &str| EnvError::NoKey {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        key: key.to_owned(),
    };
    if let Some(from) = &from.config_map_key_ref {
        let optional = from.optional == Some(true);
        let map = match objects.config_map(&from.name) {
            Some(map) => map,
            None if optional => return Ok(None),
            None => return Err(EnvError::NotFound { kind: "configmap", name: from.name.clone() }),
        };
        return match map.data.as_ref().and_then(|d| d.get(&from.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(no_key("ConfigMap", &from.name, &from.key)),
        };
    }
    if let Some(from) = &from.secret_key_ref {
        let optional = from.optional == Some(true);
        let secret = match objects.secret(&from.name) {
            Some(secret) => secret,
            None if optional => return Ok(None),
            None => return Err(EnvError::NotFound { kind: "secret", name: from.name.clone() }),
        };
        return match secret.data.as_ref().and_then(|d| d.get(&from.key)) {
            Some(value) => Ok(Some(text(&value.0, &from.name, &from.key)?)),
            None if optional => Ok(None),
            None => Err(no_key("Secret", &from.name, &from.key)),
        };
    }
    Ok(None)
}

/// Variables that tell of services, as Docker links once did.
fn service_vars(services: &[Arc<Service>]) -> BTreeMap<String, String> {
    let mut vars = BTreeMap::new();
    for service in services {
        let (Some(spec), Some(name)) = (&service.spec, &service.metadata.name) else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else {
            continue;
        };
        let Some(first) = spec.ports.iter().flatten().next() else { continue };
        let prefix = name.to_uppercase().replace('-', "_");
        let protocol = |p: &Option<String>| p.clone().unwrap_or_else(|| "TCP".into());
        vars.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
        vars.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
        let url = format!("{}://{ip}:{}", protocol(&first.protocol).to_lowercase(), first.port);
        vars.insert(format!("{prefix}_PORT"), url);
        for port in spec.ports.iter().flatten() {
            if let Some(name) = &port.name {
                let name = name.to_uppercase().replace('-', "_");
                vars.insert(format!("{prefix}_SERVICE_PORT_{name}"), port.port.to_string());
            }
            let proto = protocol(&port.protocol);
            let base = format!("{prefix}_PORT_{}_{proto}", port.port);
            vars.insert(base.clone(), format!("{}://{ip}:{}", proto.to_lowercase(), port.port));
            vars.insert(format!("{base}_PROTO"), proto.to_lowercase());
            vars.insert(format!("{base}_PORT"), port.port.to_string());
            vars.insert(format!("{base}_ADDR"), ip.to_owned());
        }
    }
    vars
}

/// Expands `$(NAME)`.
pub(crate) fn expand(text: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|t| t.split_once(')')) {
            match value(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&rest[at..=at + name.len() + 2]),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
#[path = "env_tests.rs"]
mod tests;
