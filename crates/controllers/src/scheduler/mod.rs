//! The scheduler: binds pods to nodes.
//!
//! On a pod's way to its start, so it is driven by events only: a pass takes one pod, decides under a lock without
//! awaiting anything, and posts the binding; many bindings may be in flight. A pod that fits nowhere gets a
//! condition and an event, and is looked at again when a node changes or a pod leaves.

pub(crate) mod fit;
mod usage;
mod volumes;

use crate::context::Context;
use crate::driver::{Doing, Error, Next, Reconciler};
use crate::meta::{self, is_deleting, name, namespace, uid};
use crate::pods::{condition, is_finished, node};
use crate::queue::Queue;
use crate::storage::{self, binder::set_aside};
use bytes::Bytes;
use cumulet_api::storage::SELECTED_NODE;
use cumulet_cluster::events::reference;
use cumulet_cluster::informer::Key;
use cumulet_cluster::{Api, Change, EventRecorder, EventType, PatchKind};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use usage::{Demand, Ledger, Usage};
use volumes::{Claims, Step, Storage};

/// The scheduler's name, in `spec.schedulerName` and in events.
const SCHEDULER: &str = "default-scheduler";

/// The controller.
pub(crate) struct Scheduler {
    ctx: Arc<Context>,
    api: Api<Pod>,
    volumes: Api<PersistentVolume>,
    claims: Api<PersistentVolumeClaim>,
    recorder: EventRecorder,
    state: Arc<Mutex<State>>,
}

/// Derived from the pod cache; see [`Ledger`].
#[derive(Default)]
struct State {
    ledger: Ledger,
    /// Pods that fitted nowhere when they were last looked at.
    waiting: HashSet<Key>,
}

/// What was decided about a pod.
enum Decision {
    Bind(String),
    /// Something is to be done for its claims first; it is looked at again when they have changed.
    Prepare(String, Vec<Step>),
    Refuse(String),
}

