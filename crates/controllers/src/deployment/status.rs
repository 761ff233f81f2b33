//! The status of a deployment: counts and conditions, by which `kubectl rollout status` knows how it goes. Pure.

use crate::deployment::rolling::Goal;
use crate::meta::{name, remaining};
use crate::replicaset::REPLICA_FAILURE;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

pub(crate) const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const NEW_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
/// A deadline of this many seconds means none, as in Kubernetes.
const NO_DEADLINE: i32 = i32::MAX;

/// The deadline for progress, if there is one.
pub(crate) fn deadline(deployment: &Deployment) -> Option<Duration> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds.filter(|s| *s != NO_DEADLINE)?;
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// A condition that begins now.
pub(crate) fn condition(
    type_: &str,
    status: bool,
    reason: &str,
    message: String,
    now: &Time,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: type_.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now.clone()),
    }
}

/// The condition of a type.
pub(crate) fn find<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == type_)
}

/// Sets a condition unless it says the same already; the time of transition stays while the status does.
pub(crate) fn set(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    let conditions = status.conditions.get_or_insert_default();
    if let Some(old) = conditions.iter().find(|c| c.type_ == new.type_) {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time = old.last_transition_time.clone();
        }
    }
    conditions.retain(|c| c.type_ != new.type_);
    conditions.push(new);
}

fn unset(status: &mut DeploymentStatus, type_: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|c| c.type_ != type_);
    }
}

/// The counts, and the `Available` condition.
pub(crate) fn counted(
    deployment: &Deployment,
    goal: &Goal,
    new: Option<&ReplicaSet>,
    all: &[Arc<ReplicaSet>],
    now: &Time,
) -> DeploymentStatus {
    let sum = |count: fn(&ReplicaSet) -> Option<i32>| all.iter().filter_map(|rs| count(rs)).sum::<i32>();
    let available = sum(|rs| rs.status.as_ref()?.available_replicas);
    let wanted = sum(|rs| rs.spec.as_ref()?.replicas);
    let positive = |n: i32| (n > 0).then_some(n);
    let before = deployment.status.clone().unwrap_or_default();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: positive(sum(|rs| Some(rs.status.as_ref()?.replicas))),
        updated_replicas: positive(new.and_then(|rs| Some(rs.status.as_ref()?.replicas)).unwrap_or(0)),
        ready_replicas: positive(sum(|rs| rs.status.as_ref()?.ready_replicas)),
        available_replicas: positive(available),
        unavailable_replicas: positive(wanted - available),
        collision_count: before.collision_count,
        terminating_replicas: before.terminating_replicas,
        conditions: before.conditions,
    };
    let condition = if available >= goal.floor() {
        let message = "Deployment has minimum availability.".to_owned();
        condition(AVAILABLE, true, "MinimumReplicasAvailable", message, now)
    } else {
        let message = "Deployment does not have minimum availability.".to_owned();
        condition(AVAILABLE, false, "MinimumReplicasUnavailable", message, now)
    };
    set(&mut status, condition);
    status
}

/// True when nothing of the rollout is left to do.
pub(crate) fn is_complete(deployment: &Deployment, goal: &Goal, status: &DeploymentStatus) -> bool {
    let wanted = Some(goal.replicas).filter(|n| *n > 0);
    status.updated_replicas == wanted
        && status.replicas == wanted
        && status.available_replicas == wanted
        && status.observed_generation.unwrap_or(0) >= deployment.metadata.generation.unwrap_or(0)
}

fn has_progressed(before: &DeploymentStatus, after: &DeploymentStatus) -> bool {
    let n = |count: Option<i32>| count.unwrap_or(0);
    let old = |status: &DeploymentStatus| n(status.replicas) - n(status.updated_replicas);
    n(after.updated_replicas) > n(before.updated_replicas)
        || old(after) < old(before)
        || n(after.ready_replicas) > n(before.ready_replicas)
        || n(after.available_replicas) > n(before.available_replicas)
}

