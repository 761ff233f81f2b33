//! Errors about one field of an object, worded as Kubernetes words them.
//!
//! The texts and reasons follow `k8s.io/apimachinery/pkg/util/validation/field`: kubectl prints them verbatim.

use serde_json::Value;

/// What is wrong with a field. `reason()` gives the `StatusCause.reason` that clients match on.
#[derive(Clone, Debug, PartialEq)]
pub enum Problem {
    /// The field must have a value.
    Required,
    /// The value is malformed or out of range.
    Invalid(Value),
    /// The value is not one of the supported ones.
    NotSupported(Value, Vec<String>),
    /// The value repeats one that must be unique.
    Duplicate(Value),
    /// The field may not be set (or not be changed) here.
    Forbidden,
    /// The string is longer than this many bytes.
    TooLong(usize),
    /// The list has this many items, more than the second number.
    TooMany(usize, usize),
    /// The value refers to something that does not exist.
    NotFound(Value),
}

/// One problem at one field path such as `spec.containers[0].name`.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// Path of the field, in Kubernetes' notation.
    pub field: String,
    /// What is wrong.
    pub problem: Problem,
    /// The part of the message after the colon; may be empty.
    pub detail: String,
}

impl FieldError {
    /// A required field is missing.
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { field: field.into(), problem: Problem::Required, detail: detail.into() }
    }

    /// The value is malformed.
    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self { field: field.into(), problem: Problem::Invalid(value.into()), detail: detail.into() }
    }

    /// The field may not be set.
    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { field: field.into(), problem: Problem::Forbidden, detail: detail.into() }
    }

    /// The value repeats another.
    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self { field: field.into(), problem: Problem::Duplicate(value.into()), detail: String::new() }
    }

    /// The value is not one of `supported`.
    pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let supported = supported.iter().map(|s| (*s).to_owned()).collect();
        Self {
            field: field.into(),
            problem: Problem::NotSupported(value.into(), supported),
            detail: String::new(),
        }
    }

    /// The machine-readable reason of a `StatusCause`.
    pub fn reason(&self) -> &'static str {
        match self.problem {
            Problem::Required => "FieldValueRequired",
            Problem::Invalid(_) => "FieldValueInvalid",
            Problem::NotSupported(..) => "FieldValueNotSupported",
            Problem::Duplicate(_) => "FieldValueDuplicate",
            Problem::Forbidden => "FieldValueForbidden",
            Problem::TooLong(_) => "FieldValueTooLong",
            Problem::TooMany(..) => "FieldValueTooMany",
            Problem::NotFound(_) => "FieldValueNotFound",
        }
    }

    /// The message without the field path, as in `StatusCause.message`.
    pub fn body(&self) -> String {
        let head = match &self.problem {
            Problem::Required => "Required value".to_owned(),
            Problem::Invalid(v) => format!("Invalid value: {v}"),
            Problem::NotSupported(v, supported) => {
                let list: Vec<String> = supported.iter().map(|s| format!("\"{s}\"")).collect();
                return format!("Unsupported value: {v}: supported values: {}", list.join(", "));
            }
            Problem::Duplicate(v) => format!("Duplicate value: {v}"),
            Problem::Forbidden => "Forbidden".to_owned(),
            Problem::TooLong(max) => {
                return format!(
                    "Too long: may not be more than {max} byte{}",
                    if *max == 1 { "" } else { "s" }
                );
            }
            Problem::TooMany(n, max) => {
                let s = if *max == 1 { "" } else { "s" };
                return format!("Too many: {n}: must have at most {max} item{s}");
            }
            Problem::NotFound(v) => format!("Not found: {v}"),
        };
        if self.detail.is_empty() { head } else { format!("{head}: {}", self.detail) }
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}
