//! Pods and templates: how a pod of class `vm-snapshot` starts, and how the first one becomes the template.
//!
//! ```text
//!   way ─► Boot | Build | Clone            Build: boots, is Ready, but the gate keeps that to itself ─► warm-up
//!                                                 ─► SaveTemplate ─► sealed ─► Continue ─► gate opens, Ready is told
//! ```
//!
//! A template is only a shortcut: whatever goes wrong with it, the pod boots instead and an event says why.

use super::sandbox::{self, Ordered, blocking};
use super::standby;
use super::task::PodContext;
use crate::env::Objects;
use crate::probes;
use crate::snapshots::{self, ANNOTATIONS, Answer, Entry, Hot, Origin, Pattern, Unusable};
use crate::supervisor::Supervisor;
use crate::supervisor::files::MACHINE;
use crate::supervisor::proto::{
    IdentityParts, Request, Restored, TEMPLATE_NOTES, TEMPLATE_STATE, TemplateNotes, VmMemory, VmSpec,
};
use crate::vm::text;
use crate::volumes::etc::Hostname;
use cumulet_cluster::events::{EventType, reference};
use cumulet_guest_proto::identity::Hook;
use cumulet_snapshot_format::Compatibility;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::json;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// How long pods wait for the one that builds before they boot themselves.
const BUILD_WAIT: Duration = Duration::from_secs(600);
/// How long one warm-up request may take.
const WARM_UP: Duration = Duration::from_secs(60);
/// Most warm-up requests.
const MAX_WARM_UPS: u32 = 10_000;
/// How long an after-restore command may take when the pod does not say.
const HOOK_MS: u64 = 10_000;

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

/// Holds back a pod's readiness while it becomes a template. Open unless there is something in it.
#[derive(Default)]
pub(super) struct Gate(Mutex<Option<Building>>);

/// A pod that is to become a template.
struct Building {
    entry: Arc<Entry>,
    memory: File,
    uid: String,
    began: Instant,
    /// How it is to be kept on the disk, and what standbys are made from.
    kept_as: Option<((Origin, Compatibility), Pattern)>,
    /// The pod is ready, and is being saved.
    saving: bool,
    /// The status that says so.
    held: Option<PodStatus>,
}

impl Drop for Building {
    fn drop(&mut self) {
        // Does nothing when it was built, or has failed.
        self.entry.abandoned(&self.uid);
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Option<Building>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        event(
            context,
            EventType::Normal,
            "ColdBoot",
            &format!("The machine boots without a snapshot: {why}"),
        );
        return Ok(Way::Boot);
    }
    let draft = ordered.parts.spec(context, pod, Ipv4Addr::UNSPECIFIED, ordered.overhead);
    if draft.disk.is_some() {
        let message = "The machine boots without a snapshot: it starts from a disk of its own";
        event(context, EventType::Normal, "ColdBoot", message);
        return Ok(Way::Boot);
    }
    let objects = context.shared.inputs.collect(pod).await;
    let images = context.live().images.clone();
    let parts = snapshots::parts(pod, &draft, &images, &context.facts(), &objects)?;
    let entry = context.shared.templates.entry(&snapshots::digest(&parts));
    let compatibility = snapshots::compatibility(&draft, &ordered.parts.host().kernel_name);
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
                Ok(hot) => return Ok(Way::Clone(Clone { entry, hot })),
                // The look of the next round finds that it is gone.
                Err(Unusable::Ever(why)) => {
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
                    event(context, EventType::Warning, "SnapshotUnavailable", &message);
                    return Ok(Way::Boot);
                }
            }
            Answer::Boot(reason) => {
                let message =
                    format!("Snapshot {} cannot be used, the machine boots: {reason}", entry.short());
                event(context, EventType::Warning, "SnapshotUnavailable", &message);
                return Ok(Way::Boot);
            }
        }
    }
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
    let Clone { entry, hot } = clone;
    // Before a standby is taken, for which nobody would care after an error.
    let hostname = Hostname::of(pod, &context.shared.config)?;
    let vm = ordered.parts.spec(context, pod, Ipv4Addr::UNSPECIFIED, ordered.overhead);
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let taken = entry.pool.take(Instant::now(), annotation(pod, "standby"), Pattern { namespace, vm });
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
            let files = sandbox::files(
                context,
                pod,
                hostname,
                &ips,
                (true, None, crate::inputs::ObjectSet::default()),
            );
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
    let way = Way::Clone(Clone { entry: entry.clone(), hot: hot.clone() });
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
    event(context, EventType::Warning, "SnapshotUnavailable", &message);
}

/// The pod's sandbox goes: it does not become a template any more.
pub(super) fn abandon(context: &PodContext) {
    context.live().template = None;
    let building = context.gate.lock().take();
    if let Some(held) = building.and_then(|mut building| building.held.take()) {
        context.status.publish(held);
    }
}

