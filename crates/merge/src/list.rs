//! Merging of lists: items are told apart by a merge key, or by value when they are scalars.
//!
//! Everything is linear in the number of items (but for sorting), since patches come from strangers.

use crate::strategic::{DIRECTIVE, Shape, merge_map};
use crate::{MergeError, malformed};
use serde_json::Value;
use std::collections::{HashMap, HashSet};

/// What tells an item apart, as text: JSON of the merge key's value, or of the scalar itself.
fn identity(item: &Value, key: Option<&str>) -> Option<String> {
    match (item, key) {
        (Value::Object(map), Some(key)) => map.get(key).map(Value::to_string),
        (scalar, _) => Some(scalar.to_string()),
    }
}

/// Positions of items in a list.
pub(crate) struct Order(HashMap<String, usize>);

impl Order {
    /// The order of a list; the first of several equal items counts.
    pub(crate) fn of(items: &[Value], key: Option<&str>) -> Self {
        let mut positions = HashMap::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            if let Some(identity) = identity(item, key) {
                positions.entry(identity).or_insert(i);
            }
        }
        Self(positions)
    }
}

fn is_map(value: &Value) -> bool {
    value.is_object()
}

/// All items must be maps, or none; lists of lists do not merge.
fn check_items(old: &[Value], new: &[Value]) -> Result<bool, MergeError> {
    let maps = old.first().or(new.first()).is_some_and(is_map);
    for item in old.iter().chain(new) {
        if item.is_array() {
            return Err(MergeError::DoesNotApply("lists of lists are not supported".to_owned()));
        }
        if item.is_object() != maps {
            return malformed("list element types are not identical");
        }
    }
    Ok(maps)
}

fn no_merge_key<T>(item: &Value, key: &str) -> Result<T, MergeError> {
    malformed(format!("map: {item} does not contain declared merge key: {key}"))
}

/// Merges `new` into `old`.
pub(crate) fn merge(
    mut old: Vec<Value>,
    new: Vec<Value>,
    key: Option<&'static str>,
    shape: Shape,
) -> Result<Vec<Value>, MergeError> {
    if !check_items(&old, &new)? {
        let order = Order::of(&new, None);
        let server_order = Order::of(&old, None);
        let mut seen = HashSet::new();
        old.extend(new);
        old.retain(|item| seen.insert(item.to_string()));
        return sort(old, &order, &server_order, None);
    }
    let Some(key) = key else { return malformed("cannot merge lists without merge key") };
    let (mut old, new) = apply_directives(old, new, key)?;
    let order = Order::of(&new, Some(key));
    let server_order = Order::of(&old, Some(key));
    let mut positions = Order::of(&old, Some(key)).0;
    for item in new {
        let Some(identity) = identity(&item, Some(key)) else { return no_merge_key(&item, key) };
        match positions.get(&identity) {
            Some(at) => {
                if let (Value::Object(into), Value::Object(patch)) = (std::mem::take(&mut old[*at]), item) {
                    old[*at] = Value::Object(merge_map(into, patch, shape)?);
                }
            }
            None => {
                positions.insert(identity, old.len());
                old.push(item);
            }
        }
    }
    sort(old, &order, &server_order, Some(key))
}

/// Carries out the `$patch` directives among the items of the patch: returns the list to merge into, and the patch
/// without them.
fn apply_directives(
    mut old: Vec<Value>,
    new: Vec<Value>,
    key: &'static str,
) -> Result<(Vec<Value>, Vec<Value>), MergeError> {
    let (mut plain, mut deleted, mut replace) = (Vec::new(), HashSet::new(), false);
    for item in new {
        match item.get(DIRECTIVE) {
            None => plain.push(item),
            Some(directive) => match directive.as_str() {
                Some("delete") => match item.get(key) {
                    Some(value) => {
                        deleted.insert(value.to_string());
                    }
                    None => return no_merge_key(&item, key),
                },
                Some("replace") => replace = true,
                Some("merge") => return malformed("merging lists cannot yet be specified in the patch"),
                _ => return malformed(format!("unknown patch type: {directive} in map: {item}")),
            },
        }
    }
    if replace {
        return Ok((plain, Vec::new()));
    }
    old.retain(|item| identity(item, Some(key)).is_none_or(|id| !deleted.contains(&id)));
    Ok((old, plain))
}

/// Deletes scalars from a list.
pub(crate) fn delete_scalars(items: &mut Vec<Value>, gone: &[Value]) -> Result<(), MergeError> {
    if check_items(items, gone)? {
        return malformed("invalid patch format of primitive list");
    }
    let gone: HashSet<String> = gone.iter().map(Value::to_string).collect();
    items.retain(|item| !gone.contains(&item.to_string()));
    Ok(())
}

/// Checks that the items of a patch occur in `$setElementOrder`, and in the same order. Items to be deleted need not.
pub(crate) fn check_order(
    new: &[Value],
    order: &[Value],
    key: Option<&'static str>,
) -> Result<(), MergeError> {
    if order.is_empty() || new.is_empty() {
        return Ok(());
    }
    let mut rest = order.iter();
    for item in new.iter().filter(|i| i.get(DIRECTIVE).is_none()) {
        let Some(wanted) = identity(item, key) else { return no_merge_key(item, key.unwrap_or("")) };
        let found = rest.any(|o| identity(o, key).as_ref() == Some(&wanted));
        if !found {
            let (new, order) = (Value::from(new), Value::from(order));
            return malformed(format!(
                "The order in patch list:\n{new}\n doesn't match $setElementOrder list:\n{order}\n"
            ));
        }
    }
    Ok(())
}

/// Sorts a merged list: items of the patch in the patch's order, the server's other items in the server's order, each
/// of these before the first item of the patch that the server had behind it.
pub(crate) fn sort(
    merged: Vec<Value>,
    patch_order: &Order,
    server_order: &Order,
    key: Option<&str>,
) -> Result<Vec<Value>, MergeError> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for item in merged {
        let Some(identity) = identity(&item, key) else { return no_merge_key(&item, key.unwrap_or("")) };
        let server = server_order.0.get(&identity).copied();
        match patch_order.0.get(&identity) {
            Some(position) => ours.push((*position, server, item)),
            None => theirs.push((server.unwrap_or(usize::MAX), server, item)),
        }
    }
    ours.sort_by_key(|(position, ..)| *position);
    theirs.sort_by_key(|(position, ..)| *position);

    let mut sorted = Vec::with_capacity(ours.len() + theirs.len());
    let (mut ours, mut theirs) = (ours.into_iter().peekable(), theirs.into_iter().peekable());
    loop {
        let theirs_first = match (ours.peek(), theirs.peek()) {
            (None, None) => return Ok(sorted),
            (None, Some(_)) => true,
            (Some(_), None) => false,
            (Some((_, our, _)), Some((_, their, _))) => matches!((their, our), (Some(t), Some(o)) if t < o),
        };
        let next = if theirs_first { theirs.next() } else { ours.next() };
        sorted.extend(next.map(|(_, _, item)| item));
    }
}
