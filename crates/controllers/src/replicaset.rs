//! ReplicaSets: the adapter for [`crate::replicas`].

use crate::meta::workload_selector;
use crate::replicas::{Counts, Failure, ReplicaOwner, ReplicaStatus};
use cumulet_api::selector::Selector;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::PodTemplateSpec;

/// Type of the condition that tells of pods that could not be created or deleted.
pub(crate) const REPLICA_FAILURE: &str = "ReplicaFailure";

impl ReplicaOwner for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset-controller";

    fn wanted(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn selector(&self) -> Option<Selector> {
        workload_selector(&self.spec.as_ref()?.selector)
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn status(&self) -> ReplicaStatus {
        let Some(status) = &self.status else { return ReplicaStatus::default() };
        let failure =
            status.conditions.iter().flatten().find(|c| c.type_ == REPLICA_FAILURE && c.status == "True");
        ReplicaStatus {
            counts: Counts {
                replicas: status.replicas,
                fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
                ready: status.ready_replicas.unwrap_or(0),
                available: status.available_replicas.unwrap_or(0),
            },
            observed_generation: status.observed_generation,
            failure: failure.map(|c| Failure {
                reason: c.reason.clone().unwrap_or_default(),
                message: c.message.clone().unwrap_or_default(),
                since: c.last_transition_time.clone(),
            }),
        }
    }

    fn with_status(&self, status: &ReplicaStatus) -> Self {
        let before = self.status.clone().unwrap_or_default();
        let mut conditions = before.conditions.unwrap_or_default();
        conditions.retain(|c| c.type_ != REPLICA_FAILURE);
        conditions.extend(status.failure.as_ref().map(|failure| ReplicaSetCondition {
            type_: REPLICA_FAILURE.to_owned(),
            status: "True".to_owned(),
            reason: Some(failure.reason.clone()),
            message: Some(failure.message.clone()),
            last_transition_time: failure.since.clone(),
        }));
        let positive = |n: i32| (n > 0).then_some(n);
        let counts = status.counts;
        Self {
            status: Some(ReplicaSetStatus {
                replicas: counts.replicas,
                fully_labeled_replicas: positive(counts.fully_labeled),
                ready_replicas: positive(counts.ready),
                available_replicas: positive(counts.available),
                observed_generation: status.observed_generation,
                conditions: (!conditions.is_empty()).then_some(conditions),
                terminating_replicas: before.terminating_replicas,
            }),
            ..self.clone()
        }
    }
}
