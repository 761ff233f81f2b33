//! Strategic merge patch, as `k8s.io/apimachinery/pkg/util/strategicpatch` defines it.
//!
//! Structs and maps merge key by key. A list is replaced, unless its field has a merge strategy: then items are told
//! apart by the merge key (or by value, for scalars). A patch may carry directives:
//!
//! | directive | meaning |
//! |---|---|
//! | `$patch: replace` in a map | take the rest of the patch instead of merging |
//! | `$patch: delete` in a map | empty the map; in a list item: delete the items with its merge key |
//! | `$patch: replace` in a list item | take the other items of the patch instead of merging |
//! | `$retainKeys: [...]` | clear what is not named |
//! | `$deleteFromPrimitiveList/x: [...]` | delete these scalars from `x` |
//! | `$setElementOrder/x: [...]` | the order of `x` after the merge |
//! | `null` | delete the field |

use crate::list::{self, Order};
use crate::{MergeError, malformed};
use cumulet_api::schema::{FieldType, Type, schema};
use serde_json::{Map, Value};

pub(crate) const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList";
const SET_ORDER: &str = "$setElementOrder";

/// Merges `patch` into `object`, an object of type `ty`. Fields that the type does not know merge like maps and are
/// replaced like lists.
pub fn strategic(ty: &'static Type, object: &Value, patch: &Value) -> Result<Value, MergeError> {
    let (Value::Object(object), Value::Object(patch)) = (object, patch) else {
        return malformed("invalid JSON document");
    };
    merge_map(object.clone(), patch.clone(), Shape::Struct(ty)).map(Value::Object)
}

/// What is known of a value's type.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    Struct(&'static Type),
    MapOf(&'static FieldType),
    Unknown,
}

/// How one field merges.
struct Rule {
    /// The field's own shape, or that of its items.
    shape: Shape,
    merges: bool,
    replaces: bool,
    key: Option<&'static str>,
}

impl Shape {
    fn of(ty: &'static FieldType) -> Self {
        match ty {
            FieldType::Object(id) => Self::Struct(schema().get(*id)),
            FieldType::Map(item) => Self::MapOf(item),
            FieldType::List(item) => Self::of(item),
            _ => Self::Unknown,
        }
    }

    fn rule(self, key: &str) -> Rule {
        let plain = |shape| Rule { shape, merges: false, replaces: false, key: None };
        match self {
            Self::Struct(ty) => match ty.field(key) {
                Some(field) => Rule {
                    shape: Self::of(&field.ty),
                    merges: field.merges(),
                    replaces: field.patch_strategy == "replace",
                    key: field.patch_merge_key,
                },
                None => plain(Self::Unknown),
            },
            Self::MapOf(item) => plain(Self::of(item)),
            Self::Unknown => plain(Self::Unknown),
        }
    }
}

pub(crate) fn merge_map(
    mut object: Map<String, Value>,
    mut patch: Map<String, Value>,
    shape: Shape,
) -> Result<Map<String, Value>, MergeError> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Map::new()),
            _ => malformed(format!("unknown patch type: {directive} in map: {}", Value::Object(patch))),
        };
    }
    retain_keys(&mut object, &mut patch)?;
    merge_ordered_lists(&mut object, &mut patch, shape)?;
    for (key, value) in patch {
        merge_field(&mut object, &key, value, shape)?;
    }
    Ok(object)
}

