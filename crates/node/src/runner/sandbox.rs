//! A pod's sandbox: supervisor, address, network; made, lost, destroyed.

use super::Shared;
use super::machine::{Parts, Seed};
use super::snapshot::{self, Way};
use super::task::PodContext;
use crate::inputs::ObjectSet;
use crate::supervisor::client::{GONE, finish};
use crate::supervisor::files::State;
use crate::supervisor::proto::{self, Instance, InstanceState, PodNetwork, Request, SandboxSpec, VmMemory};
use crate::supervisor::{Supervisor, SupervisorError};
use crate::vm::{Kind, KindError};
use crate::volumes::{self, etc};
use cumulet_net::Netns;
use cumulet_podlife::{Ended, Event};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Makes the sandbox and reports what came of it.
pub(super) async fn create(context: Arc<PodContext>) {
    let pod = context.pod();
    let kind = match context.kind().await {
        Ok(kind) => kind,
        Err(error) => {
            let permanent = matches!(error, KindError::Never(_));
            return context.report(Event::SandboxFailed { message: error.to_string(), permanent });
        }
    };
    context.live().asked_at = Some(Instant::now());
    match make(&context, &pod, kind).await {
        Ok(ips) => context.report(Event::SandboxReady { ips }),
        Err(message) => {
            remove(&context).await;
            context.report(Event::SandboxFailed { message, permanent: false });
        }
    }
}

/// How long a clone's first answers take the processors from what is done behind the pods' backs, at most.
const FIRST_ANSWERS: Duration = Duration::from_secs(5);

/// Counts a pod that is starting.
struct Starting(Arc<Shared>);

impl Starting {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.starting.send_modify(|count| *count += 1);
        Self(shared.clone())
    }

    /// Goes on counting until the pod is ready, or it has taken long.
    fn until_ready(self, context: &Arc<PodContext>) {
        let context = context.clone();
        // Ends by itself.
        tokio::spawn(async move {
            let ready = async {
                // The sender lives in the context.
                let _ = context.ready.subscribe().wait_for(|ready| *ready).await;
                Ok(())
            };
            let _ = tokio::time::timeout(FIRST_ANSWERS, context.unless_deleted(ready)).await;
            drop(self);
        });
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.starting.send_modify(|count| *count -= 1);
    }
}

/// A machine that the pod is to be.
pub(super) struct Ordered<'a> {
    pub(super) parts: Parts,
    pub(super) overhead: &'a BTreeMap<String, Quantity>,
}

async fn make(context: &Arc<PodContext>, pod: &Arc<Pod>, kind: &Kind) -> Result<Vec<String>, String> {
    let Kind::Machine { overhead, snapshot } = kind else {
        let _starting = Starting::new(&context.shared);
        return start(context, pod, None, &Way::Boot).await;
    };
    let parts = Box::pin(Parts::collect(context, pod));
    let ordered = Ordered { parts: context.unless_deleted(parts).await?, overhead };
    let mut way = match snapshot {
        true => Box::pin(context.unless_deleted(snapshot::way(context, pod, &ordered))).await?,
        false => Way::Boot,
    };
    // Not before: who waits for a template starts nothing.
    let starting = Starting::new(&context.shared);
    if let Way::Clone(clone) = &way {
        match Box::pin(snapshot::start_clone(context, pod, &ordered, clone)).await {
            Ok(ips) => {
                starting.until_ready(context);
                return Ok(ips);
            }
            Err(message) if context.is_going() || !clone.or_boot() => return Err(message),
            Err(message) => {
                snapshot::unusable(context, clone, &message);
                remove(context).await;
                way = Way::Boot;
            }
        }
    }
    start(context, pod, Some(&ordered), &way).await
}

