//! ServiceAccounts.

use super::printing::{AGE, NAME, age, name};
use crate::row::{Column, Row, Strategy};
use jiff::Timestamp;
use serde_json::Value;

pub(crate) const ROW: Row = Row {
    group: "",
    version: "v1",
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    categories: &[],
    namespaced: true,
    status: false,
    scale: None,
    selectable_fields: &[],
    columns: COLUMNS,
    cells,
    strategy: &ServiceAccounts,
};

// The number of secrets, which Kubernetes showed up to 1.34, says nothing any more and is gone there too.
static COLUMNS: &[Column] = &[NAME, AGE];

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

struct ServiceAccounts;

impl Strategy for ServiceAccounts {}