fn merge_field(
    object: &mut Map<String, Value>,
    key: &str,
    value: Value,
    shape: Shape,
) -> Result<(), MergeError> {
    if let Some(rest) = key.strip_prefix(DELETE_FROM) {
        let Some(field) = rest.strip_prefix('/') else {
            return malformed("invalid patch format of primitive list");
        };
        return match (object.get_mut(field), value) {
            (_, Value::Null) => {
                object.remove(field);
                Ok(())
            }
            (Some(Value::Array(items)), Value::Array(gone)) => list::delete_scalars(items, &gone),
            _ => Ok(()),
        };
    }
    if value.is_null() {
        object.remove(key);
        return Ok(());
    }
    let merged = match (object.remove(key), value) {
        (Some(Value::Object(old)), Value::Object(new)) => {
            let rule = shape.rule(key);
            let merged = if rule.replaces { new } else { merge_map(old, new, rule.shape)? };
            Some(Value::Object(merged))
        }
        (Some(Value::Array(old)), Value::Array(new)) => {
            Some(Value::Array(merge_list(old, new, &shape.rule(key))?))
        }
        (_, new) => without_directives(without_nulls(new)),
    };
    if let Some(merged) = merged {
        object.insert(key.to_owned(), merged);
    }
    Ok(())
}

fn merge_list(old: Vec<Value>, new: Vec<Value>, rule: &Rule) -> Result<Vec<Value>, MergeError> {
    if rule.merges { list::merge(old, new, rule.key, rule.shape) } else { Ok(new) }
}

/// Applies `$retainKeys`: clears the fields that it does not name. The patch may only set what it names.
fn retain_keys(object: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<(), MergeError> {
    let Some(directive) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let bad = || MergeError::Malformed("invalid patch format of retainKeys".to_owned());
    let names = directive.as_array().ok_or_else(bad)?;
    let named = |key: &str| names.iter().any(|n| n.as_str() == Some(key));
    for (key, value) in &*patch {
        if !value.is_null() && !key.starts_with(DELETE_FROM) && !key.starts_with(SET_ORDER) && !named(key) {
            return Err(bad());
        }
    }
    object.retain(|key, _| named(key));
    Ok(())
}

/// Merges the lists for which the patch has `$setElementOrder`, and takes them out of the patch. The order is that of
/// the directive; items that it does not name keep their place among the others as well as they can.
fn merge_ordered_lists(
    object: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    shape: Shape,
) -> Result<(), MergeError> {
    let directives: Vec<String> = patch.keys().filter(|k| k.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let bad = || MergeError::Malformed("invalid patch format of setElementOrder list".to_owned());
        let field = directive.strip_prefix(SET_ORDER).and_then(|r| r.strip_prefix('/')).ok_or_else(bad)?;
        let Some(Value::Array(order)) = patch.remove(&directive) else { return Err(bad()) };
        let rule = shape.rule(field);
        let old = match object.remove(field) {
            Some(Value::Array(items)) => Some(items),
            Some(_) => return Err(bad()),
            None => None,
        };
        let new = match patch.remove(field) {
            Some(Value::Array(items)) => Some(items),
            Some(Value::Null) | None => None,
            Some(_) => return Err(bad()),
        };
        list::check_order(new.as_deref().unwrap_or(&[]), &order, rule.key)?;
        let server_order = Order::of(old.as_deref().unwrap_or(&[]), rule.key);
        let merged = match (old, new) {
            (None, None) => continue,
            (Some(old), None) => old,
            (None, Some(new)) => match without_directives(Value::Array(new)) {
                Some(Value::Array(items)) => items,
                _ => continue,
            },
            (Some(old), Some(new)) => merge_list(old, new, &rule)?,
        };
        let sorted = list::sort(merged, &Order::of(&order, rule.key), &server_order, rule.key)?;
        object.insert(field.to_owned(), Value::Array(sorted));
    }
    Ok(())
}

/// Drops nulls from what a patch adds: they would delete fields that are not there.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        scalar => scalar,
    }
}

/// Drops maps with a `$patch` directive from what a patch adds; `None` when nothing is left.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => None,
        Value::Object(map) => {
            let kept = map.into_iter().filter_map(|(k, v)| Some((k, without_directives(v)?)));
            Some(Value::Object(kept.collect()))
        }
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(without_directives).collect())),
        scalar => Some(scalar),
    }
}
