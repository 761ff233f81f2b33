//! `pods/NAME/log`: the log of a container as plain text.
//!
//! A container that has not started has no log; the answers for that are the kubelet's.

use crate::codec::encode;
use crate::handlers::{Answer, Ask};
use crate::route::Target;
use crate::subresources::pod;
use axum::body::Body;
use cumulet_api::field::FieldError;
use cumulet_api::{Status, meta};
use cumulet_cluster::streams::LogOptions;
use futures_util::StreamExt;
use http::StatusCode;
use serde_json::Value;
use std::time::{Duration, SystemTime};

pub(super) async fn answer(ask: &Ask<'_>, target: &Target<'_>) -> Answer {
    let call = ask.call(target)?;
    let options = options(ask, call.name)?;
    let core = ask.core();
    let object = pod::read(core, &call)?;
    let container = pod::container(&object, ask.query.get("container"), false)?;
    if object.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or("").is_empty() {
        // Nothing runs yet and nothing will be known of it: an empty log, as in Kubernetes.
        return Ok(encode::text(StatusCode::OK, Body::empty()));
    }
    can_be_read(&object, &container.container, options.previous)?;
    let logs = pod::streams(core)?.logs(container, options).await?;
    let shutdown = ask.connection.shutdown.clone();
    Ok(encode::text(StatusCode::OK, Body::from_stream(logs.take_until(shutdown.cancelled_owned()))))
}

fn options(ask: &Ask<'_>, pod: &str) -> Result<LogOptions, Status> {
    let query = ask.query;
    let invalid = |error: FieldError| Status::invalid("", "PodLogOptions", pod, &[error]);
    let at_least = |name: &str, least: i64, text: &str| match query.number::<i64>(name)? {
        Some(n) if n < least => Err(invalid(FieldError::invalid(name, n, text))),
        other => Ok(other.and_then(|n| u64::try_from(n).ok())),
    };
    let seconds = at_least("sinceSeconds", 1, "must be greater than 0")?;
    let time = query.get("sinceTime");
    let since = match (seconds, time) {
        (Some(_), Some(_)) => {
            let why = "at most one of `sinceTime` or `sinceSeconds` may be specified";
            return Err(invalid(FieldError::forbidden("", why)));
        }
        (Some(seconds), None) => SystemTime::now().checked_sub(Duration::from_secs(seconds)),
        (None, Some(text)) => {
            let at = meta::parse_time(text);
            Some(
                at.ok_or_else(|| Status::bad_request(format!("sinceTime: cannot parse {text:?} as a time")))?
                    .into(),
            )
        }
        (None, None) => None,
    };
    Ok(LogOptions {
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        since,
        tail_lines: at_least("tailLines", 0, "must be greater than or equal to 0")?,
        limit_bytes: at_least("limitBytes", 1, "must be greater than 0")?,
        stream: match query.get("stream") {
            None | Some("All") => None,
            Some(stream @ ("Stdout" | "Stderr")) => Some(stream.to_ascii_lowercase()),
            Some(other) => {
                return Err(invalid(FieldError::not_supported(
                    "stream",
                    other,
                    &["All", "Stderr", "Stdout"],
                )));
            }
        },
    })
}

/// 400 unless the container, or its previous instance, has run.
fn can_be_read(pod: &Value, container: &str, previous: bool) -> Result<(), Status> {
    let name = meta::name(pod);
    let bad = |text: String| Err(Status::bad_request(text));
    let Some(status) = pod::container_status(pod, container) else {
        return bad(format!("container \"{container}\" in pod \"{name}\" is not available"));
    };
    let terminated = |state: &str| {
        let id = status.pointer(&format!("/{state}/terminated/containerID")).and_then(Value::as_str);
        id.is_some_and(|id| !id.is_empty())
    };
    let has = |pointer: &str| status.pointer(pointer).is_some_and(|state| !state.is_null());
    if previous {
        if terminated("lastState") {
            return Ok(());
        }
        return bad(format!("previous terminated container \"{container}\" in pod \"{name}\" not found"));
    }
    if has("/state/running") || terminated("state") || has("/state/terminated") || terminated("lastState") {
        return Ok(());
    }
    match status.pointer("/state/waiting/reason").and_then(Value::as_str) {
        Some("ErrImagePull") => bad(format!(
            "container \"{container}\" in pod \"{name}\" is waiting to start: image can't be pulled"
        )),
        Some("ImagePullBackOff") => bad(format!(
            "container \"{container}\" in pod \"{name}\" is waiting to start: trying and failing to pull image"
        )),
        Some(reason) => {
            bad(format!("container \"{container}\" in pod \"{name}\" is waiting to start: {reason}"))
        }
        None => bad(format!("container \"{container}\" in pod \"{name}\" is waiting to start - no logs yet")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_has_a_log() {
        let check = |status: Value, previous: bool, want: &str| {
            let pod = json!({"metadata": {"name": "p"}, "status": {"containerStatuses": [status]}});
            let got = can_be_read(&pod, "c", previous).map_or_else(|s| s.message, |()| "ok".into());
            assert_eq!(got, want);
        };
        check(json!({"name": "c", "state": {"running": {}}}), false, "ok");
        check(
            json!({"name": "c", "state": {"waiting": {"reason": "ContainerCreating"}}}),
            false,
            "container \"c\" in pod \"p\" is waiting to start: ContainerCreating",
        );
        check(
            json!({"name": "c", "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                   "lastState": {"terminated": {"containerID": "x"}}}),
            false,
            "ok",
        );
        check(
            json!({"name": "c", "state": {"running": {}}}),
            true,
            "previous terminated container \"c\" in pod \"p\" not found",
        );
        check(json!({"name": "other"}), false, "container \"c\" in pod \"p\" is not available");
    }
}