/// Makes the sandbox from nothing, or a clone in a new supervisor.
pub(super) async fn start(
    context: &Arc<PodContext>,
    pod: &Arc<Pod>,
    ordered: Option<&Ordered<'_>>,
    way: &Way,
) -> Result<Vec<String>, String> {
    let shared = &context.shared;
    let host_network = pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
    let address = match host_network {
        true => None,
        false => Some(shared.network.addresses().allocate().map_err(|e| e.to_string())?),
    };
    let ips: Vec<String> = match address {
        Some(address) => vec![address.to_string()],
        None => shared.config.host_ips.iter().take(1).map(ToString::to_string).collect(),
    };
    {
        let mut live = context.live();
        live.address = address;
        live.ips.clone_from(&ips);
    }
    let hostname = etc::Hostname::of(pod, &shared.config)?;
    let mut spec = sandbox_spec(context, pod, hostname.name.clone());
    if let (Some(ordered), Some(address)) = (ordered, address) {
        let mut vm = ordered.parts.spec(context, pod, address, ordered.overhead);
        vm.memory = way.memory();
        if vm.memory == VmMemory::Template {
            // The template's pages go on counting as the pod's, beside its own as a clone.
            let bytes = i64::try_from(vm.memory_bytes).unwrap_or(i64::MAX);
            vm.limits.memory_limit_bytes =
                vm.limits.memory_limit_bytes.map(|limit| limit.saturating_add(bytes));
        }
        spec.vm = Some(Box::new(vm));
    }
    let in_machine = spec.vm.is_some();
    let first = if in_machine {
        First::Machine(Seed::of(context, pod, spec.vm.as_deref(), address).await)
    } else if volumes::has_claims(pod) {
        First::Containers(shared.inputs.collect(pod).await)
    } else {
        First::Containers(ObjectSet::default())
    };
    blocking(files(context, pod, hostname, &ips, first)).await?;
    context.placed.send_replace(true);
    let supervisor = Supervisor::spawn(&shared.config.exe, &context.dirs.root, &spec, way.file());
    let supervisor = Arc::new(supervisor.await.map_err(|e| e.message)?);
    context.live().supervisor = Some(supervisor.clone());
    if let Some(address) = address {
        connect(context, &supervisor, address, in_machine).await?;
    }
    let events = supervisor.events();
    pump(context, supervisor, events);
    Ok(ips)
}

/// What a pod has before its sandbox, beside its `/etc`.
pub(super) enum First {
    /// The volumes that containers get from claims, among these objects.
    Containers(ObjectSet),
    /// The cloud-init seed of one that starts from a disk.
    Machine(Option<Seed>),
}

/// Writes the files that a pod has before its sandbox.
pub(super) fn files(
    context: &Arc<PodContext>,
    pod: &Arc<Pod>,
    hostname: etc::Hostname,
    ips: &[String],
    first: First,
) -> impl FnOnce() -> Result<(), String> + Send + 'static {
    let (files, of, ip) = (context.clone(), pod.clone(), ips.first().cloned());
    move || {
        files.dirs.create().map_err(|e| format!("cannot make the pod's directories: {e}"))?;
        etc::write(&files.dirs.etc(), &of, &hostname, ip.as_deref(), &files.shared.config)
            .map_err(|e| format!("cannot write the pod's /etc files: {e}"))?;
        match first {
            First::Containers(objects) => volumes::mount_first(&of, &files.dirs, &objects),
            First::Machine(Some(seed)) => seed.write(&files, &of, &hostname.name),
            First::Machine(None) => Ok(()),
        }
    }
}

pub(super) fn sandbox_spec(context: &PodContext, pod: &Pod, hostname: String) -> SandboxSpec {
    let config = &context.shared.config;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let sysctls = spec.and_then(|s| s.security_context.as_ref()).and_then(|s| s.sysctls.as_ref());
    SandboxSpec {
        uid: context.uid.clone(),
        namespace: text(&pod.metadata.namespace),
        name: text(&pod.metadata.name),
        hostname,
        host_network: spec.and_then(|s| s.host_network) == Some(true),
        host_ipc: spec.and_then(|s| s.host_ipc) == Some(true),
        sysctls: sysctls.into_iter().flatten().map(|s| (s.name.clone(), s.value.clone())).collect(),
        cgroup: context.cgroup(),
        log_dir: context.dirs.logs.display().to_string(),
        log_max_bytes: config.log_max_bytes,
        log_max_files: config.log_max_files,
        standby: false,
        vm: None,
    }
}

/// Puts the pod on the network: the host's side here, the pod's side in the supervisor.
async fn connect(
    context: &Arc<PodContext>,
    supervisor: &Supervisor,
    address: Ipv4Addr,
    in_machine: bool,
) -> Result<(), String> {
    let network = context.shared.network.clone();
    let pid = u32::try_from(supervisor.pid()).map_err(|e| e.to_string())?;
    let attached = blocking(move || {
        match in_machine {
            true => network.attach_tap(address).map(|tap| (network.pod_side(address), Some(tap))),
            false => network.attach(Netns::Pid(pid), address).map(|side| (side, None)),
        }
        .map_err(|e| e.to_string())
    });
    let (side, tap) = attached.await?;
    let configure = PodNetwork {
        interface: side.interface,
        address: side.address.to_string(),
        gateway: side.gateway.to_string(),
        mtu: side.mtu,
        tap,
    };
    let configured =
        async { supervisor.request(Request::ConfigureNetwork(configure)).await.map_err(|e| e.message) };
    // A machine takes seconds to boot; what was made of it is removed by the caller.
    if in_machine { context.unless_deleted(configured).await } else { configured.await }
}

