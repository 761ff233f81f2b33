//! The schema table: every built-in type of the Kubernetes API, its fields, and what each field means to strict
//! checking, protobuf decoding, strategic merge, server-side apply and OpenAPI. The one source for all of them.
//!
//! The table is text (`schema/kubernetes.txt`, made by `cargo xtask schema`), read once on first use; everything in
//! it borrows from the embedded text. Descriptions stand in a second file that only [`docs`] reads.
//!
//! Absent on purpose: custom resources. They will bring a schema of their own and go through the same [`Type`].

mod check;
pub mod docs;
mod read;

pub(crate) use check::is_zero;
pub use check::{Mode, cannot_handle, check, strict_error};

use std::collections::HashMap;
use std::sync::LazyLock;

/// The table of the built-in types.
pub fn schema() -> &'static Schema {
    static SCHEMA: LazyLock<Schema> =
        LazyLock::new(|| read::table(include_str!("../../schema/kubernetes.txt")));
    &SCHEMA
}

/// All types. There is one, [`schema()`]; references into it are `'static`.
#[derive(Debug, Default)]
pub struct Schema {
    packages: Vec<Package>,
    types: Vec<Type>,
    aliases: HashMap<&'static str, Alias>,
    by_name: HashMap<&'static str, TypeId>,
}

/// One Go package: an API group in one version, or `meta.v1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Package {
    /// Key of the table, such as `apps.v1`; type names begin with it.
    pub key: &'static str,
    /// API group; empty for core.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Prefix of OpenAPI names, such as `io.k8s.api.apps.v1`.
    pub openapi: &'static str,
}

/// Index of a type in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TypeId(u16);

/// A named scalar, list or map.
#[derive(Debug)]
struct Alias {
    ty: FieldType,
    /// Enumerated values, separated by blanks; empty when open.
    values: &'static str,
}

/// A struct of the API.
#[derive(Debug)]
pub struct Type {
    /// Name in the table, such as `core.v1.PodSpec`.
    pub name: &'static str,
    /// The package it belongs to.
    pub package: Package,
    /// True when it has apiVersion and kind, so that it stands for itself in a request body.
    pub is_kind: bool,
    /// True when server-side apply treats it as one value (`+structType=atomic`).
    pub atomic: bool,
    /// Its fields in the order of the Go source, inlined structs as one field.
    pub fields: Vec<Field>,
}

/// One field.
#[derive(Debug)]
pub struct Field {
    /// Name in JSON; empty for an inlined struct.
    pub json: &'static str,
    /// Protobuf field number; 0 when the field is not on the wire.
    pub proto: u32,
    /// What it holds.
    pub ty: FieldType,
    /// The type as the table writes it, without the pointer: `core.v1.RestartPolicy`, `[]string`.
    pub type_text: &'static str,
    /// Strategies of strategic merge patch: `merge`, `replace`, `retainKeys`; empty when there is none.
    pub patch_strategy: &'static str,
    /// The key by which strategic merge patch tells list items apart.
    pub patch_merge_key: Option<&'static str>,
    /// How server-side apply sees a list.
    pub list_type: Option<ListType>,
    /// The keys of a [`ListType::Map`], separated by commas.
    pub list_map_keys: &'static str,
    /// Default of the schema (not of the defaulter), as JSON text.
    pub default: Option<&'static str>,
    /// True when the schema demands the field.
    pub required: bool,
    /// True when Go leaves out zero values (`omitempty`).
    pub omit_empty: bool,
    /// True when Go leaves out empty structs (`omitzero`).
    pub omit_zero: bool,
    /// True for Go pointers: zero is then different from absent.
    pub pointer: bool,
    /// True for a struct whose fields stand among those of its parent in JSON, but nested in protobuf.
    pub inline: bool,
    /// True when server-side apply treats the map or struct as one value.
    pub atomic: bool,
}

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// A string, also a named or enumerated one.
    String,
    /// A boolean.
    Bool,
    /// A whole number of 32 bits.
    Int32,
    /// A whole number of 64 bits.
    Int64,
    /// A floating-point number.
    Double,
    /// Bytes; base64 in JSON.
    Bytes,
    /// A quantity such as `1Gi`.
    Quantity,
    /// A number or a string.
    IntOrString,
    /// A moment in whole seconds.
    Time,
    /// A moment in microseconds.
    MicroTime,
    /// Any JSON (`runtime.RawExtension`).
    RawJson,
    /// The field set of a managed-fields entry.
    FieldsV1,
    /// A struct.
    Object(TypeId),
    /// A list.
    List(Box<FieldType>),
    /// A map with strings as keys.
    Map(Box<FieldType>),
    /// A list in JSON that is a message with one repeated field on the protobuf wire (`ExtraValue`).
    Message(Box<FieldType>),
}