fn has_timed_out(status: &DeploymentStatus, deadline: Duration, now: Timestamp) -> bool {
    let Some(progressing) = find(status, PROGRESSING) else { return false };
    match progressing.reason.as_deref() {
        Some(NEW_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => progressing.last_update_time.as_ref().is_some_and(|t| remaining(t.0, deadline, now).is_zero()),
    }
}

/// The status of a rollout: the counts of [`counted`] and the conditions of progress and failure. Also tells after
/// which time the deadline has to be looked at again.
pub(crate) fn rollout(
    deployment: &Deployment,
    goal: &Goal,
    new: Option<&ReplicaSet>,
    all: &[Arc<ReplicaSet>],
    now: &Time,
) -> (DeploymentStatus, Option<Duration>) {
    let before = deployment.status.clone().unwrap_or_default();
    let mut status = counted(deployment, goal, new, all, now);
    let subject = new.map_or_else(
        || format!("Deployment \"{}\"", name(&deployment.metadata)),
        |rs| format!("ReplicaSet \"{}\"", name(&rs.metadata)),
    );
    let complete = is_complete(deployment, goal, &status);
    let Some(deadline) = deadline(deployment) else {
        unset(&mut status, PROGRESSING);
        failure(&mut status, new, all);
        return (status, None);
    };
    let known_complete = status.replicas == status.updated_replicas
        && find(&status, PROGRESSING).is_some_and(|c| c.reason.as_deref() == Some(NEW_AVAILABLE));
    if !known_complete {
        if complete {
            let message = format!("{subject} has successfully progressed.");
            set(&mut status, condition(PROGRESSING, true, NEW_AVAILABLE, message, now));
        } else if has_progressed(&before, &status) {
            progressed(&mut status, format!("{subject} is progressing."), now);
        } else if has_timed_out(&status, deadline, now.0) {
            let message = format!("{subject} has timed out progressing.");
            set(&mut status, condition(PROGRESSING, false, TIMED_OUT, message, now));
        }
    }
    failure(&mut status, new, all);
    let again = find(&status, PROGRESSING)
        .filter(|c| !complete && !matches!(c.reason.as_deref(), Some(TIMED_OUT | NEW_AVAILABLE)))
        .and_then(|c| c.last_update_time.as_ref())
        // Times have whole seconds, so look again a second later.
        .map(|since| remaining(since.0, deadline, now.0) + Duration::from_secs(1));
    (status, again)
}

/// Notes progress, also when the reason stays: the deadline counts from the last one.
fn progressed(status: &mut DeploymentStatus, message: String, now: &Time) {
    let mut new = condition(PROGRESSING, true, "ReplicaSetUpdated", message, now);
    if let Some(old) = find(status, PROGRESSING).filter(|c| c.status == new.status) {
        new.last_transition_time = old.last_transition_time.clone();
    }
    unset(status, PROGRESSING);
    set(status, new);
}

/// Hands on the failure of a ReplicaSet, that of the new one first.
fn failure(status: &mut DeploymentStatus, new: Option<&ReplicaSet>, all: &[Arc<ReplicaSet>]) {
    let of = |rs: &ReplicaSet| {
        rs.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == REPLICA_FAILURE).cloned()
    };
    match new.and_then(of).or_else(|| all.iter().find_map(|rs| of(rs))) {
        None => unset(status, REPLICA_FAILURE),
        Some(c) => set(
            status,
            DeploymentCondition {
                type_: REPLICA_FAILURE.to_owned(),
                status: c.status,
                reason: c.reason,
                message: c.message,
                last_update_time: c.last_transition_time.clone(),
                last_transition_time: c.last_transition_time,
            },
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSetSpec, ReplicaSetStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).expect("in range"))
    }

    fn set_of(wanted: i32, replicas: i32, available: i32) -> Arc<ReplicaSet> {
        Arc::new(ReplicaSet {
            metadata: ObjectMeta { name: Some("web-1".into()), ..ObjectMeta::default() },
            spec: Some(ReplicaSetSpec { replicas: Some(wanted), ..ReplicaSetSpec::default() }),
            status: Some(ReplicaSetStatus {
                replicas,
                ready_replicas: Some(available),
                available_replicas: Some(available),
                ..ReplicaSetStatus::default()
            }),
        })
    }

    fn deployment(replicas: i32) -> Deployment {
        Deployment {
            metadata: ObjectMeta { name: Some("web".into()), generation: Some(1), ..ObjectMeta::default() },
            spec: Some(DeploymentSpec {
                replicas: Some(replicas),
                progress_deadline_seconds: Some(600),
                ..DeploymentSpec::default()
            }),
            status: None,
        }
    }

    fn reason(status: &DeploymentStatus, type_: &str) -> String {
        find(status, type_).and_then(|c| c.reason.clone()).unwrap_or_default()
    }

    #[test]
    fn a_rollout_progresses_completes_and_stays() {
        let mut d = deployment(3);
        let goal = Goal::of(&d);
        for (second, set, expected_progress, expected_available) in [
            (0, set_of(3, 0, 0), "", "MinimumReplicasUnavailable"),
            (1, set_of(3, 3, 0), "ReplicaSetUpdated", "MinimumReplicasUnavailable"),
            (2, set_of(3, 3, 2), "ReplicaSetUpdated", "MinimumReplicasUnavailable"),
            (3, set_of(3, 3, 3), NEW_AVAILABLE, "MinimumReplicasAvailable"),
            (9000, set_of(3, 3, 2), NEW_AVAILABLE, "MinimumReplicasUnavailable"),
            (9001, set_of(3, 3, 3), NEW_AVAILABLE, "MinimumReplicasAvailable"),
        ] {
            let (status, _) = rollout(&d, &goal, Some(&set), std::slice::from_ref(&set), &at(second));
            assert_eq!(reason(&status, PROGRESSING), expected_progress, "at {second}");
            assert_eq!(reason(&status, AVAILABLE), expected_available, "at {second}");
            d.status = Some(status);
        }
        let set = set_of(3, 3, 3);
        let (again, wait) = rollout(&d, &goal, Some(&set), std::slice::from_ref(&set), &at(9999));
        assert_eq!((Some(again), wait), (d.status, None), "a finished rollout does not change");
    }

    #[test]
    fn a_stuck_rollout_times_out() {
        let mut d = deployment(2);
        let goal = Goal::of(&d);
        let set = set_of(2, 2, 0);
        for (second, expected, wait) in [
            (0, "ReplicaSetUpdated", Some(601)),
            (599, "ReplicaSetUpdated", Some(2)),
            (600, TIMED_OUT, None),
            (999, TIMED_OUT, None),
        ] {
            let (status, again) = rollout(&d, &goal, Some(&set), std::slice::from_ref(&set), &at(second));
            assert_eq!(reason(&status, PROGRESSING), expected, "at {second}");
            assert_eq!(again.map(|w| w.as_secs()), wait, "at {second}");
            d.status = Some(status);
        }
    }

    #[test]
    fn no_replicas_are_complete() {
        let d = deployment(0);
        let set = set_of(0, 0, 0);
        let (status, _) = rollout(&d, &Goal::of(&d), Some(&set), std::slice::from_ref(&set), &at(0));
        assert_eq!(reason(&status, PROGRESSING), NEW_AVAILABLE);
        assert_eq!(status.replicas, None);
    }
}
