//! Rules for the volumes of a pod specification.
//!
//! A volume of a source that no node of this cloud can mount is still a valid object, as in Kubernetes: the pod that
//! uses it waits, with an event. Only the sources in use here have their details checked.

use crate::kinds::checks::{
    Errors, anything, invalid, maybe_one_of, nonnegative_quantity, one_of, optional, required,
};
use crate::kinds::value::{at, int, items, text};
use cumulet_api::field::FieldError;
use cumulet_api::names;
use serde_json::Value;
use std::collections::BTreeSet;

/// Every source that a volume can have, in the order in which Kubernetes looks at them.
const SOURCES: &[&str] = &[
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];
/// Sources inside of a projected volume.
const PROJECTIONS: &[&str] =
    &["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"];
const HOST_PATH_TYPES: &[&str] =
    &["BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
/// What a downward-API volume can show.
const VOLUME_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const MORE_THAN_ONE: &str = "may not specify more than 1 volume type";

/// Checks all volumes.
pub(crate) fn validate(errors: &mut Errors, spec: &Value, path: &str) {
    let mut seen = BTreeSet::new();
    for (i, volume) in items(spec, "volumes").iter().enumerate() {
        let path = format!("{path}.volumes[{i}]");
        source(errors, volume, &path);
        let name = text(volume, "name");
        required(errors, volume, &path, "name", names::dns1123_label);
        if !name.is_empty() && !seen.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
    }
}

fn source(errors: &mut Errors, volume: &Value, path: &str) {
    let mut set = SOURCES.iter().filter(|s| at(volume, s).is_some());
    let Some(first) = set.next() else {
        errors.push(FieldError::required(path, "must specify a volume type"));
        return;
    };
    for more in set {
        errors.push(FieldError::forbidden(format!("{path}.{more}"), MORE_THAN_ONE));
    }
    let path = format!("{path}.{first}");
    let Some(source) = at(volume, first) else { return };
    match *first {
        "emptyDir" => empty_dir(errors, source, &path),
        "hostPath" => host_path(errors, source, &path),
        "secret" => {
            required(errors, source, &path, "secretName", anything);
            files(errors, source, &path);
        }
        "configMap" => {
            required(errors, source, &path, "name", anything);
            files(errors, source, &path);
        }
        "persistentVolumeClaim" => required(errors, source, &path, "claimName", anything),
        "downwardAPI" => {
            mode(errors, source, &path, "defaultMode");
            downward(errors, source, &path, &mut BTreeSet::new());
        }
        "projected" => projected(errors, source, &path),
        "nfs" => {
            required(errors, source, &path, "server", anything);
            required(errors, source, &path, "path", anything);
            if !text(source, "path").is_empty() && !text(source, "path").starts_with('/') {
                let message = "must be an absolute path";
                errors.push(FieldError::invalid(format!("{path}.path"), text(source, "path"), message));
            }
        }
        "csi" => required(errors, source, &path, "driver", anything),
        "image" => {
            required(errors, source, &path, "reference", anything);
            one_of(errors, source, &path, "pullPolicy", &["Always", "IfNotPresent", "Never"]);
        }
        _ => {}
    }
}

fn empty_dir(errors: &mut Errors, source: &Value, path: &str) {
    if let Some(limit) = at(source, "sizeLimit") {
        nonnegative_quantity(errors, &format!("{path}.sizeLimit"), limit);
    }
}

fn host_path(errors: &mut Errors, source: &Value, path: &str) {
    required(errors, source, path, "path", anything);
    no_backsteps(errors, &format!("{path}.path"), text(source, "path"));
    maybe_one_of(errors, source, path, "type", HOST_PATH_TYPES);
}

/// `items` and modes of a Secret or ConfigMap volume.
fn files(errors: &mut Errors, source: &Value, path: &str) {
    mode(errors, source, path, "defaultMode");
    key_paths(errors, source, path, &mut BTreeSet::new());
}

fn key_paths<'a>(errors: &mut Errors, source: &'a Value, path: &str, taken: &mut BTreeSet<&'a str>) {
    for (i, item) in items(source, "items").iter().enumerate() {
        let path = format!("{path}.items[{i}]");
        required(errors, item, &path, "key", anything);
        file_path(errors, item, &path, taken);
        mode(errors, item, &path, "mode");
    }
}

