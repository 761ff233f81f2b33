//! The `paths` of a document: operations on a resource's collection, on its objects and on their subresources.

use super::{OpenApiResource, Schemas, path_of};
use crate::schema::{Type, schema};
use serde_json::{Map, Value, json};

/// Query parameters: name, type, description.
type Parameters = &'static [(&'static str, &'static str, &'static str)];

const PRETTY: Parameters = &[("pretty", "string", "If 'true', then the output is pretty printed.")];
const WRITE: Parameters = &[
    ("dryRun", "string", "With the value All the request is processed, but nothing is stored."),
    ("fieldManager", "string", "The name of the actor that makes the changes."),
    ("fieldValidation", "string", "What to do with unknown or duplicate fields: Ignore, Warn or Strict."),
];
const FORCE: Parameters =
    &[("force", "boolean", "Take over fields that others manage; only for apply patches.")];
const LIST: Parameters = &[
    ("allowWatchBookmarks", "boolean", "The watch may send bookmarks."),
    ("continue", "string", "Where the list goes on, as told by the previous part."),
    ("fieldSelector", "string", "Only objects with these fields."),
    ("labelSelector", "string", "Only objects with these labels."),
    ("limit", "integer", "Most objects in one answer."),
    ("resourceVersion", "string", "The version that the answer must be based on."),
    ("resourceVersionMatch", "string", "How resourceVersion is meant: Exact or NotOlderThan."),
    ("sendInitialEvents", "boolean", "The watch begins with all objects."),
    ("timeoutSeconds", "integer", "How long a watch goes on."),
    ("watch", "boolean", "Watch for changes instead of listing."),
];
const DELETE: Parameters = &[
    ("dryRun", "string", "With the value All the request is processed, but nothing is stored."),
    ("gracePeriodSeconds", "integer", "Seconds until the object is deleted for good."),
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    ("propagationPolicy", "string", "What happens to dependents: Orphan, Background or Foreground."),
];

/// What the operations of one resource share.
struct Operations<'s, 'a> {
    schemas: &'s mut Schemas<'a>,
    /// `CoreV1NamespacedPod`, for operation ids.
    id: String,
    tag: String,
    /// Kind that the operations are about.
    ty: &'static Type,
}

/// Adds the paths of a resource.
pub(super) fn add(
    paths: &mut Map<String, Value>,
    schemas: &mut Schemas<'_>,
    ty: &'static Type,
    resource: &OpenApiResource<'_>,
) {
    let root = format!("/{}", path_of(schemas.group, schemas.version));
    let group = schemas.group.split('.').next().filter(|g| !g.is_empty()).unwrap_or("core");
    let tag = format!("{group}_{}", schemas.version);
    let scope = if resource.namespaced { "Namespaced" } else { "" };
    let id = format!("{}{}{scope}{}", capitalized(group), capitalized(schemas.version), resource.kind);
    let list = schema().named(&format!("{}List", ty.name)).unwrap_or(ty);
    let plural = resource.plural;
    let collection = if resource.namespaced {
        format!("{root}/namespaces/{{namespace}}/{plural}")
    } else {
        format!("{root}/{plural}")
    };

    let mut operations = Operations { schemas, id, tag, ty };
    if resource.namespaced {
        let all = json!({"get": operations.operation("list", "ForAllNamespaces", &[LIST], None, list)});
        paths.insert(format!("{root}/{plural}"), all);
    }
    let mut item = json!({
        "get": operations.operation("list", "", &[LIST], None, list),
        "post": operations.operation("create", "", &[WRITE], Some(ty.name), ty),
        "delete": operations.operation("deletecollection", "", &[DELETE, LIST], Some("meta.v1.DeleteOptions"), status()),
        "parameters": path_parameters(resource.namespaced, false),
    });
    paths.insert(collection.clone(), item);

    let object = format!("{collection}/{{name}}");
    item = operations.object_operations("", ty);
    item["delete"] = operations.operation("delete", "", &[DELETE], Some("meta.v1.DeleteOptions"), status());
    item["parameters"] = path_parameters(resource.namespaced, true);
    paths.insert(object.clone(), item);

    for (name, kind) in resource.subresources {
        let mut item = operations.subresource(name, kind);
        item["parameters"] = path_parameters(resource.namespaced, true);
        paths.insert(format!("{object}/{name}"), item);
    }
}

