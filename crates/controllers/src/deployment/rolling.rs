//! The arithmetic of a rollout: which ReplicaSet gets how many replicas. Pure.
//!
//! Two bounds hold at every moment, whatever is started, stopped or breaks: never more than `replicas + surge` pods
//! are asked for, and nothing is scaled down that would leave fewer than `replicas - unavailable` available. The
//! arithmetic is Kubernetes', so that a rollout looks the same to who watches it.

use crate::deployment::revision::max_replicas_annotation;
use crate::meta::name;
use cumulet_api::intstr::IntOrString as Scaled;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::cmp::Reverse;
use std::sync::Arc;

/// What the spec of a deployment asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Goal {
    pub(crate) replicas: i32,
    /// Pods allowed beyond `replicas`.
    pub(crate) surge: i32,
    /// Pods of `replicas` that may be unavailable.
    pub(crate) unavailable: i32,
    pub(crate) recreate: bool,
}

impl Goal {
    pub(crate) fn of(deployment: &Deployment) -> Self {
        let spec = deployment.spec.as_ref();
        let replicas = spec.and_then(|s| s.replicas).unwrap_or(1).max(0);
        let strategy = spec.and_then(|s| s.strategy.as_ref());
        if strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate") {
            return Self { replicas, surge: 0, unavailable: 0, recreate: true };
        }
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let surge = resolve(rolling.and_then(|r| r.max_surge.as_ref()), replicas, true);
        let unavailable = resolve(rolling.and_then(|r| r.max_unavailable.as_ref()), replicas, false);
        // Both zero (which validation forbids, but percentages can round to) would never move.
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        Self { replicas, surge, unavailable: unavailable.min(replicas), recreate: false }
    }

    /// Most pods that may be asked for.
    pub(crate) fn ceiling(&self) -> i32 {
        self.replicas.saturating_add(self.surge)
    }

    /// Fewest pods that must be available.
    pub(crate) fn floor(&self) -> i32 {
        self.replicas - self.unavailable
    }
}

fn resolve(value: Option<&IntOrString>, replicas: i32, round_up: bool) -> i32 {
    let scaled = match value {
        Some(IntOrString::Int(n)) => Scaled::Int(i64::from(*n)),
        Some(IntOrString::String(s)) => Scaled::String(s),
        None => Scaled::String("25%"),
    };
    i32::try_from(scaled.scaled(i64::from(replicas), round_up).unwrap_or(0)).unwrap_or(i32::MAX).max(0)
}

/// What the arithmetic needs of a ReplicaSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) name: String,
    pub(crate) replicas: i32,
    /// As the status says. May be more than `replicas`: the status is behind the spec after scaling down.
    pub(crate) available: i32,
    /// The status was written with the present spec in view.
    pub(crate) observed: bool,
    /// Seconds since the epoch.
    pub(crate) created: i64,
    /// The most replicas that the whole deployment could have when this one was last scaled.
    pub(crate) max_replicas: Option<i32>,
}

impl Size {
    /// Available replicas that are there to stay.
    fn lasting(&self) -> i32 {
        self.available.min(self.replicas)
    }

    pub(crate) fn of(rs: &ReplicaSet) -> Self {
        Self {
            name: name(&rs.metadata).to_owned(),
            replicas: rs.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1),
            available: rs.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0),
            observed: rs.status.as_ref().and_then(|s| s.observed_generation) >= rs.metadata.generation,
            created: rs.metadata.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second()),
            max_replicas: max_replicas_annotation(&rs.metadata),
        }
    }

    pub(crate) fn all(sets: &[Arc<ReplicaSet>]) -> Vec<Self> {
        sets.iter().map(|rs| Self::of(rs)).collect()
    }
}

/// A ReplicaSet's name and the size it is to get.
pub(crate) type Resize = (String, i32);

/// How large the new ReplicaSet (now `current`, among `total` replicas of all sets) is to be.
pub(crate) fn new_size(goal: &Goal, current: i32, total: i32) -> i32 {
    if goal.recreate || current > goal.replicas {
        return goal.replicas;
    }
    let room = goal.ceiling().saturating_sub(total);
    if room <= 0 { current } else { current + room.min(goal.replicas - current) }
}

