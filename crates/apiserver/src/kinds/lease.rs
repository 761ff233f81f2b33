//! Leases.

use super::checks::{Errors, nonnegative};
use super::printing::{AGE, NAME, age, column, name, string};
use super::value::{at, int, object_mut};
use crate::row::{Column, Row, Strategy};
use cumulet_api::field::FieldError;
use jiff::Timestamp;
use serde_json::Value;

pub(crate) const ROW: Row = Row {
    group: "coordination.k8s.io",
    version: "v1",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    short_names: &[],
    categories: &[],
    namespaced: true,
    status: false,
    scale: None,
    selectable_fields: &[],
    columns: COLUMNS,
    cells,
    strategy: &Leases,
};

static COLUMNS: &[Column] = &[NAME, column("Holder", "Who holds the lease."), AGE];

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), string(object, "spec.holderIdentity"), age(object, now)]
}

struct Leases;

impl Strategy for Leases {
    fn default(&self, object: &mut Value) {
        object_mut(object, "spec");
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let Some(spec) = at(object, "spec") else { return errors };
        if let Some(seconds) = int(spec, "leaseDurationSeconds").filter(|s| *s <= 0) {
            errors.push(FieldError::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
        }
        nonnegative(&mut errors, spec, "spec", &["leaseTransitions"]);
        if at(spec, "holderIdentity").and_then(Value::as_str) == Some("") {
            errors.push(FieldError::invalid("spec.holderIdentity", "", "must not be empty"));
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::{check_cells, check_errors};
    use serde_json::json;

    #[test]
    fn rules_and_cells() {
        check_errors(&ROW, json!({}), &[]);
        check_errors(
            &ROW,
            json!({"spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1, "holderIdentity": ""}}),
            &[
                "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
                "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0",
                "spec.holderIdentity: Invalid value: \"\": must not be empty",
            ],
        );
        check_cells(
            &ROW,
            &json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "h"}}),
            &["l", "h", "<unknown>"],
        );
    }
}
