//! What an earlier process left: pods that run, pods whose supervisor died, and directories that belong to nobody.

use super::Shared;
use super::sandbox::{blocking, ended_of, moment};
use crate::dirs::{PodDirs, remove_dir};
use crate::supervisor::Supervisor;
use crate::supervisor::client::finish;
use crate::supervisor::files::{self, State};
use crate::supervisor::proto::{Event, Instance, InstanceState, PodNetwork, Request, SandboxSpec, VmMemory};
use crate::vm::Kind;
use cumulet_podlife::{Found, FoundContainer};
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::mpsc;

/// A pod as it was found.
#[derive(Default)]
pub(super) struct FoundPod {
    pub(super) found: Found,
    pub(super) supervisor: Option<Arc<Supervisor>>,
    /// Events after the snapshot that `found` was made from.
    pub(super) events: Option<mpsc::Receiver<Event>>,
    pub(super) address: Option<Ipv4Addr>,
    pub(super) ips: Vec<String>,
    /// What it runs in, when its supervisor lives.
    pub(super) kind: Option<Kind>,
    /// Its cgroup, when that is not the one of its uid.
    pub(super) cgroup: Option<String>,
    /// The template that its machine was started from; it may not have taken on its identity yet.
    pub(super) template: Option<String>,
    /// It was to become a template, and may stand still for that.
    pub(super) builds: bool,
}

/// Looks at every pod's directory. Gives every pod of the API with what was found of it, and removes the rest.
pub(super) async fn survey(shared: &Arc<Shared>, pods: &[Arc<Pod>]) -> Vec<(Arc<Pod>, FoundPod)> {
    let uid = |pod: &Arc<Pod>| pod.metadata.uid.clone().unwrap_or_default();
    let mut wanted: HashMap<String, Arc<Pod>> = pods.iter().map(|pod| (uid(pod), pod.clone())).collect();
    let entries = std::fs::read_dir(shared.dirs.pods()).into_iter().flatten().filter_map(Result::ok);
    let known: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let found = join_all(known.iter().map(|uid| inspect(shared, uid))).await;
    let mut result = Vec::new();
    let mut addresses = HashSet::new();
    for (uid, found) in known.into_iter().zip(found) {
        match wanted.remove(&uid) {
            Some(pod) => {
                addresses.extend(found.address);
                result.push((pod, found));
            }
            None => discard(shared, &uid, found).await,
        }
    }
    for address in &addresses {
        shared.network.addresses().reserve(*address);
    }
    let network = shared.network.clone();
    if let Err(error) = blocking(move || network.sweep(&addresses).map_err(|e| e.to_string())).await {
        tracing::warn!(error, "links of earlier pods are left");
    }
    remove_stale_logs(shared, pods);
    result.extend(wanted.into_values().map(|pod| (pod, FoundPod::default())));
    result
}

async fn inspect(shared: &Shared, uid: &str) -> FoundPod {
    let dir = shared.dirs.pods().join(uid);
    let sandbox = sandbox_of(&dir);
    let cgroup = sandbox.as_ref().map(|s| s.cgroup.clone());
    if let Ok(supervisor) = Supervisor::connect(&dir).await {
        let mut events = supervisor.events();
        if let Some(Event::Snapshot { network, containers, .. }) = events.recv().await {
            // The process before this one ended between the supervisor's start and its network.
            let half_made = network.is_none() && sandbox.as_ref().is_some_and(|s| !s.host_network);
            if !half_made {
                let address = network.as_ref().and_then(address_of);
                let host =
                    shared.config.host_ips.first().filter(|_| network.is_none()).map(ToString::to_string);
                let ips: Vec<String> = address.map(|a| a.to_string()).or(host).into_iter().collect();
                return FoundPod {
                    found: Found::Running { ips: ips.clone(), containers: containers_of(containers) },
                    supervisor: Some(Arc::new(supervisor)),
                    events: Some(events),
                    address,
                    ips,
                    template: sandbox.as_ref().and_then(template_of),
                    builds: sandbox.as_ref().and_then(memory_of) == Some(&VmMemory::Template),
                    kind: sandbox.map(|s| kind_of(&s)),
                    cgroup,
                };
            }
            if let Err(error) = supervisor.request(Request::Shutdown).await {
                tracing::warn!(uid, %error, "a half-made sandbox did not shut down");
            }
        }
    }
    let state = State::load(&dir).unwrap_or_default();
    let address = state.network.as_ref().and_then(address_of);
    // Of a dead supervisor's containers only those that had ended are known; the others died with it.
    let containers = containers_of(state.containers).into_iter().filter(|c| c.state.is_err()).collect();
    FoundPod { found: Found::Dead { containers }, address, cgroup, ..FoundPod::default() }
}

