//! Revisions of a deployment: which ReplicaSet is which, and the annotations by which `kubectl rollout` reads and
//! rolls back history. Pure.

use crate::meta::{Map, annotation, fnv1a, is_deleting, name, safe_decimal};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use std::sync::Arc;

/// Label that tells the pods of one ReplicaSet from those of another.
pub(crate) const TEMPLATE_HASH: &str = "pod-template-hash";
/// Annotation with the revision's number.
pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
/// Annotation with the numbers that a ReplicaSet had before it was rolled back to.
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Annotation with the deployment's `replicas` when the ReplicaSet was last scaled.
pub(crate) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// Annotation with the most replicas that the deployment could have then.
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of the deployment that say nothing about a ReplicaSet.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];
/// Longest history annotation, in bytes, as in Kubernetes.
const HISTORY_MAX: usize = 2000;

/// Value of the max-replicas annotation.
pub(crate) fn max_replicas_annotation(meta: &ObjectMeta) -> Option<i32> {
    annotation(meta, MAX)?.parse().ok()
}

/// Value of the desired-replicas annotation.
pub(crate) fn desired_replicas_annotation(meta: &ObjectMeta) -> Option<i32> {
    annotation(meta, DESIRED)?.parse().ok()
}

/// The revision's number; zero when there is none.
pub(crate) fn revision(meta: &ObjectMeta) -> i64 {
    annotation(meta, REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// The template of a deployment.
pub(crate) fn template(deployment: &Deployment) -> PodTemplateSpec {
    deployment.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default()
}

/// True when the ReplicaSet was made from this template; the hash label does not count.
pub(crate) fn is_of_template(rs: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let Some(mut own) = rs.spec.as_ref().and_then(|s| s.template.clone()) else { return false };
    let mut other = template.clone();
    for t in [&mut own, &mut other] {
        let labels = t.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.remove(TEMPLATE_HASH);
    }
    own == other
}

/// The ReplicaSets of a deployment, sorted by their role.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sets {
    /// The one with the present template; the oldest if there are several.
    pub(crate) new: Option<Arc<ReplicaSet>>,
    /// All others, oldest first.
    pub(crate) old: Vec<Arc<ReplicaSet>>,
}

impl Sets {
    pub(crate) fn sort(deployment: &Deployment, mut owned: Vec<Arc<ReplicaSet>>) -> Self {
        let template = template(deployment);
        owned.sort_by(|a, b| age_order(a).cmp(&age_order(b)));
        let new = owned.iter().position(|rs| is_of_template(rs, &template)).map(|i| owned.remove(i));
        Self { new, old: owned }
    }

    /// All of them, the new one last.
    pub(crate) fn all(&self) -> Vec<Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new).cloned().collect()
    }

    /// The number for the next revision.
    pub(crate) fn next_revision(&self) -> i64 {
        self.old.iter().map(|rs| revision(&rs.metadata)).max().unwrap_or(0) + 1
    }

    /// Old ReplicaSets without pods beyond what the history is to hold, oldest revision first.
    pub(crate) fn expired(&self, history_limit: i32) -> Vec<Arc<ReplicaSet>> {
        let living: Vec<_> = self.old.iter().filter(|rs| !is_deleting(&rs.metadata)).collect();
        let surplus = living.len().saturating_sub(usize::try_from(history_limit).unwrap_or(0));
        let mut sorted = living;
        sorted.sort_by_key(|rs| revision(&rs.metadata));
        sorted.into_iter().take(surplus).filter(|rs| is_settled_empty(rs)).cloned().collect()
    }
}

fn age_order(rs: &ReplicaSet) -> (i64, &str) {
    (rs.metadata.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second()), name(&rs.metadata))
}

/// True when the ReplicaSet has no replicas, wants none, and its controller has seen that.
fn is_settled_empty(rs: &ReplicaSet) -> bool {
    let wanted = rs.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let status = rs.status.clone().unwrap_or_default();
    wanted == 0
        && status.replicas == 0
        && rs.metadata.generation.unwrap_or(0) <= status.observed_generation.unwrap_or(0)
}

/// The hash by which the ReplicaSet of a template is named; `collisions` makes another one.
pub(crate) fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    // The serialised form is canonical: fields in a fixed order, maps sorted.
    let mut text = serde_json::to_vec(template).unwrap_or_default();
    if collisions > 0 {
        text.extend_from_slice(&collisions.to_le_bytes());
    }
    safe_decimal(fnv1a(&text))
}

/// A new ReplicaSet for the present template.
pub(crate) fn new_replica_set(deployment: &Deployment, replicas: i32, ceiling: i32, next: i64) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
    let hash = template_hash(&spec.template, collisions);
    let with_hash = |map: Option<Map>| {
        let mut map = map.unwrap_or_default();
        map.insert(TEMPLATE_HASH.to_owned(), hash.clone());
        Some(map)
    };
    let mut template = spec.template;
    let template_meta = template.metadata.get_or_insert_default();
    template_meta.labels = with_hash(template_meta.labels.take());
    let mut rs = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", name(&deployment.metadata))),
            namespace: deployment.metadata.namespace.clone(),
            labels: template_meta.labels.clone(),
            owner_references: Some(vec![crate::meta::controller_ref(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: spec.min_ready_seconds,
            selector: LabelSelector {
                match_labels: with_hash(spec.selector.match_labels),
                match_expressions: spec.selector.match_expressions,
            },
            template: Some(template),
        }),
        status: None,
    };
    annotate_new(deployment, &mut rs.metadata, next);
    annotate_scale(&mut rs.metadata, spec.replicas.unwrap_or(1), ceiling);
    rs
}

