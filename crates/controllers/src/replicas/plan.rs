//! The decisions of a replica manager. Pure: from what is observed to what is to be done.

use crate::meta::{is_deleting, uid};
use crate::pods::{available_in, is_active, is_ready, node, phase, ready_since};
use cumulet_api::selector::Selector;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use std::cmp::{Ordering, Reverse};
use std::sync::Arc;
use std::time::Duration;

/// Pods that one pass creates or deletes at most, as in Kubernetes.
pub(crate) const BURST: usize = 500;
/// Annotation with a pod's relative cost of deletion; cheaper pods go first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// How the pods of a namespace stand to one owner.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// Owned, and the selector matches.
    pub(crate) owned: Vec<Arc<Pod>>,
    /// Matching and without an owner: to be adopted.
    pub(crate) adopt: Vec<Arc<Pod>>,
    /// Owned, but the labels no longer match: to be released.
    pub(crate) release: Vec<Arc<Pod>>,
}

/// Sorts the pods of a namespace by their relation to an owner. A deleting owner claims nothing new.
pub(crate) fn claims(
    pods: Vec<Arc<Pod>>,
    owner_uid: &str,
    selector: &Selector,
    owner_deleting: bool,
) -> Claims {
    let mut claims = Claims::default();
    for pod in pods {
        let matches = crate::meta::selects(selector, &pod.metadata);
        match crate::meta::controller_of(&pod.metadata) {
            Some(owner) if owner.uid == owner_uid => {
                if matches {
                    claims.owned.push(pod);
                } else if !owner_deleting && !is_deleting(&pod.metadata) {
                    claims.release.push(pod);
                }
            }
            None if matches && !owner_deleting && is_active(&pod) => claims.adopt.push(pod),
            _ => {}
        }
    }
    claims
}

/// What is missing or superfluous.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    /// The number is right.
    Nothing,
    /// Create this many pods.
    Create(usize),
    /// Delete these pods, least valuable first.
    Delete(Vec<Arc<Pod>>),
}

/// Decides how the owned pods come nearer to the wanted number.
pub(crate) fn step(owned: &[Arc<Pod>], wanted: i32, now: Timestamp) -> Step {
    let mut active: Vec<&Arc<Pod>> = owned.iter().filter(|pod| is_active(pod)).collect();
    let wanted = usize::try_from(wanted).unwrap_or(0);
    match active.len().cmp(&wanted) {
        Ordering::Equal => Step::Nothing,
        Ordering::Less => Step::Create((wanted - active.len()).min(BURST)),
        Ordering::Greater => {
            let surplus = (active.len() - wanted).min(BURST);
            active.sort_by_cached_key(|pod| rank(pod, now));
            Step::Delete(active.into_iter().take(surplus).cloned().collect())
        }
    }
}

/// The worth of a pod: smaller goes first. The fields compare in Kubernetes' order.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    bound: bool,
    phase: u8,
    ready: bool,
    deletion_cost: i32,
    /// Doublings of the time for which it has been ready: the log scale keeps the choice from being predictable.
    ready_age: u32,
    restarts: Reverse<i32>,
    age: u32,
    /// Makes the order total.
    uid: String,
}

fn rank(pod: &Pod, now: Timestamp) -> Rank {
    let phase = match phase(pod) {
        "" | "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or(&[]);
    let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    Rank {
        bound: node(pod).is_some(),
        phase,
        ready: is_ready(pod),
        deletion_cost: crate::meta::annotation(&pod.metadata, DELETION_COST)
            .and_then(|cost| cost.parse().ok())
            .unwrap_or(0),
        ready_age: doublings(ready_since(pod), now),
        restarts: Reverse(statuses.iter().map(|s| s.restart_count).max().unwrap_or(0)),
        age: doublings(created, now),
        uid: uid(&pod.metadata).to_owned(),
    }
}

/// Binary logarithm of the nanoseconds since `then`; zero when unknown, so that unknown counts as young.
fn doublings(then: Option<Timestamp>, now: Timestamp) -> u32 {
    let nanos = then.map_or(0, |then| now.duration_since(then).as_nanos());
    u128::try_from(nanos).ok().and_then(u128::checked_ilog2).unwrap_or(0)
}

/// The numbers of a replica manager's status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) replicas: i32,
    pub(crate) fully_labeled: i32,
    pub(crate) ready: i32,
    pub(crate) available: i32,
}