/// Publishes a status, unless it says that the pod is ready and the pod is to become a template first.
pub(super) fn publish(context: &Arc<PodContext>, status: PodStatus) {
    let mut gate = context.gate.lock();
    let Some(building) = gate.as_mut() else {
        drop(gate);
        return context.status.publish(status);
    };
    if restarted(&status) && !building.saving {
        let entry = building.entry.clone();
        *gate = None;
        drop(gate);
        entry.failed("a container ended before the pod was ready".to_owned());
        return context.status.publish(status);
    }
    if !is_ready(&status) {
        building.held = None;
        drop(gate);
        return context.status.publish(status);
    }
    building.held = Some(status);
    if !std::mem::replace(&mut building.saving, true) {
        let context = context.clone();
        // Ends by itself, and opens the gate.
        tokio::spawn(async move { save(&context).await });
    }
}

fn is_ready(status: &PodStatus) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn restarted(status: &PodStatus) -> bool {
    status.container_statuses.iter().flatten().any(|c| c.restart_count > 0)
}

/// Makes the pod, which is ready, a template, and lets it go on.
async fn save(context: &Arc<PodContext>) {
    let parts = context.gate.lock().as_ref().map(|b| (b.entry.clone(), b.memory.try_clone(), b.began));
    let Some((entry, memory, began)) = parts else { return };
    let saved = async {
        warm_up(context).await?;
        make_template(context, &entry, memory.map_err(|e| e.to_string())?).await
    };
    match saved.await {
        Ok(hot) => {
            let message = format!(
                "Snapshot {} is there after {:.1} s: {} MB of memory, the pod stood still for {} ms",
                entry.short(),
                began.elapsed().as_secs_f32(),
                hot.data_bytes >> 20,
                hot.notes.pause_us / 1000
            );
            event(context, EventType::Normal, "SnapshotBuilt", &message);
            entry.built(&context.uid, hot.clone());
            let kept_as = context.gate.lock().as_mut().and_then(|building| building.kept_as.take());
            if let Some((kept_as, pattern)) = kept_as {
                entry.pool.note(Instant::now(), annotation(&context.pod(), "standby"), pattern);
                standby::keep(&context.shared, &entry);
                // Ends by itself; with the process, what it has written is removed by the next one.
                tokio::spawn(keep(context.clone(), entry, hot, kept_as));
            }
        }
        Err(_) if context.is_going() => entry.abandoned(&context.uid),
        Err(why) => {
            let message = format!("The pod did not become snapshot {}: {why}", entry.short());
            event(context, EventType::Warning, "SnapshotFailed", &message);
            entry.failed(why);
        }
    }
    let building = context.gate.lock().take();
    if let Some(held) = building.and_then(|mut building| building.held.take()) {
        context.status.publish(held);
    }
}

/// Writes a template that is in use to the disk, when no pod is starting.
async fn keep(context: Arc<PodContext>, entry: Arc<Entry>, hot: Arc<Hot>, kept_as: (Origin, Compatibility)) {
    context.shared.quiet().await;
    let (shared, of) = (context.shared.clone(), entry.clone());
    let (origin, compatibility) = kept_as;
    let kept = blocking(move || shared.templates.store(&of, &hot, origin, compatibility));
    if let Err(error) = kept.await {
        let message = format!("Snapshot {} is not kept on the disk: {error}", entry.short());
        event(&context, EventType::Warning, "SnapshotNotKept", &message);
    }
}

/// Saves the pod's machine, makes what was saved a template, and lets the pod go on as its first clone.
async fn make_template(
    context: &Arc<PodContext>,
    entry: &Arc<Entry>,
    memory: File,
) -> Result<Arc<Hot>, String> {
    let supervisor = context.supervisor().ok_or("the pod's machine has ended")?;
    supervisor.request(Request::SaveTemplate).await.map_err(|e| e.message)?;
    let dir = context.dirs.root.join(MACHINE);
    let (shared, key) = (context.shared.clone(), entry.key().to_owned());
    let hot = blocking(move || {
        let notes = read_notes(&dir.join(TEMPLATE_NOTES))?;
        let saved = fs::read(dir.join(TEMPLATE_STATE)).map_err(|e| format!("{TEMPLATE_STATE}: {e}"))?;
        let state = shared.templates.put_state(&key, &saved);
        let state = state.map_err(|e| format!("cannot keep the devices' state: {e}"))?;
        let left = cumulet_vmm::seal_memory(&memory).map_err(|e| text(&e))?;
        Ok(Arc::new(Hot { memory, state, notes, data_bytes: left.data_bytes }))
    })
    .await;
    // Whatever came of it, the pod goes on from what was saved.
    let pod = context.pod();
    let objects = context.shared.inputs.collect(&pod).await;
    let parts = identity(context, entry.key(), &objects);
    supervisor.request(Request::Continue(Box::new(parts))).await.map_err(|e| e.message)?;
    hot
}

