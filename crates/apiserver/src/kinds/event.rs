//! Events: those of the core group, and the same under the names of `events.k8s.io`.
//!
//! As in Kubernetes, what is created through the newer group must say more, and nothing in the old fields.

use super::checks::{Errors, invalid};
use super::printing::{column, or, since, string, wide};
use super::value::{at, drop_zeros, int, object_mut, text};
use crate::row::{Column, Row, Strategy, View};
use cumulet_api::field::FieldError;
use cumulet_api::names;
use jiff::Timestamp;
use serde_json::Value;

pub(crate) const ROW: Row = Row {
    group: "",
    version: "v1",
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    categories: &[],
    namespaced: true,
    status: false,
    scale: None,
    selectable_fields: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
    columns: COLUMNS,
    cells,
    strategy: &Events,
};

/// Longest name of an action, a reason or an instance, in bytes.
const MAX_WORD: usize = 128;
/// Longest message, in bytes.
const MAX_NOTE: usize = 1024;

pub(crate) const VIEW: View = View {
    row: Row {
        group: "events.k8s.io",
        selectable_fields: &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
        ..ROW
    },
    of: ("", "v1", "events"),
    names: &[
        ("involvedObject", "regarding"),
        ("message", "note"),
        ("reportingComponent", "reportingController"),
        ("source", "deprecatedSource"),
        ("firstTimestamp", "deprecatedFirstTimestamp"),
        ("lastTimestamp", "deprecatedLastTimestamp"),
        ("count", "deprecatedCount"),
    ],
    validate_create,
};

fn validate_create(event: &Value) -> Errors {
    let mut errors = Errors::new();
    let given = |key: &str| !text(event, key).is_empty();
    let controller = text(event, "reportingComponent");
    if controller.is_empty() {
        errors.push(FieldError::required("reportingController", ""));
    } else {
        invalid(&mut errors, "reportingController", controller, names::qualified_name(controller));
    }
    for key in ["reportingInstance", "action", "reason"] {
        let value = text(event, key);
        if value.is_empty() {
            errors.push(FieldError::required(key, ""));
        } else if value.len() > MAX_WORD {
            errors.push(FieldError::invalid(key, "", format!("can have at most {MAX_WORD} characters")));
        }
    }
    if text(event, "message").len() > MAX_NOTE {
        errors.push(FieldError::invalid("message", "", format!("can have at most {MAX_NOTE} characters")));
    }
    if let Some(series) = at(event, "series") {
        if int(series, "count").unwrap_or(0) < 2 {
            errors.push(FieldError::invalid("series.count", "", "should be at least 2"));
        }
        if text(series, "lastObservedTime").is_empty() {
            errors.push(FieldError::required("series.lastObservedTime", ""));
        }
    }
    if !given("eventTime") {
        errors.push(FieldError::required("eventTime", ""));
    }
    let kind = text(event, "type");
    if !matches!(kind, "Normal" | "Warning") {
        errors.push(FieldError::invalid("type", "", format!("has invalid value: {kind}")));
    }
    let old = [
        ("firstTimestamp", given("firstTimestamp")),
        ("lastTimestamp", given("lastTimestamp")),
        ("count", int(event, "count").unwrap_or(0) != 0),
        ("source", given("source.component") || given("source.host")),
    ];
    for (field, _) in old.iter().filter(|(_, given)| *given) {
        errors.push(FieldError::invalid(*field, "", "needs to be unset"));
    }
    errors
}

static COLUMNS: &[Column] = &[
    column("Last Seen", "Time since this happened last."),
    column("Type", "Normal or Warning."),
    column("Reason", "Why, in one word."),
    column("Object", "The object that this is about."),
    wide("Subobject", "The part of the object."),
    wide("Source", "Who says so."),
    column("Message", "What happened."),
    wide("First Seen", "Time since this happened first."),
    wide("Count", "How often it happened."),
    Column { name: "Name", kind: "string", format: "name", priority: 1, description: "Name of the event." },
];

fn cells(event: &Value, now: Timestamp) -> Vec<Value> {
    let first = match text(event, "firstTimestamp") {
        "" => since(text(event, "eventTime"), now),
        time => since(time, now),
    };
    let (mut last, mut count) = match text(event, "lastTimestamp") {
        "" => (first.clone(), int(event, "count").unwrap_or(0)),
        time => (since(time, now), int(event, "count").unwrap_or(0)),
    };
    if let Some(series) = at(event, "series") {
        last = since(text(series, "lastObservedTime"), now);
        count = int(series, "count").unwrap_or(0);
    } else if count == 0 {
        count = 1;
    }
    let kind = text(event, "involvedObject.kind").to_lowercase();
    let object = match text(event, "involvedObject.name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    vec![
        last.into(),
        string(event, "type"),
        string(event, "reason"),
        object.into(),
        string(event, "involvedObject.fieldPath"),
        source(event).into(),
        text(event, "message").trim().into(),
        first.into(),
        count.into(),
        string(event, "metadata.name"),
    ]
}

