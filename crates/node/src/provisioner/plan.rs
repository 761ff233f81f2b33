//! What is to be made for a claim, and what is to be done with a volume. Pure.

use super::files::Kind;
use cumulet_api::{Quantity, storage};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};
use std::path::Path;

/// The parameter of a class that says what its volumes are on, and its values.
const TYPE: &str = "type";
const DIRECTORY: &str = "directory";
const DISK: &str = "disk";

fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Whether the claim waits for a volume from us, given the node that we are.
pub(super) fn is_ours(claim: &PersistentVolumeClaim, node: &str) -> bool {
    let selected = annotation(&claim.metadata, storage::SELECTED_NODE);
    let bound = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).is_some_and(|v| !v.is_empty());
    annotation(&claim.metadata, storage::PROVISIONER) == Some(storage::LOCAL_PROVISIONER)
        && claim.metadata.deletion_timestamp.is_none()
        && !bound
        && selected.is_none_or(|selected| selected == node)
}

/// What to make for a claim of a class.
///
/// # Errors
/// Why it cannot be had, for the event `ProvisioningFailed`.
pub(super) fn kind(claim: &PersistentVolumeClaim, class: &StorageClass) -> Result<Kind, String> {
    let spec = claim.spec.clone().unwrap_or_default();
    if spec.selector.is_some() {
        return Err("claim Selector is not supported".to_owned());
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return Err("dataSource is not supported: volumes begin empty".to_owned());
    }
    let parameters = class.parameters.clone().unwrap_or_default();
    let ours = |key: &&String| key.as_str() != TYPE;
    if let Some(unknown) = parameters.keys().find(ours) {
        return Err(format!("parameter \"{unknown}\" is not known: there is only \"{TYPE}\""));
    }
    let disk = match parameters.get(TYPE).map_or(DIRECTORY, String::as_str) {
        DIRECTORY => false,
        DISK => true,
        other => {
            return Err(format!("type \"{other}\" is not known: there are \"{DIRECTORY}\" and \"{DISK}\""));
        }
    };
    let block = spec.volume_mode.as_deref() == Some("Block");
    if !(disk || block) {
        return Ok(Kind::Directory);
    }
    let shared = |mode: &&String| mode.as_str() == "ReadWriteMany";
    if spec.access_modes.iter().flatten().any(|mode| shared(&mode)) {
        return Err("ReadWriteMany cannot be had on a disk, which one pod at a time can have".to_owned());
    }
    let requests = spec.resources.and_then(|r| r.requests).unwrap_or_default();
    let asked = requests.get("storage").and_then(|q| Quantity::parse(&q.0).ok());
    let bytes = asked.and_then(|q| u64::try_from(q.units()).ok()).ok_or("the claim asks for no storage")?;
    Ok(if block { Kind::Device(bytes) } else { Kind::Disk(bytes) })
}

/// The object of a volume that was made.
pub(super) fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    (kind, path): (Kind, &Path),
    node: &str,
) -> Result<PersistentVolume, String> {
    let spec = claim.spec.clone().unwrap_or_default();
    let policy = class.reclaim_policy.as_deref().unwrap_or("Delete");
    // A volume that is to be kept goes without us.
    let finalizers = if policy == "Delete" { vec![storage::PROVISIONER_FINALIZER] } else { Vec::new() };
    let capacity = spec.resources.and_then(|r| r.requests).unwrap_or_default();
    let fs_type = if matches!(kind, Kind::Disk(_)) { Value::from("ext4") } else { Value::Null };
    let uid = claim.metadata.uid.as_deref().unwrap_or_default();
    let object = json!({
        "metadata": {
            "name": storage::volume_name(uid),
            "annotations": {storage::PROVISIONED_BY: storage::LOCAL_PROVISIONER},
            "finalizers": finalizers,
        },
        "spec": {
            "capacity": {"storage": capacity.get("storage")},
            "accessModes": spec.access_modes,
            "volumeMode": spec.volume_mode,
            "persistentVolumeReclaimPolicy": policy,
            "storageClassName": class.metadata.name,
            "claimRef": cumulet_cluster::events::reference(claim),
            "local": {"path": path, "fsType": fs_type},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}},
        },
    });
    serde_json::from_value(object).map_err(|e| format!("the volume's object cannot be made: {e}"))
}

/// What a volume needs from who made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Nothing.
    Nothing,
    /// Its files are to go, and then it.
    Remove,
    /// It goes, its files stay.
    LetGo,
}

