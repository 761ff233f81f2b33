//! OpenAPI v3 documents, one per group and version, made from the schema table.
//!
//! kubectl asks for them before `apply` (does PATCH of this kind know `fieldValidation` and `dryRun`?) and for
//! `explain`; client generators and language servers read them too. A document is made when it is asked for and is
//! large (the core group's a megabyte): callers keep the encoded form.

use crate::schema::docs::Docs;
use crate::schema::{Field, FieldType, ListType, Type, schema};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

mod paths;

/// A resource that a document describes.
#[derive(Clone, Copy, Debug)]
pub struct OpenApiResource<'a> {
    /// Kind, such as `Pod`.
    pub kind: &'a str,
    /// Plural name, such as `pods`.
    pub plural: &'a str,
    /// True when its objects live in namespaces.
    pub namespaced: bool,
    /// Name of each subresource and the kind that its bodies have (`status` → `Pod`, `scale` → `Scale`, `binding` →
    /// `Binding`); an empty kind for those without a body, such as `log`.
    pub subresources: &'a [(&'a str, &'a str)],
}

/// The answer to `GET /openapi/v3`: where the documents are. `hash` must change when they do; clients keep documents
/// by it.
pub fn index<'a>(group_versions: impl IntoIterator<Item = (&'a str, &'a str)>, hash: &str) -> Value {
    let paths: Map<String, Value> = group_versions
        .into_iter()
        .map(|(group, version)| {
            let path = path_of(group, version);
            let url = format!("/openapi/v3/{path}?hash={hash}");
            (path, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// `api/v1` or `apis/GROUP/VERSION`, as in URLs.
pub fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The document of one group and version. Resources whose kind the table does not know are left out.
pub fn document(group: &str, version: &str, resources: &[OpenApiResource<'_>]) -> Value {
    let mut schemas = Schemas { docs: Docs::load(), group, version, open: Vec::new(), done: BTreeSet::new() };
    let mut paths = Map::new();
    for resource in resources {
        if let Some(ty) = schema().kind(group, version, resource.kind) {
            paths::add(&mut paths, &mut schemas, ty, resource);
        }
    }
    let schemas = schemas.all();
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

/// The schemas that a document needs. Asking for a reference puts its target on the list.
struct Schemas<'a> {
    docs: Docs,
    group: &'a str,
    version: &'a str,
    open: Vec<String>,
    done: BTreeSet<String>,
}

impl Schemas<'_> {
    /// A reference to a type of the table, or to one of the scalars with a JSON form of their own.
    fn reference(&mut self, name: &str) -> Value {
        if self.done.insert(name.to_owned()) {
            self.open.push(name.to_owned());
        }
        json!({"$ref": format!("#/components/schemas/{}", openapi_name(name))})
    }

    fn all(mut self) -> Map<String, Value> {
        let mut out = Map::new();
        while let Some(name) = self.open.pop() {
            let schema = match schema().named(&name) {
                Some(ty) => self.object(ty),
                None => scalar(&name),
            };
            out.insert(openapi_name(&name), schema);
        }
        out
    }

    fn object(&mut self, ty: &'static Type) -> Value {
        let (mut properties, mut required) = (Map::new(), Vec::new());
        let mut fields: Vec<(&'static Type, &'static Field)> = Vec::new();
        collect(ty, &mut fields);
        for (owner, field) in fields {
            properties.insert(field.json.to_owned(), self.property(owner, field));
            if field.required {
                required.push(field.json);
            }
        }
        let mut out =
            json!({"type": "object", "description": self.docs.of_type(ty.name), "properties": properties});
        if !required.is_empty() {
            out["required"] = required.into();
        }
        if ty.atomic {
            out["x-kubernetes-map-type"] = "atomic".into();
        }
        if ty.is_kind {
            // Kinds of meta/v1 belong to every group and version.
            let own = ty.package.key == "meta.v1";
            let (group, version) =
                if own { (self.group, self.version) } else { (ty.package.group, ty.package.version) };
            out["x-kubernetes-group-version-kind"] =
                json!([{"group": group, "kind": ty.short_name(), "version": version}]);
        }
        out
    }

    fn property(&mut self, owner: &Type, field: &'static Field) -> Value {
        let mut out = self.value(&field.ty, field.type_text);
        let mut description = self.docs.of_field(owner.name, field.json);
        let alias = field.type_text.trim_start_matches("[]");
        if schema().values(alias).next().is_some() {
            description.push_str("\n\nPossible enum values:");
            for value in schema().values(alias) {
                let doc = self.docs.of_field(alias, if value.is_empty() { "\"\"" } else { value });
                description.push_str(format!("\n - `\"{value}\"` {doc}").trim_end());
            }
        }
        if !description.is_empty() {
            out["description"] = description.into();
        }
        if let Some(default) = field.default.and_then(|d| serde_json::from_str::<Value>(d).ok()) {
            out["default"] = default;
        }
        if !field.patch_strategy.is_empty() {
            out["x-kubernetes-patch-strategy"] = field.patch_strategy.into();
        }
        if let Some(key) = field.patch_merge_key {
            out["x-kubernetes-patch-merge-key"] = key.into();
        }
        if let Some(list) = field.list_type {
            out["x-kubernetes-list-type"] = match list {
                ListType::Atomic => "atomic",
                ListType::Set => "set",
                ListType::Map => "map",
            }
            .into();
        }
        if !field.list_map_keys.is_empty() {
            out["x-kubernetes-list-map-keys"] = field.list_map_keys.split(',').collect::<Vec<_>>().into();
        }
        if field.atomic {
            out["x-kubernetes-map-type"] = "atomic".into();
        }
        out
    }

    fn value(&mut self, ty: &FieldType, text: &str) -> Value {
        // A reference may not have siblings, hence the `allOf` around it.
        let named = |s: &mut Self, name: &str| json!({"allOf": [s.reference(name)]});
        match ty {
            FieldType::String => {
                let values: Vec<&str> = schema().values(text).collect();
                if values.is_empty() {
                    json!({"type": "string"})
                } else {
                    json!({"type": "string", "enum": values})
                }
            }
            FieldType::Bool => json!({"type": "boolean"}),
            FieldType::Int32 => json!({"type": "integer", "format": "int32"}),
            FieldType::Int64 => json!({"type": "integer", "format": "int64"}),
            FieldType::Double => json!({"type": "number", "format": "double"}),
            FieldType::Bytes => json!({"type": "string", "format": "byte"}),
            FieldType::Quantity => named(self, "Quantity"),
            FieldType::IntOrString => named(self, "IntOrString"),
            FieldType::Time => named(self, "Time"),
            FieldType::MicroTime => named(self, "MicroTime"),
            FieldType::RawJson => named(self, "RawExtension"),
            FieldType::FieldsV1 => named(self, "FieldsV1"),
            FieldType::Object(id) => named(self, schema().get(*id).name),
            FieldType::List(item) | FieldType::Message(item) => {
                json!({"type": "array", "items": self.value(item, text.strip_prefix("[]").unwrap_or(""))})
            }
            FieldType::Map(item) => {
                let item = self.value(item, text.strip_prefix("map[string]").unwrap_or(""));
                json!({"type": "object", "additionalProperties": item})
            }
        }
    }
}

/// The fields as JSON has them, each with the type whose docs describe it.
fn collect(ty: &'static Type, out: &mut Vec<(&'static Type, &'static Field)>) {
    for field in &ty.fields {
        match field.ty {
            FieldType::Object(id) if field.inline => collect(schema().get(id), out),
            _ => out.push((ty, field)),
        }
    }
}

/// Kubernetes' name of a type in OpenAPI.
fn openapi_name(name: &str) -> String {
    let meta = "io.k8s.apimachinery.pkg.apis.meta.v1";
    match name {
        "Quantity" => "io.k8s.apimachinery.pkg.api.resource.Quantity".to_owned(),
        "IntOrString" => "io.k8s.apimachinery.pkg.util.intstr.IntOrString".to_owned(),
        "RawExtension" => "io.k8s.apimachinery.pkg.runtime.RawExtension".to_owned(),
        "Time" | "MicroTime" | "FieldsV1" | "Patch" => format!("{meta}.{name}"),
        _ => schema()
            .named(name)
            .map_or(name.to_owned(), |t| format!("{}.{}", t.package.openapi, t.short_name())),
    }
}

/// The schemas of what is no struct of the table.
fn scalar(name: &str) -> Value {
    match name {
        "Quantity" => json!({
            "description": "Quantity is a fixed-point number with a suffix, such as 500m, 2, 1.5Gi or 1e3.",
            "oneOf": [{"type": "string"}, {"type": "number"}],
        }),
        "IntOrString" => json!({
            "description": "IntOrString is a number or a string.",
            "format": "int-or-string",
            "oneOf": [{"type": "integer"}, {"type": "string"}],
        }),
        "Time" => json!({
            "description": "Time is a moment in RFC 3339 form, with whole seconds.",
            "type": "string",
            "format": "date-time",
        }),
        "MicroTime" => json!({
            "description": "MicroTime is a moment in RFC 3339 form, with microseconds.",
            "type": "string",
            "format": "date-time",
        }),
        "RawExtension" => {
            json!({"description": "RawExtension holds an object of any kind.", "type": "object"})
        }
        "FieldsV1" => json!({"description": "FieldsV1 is a set of fields as a tree.", "type": "object"}),
        _ => {
            json!({"description": "Patch is provided to give a concrete name and type to the body of a PATCH.",
            "type": "object"})
        }
    }
}

#[cfg(test)]
mod tests;
