//! Defaults of pods and of pod templates.
//!
//! `spec` sets what every pod specification gets, `pod` adds what only pods get; templates stay without the latter,
//! as in Kubernetes, so that a template shows what its author wrote. All functions are idempotent.

use crate::kinds::checks::quantity;
use crate::kinds::value::{
    at, at_mut, default_nonzero, default_to, drop_zeros, flag, int, items, items_mut, object_mut, set, text,
};
use serde_json::{Map, Value, json};

/// Permission bits of projected files: 0644.
const FILE_MODE: i64 = 0o644;
/// The lists of containers in a pod specification.
pub(crate) const CONTAINER_LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];
/// Fields of a pod specification that do not exist when they are zero.
const POD_ZEROS: &[&str] = &[
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "nodeName",
    "hostname",
    "subdomain",
    "serviceAccountName",
    "serviceAccount",
    "priorityClassName",
];
const CONTAINER_ZEROS: &[&str] = &["stdin", "stdinOnce", "tty", "workingDir"];
/// What a toleration is added for unless the pod has its own: the two ways in which a node is lost.
const NODE_LOST: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
/// How long a pod stays bound to a lost node, in seconds.
const NODE_LOST_SECONDS: i64 = 300;

/// Defaults of a pod specification, in a pod or in a template.
pub(crate) fn spec(spec: &mut Value) {
    drop_zeros(spec, POD_ZEROS);
    default_to(spec, "dnsPolicy", "ClusterFirst");
    default_to(spec, "restartPolicy", "Always");
    default_to(spec, "terminationGracePeriodSeconds", 30);
    default_to(spec, "schedulerName", "default-scheduler");
    object_mut(spec, "securityContext");
    mirror_service_account(spec);
    for list in CONTAINER_LISTS {
        for one in items_mut(spec, list) {
            container(one);
        }
    }
    for one in items_mut(spec, "volumes") {
        volume(one);
    }
    for one in items_mut(spec, "topologySpreadConstraints") {
        default_to(one, "whenUnsatisfiable", "DoNotSchedule");
    }
}

/// Defaults of a pod template: those of its specification.
pub(crate) fn template(owner: &mut Value, key: &str) {
    let Some(template) = at_mut(owner, key) else { return };
    if let Some(metadata) = object_mut(template, "metadata").and_then(Value::as_object_mut) {
        metadata.retain(|_, value| !value.is_null());
    }
    if let Some(pod_spec) = object_mut(template, "spec") {
        spec(pod_spec);
    }
}

/// Defaults of a pod.
pub(crate) fn pod(pod: &mut Value) {
    let Some(pod_spec) = object_mut(pod, "spec") else { return };
    spec(pod_spec);
    default_to(pod_spec, "enableServiceLinks", true);
    for list in ["containers", "initContainers"] {
        for one in items_mut(pod_spec, list) {
            requests_from_limits(one);
        }
    }
    pod_requests_from_limits(pod_spec);
    if flag(pod_spec, "hostNetwork") == Some(true) {
        for list in ["containers", "initContainers"] {
            for one in items_mut(pod_spec, list) {
                host_ports(one);
            }
        }
    }
}

/// What Kubernetes' default admission plugins add to a new pod: the service account, and tolerations that keep the
/// pod on a lost node for a while.
pub(crate) fn admit(pod: &mut Value) {
    let Some(spec) = at_mut(pod, "spec") else { return };
    default_to(spec, "serviceAccountName", "default");
    mirror_service_account(spec);
    let missing: Vec<Value> = NODE_LOST
        .iter()
        .filter(|key| !items(spec, "tolerations").iter().any(|t| tolerates(t, key)))
        .map(|key| {
            json!({"key": key, "operator": "Exists", "effect": "NoExecute",
                   "tolerationSeconds": NODE_LOST_SECONDS})
        })
        .collect();
    if missing.is_empty() {
        return;
    }
    if at(spec, "tolerations").is_none() {
        set(spec, "tolerations", json!([]));
    }
    if let Some(list) = at_mut(spec, "tolerations").and_then(Value::as_array_mut) {
        list.extend(missing);
    }
}