/// The answer of deletions.
fn status() -> &'static Type {
    // The table always has it; falling back to the first type keeps this free of panics.
    schema().named("meta.v1.Status").unwrap_or(&schema().types()[0])
}

impl Operations<'_, '_> {
    /// Reading and changing one object, or a subresource that looks like one.
    fn object_operations(&mut self, suffix: &str, body: &'static Type) -> Value {
        json!({
            "get": self.operation("get", suffix, &[], None, body),
            "put": self.operation("put", suffix, &[WRITE], Some(body.name), body),
            "patch": self.operation("patch", suffix, &[WRITE, FORCE], Some("Patch"), body),
        })
    }

    fn subresource(&mut self, name: &str, kind: &str) -> Value {
        let suffix = capitalized(name);
        let own = format!("{}.{kind}", self.ty.package.key);
        let known = schema()
            .named(&own)
            .or_else(|| schema().types().iter().find(|t| t.is_kind && t.short_name() == kind));
        let parent = self.ty;
        let item = match known {
            Some(body) => {
                self.ty = body;
                if matches!(name, "status" | "scale" | "resize" | "ephemeralcontainers" | "approval") {
                    self.object_operations(&suffix, body)
                } else {
                    json!({"post": self.operation("create", &suffix, &[WRITE], Some(body.name), body)})
                }
            }
            None => json!({"get": self.operation("connect", &suffix, &[], None, parent)}),
        };
        self.ty = parent;
        item
    }

    fn operation(
        &mut self,
        action: &str,
        suffix: &str,
        parameters: &[Parameters],
        body: Option<&str>,
        answer: &'static Type,
    ) -> Value {
        let verb = match action {
            "get" => "read",
            "put" => "replace",
            "deletecollection" => "deleteCollection",
            other => other,
        };
        let id =
            if suffix == "ForAllNamespaces" { self.id.replace("Namespaced", "") } else { self.id.clone() };
        let parameters: Vec<Value> =
            [PRETTY].iter().chain(parameters).copied().flatten().map(query).collect();
        let mut out = json!({
            "description": format!("{verb} {}", self.ty.short_name()),
            "operationId": format!("{verb}{id}{suffix}"),
            "parameters": parameters,
            "responses": {"200": {
                "description": "OK",
                "content": {"application/json": {"schema": self.schemas.reference(answer.name)}},
            }},
            "tags": [self.tag],
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": {
                "group": self.ty.package.group, "kind": self.ty.short_name(), "version": self.ty.package.version,
            },
        });
        if let Some(body) = body {
            let schema = json!({"schema": self.schemas.reference(body)});
            let types: &[&str] = match action {
                "patch" => &[
                    "application/json-patch+json",
                    "application/merge-patch+json",
                    "application/strategic-merge-patch+json",
                ],
                _ => &["*/*"],
            };
            let content: Map<String, Value> =
                types.iter().map(|t| ((*t).to_owned(), schema.clone())).collect();
            out["requestBody"] = json!({"content": content, "required": !action.starts_with("delete")});
        }
        out
    }
}

fn query((name, kind, description): &(&str, &str, &str)) -> Value {
    json!({
        "name": name, "in": "query", "description": description, "schema": {"type": kind, "uniqueItems": true},
    })
}

fn path_parameters(namespaced: bool, named: bool) -> Value {
    let parameter = |name: &str, description: &str| {
        json!({
            "name": name, "in": "path", "description": description, "required": true,
            "schema": {"type": "string", "uniqueItems": true},
        })
    };
    let mut all = Vec::new();
    if named {
        all.push(parameter("name", "name of the object"));
    }
    if namespaced {
        all.push(parameter("namespace", "object name and auth scope, such as for teams and projects"));
    }
    Value::Array(all)
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars).collect())
}
