//! One pod's task and what its effects share.
//!
//! The select loop builds events and nothing else; [`PodLife::apply`] decides; [`super::effects`] starts what was
//! decided and reports back through the mailbox. The timer is the one deadline that the state machine asked for last.

use super::adopt::FoundPod;
use super::snapshot::{self, Gate};
use super::status::StatusWriter;
use super::{Shared, effects, sandbox};
use crate::dirs::PodDirs;
use crate::env::PodFacts;
use crate::images::ResolvedImage;
use crate::supervisor::Supervisor;
use crate::supervisor::proto::Request;
use crate::vm::{Kind, KindError};
use crate::volumes::{self, Prepared};
use arc_swap::ArcSwap;
use cumulet_podlife::{Effect, Event, PodDigest, PodLife};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OnceCell, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// What the effects of one pod share.
pub(crate) struct PodContext {
    pub(crate) shared: Arc<Shared>,
    pub(crate) uid: String,
    pub(crate) dirs: PodDirs,
    pub(crate) status: StatusWriter,
    events: mpsc::UnboundedSender<Event>,
    pod: ArcSwap<Pod>,
    live: Mutex<Live>,
    kind: OnceCell<Kind>,
    /// Told when an image has come, or the volumes are prepared.
    pub(crate) news: Notify,
    /// Holds back that the pod is ready while it becomes a template.
    pub(super) gate: Gate,
    /// The newest status says that the pod is ready, whether or not it was told.
    pub(super) ready: watch::Sender<bool>,
    /// The pod's directory is there, and is going to be the pod's.
    pub(super) placed: watch::Sender<bool>,
    /// Cancelled when the pod is being deleted, or gone from the API.
    going: CancellationToken,
}

/// What changes while the pod lives. Locked only for reading and setting.
#[derive(Default)]
pub(crate) struct Live {
    pub(crate) supervisor: Option<Arc<Supervisor>>,
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) ips: Vec<String>,
    pub(crate) prepared: Option<Prepared>,
    pub(crate) images: HashMap<String, ResolvedImage>,
    /// Containers whose image was not there when it was last looked for.
    pub(crate) missing: BTreeSet<String>,
    /// The cgroup, when it is not the one of the pod's uid.
    pub(crate) cgroup: Option<String>,
    /// The template that its machine was started from, while it has not taken on its identity.
    pub(crate) template: Option<String>,
    /// When the sandbox was asked for.
    pub(crate) asked_at: Option<Instant>,
}

impl PodContext {
    pub(super) fn new(
        shared: Arc<Shared>,
        pod: Arc<Pod>,
        events: mpsc::UnboundedSender<Event>,
        found: &FoundPod,
    ) -> io::Result<Self> {
        let meta = &pod.metadata;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let (namespace, name, uid) = (text(&meta.namespace), text(&meta.name), text(&meta.uid));
        let live = Live {
            supervisor: found.supervisor.clone(),
            address: found.address,
            ips: found.ips.clone(),
            cgroup: found.cgroup.clone(),
            template: found.template.clone(),
            ..Live::default()
        };
        let dirs = shared.dirs.pod(&namespace, &name, &uid)?;
        Ok(Self {
            ready: watch::Sender::new(false),
            placed: watch::Sender::new(dirs.root.exists()),
            dirs,
            gate: Gate::default(),
            status: StatusWriter::new(shared.pods.clone(), &namespace, &name, &uid),
            shared,
            uid,
            events,
            pod: ArcSwap::new(pod),
            live: Mutex::new(live),
            kind: OnceCell::new_with(found.kind.clone()),
            news: Notify::new(),
            going: CancellationToken::new(),
        })
    }

    /// What the pod runs in: as it was found, or as its RuntimeClass said when it was first asked for.
    pub(crate) async fn kind(&self) -> Result<&Kind, KindError> {
        self.kind
            .get_or_try_init(|| async { Kind::of(&self.pod(), &self.shared.runtime_classes).await })
            .await
    }

    /// Does something that takes long and can be given up, unless the pod is being deleted.
    pub(crate) async fn unless_deleted<T>(
        &self,
        work: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
        tokio::select! {
            result = work => result,
            () = self.going.cancelled() => Err("the pod is being deleted".to_owned()),
        }
    }

    /// The pod's cgroup.
    pub(crate) fn cgroup(&self) -> String {
        let own = self.live().cgroup.clone();
        own.unwrap_or_else(|| format!("{}/pod{}", self.shared.config.cgroup, self.uid))
    }

