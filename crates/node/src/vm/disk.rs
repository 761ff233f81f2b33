//! Machines that start from a disk of their own: which pods are, and what their guests are told about themselves.
//!
//! The disk comes with the image of the pod's one container. What a guest is told stands on a seed disk for cloud-init
//! (`NoCloud`): who it is, its network, and what the pod's annotations or a Secret say. Pure, but for [`write_seed`].

use crate::env::Objects;
use crate::images::ResolvedImage;
use crate::vm::text;
use cumulet_vmm::{DiskImage, seed};
use k8s_openapi::api::core::v1::{Pod, Secret};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Annotation with the user data (a script, or `#cloud-config`).
const USER_DATA: &str = "vm.cumulet.dev/user-data";
/// Annotation with the network configuration, instead of the pod's own address.
const NETWORK_CONFIG: &str = "vm.cumulet.dev/network-config";
/// Annotation with the name of a Secret of the pod's namespace that has one or both.
const SECRET: &str = "vm.cumulet.dev/cloud-init-secret";
/// Their keys in the Secret, both spellings of KubeVirt.
const USER_KEYS: [&str; 2] = ["userdata", "userData"];
const NETWORK_KEYS: [&str; 2] = ["networkdata", "networkData"];
/// Where the token of a service account would be mounted; that it is not there is no reason to refuse a pod.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The Secret that a pod's seed is made from.
pub(crate) fn secret_name(pod: &Pod) -> Option<&str> {
    annotation(pod, SECRET).filter(|name| !name.is_empty())
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// The disk that the pod's machine starts from, if it has one. `images` are those of all its containers. Reads the
/// disk's tables.
///
/// # Errors
/// The disk cannot be used, or the pod wants what only a machine with an agent has.
pub(crate) fn of(pod: &Pod, images: &[ResolvedImage]) -> Result<Option<PathBuf>, String> {
    let Some(disk) = images.iter().find_map(|image| image.disk.clone()) else { return Ok(None) };
    let spec = pod.spec.as_ref();
    let refuse = |what: &str| {
        Err(format!("a virtual machine with a disk of its own is the pod's only container: {what}"))
    };
    if images.len() > 1 {
        return refuse("this pod has several");
    }
    let mounts = spec.into_iter().flat_map(|s| &s.containers).flat_map(|c| c.volume_mounts.iter().flatten());
    if let Some(mount) = mounts.into_iter().find(|mount| mount.mount_path != SERVICE_ACCOUNT) {
        return refuse(&format!("nothing could mount its volume \"{}\"", mount.name));
    }
    DiskImage::open(&disk).map_err(|e| text(&e))?;
    Ok(Some(disk))
}

/// What a guest is told of its network.
pub(crate) struct SeedNetwork<'a> {
    pub(crate) mac: [u8; 6],
    /// With prefix length.
    pub(crate) address: &'a str,
    pub(crate) gateway: &'a str,
    /// The pod's `/etc/resolv.conf`.
    pub(crate) resolver: &'a str,
}

/// Writes the seed disk.
///
/// # Errors
/// A Secret that is missing or has nothing for us, or a file that cannot be written.
pub(crate) fn write_seed(
    path: &Path,
    pod: &Pod,
    hostname: &str,
    network: &SeedNetwork<'_>,
    objects: &dyn Objects,
) -> Result<(), String> {
    let files = files(pod, hostname, network, objects)?;
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    seed::create(path, seed::CLOUD_INIT_LABEL, &files).map_err(|e| text(&e))
}

/// The files of the seed. What is made here is JSON, which is YAML as well.
fn files(
    pod: &Pod,
    hostname: &str,
    network: &SeedNetwork<'_>,
    objects: &dyn Objects,
) -> Result<Vec<(&'static str, Vec<u8>)>, String> {
    let secret = match secret_name(pod) {
        Some(name) => {
            Some(objects.secret(name).ok_or_else(|| format!("{SECRET}: secret \"{name}\" not found"))?)
        }
        None => None,
    };
    let secret = secret.as_deref();
    let user = data(secret, USER_KEYS).or_else(|| Some(annotation(pod, USER_DATA)?.as_bytes().to_vec()));
    let own =
        data(secret, NETWORK_KEYS).or_else(|| Some(annotation(pod, NETWORK_CONFIG)?.as_bytes().to_vec()));
    if let Some(secret) =
        secret.filter(|s| data(Some(s), USER_KEYS).or(data(Some(s), NETWORK_KEYS)).is_none())
    {
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        return Err(format!("{SECRET}: secret \"{name}\" has neither \"userdata\" nor \"networkdata\""));
    }
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let meta = json!({"instance-id": uid, "local-hostname": hostname});
    Ok(vec![
        ("meta-data", lines(&meta)),
        ("network-config", own.unwrap_or_else(|| lines(&network_config(network)))),
        // cloud-init wants the file even if there is nothing to say.
        ("user-data", user.unwrap_or_else(|| b"#cloud-config\n{}\n".to_vec())),
    ])
}

