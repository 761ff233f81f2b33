//! StorageClasses: how claims that no volume satisfies get one.

use super::checks::{Errors, invalid, maybe_one_of, required};
use super::printing::{AGE, NAME, age, column, string};
use super::value::{default_to, is_true, items, map, same_at, text};
use crate::row::{Column, Row, Strategy};
use cumulet_api::field::{FieldError, Problem};
use cumulet_api::storage::DEFAULT_CLASS;
use cumulet_api::{meta, names};
use jiff::Timestamp;
use serde_json::Value;

pub(crate) const ROW: Row = Row {
    group: "storage.k8s.io",
    version: "v1",
    kind: "StorageClass",
    plural: "storageclasses",
    singular: "storageclass",
    short_names: &["sc"],
    categories: &[],
    namespaced: false,
    status: false,
    scale: None,
    selectable_fields: &[],
    columns: COLUMNS,
    cells,
    strategy: &StorageClasses,
};

/// Most parameters, and most bytes of them.
const MAX_PARAMETERS: usize = 512;
const MAX_PARAMETER_BYTES: usize = 256 * 1024;

static COLUMNS: &[Column] = &[
    NAME,
    column("Provisioner", "Who makes volumes of this class."),
    column("ReclaimPolicy", "What happens to a volume of this class when its claim is gone."),
    column("VolumeBindingMode", "When claims of this class get their volume."),
    column("AllowVolumeExpansion", "Whether claims of this class may grow."),
    AGE,
];

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let mark = if is_default(object) { " (default)" } else { "" };
    vec![
        format!("{}{mark}", meta::name(object)).into(),
        string(object, "provisioner"),
        string(object, "reclaimPolicy"),
        string(object, "volumeBindingMode"),
        is_true(object, "allowVolumeExpansion").to_string().into(),
        age(object, now),
    ]
}

/// True for a class that claims get which name none.
pub(crate) fn is_default(object: &Value) -> bool {
    meta::annotations(object).get(DEFAULT_CLASS).is_some_and(|value| value == "true")
}

struct StorageClasses;

impl Strategy for StorageClasses {
    fn default(&self, object: &mut Value) {
        default_to(object, "reclaimPolicy", "Delete");
        default_to(object, "volumeBindingMode", "Immediate");
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let provisioner = text(object, "provisioner");
        if provisioner.is_empty() {
            errors.push(FieldError::required("provisioner", ""));
        } else {
            let problems = names::qualified_name(&provisioner.to_lowercase());
            invalid(&mut errors, "provisioner", provisioner, problems);
        }
        parameters(&mut errors, object);
        top_level(&mut errors, object, "reclaimPolicy", &["Delete", "Retain"]);
        top_level(&mut errors, object, "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"]);
        for (i, term) in items(object, "allowedTopologies").iter().enumerate() {
            for (j, expression) in items(term, "matchLabelExpressions").iter().enumerate() {
                let path = format!("allowedTopologies[{i}].matchLabelExpressions[{j}]");
                required(&mut errors, expression, &path, "key", names::qualified_name);
                if items(expression, "values").is_empty() {
                    errors.push(FieldError::required(format!("{path}.values"), ""));
                }
            }
        }
        errors
    }

    fn validate_update(&self, old: &Value, new: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        for field in ["parameters", "provisioner", "reclaimPolicy"] {
            if !same_at(old, new, field) {
                errors.push(FieldError::forbidden(field, format!("updates to {field} are forbidden.")));
            }
        }
        super::checks::immutable(&mut errors, old, new, "volumeBindingMode");
        errors
    }
}

/// A field of the object itself, which has no path before its name.
fn top_level(errors: &mut Errors, object: &Value, field: &str, allowed: &[&str]) {
    let mut own = Errors::new();
    maybe_one_of(&mut own, object, "", field, allowed);
    errors.extend(own.into_iter().map(|error| FieldError { field: field.to_owned(), ..error }));
}

fn parameters(errors: &mut Errors, object: &Value) {
    let Some(parameters) = map(object, "parameters") else { return };
    if parameters.len() > MAX_PARAMETERS {
        let problem = Problem::TooMany(parameters.len(), MAX_PARAMETERS);
        errors.push(FieldError { field: "parameters".into(), problem, detail: String::new() });
    }
    if parameters.contains_key("") {
        errors.push(FieldError::invalid("parameters", "", "field can not be empty."));
    }
    let bytes: usize = parameters.iter().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
    if bytes > MAX_PARAMETER_BYTES {
        let problem = Problem::TooLong(MAX_PARAMETER_BYTES);
        errors.push(FieldError { field: "parameters".into(), problem, detail: String::new() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::{check_cells, check_default, check_errors, check_update_errors};
    use serde_json::json;

    #[test]
    fn defaults_rules_and_cells() {
        check_default(
            &ROW,
            json!({"provisioner": "a/b"}),
            json!({"provisioner": "a/b", "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"}),
        );
        for (class, expected) in [
            (json!({"provisioner": "cumulet.dev/local"}), vec![]),
            (json!({}), vec!["provisioner: Required value"]),
            (
                json!({"provisioner": "a/b", "reclaimPolicy": "Recycle"}),
                vec![
                    "reclaimPolicy: Unsupported value: \"Recycle\": supported values: \"Delete\", \"Retain\"",
                ],
            ),
        ] {
            check_errors(&ROW, class, &expected);
        }
        let old = json!({"metadata": {"name": "s", "annotations": {DEFAULT_CLASS: "true"}}, "provisioner": "a/b",
            "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"});
        check_update_errors(
            &ROW,
            &old,
            json!({"provisioner": "a/c", "parameters": {"x": "y"}, "volumeBindingMode": "WaitForFirstConsumer"}),
            &[
                "parameters: Forbidden: updates to parameters are forbidden.",
                "provisioner: Forbidden: updates to provisioner are forbidden.",
                "volumeBindingMode: Invalid value: \"WaitForFirstConsumer\": field is immutable",
            ],
        );
        check_cells(&ROW, &old, &["s (default)", "a/b", "Delete", "Immediate", "false", "<unknown>"]);
    }
}