/// Turns what the supervisor tells into events for the pod's task, until the supervisor is gone.
pub(super) fn pump(
    context: &Arc<PodContext>,
    supervisor: Arc<Supervisor>,
    mut events: mpsc::Receiver<proto::Event>,
) {
    let context = context.clone();
    // Ends with the supervisor's connection, which ends with this process at the latest.
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            match event {
                proto::Event::Snapshot { containers, .. } => {
                    containers.into_iter().for_each(|(name, instance)| context.report(told(name, instance)));
                }
                proto::Event::Container { name, instance } => context.report(told(name, instance)),
                proto::Event::Restored(restored) => snapshot::restored(&context, &restored),
            }
        }
        // A sandbox that was destroyed on purpose has taken its supervisor out before.
        let lost = {
            let mut live = context.live();
            let current = live.supervisor.as_ref().is_some_and(|known| Arc::ptr_eq(known, &supervisor));
            if current {
                live.supervisor = None;
            }
            current
        };
        if lost && !context.shared.shutdown.is_cancelled() {
            context.report(Event::SandboxLost { ended: ended_containers(&context) });
        }
    });
}

fn told(container: String, instance: Instance) -> Event {
    let attempt = instance.attempt;
    match instance.state {
        InstanceState::Running { started_at_us, restored, .. } => {
            let at = moment(started_at_us);
            Event::ContainerStarted { container, attempt, id: instance.id, at, restored }
        }
        InstanceState::Ended(ended) => Event::ContainerEnded { container, attempt, ended: ended_of(ended) },
    }
}

/// What the dead supervisor's state file says of containers that had ended.
fn ended_containers(context: &PodContext) -> Vec<(String, u32, Ended)> {
    let state = State::load(&context.dirs.root).unwrap_or_default();
    let ended = state.containers.into_iter().filter_map(|(name, instance)| match instance.state {
        InstanceState::Ended(ended) => Some((name, instance.attempt, ended_of(ended))),
        InstanceState::Running { .. } => None,
    });
    ended.collect()
}

pub(super) fn ended_of(ended: proto::Ended) -> Ended {
    Ended {
        id: ended.id,
        exit_code: ended.exit_code,
        signal: ended.signal,
        reason: ended.reason,
        message: ended.message,
        started_at: (ended.started_at_us != 0).then(|| moment(ended.started_at_us)),
        finished_at: moment(ended.finished_at_us),
    }
}

pub(super) fn moment(microseconds: i64) -> Timestamp {
    Timestamp::from_microsecond(microseconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Ends the sandbox and reports it.
pub(super) async fn destroy(context: Arc<PodContext>) {
    remove(&context).await;
    context.report(Event::SandboxDestroyed);
}

/// Kills what runs, and removes supervisor, cgroup and network. What fails is logged: the next process tries again.
pub(super) async fn remove(context: &Arc<PodContext>) {
    let supervisor = context.live().supervisor.take();
    if let Some(supervisor) = supervisor {
        match supervisor.request(Request::Shutdown).await {
            Ok(()) => {}
            Err(SupervisorError { reason, .. }) if reason == GONE => {}
            Err(error) => tracing::warn!(uid = context.uid, %error, "the supervisor did not shut down"),
        }
    }
    snapshot::abandon(context);
    let (address, files) = (context.live().address.take(), context.clone());
    let removed = blocking(move || {
        if let Some(address) = address {
            files.shared.network.detach(address).map_err(|e| e.to_string())?;
            files.shared.network.addresses().release(address);
        }
        finish(&files.dirs.root, &files.cgroup()).map_err(|e| e.message)
    });
    match removed.await {
        Ok(()) => context.live().cgroup = None,
        Err(error) => tracing::warn!(uid = context.uid, error, "the sandbox left something behind"),
    }
}

/// Runs a task that blocks, away from the runtime's own threads.
pub(super) async fn blocking<T: Send + 'static>(
    task: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(task).await.unwrap_or_else(|e| Err(format!("a task panicked: {e}")))
}
