//! PersistentVolumes: storage that exists, whoever made it.

use super::checks::{
    Errors, invalid, maybe_one_of, nonnegative_quantity, one_of, optional, quantity, required,
};
use super::persistentvolumeclaim::{
    ACCESS_MODES, VOLUME_MODES, access_modes, check_access_modes, claim_words,
};
use super::pod::volumes::no_backsteps;
use super::printing::{AGE, NAME, age, column, name, string, wide};
use super::value::{at, default_to, items, keep, map, object_mut, same_at, set, text};
use super::{checks, lifecycle, pod};
use crate::row::{Column, Row, Strategy};
use cumulet_api::field::FieldError;
use cumulet_api::storage::CLASS_BETA;
use cumulet_api::{meta, names};
use jiff::Timestamp;
use serde_json::{Value, json};

pub(crate) const ROW: Row = Row {
    group: "",
    version: "v1",
    kind: "PersistentVolume",
    plural: "persistentvolumes",
    singular: "persistentvolume",
    short_names: &["pv"],
    categories: &[],
    namespaced: false,
    status: true,
    scale: None,
    selectable_fields: &[],
    columns: COLUMNS,
    cells,
    strategy: &PersistentVolumes,
};

static COLUMNS: &[Column] = &[
    NAME,
    column("Capacity", "How much the volume holds."),
    column("Access Modes", "The ways in which the volume can be mounted."),
    column("Reclaim Policy", "What happens to the volume when its claim is gone."),
    column("Status", "Whether the volume is free, in use or left over."),
    column("Claim", "The claim that has the volume."),
    column("StorageClass", "The class of the volume."),
    column("VolumeAttributesClass", "The class of the volume's attributes."),
    column("Reason", "Why the volume is in a state that needs somebody."),
    AGE,
    wide("VolumeMode", "Whether the volume is a file system or a device."),
];

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let claim = match at(object, "spec.claimRef") {
        Some(claim) => format!("{}/{}", text(claim, "namespace"), text(claim, "name")),
        None => String::new(),
    };
    let (phase, mode) = claim_words(object);
    vec![
        name(object),
        storage(object, "spec.capacity").into(),
        access_modes(object, "spec.accessModes").into(),
        string(object, "spec.persistentVolumeReclaimPolicy"),
        phase.into(),
        claim.into(),
        class(object).into(),
        super::printing::string_or(object, "spec.volumeAttributesClassName", "<unset>"),
        string(object, "status.reason"),
        age(object, now),
        mode.into(),
    ]
}

/// The storage class: an annotation of old, or the field.
fn class(object: &Value) -> &str {
    let annotation = meta::annotations(object).get(CLASS_BETA).and_then(Value::as_str);
    annotation.unwrap_or_else(|| text(object, "spec.storageClassName"))
}

/// The amount of storage in a resource list; empty when there is none.
pub(crate) fn storage(object: &Value, path: &str) -> String {
    let amount = map(object, path).and_then(|list| list.get("storage")).and_then(quantity);
    amount.map(|q| q.to_string()).unwrap_or_default()
}

