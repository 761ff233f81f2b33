//! Parses JSON and finds keys that occur twice in one object, which a plain parser hides.

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::fmt;

/// Parses a JSON text. Besides the value (the last of several equal keys wins) it returns the repeated keys in
/// Kubernetes' words: `duplicate field "spec.replicas"`. Nesting is limited to 127 levels.
pub fn parse(text: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let found = RefCell::new(Found::default());
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = Node(&found).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok((value, found.into_inner().duplicates))
}

#[derive(Default)]
struct Found {
    path: String,
    duplicates: Vec<String>,
}

impl Found {
    /// Enters a key or index and returns the length to go back to.
    fn enter(&mut self, step: fmt::Arguments<'_>) -> usize {
        let length = self.path.len();
        self.path.push_str(&step.to_string());
        length
    }

    fn enter_key(&mut self, key: &str) -> usize {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(key);
        length
    }
}

struct Node<'a>(&'a RefCell<Found>);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any valid JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_string<E: Error>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        loop {
            let length = self.0.borrow_mut().enter(format_args!("[{}]", out.len()));
            let item = items.next_element_seed(Node(self.0))?;
            self.0.borrow_mut().path.truncate(length);
            match item {
                Some(item) => out.push(item),
                None => return Ok(Value::Array(out)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let length = self.0.borrow_mut().enter_key(&key);
            if out.contains_key(&key) {
                let mut found = self.0.borrow_mut();
                let message = format!("duplicate field \"{}\"", found.path);
                if !found.duplicates.contains(&message) {
                    found.duplicates.push(message);
                }
            }
            let value = entries.next_value_seed(Node(self.0))?;
            self.0.borrow_mut().path.truncate(length);
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn duplicates() {
        for (text, expected) in [
            (r#"{"a": 1, "b": {"a": 2}}"#, vec![]),
            (r#"{"a": 1, "a": 2}"#, vec![r#"duplicate field "a""#]),
            (r#"{"s": [{}, {"x": {"k": 1, "k": 2, "k": 3}}]}"#, vec![r#"duplicate field "s[1].x.k""#]),
        ] {
            let (_, duplicates) = parse(text.as_bytes()).expect("valid");
            assert_eq!(duplicates, expected, "{text}");
        }
    }

    #[test]
    fn hostile() {
        assert!(parse("[".repeat(100_000).as_bytes()).is_err());
        assert!(parse(b"{} {}").is_err());
        assert!(parse(b"").is_err());
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json(text in "[\\[\\]{}\",:0-9a.e-]{0,30}") {
            let plain = serde_json::from_str::<Value>(&text).ok();
            prop_assert_eq!(parse(text.as_bytes()).ok().map(|(v, _)| v), plain);
        }
    }
}