/// The path of a projected file: relative, inside of the volume, not reserved, used once.
fn file_path<'a>(errors: &mut Errors, item: &'a Value, path: &str, taken: &mut BTreeSet<&'a str>) {
    required(errors, item, path, "path", anything);
    let value = text(item, "path");
    let path = format!("{path}.path");
    descending_path(errors, &path, value);
    if value.starts_with("..") && !value.starts_with("../") && value != ".." {
        errors.push(FieldError::invalid(path.as_str(), value, "must not start with '..'"));
    }
    if !value.is_empty() && !taken.insert(value) {
        errors.push(FieldError::invalid(path, value, "conflicting duplicate paths"));
    }
}

fn mode(errors: &mut Errors, owner: &Value, path: &str, key: &str) {
    if let Some(mode) = int(owner, key).filter(|m| !(0..=0o777).contains(m)) {
        let message = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(format!("{path}.{key}"), mode, message));
    }
}

fn downward<'a>(errors: &mut Errors, source: &'a Value, path: &str, taken: &mut BTreeSet<&'a str>) {
    for (i, item) in items(source, "items").iter().enumerate() {
        let path = format!("{path}.items[{i}]");
        file_path(errors, item, &path, taken);
        mode(errors, item, &path, "mode");
        match (at(item, "fieldRef"), at(item, "resourceFieldRef")) {
            (Some(field), None) => {
                super::references::field_ref(errors, field, &format!("{path}.fieldRef"), VOLUME_FIELDS);
            }
            (None, Some(resource)) => {
                let path = format!("{path}.resourceFieldRef");
                super::references::resource_ref(errors, resource, &path, true);
            }
            (Some(_), Some(_)) => {
                let message = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(path, "resource", message));
            }
            (None, None) => {
                errors.push(FieldError::required(path, "one of fieldRef and resourceFieldRef is required"));
            }
        }
    }
}

fn projected(errors: &mut Errors, source: &Value, path: &str) {
    mode(errors, source, path, "defaultMode");
    let mut taken = BTreeSet::new();
    for (i, one) in items(source, "sources").iter().enumerate() {
        let path = format!("{path}.sources[{i}]");
        let mut set = PROJECTIONS.iter().filter(|s| at(one, s).is_some());
        let Some(first) = set.next() else {
            errors.push(FieldError::required(path, "must specify a volume type"));
            continue;
        };
        for more in set {
            errors.push(FieldError::forbidden(format!("{path}.{more}"), MORE_THAN_ONE));
        }
        let path = format!("{path}.{first}");
        let Some(inner) = at(one, first) else { continue };
        match *first {
            "secret" | "configMap" => {
                required(errors, inner, &path, "name", anything);
                key_paths(errors, inner, &path, &mut taken);
            }
            "downwardAPI" => downward(errors, inner, &path, &mut taken),
            "serviceAccountToken" => token(errors, inner, &path, &mut taken),
            _ => optional(errors, inner, &path, "name", anything),
        }
    }
}

fn token<'a>(errors: &mut Errors, source: &'a Value, path: &str, taken: &mut BTreeSet<&'a str>) {
    const SHORTEST_S: i64 = 600;
    const LONGEST_S: i64 = 1 << 32;
    let seconds = int(source, "expirationSeconds").unwrap_or(SHORTEST_S);
    let message = match seconds {
        s if s < SHORTEST_S => "may not specify a duration less than 10 minutes",
        s if s > LONGEST_S => "may not specify a duration larger than 2^32 seconds",
        _ => "",
    };
    if !message.is_empty() {
        errors.push(FieldError::invalid(format!("{path}.expirationSeconds"), seconds, message));
    }
    file_path(errors, source, path, taken);
}

/// A path relative to the volume that stays inside of it.
pub(crate) fn descending_path(errors: &mut Errors, path: &str, value: &str) {
    if value.starts_with('/') {
        errors.push(FieldError::invalid(path, value, "must be a relative path"));
    }
    no_backsteps(errors, path, value);
}

pub(crate) fn no_backsteps(errors: &mut Errors, path: &str, value: &str) {
    if value.split('/').any(|part| part == "..") {
        invalid(errors, path, value, vec!["must not contain '..'".to_owned()]);
    }
}
