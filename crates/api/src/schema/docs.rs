//! Descriptions of types and fields, for OpenAPI. Half a megabyte of text that nothing else touches; it is indexed
//! anew for each document and not kept.

use std::collections::HashMap;

/// Descriptions, looked up by type and field.
#[derive(Debug)]
pub struct Docs {
    /// Type name → its description and the lines of its fields.
    types: HashMap<&'static str, (&'static str, &'static str)>,
}

impl Docs {
    /// Indexes the embedded text by type.
    pub fn load() -> Self {
        let text = include_str!("../../schema/kubernetes-docs.txt");
        let blocks = text.split("\n= ").map(|b| b.strip_prefix("= ").unwrap_or(b));
        let types = blocks.map(|block| {
            let (head, fields) = block.split_once('\n').unwrap_or((block, ""));
            let (name, doc) = head.split_once(' ').unwrap_or((head, ""));
            (name, (doc, fields))
        });
        Self { types: types.collect() }
    }

    /// The description of a type of the table; empty when there is none.
    pub fn of_type(&self, name: &str) -> String {
        unescape(self.types.get(name).map_or("", |(doc, _)| doc))
    }

    /// The description of a field (or of a value of an enumeration); empty when there is none.
    pub fn of_field(&self, type_name: &str, field: &str) -> String {
        let fields = self.types.get(type_name).map_or("", |(_, fields)| fields);
        let line = fields.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(' '));
        unescape(line.unwrap_or(""))
    }
}

fn unescape(text: &str) -> String {
    // A backslash that stands for itself is written twice, so the order of the steps matters.
    text.split("\\\\").map(|part| part.replace("\\n", "\n")).collect::<Vec<_>>().join("\\")
}
