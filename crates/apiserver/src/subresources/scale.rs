//! `RESOURCE/NAME/scale`: the replicas of an object as an `autoscaling/v1` Scale.
//!
//! A Scale is a view: reading makes it from the object, writing changes `spec.replicas` of the object under the
//! rules of the object.

use crate::codec::{decode, encode};
use crate::core::{Call, Core};
use crate::handlers::object::read_patch;
use crate::handlers::{Answer, Ask, body_value, not_allowed, not_found};
use crate::object::body;
use crate::route::Target;
use crate::row::Scale;
use crate::verbs::update::Part;
use cumulet_api::field::FieldError;
use cumulet_api::schema::{self, Mode};
use cumulet_api::{Selector, Status, meta};
use http::{Method, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

const KIND: (&str, &str, &str) = ("autoscaling", "v1", "Scale");

pub(super) async fn answer(ask: &Ask<'_>, target: &Target<'_>, body: Incoming) -> Answer {
    let call = ask.call(target)?;
    let form = ask.plain_form()?;
    let scale = match ask.parts.method {
        Method::GET => ask.core().read_scale(&call)?,
        Method::PUT => {
            let scale = body_value(ask, body, KIND).await?;
            let scale = scale.ok_or_else(|| Status::bad_request("a Scale is required"))?;
            ask.core().write_scale(&call, |_| Ok(scale.clone())).await?
        }
        Method::PATCH => {
            let patch = read_patch(ask, body).await?;
            let ty = schema::schema().kind(KIND.0, KIND.1, KIND.2).ok_or_else(not_found)?;
            let apply = |scale: &Value| {
                let mut scale = patch.apply(ty, scale)?;
                schema::check(ty, &mut scale, Mode::Patched)?;
                Ok(scale)
            };
            ask.core().write_scale(&call, apply).await?
        }
        _ => return Err(not_allowed()),
    };
    encode::value(&form, StatusCode::OK, &scale)
}

/// Decodes a Scale that a component of this process sent.
pub(crate) fn decode_scale(body: &[u8]) -> Result<Value, Status> {
    decode::plain(&http::HeaderMap::new(), body, KIND.0, KIND.1, KIND.2)
}

impl Core {
    pub(crate) fn read_scale(&self, call: &Call<'_>) -> Result<Value, Status> {
        Ok(scale_of(rules(call)?, &body::parse(&*self.get(call)?)?))
    }

    /// Changes the scale of an object by a function of its present scale.
    pub(crate) async fn write_scale(
        &self,
        call: &Call<'_>,
        change: impl Fn(&Value) -> Result<Value, Status> + Send + Sync,
    ) -> Result<Value, Status> {
        let rules = rules(call)?;
        let stored = self
            .update(call, Part::Main, |old| {
                let scale = change(&scale_of(rules, old))?;
                let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
                if replicas < 0 {
                    let error =
                        FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
                    return Err(Status::invalid(KIND.0, KIND.2, call.name, &[error]));
                }
                let name = meta::name(&scale);
                if !name.is_empty() && name != call.name {
                    return Err(Status::bad_request(format!(
                        "the name of the object ({name}) does not match the name on the URL ({})",
                        call.name
                    )));
                }
                let mut new = old.clone();
                meta::set_text(&mut new, "resourceVersion", meta::resource_version(&scale));
                if let Some(place) = new.pointer_mut(rules.spec_replicas) {
                    *place = replicas.into();
                } else if let Some((parent, field)) = rules.spec_replicas.rsplit_once('/')
                    && let Some(parent) = new.pointer_mut(parent).and_then(Value::as_object_mut)
                {
                    parent.insert(field.to_owned(), replicas.into());
                }
                Ok(new)
            })
            .await?;
        let object: Value = serde_json::from_slice(&stored).map_err(Status::internal)?;
        Ok(scale_of(rules, &object))
    }
}

fn rules(call: &Call<'_>) -> Result<&'static Scale, Status> {
    call.resource.row.scale.as_ref().ok_or_else(not_found)
}

/// The scale of an object.
fn scale_of(rules: &Scale, object: &Value) -> Value {
    let count = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let mut metadata = serde_json::Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = meta::metadata(object).get(field) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    let mut status = json!({"replicas": count(rules.status_replicas)});
    let selector = object.pointer(rules.selector).map(|selector| match selector.as_object() {
        // A LabelSelector has these keys; a plain map has none of them with values of these types.
        Some(map)
            if map.get("matchLabels").is_some_and(Value::is_object)
                || map.get("matchExpressions").is_some_and(Value::is_array) =>
        {
            Selector::from_label_selector(selector).map(|s| s.to_string()).unwrap_or_default()
        }
        Some(map) => Selector::from_map(map).to_string(),
        None => String::new(),
    });
    if let Some(selector) = selector.filter(|s| !s.is_empty()) {
        status["selector"] = selector.into();
    }
    json!({
        "kind": KIND.2, "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": count(rules.spec_replicas)}, "status": status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views() {
        let rules = Scale {
            spec_replicas: "/spec/replicas",
            status_replicas: "/status/replicas",
            selector: "/spec/selector",
        };
        let object = json!({
            "metadata": {"name": "d", "resourceVersion": "3", "labels": {"a": "b"}},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "x"}}}, "status": {"replicas": 1},
        });
        let scale = scale_of(&rules, &object);
        assert_eq!(scale["spec"], json!({"replicas": 2}));
        assert_eq!(scale["status"], json!({"replicas": 1, "selector": "app=x"}));
        assert_eq!(scale["metadata"], json!({"name": "d", "resourceVersion": "3"}));
        let plain = json!({"spec": {"selector": {"app": "x"}}});
        assert_eq!(scale_of(&rules, &plain)["status"], json!({"replicas": 0, "selector": "app=x"}));
    }
}