/// Brings the annotations of the new ReplicaSet up to date: those of the deployment, and the revision's number. A
/// set that was rolled back to gets the next number and keeps the one it had in its history.
pub(crate) fn annotate_new(deployment: &Deployment, meta: &mut ObjectMeta, next: i64) {
    let annotations = meta.annotations.get_or_insert_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    let before = annotations.get(REVISION).cloned();
    if before.as_deref().and_then(|r| r.parse::<i64>().ok()).unwrap_or(0) >= next {
        return;
    }
    if let Some(before) = before.filter(|b| !b.is_empty()) {
        let history = annotations.entry(HISTORY.to_owned()).or_default();
        *history = extended(history, &before);
    }
    annotations.insert(REVISION.to_owned(), next.to_string());
}

/// A history with one more number; the oldest ones go when it becomes too long.
fn extended(history: &str, number: &str) -> String {
    let joined = if history.is_empty() { number.to_owned() } else { format!("{history},{number}") };
    let mut rest = joined.as_str();
    while rest.len() > HISTORY_MAX {
        rest = rest.split_once(',').map_or("", |(_, rest)| rest);
    }
    rest.to_owned()
}

/// Notes for later proportional scaling how large the deployment was.
pub(crate) fn annotate_scale(meta: &mut ObjectMeta, desired: i32, ceiling: i32) {
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(DESIRED.to_owned(), desired.to_string());
    annotations.insert(MAX.to_owned(), ceiling.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSetStatus};

    fn deployment(image_label: &str) -> Deployment {
        Deployment {
            metadata: ObjectMeta {
                name: Some("web".into()),
                annotations: Some(
                    [("kubernetes.io/change-cause", "because"), (REVISION, "7"), (NOT_COPIED[0], "{}")]
                        .map(|(k, v)| (k.to_owned(), v.to_owned()))
                        .into(),
                ),
                ..ObjectMeta::default()
            },
            spec: Some(DeploymentSpec {
                replicas: Some(3),
                template: PodTemplateSpec {
                    metadata: Some(ObjectMeta {
                        labels: Some([("v".to_owned(), image_label.to_owned())].into()),
                        ..ObjectMeta::default()
                    }),
                    spec: None,
                },
                ..DeploymentSpec::default()
            }),
            status: None,
        }
    }

    #[test]
    fn a_set_is_found_by_its_template() {
        let one = deployment("1");
        let rs = new_replica_set(&one, 2, 4, 1);
        assert!(is_of_template(&rs, &template(&one)));
        assert!(!is_of_template(&rs, &template(&deployment("2"))));
        let spec = rs.spec.expect("it has a spec");
        let hash = spec.selector.match_labels.and_then(|l| l.get(TEMPLATE_HASH).cloned());
        assert_eq!(rs.metadata.name, hash.map(|h| format!("web-{h}")));
        assert_ne!(template_hash(&template(&one), 0), template_hash(&template(&one), 1));
    }

    #[test]
    fn annotations_of_a_new_and_of_a_rolled_back_set() {
        let mut rs = new_replica_set(&deployment("1"), 2, 4, 1);
        let get = |rs: &ReplicaSet, key| annotation(&rs.metadata, key).map(str::to_owned);
        assert_eq!(get(&rs, "kubernetes.io/change-cause").as_deref(), Some("because"));
        assert_eq!((get(&rs, REVISION).as_deref(), get(&rs, NOT_COPIED[0])), (Some("1"), None));
        assert_eq!((get(&rs, DESIRED).as_deref(), get(&rs, MAX).as_deref()), (Some("3"), Some("4")));
        annotate_new(&deployment("1"), &mut rs.metadata, 1);
        assert_eq!(get(&rs, HISTORY), None, "nothing changes the second time");
        annotate_new(&deployment("1"), &mut rs.metadata, 3);
        annotate_new(&deployment("1"), &mut rs.metadata, 5);
        assert_eq!((get(&rs, REVISION).as_deref(), get(&rs, HISTORY).as_deref()), (Some("5"), Some("1,3")));
    }

    #[test]
    fn history_stays_short() {
        let mut history = String::new();
        for n in 0..2000 {
            history = extended(&history, &n.to_string());
        }
        assert!(history.len() <= HISTORY_MAX && history.ends_with(",1999"));
    }

    #[test]
    fn expired_sets_are_the_oldest_empty_ones() {
        let set = |revision: i64, replicas: i32| {
            let mut rs = new_replica_set(&deployment(&revision.to_string()), 0, 1, revision);
            rs.status = Some(ReplicaSetStatus { replicas, ..ReplicaSetStatus::default() });
            Arc::new(rs)
        };
        let sets = Sets { new: None, old: vec![set(3, 0), set(1, 1), set(2, 0), set(4, 0)] };
        for (limit, expected) in [(9, vec![]), (3, vec![]), (2, vec![2]), (1, vec![2, 3]), (0, vec![2, 3, 4])]
        {
            let got: Vec<i64> = sets.expired(limit).iter().map(|rs| revision(&rs.metadata)).collect();
            assert_eq!(got, expected, "{limit}");
        }
        assert_eq!(sets.next_revision(), 5);
    }
}
