//! PersistentVolumeClaims: what somebody wants of storage.

use super::checks::{Errors, label_selector, maybe_one_of, optional};
use super::persistentvolume::{positive, short_modes, storage};
use super::printing::{AGE, NAME, age, column, name, string, string_or, wide};
use super::value::{at, at_mut, default_to, items, keep, map, object_mut, same, set, text};
use super::{lifecycle, pod};
use crate::row::{Column, Row, Strategy};
use cumulet_api::field::FieldError;
use cumulet_api::storage::CLASS_BETA;
use cumulet_api::{meta, names};
use jiff::Timestamp;
use serde_json::{Value, json};

pub(crate) const ROW: Row = Row {
    group: "",
    version: "v1",
    kind: "PersistentVolumeClaim",
    plural: "persistentvolumeclaims",
    singular: "persistentvolumeclaim",
    short_names: &["pvc"],
    categories: &[],
    namespaced: true,
    status: true,
    scale: None,
    selectable_fields: &[],
    columns: COLUMNS,
    cells,
    strategy: &PersistentVolumeClaims,
};

/// Access modes with their short forms, in the order in which Kubernetes prints them.
pub(crate) const ACCESS_MODES: &[(&str, &str)] = &[
    ("ReadWriteOnce", "RWO"),
    ("ReadOnlyMany", "ROX"),
    ("ReadWriteMany", "RWX"),
    ("ReadWriteOncePod", "RWOP"),
];
/// What a volume can be.
pub(crate) const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
/// What a change of the specification is told.
const IMMUTABLE: &str = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";

static COLUMNS: &[Column] = &[
    NAME,
    column("Status", "Whether the claim has a volume."),
    column("Volume", "The volume that the claim has."),
    column("Capacity", "How much the volume holds."),
    column("Access Modes", "The ways in which the volume can be mounted."),
    column("StorageClass", "The class of storage that is claimed."),
    column("VolumeAttributesClass", "The class of the volume's attributes."),
    AGE,
    wide("VolumeMode", "Whether the volume is a file system or a device."),
];

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let bound = !text(object, "spec.volumeName").is_empty();
    let of_volume = |text: String| if bound { text } else { String::new() };
    let (phase, mode) = claim_words(object);
    let class = meta::annotations(object).get(CLASS_BETA).cloned();
    vec![
        name(object),
        phase.into(),
        string(object, "spec.volumeName"),
        of_volume(storage(object, "status.capacity")).into(),
        of_volume(access_modes(object, "status.accessModes")).into(),
        class.unwrap_or_else(|| string(object, "spec.storageClassName")),
        string_or(object, "spec.volumeAttributesClassName", "<unset>"),
        age(object, now),
        mode.into(),
    ]
}

/// The phase and the mode of a volume or a claim as they are printed.
pub(crate) fn claim_words(object: &Value) -> (&str, &str) {
    let phase = match meta::deletion_timestamp(object) {
        Some(_) => "Terminating",
        None => text(object, "status.phase"),
    };
    (phase, super::printing::or(text(object, "spec.volumeMode"), "<unset>"))
}

/// The access modes at `path` in their short forms.
pub(crate) fn access_modes(object: &Value, path: &str) -> String {
    short_modes(items(object, path))
}

struct PersistentVolumeClaims;

impl Strategy for PersistentVolumeClaims {
    fn default(&self, object: &mut Value) {
        if let Some(status) = object_mut(object, "status") {
            default_to(status, "phase", "Pending");
            pod::defaults::canonical_quantities(status, "capacity");
        }
        if let Some(spec) = object_mut(object, "spec") {
            default_spec(spec);
        }
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
        match at(object, "spec") {
            Some(spec) => validate_spec(&mut errors, spec, "spec"),
            None => errors.push(FieldError::required("spec", "")),
        }
        errors
    }

    fn validate_update(&self, old: &Value, new: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let (Some(before), Some(after)) = (at(old, "spec"), at(new, "spec")) else { return errors };
        let bound = text(old, "status.phase") == "Bound";
        let mut undone = after.clone();
        // The binding is made once; a claim that named no class may get the default one later.
        if text(before, "volumeName").is_empty() {
            keep(before, &mut undone, "volumeName");
        }
        if at(before, "storageClassName").is_none() && !bound {
            keep(before, &mut undone, "storageClassName");
        }
        if bound {
            keep(before, &mut undone, "volumeAttributesClassName");
            let kept = at(before, "resources.requests").cloned();
            if let (Some(resources), Some(kept)) = (at_mut(&mut undone, "resources"), kept) {
                set(resources, "requests", kept);
            }
        }
        if !same(Some(before), Some(&undone)) {
            let difference = pod::update::difference(before, &undone);
            errors.push(FieldError::forbidden("spec", format!("{IMMUTABLE}\n{difference}")));
        }
        let amount = |spec: &Value| {
            map(spec, "resources.requests").and_then(|r| r.get("storage")).and_then(super::checks::quantity)
        };
        if let (Some(was), Some(now)) = (amount(before), amount(after))
            && now < was
        {
            let message = "field can not be less than status.capacity";
            errors.push(FieldError::forbidden("spec.resources.requests.storage", message));
        }
        errors
    }
}

/// Defaults of a claim, and of the claim in a pod's ephemeral volume.
pub(crate) fn default_spec(spec: &mut Value) {
    default_to(spec, "volumeMode", "Filesystem");
    if let Some(resources) = spec.get_mut("resources").filter(|r| r.is_object()) {
        pod::defaults::canonical_quantities(resources, "requests");
        pod::defaults::canonical_quantities(resources, "limits");
    }
}

