//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a pod.

use crate::config::NodeConfig;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use std::io;
use std::path::Path;

/// Most search domains and name servers that a resolver configuration of a pod gets; the API's limits.
const MAX_SEARCHES: usize = 32;
const MAX_NAMESERVERS: usize = 3;
/// Longest host name that the kernel takes, in bytes, and longest DNS label.
const MAX_HOSTNAME: usize = 64;
const MAX_LABEL: usize = 63;

/// Host name of a pod, alone and fully qualified (where it has a subdomain).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hostname {
    /// What `gethostname` returns in the pod.
    pub(crate) name: String,
    short: String,
    full: Option<String>,
}

impl Hostname {
    pub(crate) fn of(pod: &Pod, config: &NodeConfig) -> Result<Self, String> {
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        if spec.host_network == Some(true) {
            let name = host_name().unwrap_or_else(|| config.node_name.clone());
            return Ok(Self { short: name.clone(), name, full: None });
        }
        let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
        let short = spec.hostname.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_name);
        let short = short.get(..MAX_LABEL).unwrap_or(short).trim_end_matches(['-', '.']).to_owned();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let full = spec
            .subdomain
            .as_deref()
            .filter(|s| !s.is_empty())
            .map(|sub| format!("{short}.{sub}.{namespace}.svc.{}", config.cluster_domain));
        let name = match &full {
            Some(full) if spec.set_hostname_as_fqdn == Some(true) => full.clone(),
            _ => short.clone(),
        };
        if name.len() > MAX_HOSTNAME {
            return Err(format!("host name {name:?} is longer than {MAX_HOSTNAME} characters"));
        }
        Ok(Self { name, short, full })
    }
}

fn host_name() -> Option<String> {
    nix::unistd::gethostname().ok()?.into_string().ok()
}

/// Writes the three files into `dir`.
pub(crate) fn write(
    dir: &Path,
    pod: &Pod,
    hostname: &Hostname,
    pod_ip: Option<&str>,
    config: &NodeConfig,
) -> io::Result<()> {
    let host = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let resolver = std::fs::read_to_string(&config.host_resolv_conf).unwrap_or_default();
    put(&dir.join("hostname"), &format!("{}\n", hostname.name))?;
    put(&dir.join("hosts"), &hosts(pod, hostname, pod_ip, &host("/etc/hosts")))?;
    put(&dir.join("resolv.conf"), &resolv_conf(pod, config, &resolver))
}

/// Overwrites in place: the file is bind-mounted into containers that run already.
fn put(path: &Path, text: &str) -> io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    std::fs::write(path, text)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(path, mode)
}

fn hosts(pod: &Pod, hostname: &Hostname, pod_ip: Option<&str>, host: &str) -> String {
    let spec = pod.spec.as_ref();
    let mut text = if spec.and_then(|s| s.host_network) == Some(true) {
        format!("# Kubernetes-managed hosts file (host network).\n{host}")
    } else {
        let mut text = "# Kubernetes-managed hosts file.\n\
            127.0.0.1\tlocalhost\n\
            ::1\tlocalhost ip6-localhost ip6-loopback\n\
            fe00::0\tip6-localnet\n\
            fe00::0\tip6-mcastprefix\n\
            fe00::1\tip6-allnodes\n\
            fe00::2\tip6-allrouters\n"
            .to_owned();
        if let Some(ip) = pod_ip {
            let names = match &hostname.full {
                Some(full) => format!("{full}\t{}", hostname.short),
                None => hostname.short.clone(),
            };
            text.push_str(&format!("{ip}\t{names}\n"));
        }
        text
    };
    let aliases: Vec<_> = spec.and_then(|s| s.host_aliases.as_ref()).into_iter().flatten().collect();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            text.push_str(&format!(
                "{}\t{}\n",
                alias.ip,
                alias.hostnames.clone().unwrap_or_default().join("\t")
            ));
        }
    }
    text
}

/// The three directives of a resolver configuration.
#[derive(Default)]
struct Resolver {
    nameservers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => resolver.nameservers.extend(words.next()),
                Some("search" | "domain") => resolver.searches = words.collect(),
                Some("options") => resolver.options.extend(words),
                _ => {}
            }
        }
        resolver
    }

    fn add_option(&mut self, name: &str, value: Option<&str>) {
        self.options.retain(|o| o.split(':').next() != Some(name));
        self.options.push(value.map_or_else(|| name.to_owned(), |v| format!("{name}:{v}")));
    }

    fn text(mut self) -> String {
        let mut seen = std::collections::HashSet::new();
        self.searches.retain(|s| seen.insert(s.clone()));
        self.searches.truncate(MAX_SEARCHES);
        self.nameservers.dedup();
        self.nameservers.truncate(MAX_NAMESERVERS);
        let mut text = String::new();
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in &self.nameservers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

fn resolv_conf(pod: &Pod, config: &NodeConfig, host: &str) -> String {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let host_network = spec.host_network == Some(true);
    let host = Resolver::parse(host);
    let mut resolver = match (spec.dns_policy.as_deref().unwrap_or("ClusterFirst"), host_network) {
        ("None", _) => Resolver::default(),
        ("Default", _) | ("ClusterFirst", true) => host,
        _ => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let domain = &config.cluster_domain;
            let mut searches =
                vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
            searches.extend(host.searches);
            Resolver {
                nameservers: vec![config.cluster_dns.to_string()],
                searches,
                options: vec!["ndots:5".to_owned()],
            }
        }
    };
    if let Some(own) = &spec.dns_config {
        resolver.nameservers.extend(own.nameservers.iter().flatten().cloned());
        resolver.searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            if let Some(name) = &option.name {
                resolver.add_option(name, option.value.as_deref());
            }
        }
    }
    resolver.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::net::IpAddr;

    fn config() -> NodeConfig {
        NodeConfig::new("n1", "/s".into(), "/exe".into(), IpAddr::from([192, 0, 2, 1]))
    }

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "ns"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn resolver_by_policy() {
        let host = "search corp\nnameserver 192.0.2.53\noptions edns0\n";
        let cluster = "search ns.svc.cluster.local svc.cluster.local cluster.local corp\n\
            nameserver 10.97.0.10\noptions ndots:5\n";
        let own = json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.9"],
            "searches": ["x"], "options": [{"name": "ndots", "value": "2"}, {"name": "rotate"}]}});
        for (spec, want) in [
            (json!({"containers": []}), cluster),
            (json!({"containers": [], "dnsPolicy": "Default"}), host),
            (json!({"containers": [], "hostNetwork": true}), host),
            (json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}), cluster),
            (own, "search x\nnameserver 192.0.2.9\noptions ndots:2 rotate\n"),
        ] {
            assert_eq!(resolv_conf(&pod(spec.clone()), &config(), host), want, "{spec}");
        }
    }

    #[test]
    fn host_names() {
        let plain = Hostname::of(&pod(json!({"containers": []})), &config()).unwrap();
        assert_eq!(plain.name, "web-0");
        let spec = json!({"containers": [], "hostname": "db", "subdomain": "set", "hostAliases":
            [{"ip": "192.0.2.7", "hostnames": ["a", "b"]}]});
        let named = Hostname::of(&pod(spec.clone()), &config()).unwrap();
        assert_eq!(named.name, "db");
        let text = hosts(&pod(spec), &named, Some("10.86.0.2"), "");
        assert!(text.contains("10.86.0.2\tdb.set.ns.svc.cluster.local\tdb\n"), "{text}");
        assert!(text.ends_with("# Entries added by HostAliases.\n192.0.2.7\ta\tb\n"), "{text}");
    }
}
