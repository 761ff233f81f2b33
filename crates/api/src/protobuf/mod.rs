//! Decodes request bodies in `application/vnd.kubernetes.protobuf`, which kubectl sends for the kinds it knows.
//!
//! ```text
//!   "k8s\0" · runtime.Unknown { typeMeta { apiVersion, kind }, raw } · raw = the kind's message
//! ```
//!
//! The message is read with the schema table into the JSON form that Go would encode: fields inlined in JSON are
//! lifted out of their messages, zero values of `omitempty` fields are left out (the wire always carries them),
//! quantities, times and the like get their JSON form.
//!
//! Input is hostile: every length is checked, nesting and size are limited, unknown fields are skipped as protobuf
//! demands, and nothing panics. Absent on purpose: encoding, since every client that sends protobuf accepts JSON.

mod wire;

use crate::schema::{Field, FieldType, Type, schema};
use crate::{Quantity, meta};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use wire::{Raw, Reader};

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// The first bytes of every body.
pub const MAGIC: &[u8] = b"k8s\0";
/// Largest body that is looked at, in bytes; twice what API servers accept by default.
pub const MAX_BODY_BYTES: usize = 6 << 20;
/// Deepest nesting of messages. The types of the table reach about 20.
const MAX_DEPTH: u32 = 64;

/// Why a body cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The magic bytes are missing.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NotProtobuf,
    /// The body is larger than [`MAX_BODY_BYTES`].
    #[error("the body is too large to be decoded")]
    TooLarge,
    /// No such kind.
    #[error("no kind \"{kind}\" is registered for version \"{api_version}\"")]
    UnknownKind {
        /// apiVersion of the body.
        api_version: String,
        /// kind of the body.
        kind: String,
    },
    /// The bytes are not the message they should be.
    #[error("{0}")]
    Malformed(String),
}

impl DecodeError {
    fn in_field(self, ty: &Type, field: &str) -> Self {
        match self {
            // The innermost field is named; the way to it would cost more than it tells.
            Self::Malformed(why) if !why.contains(" (field ") => {
                Self::Malformed(format!("{why} (field {field} of {})", ty.short_name()))
            }
            other => other,
        }
    }
}

fn malformed<T>(why: impl Into<String>) -> Result<T, DecodeError> {
    Err(DecodeError::Malformed(why.into()))
}

/// Decodes a body into its JSON form, with `apiVersion` and `kind` set. Safe on any bytes; this is also the entry
/// for fuzzing.
pub fn decode(body: &[u8]) -> Result<Value, DecodeError> {
    decode_nested(body, 0)
}

fn decode_nested(body: &[u8], depth: u32) -> Result<Value, DecodeError> {
    if body.len() > MAX_BODY_BYTES {
        return Err(DecodeError::TooLarge);
    }
    let message = body.strip_prefix(MAGIC).ok_or(DecodeError::NotProtobuf)?;
    let (mut type_meta, mut raw): (&[u8], &[u8]) = (&[], &[]);
    let mut reader = Reader::new(message);
    while let Some((number, value)) = reader.next()? {
        match number {
            1 => type_meta = value.bytes()?,
            2 => raw = value.bytes()?,
            3 if !value.bytes()?.is_empty() => {
                return malformed("an encoded body inside of protobuf is not supported");
            }
            _ => {}
        }
    }
    let (mut api_version, mut kind) = ("", "");
    let mut reader = Reader::new(type_meta);
    while let Some((number, value)) = reader.next()? {
        match number {
            1 => api_version = value.text()?,
            2 => kind = value.text()?,
            _ => {}
        }
    }
    let (group, version) = meta::group_version(api_version);
    let Some(ty) = schema().kind(group, version, kind) else {
        return Err(DecodeError::UnknownKind { api_version: api_version.to_owned(), kind: kind.to_owned() });
    };
    let mut object = Map::new();
    object.insert("apiVersion".to_owned(), Value::from(api_version));
    object.insert("kind".to_owned(), Value::from(kind));
    decode_message(ty, raw, &mut object, depth)?;
    Ok(Value::Object(object))
}

/// Decodes the message of a struct into `out`. Bytes of an earlier occurrence of the same message are merged with, as
/// protobuf demands.
fn decode_message(
    ty: &Type,
    bytes: &[u8],
    out: &mut Map<String, Value>,
    depth: u32,
) -> Result<(), DecodeError> {
    if depth > MAX_DEPTH {
        return malformed("the message is nested too deeply");
    }
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.next()? {
        let Some(field) = ty.fields.iter().find(|f| f.proto == number && number != 0) else { continue };
        decode_field(field, value, out, depth).map_err(|e| e.in_field(ty, field.json))?;
    }
    Ok(())
}

