//! Pods and templates: how a pod of class `vm-snapshot` starts, and how the first one becomes the template.
//!
//! ```text
//!   way ─► Boot | Build | Clone            Build: boots, is Ready, but the gate keeps that to itself ─► warm-up
//!                                                 ─► SaveTemplate ─► sealed ─► Continue ─► gate opens, Ready is told
//! ```
//!
//! A template is only a shortcut: whatever goes wrong with it, the pod boots instead and an event says why.

mod checkpoint;
mod gate;
mod identity;

pub(super) use gate::{Gate, abandon, go_on, publish};
pub(super) use identity::{identity, restored};

use super::machine::Parts;
use super::sandbox::{self, First, Ordered, blocking};
use super::standby;
use super::task::PodContext;
use crate::inputs::ObjectSet;
use crate::metrics::Start;
use crate::snapshots::{self, ANNOTATIONS, Answer, Entry, Hot, Origin, Pattern, Unusable};
use crate::supervisor::proto::{VmMemory, VmSpec};
use crate::vm::text;
use crate::volumes::etc::Hostname;
use cumulet_cluster::events::{EventType, reference};
use cumulet_snapshot_format::Compatibility;
use gate::Building;
use k8s_openapi::api::core::v1::Pod;
use std::fs::File;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long pods wait for the one that builds before they boot themselves.
const BUILD_WAIT: Duration = Duration::from_secs(600);

/// How a machine starts.
pub(super) enum Way {
    /// It boots.
    Boot,
    /// It boots in memory that becomes a template's.
    Build(File),
    /// From a template.
    Clone(Clone),
}

/// A template to start from.
pub(super) struct Clone {
    entry: Arc<Entry>,
    hot: Arc<Hot>,
    /// The pod starts from this or not at all.
    required: bool,
}

impl Clone {
    /// Whether the pod boots when it cannot start from the template.
    pub(super) fn or_boot(&self) -> bool {
        !self.required
    }
}

impl Way {
    pub(super) fn memory(&self) -> VmMemory {
        match self {
            Self::Boot => VmMemory::Own,
            Self::Build(_) => VmMemory::Template,
            Self::Clone(Clone { hot, .. }) => {
                VmMemory::Clone { state: hot.state.clone(), notes: hot.notes.clone() }
            }
        }
    }

    pub(super) fn file(&self) -> Option<&File> {
        match self {
            Self::Boot => None,
            Self::Build(memory) => Some(memory),
            Self::Clone(Clone { hot, .. }) => Some(&hot.memory),
        }
    }
}

fn event(context: &PodContext, kind: EventType, reason: &'static str, message: &str) {
    context.shared.recorder.event(&reference(&*context.pod()), kind, reason, message);
}

