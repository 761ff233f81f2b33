//! The node object and its lease: that this machine exists, what it has, and that it is alive.

use crate::config::NodeConfig;
use cumulet_api::Status;
use cumulet_cluster::{Api, Cluster, PatchKind};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};
use std::fs;
use std::sync::Arc;
use std::time::Duration;

/// The kubelet's intervals: it renews its lease every 10 s, and its status at the latest every 5 minutes.
const LEASE_EVERY: Duration = Duration::from_secs(10);
const STATUS_EVERY_LEASES: u32 = 30;
const LEASE_SECONDS: i32 = 40;
/// Pause before a failed registration is tried again.
const RETRY: Duration = Duration::from_millis(200);
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// What this machine has.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) cpus: i64,
    pub(crate) memory_bytes: i64,
    kernel: String,
    os_image: String,
    machine_id: String,
    boot_id: String,
}

impl Machine {
    pub(crate) fn read() -> Self {
        let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let meminfo = line("/proc/meminfo");
        let kib = meminfo
            .lines()
            .find_map(|l| l.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<i64>().ok());
        let os_release = line("/etc/os-release");
        let pretty = os_release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
        Self {
            cpus: std::thread::available_parallelism().map_or(1, |n| i64::try_from(n.get()).unwrap_or(1)),
            memory_bytes: kib.unwrap_or_default() * 1024,
            kernel: line("/proc/sys/kernel/osrelease"),
            os_image: pretty.unwrap_or("Linux").trim_matches('"').to_owned(),
            machine_id: line("/etc/machine-id"),
            boot_id: line("/proc/sys/kernel/random/boot_id"),
        }
    }
}

/// Registers the node, calls `ready`, and keeps object and lease fresh. Never returns.
pub(crate) async fn run(cluster: Arc<dyn Cluster>, config: &NodeConfig, machine: &Machine, ready: impl Fn()) {
    let nodes = Api::<Node>::new(cluster.clone());
    let leases = Api::<Lease>::new(cluster);
    while let Err(error) = register(&nodes, config, machine).await {
        tracing::warn!(node = config.node_name, %error, "cannot register the node; trying again");
        tokio::time::sleep(RETRY).await;
    }
    ready();
    let mut ticks = tokio::time::interval(LEASE_EVERY);
    let mut count = 0;
    loop {
        ticks.tick().await;
        if let Err(error) = renew(&leases, &config.node_name).await {
            tracing::warn!(node = config.node_name, %error, "cannot renew the lease");
        }
        count += 1;
        if count % STATUS_EVERY_LEASES == 0
            && let Err(error) = register(&nodes, config, machine).await
        {
            tracing::warn!(node = config.node_name, %error, "cannot update the node's status");
        }
    }
}

/// Makes the node object if need be, and writes its status.
async fn register(nodes: &Api<Node>, config: &NodeConfig, machine: &Machine) -> Result<(), Status> {
    let labels = json!({
        "kubernetes.io/hostname": config.node_name, "kubernetes.io/os": "linux", "kubernetes.io/arch": arch(),
        "beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": arch(),
        "node-role.kubernetes.io/control-plane": "",
    });
    let spec = json!({"podCIDR": config.pod_cidr, "podCIDRs": [config.pod_cidr]});
    match nodes.get("", &config.node_name).await {
        Ok(_) => {
            let patch = json!({"metadata": {"labels": labels}});
            nodes.patch("", &config.node_name, None, PatchKind::Merge, &patch).await?;
        }
        Err(error) if error.is_not_found() => {
            let object = json!({"metadata": {"name": config.node_name, "labels": labels}, "spec": spec});
            let node: Node = serde_json::from_value(object).map_err(Status::internal)?;
            nodes.create(&node).await?;
        }
        Err(error) => return Err(error),
    }
    let known = nodes.get("", &config.node_name).await?;
    let known = serde_json::to_value(&known.status).unwrap_or_default();
    let patch = json!({"status": status(config, machine, &known)});
    nodes.patch("", &config.node_name, Some("status"), PatchKind::Merge, &patch).await?;
    Ok(())
}

fn status(config: &NodeConfig, machine: &Machine, known: &Value) -> Value {
    let disk = nix::sys::statvfs::statvfs(&config.state_dir).map_or(0, |s| s.blocks() * s.fragment_size());
    let capacity = json!({
        "cpu": machine.cpus.to_string(), "memory": format!("{}Ki", machine.memory_bytes / 1024),
        "pods": config.max_pods.to_string(), "ephemeral-storage": format!("{}Ki", disk / 1024),
    });
    let mut addresses: Vec<Value> =
        config.host_ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip.to_string()})).collect();
    addresses.push(json!({"type": "Hostname", "address": config.node_name}));
    json!({
        "capacity": capacity,
        "allocatable": capacity,
        "addresses": addresses,
        "conditions": conditions(known),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
        "nodeInfo": {
            "machineID": machine.machine_id, "systemUUID": machine.machine_id, "bootID": machine.boot_id,
            "kernelVersion": machine.kernel, "osImage": machine.os_image, "operatingSystem": "linux",
            "architecture": arch(), "containerRuntimeVersion": format!("cumulet://{}", config.version),
            "kubeletVersion": format!("v{}", config.version), "kubeProxyVersion": "",
        },
    })
}

fn conditions(known: &Value) -> Vec<Value> {
    let now = cumulet_api::meta::time(Timestamp::now());
    let wanted = [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ];
    let one = |(kind, status, reason, message): (&str, &str, &str, &str)| {
        let before = known["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == kind);
        let since = before.filter(|c| c["status"] == status).and_then(|c| c["lastTransitionTime"].as_str());
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": since.unwrap_or(&now),
        })
    };
    wanted.into_iter().map(one).collect()
}

async fn renew(leases: &Api<Lease>, node: &str) -> Result<(), Status> {
    let now = cumulet_api::meta::micro_time(Timestamp::now());
    let spec = json!({"holderIdentity": node, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now});
    let patched = leases.patch(LEASE_NAMESPACE, node, None, PatchKind::Merge, &json!({"spec": spec})).await;
    match patched {
        Err(error) if error.is_not_found() => {
            let object = json!({"metadata": {"name": node, "namespace": LEASE_NAMESPACE}, "spec": spec});
            let lease: Lease = serde_json::from_value(object).map_err(Status::internal)?;
            leases.create(&lease).await.map(drop)
        }
        other => other.map(drop),
    }
}

/// The architecture as Go and OCI call it.
fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