fn decode_field(
    field: &Field,
    raw: Raw<'_>,
    out: &mut Map<String, Value>,
    depth: u32,
) -> Result<(), DecodeError> {
    match &field.ty {
        FieldType::Object(id) if field.inline => {
            return decode_message(schema().get(*id), raw.bytes()?, out, depth + 1);
        }
        FieldType::Object(id) => {
            let slot = out.entry(field.json).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(map) = slot {
                decode_message(schema().get(*id), raw.bytes()?, map, depth + 1)?;
            }
            if field.omit_zero && slot.as_object().is_some_and(Map::is_empty) {
                out.remove(field.json);
            }
        }
        FieldType::List(item) => {
            let slot = out.entry(field.json).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(items) = slot else { return Ok(()) };
            match raw {
                Raw::Bytes(packed)
                    if matches!(**item, FieldType::Int32 | FieldType::Int64 | FieldType::Bool) =>
                {
                    let mut reader = Reader::new(packed);
                    while let Some(number) = reader.packed_varint()? {
                        items.push(decode_value(item, Raw::Varint(number), depth)?);
                    }
                }
                _ => items.push(decode_value(item, raw, depth)?),
            }
        }
        FieldType::Map(item) => {
            let slot = out.entry(field.json).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(map) = slot {
                let (key, value) = decode_entry(item, raw.bytes()?, depth)?;
                map.insert(key, value);
            }
        }
        scalar => {
            let value = decode_value(scalar, raw, depth)?;
            let omitted = field.omit_empty && !field.pointer && crate::schema::is_zero(scalar, &value);
            if value.is_null() || omitted {
                out.remove(field.json);
            } else {
                out.insert(field.json.to_owned(), value);
            }
        }
    }
    Ok(())
}

fn decode_entry(item: &FieldType, bytes: &[u8], depth: u32) -> Result<(String, Value), DecodeError> {
    let (mut key, mut value) = (String::new(), None);
    let mut reader = Reader::new(bytes);
    while let Some((number, raw)) = reader.next()? {
        match number {
            1 => key = raw.text()?.to_owned(),
            2 => value = Some(decode_value(item, raw, depth)?),
            _ => {}
        }
    }
    let value = match value {
        Some(value) => value,
        None => absent(item),
    };
    Ok((key, value))
}

/// What a map entry without a value holds.
fn absent(ty: &FieldType) -> Value {
    match ty {
        FieldType::String | FieldType::Bytes => Value::from(""),
        FieldType::Quantity => Value::from("0"),
        FieldType::Object(_) => Value::Object(Map::new()),
        FieldType::List(_) | FieldType::Message(_) => Value::Array(Vec::new()),
        _ => Value::Null,
    }
}

fn decode_value(ty: &FieldType, raw: Raw<'_>, depth: u32) -> Result<Value, DecodeError> {
    Ok(match ty {
        FieldType::String => Value::from(raw.text()?),
        FieldType::Bool => Value::Bool(raw.varint()? != 0),
        // Truncation is what the Go decoder does, and negative numbers travel as 64 bits.
        FieldType::Int32 => Value::from(raw.varint()? as i32),
        FieldType::Int64 => Value::from(raw.varint()? as i64),
        FieldType::Double => Value::from(raw.double()?),
        FieldType::Bytes => Value::from(STANDARD.encode(raw.bytes()?)),
        FieldType::Quantity => decode_quantity(raw.bytes()?)?,
        FieldType::IntOrString => decode_int_or_string(raw.bytes()?)?,
        FieldType::Time => decode_time(raw.bytes()?, false)?,
        FieldType::MicroTime => decode_time(raw.bytes()?, true)?,
        FieldType::RawJson => decode_raw(raw.bytes()?, depth)?,
        FieldType::FieldsV1 => decode_raw(raw.bytes()?, depth)?,
        FieldType::Object(id) => {
            let mut map = Map::new();
            decode_message(schema().get(*id), raw.bytes()?, &mut map, depth + 1)?;
            Value::Object(map)
        }
        FieldType::Message(item) => {
            let mut items = Vec::new();
            let mut reader = Reader::new(raw.bytes()?);
            while let Some((number, raw)) = reader.next()? {
                if number == 1 {
                    items.push(decode_value(item, raw, depth + 1)?);
                }
            }
            Value::Array(items)
        }
        FieldType::List(_) | FieldType::Map(_) => return malformed("a list of lists has no protobuf form"),
    })
}

fn decode_quantity(bytes: &[u8]) -> Result<Value, DecodeError> {
    let mut text = "0";
    let mut reader = Reader::new(bytes);
    while let Some((number, raw)) = reader.next()? {
        if number == 1 {
            text = raw.text()?;
        }
    }
    match Quantity::parse(text) {
        Ok(quantity) => Ok(Value::String(quantity.to_string())),
        Err(error) => malformed(error.to_string()),
    }
}

fn decode_int_or_string(bytes: &[u8]) -> Result<Value, DecodeError> {
    let (mut is_string, mut number, mut text) = (false, 0, "");
    let mut reader = Reader::new(bytes);
    while let Some((field, raw)) = reader.next()? {
        match field {
            1 => is_string = raw.varint()? != 0,
            2 => number = raw.varint()? as i32,
            3 => text = raw.text()?,
            _ => {}
        }
    }
    Ok(if is_string { Value::from(text) } else { Value::from(number) })
}

