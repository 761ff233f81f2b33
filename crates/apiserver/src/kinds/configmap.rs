//! ConfigMaps.

use super::checks::{Errors, MAX_DATA_BYTES, data_keys, frozen};
use super::printing::{AGE, NAME, age, column, entries, name};
use super::value::map;
use crate::row::{Column, Row, Strategy};
use cumulet_api::field::{FieldError, Problem};
use jiff::Timestamp;
use serde_json::Value;

pub(crate) const ROW: Row = Row {
    group: "",
    version: "v1",
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    categories: &[],
    namespaced: true,
    status: false,
    scale: None,
    selectable_fields: &[],
    columns: COLUMNS,
    cells,
    strategy: &ConfigMaps,
};

static COLUMNS: &[Column] = &[NAME, column("Data", "Number of entries."), AGE];

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), entries(object, &["data", "binaryData"]), age(object, now)]
}

struct ConfigMaps;

impl Strategy for ConfigMaps {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let mut total = data_keys(&mut errors, object, "data", str::len);
        if let (Some(data), Some(binary)) = (map(object, "data"), map(object, "binaryData")) {
            for key in data.keys().filter(|k| binary.contains_key(*k)) {
                let message = "duplicate of key present in binaryData";
                errors.push(FieldError::invalid(format!("data[{key}]"), key.as_str(), message));
            }
        }
        total += data_keys(&mut errors, object, "binaryData", decoded_len);
        if total > MAX_DATA_BYTES {
            // The whole object is too long; Kubernetes writes that path so.
            let problem = Problem::TooLong(MAX_DATA_BYTES);
            errors.push(FieldError { field: "[]".to_owned(), problem, detail: String::new() });
        }
        errors
    }

    fn validate_update(&self, old: &Value, new: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        frozen(&mut errors, old, new, &["data", "binaryData"]);
        errors
    }
}

/// How many bytes a text in base64 stands for.
pub(super) fn decoded_len(encoded: &str) -> usize {
    let padding = encoded.bytes().rev().take_while(|b| *b == b'=').count();
    (encoded.len() / 4 * 3).saturating_sub(padding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::{check_cells, check_errors, check_update_errors};
    use serde_json::json;

    #[test]
    fn rules_and_cells() {
        check_errors(&ROW, json!({"data": {"a.b-c_D": ""}, "binaryData": {"x": "AA=="}}), &[]);
        check_errors(
            &ROW,
            json!({"data": {"a b": "", "x": ""}, "binaryData": {"x": ""}}),
            &[
                "data[a b]: Invalid value: \"a b\": a valid config key must consist of alphanumeric characters, '-', \
                 '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is \
                 '[-._a-zA-Z0-9]+')",
                "data[x]: Invalid value: \"x\": duplicate of key present in binaryData",
            ],
        );
        let big = "x".repeat(MAX_DATA_BYTES);
        check_errors(&ROW, json!({"data": {"a": big}}), &[]);
        check_errors(
            &ROW,
            json!({"data": {"a": big, "b": "y"}}),
            &["[]: Too long: may not be more than 1048576 bytes"],
        );
        check_cells(
            &ROW,
            &json!({"metadata": {"name": "c"}, "data": {"a": ""}, "binaryData": {"b": ""}}),
            &["c", "2", "<unknown>"],
        );
    }

    #[test]
    fn immutable_ones_stay() {
        let old = json!({"immutable": true, "data": {"a": "1"}});
        check_update_errors(&ROW, &old, old.clone(), &[]);
        check_update_errors(
            &ROW,
            &old,
            json!({"data": {"a": "2"}}),
            &[
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set",
            ],
        );
    }
}