/// Rules of a claim's specification, wherever it stands.
pub(crate) fn validate_spec(errors: &mut Errors, spec: &Value, path: &str) {
    let mut own = Errors::new();
    check_access_modes(&mut own, spec, "at least 1 access mode is required");
    match map(spec, "resources.requests").and_then(|requests| requests.get("storage")) {
        None => own.push(FieldError::required("spec.resources[storage]", "")),
        Some(amount) => positive(&mut own, "spec.resources[storage]", amount),
    }
    if let Some(selector) = at(spec, "selector") {
        label_selector(&mut own, selector, "spec.selector");
    }
    optional(&mut own, spec, "spec", "storageClassName", names::dns1123_subdomain);
    maybe_one_of(&mut own, spec, "spec", "volumeMode", VOLUME_MODES);
    for error in &mut own {
        error.field = format!("{path}{}", error.field.trim_start_matches("spec"));
    }
    errors.extend(own);
}

/// The access modes of a volume or a claim.
pub(crate) fn check_access_modes(errors: &mut Errors, spec: &Value, none: &str) {
    const PATH: &str = "spec.accessModes";
    let modes = items(spec, "accessModes");
    if modes.is_empty() {
        errors.push(FieldError::required(PATH, none));
    }
    let mut supported: Vec<&str> = ACCESS_MODES.iter().map(|(mode, _)| *mode).collect();
    supported.sort_unstable();
    for mode in modes.iter().filter(|mode| !supported.iter().any(|known| mode == known)) {
        errors.push(FieldError::not_supported(PATH, mode.clone(), &supported));
    }
    let alone = modes.iter().any(|mode| mode == "ReadWriteOncePod");
    if alone && modes.iter().any(|mode| mode != "ReadWriteOncePod") {
        errors.push(FieldError::forbidden(PATH, "may not use ReadWriteOncePod with other access modes"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::{check_cells, check_default, check_errors, check_update_errors};

    fn claim(spec: Value) -> Value {
        let mut whole =
            json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        for (key, value) in spec.as_object().unwrap() {
            whole[key] = value.clone();
        }
        json!({"metadata": {"name": "c", "namespace": "ns"}, "spec": whole})
    }

    #[test]
    fn defaults() {
        check_default(
            &ROW,
            json!({"spec": {"resources": {"requests": {"storage": "2048Mi"}}}}),
            json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}, "volumeMode": "Filesystem"},
                "status": {"phase": "Pending"}}),
        );
    }

    #[test]
    fn rules() {
        for (spec, expected) in [
            (json!({}), vec![]),
            (
                json!({"accessModes": []}),
                vec!["spec.accessModes: Required value: at least 1 access mode is required"],
            ),
            (
                json!({"accessModes": ["Mine"]}),
                vec![
                    "spec.accessModes: Unsupported value: \"Mine\": supported values: \"ReadOnlyMany\", \
                     \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
                ],
            ),
            (
                json!({"accessModes": ["ReadWriteOncePod", "ReadWriteOnce"]}),
                vec!["spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes"],
            ),
            (json!({"resources": {}}), vec!["spec.resources[storage]: Required value"]),
            (
                json!({"resources": {"requests": {"storage": "-1"}}}),
                vec!["spec.resources[storage]: Invalid value: \"-1\": must be greater than or equal to 0"],
            ),
            (
                json!({"volumeMode": "Tape"}),
                vec![
                    "spec.volumeMode: Unsupported value: \"Tape\": supported values: \"Block\", \"Filesystem\"",
                ],
            ),
        ] {
            check_errors(&ROW, claim(spec), &expected);
        }
    }

    #[test]
    fn what_may_change() {
        let old = claim(json!({}));
        check_update_errors(&ROW, &old, claim(json!({"volumeName": "v", "storageClassName": "s"})), &[]);
        let mut bound = claim(json!({"volumeName": "v", "storageClassName": "s"}));
        bound["status"] = json!({"phase": "Bound"});
        let more = json!({"volumeName": "v", "storageClassName": "s", "resources": {"requests": {"storage": "2Gi"}}});
        check_update_errors(&ROW, &bound, claim(more.clone()), &[]);
        let message = |difference: &str| format!("spec: Forbidden: {IMMUTABLE}\n  {difference}");
        check_update_errors(
            &ROW,
            &bound,
            claim(json!({"volumeName": "w", "storageClassName": "s"})),
            &[&message("volumeName: \"v\" -> \"w\"")],
        );
        check_update_errors(
            &ROW,
            &claim(more.clone()),
            claim(json!({"volumeName": "v", "storageClassName": "s"})),
            &[
                &message("resources.requests.storage: \"2Gi\" -> \"1Gi\""),
                "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity",
            ],
        );
    }

    #[test]
    fn cells_are_those_of_kubectl() {
        let mut object = claim(json!({"volumeMode": "Filesystem", "storageClassName": "local"}));
        object["status"] = json!({"phase": "Pending"});
        let (unset, unknown, fs) = ("<unset>", "<unknown>", "Filesystem");
        check_cells(&ROW, &object, &["c", "Pending", "", "", "", "local", unset, unknown, fs]);
        object["spec"]["volumeName"] = json!("v");
        object["status"] =
            json!({"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]});
        check_cells(&ROW, &object, &["c", "Bound", "v", "1Gi", "RWO", "local", unset, unknown, fs]);
    }
}