/// Every kind of storage that a volume can be on.
const SOURCES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];
const HOST_PATH_TYPES: &[&str] =
    &["BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
const RECLAIM_POLICIES: &[&str] = &["Delete", "Recycle", "Retain"];
const NODE_OPERATORS: &[&str] = &["DoesNotExist", "Exists", "Gt", "In", "Lt", "NotIn"];

struct PersistentVolumes;

impl Strategy for PersistentVolumes {
    fn default(&self, object: &mut Value) {
        if let Some(status) = object_mut(object, "status") {
            default_to(status, "phase", "Pending");
        }
        let Some(spec) = object_mut(object, "spec") else { return };
        default_to(spec, "persistentVolumeReclaimPolicy", "Retain");
        default_to(spec, "volumeMode", "Filesystem");
        if let Some(path) = spec.get_mut("hostPath").filter(|path| path.is_object()) {
            default_to(path, "type", "");
        }
        pod::defaults::canonical_quantities(spec, "capacity");
    }

    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({"phase": "Pending"}));
    }

    fn prepare_update(&self, old: &Value, new: &mut Value) {
        keep(old, new, "status");
        lifecycle::carry_generation(old, new, false);
    }

    fn prepare_status_update(&self, old: &Value, new: &mut Value) {
        lifecycle::update_status(old, new);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let Some(spec) = at(object, "spec") else {
            errors.push(FieldError::required("spec", ""));
            return errors;
        };
        check_access_modes(&mut errors, spec, "");
        capacity(&mut errors, spec);
        maybe_one_of(&mut errors, spec, "spec", "persistentVolumeReclaimPolicy", RECLAIM_POLICIES);
        let affinity = node_affinity(&mut errors, spec);
        source(&mut errors, spec, affinity);
        let recycled = text(spec, "persistentVolumeReclaimPolicy") == "Recycle";
        if recycled && is_root(text(spec, "hostPath.path")) {
            let message = "may not be 'recycle' for a hostPath mount of '/'";
            errors.push(FieldError::forbidden("spec.persistentVolumeReclaimPolicy", message));
        }
        optional(&mut errors, spec, "spec", "storageClassName", names::dns1123_subdomain);
        maybe_one_of(&mut errors, spec, "spec", "volumeMode", VOLUME_MODES);
        errors
    }

    fn validate_update(&self, old: &Value, new: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        if SOURCES.iter().any(|source| !same_at(old, new, &format!("spec.{source}"))) {
            let message = "spec.persistentvolumesource is immutable after creation";
            errors.push(FieldError::forbidden("spec.persistentvolumesource", message));
        }
        checks::immutable(&mut errors, old, new, "spec.volumeMode");
        if at(old, "spec.nodeAffinity").is_some() {
            checks::immutable(&mut errors, old, new, "spec.nodeAffinity");
        }
        errors
    }
}

fn is_root(path: &str) -> bool {
    !path.is_empty() && path.split('/').all(|part| part.is_empty() || part == ".")
}

fn capacity(errors: &mut Errors, spec: &Value) {
    let empty = serde_json::Map::new();
    let capacity = map(spec, "capacity").unwrap_or(&empty);
    if capacity.is_empty() {
        errors.push(FieldError::required("spec.capacity", ""));
    }
    if !capacity.contains_key("storage") || capacity.len() > 1 {
        let value = Value::Object(capacity.clone());
        errors.push(FieldError::not_supported("spec.capacity", value, &["storage"]));
    }
    for (resource, amount) in capacity {
        positive(errors, &format!("spec.capacity[{resource}]"), amount);
    }
}

/// The amount must be a quantity above zero.
pub(crate) fn positive(errors: &mut Errors, path: &str, amount: &Value) {
    if let Some(amount) = nonnegative_quantity(errors, path, amount).filter(|q| q.sign() == 0) {
        errors.push(FieldError::invalid(path, amount.to_string(), "must be greater than zero"));
    }
}

fn source(errors: &mut Errors, spec: &Value, affinity: bool) {
    let mut set = SOURCES.iter().filter(|source| at(spec, source).is_some());
    let Some(first) = set.next() else {
        errors.push(FieldError::required("spec", "must specify a volume type"));
        return;
    };
    for more in set {
        errors.push(FieldError::forbidden(format!("spec.{more}"), "may not specify more than 1 volume type"));
    }
    let path = format!("spec.{first}");
    let Some(source) = at(spec, first) else { return };
    match *first {
        "hostPath" => {
            required(errors, source, &path, "path", checks::anything);
            no_backsteps(errors, &format!("{path}.path"), text(source, "path"));
            maybe_one_of(errors, source, &path, "type", HOST_PATH_TYPES);
        }
        "local" => {
            required(errors, source, &path, "path", checks::anything);
            no_backsteps(errors, &format!("{path}.path"), text(source, "path"));
            if !affinity {
                let message = "Local volume requires node affinity";
                errors.push(FieldError::required("spec.nodeAffinity", message));
            }
        }
        "nfs" => {
            required(errors, source, &path, "server", checks::anything);
            required(errors, source, &path, "path", checks::anything);
        }
        "csi" => {
            required(errors, source, &path, "driver", checks::anything);
            required(errors, source, &path, "volumeHandle", checks::anything);
        }
        _ => {}
    }
}

/// Checks where the volume can be reached from; true when it says so.
fn node_affinity(errors: &mut Errors, spec: &Value) -> bool {
    let Some(affinity) = at(spec, "nodeAffinity") else { return false };
    let path = "spec.nodeAffinity.required";
    if at(affinity, "required").is_none() {
        errors.push(FieldError::required(path, "must specify required node constraints"));
        return false;
    }
    let terms = items(affinity, "required.nodeSelectorTerms");
    if terms.is_empty() {
        let message = "must have at least one node selector term";
        errors.push(FieldError::required(format!("{path}.nodeSelectorTerms"), message));
    }
    for (i, term) in terms.iter().enumerate() {
        for (j, expression) in items(term, "matchExpressions").iter().enumerate() {
            let path = format!("{path}.nodeSelectorTerms[{i}].matchExpressions[{j}]");
            let key = text(expression, "key");
            invalid(errors, &format!("{path}.key"), key, names::qualified_name(key));
            one_of(errors, expression, &path, "operator", NODE_OPERATORS);
        }
    }
    true
}

