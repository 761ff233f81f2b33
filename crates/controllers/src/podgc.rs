//! Pods that nobody ends: bound to a node that does not exist, or going without ever having been bound; and finished
//! pods beyond a threshold.

use crate::context::Context;
use crate::driver::{Doing, Error, Next, Reconciler};
use crate::meta::{is_deleting, name, namespace};
use crate::pods::{is_finished, node};
use crate::queue::Queue;
use cumulet_cluster::{Api, DeleteOptions};
use k8s_openapi::api::core::v1::{Node, Pod};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Finished pods that are kept, as in Kubernetes.
const FINISHED_MAX: usize = 12_500;
/// How long a node must be missing before its pods go: it may be about to register again.
const QUARANTINE: Duration = Duration::from_secs(40);

/// The controller. It has one key.
pub(crate) struct PodGc {
    ctx: Arc<Context>,
    pods: Api<Pod>,
    nodes: Api<Node>,
    /// Since when nodes that pods name have been missing. Losing it only prolongs the quarantine.
    missing: Mutex<HashMap<String, Instant>>,
}

impl PodGc {
    pub(crate) fn new(ctx: &Arc<Context>, queue: &Arc<Queue<()>>) -> Self {
        let q = queue.clone();
        ctx.informers.nodes.observe(move |change| {
            if change.new.is_none() {
                q.add(());
            }
        });
        let (pods, nodes) = (Api::new(ctx.cluster.clone()), Api::new(ctx.cluster.clone()));
        Self { ctx: ctx.clone(), pods, nodes, missing: Mutex::new(HashMap::new()) }
    }

    /// Nodes that have been missing for long enough, and when to look again at the others.
    fn overdue(&self, pods: &[Arc<Pod>]) -> (HashSet<String>, Next) {
        let nodes = &self.ctx.informers.nodes;
        let named: HashSet<&str> = pods.iter().filter_map(|pod| node(pod)).collect();
        let absent: HashSet<&str> = named.into_iter().filter(|n| nodes.get("", n).is_none()).collect();
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.retain(|n, _| absent.contains(n.as_str()));
        let (mut overdue, mut next) = (HashSet::new(), Next::Done);
        for name in absent {
            let left = QUARANTINE
                .saturating_sub(missing.entry(name.to_owned()).or_insert_with(Instant::now).elapsed());
            if left.is_zero() {
                overdue.insert(name.to_owned());
            } else {
                next = next.sooner(Next::After(left));
            }
        }
        (overdue, next)
    }

    async fn force_delete(&self, pod: &Pod) -> Result<(), Error> {
        let (ns, pod_name) = (namespace(&pod.metadata), name(&pod.metadata));
        let uid = pod.metadata.uid.clone();
        let options = DeleteOptions { grace_period_seconds: Some(0), uid, ..DeleteOptions::default() };
        match self.pods.delete(ns, pod_name, &options).await {
            Err(error) if !error.is_not_found() => {
                Err(error).doing(|| format!("removing pod {ns}/{pod_name}"))
            }
            _ => Ok(()),
        }
    }
}

impl Reconciler for PodGc {
    type Key = ();

    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn keys(&self) -> Vec<()> {
        vec![()]
    }

    async fn reconcile(&self, (): &()) -> Result<Next, Error> {
        let pods = self.ctx.informers.pods.list();
        let (overdue, next) = self.overdue(&pods);
        let mut gone = HashSet::new();
        for name in overdue {
            // The cache may be behind.
            match self.nodes.get("", &name).await {
                Err(error) if error.is_not_found() => drop(gone.insert(name)),
                other => drop(other.doing(|| format!("looking for node {name}"))?),
            }
        }
        for pod in victims(&pods, &gone, FINISHED_MAX) {
            self.force_delete(pod).await?;
        }
        Ok(next)
    }
}

/// The pods that nobody else will remove.
fn victims<'a>(pods: &'a [Arc<Pod>], gone_nodes: &HashSet<String>, finished_max: usize) -> Vec<&'a Arc<Pod>> {
    let mut victims: Vec<&Arc<Pod>> = pods
        .iter()
        .filter(|pod| match node(pod) {
            Some(node) => gone_nodes.contains(node),
            None => is_deleting(&pod.metadata),
        })
        .collect();
    let mut finished: Vec<&Arc<Pod>> = pods.iter().filter(|pod| is_finished(pod)).collect();
    finished.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|t| t.0));
    let surplus = finished.len().saturating_sub(finished_max);
    for pod in finished.into_iter().take(surplus) {
        if !victims.iter().any(|v| Arc::ptr_eq(v, pod)) {
            victims.push(pod);
        }
    }
    victims
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn who_goes() {
        let pod = |name: &str, node: Option<&str>, phase: &str, deleting: bool| -> Arc<Pod> {
            let deleted = deleting.then_some("2026-01-01T00:00:00Z");
            let object = json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "deletionTimestamp": deleted, "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase}});
            Arc::new(serde_json::from_value(object).expect("a pod"))
        };
        let pods = [
            pod("runs", Some("n"), "Running", false),
            pod("lost", Some("gone"), "Running", false),
            pod("unbound", None, "Pending", false),
            pod("unbound-going", None, "Pending", true),
            pod("done-1", Some("n"), "Succeeded", false),
            pod("done-2", Some("n"), "Failed", false),
            pod("done-lost", Some("gone"), "Failed", false),
        ];
        let gone = HashSet::from(["gone".to_owned()]);
        for (max, expected) in [
            (9, vec!["lost", "unbound-going", "done-lost"]),
            (2, vec!["lost", "unbound-going", "done-lost", "done-1"]),
        ] {
            let names: Vec<_> = victims(&pods, &gone, max).iter().map(|p| name(&p.metadata)).collect();
            assert_eq!(names, expected);
        }
    }
}
