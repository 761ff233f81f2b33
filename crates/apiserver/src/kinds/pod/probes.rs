//! Rules for probes and lifecycle hooks.

use crate::kinds::checks::{Errors, invalid, nonnegative, one_of, port, port_or_name};
use crate::kinds::value::{at, int, items, text};
use cumulet_api::field::FieldError;
use cumulet_api::names;
use serde_json::Value;

const PROBE_HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "grpc"];
const HOOK_HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "sleep"];
const NUMBERS: &[&str] =
    &["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"];

/// Checks the probes and hooks of a container that serves as long as its pod lives.
pub(crate) fn serving(errors: &mut Errors, spec: &Value, container: &Value, path: &str) {
    for hook in ["postStart", "preStop"] {
        if let Some(hook_value) = at(container, "lifecycle").and_then(|l| at(l, hook)) {
            handler(errors, spec, hook_value, &format!("{path}.lifecycle.{hook}"), HOOK_HANDLERS);
        }
    }
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(value) = at(container, kind) {
            probe(errors, spec, value, &format!("{path}.{kind}"), kind);
        }
    }
}

fn probe(errors: &mut Errors, spec: &Value, probe: &Value, path: &str, kind: &str) {
    handler(errors, spec, probe, path, PROBE_HANDLERS);
    nonnegative(errors, probe, path, NUMBERS);
    let grace = int(probe, "terminationGracePeriodSeconds");
    let grace_path = format!("{path}.terminationGracePeriodSeconds");
    if let Some(seconds) = grace.filter(|s| *s <= 0) {
        errors.push(FieldError::invalid(grace_path.as_str(), seconds, "must be greater than 0"));
    }
    if kind == "readinessProbe" {
        if let Some(seconds) = grace {
            errors.push(FieldError::invalid(grace_path, seconds, "must not be set for readinessProbes"));
        }
        return;
    }
    if let Some(threshold) = int(probe, "successThreshold").filter(|t| *t != 1) {
        errors.push(FieldError::invalid(format!("{path}.successThreshold"), threshold, "must be 1"));
    }
}

/// Exactly one of `handlers`, and that one right.
fn handler(errors: &mut Errors, spec: &Value, owner: &Value, path: &str, handlers: &[&str]) {
    let mut set = handlers.iter().filter(|h| at(owner, h).is_some());
    let Some(first) = set.next() else {
        errors.push(FieldError::required(path, "must specify a handler type"));
        return;
    };
    let inner = format!("{path}.{first}");
    if let Some(action) = at(owner, first) {
        match *first {
            "exec" if items(action, "command").is_empty() => {
                errors.push(FieldError::required(format!("{inner}.command"), ""));
            }
            "httpGet" => http_get(errors, action, &inner),
            "tcpSocket" => port_or_name(errors, action, &inner, "port"),
            "grpc" => port(errors, action, &inner, "port"),
            "sleep" => sleep(errors, spec, action, &inner),
            _ => {}
        }
    }
    for more in set {
        let message = "may not specify more than 1 handler type";
        errors.push(FieldError::forbidden(format!("{path}.{more}"), message));
    }
}

fn http_get(errors: &mut Errors, action: &Value, path: &str) {
    if text(action, "path").is_empty() {
        errors.push(FieldError::required(format!("{path}.path"), ""));
    }
    port_or_name(errors, action, path, "port");
    one_of(errors, action, path, "scheme", &["HTTP", "HTTPS"]);
    for header in items(action, "httpHeaders") {
        let name = text(header, "name");
        invalid(errors, &format!("{path}.httpHeaders"), name, names::http_header_name(name));
    }
}

fn sleep(errors: &mut Errors, spec: &Value, action: &Value, path: &str) {
    let grace = int(spec, "terminationGracePeriodSeconds").unwrap_or(0);
    let seconds = int(action, "seconds").unwrap_or(0);
    if !(0..=grace).contains(&seconds) {
        let message = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        errors.push(FieldError::invalid(path, seconds, message));
    }
}
