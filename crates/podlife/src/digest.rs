//! What the state machine needs to know of a pod object, with Kubernetes' defaults filled in.

use crate::qos::{QosClass, qos_class};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, Probe};

/// When a container is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whenever it ends.
    Always,
    /// When it ends with an exit code other than 0.
    OnFailure,
    /// Never.
    Never,
}

impl RestartPolicy {
    fn parse(text: Option<&str>) -> Self {
        match text {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }
}

/// What part a container plays in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before what comes after it.
    Init,
    /// An init container with `restartPolicy: Always`: starts in its turn and stays.
    Sidecar,
    /// One of `spec.containers`.
    App,
}

/// When to probe and what the results mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeRule {
    /// No probe before this time after the start.
    pub initial_delay: SignedDuration,
    /// Time between probes.
    pub period: SignedDuration,
    /// This many failures in a row make it failed.
    pub failure_threshold: u32,
    /// This many successes in a row make it successful.
    pub success_threshold: u32,
    /// Overrides the pod's grace period when the failure kills the container.
    pub grace: Option<SignedDuration>,
}

/// One container of the pod.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerDigest {
    /// Its name, unique in the pod.
    pub name: String,
    /// Image reference as written.
    pub image: String,
    /// Its part.
    pub role: Role,
    /// When it is started again.
    pub restart: RestartPolicy,
    /// It has a `postStart` hook.
    pub post_start: bool,
    /// It has a `preStop` hook.
    pub pre_stop: bool,
    /// Startup probe.
    pub startup: Option<ProbeRule>,
    /// Liveness probe.
    pub liveness: Option<ProbeRule>,
    /// Readiness probe.
    pub readiness: Option<ProbeRule>,
}

/// The object is being deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// Time that the containers have from now on.
    pub grace: SignedDuration,
}

/// What the state machine needs of a pod object.
#[derive(Clone, Debug, PartialEq)]
pub struct PodDigest {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// `metadata.generation`, for `status.observedGeneration`.
    pub generation: Option<i64>,
    /// The pod's policy.
    pub restart: RestartPolicy,
    /// Init containers in order, then the others.
    pub containers: Vec<ContainerDigest>,
    /// `terminationGracePeriodSeconds`.
    pub grace: SignedDuration,
    /// `activeDeadlineSeconds`.
    pub active_deadline: Option<SignedDuration>,
    /// Condition types that must be true for the pod to be ready.
    pub readiness_gates: Vec<String>,
    /// The conditions in the object, whoever wrote them; the gates are looked up here.
    pub conditions: Vec<PodCondition>,
    /// Set when the object is being deleted.
    pub deletion: Option<Deletion>,
    /// Quality of service.
    pub qos: QosClass,
}

impl PodDigest {
    /// Reads a pod object.
    pub fn of(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let spec = pod.spec.clone().unwrap_or_default();
        let restart = RestartPolicy::parse(spec.restart_policy.as_deref());
        let init = spec.init_containers.unwrap_or_default();
        let containers = init
            .iter()
            .map(|c| container(c, restart, true))
            .chain(spec.containers.iter().map(|c| container(c, restart, false)))
            .collect();
        let grace = spec.termination_grace_period_seconds.unwrap_or(30);
        let deletion = meta
            .deletion_timestamp
            .as_ref()
            .map(|_| Deletion { grace: seconds(meta.deletion_grace_period_seconds.unwrap_or(grace)) });
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            generation: meta.generation,
            restart,
            containers,
            grace: seconds(grace),
            active_deadline: spec.active_deadline_seconds.map(seconds),
            readiness_gates: spec.readiness_gates.into_iter().flatten().map(|g| g.condition_type).collect(),
            conditions: pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default(),
            deletion,
            qos: qos_class(pod),
        }
    }

    /// `name_namespace(uid)`, as Kubernetes writes a pod in messages.
    pub fn full_name(&self) -> String {
        format!("{}_{}({})", self.name, self.namespace, self.uid)
    }

    pub(crate) fn has_init(&self) -> bool {
        self.containers.iter().any(|c| c.role != Role::App)
    }
}

fn container(c: &Container, pod: RestartPolicy, init: bool) -> ContainerDigest {
    let own = c.restart_policy.as_deref();
    let (role, restart) = match (init, own) {
        (true, Some("Always")) => (Role::Sidecar, RestartPolicy::Always),
        (true, own) => {
            let policy = own.map_or(pod, |p| RestartPolicy::parse(Some(p)));
            let policy = if policy == RestartPolicy::Never { policy } else { RestartPolicy::OnFailure };
            (Role::Init, policy)
        }
        (false, own) => (Role::App, own.map_or(pod, |p| RestartPolicy::parse(Some(p)))),
    };
    let lifecycle = c.lifecycle.as_ref();
    ContainerDigest {
        name: c.name.clone(),
        image: c.image.clone().unwrap_or_default(),
        role,
        restart,
        post_start: lifecycle.is_some_and(|l| l.post_start.is_some()),
        pre_stop: lifecycle.is_some_and(|l| l.pre_stop.is_some()),
        startup: c.startup_probe.as_ref().map(probe),
        liveness: c.liveness_probe.as_ref().map(probe),
        readiness: c.readiness_probe.as_ref().map(probe),
    }
}

fn probe(p: &Probe) -> ProbeRule {
    let at_least_one = |n: Option<i32>, default: i32| n.filter(|n| *n > 0).unwrap_or(default).unsigned_abs();
    ProbeRule {
        initial_delay: seconds(i64::from(p.initial_delay_seconds.unwrap_or(0))),
        period: seconds(i64::from(at_least_one(p.period_seconds, 10))),
        failure_threshold: at_least_one(p.failure_threshold, 3),
        success_threshold: at_least_one(p.success_threshold, 1),
        grace: p.termination_grace_period_seconds.map(seconds),
    }
}

/// Seconds of an API field; negative ones count as none, absurd ones are capped at a hundred years.
pub(crate) fn seconds(n: i64) -> SignedDuration {
    SignedDuration::from_secs(n.clamp(0, 100 * 366 * 86_400))
}

/// Reads a Kubernetes time.
pub(crate) fn timestamp(
    time: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>,
) -> Option<Timestamp> {
    time.map(|t| t.0)
}
