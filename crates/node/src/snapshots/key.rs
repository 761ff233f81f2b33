//! Which pods can start from the same template: the key, and what a pod differs in.
//!
//! The key is made of everything that reaches the guest and stays in it: the pod template as far as containers see it,
//! the environment and files that they begin with, the images, and the machine. It is made from the pod without its
//! name, uid and address, so that all replicas have the same. Variables of Services are left out: they would give
//! every new Service of a namespace new templates (docs/snapshots.md says so).

use super::store::compatibility;
use crate::env::{self, Objects, PodFacts};
use crate::images::ResolvedImage;
use crate::supervisor::proto::VmSpec;
use crate::volumes::payload;
use cumulet_snapshot_format::Compatibility;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, PodSpec, Secret, Service, Volume};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Annotations that belong to snapshots begin so.
pub(crate) const ANNOTATIONS: &str = "snapshot.cumulet.dev/";

/// Fields of a pod's spec that do not reach the guest, or that every clone gets anew.
const NOT_IN_GUEST: &[&str] = &[
    "activeDeadlineSeconds",
    "affinity",
    "automountServiceAccountToken",
    "dnsConfig",
    "dnsPolicy",
    "enableServiceLinks",
    "hostAliases",
    "hostname",
    "imagePullSecrets",
    "nodeName",
    "nodeSelector",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "readinessGates",
    "restartPolicy",
    "schedulerName",
    "serviceAccount",
    "serviceAccountName",
    "setHostnameAsFQDN",
    "subdomain",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
];
/// The same of a container; image and environment are in the key as what they resolve to.
const NOT_IN_CONTAINER: &[&str] = &[
    "env",
    "envFrom",
    "image",
    "imagePullPolicy",
    "lifecycle",
    "livenessProbe",
    "terminationMessagePath",
    "terminationMessagePolicy",
];

/// Objects without Services.
struct NoServices<'a>(&'a dyn Objects);

impl Objects for NoServices<'_> {
    fn config_map(&self, name: &str) -> Option<Arc<ConfigMap>> {
        self.0.config_map(name)
    }

    fn secret(&self, name: &str) -> Option<Arc<Secret>> {
        self.0.secret(name)
    }

    fn services(&self) -> Vec<Arc<Service>> {
        Vec::new()
    }
}

/// Why the pod cannot start from a template, for people; `None` when it can.
pub(crate) fn unsuitable(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let inside = |volume: &&Volume| volume.empty_dir.is_some() || payload::is_payload(volume);
    if let Some(volume) = spec.volumes.iter().flatten().find(|volume| !inside(volume)) {
        return Some(format!(
            "volume \"{}\" is not inside the machine, and a clone cannot share it with its template",
            volume.name
        ));
    }
    let stored = |c: &&Container| {
        let resources = c.resources.as_ref();
        let maps = resources.into_iter().flat_map(|r| r.limits.iter().chain(r.requests.iter()));
        maps.into_iter().any(|map| map.contains_key("ephemeral-storage"))
    };
    containers(spec).find(stored).map(|c| {
        format!("container \"{}\" has ephemeral-storage on a disk, which clones cannot share", c.name)
    })
}

/// The labelled parts of the pod's key.
///
/// # Errors
/// An object that the pod refers to is missing; in the kubelet's words.
pub(crate) fn parts(
    pod: &Pod,
    vm: &VmSpec,
    images: &HashMap<String, ResolvedImage>,
    facts: &PodFacts,
    objects: &dyn Objects,
) -> Result<Vec<(String, Vec<u8>)>, String> {
    let (pod, facts, objects) = (nobody(pod), without_pod(facts), NoServices(objects));
    let spec = pod.spec.clone().unwrap_or_default();
    let mut parts = vec![
        ("namespace".to_owned(), pod.metadata.namespace.clone().unwrap_or_default().into_bytes()),
        ("spec".to_owned(), in_guest(&spec)?.to_string().into_bytes()),
        ("annotations".to_owned(), json!(annotations(&pod)).to_string().into_bytes()),
        ("machine".to_owned(), machine(vm).to_string().into_bytes()),
    ];
    for container in containers(&spec) {
        let image = images.get(&container.name);
        let image = image.ok_or_else(|| format!("the image of container {} is not there", container.name))?;
        let env = env::build(&pod, container, &image.env, &facts, &objects).map_err(|e| e.to_string())?;
        let defaults = [&image.entrypoint, &image.cmd];
        let value = json!({"image": image.id, "env": env.vars, "defaults": defaults,
            "dir": image.working_dir, "user": image.user});
        parts.push((format!("container {}", container.name), value.to_string().into_bytes()));
    }
    for volume in spec.volumes.iter().flatten().filter(|volume| payload::is_payload(volume)) {
        for (path, file) in payload::payload(volume, &pod, &facts, &objects)? {
            parts.push((format!("file {} {path}", volume.name), file.bytes));
        }
    }
    Ok(parts)
}

/// Variables in which the containers of the pod differ from those of its template, `NAME=value`, and the Services that
/// came later.
pub(crate) fn own_env(
    pod: &Pod,
    images: &HashMap<String, ResolvedImage>,
    facts: &PodFacts,
    objects: &dyn Objects,
) -> Vec<String> {
    let (other, other_facts, other_objects) = (nobody(pod), without_pod(facts), NoServices(objects));
    let mut own = BTreeMap::new();
    for container in pod.spec.iter().flat_map(containers) {
        let Some(image) = images.get(&container.name) else { continue };
        let mine = env::build(pod, container, &image.env, facts, objects);
        let theirs = env::build(&other, container, &image.env, &other_facts, &other_objects);
        let (Ok(mine), Ok(theirs)) = (mine, theirs) else { continue };
        let differing = mine.vars.iter().filter(|line| !theirs.vars.contains(line) && !line.contains('\n'));
        own.extend(
            differing.filter_map(|line| line.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned())),
        );
    }
    own.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// The pod without what no other has.
fn nobody(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    pod.metadata.name = Some(String::new());
    pod.metadata.uid = Some(String::new());
    pod
}

fn without_pod(facts: &PodFacts) -> PodFacts {
    PodFacts { pod_ips: Vec::new(), hostname: String::new(), ..facts.clone() }
}

fn annotations(pod: &Pod) -> BTreeMap<&str, &str> {
    let all = pod.metadata.annotations.iter().flatten();
    // How many wait, and where a pod goes on, is no matter of what it is.
    let other = |name: &str| name.ends_with("/standby") || name.ends_with("/restore-from");
    let ours = all.filter(|(name, _)| name.starts_with(ANNOTATIONS) && !other(name));
    ours.map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

fn in_guest(spec: &PodSpec) -> Result<Value, String> {
    let mut value = serde_json::to_value(spec).map_err(|e| e.to_string())?;
    let remove = |value: &mut Value, names: &[&str]| {
        if let Some(map) = value.as_object_mut() {
            names.iter().for_each(|name| drop(map.remove(*name)));
        }
    };
    remove(&mut value, NOT_IN_GUEST);
    for list in ["initContainers", "containers"] {
        for container in value.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            remove(container, NOT_IN_CONTAINER);
        }
    }
    Ok(value)
}

fn machine(vm: &VmSpec) -> Value {
    // The initramfs has a digest of the kernel, its modules and the agent for a name. The clock's rate is measured, and a
    // little different each time: it is compared when a template is read.
    let all = Compatibility { tsc_khz: None, ..compatibility(vm, "") };
    json!({"machine": all, "memory": vm.memory_bytes})
}

#[cfg(test)]
#[path = "key_tests.rs"]
mod tests;
