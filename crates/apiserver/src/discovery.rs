//! Discovery: which groups, versions and resources there are, in the legacy and the aggregated form.
//!
//! Everything is derived from the rows and the list of subresources.

use crate::codec::encode;
use crate::codec::negotiate::{self, Shape};
use crate::config::GIT_VERSION;
use crate::handlers::Answer;
use crate::registry::{GroupVersion, Registry, Resource, api_version};
use crate::subresources::SUBRESOURCES;
use axum::body::Body;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::{Value, json};
use std::net::SocketAddr;

const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const AGGREGATED: HeaderValue =
    HeaderValue::from_static("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");

/// `/version`
pub(crate) fn version() -> Response<Body> {
    let mut numbers = GIT_VERSION.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    encode::json(
        StatusCode::OK,
        &json!({
            "major": major, "minor": minor, "gitVersion": GIT_VERSION, "gitCommit": "", "gitTreeState": "",
            "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
            "platform": format!("linux/{}", architecture()),
        }),
    )
}

/// The machine's architecture as Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `/`
pub(crate) fn paths(registry: &Registry) -> Response<Body> {
    let mut paths = vec!["/api".to_owned(), "/api/v1".into(), "/apis".into()];
    for version in registry.versions().iter().filter(|v| !v.group.is_empty()) {
        paths.push(format!("/apis/{}", version.group));
        paths.push(format!("/apis/{}/{}", version.group, version.version));
    }
    paths.extend(["/healthz", "/livez", "/metrics", "/openapi/v3", "/readyz", "/version"].map(str::to_owned));
    encode::json(StatusCode::OK, &json!({"paths": paths}))
}

/// `/api`
pub(crate) fn core(registry: &Registry, headers: &HeaderMap, listen: SocketAddr) -> Answer {
    let core = registry.versions().iter().filter(|v| v.group.is_empty());
    if negotiate::negotiate(headers, negotiate::discovery)?.shape == Shape::Discovery {
        return Ok(aggregated(vec![group_entry("", core)]));
    }
    let versions: Vec<&str> = core.map(|v| v.version).collect();
    Ok(encode::json(
        StatusCode::OK,
        &json!({
            "kind": "APIVersions", "versions": versions,
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": listen.to_string()}],
        }),
    ))
}

/// `/apis`
pub(crate) fn groups(registry: &Registry, headers: &HeaderMap) -> Answer {
    let groups = registry.groups();
    if negotiate::negotiate(headers, negotiate::discovery)?.shape == Shape::Discovery {
        let versions = |group: &'static str| registry.versions().iter().filter(move |v| v.group == group);
        return Ok(aggregated(groups.into_iter().map(|g| group_entry(g, versions(g))).collect()));
    }
    let groups: Vec<Value> = groups.iter().filter_map(|g| group_value(registry, g)).collect();
    Ok(encode::json(StatusCode::OK, &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})))
}

/// `/apis/GROUP`
pub(crate) fn group(registry: &Registry, group: &str) -> Option<Response<Body>> {
    let mut value = group_value(registry, group)?;
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Some(encode::json(StatusCode::OK, &value))
}

fn group_value(registry: &Registry, group: &str) -> Option<Value> {
    let versions: Vec<Value> = registry
        .versions()
        .iter()
        .filter(|v| v.group == group && !group.is_empty())
        .map(|v| json!({"groupVersion": api_version(v.group, v.version), "version": v.version}))
        .collect();
    let preferred = versions.first()?.clone();
    Some(json!({"name": group, "versions": versions, "preferredVersion": preferred}))
}

/// `/api/v1`, `/apis/GROUP/VERSION`
pub(crate) fn group_version(registry: &Registry, group: &str, version: &str) -> Option<Response<Body>> {
    let version = registry.version(group, version)?;
    let mut resources = Vec::new();
    for resource in &version.resources {
        let row = resource.row;
        let mut entry = json!({
            "name": row.plural, "singularName": row.singular, "namespaced": row.namespaced, "kind": row.kind,
            "verbs": VERBS,
        });
        add_names(&mut entry, resource);
        resources.push(entry);
        for sub in subresources(resource) {
            let (group, version, kind) = sub.kind;
            let mut entry = json!({
                "name": format!("{}/{}", row.plural, sub.name), "singularName": "",
                "namespaced": row.namespaced, "kind": kind, "verbs": sub.verbs,
            });
            if (group, version) != (row.group, row.version) {
                entry["group"] = group.into();
                entry["version"] = version.into();
            }
            resources.push(entry);
        }
    }
    if group.is_empty() {
        resources.push(json!({
            "name": "bindings", "singularName": "binding", "namespaced": true, "kind": "Binding",
            "verbs": ["create"],
        }));
        resources.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    }
    let list = json!({
        "kind": "APIResourceList", "apiVersion": "v1", "resources": resources,
        "groupVersion": api_version(version.group, version.version),
    });
    Some(encode::json(StatusCode::OK, &list))
}

fn add_names(entry: &mut Value, resource: &Resource) {
    if !resource.row.short_names.is_empty() {
        entry["shortNames"] = json!(resource.row.short_names);
    }
    if !resource.row.categories.is_empty() {
        entry["categories"] = json!(resource.row.categories);
    }
}

/// A subresource, with the kind of what it takes and gives.
pub(crate) struct Sub {
    pub(crate) name: &'static str,
    pub(crate) kind: (&'static str, &'static str, &'static str),
    verbs: &'static [&'static str],
}

pub(crate) fn subresources(resource: &Resource) -> Vec<Sub> {
    const CHANGED: &[&str] = &["get", "patch", "update"];
    let row = resource.row;
    let own = (row.group, row.version, row.kind);
    let mut subs: Vec<Sub> = SUBRESOURCES
        .iter()
        .filter(|s| s.of == (row.group, row.plural))
        .map(|s| Sub { name: s.name, kind: s.kind.unwrap_or(own), verbs: s.verbs })
        .collect();
    if row.scale.is_some() {
        subs.push(Sub { name: "scale", kind: ("autoscaling", "v1", "Scale"), verbs: CHANGED });
    }
    if row.status {
        subs.push(Sub { name: "status", kind: own, verbs: CHANGED });
    }
    subs
}

fn aggregated(items: Vec<Value>) -> Response<Body> {
    let list = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    });
    let mut response = encode::reply(StatusCode::OK, AGGREGATED, list.to_string());
    response.headers_mut().insert(http::header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn group_entry<'a>(group: &str, versions: impl Iterator<Item = &'a GroupVersion>) -> Value {
    let kind = |(group, version, kind): (&str, &str, &str)| json!({"group": group, "version": version, "kind": kind});
    let versions: Vec<Value> = versions
        .map(|version| {
            let resources: Vec<Value> = version
                .resources
                .iter()
                .map(|resource| {
                    let row = resource.row;
                    let mut entry = json!({
                        "resource": row.plural, "singularResource": row.singular, "verbs": VERBS,
                        "responseKind": kind((row.group, row.version, row.kind)),
                        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
                    });
                    add_names(&mut entry, resource);
                    let subs: Vec<Value> = subresources(resource)
                        .iter()
                        .map(|s| json!({"subresource": s.name, "responseKind": kind(s.kind), "verbs": s.verbs}))
                        .collect();
                    if !subs.is_empty() {
                        entry["subresources"] = subs.into();
                    }
                    entry
                })
                .collect();
            json!({"version": version.version, "freshness": "Current", "resources": resources})
        })
        .collect();
    let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
    json!({"metadata": metadata, "versions": versions})
}
