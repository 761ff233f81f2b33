//! From the path of a request to what it is about.
//!
//! Segments are borrowed from the path and only decoded when they hold a `%`; nothing else is allocated.

use crate::registry::{Registry, Resource};
use std::borrow::Cow;

/// What a path names.
pub(crate) enum Route<'a> {
    /// A collection, an object or a subresource.
    Resource(Target<'a>),
    /// `/api/v1/namespaces/NAMESPACE/bindings`
    Bindings(Cow<'a, str>),
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    /// `/apis/GROUP`
    Group(&'a str),
    /// `/api/v1`, `/apis/GROUP/VERSION`
    GroupVersion(&'a str, &'a str),
    /// `/openapi/v3` and what is below it; the rest of the path without its slash.
    OpenApiV3(&'a str),
    /// `/openapi/v2`
    OpenApiV2,
    /// `/version`
    Version,
    /// `/healthz`, `/livez`, `/readyz` and the name of a single check.
    Health(&'a str, Option<&'a str>),
    /// `/metrics`
    Metrics,
    /// `/api/v1/nodes/NODE/proxy/checkpoint/NAMESPACE/POD`: the kubelet's checkpoint, where Kubernetes has the kubelet.
    Checkpoint { node: Cow<'a, str>, namespace: Cow<'a, str>, pod: Cow<'a, str> },
    /// `/`
    Root,
    /// Anything else.
    Unknown,
}

/// A place in the resource space.
pub(crate) struct Target<'a> {
    pub(crate) resource: &'a Resource,
    /// `None` for cluster-scoped objects and for lists over all namespaces.
    pub(crate) namespace: Option<Cow<'a, str>>,
    pub(crate) name: Option<Cow<'a, str>>,
    pub(crate) subresource: Option<&'a str>,
}

/// Finds out what `path` names.
pub(crate) fn route<'a>(registry: &'a Registry, path: &'a str) -> Route<'a> {
    let mut segments = path.strip_prefix('/').unwrap_or(path).split('/').filter(|s| !s.is_empty());
    match segments.next() {
        None => Route::Root,
        Some("api") => match segments.next() {
            None => Route::CoreVersions,
            Some(version) => group_version(registry, "", version, segments),
        },
        Some("apis") => match (segments.next(), segments.next()) {
            (None, _) => Route::Groups,
            (Some(group), None) => Route::Group(group),
            (Some(group), Some(version)) => group_version(registry, group, version, segments),
        },
        Some("version") => exact(Route::Version, segments),
        Some("metrics") => exact(Route::Metrics, segments),
        Some(check @ ("healthz" | "livez" | "readyz")) => match (segments.next(), segments.next()) {
            (name, None) => Route::Health(check, name),
            _ => Route::Unknown,
        },
        Some("openapi") => match segments.next() {
            Some("v2") => exact(Route::OpenApiV2, segments),
            Some("v3") => {
                let rest = path.split_once("/v3").map_or("", |(_, rest)| rest);
                Route::OpenApiV3(rest.trim_matches('/'))
            }
            _ => Route::Unknown,
        },
        Some(_) => Route::Unknown,
    }
}

fn exact<'a>(route: Route<'a>, mut rest: impl Iterator<Item = &'a str>) -> Route<'a> {
    if rest.next().is_none() { route } else { Route::Unknown }
}

fn group_version<'a>(
    registry: &'a Registry,
    group: &'a str,
    version: &'a str,
    mut rest: impl Iterator<Item = &'a str>,
) -> Route<'a> {
    let Some(first) = rest.next() else { return Route::GroupVersion(group, version) };
    let (second, third) = (rest.next(), rest.next());
    if let ("", "v1", "namespaces", Some(namespace), Some("bindings")) =
        (group, version, first, second, third)
    {
        return exact(Route::Bindings(decode(namespace)), rest);
    }
    if let ("", "v1", "nodes", Some(node), Some("proxy")) = (group, version, first, second, third) {
        return match (rest.next(), rest.next(), rest.next()) {
            (Some("checkpoint"), Some(namespace), Some(pod)) => {
                let (node, namespace, pod) = (decode(node), decode(namespace), decode(pod));
                exact(Route::Checkpoint { node, namespace, pod }, rest)
            }
            _ => Route::Unknown,
        };
    }
    let find = |plural: &str| registry.find(group, version, plural);
    // `namespaces/NS/RESOURCE` unless RESOURCE is a subresource of namespaces itself.
    let namespaced = match (first, second, third) {
        ("namespaces", Some(namespace), Some(plural)) => find(plural).map(|resource| (namespace, resource)),
        _ => None,
    };
    let (resource, namespace, name, subresource) = match namespaced {
        Some((namespace, resource)) => {
            if !resource.row.namespaced {
                return Route::Unknown;
            }
            (resource, Some(decode(namespace)), rest.next(), rest.next())
        }
        None => match find(first) {
            Some(resource) => (resource, None, second, third),
            None => return Route::Unknown,
        },
    };
    // A namespaced object has no place without its namespace.
    if rest.next().is_some() || (resource.row.namespaced && namespace.is_none() && name.is_some()) {
        return Route::Unknown;
    }
    Route::Resource(Target { resource, namespace, name: name.map(decode), subresource })
}

/// Undoes percent-encoding; what is not UTF-8 afterwards stays as it was.
pub(crate) fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8(out).map_or(Cow::Borrowed(text), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe(path: &str) -> String {
        let registry = Registry::new(crate::kinds::rows(), crate::kinds::views());
        match route(&registry, path) {
            Route::Resource(t) => format!(
                "{} ns={} name={} sub={}",
                t.resource.row.plural,
                t.namespace.as_deref().unwrap_or("-"),
                t.name.as_deref().unwrap_or("-"),
                t.subresource.unwrap_or("-")
            ),
            Route::Bindings(namespace) => format!("bindings {namespace}"),
            Route::Checkpoint { node, namespace, pod } => format!("checkpoint {node} {namespace} {pod}"),
            Route::CoreVersions => "core".into(),
            Route::Groups => "groups".into(),
            Route::Group(g) => format!("group {g}"),
            Route::GroupVersion(g, v) => format!("gv {g} {v}"),
            Route::OpenApiV3(rest) => format!("v3 {rest}"),
            Route::OpenApiV2 => "v2".into(),
            Route::Version => "version".into(),
            Route::Metrics => "metrics".into(),
            Route::Health(check, name) => format!("{check} {}", name.unwrap_or("-")),
            Route::Root => "root".into(),
            Route::Unknown => "unknown".into(),
        }
    }

    #[test]
    fn paths() {
        for (path, want) in [
            ("/api/v1/namespaces/default/pods", "pods ns=default name=- sub=-"),
            ("/api/v1/namespaces/default/pods/a%20b", "pods ns=default name=a b sub=-"),
            ("/api/v1/namespaces/default/pods/a/log", "pods ns=default name=a sub=log"),
            ("/api/v1/pods", "pods ns=- name=- sub=-"),
            ("/api/v1/pods/a", "unknown"),
            ("/api/v1/namespaces", "namespaces ns=- name=- sub=-"),
            ("/api/v1/namespaces/x", "namespaces ns=- name=x sub=-"),
            ("/api/v1/namespaces/x/finalize", "namespaces ns=- name=x sub=finalize"),
            ("/api/v1/namespaces/x/nodes", "unknown"),
            ("/apis/apps/v1/namespaces/n/deployments/d/scale", "deployments ns=n name=d sub=scale"),
            ("/apis/apps/v1/namespaces/n/deployments/d/scale/x", "unknown"),
            ("/api/v1/namespaces/n/bindings", "bindings n"),
            ("/apis/apps/v1", "gv apps v1"),
            ("/apis/apps/", "group apps"),
            ("/apis", "groups"),
            ("/api", "core"),
            ("/", "root"),
            ("/readyz/ping", "readyz ping"),
            ("/openapi/v3/apis/apps/v1", "v3 apis/apps/v1"),
            ("/openapi/v2", "v2"),
            ("/version/x", "unknown"),
            ("/api/v1/nodes/n/proxy/checkpoint/a/p", "checkpoint n a p"),
            ("/api/v1/nodes/n/proxy/checkpoint/a/p/c", "unknown"),
            ("/api/v1/nodes/n/proxy/pods", "unknown"),
            ("/metrics", "metrics"),
            ("/metrics/cadvisor", "unknown"),
        ] {
            assert_eq!(describe(path), want, "{path}");
        }
    }
}
