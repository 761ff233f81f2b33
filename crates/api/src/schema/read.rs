//! Reads the table's text. The text is part of the program, so a mistake in it is a bug of the generator: the reader
//! leaves out what it does not understand, and a test reads the whole table and counts.

use super::{Alias, Field, FieldType, ListType, Package, Schema, Type, TypeId};
use std::collections::HashMap;

pub(super) fn table(text: &'static str) -> Schema {
    let mut schema = Schema::default();
    let lines = || text.lines().filter(|l| !l.starts_with('#'));
    // Types refer to types further down: names first.
    for (n, line) in lines().filter(|l| l.starts_with("type ")).enumerate() {
        if let (Some(name), Ok(id)) = (line.split(' ').nth(1), u16::try_from(n)) {
            schema.by_name.insert(name, TypeId(id));
        }
    }
    for line in lines() {
        let mut words = line.split(' ');
        match words.next() {
            Some("") => {
                let field = line.strip_prefix("  ").and_then(|l| field(&schema, l));
                if let (Some(ty), Some(field)) = (schema.types.last_mut(), field) {
                    ty.fields.push(field);
                }
            }
            Some("type") => {
                let name = words.next().unwrap_or("");
                let package = package_of(&schema, name);
                let flags: Vec<&str> = words.collect();
                let (is_kind, atomic) = (flags.contains(&"kind"), flags.contains(&"atomic"));
                schema.types.push(Type { name, package, is_kind, atomic, fields: Vec::new() });
            }
            Some(word @ ("alias" | "message")) => {
                if let Some((name, alias)) = alias(&schema, line, word == "message") {
                    schema.aliases.insert(name, alias);
                }
            }
            Some("package") => {
                if let [key, group, version, openapi] = words.collect::<Vec<_>>()[..] {
                    let group = if group == "-" { "" } else { group };
                    schema.packages.push(Package { key, group, version, openapi });
                }
            }
            _ => {}
        }
    }
    schema
}

fn package_of(schema: &Schema, name: &str) -> Package {
    let key = name.rsplit_once('.').map_or("", |(key, _)| key);
    let unknown = Package { key: "", group: "", version: "", openapi: "" };
    schema.packages.iter().find(|p| p.key == key).copied().unwrap_or(unknown)
}

fn alias(schema: &Schema, line: &'static str, message: bool) -> Option<(&'static str, Alias)> {
    let mut words = line.splitn(4, ' ').skip(1);
    let (name, ty) = (words.next()?, field_type(&schema.by_name, &schema.aliases, words.next()?)?);
    let ty = match ty {
        FieldType::List(inner) if message => FieldType::Message(inner),
        other => other,
    };
    Some((name, Alias { ty, values: words.next().unwrap_or("") }))
}

fn field(schema: &Schema, line: &'static str) -> Option<Field> {
    let mut words = line.split(' ');
    let (json, proto, text) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
    let type_text = text.strip_prefix('*').unwrap_or(text);
    let inline = json == "<";
    let mut field = Field {
        json: if inline { "" } else { json },
        proto,
        ty: field_type(&schema.by_name, &schema.aliases, type_text)?,
        type_text,
        patch_strategy: "",
        patch_merge_key: None,
        list_type: None,
        list_map_keys: "",
        default: None,
        required: false,
        omit_empty: false,
        omit_zero: false,
        pointer: text.len() != type_text.len(),
        inline,
        atomic: false,
    };
    for flag in words {
        match flag.split_once('=').unwrap_or((flag, "")) {
            ("omitempty", _) => field.omit_empty = true,
            ("omitzero", _) => field.omit_zero = true,
            ("required", _) => field.required = true,
            ("atomic", _) => field.atomic = true,
            ("patch", strategy) => field.patch_strategy = strategy,
            ("key", key) => field.patch_merge_key = Some(key),
            ("keys", keys) => field.list_map_keys = keys,
            ("default", default) => field.default = Some(default),
            ("list", "set") => field.list_type = Some(ListType::Set),
            ("list", "map") => field.list_type = Some(ListType::Map),
            ("list", _) => field.list_type = Some(ListType::Atomic),
            _ => {}
        }
    }
    Some(field)
}

fn field_type(
    types: &HashMap<&'static str, TypeId>,
    aliases: &HashMap<&'static str, Alias>,
    text: &str,
) -> Option<FieldType> {
    if let Some(inner) = text.strip_prefix("[]") {
        return Some(FieldType::List(Box::new(field_type(types, aliases, inner)?)));
    }
    if let Some(inner) = text.strip_prefix("map[string]") {
        return Some(FieldType::Map(Box::new(field_type(types, aliases, inner)?)));
    }
    Some(match text {
        "string" => FieldType::String,
        "bool" => FieldType::Bool,
        "int32" => FieldType::Int32,
        "int64" => FieldType::Int64,
        "double" => FieldType::Double,
        "bytes" => FieldType::Bytes,
        "Quantity" => FieldType::Quantity,
        "IntOrString" => FieldType::IntOrString,
        "Time" => FieldType::Time,
        "MicroTime" => FieldType::MicroTime,
        "RawExtension" => FieldType::RawJson,
        "FieldsV1" => FieldType::FieldsV1,
        _ => match types.get(text) {
            Some(id) => FieldType::Object(*id),
            None => aliases.get(text)?.ty.clone(),
        },
    })
}
