//! Checks an object against its type the way Go's decoder does, and brings it into the form that Go would encode.
//!
//! - A value of the wrong type is an error with Kubernetes' message.
//! - Unknown fields are reported and removed; the caller makes warnings or errors of them.
//! - Nulls are dropped, and so are zero values of `omitempty` fields, since a typed server cannot tell them from
//!   absent ones. Quantities and times are brought into their usual form.
//!
//! Absent on purpose: defaults, and the rules of the kinds. They follow later and see only well-typed objects.

use super::{Field, FieldType, Type, go_name, schema};
use crate::{Quantity, Status, meta};
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

/// Go's decoder ignores stray bits in the last symbol but insists on padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// Where the object comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// From the body of a request: `3.0` is no integer.
    Decoded,
    /// From a strategic merge, where numbers went through untyped JSON: `3.0` is the integer 3.
    Patched,
}

/// Checks `value` against `ty` and normalises it in place. Returns the unknown fields in Kubernetes' words
/// (`unknown field "spec.foo"`); an error is a 400 that names the first value of a wrong type.
pub fn check(ty: &Type, value: &mut Value, mode: Mode) -> Result<Vec<String>, Status> {
    let mut checker = Checker { path: String::new(), problems: Vec::new(), mode };
    let result = match value {
        Value::Object(map) => checker.object(ty, map),
        other => Err(TypeError::mismatch(kind_of(other), &go_name(ty.name))),
    };
    match result {
        Ok(()) => Ok(checker.problems),
        Err(error) => Err(cannot_handle(ty, &error.message())),
    }
}

/// The 400 that says why a body does not decode as a kind.
pub fn cannot_handle(ty: &Type, why: &str) -> Status {
    let (kind, version) = (ty.short_name(), ty.package.version);
    Status::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"))
}

/// The 400 of strict field validation for the problems that [`check`] and [`crate::json::parse`] reported.
pub fn strict_error(ty: &Type, problems: &[String]) -> Status {
    cannot_handle(ty, &format!("strict decoding error: {}", problems.join(", ")))
}

struct Checker {
    /// Where we are, as in `spec.containers[0].name`.
    path: String,
    problems: Vec<String>,
    mode: Mode,
}

/// A value that does not fit. The path is gathered on the way out.
struct TypeError {
    /// `json: cannot unmarshal X into Go `
    head: String,
    /// ` of type T`; empty for errors that a scalar's own decoder makes, which have no path.
    tail: String,
    holder: Option<&'static str>,
    /// Field names, innermost first.
    path: Vec<String>,
}

impl TypeError {
    fn mismatch(found: String, wanted: &str) -> Self {
        let head = format!("json: cannot unmarshal {found} into Go ");
        Self { head, tail: format!(" of type {wanted}"), holder: None, path: Vec::new() }
    }

    fn own(message: String) -> Self {
        Self { head: message, tail: String::new(), holder: None, path: Vec::new() }
    }

    fn inside(mut self, ty: &Type, field: &str) -> Self {
        self.holder.get_or_insert(ty.short_name());
        self.path.push(field.to_owned());
        self
    }

    fn message(&self) -> String {
        if self.tail.is_empty() {
            return self.head.clone();
        }
        match self.holder {
            Some(holder) => {
                let path: Vec<&str> = self.path.iter().rev().map(String::as_str).collect();
                format!("{}struct field {holder}.{}{}", self.head, path.join("."), self.tail)
            }
            None => format!("{}value{}", self.head, self.tail),
        }
    }
}

impl Checker {
    fn object(&mut self, ty: &Type, map: &mut Map<String, Value>) -> Result<(), TypeError> {
        let mut failed = None;
        map.retain(|key, value| {
            if failed.is_some() {
                return true;
            }
            let length = self.path.len();
            if length > 0 {
                self.path.push('.');
            }
            self.path.push_str(key);
            let keep = match ty.field(key) {
                Some(field) => self.field(field, value).unwrap_or_else(|error| {
                    failed = Some(error.inside(ty, key));
                    true
                }),
                None => {
                    self.problems.push(format!("unknown field \"{}\"", self.path));
                    false
                }
            };
            self.path.truncate(length);
            keep
        });
        failed.map_or(Ok(()), Err)
    }

    /// Checks the value of a field; false when Go would not encode it again.
    fn field(&mut self, field: &Field, value: &mut Value) -> Result<bool, TypeError> {
        if value.is_null() {
            return Ok(false);
        }
        self.value(&field.ty, field.type_text, value)?;
        if value.is_null() {
            return Ok(false);
        }
        let omitted = match value {
            Value::Object(map) if matches!(field.ty, FieldType::Object(_)) => {
                field.omit_zero && map.is_empty()
            }
            Value::Object(map) => field.omit_empty && map.is_empty(),
            Value::Array(items) => field.omit_empty && items.is_empty(),
            scalar => field.omit_empty && is_zero(&field.ty, scalar),
        };
        Ok(field.pointer || !omitted)
    }

    fn value(&mut self, ty: &FieldType, text: &str, value: &mut Value) -> Result<(), TypeError> {
        let fits = match ty {
            FieldType::String => value.is_string(),
            FieldType::Bool => value.is_boolean(),
            FieldType::Int32 | FieldType::Int64 => return self.integer(ty, text, value),
            FieldType::Double => value.is_number(),
            FieldType::Bytes => return bytes(value),
            FieldType::Quantity => return quantity(value),
            FieldType::IntOrString if value.is_string() => true,
            FieldType::IntOrString => return self.integer(&FieldType::Int32, "int32", value),
            FieldType::Time => return time(value, meta::time),
            FieldType::MicroTime => return time(value, meta::micro_time),
            FieldType::RawJson | FieldType::FieldsV1 => true,
            FieldType::Object(id) => match value {
                Value::Object(map) => return self.object(schema().get(*id), map),
                _ => false,
            },
            FieldType::List(item) | FieldType::Message(item) => match value {
                Value::Array(items) => return self.items(item, text, items),
                _ => false,
            },
            FieldType::Map(item) => match value {
                Value::Object(map) => return self.entries(item, text, map),
                _ => false,
            },
        };
        if fits { Ok(()) } else { Err(TypeError::mismatch(kind_of(value), &go_name(text))) }
    }

