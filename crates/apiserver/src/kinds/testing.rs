//! Table tests of rows: defaulted objects, errors in words, cells.

use crate::row::Row;
use jiff::Timestamp;
use serde_json::Value;

fn words(errors: &[cumulet_api::field::FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

/// Defaulting `object` gives `expected`, and doing it again changes nothing.
pub(crate) fn check_default(row: &Row, object: Value, expected: Value) {
    let mut got = object;
    row.strategy.default(&mut got);
    assert_eq!(got, expected);
    row.strategy.default(&mut got);
    assert_eq!(got, expected, "defaulting twice");
}

/// The defaulted `object` breaks just these rules.
pub(crate) fn check_errors(row: &Row, object: Value, expected: &[&str]) {
    let mut object = object;
    row.strategy.default(&mut object);
    assert_eq!(words(&row.strategy.validate(&object)), expected, "{object}");
}

/// The change from the defaulted `old` to the defaulted and prepared `new` breaks just these rules.
pub(crate) fn check_update_errors(row: &Row, old: &Value, new: Value, expected: &[&str]) {
    let (mut old, mut new) = (old.clone(), new);
    row.strategy.default(&mut old);
    row.strategy.default(&mut new);
    row.strategy.prepare_update(&old, &mut new);
    assert_eq!(words(&row.strategy.validate_update(&old, &new)), expected, "{new}");
}

/// The object's cells, with numbers as text; there is one per column.
pub(crate) fn check_cells(row: &Row, object: &Value, expected: &[&str]) {
    let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
    let cells: Vec<String> = (row.cells)(object, now)
        .into_iter()
        .map(|cell| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned))
        .collect();
    assert_eq!(cells, expected, "{object}");
    assert_eq!(cells.len(), row.columns.len());
}