/// How far the old ReplicaSets shrink in one step of a rolling update. Unhealthy replicas go first: they cost
/// nothing. While a status is older than its spec nothing shrinks: a set that was scaled down and up again would
/// count as available what it is about to delete. The status comes within milliseconds.
pub(crate) fn shrink_old(goal: &Goal, new: &Size, old: &[Size]) -> Vec<Resize> {
    if !new.observed || old.iter().any(|s| !s.observed) {
        return Vec::new();
    }
    let total = new.replicas + old.iter().map(|s| s.replicas).sum::<i32>();
    let mut budget = total - goal.floor() - (new.replicas - new.available).max(0);
    if budget <= 0 {
        return Vec::new();
    }
    let mut sizes = old.to_vec();
    sizes.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    for size in &mut sizes {
        let gone = (size.replicas - size.available).clamp(0, budget);
        size.replicas -= gone;
        budget -= gone;
    }
    // What was scaled down already but is still counted as available must not be given away a second time.
    let lasting: i32 = new.lasting() + old.iter().map(Size::lasting).sum::<i32>();
    let mut budget = (lasting - goal.floor()).max(0);
    for size in &mut sizes {
        let gone = size.replicas.clamp(0, budget);
        size.replicas -= gone;
        budget -= gone;
    }
    changes(old, &sizes)
}

/// Spreads a new number of replicas over the ReplicaSets of a rollout that is under way, in proportion to their
/// sizes; what rounding leaves goes to the largest.
pub(crate) fn proportional(goal: &Goal, deployment_replicas: i32, sets: &[Size]) -> Vec<Resize> {
    let mut sizes: Vec<Size> = sets.iter().filter(|s| s.replicas > 0).cloned().collect();
    let total: i32 = sizes.iter().map(|s| s.replicas).sum();
    let allowed = if goal.replicas > 0 { goal.ceiling() } else { 0 };
    let add = allowed - total;
    // Among equals the newer grows first and the older shrinks first.
    if add > 0 {
        sizes.sort_by_key(|s| (Reverse(s.replicas), Reverse(s.created), s.name.clone()));
    } else {
        sizes.sort_by_key(|s| (Reverse(s.replicas), s.created, s.name.clone()));
    }
    let mut added = 0;
    for size in &mut sizes {
        let share = if add == 0 { 0 } else { share(goal, deployment_replicas, size, add - added) };
        size.replicas += share;
        added += share;
    }
    if let Some(largest) = sizes.first_mut() {
        largest.replicas = (largest.replicas + add - added).max(0);
    }
    changes(sets, &sizes)
}

fn share(goal: &Goal, deployment_replicas: i32, size: &Size, left: i32) -> i32 {
    let before = size.max_replicas.filter(|n| *n > 0).unwrap_or(deployment_replicas);
    if before <= 0 {
        return 0;
    }
    let grown = f64::from(size.replicas) * f64::from(goal.ceiling()) / f64::from(before);
    // The counts are small integers, so the rounded quotient fits.
    #[expect(clippy::cast_possible_truncation, reason = "the quotient of replica counts, rounded")]
    let delta = if goal.replicas == 0 { -size.replicas } else { grown.round() as i32 - size.replicas };
    if left > 0 { delta.clamp(0, left) } else { delta.clamp(left, 0) }
}

