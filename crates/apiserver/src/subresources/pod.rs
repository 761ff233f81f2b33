//! Which container of a pod a stream is for, and whether it can be had, in the words of Kubernetes.

use crate::core::{Call, Core};
use crate::object::body;
use cumulet_api::{Status, StatusReason, meta};
use cumulet_cluster::PodStreams;
use cumulet_cluster::streams::ContainerRef;
use serde_json::Value;
use std::sync::Arc;

/// Names the container that commands without `-c` mean.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
const CONTAINER_LISTS: &[&str] = &["containers", "initContainers", "ephemeralContainers"];

/// The pod, or 404.
pub(super) fn read(core: &Core, call: &Call<'_>) -> Result<Value, Status> {
    body::parse(&*core.get(call)?)
}

/// The node's streams, or 503 as long as there is no node.
pub(super) fn streams(core: &Core) -> Result<Arc<dyn PodStreams>, Status> {
    let streams = core.streams.load_full();
    streams.map(|streams| (*streams).clone()).ok_or_else(|| {
        Status::new(StatusReason::ServiceUnavailable, "the node is not ready yet; try again in a moment")
    })
}

/// The container that a request is for: the one it names, the annotated default for exec, or the only one.
pub(super) fn container(pod: &Value, wanted: Option<&str>, default: bool) -> Result<ContainerRef, Status> {
    let name = meta::name(pod);
    let main = names(pod, "containers");
    let annotated = meta::annotations(pod).get(DEFAULT_CONTAINER).and_then(Value::as_str);
    let annotated = annotated.filter(|container| default && main.contains(container));
    let chosen = match wanted {
        Some(wanted) => {
            if !CONTAINER_LISTS.iter().any(|list| names(pod, list).contains(&wanted)) {
                return Err(Status::bad_request(format!("container {wanted} is not valid for pod {name}")));
            }
            wanted
        }
        None => match (annotated, main.as_slice()) {
            (Some(annotated), _) => annotated,
            (None, [only]) => only,
            (None, [first, ..]) if default => first,
            (None, _) => return Err(Status::bad_request(several(pod, &main))),
        },
    };
    Ok(ContainerRef {
        namespace: meta::namespace(pod).to_owned(),
        pod: name.to_owned(),
        uid: meta::uid(pod).to_owned(),
        container: chosen.to_owned(),
    })
}

fn several(pod: &Value, main: &[&str]) -> String {
    let mut text = format!(
        "a container name must be specified for pod {}, choose one of: [{}]",
        meta::name(pod),
        main.join(" ")
    );
    let init = names(pod, "initContainers");
    if !init.is_empty() {
        text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
    }
    text
}

fn names<'a>(pod: &'a Value, list: &str) -> Vec<&'a str> {
    let containers = pod.pointer(&format!("/spec/{list}")).and_then(Value::as_array);
    containers.into_iter().flatten().filter_map(|c| c.get("name").and_then(Value::as_str)).collect()
}

/// The status of a container, wherever it is told.
pub(super) fn container_status<'a>(pod: &'a Value, container: &str) -> Option<&'a Value> {
    ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"].iter().find_map(|list| {
        let statuses = pod.pointer(&format!("/status/{list}")).and_then(Value::as_array)?;
        statuses.iter().find(|s| s.get("name").and_then(Value::as_str) == Some(container))
    })
}

/// 400 for a pod that is on no node.
pub(super) fn must_be_bound(pod: &Value) -> Result<(), Status> {
    let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or("");
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", meta::name(pod))));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn containers() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
        let two = json!({
            "metadata": {"name": "p", "annotations": {DEFAULT_CONTAINER: "b"}},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]},
        });
        let check = |pod: &Value, wanted: Option<&str>, default: bool, want: &str| {
            let got = container(pod, wanted, default).map_or_else(|s| s.message, |c| c.container);
            assert_eq!(got, want);
        };
        check(&one, None, false, "a");
        check(&one, Some("x"), false, "container x is not valid for pod p");
        check(&two, None, true, "b");
        check(&two, Some("i"), false, "i");
        check(
            &two,
            None,
            false,
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]",
        );
    }
}
