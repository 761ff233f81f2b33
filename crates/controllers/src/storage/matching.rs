//! Which volume a claim gets. Pure.

use super::{claim_class, claim_ref, refers_to, volume_class, volume_phase};
use crate::meta::{is_deleting, name, selects};
use cumulet_api::quantity::Quantity;
use cumulet_api::selector::Selector;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The amount of storage in a resource list; nothing when it does not say.
fn storage(list: Option<&BTreeMap<String, ApiQuantity>>) -> Option<Quantity> {
    list.and_then(|list| list.get("storage")).and_then(|q| Quantity::parse(&q.0).ok())
}

/// Where volumes may be looked for.
#[derive(Clone, Copy)]
pub(crate) enum Scope<'a> {
    /// Any volume that fits.
    All,
    /// Only those that somebody has set aside for this claim.
    Reserved,
    /// Any volume that fits and can be reached from this node.
    On(&'a Node),
}

/// The volume for a claim: one that was set aside for it, or else the smallest that fits.
pub(crate) fn find(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    scope: Scope<'_>,
) -> Option<Arc<PersistentVolume>> {
    let mut best: Option<(Quantity, &Arc<PersistentVolume>)> = None;
    for volume in volumes {
        if is_deleting(&volume.metadata) {
            continue;
        }
        if let Some(reference) = claim_ref(volume) {
            if refers_to(reference, claim) && mismatch(claim, volume).is_none() {
                return Some(volume.clone());
            }
            continue;
        }
        let reachable = match scope {
            Scope::All => true,
            Scope::Reserved => false,
            Scope::On(node) => reaches(volume, node),
        };
        let free = matches!(volume_phase(volume), "Available" | "Pending" | "");
        if !reachable || !free || mismatch(claim, volume).is_some() || !selected(claim, volume) {
            continue;
        }
        let Some(size) = storage(volume.spec.as_ref().and_then(|s| s.capacity.as_ref())) else { continue };
        let better = best.as_ref().is_none_or(|(least, known)| {
            size < *least || size == *least && name(&volume.metadata) < name(&known.metadata)
        });
        if better {
            best = Some((size, volume));
        }
    }
    best.map(|(_, volume)| volume.clone())
}

/// Why the claim cannot have the volume, in Kubernetes' words.
pub(crate) fn mismatch(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<&'static str> {
    let (wanted, given) = (claim.spec.as_ref()?, volume.spec.as_ref()?);
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".to_owned());
    let asked = storage(wanted.resources.as_ref().and_then(|r| r.requests.as_ref()));
    let modes = given.access_modes.as_deref().unwrap_or(&[]);
    if storage(given.capacity.as_ref()) < asked {
        return Some("requested PV is too small");
    }
    if claim_class(claim) != volume_class(volume) {
        return Some("storageClassName does not match");
    }
    if mode(&wanted.volume_mode) != mode(&given.volume_mode) {
        return Some("incompatible volumeMode");
    }
    if !wanted.access_modes.iter().flatten().all(|mode| modes.contains(mode)) {
        return Some("incompatible accessMode");
    }
    None
}

fn selected(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let Some(selector) = claim.spec.as_ref().and_then(|s| s.selector.as_ref()) else { return true };
    let parsed = serde_json::to_value(selector).ok().and_then(|v| Selector::from_label_selector(&v).ok());
    parsed.is_some_and(|selector| selects(&selector, &volume.metadata))
}

/// Whether the volume can be reached from the node.
pub(crate) fn reaches(volume: &PersistentVolume, node: &Node) -> bool {
    let affinity =
        volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()).and_then(|a| a.required.as_ref());
    affinity.is_none_or(|required| crate::scheduler::fit::node_matches(&required.node_selector_terms, node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn claim(spec: Value) -> PersistentVolumeClaim {
        let mut whole = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "s",
            "resources": {"requests": {"storage": "2Gi"}}});
        for (key, value) in spec.as_object().unwrap() {
            whole[key] = value.clone();
        }
        let object = json!({"metadata": {"name": "c", "namespace": "ns", "uid": "u"}, "spec": whole});
        serde_json::from_value(object).unwrap()
    }

    fn volume(name: &str, size: &str, spec: Value) -> Arc<PersistentVolume> {
        let mut whole = json!({"accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "storageClassName": "s",
            "capacity": {"storage": size}});
        for (key, value) in spec.as_object().unwrap() {
            whole[key] = value.clone();
        }
        let object = json!({"metadata": {"name": name, "labels": {"size": size}}, "spec": whole,
            "status": {"phase": "Available"}});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn the_smallest_that_fits() {
        let on = |node: &str| {
            json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}})
        };
        let for_claim = |uid: &str| json!({"claimRef": {"namespace": "ns", "name": "c", "uid": uid}});
        let volumes = [
            volume("big", "8Gi", json!({})),
            volume("here", "4Gi", on("n")),
            volume("there", "3Gi", on("m")),
            volume("small", "1Gi", json!({})),
            volume("other", "2Gi", json!({"storageClassName": "t"})),
            volume("device", "2Gi", json!({"volumeMode": "Block"})),
            volume("taken", "2Gi", for_claim("somebody")),
        ];
        let node: Node = serde_json::from_value(
            json!({"metadata": {"name": "n", "labels": {"kubernetes.io/hostname": "n"}}}),
        )
        .unwrap();
        let check = |spec: Value, scope: Scope<'_>, expected: Option<&str>| {
            let found = find(&claim(spec.clone()), &volumes, scope);
            assert_eq!(found.as_ref().and_then(|v| v.metadata.name.as_deref()), expected, "{spec}");
        };
        check(json!({}), Scope::All, Some("there"));
        check(json!({}), Scope::On(&node), Some("here"));
        check(json!({}), Scope::Reserved, None);
        check(json!({"volumeMode": "Block"}), Scope::All, Some("device"));
        check(json!({"storageClassName": "t"}), Scope::All, Some("other"));
        check(json!({"storageClassName": ""}), Scope::All, None);
        check(json!({"accessModes": ["ReadWriteMany"]}), Scope::All, None);
        check(json!({"selector": {"matchLabels": {"size": "8Gi"}}}), Scope::All, Some("big"));
        check(json!({"resources": {"requests": {"storage": "9Gi"}}}), Scope::All, None);
        for (uid, found) in [("", true), ("u", true), ("v", false)] {
            let volumes = [volume("a", "9Gi", for_claim(uid))];
            assert_eq!(find(&claim(json!({})), &volumes, Scope::Reserved).is_some(), found, "{uid:?}");
        }
    }

    #[test]
    fn what_does_not_fit() {
        for (spec, expected) in [
            (json!({}), None),
            (json!({"resources": {"requests": {"storage": "9Gi"}}}), Some("requested PV is too small")),
            (json!({"storageClassName": "t"}), Some("storageClassName does not match")),
            (json!({"volumeMode": "Block"}), Some("incompatible volumeMode")),
            (json!({"accessModes": ["ReadWriteOncePod"]}), Some("incompatible accessMode")),
        ] {
            assert_eq!(mismatch(&claim(spec.clone()), &volume("v", "4Gi", json!({}))), expected, "{spec}");
        }
    }
}
