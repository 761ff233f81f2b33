//! Bodies and query parameters of API requests.

use cumulet_api::schema::{self, Mode, schema};
use cumulet_api::{FieldSelector, Quantity, Selector, json, meta, protobuf as proto};

/// A body in Kubernetes' protobuf. What is decoded has a kind and can be written and read as JSON.
pub(crate) fn protobuf(data: &[u8]) {
    // With and without the magic: it costs the fuzzer nothing to know it.
    let prefixed = [proto::MAGIC, data].concat();
    for body in [data, &prefixed] {
        if let Ok(object) = proto::decode(body) {
            assert!(!meta::kind(&object).is_empty());
            let text = object.to_string();
            serde_json::from_str::<serde_json::Value>(&text).expect("what was decoded is valid JSON");
        }
    }
}

/// A body in JSON, checked against the type that it claims to be. What passes passes again, unchanged.
pub(crate) fn json_body(data: &[u8]) {
    let Ok((object, _)) = json::parse(data) else { return };
    let (group, version) = meta::group_version(meta::api_version(&object));
    let Some(ty) = schema().kind(group, version, meta::kind(&object)) else { return };
    for mode in [Mode::Decoded, Mode::Patched] {
        let mut once = object.clone();
        if schema::check(ty, &mut once, mode).is_ok() {
            let mut twice = once.clone();
            schema::check(ty, &mut twice, mode).expect("what passed passes again");
            assert_eq!(once, twice);
        }
    }
}

/// Label and field selectors. What is printed reads as the same.
pub(crate) fn selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(selector) = Selector::parse(text) {
        let printed = selector.to_string();
        assert_eq!(Selector::parse(&printed).as_ref(), Ok(&selector), "{printed:?}");
        let _ = selector.matches(|key| (key.len() % 2 == 0).then_some("value"));
    }
    if let Ok(selector) = FieldSelector::parse(text) {
        let printed = selector.to_string();
        let again = FieldSelector::parse(&printed).expect("what is printed can be read");
        // Terms are ordered as they were written, and `==` is printed as `=`.
        assert_eq!(sorted(again), sorted(selector), "{printed:?}");
    }
    if let Ok(object) = serde_json::from_str(text) {
        let _ = Selector::from_label_selector(&object);
    }
}

fn sorted(selector: FieldSelector) -> Vec<(String, bool, String)> {
    let mut terms: Vec<_> = selector.terms.into_iter().map(|t| (t.field, t.equal, t.value)).collect();
    terms.sort();
    terms
}

/// Two quantities, in lines: read, printed, read again, added.
pub(crate) fn quantity(data: &[u8]) {
    let Some([a, b]) = crate::lines(data) else { return };
    let (Ok(a), b) = (Quantity::parse(a), Quantity::parse(b)) else { return };
    let printed = a.to_string();
    let again = Quantity::parse(&printed).expect("what is printed can be read");
    assert_eq!(again, a, "{printed:?}");
    assert_eq!(a.millis().signum(), i64::from(a.sign()));
    let _ = (a.units(), a.format());
    let Ok(b) = b else { return };
    for result in [a.add(&b), a.sub(&b)] {
        let _ = (result.to_string(), result.cmp(&a));
    }
}