    /// True when the pod is being deleted, or gone from the API.
    pub(super) fn is_going(&self) -> bool {
        self.going.is_cancelled()
    }

    /// The object, as last seen.
    pub(crate) fn pod(&self) -> Arc<Pod> {
        self.pod.load_full()
    }

    pub(crate) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn supervisor(&self) -> Option<Arc<Supervisor>> {
        self.live().supervisor.clone()
    }

    /// Reports to the pod's task; one that has ended does not care.
    pub(crate) fn report(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// What the downward API and the environment are made from.
    pub(crate) fn facts(&self) -> PodFacts {
        let config = &self.shared.config;
        let hostname = volumes::etc::Hostname::of(&self.pod(), config).map(|h| h.name).unwrap_or_default();
        PodFacts {
            pod_ips: self.live().ips.clone(),
            host_ips: config.host_ips.iter().map(ToString::to_string).collect(),
            hostname,
            node_millicpu: self.shared.machine.cpus * 1000,
            node_memory_bytes: self.shared.machine.memory_bytes,
        }
    }

    /// Makes the files that show ConfigMaps and the like follow them; containers see the change at once.
    pub(super) fn refresh_volumes(self: &Arc<Self>) {
        if self.live().prepared.is_none() && self.live().supervisor.is_none() {
            return;
        }
        let context = self.clone();
        // Ends by itself; a pod that is gone meanwhile only makes it fail.
        tokio::spawn(async move {
            let pod = context.pod();
            let objects = context.shared.inputs.collect(&pod).await;
            let (facts, files) = (context.facts(), context.clone());
            let refreshed = sandbox::blocking(move || volumes::refresh(&pod, &files.dirs, &facts, &objects));
            if let Err(error) = refreshed.await {
                tracing::warn!(uid = context.uid, error, "a volume keeps its old content");
            }
            let machine = context.kind().await.is_ok_and(Kind::is_machine);
            if let Some(supervisor) = context.supervisor().filter(|_| machine)
                && let Err(error) = supervisor.request(Request::VolumesChanged).await
            {
                tracing::warn!(uid = context.uid, %error, "a machine keeps the old content of a volume");
            }
        });
    }
}

/// A container of a pod, whatever its role.
pub(crate) fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.init_containers.iter().flatten().chain(&spec.containers).find(|c| c.name == name)
}

/// Lives a pod's life, until it is confirmed deleted.
pub(super) async fn run(
    context: Arc<PodContext>,
    mut objects: watch::Receiver<Option<Arc<Pod>>>,
    mut mailbox: mpsc::UnboundedReceiver<Event>,
    found: FoundPod,
) {
    let pod = context.pod();
    let hosts = context.shared.config.host_ips.iter().map(ToString::to_string).collect();
    let mut life =
        PodLife::new(PodDigest::of(&pod), hosts, pod.status.as_ref(), found.found, Timestamp::now());
    if let (Some(supervisor), Some(events)) = (found.supervisor, found.events) {
        if found.builds {
            snapshot::go_on(&context, &supervisor);
        }
        sandbox::pump(&context, supervisor, events);
    }
    let mut timer: Option<Timestamp> = None;
    let mut first = Some(observed(&context, Some(pod)));
    loop {
        let event = match first.take() {
            Some(event) => event,
            None => tokio::select! {
                // Every arm only waits or takes one message; dropping it loses nothing.
                changed = objects.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let object = objects.borrow_and_update().clone();
                    observed(&context, object)
                }
                event = mailbox.recv() => match event {
                    Some(event) => event,
                    None => return,
                },
                () = until(timer) => {
                    timer = None;
                    Event::TimerFired
                }
            },
        };
        tracing::trace!(uid = context.uid, ?event, "event");
        for effect in life.apply(event, Timestamp::now()) {
            match effect {
                Effect::ArmTimer { at } => timer = at,
                Effect::ConfirmDeleted => return effects::confirm_deleted(&context).await,
                other => effects::start(&context, other),
            }
        }
    }
}

fn observed(context: &PodContext, object: Option<Arc<Pod>>) -> Event {
    match object {
        Some(pod) => {
            let digest = PodDigest::of(&pod);
            if pod.metadata.deletion_timestamp.is_some() {
                context.going.cancel();
            }
            context.pod.store(pod);
            Event::SpecObserved(Box::new(digest))
        }
        None => {
            context.going.cancel();
            Event::Removed
        }
    }
}

async fn until(moment: Option<Timestamp>) {
    match moment {
        Some(moment) => {
            let left = moment.duration_since(Timestamp::now());
            tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
        }
        None => std::future::pending().await,
    }
}
