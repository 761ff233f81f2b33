//! The conditions that the node owns, with the time at which each last changed.

use crate::container::ContainerLife;
use crate::digest::{ContainerDigest, Role};
use crate::machine::{PodLife, Sandbox};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Truth of a condition, with reason and message when it is not simply true.
struct Verdict {
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn plain(status: bool) -> Self {
        Self { status, reason: None, message: None }
    }

    fn because(status: bool, reason: &'static str, message: Option<String>) -> Self {
        Self { status, reason: Some(reason), message }
    }
}

impl PodLife {
    pub(crate) fn make_conditions(&self, phase: &str, now: Timestamp) -> Vec<PodCondition> {
        let ready = self.containers_ready(phase);
        let all = [
            ("PodReadyToStartContainers", Verdict::plain(self.sandbox == Sandbox::Ready)),
            ("Initialized", self.is_initialized(phase)),
            ("Ready", self.is_ready(&ready)),
            ("ContainersReady", ready),
            ("PodScheduled", Verdict::plain(true)),
        ];
        all.into_iter().map(|(name, verdict)| self.condition(name, verdict, now)).collect()
    }

    fn condition(&self, name: &str, verdict: Verdict, now: Timestamp) -> PodCondition {
        let status = if verdict.status { "True" } else { "False" };
        let before = self.conditions.iter().find(|c| c.type_ == name);
        let since = before.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
        PodCondition {
            type_: name.to_owned(),
            status: status.to_owned(),
            reason: verdict.reason.map(str::to_owned),
            message: verdict.message,
            last_transition_time: since.or_else(|| Some(Time(crate::status::whole_second(now)))),
            observed_generation: self.digest.generation,
            ..PodCondition::default()
        }
    }

    fn is_initialized(&self, phase: &str) -> Verdict {
        if phase == "Succeeded" {
            return Verdict::because(true, "PodCompleted", None);
        }
        let incomplete = |d: &ContainerDigest, c: &ContainerLife| match d.role {
            Role::Init => !c.done && !self.initialized,
            Role::Sidecar => !c.started && !self.initialized,
            Role::App => false,
        };
        let names = self.names(incomplete);
        if names.is_empty() {
            return Verdict::plain(true);
        }
        let message = format!("containers with incomplete status: [{}]", names.join(" "));
        Verdict::because(false, "ContainersNotInitialized", Some(message))
    }

    fn containers_ready(&self, phase: &str) -> Verdict {
        match phase {
            "Succeeded" => return Verdict::because(false, "PodCompleted", None),
            "Failed" => return Verdict::because(false, "PodFailed", None),
            _ => {}
        }
        let names = self.names(|d, c| d.role != Role::Init && !c.ready);
        if names.is_empty() {
            return Verdict::plain(true);
        }
        let message = format!("containers with unready status: [{}]", names.join(" "));
        Verdict::because(false, "ContainersNotReady", Some(message))
    }

    fn is_ready(&self, containers: &Verdict) -> Verdict {
        if !containers.status {
            return Verdict { status: false, reason: containers.reason, message: containers.message.clone() };
        }
        let state = |gate: &String| self.digest.conditions.iter().find(|c| c.type_ == *gate);
        let missing: Vec<String> = self
            .digest
            .readiness_gates
            .iter()
            .filter_map(|gate| match state(gate) {
                None => {
                    Some(format!("corresponding condition of pod readiness gate \"{gate}\" does not exist."))
                }
                Some(c) if c.status != "True" => Some(format!(
                    "the status of pod readiness gate \"{gate}\" is not \"True\", but {}",
                    c.status
                )),
                Some(_) => None,
            })
            .collect();
        if missing.is_empty() {
            return Verdict::plain(true);
        }
        Verdict::because(false, "ReadinessGatesNotReady", Some(missing.join(", ")))
    }

    fn names(&self, test: impl Fn(&ContainerDigest, &ContainerLife) -> bool) -> Vec<&str> {
        let all = self.digest.containers.iter().zip(&self.containers);
        all.filter(|(d, c)| test(d, c)).map(|(d, _)| d.name.as_str()).collect()
    }
}