/// What the pod of a directory was made as.
fn sandbox_of(dir: &Path) -> Option<SandboxSpec> {
    files::read_json(&dir.join(files::SANDBOX)).ok()
}

fn kind_of(sandbox: &SandboxSpec) -> Kind {
    match &sandbox.vm {
        // What was booted keeps its overhead.
        Some(vm) => Kind::Machine { overhead: BTreeMap::new(), snapshot: vm.memory != VmMemory::Own },
        None => Kind::Container,
    }
}

fn memory_of(sandbox: &SandboxSpec) -> Option<&VmMemory> {
    sandbox.vm.as_ref().map(|vm| &vm.memory)
}

/// The key of the template, which the name of its state begins with.
fn template_of(sandbox: &SandboxSpec) -> Option<String> {
    let Some(VmMemory::Clone { state, .. }) = memory_of(sandbox) else { return None };
    Some(state.file_name()?.to_str()?.split('.').next()?.to_owned())
}

fn address_of(network: &PodNetwork) -> Option<Ipv4Addr> {
    network.address.split('/').next()?.parse().ok()
}

fn containers_of(containers: BTreeMap<String, Instance>) -> Vec<FoundContainer> {
    let one = |(name, instance): (String, Instance)| FoundContainer {
        name,
        attempt: instance.attempt,
        id: instance.id,
        state: match instance.state {
            InstanceState::Running { started_at_us, .. } => Ok(moment(started_at_us)),
            InstanceState::Ended(ended) => Err(ended_of(ended)),
        },
        previous: instance.previous.map(|ended| ended_of(*ended)),
    };
    containers.into_iter().map(one).collect()
}

/// Removes a pod that the API does not know any more.
async fn discard(shared: &Arc<Shared>, uid: &str, found: FoundPod) {
    if let Some(supervisor) = &found.supervisor
        && let Err(error) = supervisor.request(Request::Shutdown).await
    {
        tracing::warn!(uid, %error, "the supervisor of a deleted pod did not shut down");
    }
    let (node, id, address) = (shared.clone(), uid.to_owned(), found.address);
    let cgroup = found.cgroup.unwrap_or_else(|| format!("{}/pod{uid}", shared.config.cgroup));
    let removed = blocking(move || {
        let root = node.dirs.pods().join(&id);
        let dirs = PodDirs { logs: root.clone(), root };
        if let Some(address) = address {
            node.network.detach(address).map_err(|e| e.to_string())?;
        }
        finish(&dirs.root, &cgroup).map_err(|e| e.message)?;
        crate::volumes::unmount(&dirs).map_err(|e| e.to_string())?;
        remove_dir(&dirs.root).map_err(|e| e.to_string())
    });
    if let Err(error) = removed.await {
        tracing::warn!(uid, error, "a deleted pod left something behind");
    }
}

fn remove_stale_logs(shared: &Shared, pods: &[Arc<Pod>]) {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let log_dir = |pod: &Arc<Pod>| {
        let meta = &pod.metadata;
        shared
            .dirs
            .pod(&text(&meta.namespace), &text(&meta.name), &text(&meta.uid))
            .map(|dirs| dirs.logs)
            .ok()
    };
    let known: HashSet<_> = pods.iter().filter_map(log_dir).collect();
    for entry in std::fs::read_dir(shared.dirs.logs()).into_iter().flatten().filter_map(Result::ok) {
        if !known.contains(&entry.path())
            && let Err(error) = remove_dir(&entry.path())
        {
            tracing::warn!(dir = %entry.path().display(), %error, "logs of a deleted pod are left");
        }
    }
}
