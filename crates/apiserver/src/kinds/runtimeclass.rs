//! RuntimeClasses.

use super::checks::{Errors, immutable, invalid, nonnegative_quantity};
use super::printing::{AGE, NAME, age, column, name, string};
use super::value::{map, text};
use crate::row::{Column, Row, Strategy};
use cumulet_api::field::FieldError;
use cumulet_api::names;
use jiff::Timestamp;
use serde_json::Value;

pub(crate) const ROW: Row = Row {
    group: "node.k8s.io",
    version: "v1",
    kind: "RuntimeClass",
    plural: "runtimeclasses",
    singular: "runtimeclass",
    short_names: &[],
    categories: &[],
    namespaced: false,
    status: false,
    scale: None,
    selectable_fields: &[],
    columns: COLUMNS,
    cells,
    strategy: &RuntimeClasses,
};

static COLUMNS: &[Column] = &[NAME, column("Handler", "How pods of this class are run."), AGE];

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), string(object, "handler"), age(object, now)]
}

struct RuntimeClasses;

impl Strategy for RuntimeClasses {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let handler = text(object, "handler");
        invalid(&mut errors, "handler", handler, names::dns1123_label(handler));
        for (resource, amount) in map(object, "overhead.podFixed").into_iter().flatten() {
            nonnegative_quantity(&mut errors, &format!("overhead.podFixed[{resource}]"), amount);
        }
        errors
    }

    fn validate_update(&self, old: &Value, new: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        immutable(&mut errors, old, new, "handler");
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::{check_cells, check_errors, check_update_errors};
    use serde_json::json;

    #[test]
    fn the_handler_is_a_name_for_life() {
        let vm = json!({"metadata": {"name": "vm"}, "handler": "vm"});
        check_errors(&ROW, vm.clone(), &[]);
        check_update_errors(
            &ROW,
            &vm,
            json!({"handler": "other"}),
            &["handler: Invalid value: \"other\": field is immutable"],
        );
        check_cells(&ROW, &vm, &["vm", "vm", "<unknown>"]);
        let mut object = json!({});
        ROW.strategy.default(&mut object);
        assert_eq!(ROW.strategy.validate(&object).len(), 1);
    }
}
