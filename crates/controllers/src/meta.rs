//! Small views of metadata that several controllers share: owners, labels, selectors, names, times.

use cumulet_api::selector::Selector;
use cumulet_cluster::api::Kind;
use cumulet_cluster::informer::Key;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use rand::seq::IndexedRandom;
use std::collections::BTreeMap;
use std::time::Duration;

/// A map of labels or annotations, as k8s-openapi has it.
pub(crate) type Map = BTreeMap<String, String>;

/// The characters of generated name parts: no vowels, so that no words come up (as in Kubernetes).
const SAFE: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// Length of a random name part, as Kubernetes has it.
const SUFFIX: usize = 5;
/// Longest part before a random suffix, so that the name fits a DNS label.
const PREFIX_MAX: usize = 63 - SUFFIX;

/// The name; empty when there is none.
pub(crate) fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or("")
}

/// The namespace; empty for cluster scope.
pub(crate) fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or("")
}

/// The uid; empty when there is none.
pub(crate) fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or("")
}

/// Namespace and name.
pub(crate) fn key(meta: &ObjectMeta) -> Key {
    (namespace(meta).to_owned(), name(meta).to_owned())
}

/// True when the object is on its way out.
pub(crate) fn is_deleting(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
}

/// The owner that manages the object.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.as_ref()?.iter().find(|owner| owner.controller == Some(true))
}

/// A reference that makes `owner` the managing owner.
pub(crate) fn controller_ref<K: Kind>(owner: &K) -> OwnerReference {
    let meta = owner.metadata();
    OwnerReference {
        api_version: K::API_VERSION.to_owned(),
        kind: K::KIND.to_owned(),
        name: name(meta).to_owned(),
        uid: uid(meta).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// An annotation's value.
pub(crate) fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// True when the selector matches the labels of an object.
pub(crate) fn selects(selector: &Selector, meta: &ObjectMeta) -> bool {
    selector.matches(|key| meta.labels.as_ref()?.get(key).map(String::as_str))
}

/// The selector of a workload. `None` when it selects nothing usable: empty (which would match everything) or
/// malformed.
pub(crate) fn workload_selector(selector: &LabelSelector) -> Option<Selector> {
    let expressions = selector.match_expressions.as_ref().is_some_and(|e| !e.is_empty());
    let labels = selector.match_labels.as_ref().is_some_and(|l| !l.is_empty());
    if !expressions && !labels {
        return None;
    }
    Selector::from_label_selector(&serde_json::to_value(selector).ok()?).ok()
}

/// A selector of equal labels. `None` when it is empty.
pub(crate) fn map_selector(labels: Option<&Map>) -> Option<Selector> {
    let labels = labels.filter(|l| !l.is_empty())?;
    Some(Selector::from_pairs(labels.iter().map(|(k, v)| (k.as_str(), v.as_str()))))
}

/// A name that begins with `base` and ends with five random characters, as `generateName` makes them.
pub(crate) fn random_name(base: &str) -> String {
    let mut rng = rand::rng();
    let mut name = clip(base).to_owned();
    name.extend((0..SUFFIX).filter_map(|_| SAFE.choose(&mut rng)).map(|b| char::from(*b)));
    name
}

/// A name that begins with `base` and ends with five characters drawn from `seed`: the same for the same seed.
pub(crate) fn derived_name(base: &str, seed: &str) -> String {
    let mut hash = u64::from(fnv1a(seed.as_bytes())) << 32 | u64::from(fnv1a(format!("{seed}/").as_bytes()));
    let mut name = clip(base).to_owned();
    for _ in 0..SUFFIX {
        name.push(char::from(SAFE[(hash % 27) as usize]));
        hash /= 27;
    }
    name
}

fn clip(base: &str) -> &str {
    // Names are ASCII; anything else is left whole, for the API server to refuse.
    base.get(..PREFIX_MAX).unwrap_or(base)
}

/// The 32-bit FNV-1a hash: short, stable for ever, and good enough where a collision is handled.
pub(crate) fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// The decimal digits of a number in the safe alphabet, as Kubernetes writes template hashes.
pub(crate) fn safe_decimal(number: u32) -> String {
    number.to_string().bytes().map(|digit| char::from(SAFE[usize::from(digit) % 27])).collect()
}

/// The present moment.
pub(crate) fn now() -> Time {
    Time(Timestamp::now())
}

/// What is left until `delay` after `since`; zero when that is past.
pub(crate) fn remaining(since: Timestamp, delay: Duration, now: Timestamp) -> Duration {
    let passed = Duration::try_from(now.duration_since(since)).unwrap_or(Duration::ZERO);
    delay.saturating_sub(passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_and_fit() {
        let long = "x".repeat(100);
        for base in ["web-", "", long.as_str()] {
            let name = random_name(base);
            assert!(name.len() <= 63 && name.bytes().rev().take(5).all(|b| SAFE.contains(&b)), "{name}");
            assert_eq!(derived_name(base, "a"), derived_name(base, "a"));
            assert_ne!(derived_name(base, "a"), derived_name(base, "b"));
        }
        assert_eq!(safe_decimal(0).len(), 1);
        assert_eq!(safe_decimal(u32::MAX).len(), 10);
        assert_eq!(fnv1a(b"a"), 0xe40c_292c);
    }

    #[test]
    fn remaining_time() {
        let at = |s| Timestamp::from_second(s).expect("in range");
        let delay = Duration::from_secs(10);
        for (since, now, left) in [(0, 0, 10), (0, 4, 6), (0, 10, 0), (0, 99, 0), (5, 0, 10)] {
            assert_eq!(remaining(at(since), delay, at(now)), Duration::from_secs(left));
        }
    }

    #[test]
    fn empty_selectors_select_nothing() {
        assert!(workload_selector(&LabelSelector::default()).is_none());
        assert!(map_selector(None).is_none());
        let labels = Map::from([("app".to_owned(), "web".to_owned())]);
        let selector = map_selector(Some(&labels)).expect("not empty");
        let meta = ObjectMeta { labels: Some(labels), ..ObjectMeta::default() };
        assert!(selects(&selector, &meta) && !selects(&selector, &ObjectMeta::default()));
    }
}
