//! The two patch formats that know nothing of types: RFC 6902 and RFC 7396.

use crate::{MergeError, malformed};
use json_patch::{PatchOperation, patch_unsafe};
use serde_json::{Map, Value};

/// Most operations of one JSON patch, as in Kubernetes.
const MAX_OPERATIONS: usize = 10_000;
/// Most bytes of JSON that the `copy` operations of one patch may add up to, as in Kubernetes. Without a limit each
/// copy could double the object.
const MAX_COPIED_BYTES: usize = 3 << 20;
/// Deepest nesting of a patched object. What is deeper could not be parsed again (serde_json stops at 128).
const MAX_DEPTH: usize = 120;

/// Applies a JSON patch (RFC 6902). All or nothing: the object is only returned if every operation succeeded.
pub fn json_patch(object: &Value, patch: &[u8]) -> Result<Value, MergeError> {
    let operations: Vec<PatchOperation> =
        serde_json::from_slice(patch).or_else(|e| malformed(format!("error decoding patch: {e}")))?;
    if operations.len() > MAX_OPERATIONS {
        return Err(MergeError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut object = object.clone();
    let mut copied = 0;
    for operation in &operations {
        check_growth(&object, operation, &mut copied)?;
        patch_unsafe(&mut object, std::slice::from_ref(operation))
            .map_err(|e| MergeError::DoesNotApply(describe(operation, &e.kind)))?;
    }
    Ok(object)
}

/// Refuses an operation that would nest too deeply or copy too much.
fn check_growth(object: &Value, operation: &PatchOperation, copied: &mut usize) -> Result<(), MergeError> {
    let added = match operation {
        PatchOperation::Add(op) => depth(&op.value),
        PatchOperation::Replace(op) => depth(&op.value),
        PatchOperation::Move(op) => object.pointer(op.from.as_str()).map_or(0, depth),
        PatchOperation::Copy(op) => {
            let Some(source) = object.pointer(op.from.as_str()) else { return Ok(()) };
            *copied += source.to_string().len();
            if *copied > MAX_COPIED_BYTES {
                return Err(MergeError::TooLarge(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the \
                     limit {MAX_COPIED_BYTES}"
                )));
            }
            depth(source)
        }
        PatchOperation::Remove(_) | PatchOperation::Test(_) => return Ok(()),
    };
    if operation.path().count() + added > MAX_DEPTH {
        return Err(MergeError::TooLarge(format!(
            "the patched object would be nested deeper than {MAX_DEPTH} levels"
        )));
    }
    Ok(())
}

/// Levels of nesting; 0 for a scalar. Recursion is bounded: objects and patches come out of a limited parser, and
/// [`check_growth`] keeps them limited.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn describe(operation: &PatchOperation, why: &json_patch::PatchErrorKind) -> String {
    let name = match operation {
        PatchOperation::Add(_) => "add",
        PatchOperation::Remove(_) => "remove",
        PatchOperation::Replace(_) => "replace",
        PatchOperation::Move(_) => "move",
        PatchOperation::Copy(_) => "copy",
        PatchOperation::Test(_) => return format!("testing value {} failed", operation.path()),
    };
    format!("{name} operation does not apply: {}: {why}", operation.path())
}

/// Applies a merge patch (RFC 7396): nulls delete, objects merge, everything else replaces.
pub fn merge_patch(object: &Value, patch: &Value) -> Value {
    let mut object = object.clone();
    json_patch::merge(&mut object, patch);
    object
}

/// The merge patch that makes `to` of `from`. Nulls inside of `to` cannot be expressed and are lost.
pub fn merge_diff(from: &Value, to: &Value) -> Value {
    let (Value::Object(from), Value::Object(to)) = (from, to) else {
        return to.clone();
    };
    let mut patch = Map::new();
    for key in from.keys().filter(|k| !to.contains_key(*k)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in to {
        match from.get(key) {
            Some(old) if old == value => {}
            Some(old @ Value::Object(_)) if value.is_object() => {
                patch.insert(key.clone(), merge_diff(old, value));
            }
            _ => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    Value::Object(patch)
}
