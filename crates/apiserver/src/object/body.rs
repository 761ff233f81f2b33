//! An object as the store keeps it: JSON with a gap where `metadata.resourceVersion` belongs, and its index terms.
//!
//! Keys are written in the order in which the value holds them, except that `resourceVersion` stands last within
//! `metadata`. The text is written here and nowhere else, so equal objects have equal bytes.

use bytes::Bytes;
use cumulet_api::{Status, meta};
use cumulet_store::{Body, IndexTerm, Record};
use serde_json::{Map, Value};

/// Index of objects by the uids of their owners.
pub(crate) const OWNER_INDEX: &str = "owner";
/// Index of pods by the node they are bound to.
pub(crate) const NODE_INDEX: &str = "node";

/// Decodes what the store holds.
pub(crate) fn parse(record: &Record) -> Result<Value, Status> {
    serde_json::from_slice(&record.body)
        .map_err(|e| Status::internal(format!("{} does not decode: {e}", record.key)))
}

/// Encodes an object for the store.
pub(crate) fn encode(object: &Value) -> Body {
    let mut writer = Writer { out: Vec::with_capacity(1024), split: 0 };
    writer.object(object);
    let whole = Bytes::from(writer.out);
    Body::new(whole.slice(..writer.split), whole.slice(writer.split..))
}

/// Encodes an object that does not get into the store, with the resourceVersion that it has (none for a new one).
pub(crate) fn encode_detached(object: &Value) -> Bytes {
    Bytes::from(object.to_string())
}

struct Writer {
    out: Vec<u8>,
    split: usize,
}

impl Writer {
    fn object(&mut self, object: &Value) {
        static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
        let fields = object.as_object().unwrap_or(&EMPTY);
        self.out.push(b'{');
        let mut seen = false;
        for (index, (name, value)) in fields.iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            self.name(name);
            if name == "metadata" {
                seen = true;
                self.metadata(value.as_object().unwrap_or(&EMPTY));
            } else {
                self.value(value);
            }
        }
        if !seen {
            if !fields.is_empty() {
                self.out.push(b',');
            }
            self.name("metadata");
            self.metadata(&EMPTY);
        }
        self.out.push(b'}');
    }

    fn metadata(&mut self, metadata: &Map<String, Value>) {
        self.out.push(b'{');
        for (name, value) in metadata {
            if name != "resourceVersion" {
                self.name(name);
                self.value(value);
                self.out.push(b',');
            }
        }
        self.out.extend_from_slice(b"\"resourceVersion\":\"");
        self.split = self.out.len();
        self.out.extend_from_slice(b"\"}");
    }

    fn name(&mut self, name: &str) {
        // Writing into a vector cannot fail.
        let _ = serde_json::to_writer(&mut self.out, name);
        self.out.push(b':');
    }

    fn value(&mut self, value: &Value) {
        let _ = serde_json::to_writer(&mut self.out, value);
    }
}

/// Under what an object can be found besides its name.
pub(crate) fn index_terms(object: &Value) -> Vec<IndexTerm> {
    let mut terms: Vec<IndexTerm> =
        meta::owner_references(object).map(|owner| IndexTerm::new(OWNER_INDEX, owner.uid)).collect();
    if meta::kind(object) == "Pod"
        && let Some(node) = object.pointer("/spec/nodeName").and_then(Value::as_str)
        && !node.is_empty()
    {
        terms.push(IndexTerm::new(NODE_INDEX, node));
    }
    terms
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn whole(object: &Value) -> Value {
        let body = encode(object);
        let text = [&body.head[..], b"7", &body.tail[..]].concat();
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn the_gap_is_the_resource_version() {
        for (object, want) in [
            (json!({}), json!({"metadata": {"resourceVersion": "7"}})),
            (json!({"a": 1}), json!({"a": 1, "metadata": {"resourceVersion": "7"}})),
            (
                json!({"kind": "X", "metadata": {"name": "a", "resourceVersion": "3"}, "spec": {"resourceVersion": "z"}}),
                json!({"kind": "X", "metadata": {"name": "a", "resourceVersion": "7"}, "spec": {"resourceVersion": "z"}}),
            ),
        ] {
            assert_eq!(whole(&object), want);
        }
    }

    #[test]
    fn owners_and_nodes_are_indexed() {
        let pod = json!({"kind": "Pod", "metadata": {"ownerReferences": [{"uid": "u"}]}, "spec": {"nodeName": "n"}});
        let terms = index_terms(&pod);
        assert_eq!(terms, [IndexTerm::new("owner", "u"), IndexTerm::new("node", "n")]);
    }
}
