//! Request bodies: read with a cap, decode JSON, YAML or protobuf, check against the schema.
//!
//! The body is hostile: its size is capped before it is read, nesting by the parsers, and what YAML aliases blow up
//! to by the room that a body of the greatest size would have left.

use crate::registry::Resource;
use axum::body::Bytes;
use cumulet_api::schema::{self, Mode, Type};
use cumulet_api::{Status, StatusReason, meta, protobuf};
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::Value;

/// Greatest body, in bytes, as in Kubernetes.
const BODY_MAX: usize = 3 * 1024 * 1024;
/// A body that is announced to be larger than this is not even read before its sender is told.
const DRAIN_MAX: usize = 4 * BODY_MAX;
/// What the aliases of a YAML body may expand to, in bytes.
const ALIAS_ROOM: usize = 32 * 1024 * 1024;

/// What happens with fields that the schema does not know (`fieldValidation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Strictness {
    /// They are dropped.
    Ignore,
    /// They are dropped with a warning.
    #[default]
    Warn,
    /// The request is refused.
    Strict,
}

impl Strictness {
    pub(crate) fn read(text: Option<&str>) -> Result<Self, Status> {
        match text {
            None | Some("Warn") => Ok(Self::Warn),
            Some("Ignore") => Ok(Self::Ignore),
            Some("Strict") => Ok(Self::Strict),
            Some(other) => {
                let error = cumulet_api::field::FieldError::not_supported(
                    "fieldValidation",
                    other,
                    &["", "Ignore", "Strict", "Warn"],
                );
                Err(Status::invalid("meta.k8s.io", "CreateOptions", "", &[error]))
            }
        }
    }

    /// Makes warnings or an error of what is wrong with the fields of an object.
    pub(crate) fn judge(self, ty: &Type, mut problems: Vec<String>) -> Result<Vec<String>, Status> {
        // Removed fields of a managed-by-server section are nobody's mistake.
        problems.retain(|problem| !problem.contains("metadata.selfLink"));
        match self {
            Self::Ignore => Ok(Vec::new()),
            Self::Strict if !problems.is_empty() => Err(schema::strict_error(ty, &problems)),
            Self::Warn | Self::Strict => Ok(problems),
        }
    }
}

/// A decoded object.
pub(crate) struct Decoded {
    pub(crate) object: Value,
    pub(crate) warnings: Vec<String>,
}

/// The media type of the body, without parameters.
pub(crate) fn content_type(headers: &HeaderMap) -> &str {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim()
}

/// Reads a body; 413 when it is too large.
pub(crate) async fn read(headers: &HeaderMap, body: Incoming) -> Result<Bytes, Status> {
    let announced =
        headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<usize>().ok());
    if let Some(length) = announced
        && length > BODY_MAX
    {
        if length <= DRAIN_MAX {
            drain(body).await;
        }
        return Err(too_large());
    }
    match Limited::new(body, BODY_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => Err(too_large()),
        Err(error) => Err(Status::bad_request(format!("the body of the request could not be read: {error}"))),
    }
}

/// Reads a body to its end and drops it: most clients send everything before they look at the answer.
async fn drain(mut body: Incoming) {
    while let Some(Ok(_)) = body.frame().await {}
}

fn too_large() -> Status {
    Status::new(StatusReason::RequestEntityTooLarge, format!("Request entity too large: limit is {BODY_MAX}"))
}

/// Decodes an object of the resource's kind.
pub(crate) fn object(
    resource: &Resource,
    headers: &HeaderMap,
    body: &[u8],
    strictness: Strictness,
) -> Result<Decoded, Status> {
    let (mut object, mut problems) = raw(headers, body, resource.ty)?;
    adopt_kind(&mut object, &resource.api_version(), resource.row.kind)?;
    problems.extend(schema::check(resource.ty, &mut object, Mode::Decoded)?);
    let warnings = strictness.judge(resource.ty, problems)?;
    Ok(Decoded { object, warnings })
}

/// Decodes an object that a component of this process sent as JSON.
pub(crate) fn trusted(resource: &Resource, body: &[u8]) -> Result<Value, Status> {
    let mut object: Value =
        serde_json::from_slice(body).map_err(|e| schema::cannot_handle(resource.ty, &e.to_string()))?;
    adopt_kind(&mut object, &resource.api_version(), resource.row.kind)?;
    schema::check(resource.ty, &mut object, Mode::Decoded)?;
    Ok(object)
}