impl Scheduler {
    pub(crate) fn new(ctx: &Arc<Context>, queue: &Arc<Queue<Key>>) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        observe(ctx, queue, &state);
        Self {
            ctx: ctx.clone(),
            api: Api::new(ctx.cluster.clone()),
            volumes: Api::new(ctx.cluster.clone()),
            claims: Api::new(ctx.cluster.clone()),
            recorder: ctx.recorder(SCHEDULER),
            state,
        }
    }

    /// Chooses a node and enters the pod there, or says why there is none. `None` when it has its place already.
    fn decide(&self, pod: &Pod, key: &Key) -> Option<Decision> {
        let (demand, nodes, empty) = (Demand::of(pod), self.ctx.informers.nodes.list(), Usage::default());
        let mut state = lock(&self.state);
        if state.ledger.holds(uid(&pod.metadata)) {
            return None;
        }
        // Read under the lock: whoever changes a claim afterwards finds the pod among those that wait.
        let (claims, conflict) = match self.claims_of(pod) {
            Ok(found) => found,
            Err(why) => {
                state.waiting.insert(key.clone());
                return Some(Decision::Refuse(fit::unresolvable_message(nodes.len(), &why)));
            }
        };
        let mut reasons = BTreeMap::new();
        let mut best: Option<(i64, &str)> = None;
        for node in &nodes {
            let node_name = name(&node.metadata);
            let usage = state.ledger.of(node_name).unwrap_or(&empty);
            let mut misfits = fit::misfits(pod, &demand, node, usage);
            misfits.extend(claims.misfit(node).or(conflict).map(str::to_owned));
            if misfits.is_empty() {
                best = Some(best.map_or((usage.pods(), node_name), |b| b.min((usage.pods(), node_name))));
            }
            for reason in misfits {
                *reasons.entry(reason).or_insert(0) += 1;
            }
        }
        let chosen = best.and_then(|(_, best)| nodes.iter().find(|node| name(&node.metadata) == best));
        let steps = chosen.map(|node| claims.steps(node)).unwrap_or_default();
        Some(match best {
            Some((_, node)) if !steps.is_empty() => {
                state.waiting.insert(key.clone());
                Decision::Prepare(node.to_owned(), steps)
            }
            Some((_, node)) => {
                state.ledger.enter(uid(&pod.metadata), node, demand);
                state.waiting.remove(key);
                Decision::Bind(node.to_owned())
            }
            None => {
                state.waiting.insert(key.clone());
                Decision::Refuse(fit::unschedulable_message(nodes.len(), &reasons))
            }
        })
    }

    /// What the pod's claims ask for, and whether another pod has one that only one may have.
    fn claims_of(&self, pod: &Pod) -> Result<(Claims, Option<&'static str>), String> {
        let (informers, ns) = (&self.ctx.informers, namespace(&pod.metadata));
        let storage = Storage {
            claim: &|claim| informers.claims.get(ns, claim),
            volumes: &|| informers.volumes.list(),
            class: &|class| informers.storage_classes.get("", class),
            pods: &|| informers.pods.list_namespace(ns),
        };
        Ok((Claims::of(pod, &storage)?, volumes::exclusive_conflict(pod, &storage)))
    }

    /// Does for the pod's claims what has to come before the pod.
    async fn prepare(&self, node: &str, steps: Vec<Step>) -> Result<(), Error> {
        for step in steps {
            match step {
                Step::Wait => {}
                Step::SetAside(volume, claim) => {
                    let reserved = set_aside(&volume, &claim, storage::claim_ref(&volume).is_none());
                    let doing = || format!("setting aside volume {}", name(&volume.metadata));
                    self.volumes.update(&reserved).await.doing(doing)?;
                }
                Step::SelectNode(claim) => {
                    let mut told = (*claim).clone();
                    let annotations = told.metadata.annotations.get_or_insert_default();
                    annotations.insert(SELECTED_NODE.to_owned(), node.to_owned());
                    let doing = || format!("selecting a node for claim {}", name(&claim.metadata));
                    self.claims.update(&told).await.doing(doing)?;
                }
            }
        }
        Ok(())
    }

    async fn bind(&self, pod: &Pod, node: &str) -> Result<(), Error> {
        let (ns, pod_name) = (namespace(&pod.metadata), name(&pod.metadata));
        let binding = serde_json::json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": {"name": pod_name, "namespace": ns, "uid": pod.metadata.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let at = self.api.at(ns, pod_name);
        match self.ctx.cluster.create_sub(&at, "binding", Bytes::from(binding.to_string())).await {
            Ok(_) => {
                let message = format!("Successfully assigned {ns}/{pod_name} to {node}");
                self.recorder.event(&reference(pod), EventType::Normal, "Scheduled", &message);
                Ok(())
            }
            Err(error) => {
                lock(&self.state).ledger.leave(uid(&pod.metadata));
                if error.is_not_found() {
                    return Ok(());
                }
                Err(error).doing(|| format!("binding pod {ns}/{pod_name}"))
            }
        }
    }

    async fn refuse(&self, pod: &Pod, message: &str) -> Result<(), Error> {
        let known = condition(pod, "PodScheduled");
        if known.is_some_and(|c| c.status == "False" && c.message.as_deref() == Some(message)) {
            return Ok(());
        }
        self.recorder.event(&reference(pod), EventType::Warning, "FailedScheduling", message);
        let since = known.filter(|c| c.status == "False").and_then(|c| c.last_transition_time.clone());
        let patch = serde_json::json!({"status": {"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastTransitionTime": since.unwrap_or_else(meta::now), "lastProbeTime": null,
            "observedGeneration": pod.metadata.generation,
        }]}});
        let (ns, pod_name) = (namespace(&pod.metadata), name(&pod.metadata));
        match self.api.patch(ns, pod_name, Some("status"), PatchKind::Strategic, &patch).await {
            Err(error) if !error.is_not_found() => {
                Err(error).doing(|| format!("condition of pod {ns}/{pod_name}"))
            }
            _ => Ok(()),
        }
    }
}

