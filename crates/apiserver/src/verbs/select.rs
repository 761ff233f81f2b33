//! Label and field selectors over encoded objects.
//!
//! An object is decoded only as far as the selector needs: not at all for names, only its metadata for labels.

use crate::object::body::NODE_INDEX;
use crate::registry::Resource;
use crate::row::{Row, Strategy};
use cumulet_api::Status;
use cumulet_api::selector::{FieldSelector, Selector};
use cumulet_store::Record;
use serde::Deserialize;
use serde_json::{Map, Value};

/// What a list or a watch is narrowed to.
#[derive(Clone, Default)]
pub(crate) struct Filter {
    namespace: Option<String>,
    labels: Selector,
    fields: FieldSelector,
    strategy: Option<&'static dyn Strategy>,
    /// True when some field needs the decoded object.
    deep: bool,
}

/// Whether a field selector on this field needs the decoded object; 400 when the kind cannot be selected by it.
///
/// Kinds that have selectable fields of their own name all that they have; the others share a rule, which knows the
/// namespace even where there is none, and has other words for what it does not know.
fn needs_object(row: &Row, field: &str) -> Result<bool, Status> {
    let own = !row.selectable_fields.is_empty();
    match field {
        "metadata.name" => Ok(false),
        "metadata.namespace" if row.namespaced || !own => Ok(false),
        field if row.selectable_fields.contains(&field) => Ok(true),
        field if own => Err(Status::bad_request(format!("field label not supported: {field}"))),
        field => Err(Status::bad_request(format!(
            "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        ))),
    }
}

#[derive(Deserialize)]
struct LabelsOnly {
    #[serde(default)]
    metadata: LabelsOfMetadata,
}

#[derive(Default, Deserialize)]
struct LabelsOfMetadata {
    #[serde(default)]
    labels: Option<Map<String, Value>>,
}

impl Filter {
    /// Reads the selectors of a request; 400 for what cannot be read or selected by.
    pub(crate) fn new(
        resource: &Resource,
        namespace: Option<&str>,
        labels: Option<&str>,
        fields: Option<&str>,
    ) -> Result<Self, Status> {
        let bad = |e: cumulet_api::selector::SelectorError| Status::bad_request(e.to_string());
        let labels = labels.map_or(Ok(Selector::everything()), Selector::parse).map_err(bad)?;
        let mut fields = fields.map_or(Ok(FieldSelector::default()), FieldSelector::parse).map_err(bad)?;
        let mut deep = false;
        for term in &mut fields.terms {
            deep |= needs_object(resource.row, &term.field)?;
            term.field = resource.stored_path(&term.field);
        }
        let namespace = namespace.map(str::to_owned);
        Ok(Self { namespace, labels, fields, strategy: Some(resource.row.strategy), deep })
    }

    /// True when only the namespace narrows.
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    pub(crate) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The one name that can match, if the selector says so.
    pub(crate) fn name(&self) -> Option<&str> {
        self.fields.required("metadata.name")
    }

    /// The node whose pods alone can match: there is an index for it.
    pub(crate) fn node(&self, resource: &Resource) -> Option<&str> {
        let node = self.fields.required("spec.nodeName").filter(|node| !node.is_empty());
        node.filter(|_| resource.is("", "pods"))
    }

    pub(crate) const fn node_index() -> &'static str {
        NODE_INDEX
    }

    /// Whether an object matches. One that does not decode matches nothing.
    pub(crate) fn matches(&self, record: &Record) -> bool {
        if self.namespace.as_deref().is_some_and(|wanted| *wanted != *record.key.namespace) {
            return false;
        }
        if self.is_everything() {
            return true;
        }
        if self.deep {
            return serde_json::from_slice::<Value>(&record.body)
                .is_ok_and(|object| self.matches_value(record, &object));
        }
        let shallow = self.fields.matches(|field| match field {
            "metadata.name" => &record.key.name,
            "metadata.namespace" => &record.key.namespace,
            _ => "",
        });
        shallow && (self.labels.is_everything() || self.labels_match(record))
    }

    fn labels_match(&self, record: &Record) -> bool {
        serde_json::from_slice::<LabelsOnly>(&record.body)
            .is_ok_and(|object| self.labels.matches_map(&object.metadata.labels.unwrap_or_default()))
    }

    fn matches_value(&self, record: &Record, object: &Value) -> bool {
        let fields = self.fields.terms.iter().all(|term| {
            let is = match term.field.as_str() {
                "metadata.name" => record.key.name.to_string(),
                "metadata.namespace" => record.key.namespace.to_string(),
                path => self.field_text(object, path),
            };
            (is == term.value) == term.equal
        });
        fields && self.labels.matches_map(cumulet_api::meta::labels(object))
    }

    /// What a field selector compares: what the kind says, or the text at the path.
    fn field_text(&self, object: &Value, path: &str) -> String {
        if let Some(text) = self.strategy.and_then(|strategy| strategy.selectable(object, path)) {
            return text;
        }
        match path.split('.').try_fold(object, |at, key| at.get(key)) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;
    use cumulet_store::Key;
    use serde_json::json;

    fn select(plural: &str, namespace: &str, object: &Value, fields: &str) -> Result<bool, String> {
        let registry = Registry::new(crate::kinds::rows(), crate::kinds::views());
        let resource = registry.resources().find(|r| r.row.plural == plural).unwrap();
        let filter = Filter::new(resource, None, None, Some(fields)).map_err(|status| {
            assert_eq!(status.code, 400);
            status.message
        })?;
        let key = Key::new(&resource.tag, namespace, "a");
        let body = object.to_string().into();
        let record = Record { key, body, revision: 1, created_revision: 1, index: Vec::new() };
        Ok(filter.matches(&record))
    }

    fn check(plural: &str, object: &Value, matching: &[&str], others: &[&str]) {
        let namespace = if matches!(plural, "nodes" | "namespaces" | "runtimeclasses") { "" } else { "n" };
        for (selectors, wanted) in [(matching, true), (others, false)] {
            for selector in selectors {
                assert_eq!(select(plural, namespace, object, selector), Ok(wanted), "{plural} {selector}");
            }
        }
    }

    #[test]
    fn every_kind_is_selected_by_what_it_knows() {
        let everywhere =
            &["metadata.name=a", "metadata.namespace=n", "metadata.name!=b,metadata.namespace==n"];
        for plural in ["configmaps", "pods", "deployments", "events", "services"] {
            check(plural, &json!({}), everywhere, &["metadata.name=b", "metadata.namespace!=n"]);
        }
        let pod = json!({
            "spec": {"nodeName": "w", "restartPolicy": "Never", "schedulerName": "s", "serviceAccountName": "d"},
            "status": {"phase": "Running", "podIP": "10.0.0.1"},
        });
        check(
            "pods",
            &pod,
            &[
                "spec.nodeName=w,spec.restartPolicy=Never,spec.schedulerName=s,spec.serviceAccountName=d",
                "status.phase=Running,status.podIP=10.0.0.1,spec.hostNetwork=false",
                "status.phase!=Succeeded,status.phase!=Failed,status.nominatedNodeName=",
            ],
            &["spec.nodeName=", "spec.hostNetwork=true", "status.phase!=Running"],
        );
        let event = json!({
            "involvedObject": {"kind": "Pod", "namespace": "n", "name": "p", "uid": "u", "apiVersion": "v1",
                               "resourceVersion": "7", "fieldPath": "spec.containers{c}"},
            "reason": "Pulled", "type": "Normal", "source": {"component": "kubelet"}, "reportingComponent": "r",
        });
        check(
            "events",
            &event,
            &[
                "involvedObject.kind=Pod,involvedObject.namespace=n,involvedObject.name=p,involvedObject.uid=u",
                "involvedObject.apiVersion=v1,involvedObject.resourceVersion=7,type=Normal,reason=Pulled",
                "involvedObject.fieldPath=spec.containers{c},source=kubelet,reportingComponent=r",
            ],
            &["source=r", "type=Warning"],
        );
        check("nodes", &json!({}), &["spec.unschedulable=false"], &["spec.unschedulable=true"]);
        let cordoned = json!({"spec": {"unschedulable": true}});
        check("nodes", &cordoned, &["spec.unschedulable=true"], &["spec.unschedulable!=true"]);
        check("secrets", &json!({"type": "Opaque"}), &["type=Opaque"], &["type=x/y"]);
        let active = json!({"status": {"phase": "Active"}});
        check("namespaces", &active, &["status.phase=Active"], &["status.phase=Terminating"]);
        let controller = json!({"status": {"replicas": 2}});
        check("replicationcontrollers", &controller, &["status.replicas=2"], &["status.replicas=0"]);
        check("replicationcontrollers", &json!({}), &["status.replicas=0"], &["status.replicas=1"]);
        let service = json!({"spec": {"type": "NodePort", "clusterIP": "10.97.0.1"}});
        check(
            "services",
            &service,
            &["spec.type=NodePort,spec.clusterIP=10.97.0.1"],
            &["spec.type=ClusterIP"],
        );
        check("runtimeclasses", &json!({}), &["metadata.namespace="], &["metadata.namespace=n"]);
    }

    #[test]
    fn what_a_kind_does_not_know_is_refused() {
        let check = |plural: &str, field: &str, words: &str| {
            assert_eq!(
                select(plural, "n", &json!({}), &format!("{field}=x")),
                Err(words.to_owned()),
                "{plural}"
            );
        };
        check("pods", "spec.nope", "field label not supported: spec.nope");
        check("events", "message", "field label not supported: message");
        check("nodes", "metadata.namespace", "field label not supported: metadata.namespace");
        check("namespaces", "metadata.namespace", "field label not supported: metadata.namespace");
        let words = |field: &str| {
            format!(
                "\"{field}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
            )
        };
        check("configmaps", "data.a", &words("data.a"));
        check("replicasets", "status.replicas", &words("status.replicas"));
    }
}