/// Decodes a body that is no object of a row, such as `DeleteOptions`. Unknown fields are dropped.
pub(crate) fn plain(
    headers: &HeaderMap,
    body: &[u8],
    group: &str,
    version: &str,
    kind: &str,
) -> Result<Value, Status> {
    let ty = schema::schema()
        .kind(group, version, kind)
        .ok_or_else(|| Status::internal(format!("no schema for {kind}")))?;
    let (mut value, _) = raw(headers, body, ty)?;
    if !meta::kind(&value).is_empty() && meta::kind(&value) != kind {
        return Err(Status::bad_request(format!("expected a {kind}, got a {}", meta::kind(&value))));
    }
    schema::check(ty, &mut value, Mode::Decoded)?;
    Ok(value)
}

/// Decodes bytes into a value, with the fields that occur twice.
fn raw(headers: &HeaderMap, body: &[u8], ty: &Type) -> Result<(Value, Vec<String>), Status> {
    let decoded = match content_type(headers) {
        "" | "application/json" => {
            cumulet_api::json::parse(body).map_err(|e| undecodable(ty, &e.to_string()))?
        }
        "application/yaml" => (yaml(body).map_err(|e| undecodable(ty, &e))?, Vec::new()),
        "application/vnd.kubernetes.protobuf" => {
            (protobuf::decode(body).map_err(|e| undecodable(ty, &e.to_string()))?, Vec::new())
        }
        _ => {
            return Err(unsupported(&[
                "application/json",
                "application/yaml",
                "application/vnd.kubernetes.protobuf",
            ]));
        }
    };
    if decoded.0.is_object() { Ok(decoded) } else { Err(undecodable(ty, "the body is not an object")) }
}

fn undecodable(ty: &Type, why: &str) -> Status {
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): {why}",
        ty.short_name()
    ))
}

/// 415.
pub(crate) fn unsupported(accepted: &[&str]) -> Status {
    Status::new(
        StatusReason::UnsupportedMediaType,
        format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        ),
    )
}

/// Decodes YAML.
pub(crate) fn yaml(body: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(body).map_err(|e| e.to_string())?;
    let mut options = serde_saphyr::Options::default();
    // Every replayed event may bring the largest scalar of the body with it.
    options.alias_limits.max_total_replayed_events = ALIAS_ROOM / text.len().max(64);
    options.with_snippet = false;
    serde_saphyr::from_str_with_options(text, options).map_err(|e| e.to_string())
}

/// The object must be of this kind; one that does not say its kind becomes one.
fn adopt_kind(object: &mut Value, api_version: &str, kind: &str) -> Result<(), Status> {
    let (own_version, own_kind) = (meta::api_version(object), meta::kind(object));
    if !own_version.is_empty() && own_version != api_version {
        return Err(Status::bad_request(format!(
            "the API version in the data ({own_version}) does not match the expected API version ({api_version})"
        )));
    }
    if !own_kind.is_empty() && own_kind != kind {
        let (_, version) = meta::group_version(api_version);
        return Err(Status::bad_request(format!(
            "{own_kind} in version \"{version}\" cannot be handled as a {kind}: the kinds differ"
        )));
    }
    object["apiVersion"] = api_version.into();
    object["kind"] = kind.into();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn kinds() {
        let check = |object: Value, want: Option<&str>| {
            let mut object = object;
            let got = adopt_kind(&mut object, "apps/v1", "Deployment").err().map(|s| s.message);
            match want {
                None => assert_eq!((got, &object["kind"]), (None, &json!("Deployment"))),
                Some(want) => assert!(got.as_deref().is_some_and(|got| got.contains(want)), "{got:?}"),
            }
        };
        check(json!({}), None);
        check(json!({"apiVersion": "apps/v1", "kind": "Deployment"}), None);
        check(json!({"apiVersion": "v1"}), Some("does not match the expected API version (apps/v1)"));
        check(json!({"kind": "Pod"}), Some("cannot be handled as a Deployment"));
    }

    #[test]
    fn alias_bombs_are_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..9 {
            let alias = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![alias; 10].join(", "));
        }
        assert!(yaml(bomb.as_bytes()).is_err());
        let big = format!("a: &a {}\nb: [{}]\n", "x".repeat(1_000_000), vec!["*a"; 1000].join(", "));
        assert!(yaml(big.as_bytes()).is_err());
        assert_eq!(yaml(b"a: &x [1]\nb: *x\n"), Ok(json!({"a": [1], "b": [1]})));
    }
}
