//! Carrying out what `podlife` decided. Every effect runs on its own and reports back; none blocks the pod's task.

use super::sandbox::{self, blocking};
use super::start::start_container;
use super::task::PodContext;
use super::{image, snapshot};
use crate::supervisor::client::GONE;
use crate::supervisor::proto::Request;
use crate::{probes, volumes};
use cumulet_cluster::DeleteOptions;
use cumulet_cluster::events::{EventType, reference};
use cumulet_podlife::{Effect, Event, EventType as Kind};
use nix::sys::signal::Signal;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// First and longest pause before the removal of an object is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(10);

/// Starts one effect.
pub(super) fn start(context: &Arc<PodContext>, effect: Effect) {
    let context = context.clone();
    match effect {
        Effect::PublishStatus(status) => snapshot::publish(&context, *status),
        Effect::RecordEvent { container, kind, reason, message } => {
            record(&context, container, kind, reason, &message)
        }
        // All of these end by themselves and report to the pod's task; with the process they just stop.
        Effect::PrepareVolumes => drop(tokio::spawn(prepare_volumes(context))),
        Effect::EnsureImage { container } => drop(tokio::spawn(image::ensure(context, container))),
        Effect::CreateSandbox => drop(tokio::spawn(sandbox::create(context))),
        Effect::DestroySandbox => drop(tokio::spawn(sandbox::destroy(context))),
        Effect::StartContainer { container, attempt } => {
            drop(tokio::spawn(start_container(context, container, attempt)));
        }
        Effect::Signal { container, attempt, kill } => {
            drop(tokio::spawn(signal(context, container, attempt, kill)))
        }
        Effect::RunProbe { container, attempt, probe } => drop(tokio::spawn(async move {
            let outcome = probes::run(&context, &container, probe).await;
            context.report(Event::ProbeResult { container, attempt, probe, outcome });
        })),
        Effect::RunHook { container, attempt, hook, timeout } => drop(tokio::spawn(async move {
            let failure = probes::run_hook(&context, &container, hook, timeout).await.err();
            context.report(Event::HookFinished { container, attempt, hook, failure });
        })),
        // The pod's task handles these itself.
        Effect::ArmTimer { .. } | Effect::ConfirmDeleted => {}
    }
}

pub(super) fn record(
    context: &PodContext,
    container: Option<String>,
    kind: Kind,
    reason: &str,
    message: &str,
) {
    let pod = context.pod();
    let mut object = reference(&*pod);
    object.field_path = container.map(|name| {
        let init = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten()).any(|c| c.name == name);
        format!("spec.{}{{{name}}}", if init { "initContainers" } else { "containers" })
    });
    let kind = match kind {
        Kind::Normal => EventType::Normal,
        Kind::Warning => EventType::Warning,
    };
    context.shared.recorder.event(&object, kind, reason, message);
}

async fn prepare_volumes(context: Arc<PodContext>) {
    let pod = context.pod();
    let objects = context.shared.inputs.collect(&pod).await;
    let (files, facts) = (context.clone(), context.facts());
    let machine = match context.kind().await {
        Ok(kind) => {
            if kind.is_snapshot() {
                // The directory may be that of a standby. The pod's end ends the wait.
                let placed = async {
                    // The sender lives in `context`.
                    let _ = context.placed.subscribe().wait_for(|placed| *placed).await;
                    Ok(())
                };
                if let Err(message) = context.unless_deleted(placed).await {
                    return context.report(Event::VolumesFailed { message });
                }
            }
            kind.is_machine()
        }
        Err(error) => return context.report(Event::VolumesFailed { message: error.to_string() }),
    };
    let prepared = blocking(move || {
        files.dirs.create().map_err(|e| format!("cannot make the pod's directories: {e}"))?;
        volumes::prepare(&pod, &files.dirs, &facts, &objects, machine)
    });
    match prepared.await {
        Ok(prepared) => {
            context.live().prepared = Some(prepared);
            context.news.notify_waiters();
            context.report(Event::VolumesReady);
        }
        Err(message) => context.report(Event::VolumesFailed { message }),
    }
}

async fn signal(context: Arc<PodContext>, name: String, attempt: u32, kill: bool) {
    let stop = context.live().images.get(&name).and_then(|image| image.stop_signal.clone());
    let stop = stop.and_then(|signal| stop_signal(&signal)).unwrap_or(Signal::SIGTERM);
    let signal = if kill { Signal::SIGKILL } else { stop } as i32;
    let Some(supervisor) = context.supervisor() else { return };
    let request = Request::Signal { container: name.clone(), attempt, signal };
    if let Err(error) = supervisor.request(request).await
        && error.reason != GONE
    {
        tracing::warn!(uid = context.uid, container = name, %error, "signal not sent");
    }
}

/// `SIGQUIT`, `QUIT` or `3`, as images write it.
fn stop_signal(text: &str) -> Option<Signal> {
    if let Ok(number) = text.parse::<i32>() {
        return Signal::try_from(number).ok();
    }
    let name = text.to_uppercase();
    let full = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    Signal::from_str(&full).ok()
}

/// Removes the pod's files, then the object. Retried until it works: nobody else would do it.
pub(super) async fn confirm_deleted(context: &Arc<PodContext>) {
    context.status.flush().await;
    let files = context.clone();
    let removed = blocking(move || {
        volumes::unmount(&files.dirs).map_err(|e| e.to_string())?;
        crate::dirs::remove_dir(&files.dirs.root).map_err(|e| e.to_string())?;
        crate::dirs::remove_dir(&files.dirs.logs).map_err(|e| e.to_string())
    });
    if let Err(error) = removed.await {
        tracing::warn!(uid = context.uid, error, "files of a pod are left; the next start removes them");
    }
    let (namespace, name) = cumulet_cluster::informer::key(&*context.pod());
    let options = DeleteOptions {
        grace_period_seconds: Some(0),
        uid: Some(context.uid.clone()),
        ..DeleteOptions::default()
    };
    let mut pause = RETRY_FIRST;
    loop {
        match context.shared.pods.delete(&namespace, &name, &options).await {
            Ok(()) => return,
            // Gone already, or the name belongs to another pod by now.
            Err(error) if error.is_not_found() || error.is_conflict() => return,
            Err(error) => {
                tracing::warn!(uid = context.uid, %error, "cannot remove a deleted pod's object; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_LONGEST);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals() {
        let quit = Some(Signal::SIGQUIT);
        for (text, signal) in [("SIGQUIT", quit), ("quit", quit), ("3", quit), ("x", None), ("-1", None)] {
            assert_eq!(stop_signal(text), signal, "{text}");
        }
    }
}
