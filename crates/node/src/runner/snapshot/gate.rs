//! The gate: keeps a pod's readiness to itself while the pod becomes a template, and how it becomes one.

use super::{annotation, event, identity};
use crate::probes;
use crate::runner::sandbox::blocking;
use crate::runner::standby;
use crate::runner::task::PodContext;
use crate::snapshots::{ANNOTATIONS, Entry, Hot, Origin, Pattern};
use crate::supervisor::Supervisor;
use crate::supervisor::files::{self, MACHINE};
use crate::supervisor::proto::{Request, TEMPLATE_NOTES, TEMPLATE_STATE};
use crate::vm::text;
use cumulet_cluster::events::EventType;
use cumulet_snapshot_format::Compatibility;
use k8s_openapi::api::core::v1::PodStatus;
use std::fs::{self, File};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// How long one warm-up request may take.
const WARM_UP: Duration = Duration::from_secs(60);
/// Most warm-up requests.
const MAX_WARM_UPS: u32 = 10_000;

/// Holds back a pod's readiness while it becomes a template. Open unless there is something in it.
#[derive(Default)]
pub(in crate::runner) struct Gate(Mutex<Option<Building>>);

/// A pod that is to become a template.
pub(super) struct Building {
    pub(super) entry: Arc<Entry>,
    pub(super) memory: File,
    pub(super) uid: String,
    pub(super) began: Instant,
    /// How it is to be kept on the disk, and what standbys are made from.
    pub(super) kept_as: Option<((Origin, Compatibility), Pattern)>,
    /// The pod is ready, and is being saved.
    pub(super) saving: bool,
    /// The status that says so.
    pub(super) held: Option<PodStatus>,
}

impl Drop for Building {
    fn drop(&mut self) {
        // Does nothing when it was built, or has failed.
        self.entry.abandoned(&self.uid);
    }
}

impl Gate {
    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Building>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pod's sandbox goes: it does not become a template any more.
pub(in crate::runner) fn abandon(context: &PodContext) {
    context.live().template = None;
    let building = context.gate.lock().take();
    if let Some(held) = building.and_then(|mut building| building.held.take()) {
        context.status.publish(held);
    }
}

/// Publishes a status, unless it says that the pod is ready and the pod is to become a template first.
pub(in crate::runner) fn publish(context: &Arc<PodContext>, status: PodStatus) {
    context.ready.send_replace(is_ready(&status));
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
            context.shared.metrics.built(began.elapsed(), hot.notes.pause_us);
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
            context.shared.metrics.not_built();
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
        let notes = files::read_json(&dir.join(TEMPLATE_NOTES))?;
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
pub(in crate::runner) fn go_on(context: &Arc<PodContext>, supervisor: &Arc<Supervisor>) {
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
