//! Secrets.

use super::checks::{Errors, MAX_DATA_BYTES, data_keys, frozen, immutable};
use super::configmap::decoded_len;
use super::printing::{AGE, NAME, age, column, entries, name, string};
use super::value::{default_to, map, object_mut, set, text, unset};
use crate::row::{Column, Row, Strategy};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cumulet_api::field::{FieldError, Problem};
use cumulet_api::meta;
use jiff::Timestamp;
use serde_json::Value;

const ACCOUNT_ANNOTATION: &str = "kubernetes.io/service-account.name";

pub(crate) const ROW: Row = Row {
    group: "",
    version: "v1",
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    short_names: &[],
    categories: &[],
    namespaced: true,
    status: false,
    scale: None,
    selectable_fields: &["type"],
    columns: COLUMNS,
    cells,
    strategy: &Secrets,
};

static COLUMNS: &[Column] =
    &[NAME, column("Type", "What the secret is for."), column("Data", "Number of entries."), AGE];

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), string(object, "type"), entries(object, &["data"]), age(object, now)]
}

struct Secrets;

impl Strategy for Secrets {
    fn default(&self, object: &mut Value) {
        default_to(object, "type", "Opaque");
        let Some(Value::Object(plain)) = unset(object, "stringData") else { return };
        if plain.is_empty() {
            return;
        }
        let Some(data) = object_mut(object, "data") else { return };
        for (key, value) in plain {
            set(data, &key, STANDARD.encode(value.as_str().unwrap_or("")));
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let total = data_keys(&mut errors, object, "data", decoded_len);
        if total > MAX_DATA_BYTES {
            let problem = Problem::TooLong(MAX_DATA_BYTES);
            errors.push(FieldError { field: "data".to_owned(), problem, detail: String::new() });
        }
        typed(&mut errors, object);
        errors
    }

    fn validate_update(&self, old: &Value, new: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        immutable(&mut errors, old, new, "type");
        frozen(&mut errors, old, new, &["data"]);
        errors
    }
}

/// What the well-known types need.
fn typed(errors: &mut Errors, object: &Value) {
    let data = map(object, "data");
    let has = |key: &str| data.is_some_and(|d| d.contains_key(key));
    let mut need = |key: &str| {
        if !has(key) {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    };
    match text(object, "type") {
        "kubernetes.io/service-account-token" => {
            let account = meta::annotations(object).get(ACCOUNT_ANNOTATION).and_then(Value::as_str);
            if account.unwrap_or("").is_empty() {
                errors.push(FieldError::required(format!("metadata.annotations[{ACCOUNT_ANNOTATION}]"), ""));
            }
        }
        "kubernetes.io/dockercfg" => json_entry(errors, data, ".dockercfg"),
        "kubernetes.io/dockerconfigjson" => json_entry(errors, data, ".dockerconfigjson"),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            need("username");
            need("password");
        }
        "kubernetes.io/ssh-auth" => {
            let empty =
                data.and_then(|d| d.get("ssh-privatekey")).and_then(Value::as_str).unwrap_or("").is_empty();
            if empty {
                errors.push(FieldError::required("data[ssh-privatekey]", ""));
            }
        }
        "kubernetes.io/tls" => {
            need("tls.crt");
            need("tls.key");
        }
        _ => {}
    }
}

/// The entry must be there and hold JSON; its contents never appear in the message.
fn json_entry(errors: &mut Errors, data: Option<&serde_json::Map<String, Value>>, key: &str) {
    let field = format!("data[{key}]");
    let Some(value) = data.and_then(|d| d.get(key)).and_then(Value::as_str) else {
        errors.push(FieldError::required(field, ""));
        return;
    };
    let parsed = STANDARD.decode(value).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    if !parsed.is_some_and(|v| v.is_object()) {
        let message = "invalid character in, or end of, JSON input";
        errors.push(FieldError::invalid(field, "<secret contents redacted>", message));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::{check_cells, check_default, check_errors, check_update_errors};
    use serde_json::json;

    #[test]
    fn plain_texts_are_merged_and_dropped() {
        check_default(
            &ROW,
            json!({"data": {"a": "MQ==", "b": "MQ=="}, "stringData": {"b": "2", "c": "3"}}),
            json!({"type": "Opaque", "data": {"a": "MQ==", "b": "Mg==", "c": "Mw=="}}),
        );
        check_default(&ROW, json!({"stringData": {}}), json!({"type": "Opaque"}));
    }

    #[test]
    fn types_have_their_needs() {
        let dockercfg = STANDARD.encode("{}");
        for (kind, data, expected) in [
            ("Opaque", json!({}), vec![]),
            ("kubernetes.io/tls", json!({"tls.crt": ""}), vec!["data[tls.key]: Required value"]),
            (
                "kubernetes.io/basic-auth",
                json!({}),
                vec!["data[username]: Required value", "data[password]: Required value"],
            ),
            ("kubernetes.io/basic-auth", json!({"password": "MQ=="}), vec![]),
            ("kubernetes.io/ssh-auth", json!({}), vec!["data[ssh-privatekey]: Required value"]),
            ("kubernetes.io/dockerconfigjson", json!({".dockerconfigjson": dockercfg}), vec![]),
            ("kubernetes.io/dockercfg", json!({}), vec!["data[.dockercfg]: Required value"]),
            (
                "kubernetes.io/dockercfg",
                json!({".dockercfg": "MQ=="}),
                vec![
                    "data[.dockercfg]: Invalid value: \"<secret contents redacted>\": invalid character in, or end of, \
                     JSON input",
                ],
            ),
            (
                "kubernetes.io/service-account-token",
                json!({}),
                vec!["metadata.annotations[kubernetes.io/service-account.name]: Required value"],
            ),
        ] {
            check_errors(&ROW, json!({"type": kind, "data": data}), &expected);
        }
    }

    #[test]
    fn the_type_stays() {
        let old = json!({"metadata": {"name": "s"}, "type": "a/b", "data": {"a": ""}});
        check_update_errors(
            &ROW,
            &old,
            json!({"type": "c/d"}),
            &["type: Invalid value: \"c/d\": field is immutable"],
        );
        check_cells(&ROW, &old, &["s", "a/b", "1", "<unknown>"]);
    }
}
