//! Tests of the documents. That kubectl understands them is tested end to end.

use super::*;

const SCALE: &[(&str, &str)] = &[("status", "Deployment"), ("scale", "Scale")];
const POD: &[(&str, &str)] =
    &[("status", "Pod"), ("log", ""), ("binding", "Binding"), ("eviction", "Eviction")];

fn apps() -> Value {
    let row =
        OpenApiResource { kind: "Deployment", plural: "deployments", namespaced: true, subresources: SCALE };
    document("apps", "v1", &[row])
}

fn core() -> Value {
    let pods = OpenApiResource { kind: "Pod", plural: "pods", namespaced: true, subresources: POD };
    let nodes = OpenApiResource {
        kind: "Node",
        plural: "nodes",
        namespaced: false,
        subresources: &[("status", "Node")],
    };
    document("", "v1", &[pods, nodes])
}

#[test]
fn patch_tells_what_kubectl_looks_for() {
    let patch = &apps()["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    let gvk = json!({"group": "apps", "kind": "Deployment", "version": "v1"});
    assert_eq!(patch["x-kubernetes-group-version-kind"], gvk);
    let names: Vec<&str> =
        patch["parameters"].as_array().expect("a list").iter().filter_map(|p| p["name"].as_str()).collect();
    assert_eq!(names, ["pretty", "dryRun", "fieldManager", "fieldValidation", "force"]);
}

#[test]
fn every_reference_has_a_target() {
    for document in [apps(), core()] {
        let schemas = document["components"]["schemas"].as_object().expect("schemas");
        let mut count = 0;
        let mut open = vec![&document];
        while let Some(value) = open.pop() {
            match value {
                Value::Object(map) => {
                    if let Some(target) = map.get("$ref").and_then(Value::as_str) {
                        let name = target.strip_prefix("#/components/schemas/").expect("a local reference");
                        assert!(schemas.contains_key(name), "{name} is missing");
                        count += 1;
                    }
                    open.extend(map.values());
                }
                Value::Array(items) => open.extend(items),
                _ => {}
            }
        }
        assert!(count > 100);
    }
}

#[test]
fn schemas() {
    let core = core();
    let schemas = &core["components"]["schemas"];
    let pod = &schemas["io.k8s.api.core.v1.Pod"];
    assert_eq!(
        pod["x-kubernetes-group-version-kind"],
        json!([{"group": "", "kind": "Pod", "version": "v1"}])
    );
    assert!(pod["description"].as_str().is_some_and(|d| d.starts_with("Pod is a collection of containers")));
    let spec = &schemas["io.k8s.api.core.v1.PodSpec"];
    assert_eq!(spec["required"], json!(["containers"]));
    let containers = &spec["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(containers["items"]["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.core.v1.Container");
    let policy = &spec["properties"]["restartPolicy"];
    assert_eq!(policy["enum"], json!(["Always", "Never", "OnFailure"]));
    assert!(
        policy["description"].as_str().is_some_and(|d| d.contains("Possible enum values:\n - `\"Always\"`"))
    );
    // Inlined structs are dissolved, with their docs.
    let volume = &schemas["io.k8s.api.core.v1.Volume"]["properties"];
    assert!(volume["emptyDir"]["description"].as_str().is_some_and(|d| d.contains("temporary directory")));
    assert_eq!(
        schemas["io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector"]["x-kubernetes-map-type"],
        "atomic"
    );
    let limits = &schemas["io.k8s.api.core.v1.ResourceRequirements"]["properties"]["limits"];
    let quantity = "#/components/schemas/io.k8s.apimachinery.pkg.api.resource.Quantity";
    assert_eq!(limits["additionalProperties"]["allOf"][0]["$ref"], quantity);
    assert!(core["paths"]["/api/v1/nodes/{name}"]["get"].is_object());
    assert!(core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}/eviction"]["post"].is_object());
}

#[test]
fn indexes() {
    let index = index([("", "v1"), ("apps", "v1")], "h");
    assert_eq!(
        index,
        json!({"paths": {
            "api/v1": {"serverRelativeURL": "/openapi/v3/api/v1?hash=h"},
            "apis/apps/v1": {"serverRelativeURL": "/openapi/v3/apis/apps/v1?hash=h"},
        }})
    );
}
