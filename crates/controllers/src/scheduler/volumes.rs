//! What the claims of a pod say about where it can run, and what is to be done before it does. Pure.
//!
//! A claim that waits for its first consumer gets its volume when a node was chosen: one that lies there is set aside
//! for it, or its provisioner is told the node. The pod is bound when all of its claims are.

use crate::meta::{annotation, is_deleting, name, namespace, uid};
use crate::pods::{is_finished, node as node_of};
use crate::storage::matching::{Scope, find, reaches};
use crate::storage::{claim_class, claim_phase, is_bound, is_owned_by, uses, volume_of, waits_for_consumer};
use cumulet_api::storage;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use std::sync::Arc;

/// Access mode of claims that one pod has for itself.
const ONE_POD: &str = "ReadWriteOncePod";

/// What there is of volumes when a decision is made.
pub(crate) struct Storage<'a> {
    /// A claim of the pod's namespace.
    pub(crate) claim: &'a dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>>,
    /// All volumes.
    pub(crate) volumes: &'a dyn Fn() -> Vec<Arc<PersistentVolume>>,
    /// A class.
    pub(crate) class: &'a dyn Fn(&str) -> Option<Arc<StorageClass>>,
    /// Pods of the pod's namespace.
    pub(crate) pods: &'a dyn Fn() -> Vec<Arc<Pod>>,
}

/// The claims of a pod, as far as they matter to where it runs.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// Volumes that the pod has already.
    bound: Vec<Arc<PersistentVolume>>,
    /// Claims that get their volume with the node.
    unbound: Vec<(Arc<PersistentVolumeClaim>, Arc<StorageClass>)>,
    volumes: Vec<Arc<PersistentVolume>>,
}

/// What is to be done for a claim before its pod can run on a node.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Set this volume aside for it.
    SetAside(Arc<PersistentVolume>, Arc<PersistentVolumeClaim>),
    /// Tell its provisioner the node.
    SelectNode(Arc<PersistentVolumeClaim>),
    /// Both have been done: its volume is on the way.
    Wait,
}

impl Claims {
    /// Looks at the claims of a pod.
    ///
    /// # Errors
    /// Why the pod can run nowhere, in Kubernetes' words.
    pub(crate) fn of(pod: &Pod, storage: &Storage<'_>) -> Result<Self, String> {
        let mut claims = Self::default();
        let wanted = uses(pod);
        if wanted.is_empty() {
            return Ok(claims);
        }
        claims.volumes = (storage.volumes)();
        for used in wanted {
            let claim_name = &used.claim;
            let Some(claim) = (storage.claim)(claim_name) else {
                return Err(match used.ephemeral {
                    true => format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim \"{claim_name}\""
                    ),
                    false => format!("persistentvolumeclaim \"{claim_name}\" not found"),
                });
            };
            if used.ephemeral && !is_owned_by(&claim.metadata, pod) {
                let (ns, pod) = (namespace(&pod.metadata), name(&pod.metadata));
                return Err(format!(
                    "PVC \"{ns}/{claim_name}\" was not created for pod \"{ns}/{pod}\" (pod is not owner)"
                ));
            }
            if claim_phase(&claim) == "Lost" {
                let volume = volume_of(&claim);
                return Err(format!(
                    "persistentvolumeclaim \"{claim_name}\" bound to non-existent persistentvolume \"{volume}\""
                ));
            }
            if is_deleting(&claim.metadata) {
                return Err(format!("persistentvolumeclaim \"{claim_name}\" is being deleted"));
            }
            claims.add(claim, storage)?;
        }
        Ok(claims)
    }

    fn add(&mut self, claim: Arc<PersistentVolumeClaim>, storage: &Storage<'_>) -> Result<(), String> {
        if is_bound(&claim) {
            let found = self.volumes.iter().find(|v| name(&v.metadata) == volume_of(&claim));
            let volume =
                found.ok_or("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)")?;
            self.bound.push(volume.clone());
            return Ok(());
        }
        let class = (storage.class)(claim_class(&claim));
        match class.filter(|class| waits_for_consumer(Some(class))) {
            Some(class) => self.unbound.push((claim, class)),
            None => return Err("pod has unbound immediate PersistentVolumeClaims".to_owned()),
        }
        Ok(())
    }

    /// Why the pod cannot run on the node for its volumes; nothing when it can.
    pub(crate) fn misfit(&self, node: &Node) -> Option<&'static str> {
        if !self.bound.iter().all(|volume| reaches(volume, node)) {
            return Some("node(s) didn't match PersistentVolume's node affinity");
        }
        let possible = |(claim, class): &(Arc<PersistentVolumeClaim>, Arc<StorageClass>)| {
            class.provisioner != storage::NO_PROVISIONER
                || find(claim, &self.volumes, Scope::On(node)).is_some()
        };
        let all = self.unbound.iter().all(possible);
        (!all).then_some("node(s) didn't find available persistent volumes to bind")
    }

    /// What is to be done before the pod can run on the node; nothing when all of its claims are bound.
    pub(crate) fn steps(&self, node: &Node) -> Vec<Step> {
        let mut left = self.volumes.clone();
        let mut steps = Vec::new();
        for (claim, class) in &self.unbound {
            if let Some(volume) = find(claim, &left, Scope::On(node)) {
                // Two claims of one pod do not get the same volume.
                left.retain(|other| name(&other.metadata) != name(&volume.metadata));
                let taken = crate::storage::claim_ref(&volume).is_some_and(crate::storage::has_uid);
                steps.push(if taken { Step::Wait } else { Step::SetAside(volume, claim.clone()) });
            } else if class.provisioner != storage::NO_PROVISIONER {
                let told = annotation(&claim.metadata, storage::SELECTED_NODE) == Some(name(&node.metadata));
                steps.push(if told { Step::Wait } else { Step::SelectNode(claim.clone()) });
            }
        }
        steps
    }
}