/// Finds out how the pod's machine starts; waits while another pod becomes the template.
pub(super) async fn way(
    context: &Arc<PodContext>,
    pod: &Arc<Pod>,
    ordered: &Ordered<'_>,
) -> Result<Way, String> {
    if let Some(why) = snapshots::unsuitable(pod) {
        return Ok(boot(context, "ColdBoot", &format!("The machine boots without a snapshot: {why}")));
    }
    let draft = ordered.parts.spec(context, pod, Ipv4Addr::UNSPECIFIED, ordered.overhead);
    if draft.disk.is_some() {
        let message = "The machine boots without a snapshot: it starts from a disk of its own";
        return Ok(boot(context, "ColdBoot", message));
    }
    let (key, compatibility, _) = described(context, pod, &draft, &ordered.parts).await?;
    if let Some(name) = checkpoint::wanted(pod) {
        return checkpoint::way(context, pod, &name, (key, &compatibility)).await;
    }
    let entry = context.shared.templates.entry(&key);
    let until = Instant::now() + BUILD_WAIT;
    let mut told = false;
    loop {
        let (shared, known) = (context.shared.clone(), entry.clone());
        blocking(move || {
            shared.templates.look(&known);
            Ok(())
        })
        .await?;
        let (answer, mut changed) = entry.ask(&context.uid);
        match answer {
            Answer::Use => match hot(context, &entry, &compatibility).await {
                Ok(hot) => return Ok(Way::Clone(Clone { entry, hot, required: false })),
                Err(Unusable::Ever(why)) => {
                    let (shared, from) = (context.shared.clone(), entry.clone());
                    // The look of the next round finds that it is gone.
                    blocking(move || {
                        shared.templates.discard(&from);
                        Ok(())
                    })
                    .await?;
                    let message = format!("Snapshot {} is removed: {why}", entry.short());
                    event(context, EventType::Warning, "SnapshotUnavailable", &message);
                }
                // The next answer is to boot.
                Err(Unusable::Now(why)) => entry.failed(why),
            },
            Answer::Build => {
                let origin = origin(pod);
                return build(context, entry, draft, (origin, compatibility));
            }
            Answer::Wait(_) => {
                if !std::mem::replace(&mut told, true) {
                    let message =
                        format!("Waiting for snapshot {}, which another pod becomes", entry.short());
                    event(context, EventType::Normal, "BuildingSnapshot", &message);
                }
                if tokio::time::timeout_at(until.into(), changed.changed()).await.is_err() {
                    let message = format!(
                        "Snapshot {} was not there after {} s: the machine boots",
                        entry.short(),
                        BUILD_WAIT.as_secs()
                    );
                    return Ok(boot(context, "SnapshotUnavailable", &message));
                }
            }
            Answer::Boot(reason) => {
                let message =
                    format!("Snapshot {} cannot be used, the machine boots: {reason}", entry.short());
                return Ok(boot(context, "SnapshotUnavailable", &message));
            }
        }
    }
}

/// The pod's key, what its machine is, and the objects that it refers to.
async fn described(
    context: &Arc<PodContext>,
    pod: &Pod,
    draft: &VmSpec,
    made_with: &Parts,
) -> Result<(String, Compatibility, ObjectSet), String> {
    let objects = context.shared.inputs.collect(pod).await;
    let images = context.live().images.clone();
    let parts = snapshots::parts(pod, draft, &images, &context.facts(), &objects)?;
    let compatibility = snapshots::compatibility(draft, &made_with.host().kernel_name);
    Ok((snapshots::digest(&parts), compatibility, objects))
}

/// The pod boots like any other machine.
fn boot(context: &PodContext, reason: &'static str, message: &str) -> Way {
    let kind = if reason == "ColdBoot" { EventType::Normal } else { EventType::Warning };
    event(context, kind, reason, message);
    context.shared.metrics.started(Start::Booted);
    Way::Boot
}

/// The template in memory; read from the disk, by one pod for all that want it, when it is not there.
async fn hot(
    context: &Arc<PodContext>,
    entry: &Arc<Entry>,
    here: &Compatibility,
) -> Result<Arc<Hot>, Unusable> {
    let _one = entry.loading.lock().await;
    if let Some(hot) = entry.hot() {
        return Ok(hot);
    }
    let (shared, from, here) = (context.shared.clone(), entry.clone(), here.clone());
    let loaded = blocking(move || Ok(shared.templates.load(&from, &here)));
    let hot = loaded.await.map_err(Unusable::Now)??;
    entry.loaded(hot.clone());
    Ok(hot)
}

/// What the pod's template is said to be made of.
fn origin(pod: &Pod) -> Origin {
    let meta = &pod.metadata;
    let owner = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let spec = pod.spec.iter();
    let mut images: Vec<String> = spec
        .flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers))
        .filter_map(|c| c.image.clone())
        .collect();
    images.dedup();
    Origin {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: owner.map_or_else(|| meta.name.clone().unwrap_or_default(), |owner| owner.name.clone()),
        images,
    }
}

fn build(
    context: &PodContext,
    entry: Arc<Entry>,
    vm: VmSpec,
    kept_as: (Origin, Compatibility),
) -> Result<Way, String> {
    let memory = cumulet_vmm::template_memory(vm.memory_bytes).map_err(|e| text(&e))?;
    let own = memory.try_clone().map_err(|e| format!("the template's memory: {e}"))?;
    let message = format!("The pod boots, and becomes snapshot {} when it is ready", entry.short());
    event(context, EventType::Normal, "BuildingSnapshot", &message);
    context.shared.metrics.started(Start::Built);
    let (uid, began) = (context.uid.clone(), Instant::now());
    let pattern = Pattern { namespace: kept_as.0.namespace.clone(), vm };
    let kept_as = Some((kept_as, pattern));
    *context.gate.lock() = Some(Building { entry, memory, uid, began, kept_as, saving: false, held: None });
    Ok(Way::Build(own))
}