/// The component, whichever of the two ways to name it was used.
fn component(event: &Value) -> &str {
    or(text(event, "source.component"), text(event, "reportingComponent"))
}

fn source(event: &Value) -> String {
    match or(text(event, "source.host"), text(event, "reportingInstance")) {
        "" => component(event).to_owned(),
        instance => format!("{}, {instance}", component(event)),
    }
}

struct Events;

impl Strategy for Events {
    fn default(&self, object: &mut Value) {
        drop_zeros(object, &["count", "action"]);
        object_mut(object, "source");
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let (own, about) = (text(object, "metadata.namespace"), text(object, "involvedObject.namespace"));
        let fits = match about {
            // What is about no namespace is told in one that everybody has.
            "" => matches!(own, "default" | "kube-system"),
            about => about == own,
        };
        if !fits {
            let message = "does not match event.namespace";
            errors.push(FieldError::invalid("involvedObject.namespace", about, message));
        }
        errors
    }

    fn selectable(&self, object: &Value, field: &str) -> Option<String> {
        (field == "source").then(|| component(object).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::{check_cells, check_errors};
    use serde_json::json;

    #[test]
    fn cells_are_those_of_kubectl() {
        let mut event = json!({
            "metadata": {"name": "p.1", "namespace": "n"},
            "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec.containers{c}"},
            "type": "Normal", "reason": "Pulled", "message": " done\n",
            "source": {"component": "kubelet", "host": "h"},
            "firstTimestamp": "2026-01-01T00:05:00Z", "lastTimestamp": "2026-01-01T00:09:30Z", "count": 3});
        let check = |event: &Value, last: &str, first: &str, count: &str| {
            let part = "spec.containers{c}";
            let cells = [last, "Normal", "Pulled", "pod/p", part, "kubelet, h", "done", first, count, "p.1"];
            check_cells(&ROW, event, &cells);
        };
        check(&event, "30s", "5m", "3");
        event["series"] = json!({"count": 7, "lastObservedTime": "2026-01-01T00:09:58.000000Z"});
        check(&event, "2s", "5m", "7");
        for key in ["firstTimestamp", "lastTimestamp", "count", "series"] {
            event.as_object_mut().unwrap().remove(key);
        }
        event["eventTime"] = json!("2026-01-01T00:08:00.123456Z");
        event["source"] = json!({});
        event["reportingComponent"] = json!("kubelet");
        event["reportingInstance"] = json!("h");
        check(&event, "119s", "119s", "1");
        assert_eq!(ROW.strategy.selectable(&event, "source").as_deref(), Some("kubelet"));
    }

    #[test]
    fn the_newer_group_wants_more() {
        let check = |event: Value, expected: &[&str]| {
            let errors: Vec<String> = validate_create(&event).iter().map(ToString::to_string).collect();
            assert_eq!(errors, expected, "{event}");
        };
        let good = json!({
            "eventTime": "2026-01-01T00:00:00.000001Z", "reportingComponent": "example.com/c", "reportingInstance": "i",
            "action": "Acted", "reason": "Because", "type": "Normal"});
        check(good.clone(), &[]);
        let mut old = good;
        old["count"] = json!(1);
        old["source"] = json!({"component": "c"});
        old["type"] = json!("Odd");
        old["series"] = json!({"count": 1});
        old["action"] = json!("");
        check(
            old,
            &[
                "action: Required value",
                "series.count: Invalid value: \"\": should be at least 2",
                "series.lastObservedTime: Required value",
                "type: Invalid value: \"\": has invalid value: Odd",
                "count: Invalid value: \"\": needs to be unset",
                "source: Invalid value: \"\": needs to be unset",
            ],
        );
    }

    #[test]
    fn events_live_where_their_objects_live() {
        let check = |own: &str, about: &str, expected: &[&str]| {
            let event = json!({"metadata": {"namespace": own}, "involvedObject": {"namespace": about}});
            check_errors(&ROW, event, expected);
        };
        check("a", "a", &[]);
        check("default", "", &[]);
        check("a", "b", &["involvedObject.namespace: Invalid value: \"b\": does not match event.namespace"]);
        check("a", "", &["involvedObject.namespace: Invalid value: \"\": does not match event.namespace"]);
    }
}