/// The access modes as Kubernetes shortens them, in its order.
pub(crate) fn short_modes(modes: &[Value]) -> String {
    let short = ACCESS_MODES.iter().filter(|(mode, _)| modes.iter().any(|m| m == mode));
    short.map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::{check_cells, check_default, check_errors, check_update_errors};

    fn volume(spec: Value) -> Value {
        let mut whole = json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]});
        for (key, value) in spec.as_object().unwrap() {
            whole[key] = value.clone();
        }
        json!({"metadata": {"name": "v"}, "spec": whole})
    }

    #[test]
    fn defaults() {
        check_default(
            &ROW,
            json!({"spec": {"capacity": {"storage": "1024Mi"}, "hostPath": {"path": "/x"}}}),
            json!({"spec": {"capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x", "type": ""},
                "persistentVolumeReclaimPolicy": "Retain", "volumeMode": "Filesystem"}, "status": {"phase": "Pending"}}),
        );
    }

    #[test]
    fn rules() {
        let path = json!({"path": "/x"});
        let on = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n"]}]}]}});
        for (spec, expected) in [
            (json!({"hostPath": path}), vec![]),
            (json!({"local": path, "nodeAffinity": on}), vec![]),
            (
                json!({"local": path}),
                vec!["spec.nodeAffinity: Required value: Local volume requires node affinity"],
            ),
            (json!({}), vec!["spec: Required value: must specify a volume type"]),
            (
                json!({"hostPath": path, "nfs": {}}),
                vec!["spec.nfs: Forbidden: may not specify more than 1 volume type"],
            ),
            (
                json!({"hostPath": {"path": "/a/../b"}}),
                vec!["spec.hostPath.path: Invalid value: \"/a/../b\": must not contain '..'"],
            ),
            (json!({"hostPath": path, "accessModes": []}), vec!["spec.accessModes: Required value"]),
            (
                json!({"hostPath": path, "capacity": {"storage": "0"}}),
                vec!["spec.capacity[storage]: Invalid value: \"0\": must be greater than zero"],
            ),
            (
                json!({"hostPath": {"path": "//"}, "persistentVolumeReclaimPolicy": "Recycle"}),
                vec![
                    "spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'",
                ],
            ),
            (
                json!({"hostPath": path, "persistentVolumeReclaimPolicy": "Keep"}),
                vec![
                    "spec.persistentVolumeReclaimPolicy: Unsupported value: \"Keep\": supported values: \"Delete\", \
                     \"Recycle\", \"Retain\"",
                ],
            ),
        ] {
            check_errors(&ROW, volume(spec), &expected);
        }
    }

    #[test]
    fn where_it_lies_stays() {
        let old = volume(json!({"hostPath": {"path": "/x"}}));
        check_update_errors(
            &ROW,
            &old,
            volume(json!({"hostPath": {"path": "/x"}, "claimRef": {"name": "c"}})),
            &[],
        );
        check_update_errors(
            &ROW,
            &old,
            volume(json!({"hostPath": {"path": "/y"}})),
            &[
                "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation",
            ],
        );
        check_update_errors(
            &ROW,
            &old,
            volume(json!({"hostPath": {"path": "/x"}, "volumeMode": "Block"})),
            &["spec.volumeMode: Invalid value: \"Block\": field is immutable"],
        );
    }

    #[test]
    fn cells_are_those_of_kubectl() {
        let mut bound =
            volume(json!({"hostPath": {"path": "/x"}, "storageClassName": "s", "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": "Delete", "claimRef": {"namespace": "ns", "name": "c"},
            "accessModes": ["ReadWriteMany", "ReadWriteOnce"]}));
        bound["status"] = json!({"phase": "Bound"});
        let (unset, unknown, fs) = ("<unset>", "<unknown>", "Filesystem");
        let expected = ["v", "1Gi", "RWO,RWX", "Delete", "Bound", "ns/c", "s", unset, "", unknown, fs];
        check_cells(&ROW, &bound, &expected);
    }
}
