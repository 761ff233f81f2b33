//! Probes and lifecycle hooks: asking a container how it is, or telling it what happens.
//!
//! When to probe and what a result means is decided by `podlife`; here one probe is carried out and its outcome told in
//! the kubelet's words. Every probe has a deadline, its `timeoutSeconds`.

mod http;

use crate::runner::{PodContext, container};
use crate::supervisor::proto::SessionRequest;
use cumulet_cluster::streams::{Exit, Output};
use cumulet_podlife::{Hook, ProbeKind, ProbeOutcome};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Container, ExecAction, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// Output of a probe's command that is kept for its event, in bytes, as the kubelet keeps.
const MAX_OUTPUT: usize = 10 << 10;

/// Carries out one probe.
pub(crate) async fn run(context: &Arc<PodContext>, name: &str, kind: ProbeKind) -> ProbeOutcome {
    let pod = context.pod();
    let Some(container) = container(&pod, name) else {
        return ProbeOutcome::Unknown(format!("the pod has no container {name}"));
    };
    let probe = match kind {
        ProbeKind::Startup => &container.startup_probe,
        ProbeKind::Liveness => &container.liveness_probe,
        ProbeKind::Readiness => &container.readiness_probe,
    };
    let Some(probe) = probe else {
        return ProbeOutcome::Unknown(format!(
            "container {name} has no {} probe",
            kind.title().to_lowercase()
        ));
    };
    let limit =
        Duration::from_secs(probe.timeout_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(1).max(1));
    match tokio::time::timeout(limit, probe_once(context, container, probe, limit)).await {
        Ok(outcome) => outcome,
        Err(_) => ProbeOutcome::Failure(format!("command timed out after {} s", limit.as_secs())),
    }
}

async fn probe_once(
    context: &PodContext,
    container: &Container,
    probe: &Probe,
    limit: Duration,
) -> ProbeOutcome {
    if let Some(action) = &probe.exec {
        return match exec(context, &container.name, action, limit).await {
            Ok((0, _)) => ProbeOutcome::Success,
            Ok((_, output)) => ProbeOutcome::Failure(output),
            Err(error) => ProbeOutcome::Unknown(error),
        };
    }
    if let Some(action) = &probe.http_get {
        return match http_get(context, container, action).await {
            Ok(()) => ProbeOutcome::Success,
            Err(error) => ProbeOutcome::Failure(error),
        };
    }
    if let Some(action) = &probe.tcp_socket {
        let target = match target(context, container, action.host.as_deref(), &action.port) {
            Ok(target) => target,
            Err(error) => return ProbeOutcome::Unknown(error),
        };
        return match TcpStream::connect(&target).await {
            Ok(_) => ProbeOutcome::Success,
            Err(error) => ProbeOutcome::Failure(format!("dial tcp {target}: {error}")),
        };
    }
    ProbeOutcome::Failure("this version has exec, httpGet and tcpSocket probes only".to_owned())
}

/// Carries out a lifecycle hook.
///
/// # Errors
/// Why it failed, in the words of the events `FailedPostStartHook` and `FailedPreStopHook`.
pub(crate) async fn run_hook(
    context: &Arc<PodContext>,
    name: &str,
    hook: Hook,
    timeout: Option<SignedDuration>,
) -> Result<(), String> {
    let pod = context.pod();
    let container = container(&pod, name).ok_or_else(|| format!("the pod has no container {name}"))?;
    let lifecycle = container.lifecycle.clone().unwrap_or_default();
    let handler = match hook {
        Hook::PostStart => lifecycle.post_start,
        Hook::PreStop => lifecycle.pre_stop,
    };
    let Some(handler) = handler else { return Ok(()) };
    let limit = timeout.map(|t| Duration::try_from(t).unwrap_or_default());
    let work = handle(context, container, &handler, limit.unwrap_or_default());
    match limit {
        None => work.await,
        Some(limit) => {
            let done = tokio::time::timeout(limit, work).await;
            done.unwrap_or_else(|_| Err(format!("hook did not end within {} s", limit.as_secs())))
        }
    }
}

async fn handle(
    context: &PodContext,
    container: &Container,
    handler: &LifecycleHandler,
    limit: Duration,
) -> Result<(), String> {
    if let Some(action) = &handler.exec {
        let words = action.command.clone().unwrap_or_default().join(" ");
        return match exec(context, &container.name, action, limit).await? {
            (0, _) => Ok(()),
            (code, output) => Err(format!("Exec lifecycle hook ([{words}]) exited with {code}: {output}")),
        };
    }
    if let Some(action) = &handler.http_get {
        return http_get(context, container, action).await;
    }
    if let Some(action) = &handler.sleep {
        // The hook is a sleep: this is what its author asked for.
        tokio::time::sleep(Duration::from_secs(u64::try_from(action.seconds).unwrap_or_default())).await;
        return Ok(());
    }
    Err("this version has exec, httpGet and sleep hooks only".to_owned())
}

/// Runs a command in the container. Gives its exit code and the beginning of its output.
async fn exec(
    context: &PodContext,
    container: &str,
    action: &ExecAction,
    limit: Duration,
) -> Result<(i32, String), String> {
    let supervisor = context.supervisor().ok_or("the pod has no sandbox")?;
    let request = SessionRequest::Exec {
        container: container.to_owned(),
        command: action.command.clone().unwrap_or_default(),
        stdin: false,
        tty: false,
        timeout_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
    };
    let mut session = supervisor.session(request).await.map_err(|e| e.message)?;
    drop(session.input);
    let mut output = Vec::new();
    while let Some(item) = session.output.recv().await {
        match item {
            Output::Stdout(bytes) | Output::Stderr(bytes) => {
                let room = MAX_OUTPUT.saturating_sub(output.len());
                output.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            Output::Exit(Exit::Code(code)) => {
                return Ok((code, String::from_utf8_lossy(&output).into_owned()));
            }
            Output::Exit(Exit::Failed(status)) => return Err(status.message),
        }
    }
    Err("the command was lost".to_owned())
}

async fn http_get(context: &PodContext, container: &Container, action: &HTTPGetAction) -> Result<(), String> {
    let address = target(context, container, action.host.as_deref(), &action.port)?;
    let request = http::Request {
        address,
        tls: action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
        path: action.path.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| "/".to_owned()),
        headers: action.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
    };
    http::get(&request).await
}

/// `host:port` of an action; the host is the pod itself unless it says otherwise.
fn target(
    context: &PodContext,
    container: &Container,
    host: Option<&str>,
    port: &IntOrString,
) -> Result<String, String> {
    let port = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let ports = container.ports.iter().flatten();
            let named = ports.into_iter().find(|p| p.name.as_deref() == Some(name)).map(|p| p.container_port);
            let number = named.or_else(|| name.parse().ok());
            number.ok_or_else(|| format!("couldn't find port: {name} in container {}", container.name))?
        }
    };
    let port =
        u16::try_from(port).ok().filter(|p| *p > 0).ok_or_else(|| format!("invalid port number: {port}"))?;
    let own = context.live().ips.first().cloned();
    match host.filter(|h| !h.is_empty()).map(str::to_owned).or(own) {
        Some(host) => Ok(format!("{host}:{port}")),
        None => Err("the pod has no address yet".to_owned()),
    }
}

/// Asks `address` (`host:port`) once for a path, as a probe does.
pub(crate) async fn ask(address: &str, path: &str) -> Result<(), String> {
    let (address, path) = (address.to_owned(), path.to_owned());
    http::get(&http::Request { address, tls: false, path, headers: Vec::new() }).await
}
