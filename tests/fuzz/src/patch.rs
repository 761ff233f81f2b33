//! Patches. The inputs are lines: for JSON patches an object and a patch, for strategic ones a kind before these.

use cumulet_api::meta;
use cumulet_api::schema::schema;
use serde_json::Value;

/// JSON patch and merge patch. A result can be stored and read again, and a difference does what it says.
pub(crate) fn json_patch(data: &[u8]) {
    let Some([object, patch]) = crate::lines(data) else { return };
    let Ok(object) = serde_json::from_str::<Value>(object) else { return };
    if let Ok(patched) = cumulet_merge::json_patch(&object, patch.as_bytes()) {
        storable(&patched);
    }
    let Ok(other) = serde_json::from_str::<Value>(patch) else { return };
    storable(&cumulet_merge::merge_patch(&object, &other));
    // Nulls cannot be expressed in a merge patch.
    if !has(&other, &Value::is_null) {
        let difference = cumulet_merge::merge_diff(&object, &other);
        assert_eq!(cumulet_merge::merge_patch(&object, &difference), other);
    }
}

/// Strategic merge patch of `apiVersion kind`.
pub(crate) fn strategic(data: &[u8]) {
    let Some([kind, object, patch]) = crate::lines(data) else { return };
    let Some((api_version, kind)) = kind.split_once(' ') else { return };
    let (group, version) = meta::group_version(api_version);
    let Some(ty) = schema().kind(group, version, kind) else { return };
    let (Ok(object), Ok(patch)) = (serde_json::from_str(object), serde_json::from_str(patch)) else { return };
    if let Ok(patched) = cumulet_merge::strategic(ty, &object, &patch) {
        storable(&patched);
    }
}

fn storable(object: &Value) {
    let text = object.to_string();
    let again: Value = serde_json::from_str(&text).expect("a patched object can be read again");
    // Fractions may differ in the last of seventeen digits: the parser prefers speed.
    if !has(object, &Value::is_f64) {
        assert_eq!(again.to_string(), text);
    }
}

/// Whether the value, or one inside of it, is of that sort.
fn has(value: &Value, is: &impl Fn(&Value) -> bool) -> bool {
    match value {
        Value::Array(items) => items.iter().any(|item| has(item, is)),
        Value::Object(map) => map.values().any(|item| has(item, is)),
        value => is(value),
    }
}