/// Starts the pod as a clone: a standby if there is one, else a new one.
pub(super) async fn start_clone(
    context: &Arc<PodContext>,
    pod: &Arc<Pod>,
    ordered: &Ordered<'_>,
    clone: &Clone,
) -> Result<Vec<String>, String> {
    let Clone { entry, hot, .. } = clone;
    // Before a standby is taken, for which nobody would care after an error.
    let hostname = Hostname::of(pod, &context.shared.config)?;
    let vm = ordered.parts.spec(context, pod, Ipv4Addr::UNSPECIFIED, ordered.overhead);
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    // A checkpoint is gone on from by hand: nobody waits for the next who does.
    let asked = annotation(pod, "standby").or(clone.required.then_some(0));
    let taken = entry.pool.take(Instant::now(), asked, Pattern { namespace, vm });
    standby::keep(&context.shared, entry);
    let (shared, used) = (context.shared.clone(), entry.clone());
    // Ends by itself; nobody waits for it.
    tokio::task::spawn_blocking(move || shared.templates.touch(&used));
    let template = || Some(entry.key().to_owned());
    context.live().template = template();
    // A standby's directory becomes the pod's: there must be none yet.
    if let Some(standby) = taken {
        if !*context.placed.borrow() {
            let address = standby.address;
            let ips = vec![address.to_string()];
            {
                let mut live = context.live();
                (live.address, live.cgroup) = (Some(address), Some(standby.cgroup.clone()));
                live.ips.clone_from(&ips);
            }
            let mut spec = sandbox::sandbox_spec(context, pod, hostname.name.clone());
            let mut vm = ordered.parts.spec(context, pod, address, ordered.overhead);
            vm.memory = VmMemory::Clone { state: hot.state.clone(), notes: hot.notes.clone() };
            spec.vm = Some(Box::new(vm));
            context.live().supervisor = Some(standby.supervisor.clone());
            let files = sandbox::files(context, pod, hostname, &ips, First::Machine(None));
            let given = standby::give(context, &standby, &spec, files).await;
            context.placed.send_replace(true);
            match given {
                Ok(()) => {
                    let events = standby.supervisor.events();
                    sandbox::pump(context, standby.supervisor, events);
                    return Ok(ips);
                }
                Err(error) => {
                    tracing::warn!(uid = context.uid, error, "a standby could not become the pod");
                    sandbox::remove(context).await;
                    // The next clone needs its identity just the same.
                    context.live().template = template();
                }
            }
        } else {
            entry.pool.put(standby);
        }
    }
    let turn = async { Ok(context.shared.templates.turn().await) };
    let _turn = context.unless_deleted(turn).await?;
    let way = Way::Clone(Clone { entry: entry.clone(), hot: hot.clone(), required: clone.required });
    sandbox::start(context, pod, Some(ordered), &way).await
}

/// A template cannot be started from.
pub(super) fn unusable(context: &PodContext, clone: &Clone, message: &str) {
    context.live().template = None;
    if clone.entry.is_to_blame() {
        clone.entry.failed(message.to_owned());
        let (shared, entry) = (context.shared.clone(), clone.entry.clone());
        // Ends by itself.
        tokio::task::spawn_blocking(move || shared.templates.discard(&entry));
    }
    let message = format!("Snapshot {} does not restore, the machine boots: {message}", clone.entry.short());
    boot(context, "SnapshotUnavailable", &message);
}

/// An annotation of snapshots.
fn annotation<T: std::str::FromStr>(pod: &Pod, name: &str) -> Option<T> {
    pod.metadata.annotations.as_ref()?.get(&format!("{ANNOTATIONS}{name}"))?.trim().parse().ok()
}
