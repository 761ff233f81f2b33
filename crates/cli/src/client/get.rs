//! `get`: tables as the server prints them, or whole objects.

use super::resource::{Resource, Resources};
use super::{call, get_json};
use crate::args::Format;
use crate::table;
use anyhow::{Context, bail};
use http::Method;
use kube::Client;
use serde_json::{Value, json};

/// Asks the server for a table, which it prints for every kind.
const AS_TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// What `what` names: resources with the names asked for; none means all objects.
pub(super) fn targets<'a>(
    resources: &'a Resources,
    what: &[String],
) -> anyhow::Result<Vec<(&'a Resource, Option<String>)>> {
    let Some(first) = what.first() else { bail!("name what is meant, such as `pods` or `deployment/web`") };
    if what.iter().any(|word| word.contains('/')) {
        let pair = |word: &String| {
            let (kind, name) =
                word.split_once('/').with_context(|| format!("{word:?}: write KIND/NAME for all"))?;
            Ok((resources.find(kind)?, Some(name.to_owned())))
        };
        return what.iter().map(pair).collect();
    }
    let names = &what[1..];
    let kinds = first.split(',').map(|kind| resources.find(kind)).collect::<anyhow::Result<Vec<_>>>()?;
    if names.is_empty() {
        return Ok(kinds.into_iter().map(|kind| (kind, None)).collect());
    }
    Ok(kinds.iter().flat_map(|kind| names.iter().map(|name| (*kind, Some(name.clone())))).collect())
}

/// Prints objects.
pub(super) async fn run(
    client: &Client,
    what: &[String],
    namespace: Option<&str>,
    selector: Option<&str>,
    format: Format,
) -> anyhow::Result<()> {
    let resources = Resources::discover(client).await?;
    let targets = targets(&resources, what)?;
    let several = targets.len() > 1;
    let mut objects = Vec::new();
    for (resource, name) in targets {
        let mut path = resource.path(namespace, name.as_deref());
        if let Some(selector) = selector {
            path.push_str(&format!("?labelSelector={}", query(selector)));
        }
        match format {
            Format::Table | Format::Wide => {
                print_table(client, &path, namespace.is_none() && resource.namespaced, format).await?
            }
            Format::Json | Format::Yaml | Format::Name => {
                let answer = get_json(client, &path).await?;
                match answer["items"].as_array() {
                    Some(items) => objects.extend(items.iter().map(|item| typed(item.clone(), resource))),
                    None => objects.push(answer),
                }
            }
        }
        if several && matches!(format, Format::Table | Format::Wide) {
            println!();
        }
    }
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&wrapped(objects))?),
        Format::Yaml => print!("{}", serde_saphyr::to_string(&wrapped(objects))?),
        Format::Name => objects.iter().for_each(|object| println!("{}", full_name(&resources, object))),
        Format::Table | Format::Wide => {}
    }
    Ok(())
}

/// Items of a list do not say what they are.
fn typed(mut item: Value, resource: &Resource) -> Value {
    item["apiVersion"] = json!(resource.api_version);
    item["kind"] = json!(resource.kind);
    item
}

fn wrapped(mut objects: Vec<Value>) -> Value {
    if objects.len() == 1 {
        return objects.remove(0);
    }
    json!({"apiVersion": "v1", "kind": "List", "items": objects})
}

fn full_name(resources: &Resources, object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = text(&object["metadata"]["name"]);
    resources
        .of_kind(&text(&object["apiVersion"]), &text(&object["kind"]))
        .map_or(name.clone(), |r| r.named(&name))
}

async fn print_table(
    client: &Client,
    path: &str,
    with_namespace: bool,
    format: Format,
) -> anyhow::Result<()> {
    let text = call(client, Method::GET, path, "application/json", AS_TABLE, Vec::new()).await?;
    let answer: Value = serde_json::from_str(&text).context("the answer is no JSON")?;
    let rows = answer["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    if rows.is_empty() {
        eprintln!("No resources found");
        return Ok(());
    }
    let columns: Vec<(usize, String)> = answer["columnDefinitions"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
        .filter(|(_, column)| format == Format::Wide || column["priority"].as_i64().unwrap_or(0) == 0)
        .map(|(index, column)| (index, column["name"].as_str().unwrap_or_default().to_uppercase()))
        .collect();
    let mut headings: Vec<&str> = columns.iter().map(|(_, name)| name.as_str()).collect();
    if with_namespace {
        headings.insert(0, "NAMESPACE");
    }
    let line = |row: &Value| {
        let mut cells: Vec<String> = columns.iter().map(|(index, _)| cell(&row["cells"][*index])).collect();
        if with_namespace {
            cells.insert(0, cell(&row["object"]["metadata"]["namespace"]));
        }
        cells
    };
    table::print(&headings, &rows.iter().map(line).collect::<Vec<_>>());
    Ok(())
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Escapes a query value.
pub(super) fn query(text: &str) -> String {
    let keep = |b: &u8| b.is_ascii_alphanumeric() || b"-._~".contains(b);
    text.bytes().map(|b| if keep(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