/// Says who has the pod's claims that one pod has for itself, if it is another pod.
pub(crate) fn exclusive_conflict(pod: &Pod, storage: &Storage<'_>) -> Option<&'static str> {
    let alone = |claim: &str| {
        let claim = (storage.claim)(claim)?;
        let modes = claim.spec.as_ref()?.access_modes.as_ref()?.contains(&ONE_POD.to_owned());
        modes.then_some(())
    };
    let mine: Vec<String> = uses(pod).into_iter().map(|u| u.claim).filter(|c| alone(c).is_some()).collect();
    if mine.is_empty() {
        return None;
    }
    let has = |other: &Arc<Pod>| {
        uid(&other.metadata) != uid(&pod.metadata)
            && node_of(other).is_some()
            && !is_finished(other)
            && uses(other).iter().any(|used| mine.contains(&used.claim))
    };
    (storage.pods)().iter().any(has).then_some(
        "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).expect("an object")
    }

    fn claim(name: &str, class: &str, volume: &str, meta: Value) -> Arc<PersistentVolumeClaim> {
        let mut metadata = json!({"name": name, "namespace": "ns", "uid": name});
        for (key, value) in meta.as_object().expect("a map") {
            metadata[key] = value.clone();
        }
        Arc::new(object(
            json!({"metadata": metadata, "spec": {"storageClassName": class, "volumeName": volume,
            "accessModes": ["ReadWriteOncePod"], "resources": {"requests": {"storage": "1Gi"}}}}),
        ))
    }

    fn pod(name: &str, node: Option<&str>, claim: &str) -> Pod {
        object(json!({"metadata": {"name": name, "namespace": "ns", "uid": name}, "spec": {"nodeName": node,
            "containers": [], "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}}))
    }

    /// What becomes of a pod with this claim: why not, or the steps, as text.
    fn check(wanted: &str, expected: &str) {
        let on = |node: &str| {
            json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}})
        };
        let bound = json!({"annotations": {storage::BIND_COMPLETED: "yes"}});
        let claims = [
            claim("new", "late", "", json!({})),
            claim("told", "late", "", json!({"annotations": {storage::SELECTED_NODE: "n"}})),
            claim("static", "by-hand", "", json!({})),
            claim("early", "now", "", json!({})),
            claim("going", "late", "", json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})),
            claim("here", "late", "here", bound.clone()),
            claim("there", "late", "there", bound.clone()),
            claim("lost", "late", "nowhere", bound),
        ];
        let volume = |name: &str, node: &str| {
            Arc::new(object(json!({"metadata": {"name": name}, "spec": {"nodeAffinity": on(node)}})))
        };
        let volumes: [Arc<PersistentVolume>; 2] = [volume("here", "n"), volume("there", "m")];
        let class = |mode: &str, provisioner: &str| -> Arc<StorageClass> {
            Arc::new(object(json!({"metadata": {}, "provisioner": provisioner, "volumeBindingMode": mode})))
        };
        let other = [Arc::new(pod("other", Some("n"), "here"))];
        let storage = Storage {
            claim: &|name| claims.iter().find(|c| c.metadata.name.as_deref() == Some(name)).cloned(),
            volumes: &|| volumes.to_vec(),
            class: &|name| match name {
                "late" => Some(class("WaitForFirstConsumer", "p")),
                "by-hand" => Some(class("WaitForFirstConsumer", storage::NO_PROVISIONER)),
                "now" => Some(class("Immediate", "p")),
                _ => None,
            },
            pods: &|| other.to_vec(),
        };
        let node: Node =
            object(json!({"metadata": {"name": "n", "labels": {"kubernetes.io/hostname": "n"}}}));
        let pod = pod("mine", None, wanted);
        let got = match Claims::of(&pod, &storage) {
            Err(why) => why,
            Ok(claims) => match claims.misfit(&node).or(exclusive_conflict(&pod, &storage)) {
                Some(why) => why.to_owned(),
                None => {
                    let names = claims.steps(&node).into_iter().map(|step| match step {
                        Step::SetAside(..) => "set aside",
                        Step::SelectNode(_) => "select node",
                        Step::Wait => "wait",
                    });
                    names.collect::<Vec<_>>().join(",")
                }
            },
        };
        assert_eq!(got, expected, "{wanted}");
    }

    #[test]
    fn claims_decide_with_the_node() {
        check("none", "persistentvolumeclaim \"none\" not found");
        check("going", "persistentvolumeclaim \"going\" is being deleted");
        check("early", "pod has unbound immediate PersistentVolumeClaims");
        check("lost", "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)");
        check("there", "node(s) didn't match PersistentVolume's node affinity");
        check("static", "node(s) didn't find available persistent volumes to bind");
        check(
            "here",
            "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
        );
        check("new", "select node");
        check("told", "wait");
    }
}