    fn items(&mut self, item: &FieldType, text: &str, items: &mut [Value]) -> Result<(), TypeError> {
        let text = text.strip_prefix("[]").unwrap_or(item_text(item));
        for (i, value) in items.iter_mut().enumerate() {
            let length = self.path.len();
            self.path.push_str(&format!("[{i}]"));
            self.element(item, text, value)?;
            self.path.truncate(length);
        }
        Ok(())
    }

    fn entries(
        &mut self,
        item: &FieldType,
        text: &str,
        map: &mut Map<String, Value>,
    ) -> Result<(), TypeError> {
        let text = text.strip_prefix("map[string]").unwrap_or(item_text(item));
        for (key, value) in map.iter_mut() {
            let length = self.path.len();
            self.path.push('.');
            self.path.push_str(key);
            self.element(item, text, value)?;
            self.path.truncate(length);
        }
        Ok(())
    }

    /// An item of a list or map: null stands for the zero value there.
    fn element(&mut self, ty: &FieldType, text: &str, value: &mut Value) -> Result<(), TypeError> {
        if value.is_null() {
            *value = zero(ty);
            return Ok(());
        }
        self.value(ty, text, value)
    }

    fn integer(&mut self, ty: &FieldType, text: &str, value: &mut Value) -> Result<(), TypeError> {
        let Value::Number(number) = &*value else {
            return Err(TypeError::mismatch(kind_of(value), &go_name(text)));
        };
        let whole = match number.as_i64() {
            // Casting saturates, and a saturated value does not equal the float again unless it is in range.
            None if self.mode == Mode::Patched => {
                number.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e18).map(|f| f as i64)
            }
            exact => exact,
        };
        match whole {
            Some(n) if *ty == FieldType::Int64 || i32::try_from(n).is_ok() => {
                if !number.is_i64() {
                    *value = Value::from(n);
                }
                Ok(())
            }
            _ => Err(TypeError::mismatch(format!("number {number}"), &go_name(text))),
        }
    }
}

/// The table's text for the items of a named list or map, which the field's own text does not spell out.
fn item_text(item: &FieldType) -> &'static str {
    match item {
        FieldType::Object(id) => schema().get(*id).name,
        FieldType::Bool => "bool",
        FieldType::Int32 => "int32",
        FieldType::Int64 => "int64",
        FieldType::Double => "double",
        FieldType::Bytes => "bytes",
        FieldType::Quantity => "Quantity",
        _ => "string",
    }
}

fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
    .to_owned()
}

/// Go's zero value in JSON; null for times.
fn zero(ty: &FieldType) -> Value {
    match ty {
        FieldType::Bool => Value::Bool(false),
        FieldType::Int32 | FieldType::Int64 | FieldType::Double | FieldType::IntOrString => Value::from(0),
        FieldType::Quantity => Value::from("0"),
        FieldType::Object(_) => Value::Object(Map::new()),
        FieldType::String => Value::from(""),
        _ => Value::Null,
    }
}

/// True for the zero of a scalar that `omitempty` leaves out; structs such as quantities are never left out.
pub(crate) fn is_zero(ty: &FieldType, value: &Value) -> bool {
    match ty {
        FieldType::String | FieldType::Bytes => value.as_str() == Some(""),
        FieldType::Bool => value == &Value::Bool(false),
        FieldType::Int32 | FieldType::Int64 | FieldType::Double => value.as_f64() == Some(0.0),
        _ => false,
    }
}

fn quantity(value: &mut Value) -> Result<(), TypeError> {
    let text = match &*value {
        Value::String(s) => s.trim().to_owned(),
        other => other.to_string(),
    };
    let quantity = Quantity::parse(&text).map_err(|e| TypeError::own(e.to_string()))?;
    *value = Value::String(quantity.to_string());
    Ok(())
}

fn time(value: &mut Value, print: fn(jiff::Timestamp) -> String) -> Result<(), TypeError> {
    let Value::String(text) = &*value else {
        return Err(TypeError::mismatch(kind_of(value), "string"));
    };
    let Some(at) = meta::parse_time(text) else {
        let layout = "2006-01-02T15:04:05Z07:00";
        let message = format!("parsing time \"{text}\" as \"{layout}\": cannot parse \"{text}\" as \"2006\"");
        return Err(TypeError::own(message));
    };
    *value = Value::String(print(at));
    Ok(())
}

fn bytes(value: &mut Value) -> Result<(), TypeError> {
    let Value::String(text) = &*value else {
        return Err(TypeError::mismatch(kind_of(value), "[]uint8"));
    };
    let clean = if text.contains(['\r', '\n']) { text.replace(['\r', '\n'], "") } else { text.clone() };
    let decoded = BASE64.decode(&clean).map_err(|e| {
        let at = match e {
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => {
                clean.len() / 4 * 4
            }
        };
        TypeError::own(format!("illegal base64 data at input byte {at}"))
    })?;
    *value = Value::String(BASE64.encode(decoded));
    Ok(())
}
