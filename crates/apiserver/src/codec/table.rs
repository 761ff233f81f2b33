//! Tables as `kubectl get` prints them (`meta.k8s.io/v1` Table).
//!
//! Rows are written one by one into the answer, so a long list never exists twice in decoded form.

use crate::registry::Resource;
use crate::row::Row;
use cumulet_api::Status;
use jiff::Timestamp;
use serde_json::{Value, json};

/// Which part of the object a row carries (`includeObject`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Include {
    /// Nothing.
    None,
    /// Its metadata.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

impl Include {
    pub(crate) fn read(text: Option<&str>) -> Result<Self, Status> {
        match text {
            None | Some("Metadata") => Ok(Self::Metadata),
            Some("None") => Ok(Self::None),
            Some("Object") => Ok(Self::Object),
            Some(other) => Err(Status::bad_request(format!(
                "unrecognized includeObject value: {other:?}: must be one of None, Metadata, Object"
            ))),
        }
    }
}

/// Writes one table.
pub(crate) struct Writer {
    out: Vec<u8>,
    resource: Resource,
    include: Include,
    now: Timestamp,
    rows: usize,
}

impl Writer {
    /// Begins a table with its metadata. Watch events after the first leave out the column definitions.
    pub(crate) fn new(resource: &Resource, include: Include, metadata: &Value, columns: bool) -> Self {
        let columns = if columns { definitions(resource.row) } else { Value::Null };
        let head = format!(
            "{{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{metadata},\"columnDefinitions\":{columns},\"rows\":["
        );
        Self { out: head.into_bytes(), resource: resource.clone(), include, now: Timestamp::now(), rows: 0 }
    }

    /// Adds the row of one stored object.
    pub(crate) fn push(&mut self, object: &Value) {
        if self.rows > 0 {
            self.out.push(b',');
        }
        self.rows += 1;
        let cells = Value::Array((self.resource.row.cells)(object, self.now));
        let shown = match self.include {
            Include::None => json!(null),
            Include::Metadata => partial(object),
            Include::Object => self.resource.served(object).into_owned(),
        };
        self.out.extend_from_slice(b"{\"cells\":");
        // Writing into a vector cannot fail.
        let _ = serde_json::to_writer(&mut self.out, &cells);
        self.out.extend_from_slice(b",\"object\":");
        let _ = serde_json::to_writer(&mut self.out, &shown);
        self.out.push(b'}');
    }

    /// The finished table.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.out.extend_from_slice(b"]}");
        self.out
    }
}

/// The metadata of an object alone, as a PartialObjectMetadata.
pub(crate) fn partial(object: &Value) -> Value {
    let metadata = object.get("metadata").cloned().unwrap_or_else(|| json!({}));
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

fn definitions(row: &Row) -> Value {
    row.columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name, "type": column.kind, "format": column.format,
                "description": column.description, "priority": column.priority,
            })
        })
        .collect()
}