impl Reconciler for Scheduler {
    type Key = Key;

    fn name(&self) -> &'static str {
        SCHEDULER
    }

    fn keys(&self) -> Vec<Key> {
        self.ctx
            .informers
            .pods
            .list()
            .iter()
            .filter(|pod| is_pending(pod))
            .map(|pod| meta::key(&pod.metadata))
            .collect()
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let pod = self.ctx.informers.pods.get(&key.0, &key.1).filter(|pod| is_pending(pod));
        let Some(pod) = pod else {
            lock(&self.state).waiting.remove(key);
            return Ok(Next::Done);
        };
        match self.decide(&pod, key) {
            None => {}
            Some(Decision::Bind(node)) => self.bind(&pod, &node).await?,
            Some(Decision::Prepare(node, steps)) => self.prepare(&node, steps).await?,
            Some(Decision::Refuse(message)) => self.refuse(&pod, &message).await?,
        }
        Ok(Next::Done)
    }
}

/// True for a pod that waits for this scheduler.
fn is_pending(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let ours = spec.and_then(|s| s.scheduler_name.as_deref()).is_none_or(|s| s.is_empty() || s == SCHEDULER);
    let gated = spec.and_then(|s| s.scheduling_gates.as_ref()).is_some_and(|gates| !gates.is_empty());
    ours && !gated && node(pod).is_none() && !is_finished(pod) && !is_deleting(&pod.metadata)
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn observe(ctx: &Arc<Context>, queue: &Arc<Queue<Key>>, state: &Arc<Mutex<State>>) {
    let (q, s) = (queue.clone(), state.clone());
    ctx.informers.pods.observe(move |change| observe_pod(change, &q, &s));
    let (q, s) = (queue.clone(), state.clone());
    ctx.informers.nodes.observe(move |change| {
        if matters(change) {
            retry(&q, &mut lock(&s));
        }
    });
    let (q, s) = (queue.clone(), state.clone());
    ctx.informers.claims.observe(move |_| retry(&q, &mut lock(&s)));
    let (q, s) = (queue.clone(), state.clone());
    ctx.informers.volumes.observe(move |_| retry(&q, &mut lock(&s)));
    let (q, s) = (queue.clone(), state.clone());
    ctx.informers.storage_classes.observe(move |_| retry(&q, &mut lock(&s)));
}

fn observe_pod(change: &Change<Pod>, queue: &Queue<Key>, state: &Mutex<State>) {
    // A pod replaced under the same name between two lists: the old one is gone.
    let (old_uid, new_uid) =
        (change.old.as_ref().map(|p| uid(&p.metadata)), change.new.as_ref().map(|p| uid(&p.metadata)));
    let mut state = lock(state);
    let mut room = false;
    if let Some(gone) = old_uid.filter(|old| new_uid != Some(*old)) {
        room |= state.ledger.leave(gone);
    }
    if let Some(pod) = &change.new {
        match node(pod) {
            Some(_) if is_finished(pod) => room |= state.ledger.leave(uid(&pod.metadata)),
            Some(node) => state.ledger.enter(uid(&pod.metadata), node, Demand::of(pod)),
            None if is_pending(pod) => queue.add(meta::key(&pod.metadata)),
            None => {}
        }
    }
    if room {
        retry(queue, &mut state);
    }
}

/// Looks again at every pod that fitted nowhere.
fn retry(queue: &Queue<Key>, state: &mut State) {
    state.waiting.drain().for_each(|key| queue.add(key));
}

/// True when a node changed in something that decides where pods fit. Heartbeats do not.
fn matters(change: &Change<Node>) -> bool {
    let (Some(old), Some(new)) = (&change.old, &change.new) else { return true };
    let of = |node: &Node| {
        let allocatable = node.status.as_ref().and_then(|s| s.allocatable.clone());
        (node.metadata.labels.clone(), node.spec.clone(), allocatable)
    };
    of(old) != of(new)
}