fn tolerates(toleration: &Value, taint: &str) -> bool {
    let key = text(toleration, "key");
    let effect = text(toleration, "effect");
    (key == taint || key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are kept equal.
fn mirror_service_account(spec: &mut Value) {
    let name = [text(spec, "serviceAccountName"), text(spec, "serviceAccount")];
    let Some(name) = name.into_iter().find(|n| !n.is_empty()).map(str::to_owned) else { return };
    if text(spec, "serviceAccountName") != name {
        set(spec, "serviceAccountName", name.clone());
    }
    if text(spec, "serviceAccount") != name {
        set(spec, "serviceAccount", name);
    }
}

fn container(container: &mut Value) {
    drop_zeros(container, CONTAINER_ZEROS);
    default_to(container, "terminationMessagePath", "/dev/termination-log");
    default_to(container, "terminationMessagePolicy", "File");
    let policy = pull_policy(text(container, "image"));
    default_to(container, "imagePullPolicy", policy);
    for port in items_mut(container, "ports") {
        drop_zeros(port, &["hostPort", "hostIP", "name"]);
        default_to(port, "protocol", "TCP");
    }
    for env in items_mut(container, "env") {
        drop_zeros(env, &["value"]);
        if let Some(reference) = at_mut(env, "valueFrom") {
            field_references(reference);
        }
    }
    for mount in items_mut(container, "volumeMounts") {
        drop_zeros(mount, &["readOnly", "subPath", "subPathExpr"]);
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = at_mut(container, probe) {
            self::probe(probe);
        }
    }
    for hook in ["lifecycle.postStart.httpGet", "lifecycle.preStop.httpGet"] {
        if let Some(get) = at_mut(container, hook) {
            http_get(get);
        }
    }
    if let Some(resources) = object_mut(container, "resources") {
        for list in ["limits", "requests"] {
            canonical_quantities(resources, list);
        }
    }
    security_context(container);
}

fn security_context(container: &mut Value) {
    let Some(context) = at_mut(container, "securityContext") else { return };
    if let Some(map) = context.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
}

/// `Always` for images that are named `latest` by tag, or by having neither tag nor digest.
fn pull_policy(image: &str) -> &'static str {
    let (repository, digest) = image.split_once('@').unwrap_or((image, ""));
    let last = repository.rsplit('/').next().unwrap_or("");
    match last.split_once(':') {
        Some((_, "latest")) => "Always",
        None if digest.is_empty() => "Always",
        _ => "IfNotPresent",
    }
}

fn probe(probe: &mut Value) {
    drop_zeros(probe, &["initialDelaySeconds"]);
    for (key, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        default_nonzero(probe, key, value);
    }
    if let Some(get) = at_mut(probe, "httpGet") {
        http_get(get);
    }
    if let Some(grpc) = at_mut(probe, "grpc")
        && at(grpc, "service").is_none()
    {
        set(grpc, "service", "");
    }
}

fn http_get(get: &mut Value) {
    default_to(get, "path", "/");
    default_to(get, "scheme", "HTTP");
}

/// Defaults of `fieldRef` and `resourceFieldRef`, in variables and in volumes.
fn field_references(owner: &mut Value) {
    if let Some(reference) = at_mut(owner, "fieldRef") {
        default_to(reference, "apiVersion", "v1");
    }
    if let Some(reference) = at_mut(owner, "resourceFieldRef") {
        default_to(reference, "divisor", "0");
        canonical_quantity(reference, "divisor");
    }
}

fn volume(volume: &mut Value) {
    if let Some(map) = volume.as_object_mut()
        && map.iter().all(|(key, value)| key == "name" || value.is_null())
    {
        map.insert("emptyDir".to_owned(), json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = at_mut(volume, source) {
            default_to(source, "defaultMode", FILE_MODE);
        }
    }
    if let Some(host_path) = at_mut(volume, "hostPath")
        && at(host_path, "type").is_none()
    {
        set(host_path, "type", "");
    }
    if let Some(empty_dir) = at_mut(volume, "emptyDir") {
        drop_zeros(empty_dir, &["medium"]);
        canonical_quantity(empty_dir, "sizeLimit");
    }
    for item in items_mut(volume, "downwardAPI.items") {
        field_references(item);
    }
    for source in items_mut(volume, "projected.sources") {
        for item in items_mut(source, "downwardAPI.items") {
            field_references(item);
        }
        if let Some(token) = at_mut(source, "serviceAccountToken") {
            default_to(token, "expirationSeconds", 3600);
        }
    }
    if let Some(image) = at_mut(volume, "image") {
        let policy = pull_policy(text(image, "reference"));
        default_to(image, "pullPolicy", policy);
    }
}

/// A limit without a request is also the request.
fn requests_from_limits(container: &mut Value) {
    let Some(limits) = at(container, "resources.limits").and_then(Value::as_object).cloned() else { return };
    let Some(resources) = at_mut(container, "resources") else { return };
    fill_requests(resources, limits);
}

fn fill_requests(resources: &mut Value, limits: Map<String, Value>) {
    let Some(requests) = object_mut(resources, "requests").and_then(Value::as_object_mut) else { return };
    for (name, limit) in limits {
        requests.entry(name).or_insert(limit);
    }
}

/// Requests of the whole pod: the sum of its containers' requests, else the pod's limits.
fn pod_requests_from_limits(spec: &mut Value) {
    let Some(resources) = at_mut(spec, "resources") else { return };
    for list in ["limits", "requests"] {
        canonical_quantities(resources, list);
    }
    let Some(limits) = at(spec, "resources.limits").and_then(Value::as_object).cloned() else { return };
    if limits.is_empty() {
        return;
    }
    let mut requests = Map::new();
    for name in ["cpu", "memory"] {
        let path = format!("resources.requests.{name}");
        let sum = items(spec, "containers")
            .iter()
            .filter_map(|c| at(c, &path).and_then(quantity))
            .reduce(|a, b| a.add(&b));
        if let Some(sum) = sum {
            requests.insert(name.to_owned(), sum.to_string().into());
        }
    }
    let Some(resources) = at_mut(spec, "resources") else { return };
    fill_requests(resources, requests);
    fill_requests(resources, limits);
}

/// With the host's network a container's port is the host's port.
fn host_ports(container: &mut Value) {
    for port in items_mut(container, "ports") {
        if let Some(number) = int(port, "containerPort") {
            default_nonzero(port, "hostPort", number);
        }
    }
}

/// Writes the quantities of the list `key` in their canonical form.
pub(crate) fn canonical_quantities(owner: &mut Value, key: &str) {
    let Some(list) = at_mut(owner, key).and_then(Value::as_object_mut) else { return };
    for value in list.values_mut() {
        canonicalize(value);
    }
}

fn canonical_quantity(owner: &mut Value, key: &str) {
    if let Some(value) = at_mut(owner, key) {
        canonicalize(value);
    }
}

/// What is not a quantity stays, for validation to name it.
fn canonicalize(value: &mut Value) {
    if let Some(quantity) = quantity(value) {
        let canonical = quantity.to_string();
        if value.as_str() != Some(&canonical) {
            *value = canonical.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policies_follow_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.2", "IfNotPresent"),
            ("reg.example:5000/a/nginx", "Always"),
            ("reg.example:5000/a/nginx:v1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
            ("nginx:latest@sha256:00", "Always"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn a_pod_gets_all_its_defaults_once() {
        let mut object = json!({"metadata": {"name": "p"}, "spec": {
            "hostNetwork": true, "hostPID": false,
            "containers": [{
                "name": "c", "image": "i:1", "ports": [{"containerPort": 80}],
                "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        {"name": "B", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}],
                "resources": {"limits": {"cpu": "0.5", "memory": "1024Mi"}},
                "readinessProbe": {"httpGet": {"port": 80}}}],
            "volumes": [{"name": "e"}, {"name": "s", "secret": {"secretName": "x"}},
                        {"name": "h", "hostPath": {"path": "/x"}}],
        }});
        pod(&mut object);
        let spec = &object["spec"];
        let container = &spec["containers"][0];
        assert_eq!(
            *container,
            json!({
                "name": "c", "image": "i:1", "imagePullPolicy": "IfNotPresent",
                "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}],
                "env": [{"name": "A", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
                        {"name": "B", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "0"}}}],
                "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}},
                "readinessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                    "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            })
        );
        assert_eq!(
            spec["volumes"],
            json!([{"name": "e", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}},
                   {"name": "h", "hostPath": {"path": "/x", "type": ""}}])
        );
        for (key, value) in [
            ("restartPolicy", json!("Always")),
            ("dnsPolicy", json!("ClusterFirst")),
            ("schedulerName", json!("default-scheduler")),
            ("securityContext", json!({})),
            ("terminationGracePeriodSeconds", json!(30)),
            ("enableServiceLinks", json!(true)),
            ("hostPID", Value::Null),
        ] {
            assert_eq!(spec[key], value, "{key}");
        }
        let once = object.clone();
        pod(&mut object);
        assert_eq!(object, once);
    }

    #[test]
    fn admission_adds_account_and_tolerations() {
        let mut object = json!({"spec": {"tolerations": [{"key": NODE_LOST[0], "operator": "Exists"}]}});
        admit(&mut object);
        assert_eq!(object["spec"]["serviceAccountName"], "default");
        assert_eq!(object["spec"]["serviceAccount"], "default");
        let tolerations = object["spec"]["tolerations"].as_array().unwrap();
        assert_eq!(tolerations.len(), 2);
        assert_eq!(tolerations[1]["key"], NODE_LOST[1]);
        assert_eq!(tolerations[1]["tolerationSeconds"], 300);
    }

    #[test]
    fn templates_get_no_requests() {
        let mut object = json!({"template": {"metadata": {"creationTimestamp": null}, "spec": {"containers": [
            {"name": "c", "image": "i", "resources": {"limits": {"cpu": 1}}}]}}});
        template(&mut object, "template");
        assert_eq!(object["template"]["metadata"], json!({}));
        let container = &object["template"]["spec"]["containers"][0];
        assert_eq!(container["resources"], json!({"limits": {"cpu": "1"}}));
        assert_eq!(container["imagePullPolicy"], "Always");
        assert_eq!(object["template"]["spec"]["enableServiceLinks"], Value::Null);
    }
}