/// `+listType`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    /// One value.
    Atomic,
    /// Scalars without repetition.
    Set,
    /// Structs told apart by their keys.
    Map,
}

impl Schema {
    /// The struct with this id.
    pub fn get(&self, id: TypeId) -> &Type {
        // Ids are only made by the reader of the table, which checks them.
        &self.types[usize::from(id.0)]
    }

    /// The struct with this name of the table, such as `core.v1.Container`.
    pub fn named(&self, name: &str) -> Option<&Type> {
        self.by_name.get(name).map(|id| self.get(*id))
    }

    /// The struct of a kind. Kinds that every group-version has (`DeleteOptions`, `Status`, ...) are found in any.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&Type> {
        let own = self.packages.iter().find(|p| p.group == group && p.version == version);
        let own = own.and_then(|p| self.named(&format!("{}.{kind}", p.key)));
        own.or_else(|| self.named(&format!("meta.v1.{kind}"))).filter(|t| t.is_kind)
    }

    /// All structs.
    pub fn types(&self) -> &[Type] {
        &self.types
    }

    /// The values of an enumerated string type, given by name; empty when it is open or no such type.
    pub fn values(&self, alias: &str) -> impl Iterator<Item = &'static str> {
        let values = self.aliases.get(alias).map_or("", |a| a.values);
        values.split(' ').filter(|v| !v.is_empty()).map(|v| if v == "\"\"" { "" } else { v })
    }
}

impl Type {
    /// The name without the package: `PodSpec`.
    pub fn short_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }

    /// The field with this JSON name, also in inlined structs.
    pub fn field(&self, json: &str) -> Option<&Field> {
        self.fields.iter().find_map(|f| match f.ty {
            _ if !f.inline => (f.json == json).then_some(f),
            FieldType::Object(id) => schema().get(id).field(json),
            _ => None,
        })
    }

    /// Calls `visit` for every field as JSON has them, inlined structs dissolved.
    pub fn for_each_field<'a>(&'a self, visit: &mut dyn FnMut(&'a Field)) {
        for field in &self.fields {
            match field.ty {
                FieldType::Object(id) if field.inline => schema().get(id).for_each_field(visit),
                _ => visit(field),
            }
        }
    }
}

impl Field {
    /// The struct that the field holds, or that the items of its list or map are.
    pub fn struct_type(&self) -> Option<&'static Type> {
        self.ty.struct_type()
    }

    /// True when strategic merge patch merges the list item by item.
    pub fn merges(&self) -> bool {
        self.patch_strategy.split(',').any(|s| s == "merge")
    }

    /// True when strategic merge patch clears what the patch does not name in `$retainKeys`.
    pub fn retains_keys(&self) -> bool {
        self.patch_strategy.split(',').any(|s| s == "retainKeys")
    }

    /// The type as Go names it in its messages: `v1.RestartPolicy`, `[]v1.Container`.
    pub fn go_type(&self) -> String {
        go_name(self.type_text)
    }
}

impl FieldType {
    /// The struct inside, through lists and maps.
    pub fn struct_type(&self) -> Option<&'static Type> {
        match self {
            Self::Object(id) => Some(schema().get(*id)),
            Self::List(inner) | Self::Map(inner) | Self::Message(inner) => inner.struct_type(),
            _ => None,
        }
    }
}

/// A type of the table as Go writes it.
pub(crate) fn go_name(text: &str) -> String {
    for prefix in ["[]", "map[string]"] {
        if let Some(rest) = text.strip_prefix(prefix) {
            return format!("{prefix}{}", go_name(rest));
        }
    }
    match text {
        "double" => "float64".to_owned(),
        "bytes" => "[]uint8".to_owned(),
        "Time" | "MicroTime" | "FieldsV1" => format!("v1.{text}"),
        "Quantity" => "resource.Quantity".to_owned(),
        "IntOrString" => "intstr.IntOrString".to_owned(),
        "RawExtension" => "runtime.RawExtension".to_owned(),
        _ => text.split_once('.').map_or(text, |(_, rest)| rest).to_owned(),
    }
}

#[cfg(test)]
mod tests;