/// A moment; null when the message is empty, which stands for Go's zero time.
fn decode_time(bytes: &[u8], micros: bool) -> Result<Value, DecodeError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0_i64, 0_i32);
    let mut reader = Reader::new(bytes);
    while let Some((field, raw)) = reader.next()? {
        match field {
            1 => seconds = raw.varint()? as i64,
            2 => nanos = raw.varint()? as i32,
            _ => {}
        }
    }
    match jiff::Timestamp::new(seconds, if micros { nanos } else { 0 }) {
        Ok(at) => Ok(Value::String(if micros { meta::micro_time(at) } else { meta::time(at) })),
        Err(_) => malformed("the time is out of range"),
    }
}

/// JSON, or for objects inside of objects a whole protobuf body; in a message with the bytes as field 1.
fn decode_raw(bytes: &[u8], depth: u32) -> Result<Value, DecodeError> {
    let mut content: &[u8] = &[];
    let mut reader = Reader::new(bytes);
    while let Some((number, raw)) = reader.next()? {
        if number == 1 {
            content = raw.bytes()?;
        }
    }
    if content.is_empty() {
        return Ok(Value::Null);
    }
    if content.starts_with(MAGIC) {
        return if depth > MAX_DEPTH {
            malformed("nested too deeply")
        } else {
            decode_nested(content, depth + 1)
        };
    }
    serde_json::from_slice(content).or_else(|e| malformed(format!("raw JSON does not parse: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
        let bytes = |number: u8, content: &[u8]| {
            let mut out = vec![number << 3 | 2];
            let mut length = content.len();
            while length >= 0x80 {
                out.push(length as u8 | 0x80);
                length >>= 7;
            }
            out.push(length as u8);
            out.extend_from_slice(content);
            out
        };
        let type_meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), bytes(1, &type_meta), bytes(2, message)].concat()
    }

    #[test]
    fn refused() {
        let long = [MAGIC, &vec![0; MAX_BODY_BYTES]].concat();
        for (given, error) in [
            (b"{}".to_vec(), "expected prefix"),
            (long, "too large"),
            (body("v1", "Nothing", b""), "no kind \"Nothing\" is registered for version \"v1\""),
            (body("v1", "PodSpec", b""), "no kind"),
            (body("v1", "Pod", b"\x0a\x05ab"), "ends in the middle"),
            (body("v1", "Pod", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), "longer than 64 bits"),
            (body("v1", "Pod", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), "ends in the middle"),
            (body("v1", "Pod", b"\x08\x01"), "wire type (field metadata of Pod)"),
            (body("v1", "Pod", b"\x0a\x03\x0a\x01\xff"), "UTF-8 (field name of ObjectMeta)"),
            (body("v1", "Pod", b"\x0b"), "wire type"),
            (body("v1", "Pod", b"\x02\x00"), "field number"),
        ] {
            let found = decode(&given).expect_err("must be refused").to_string();
            assert!(found.contains(error), "{found:?} should contain {error:?}");
        }
    }

    #[test]
    fn unknown_fields_are_skipped_and_messages_merge() {
        // metadata twice (name, then namespace), then fields 500 of every wire type.
        let message =
            b"\x0a\x03\x0a\x01a\x0a\x03\x1a\x01b\xa0\x1f\x01\xa1\x1f12345678\xa2\x1f\x01x\xa5\x1f1234";
        let value = decode(&body("v1", "Pod", message)).expect("valid");
        assert_eq!(value.pointer("/metadata"), Some(&serde_json::json!({"name": "a", "namespace": "b"})));
    }

    proptest! {
        #[test]
        fn random_bytes_are_answered(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&tail);
            let _ = decode(&[MAGIC, &tail].concat());
            for (api_version, kind) in [("v1", "Pod"), ("v1", "List"), ("apps/v1", "Deployment")] {
                let _ = decode(&body(api_version, kind, &tail));
            }
        }

        /// Small fields of low numbers reach further into the types than random bytes do.
        #[test]
        fn random_messages_are_answered(message in nested()) {
            for (api_version, kind) in [("v1", "Pod"), ("v1", "Event"), ("v1", "List"), ("v1", "DeleteOptions")] {
                let _ = decode(&body(api_version, kind, &message));
            }
        }
    }

    fn nested() -> impl Strategy<Value = Vec<u8>> {
        let leaf = proptest::collection::vec(any::<u8>(), 0..8);
        leaf.prop_recursive(6, 64, 4, |inner| {
            proptest::collection::vec((1_u8..16, 0_u8..6, inner), 0..4).prop_map(|fields| {
                let mut out = Vec::new();
                for (number, wire, content) in fields {
                    out.push(number << 3 | wire);
                    if wire == 2 {
                        out.push(content.len().min(127) as u8);
                    }
                    out.extend(content.iter().take(127));
                }
                out
            })
        })
    }
}