fn data(secret: Option<&Secret>, keys: [&str; 2]) -> Option<Vec<u8>> {
    let data = secret?.data.as_ref()?;
    keys.iter().find_map(|key| data.get(*key)).map(|bytes| bytes.0.clone())
}

fn lines(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// The pod's address, in version 2 of cloud-init's format. The gateway is outside the address's own network (/32), so
/// it has a route of its own first: `on-link` alone is not understood by cloud-init before 23.
fn network_config(network: &SeedNetwork<'_>) -> Value {
    let [a, b, c, d, e, f] = network.mac;
    let words = |first: &str| -> Vec<&str> {
        let lines = network.resolver.lines().filter_map(|line| line.strip_prefix(first)?.strip_prefix(' '));
        lines.flat_map(str::split_whitespace).collect()
    };
    json!({"version": 2, "ethernets": {"eth0": {
        "match": {"macaddress": format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")},
        "set-name": "eth0",
        "addresses": [network.address],
        "nameservers": {"addresses": words("nameserver"), "search": words("search")},
        "routes": [
            {"to": format!("{}/32", network.gateway), "scope": "link"},
            {"to": "0.0.0.0/0", "via": network.gateway, "on-link": true},
        ],
    }}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inputs::ObjectSet;
    use std::sync::Arc;

    fn pod(annotations: Value, container: Value) -> Pod {
        let mut container = container;
        container["name"] = json!("vm");
        let meta = json!({"name": "web", "uid": "u-1", "annotations": annotations});
        serde_json::from_value(json!({"metadata": meta, "spec": {"containers": [container]}})).unwrap()
    }

    fn network() -> SeedNetwork<'static> {
        SeedNetwork {
            mac: [2, 0, 10, 86, 0, 7],
            address: "10.86.0.7/32",
            gateway: "10.86.0.1",
            resolver: "search ns.svc cluster.local\nnameserver 10.97.0.10\noptions ndots:5\n",
        }
    }

    fn image(disk: Option<&Path>) -> ResolvedImage {
        ResolvedImage { disk: disk.map(Path::to_owned), ..ResolvedImage::default() }
    }

    #[test]
    fn seeds() {
        let mut objects = ObjectSet::default();
        let check = |annotations: Value, objects: &ObjectSet, user: &str, network_words: &str| {
            let files = files(&pod(annotations, json!({})), "web", &network(), objects).unwrap();
            let names: Vec<_> = files.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, ["meta-data", "network-config", "user-data"]);
            let text = |n: usize| String::from_utf8(files[n].1.clone()).unwrap();
            assert!(text(0).contains("\"instance-id\": \"u-1\"") && text(0).contains("\"web\""));
            assert!(text(1).contains(network_words), "{}", text(1));
            assert_eq!(text(2), user);
        };
        let own = "\"addresses\": [\n          \"10.97.0.10\"";
        check(json!({}), &objects, "#cloud-config\n{}\n", own);
        check(json!({USER_DATA: "#!/bin/sh\n"}), &objects, "#!/bin/sh\n", "\"10.86.0.1/32\"");
        check(json!({NETWORK_CONFIG: "version: 1\n"}), &objects, "#cloud-config\n{}\n", "version: 1\n");
        let secret = json!({"metadata": {"name": "s"}, "data": {"userData": "YWJj"}});
        objects.secrets.insert("s".to_owned(), Arc::new(serde_json::from_value(secret).unwrap()));
        check(json!({SECRET: "s", USER_DATA: "not this"}), &objects, "abc", own);
        let empty = json!({"metadata": {"name": "e"}, "data": {"other": "YWJj"}});
        objects.secrets.insert("e".to_owned(), Arc::new(serde_json::from_value(empty).unwrap()));
        for (name, words) in [("e", "neither"), ("gone", "not found")] {
            let pod = pod(json!({SECRET: name}), json!({}));
            let error = files(&pod, "web", &network(), &objects).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn which_pods() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk.raw");
        std::fs::write(&disk, [0; 512]).unwrap();
        let plain = pod(json!({}), json!({}));
        assert_eq!(of(&plain, &[image(None)]), Ok(None));
        assert_eq!(of(&plain, &[image(Some(&disk))]), Ok(Some(disk.clone())));
        assert!(of(&plain, &[image(None), image(Some(&disk))]).unwrap_err().contains("several"));
        let mount = |path: &str| json!({"volumeMounts": [{"name": "data", "mountPath": path}]});
        let error = of(&pod(json!({}), mount("/data")), &[image(Some(&disk))]).unwrap_err();
        assert!(error.contains("\"data\""), "{error}");
        assert!(of(&pod(json!({}), mount(SERVICE_ACCOUNT)), &[image(Some(&disk))]).is_ok());
        std::fs::write(&disk, []).unwrap();
        assert!(of(&plain, &[image(Some(&disk))]).unwrap_err().contains("empty"));
    }
}
