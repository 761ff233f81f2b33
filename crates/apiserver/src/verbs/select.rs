//! Label and field selectors over encoded objects.
//!
//! An object is decoded only as far as the selector needs: not at all for names, only its metadata for labels.

use crate::object::body::NODE_INDEX;
use crate::registry::Resource;
use crate::row::Strategy;
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
        let fields = fields.map_or(Ok(FieldSelector::default()), FieldSelector::parse).map_err(bad)?;
        let mut deep = false;
        for term in &fields.terms {
            if term.field == "metadata.name"
                || (term.field == "metadata.namespace" && resource.row.namespaced)
            {
                continue;
            }
            if !resource.row.selectable_fields.contains(&term.field.as_str()) {
                return Err(Status::bad_request(format!(
                    "Unable to find {:?} that match label selector {:?}, field selector {:?}: field label not \
                     supported: {}",
                    resource.api_version_kind(),
                    labels.to_string(),
                    fields.to_string(),
                    term.field
                )));
            }
            deep = true;
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