/// What is to be done with a volume, given where its files would be.
pub(super) fn task(volume: &PersistentVolume, path: &Path) -> Task {
    let meta = &volume.metadata;
    let spec = volume.spec.clone().unwrap_or_default();
    let ours = annotation(meta, storage::PROVISIONED_BY) == Some(storage::LOCAL_PROVISIONER)
        && spec.local.is_some_and(|local| Path::new(&local.path) == path);
    let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    let held = meta.finalizers.iter().flatten().any(|f| f == storage::PROVISIONER_FINALIZER);
    let delete = spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete");
    match (ours, meta.deletion_timestamp.is_some(), delete) {
        (true, true, true) if phase != "Bound" && held => Task::Remove,
        (true, true, false) if held => Task::LetGo,
        (true, false, true) if phase == "Released" => Task::Remove,
        _ => Task::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(spec: Value, annotations: Value) -> PersistentVolumeClaim {
        let mut whole =
            json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        for (key, value) in spec.as_object().unwrap() {
            whole[key] = value.clone();
        }
        let meta = json!({"name": "c", "namespace": "ns", "uid": "u", "annotations": annotations});
        serde_json::from_value(json!({"metadata": meta, "spec": whole})).unwrap()
    }

    fn class(parameters: Value) -> StorageClass {
        let class = json!({"metadata": {"name": "s"}, "provisioner": "p", "parameters": parameters});
        serde_json::from_value(class).unwrap()
    }

    #[test]
    fn what_is_made() {
        let gib = 1 << 30;
        for (spec, parameters, expected) in [
            (json!({}), json!({}), Ok(Kind::Directory)),
            (json!({"accessModes": ["ReadWriteMany"]}), json!({"type": "directory"}), Ok(Kind::Directory)),
            (json!({}), json!({"type": "disk"}), Ok(Kind::Disk(gib))),
            (json!({"volumeMode": "Block"}), json!({}), Ok(Kind::Device(gib))),
            (json!({"volumeMode": "Block"}), json!({"type": "disk"}), Ok(Kind::Device(gib))),
            (json!({"accessModes": ["ReadWriteMany"]}), json!({"type": "disk"}), Err("ReadWriteMany")),
            (json!({}), json!({"type": "tape"}), Err("\"tape\" is not known")),
            (json!({}), json!({"size": "1"}), Err("\"size\" is not known")),
            (json!({"selector": {}}), json!({}), Err("Selector")),
            (json!({"dataSource": {"kind": "k", "name": "n"}}), json!({}), Err("dataSource")),
        ] {
            match (kind(&claim(spec.clone(), json!({})), &class(parameters)), expected) {
                (Err(message), Err(text)) => assert!(message.contains(text), "{message}"),
                (got, expected) => assert_eq!(got, expected.map_err(str::to_owned), "{spec}"),
            }
        }
    }

    #[test]
    fn whose_claims() {
        let ours = storage::LOCAL_PROVISIONER;
        for (spec, annotations, expected) in [
            (json!({}), json!({storage::PROVISIONER: ours}), true),
            (json!({}), json!({storage::PROVISIONER: ours, storage::SELECTED_NODE: "n"}), true),
            (json!({}), json!({storage::PROVISIONER: ours, storage::SELECTED_NODE: "m"}), false),
            (json!({}), json!({storage::PROVISIONER: "other"}), false),
            (json!({}), json!({}), false),
            (json!({"volumeName": "v"}), json!({storage::PROVISIONER: ours}), false),
        ] {
            assert_eq!(
                is_ours(&claim(spec.clone(), annotations.clone()), "n"),
                expected,
                "{spec} {annotations}"
            );
        }
    }

    #[test]
    fn what_becomes_of_volumes() {
        let claim = claim(json!({}), json!({}));
        let path = Path::new("/s/volumes/pvc-u");
        let made = volume(&claim, &class(json!({})), (Kind::Directory, path), "n").unwrap();
        assert_eq!(made.metadata.name.as_deref(), Some("pvc-u"));
        let check = |phase: &str, deleting: bool, policy: &str, expected: Task| {
            let mut volume = made.clone();
            let spec = volume.spec.get_or_insert_default();
            spec.persistent_volume_reclaim_policy = Some(policy.to_owned());
            volume.status.get_or_insert_default().phase = Some(phase.to_owned());
            if deleting {
                let now = k8s_openapi::jiff::Timestamp::UNIX_EPOCH;
                volume.metadata.deletion_timestamp =
                    Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
            }
            assert_eq!(task(&volume, path), expected, "{phase} {deleting} {policy}");
            assert_eq!(task(&volume, Path::new("/etc")), Task::Nothing);
        };
        check("Bound", false, "Delete", Task::Nothing);
        check("Released", false, "Delete", Task::Remove);
        check("Released", false, "Retain", Task::Nothing);
        check("Bound", true, "Delete", Task::Nothing);
        check("Released", true, "Delete", Task::Remove);
        check("Released", true, "Retain", Task::LetGo);
        check("Available", false, "Delete", Task::Nothing);
    }
}
