//! What a node is made from.

use std::net::IpAddr;
use std::path::PathBuf;

/// Settings of a node. The binary fills them from its command line and from this machine.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Name of the node object; also its `kubernetes.io/hostname`.
    pub node_name: String,
    /// The cloud's state directory; the node uses `pods/` and `logs/` below it.
    pub state_dir: PathBuf,
    /// This program, run as `exe supervise DIR` for every pod.
    pub exe: PathBuf,
    /// Addresses of this machine, the most important one first; never empty.
    pub host_ips: Vec<IpAddr>,
    /// Range of pod addresses, for the node object.
    pub pod_cidr: String,
    /// Address of the cluster DNS, for `dnsPolicy: ClusterFirst`.
    pub cluster_dns: IpAddr,
    /// DNS domain of the cluster, such as `cluster.local`.
    pub cluster_domain: String,
    /// The host's resolver configuration, normally `/etc/resolv.conf`.
    pub host_resolv_conf: PathBuf,
    /// Address under which pods reach the API server (`KUBERNETES_SERVICE_HOST`) while the `kubernetes` Service does
    /// not exist; the Service wins when it does.
    pub api_host: String,
    /// Its port.
    pub api_port: u16,
    /// Cgroup of this cloud, relative to the root of each hierarchy: `/cumulet-<hash>`.
    pub cgroup: String,
    /// Most pods of this node.
    pub max_pods: u32,
    /// Most bytes that memory snapshots take up on the disk.
    pub snapshot_budget_bytes: u64,
    /// Rotate a container's log file at this size, in bytes.
    pub log_max_bytes: u64,
    /// Keep this many log files per container instance.
    pub log_max_files: u32,
    /// The kernel of virtual machines, as a package or unpacked; the one beside the program when absent.
    pub vm_kernel: Option<PathBuf>,
    /// Version of this program, for `nodeInfo.kubeletVersion`.
    pub version: String,
}

impl NodeConfig {
    /// The settings that have a usual value, for the given essentials.
    pub fn new(node_name: &str, state_dir: PathBuf, exe: PathBuf, host_ip: IpAddr) -> Self {
        Self {
            node_name: node_name.to_owned(),
            state_dir,
            exe,
            host_ips: vec![host_ip],
            pod_cidr: "10.86.0.0/16".into(),
            cluster_dns: IpAddr::from([10, 97, 0, 10]),
            cluster_domain: "cluster.local".into(),
            host_resolv_conf: "/etc/resolv.conf".into(),
            api_host: "10.97.0.1".into(),
            api_port: 443,
            cgroup: "/cumulet".into(),
            max_pods: 250,
            snapshot_budget_bytes: 10 << 30,
            log_max_bytes: 10 << 20,
            log_max_files: 5,
            vm_kernel: None,
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}