/// Counts the active pods, and tells when the next ready one becomes available.
pub(crate) fn counts(
    owned: &[Arc<Pod>],
    template_labels: Option<&crate::meta::Map>,
    min_ready: Duration,
    now: Timestamp,
) -> (Counts, Option<Duration>) {
    let mut counts = Counts::default();
    let mut next: Option<Duration> = None;
    for pod in owned.iter().filter(|pod| is_active(pod)) {
        counts.replicas += 1;
        let labels = pod.metadata.labels.as_ref();
        let fully_labeled =
            template_labels.is_none_or(|t| t.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v)));
        counts.fully_labeled += i32::from(fully_labeled);
        if let Some(left) = available_in(pod, min_ready, now) {
            counts.ready += 1;
            if left.is_zero() {
                counts.available += 1;
            } else {
                next = Some(next.map_or(left, |n| n.min(left)));
            }
        }
    }
    (counts, next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodSpec, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    /// A pod named by its uid; `ready_at` in seconds.
    fn pod(
        uid: &str,
        bound: bool,
        phase: &str,
        ready_at: Option<i64>,
        restarts: i32,
        created: i64,
    ) -> Arc<Pod> {
        let ready = ready_at.map(|s| PodCondition {
            type_: "Ready".into(),
            status: "True".into(),
            last_transition_time: Some(Time(at(s))),
            ..PodCondition::default()
        });
        Arc::new(Pod {
            metadata: ObjectMeta {
                uid: Some(uid.into()),
                creation_timestamp: Some(Time(at(created))),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec { node_name: bound.then(|| "n".into()), ..PodSpec::default() }),
            status: Some(PodStatus {
                phase: Some(phase.into()),
                conditions: ready.map(|r| vec![r]),
                container_statuses: Some(vec![ContainerStatus {
                    restart_count: restarts,
                    ..ContainerStatus::default()
                }]),
                ..PodStatus::default()
            }),
        })
    }

    #[test]
    fn deletion_order_is_that_of_kubernetes() {
        let mut cheap = (*pod("cheap", true, "Running", Some(10), 0, 0)).clone();
        cheap.metadata.annotations = Some([(DELETION_COST.to_owned(), "-5".to_owned())].into());
        let expected = [
            pod("unbound", false, "Pending", None, 0, 0),
            pod("pending", true, "Pending", None, 0, 0),
            pod("unknown", true, "Unknown", None, 0, 0),
            pod("not-ready", true, "Running", None, 0, 0),
            Arc::new(cheap),
            pod("ready-lately", true, "Running", Some(900), 0, 0),
            pod("restarted", true, "Running", Some(10), 3, 0),
            pod("young", true, "Running", Some(10), 0, 800),
            pod("old", true, "Running", Some(10), 0, 0),
        ];
        let mut shuffled = expected.to_vec();
        shuffled.reverse();
        let Step::Delete(order) = step(&shuffled, 0, at(1000)) else { panic!("all are superfluous") };
        let names = |pods: &[Arc<Pod>]| pods.iter().map(|p| uid(&p.metadata).to_owned()).collect::<Vec<_>>();
        assert_eq!(names(&order), names(&expected));
    }

    #[test]
    fn claims_follow_owner_and_labels() {
        let owned_by = |owner: Option<&str>, app: &str, deleting: bool| {
            let mut p = (*pod("p", true, "Running", None, 0, 0)).clone();
            p.metadata.labels = Some([("app".to_owned(), app.to_owned())].into());
            p.metadata.deletion_timestamp = deleting.then(|| Time(at(0)));
            p.metadata.owner_references = owner.map(|uid| {
                vec![OwnerReference { uid: uid.into(), controller: Some(true), ..OwnerReference::default() }]
            });
            Arc::new(p)
        };
        let selector = Selector::from_pairs([("app", "web")]);
        for (owner, app, deleting, owner_deleting, expected) in [
            (Some("me"), "web", false, false, (1, 0, 0)),
            (Some("me"), "web", true, false, (1, 0, 0)),
            (Some("me"), "db", false, false, (0, 0, 1)),
            (Some("me"), "db", true, false, (0, 0, 0)),
            (Some("me"), "db", false, true, (0, 0, 0)),
            (Some("other"), "web", false, false, (0, 0, 0)),
            (None, "web", false, false, (0, 1, 0)),
            (None, "web", true, false, (0, 0, 0)),
            (None, "web", false, true, (0, 0, 0)),
            (None, "db", false, false, (0, 0, 0)),
        ] {
            let c = claims(vec![owned_by(owner, app, deleting)], "me", &selector, owner_deleting);
            assert_eq!(
                (c.owned.len(), c.adopt.len(), c.release.len()),
                expected,
                "{owner:?} {app} {deleting}"
            );
        }
    }

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let pods = [pod("a", true, "Running", Some(100), 0, 0), pod("b", true, "Running", Some(95), 0, 0)];
        let (c, next) = counts(&pods, None, Duration::from_secs(10), at(105));
        assert_eq!((c.replicas, c.ready, c.available, next), (2, 2, 1, Some(Duration::from_secs(5))));
        let (c, next) = counts(&pods, None, Duration::ZERO, at(100));
        assert_eq!((c.available, next), (2, None));
    }

    proptest! {
        #[test]
        fn a_step_never_overshoots(states in prop::collection::vec((any::<bool>(), 0u8..4, any::<bool>()), 0..40), wanted in 0i32..40) {
            let pods: Vec<_> = states.iter().enumerate().map(|(i, (bound, phase, ready))| {
                let phase = ["Pending", "Running", "Failed", "Succeeded"][usize::from(*phase)];
                pod(&i.to_string(), *bound, phase, ready.then_some(1), 0, 0)
            }).collect();
            let active = pods.iter().filter(|p| is_active(p)).count();
            match step(&pods, wanted, at(10)) {
                Step::Nothing => prop_assert_eq!(active, wanted as usize),
                Step::Create(n) => prop_assert_eq!(active + n, wanted as usize),
                Step::Delete(victims) => {
                    prop_assert_eq!(active - victims.len(), wanted as usize);
                    prop_assert!(victims.iter().all(|v| is_active(v)));
                    let survivor_not_ready = pods.iter().filter(|p| is_active(p)).any(|p| !is_ready(p) && !victims.contains(p));
                    let lost_ready = victims.iter().any(|v| is_ready(v) && node(v).is_some() && phase(v) == "Running");
                    prop_assert!(!(lost_ready && survivor_not_ready), "a running ready pod went before one that is not");
                }
            }
        }
    }
}