fn changes(before: &[Size], after: &[Size]) -> Vec<Resize> {
    let old = |name: &str| before.iter().find(|s| s.name == name).map(|s| s.replicas);
    after.iter().filter(|s| old(&s.name) != Some(s.replicas)).map(|s| (s.name.clone(), s.replicas)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::{DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
    use proptest::prelude::*;

    fn size(name: &str, replicas: i32, available: i32) -> Size {
        Size { name: name.into(), replicas, available, observed: true, created: 0, max_replicas: None }
    }

    fn rolling(replicas: i32, surge: i32, unavailable: i32) -> Goal {
        Goal { replicas, surge, unavailable, recreate: false }
    }

    #[test]
    fn bounds_round_as_kubernetes_does() {
        let percent = |s: &str| Some(IntOrString::String(s.into()));
        let number = |n| Some(IntOrString::Int(n));
        for (replicas, surge, unavailable, expected) in [
            (10, None, None, (3, 2)),
            (3, None, None, (1, 0)),
            (1, None, None, (1, 0)),
            (4, percent("50%"), percent("50%"), (2, 2)),
            (4, number(0), percent("10%"), (0, 1)),
            (4, number(0), number(0), (0, 1)),
            (2, number(5), number(5), (5, 2)),
            (0, None, None, (0, 0)),
        ] {
            let deployment = Deployment {
                spec: Some(DeploymentSpec {
                    replicas: Some(replicas),
                    strategy: Some(DeploymentStrategy {
                        type_: Some("RollingUpdate".into()),
                        rolling_update: Some(RollingUpdateDeployment {
                            max_surge: surge,
                            max_unavailable: unavailable,
                        }),
                    }),
                    ..DeploymentSpec::default()
                }),
                ..Deployment::default()
            };
            let goal = Goal::of(&deployment);
            assert_eq!((goal.surge, goal.unavailable), expected, "{replicas}");
        }
    }

    #[test]
    fn the_new_set_grows_into_the_room() {
        for (goal, current, total, expected) in [
            (rolling(3, 1, 0), 0, 3, 1),
            (rolling(3, 1, 0), 1, 4, 1),
            (rolling(3, 1, 0), 1, 3, 2),
            (rolling(3, 9, 0), 0, 3, 3),
            (rolling(3, 1, 0), 5, 5, 3),
            (rolling(3, 1, 0), 0, 0, 3),
            (rolling(10, 3, 2), 0, 10, 3),
            (Goal { recreate: true, ..rolling(3, 0, 0) }, 0, 3, 3),
        ] {
            assert_eq!(new_size(&goal, current, total), expected, "{goal:?} {current} {total}");
        }
    }

    #[test]
    fn old_sets_shrink_only_as_far_as_available_replicas_allow() {
        for (goal, new, old, expected) in [
            (rolling(3, 1, 0), size("n", 1, 0), vec![size("o", 3, 3)], vec![]),
            (rolling(3, 1, 0), size("n", 1, 1), vec![size("o", 3, 3)], vec![("o", 2)]),
            (rolling(10, 0, 2), size("n", 0, 0), vec![size("o", 10, 10)], vec![("o", 8)]),
            // Broken replicas go although nothing new is available.
            (rolling(3, 1, 0), size("n", 1, 0), vec![size("o", 3, 2)], vec![]),
            (rolling(3, 1, 1), size("n", 0, 0), vec![size("a", 2, 0), size("b", 2, 2)], vec![("a", 0)]),
        ] {
            let got = shrink_old(&goal, &new, &old);
            let expected: Vec<Resize> = expected.into_iter().map(|(n, r)| (n.to_owned(), r)).collect();
            assert_eq!(got, expected, "{goal:?} {new:?} {old:?}");
        }
    }

    #[test]
    fn scaling_in_the_middle_of_a_rollout_is_proportional() {
        let set = |name: &str, replicas, created| Size {
            max_replicas: Some(10),
            created,
            ..size(name, replicas, 0)
        };
        for (goal, sets, expected) in [
            (rolling(20, 0, 1), vec![set("old", 5, 1), set("new", 5, 2)], vec![("new", 10), ("old", 10)]),
            (rolling(5, 0, 1), vec![set("old", 8, 1), set("new", 2, 2)], vec![("old", 4), ("new", 1)]),
            (rolling(0, 0, 1), vec![set("old", 8, 1), set("new", 2, 2)], vec![("old", 0), ("new", 0)]),
            (rolling(10, 0, 1), vec![set("old", 8, 1), set("new", 2, 2)], vec![]),
        ] {
            let got = proportional(&goal, 10, &sets);
            let expected: Vec<Resize> = expected.into_iter().map(|(n, r)| (n.to_owned(), r)).collect();
            assert_eq!(got, expected, "{goal:?} {sets:?}");
        }
    }

    fn goals() -> impl Strategy<Value = Goal> {
        (0i32..12, 0i32..5, 0i32..5).prop_map(|(replicas, surge, unavailable)| {
            let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
            rolling(replicas, surge, unavailable.min(replicas))
        })
    }

    fn resize(sets: &mut [Size], steps: Vec<Resize>) {
        for (name, replicas) in steps {
            sets.iter_mut().filter(|s| s.name == name).for_each(|s| s.replicas = replicas);
        }
    }

    proptest! {
        #[test]
        fn proportional_scaling_fills_exactly(goal in goals(), replicas in prop::collection::vec((1i32..9, 1i32..12), 1..5)) {
            let sets: Vec<Size> = replicas.iter().enumerate().map(|(i, (n, max))| Size {
                created: i as i64, max_replicas: Some(*max), ..size(&i.to_string(), *n, 0)
            }).collect();
            let resized = proportional(&goal, 5, &sets);
            let after: i32 = sets.iter().map(|s| {
                resized.iter().find(|(n, _)| *n == s.name).map_or(s.replicas, |(_, r)| *r)
            }).sum();
            let before: i32 = sets.iter().map(|s| s.replicas).sum();
            let allowed = if goal.replicas == 0 { 0 } else { goal.ceiling() };
            prop_assert!(resized.iter().all(|(_, r)| *r >= 0));
            if before <= allowed {
                prop_assert_eq!(after, allowed);
            } else {
                prop_assert!(after >= allowed && after <= before);
            }
        }

        /// Simulates a rollout with pods that become available or break at random.
        #[test]
        fn a_rollout_keeps_its_bounds_and_ends(goal in goals(), dice in prop::collection::vec(0u8..4, 0..60)) {
            let mut new = size("new", 0, 0);
            let mut old = vec![size("a", goal.replicas / 2, goal.replicas / 2),
                size("b", goal.replicas - goal.replicas / 2, goal.replicas - goal.replicas / 2)];
            let dice = dice.into_iter().chain(std::iter::repeat_n(0, 80));
            for die in dice {
                let total = new.replicas + old.iter().map(|s| s.replicas).sum::<i32>();
                prop_assert!(total <= goal.ceiling(), "{} pods asked for, {} allowed", total, goal.ceiling());
                let lasting = |new: &Size, old: &[Size]| new.lasting() + old.iter().map(Size::lasting).sum::<i32>();
                match die {
                    // The ReplicaSets' controller catches up, and a pod becomes available.
                    0 => {
                        old.iter_mut().for_each(|s| s.available = s.lasting());
                        new.available = (new.available + 1).min(new.replicas);
                    }
                    1 => {
                        let grown = new_size(&goal, new.replicas, total);
                        prop_assert!(grown <= goal.replicas && grown >= new.replicas.min(goal.replicas));
                        new.replicas = grown;
                    }
                    2 => {
                        let before = lasting(&new, &old);
                        let steps = shrink_old(&goal, &new, &old);
                        resize(&mut old, steps);
                        let after = lasting(&new, &old);
                        prop_assert!(after == before || after >= goal.floor(), "{} left, {} needed", after, goal.floor());
                    }
                    _ => old.iter_mut().for_each(|s| s.available = (s.available - 1).max(0)),
                }
                if die == 0 {
                    // The healing tail of the simulation also lets the controller act.
                    let total = new.replicas + old.iter().map(|s| s.replicas).sum::<i32>();
                    new.replicas = new_size(&goal, new.replicas, total);
                    let steps = shrink_old(&goal, &new, &old);
                    resize(&mut old, steps);
                }
            }
            prop_assert_eq!((new.replicas, new.available), (goal.replicas, goal.replicas));
            prop_assert!(old.iter().all(|s| s.replicas == 0));
        }
    }
}