/// A machine was found that an earlier process may have been saving: it goes on, and becomes no template.
pub(super) fn go_on(context: &Arc<PodContext>, supervisor: &Arc<Supervisor>) {
    let (context, supervisor) = (context.clone(), supervisor.clone());
    // Ends by itself; with the process, the next one asks again.
    tokio::spawn(async move {
        let objects = context.shared.inputs.collect(&context.pod()).await;
        let parts = identity(&context, "", &objects);
        if let Err(error) = supervisor.request(Request::Continue(Box::new(parts))).await {
            tracing::warn!(uid = context.uid, %error, "a machine that was being saved does not go on");
        }
    });
}

fn read_notes(path: &Path) -> Result<TemplateNotes, String> {
    let read = fs::read(path).map_err(|e| e.to_string());
    let notes = read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|e| e.to_string()));
    notes.map_err(|e| format!("{}: {e}", path.display()))
}

/// Sends the requests that the annotations ask for, one after the other.
async fn warm_up(context: &Arc<PodContext>) -> Result<(), String> {
    let pod = context.pod();
    let Some(path) = annotation::<String>(&pod, "warmup-path") else { return Ok(()) };
    let count = annotation(&pod, "warmup-requests").unwrap_or(1_u32).min(MAX_WARM_UPS);
    let ports = || pod.spec.iter().flat_map(|s| &s.containers).flat_map(|c| c.ports.iter().flatten());
    let first = || ports().next().and_then(|port| u16::try_from(port.container_port).ok());
    let port = annotation(&pod, "warmup-port").or_else(first);
    let port =
        port.ok_or_else(|| format!("{ANNOTATIONS}warmup-path needs a containerPort or warmup-port"))?;
    let address = context.live().ips.first().cloned().unwrap_or_default();
    for _ in 0..count {
        let answer = timeout(WARM_UP, probes::ask(&format!("{address}:{port}"), &path)).await;
        answer
            .unwrap_or_else(|_| Err(format!("no answer within {} s", WARM_UP.as_secs())))
            .map_err(|e| format!("warm-up: {e}"))?;
    }
    Ok(())
}

/// An annotation of snapshots.
fn annotation<T: std::str::FromStr>(pod: &Pod, name: &str) -> Option<T> {
    pod.metadata.annotations.as_ref()?.get(&format!("{ANNOTATIONS}{name}"))?.trim().parse().ok()
}

/// Who the pod is, as its clone is told.
pub(super) fn identity(context: &PodContext, template: &str, objects: &dyn Objects) -> IdentityParts {
    let (pod, facts, images) = (context.pod(), context.facts(), context.live().images.clone());
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let meta = &pod.metadata;
    let ip = facts.pod_ips.first().cloned().unwrap_or_default();
    let node = &context.shared.config.node_name;
    let document = json!({
        "namespace": meta.namespace, "name": meta.name, "uid": meta.uid, "podIP": ip, "podIPs": facts.pod_ips,
        "hostname": facts.hostname, "nodeName": node, "template": template,
        "restoredAt": Timestamp::now().to_string(),
    });
    let mut env: Vec<String> = [
        ("POD_NAMESPACE", text(&meta.namespace)),
        ("POD_NAME", text(&meta.name)),
        ("POD_UID", text(&meta.uid)),
        ("POD_IP", ip),
        ("NODE_NAME", node.clone()),
    ]
    .map(|(name, value)| format!("{name}={value}"))
    .to_vec();
    env.extend(snapshots::own_env(&pod, &images, &facts, objects));
    IdentityParts { document: document.to_string(), env, after_restore: hook(&pod) }
}

/// The command that runs in a clone before its containers go on.
fn hook(pod: &Pod) -> Option<Hook> {
    let command: String = annotation(pod, "after-restore")?;
    let command = serde_json::from_str::<Vec<String>>(&command)
        .unwrap_or_else(|_| vec!["/bin/sh".to_owned(), "-c".to_owned(), command]);
    let first = pod.spec.as_ref()?.containers.first()?.name.clone();
    let container = annotation(pod, "after-restore-container").unwrap_or(first);
    let timeout_ms =
        annotation::<u64>(pod, "after-restore-timeout").map_or(HOOK_MS, |s| s.saturating_mul(1000));
    Some(Hook { container, command, timeout_ms })
}

/// A clone has become the pod.
pub(super) fn restored(context: &PodContext, restored: &Restored) {
    let (asked_at, template) = {
        let mut live = context.live();
        (live.asked_at, live.template.take())
    };
    // The first clone, which was the template, is told of by that.
    let (Some(asked_at), Some(template)) = (asked_at, template) else { return };
    context.shared.templates.entry(&template).restored();
    let ms = |us: u64| us / 1000;
    let before = match restored.standby {
        true => "from a standby".to_owned(),
        false => format!(
            "spawn {} ms, load {} ms, greeting {} ms",
            ms(restored.spawn_us),
            ms(restored.load_us),
            ms(restored.greet_us)
        ),
    };
    let message = format!(
        "Restored from snapshot {} in {} ms: {before}, identity and thaw {} ms",
        template.get(..12).unwrap_or(&template),
        asked_at.elapsed().as_millis(),
        ms(restored.identity_us)
    );
    event(context, EventType::Normal, "RestoredFromSnapshot", &message);
}
