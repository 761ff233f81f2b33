//! Objects that every cloud has from its start.
//!
//! Created when they are missing and otherwise left alone. The endpoints of `default/kubernetes` are a controller's
//! business.

use crate::auth::Identity;
use crate::config::{ApiServerConfig, OpenError};
use crate::core::{Call, Core};
use cumulet_api::{meta, storage};
use serde_json::{Value, json};
use std::net::Ipv4Addr;

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];
/// Runtime classes for pods that are virtual machines; the handler has the name of the class.
const RUNTIME_CLASSES: &[&str] = &["vm", "vm-snapshot"];

/// Makes what is missing.
pub(crate) async fn run(core: &Core, config: &ApiServerConfig) -> Result<(), OpenError> {
    for name in NAMESPACES {
        ensure(core, ("", "namespaces"), None, json!({"metadata": {"name": name}})).await?;
    }
    let address = core.services.api_address();
    ensure(core, ("", "services"), Some("default"), api_service(address, config)).await?;
    for name in RUNTIME_CLASSES {
        let class = json!({"metadata": {"name": name}, "handler": name});
        ensure(core, ("node.k8s.io", "runtimeclasses"), None, class).await?;
    }
    for class in storage_classes() {
        ensure(core, ("storage.k8s.io", "storageclasses"), None, class).await?;
    }
    Ok(())
}

/// Directories of this machine for claims that name no class, and disks with a file system of their own.
fn storage_classes() -> [Value; 2] {
    let class = |name: &str, parameters: Value, is_default: &str| {
        json!({
            "metadata": {"name": name, "annotations": {storage::DEFAULT_CLASS: is_default}},
            "provisioner": storage::LOCAL_PROVISIONER, "parameters": parameters,
            "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer",
        })
    };
    [
        class("local", json!({"type": "directory"}), "true"),
        class("local-disk", json!({"type": "disk"}), "false"),
    ]
}

fn api_service(address: Ipv4Addr, config: &ApiServerConfig) -> Value {
    json!({
        "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP", "clusterIP": address.to_string(), "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": config.listen.port()}],
        },
    })
}

/// Creates an object unless there is one of its name.
async fn ensure(
    core: &Core,
    resource: (&str, &str),
    namespace: Option<&str>,
    mut object: Value,
) -> Result<(), OpenError> {
    let name = meta::name(&object).to_owned();
    if core.lookup(resource.0, resource.1, namespace.unwrap_or(""), &name).is_some() {
        return Ok(());
    }
    let user = Identity::component("system:apiserver");
    let Some(call) = call(core, resource, namespace, &name, &user) else { return Ok(()) };
    object["apiVersion"] = call.resource.api_version().into();
    object["kind"] = call.resource.row.kind.into();
    match core.create(&call, object).await {
        Ok(_) => Ok(()),
        Err(status) if status.is_already_exists() => Ok(()),
        Err(source) => Err(OpenError::Bootstrap { object: format!("{}/{name}", resource.1), source }),
    }
}

/// A call on a resource, when it is served.
fn call<'a>(
    core: &'a Core,
    (group, plural): (&str, &str),
    namespace: Option<&'a str>,
    name: &'a str,
    user: &'a Identity,
) -> Option<Call<'a>> {
    let resource = core.registry.resources().find(|r| r.is(group, plural))?;
    Some(Call { resource, namespace, name, user, dry_run: false })
}
