//! The vocabulary between the state machine and the node that serves it.

use crate::container::Ended;
use crate::digest::PodDigest;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::PodStatus;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The object, as last seen.
    SpecObserved(Box<PodDigest>),
    /// The object is gone from the API.
    Removed,
    /// All volumes can be mounted.
    VolumesReady,
    /// A volume cannot be prepared now.
    VolumesFailed {
        /// Why, for people.
        message: String,
    },
    /// The image of a container is there.
    ImageResolved {
        /// Container name.
        container: String,
        /// Digest for `status.imageID`.
        image_id: String,
        /// How it was pulled, for people; absent when it was there already.
        pulled: Option<String>,
    },
    /// The image of a container is not there.
    ImageFailed {
        /// Container name.
        container: String,
        /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`.
        reason: String,
        /// Why, for people.
        message: String,
    },
    /// The image store changed: what is missing may be there now.
    ImagesChanged,
    /// A ConfigMap, Secret or the like that the pod refers to changed.
    InputsChanged,
    /// The sandbox is up.
    SandboxReady {
        /// Addresses, the first one is `status.podIP`.
        ips: Vec<String>,
    },
    /// The sandbox could not be made; nothing of it is left.
    SandboxFailed {
        /// Why, for people.
        message: String,
        /// Trying again is useless.
        permanent: bool,
    },
    /// The sandbox is gone, with every process in it. Its remains still need [`Effect::DestroySandbox`].
    SandboxLost {
        /// What is known of how the containers ended.
        ended: Vec<(String, u32, Ended)>,
    },
    /// Nothing of the sandbox is left.
    SandboxDestroyed,
    /// Instance `attempt` runs.
    ContainerStarted {
        /// Container name.
        container: String,
        /// Instance.
        attempt: u32,
        /// Runtime identifier.
        id: String,
        /// When.
        at: Timestamp,
        /// It goes on from a memory snapshot, in which its program had started.
        restored: bool,
    },
    /// Instance `attempt` was not made; the number is free again.
    StartFailed {
        /// Container name.
        container: String,
        /// Instance.
        attempt: u32,
        /// `CreateContainerConfigError`, `CreateContainerError`, `RunContainerError`.
        reason: String,
        /// Why, for people.
        message: String,
    },
    /// Instance `attempt` ended, or was made but could not be started.
    ContainerEnded {
        /// Container name.
        container: String,
        /// Instance.
        attempt: u32,
        /// How.
        ended: Ended,
    },
    /// A probe was carried out.
    ProbeResult {
        /// Container name.
        container: String,
        /// Instance that was probed.
        attempt: u32,
        /// Which probe.
        probe: ProbeKind,
        /// What it said.
        outcome: ProbeOutcome,
    },
    /// A lifecycle hook finished.
    HookFinished {
        /// Container name.
        container: String,
        /// Instance.
        attempt: u32,
        /// Which hook.
        hook: Hook,
        /// Why it failed, if it did.
        failure: Option<String>,
    },
    /// The armed moment has come.
    TimerFired,
}

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are Kubernetes' own")]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    /// As the kubelet writes it in events.
    pub fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// What a probe said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// Healthy.
    Success,
    /// Not healthy, and why.
    Failure(String),
    /// The probe itself could not be carried out; counts for nothing.
    Unknown(String),
}

/// Which lifecycle hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are Kubernetes' own")]
pub enum Hook {
    PostStart,
    PreStop,
}

/// Type of an Event object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are Kubernetes' own")]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    /// As written in the object.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Something to be done. Effects of one answer are independent of each other unless said otherwise.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Prepare all volumes; answered by `VolumesReady` or `VolumesFailed`.
    PrepareVolumes,
    /// Look for an image; answered by `ImageResolved` or `ImageFailed`.
    EnsureImage {
        /// Container name.
        container: String,
    },
    /// Make the sandbox; answered by `SandboxReady` or `SandboxFailed`.
    CreateSandbox,
    /// Start an instance; answered by `ContainerStarted`, `ContainerEnded` or `StartFailed`.
    StartContainer {
        /// Container name.
        container: String,
        /// Instance to start.
        attempt: u32,
    },
    /// Send TERM, or KILL when `kill`; `ContainerEnded` comes when it works.
    Signal {
        /// Container name.
        container: String,
        /// Instance meant.
        attempt: u32,
        /// KILL to every process instead of TERM to the first.
        kill: bool,
    },
    /// Run a hook; answered by `HookFinished`.
    RunHook {
        /// Container name.
        container: String,
        /// Instance meant.
        attempt: u32,
        /// Which.
        hook: Hook,
        /// Give up after this time; no limit when `None`.
        timeout: Option<SignedDuration>,
    },
    /// Carry out one probe; answered by `ProbeResult`.
    RunProbe {
        /// Container name.
        container: String,
        /// Instance meant.
        attempt: u32,
        /// Which.
        probe: ProbeKind,
    },
    /// Send `TimerFired` at this moment; replaces the one armed before. `None` disarms.
    ArmTimer {
        /// When.
        at: Option<Timestamp>,
    },
    /// Kill what runs and remove the sandbox; answered by `SandboxDestroyed`, always.
    DestroySandbox,
    /// Write the status; the latest wins.
    PublishStatus(Box<PodStatus>),
    /// Record an Event object.
    RecordEvent {
        /// Container that it is about; the whole pod when `None`.
        container: Option<String>,
        /// Its type.
        kind: EventType,
        /// CamelCase reason.
        reason: &'static str,
        /// For people.
        message: String,
    },
    /// After the last status is written: remove the pod's files, and the object if it still exists. The last effect.
    ConfirmDeleted,
}

/// What a new main process found of a pod that an older one had started.
#[derive(Clone, Debug, Default)]
pub enum Found {
    /// Nothing.
    #[default]
    Nothing,
    /// A living sandbox.
    Running {
        /// Its addresses.
        ips: Vec<String>,
        /// Newest instance of every container ever started in it.
        containers: Vec<FoundContainer>,
    },
    /// The remains of a sandbox whose supervisor is gone.
    Dead {
        /// Newest instance of every container ever started in it; none is running.
        containers: Vec<FoundContainer>,
    },
}

/// One container found.
#[derive(Clone, Debug)]
pub struct FoundContainer {
    /// Container name.
    pub name: String,
    /// Instance.
    pub attempt: u32,
    /// Runtime identifier.
    pub id: String,
    /// Since when it runs, or how it ended.
    pub state: Result<Timestamp, Ended>,
    /// How the instance before ended.
    pub previous: Option<Ended>,
}
