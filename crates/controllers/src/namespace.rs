//! Namespaces that go: everything in them is deleted, then their finalizer is taken away.
//!
//! The API server refuses new objects in a namespace that is going, so emptying it ends. Pods take their grace
//! period; until they and everything with a finalizer are gone the namespace shows what remains.

use crate::context::Context;
use crate::driver::{Doing, Error, Next, Reconciler};
use crate::meta::{is_deleting, name, namespace};
use crate::queue::Queue;
use bytes::Bytes;
use cumulet_api::Status;
use cumulet_cluster::access::ResourceInfo;
use cumulet_cluster::{Api, DeleteOptions, ListOptions, ObjectRef, PatchKind, Propagation};
use futures_util::stream::{self, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The finalizer that stands for the contents.
const FINALIZER: &str = "kubernetes";
/// Deletions at once.
const CONCURRENCY: usize = 50;
/// When to look again at what remains, besides the news of pods.
const AGAIN: Duration = Duration::from_millis(500);

/// The controller; its keys are names of namespaces.
pub(crate) struct Namespaces {
    ctx: Arc<Context>,
    api: Api<Namespace>,
}

/// Just enough of an object to delete it.
#[derive(Deserialize)]
struct Partial {
    metadata: ObjectMeta,
}

/// What is left of one resource.
#[derive(Debug, Default, PartialEq)]
struct Remains {
    /// Objects by resource.
    resources: BTreeMap<String, usize>,
    /// Objects by finalizer.
    finalizers: BTreeMap<String, usize>,
    /// Failures, in words.
    failures: Vec<String>,
}

impl Namespaces {
    pub(crate) fn new(ctx: &Arc<Context>, queue: &Arc<Queue<String>>) -> Self {
        let q = queue.clone();
        ctx.informers.namespaces.observe(move |change| {
            if let Some(new) = change.new.as_ref().filter(|n| is_deleting(&n.metadata)) {
                q.add(name(&new.metadata).to_owned());
            }
        });
        let (q, namespaces) = (queue.clone(), ctx.informers.namespaces.clone());
        ctx.informers.pods.observe(move |change| {
            let (Some(old), None) = (&change.old, &change.new) else { return };
            let ns = namespace(&old.metadata);
            if namespaces.get("", ns).is_some_and(|n| is_deleting(&n.metadata)) {
                q.add(ns.to_owned());
            }
        });
        Self { ctx: ctx.clone(), api: Api::new(ctx.cluster.clone()) }
    }

    /// Asks for the deletion of everything, and counts what is still there afterwards.
    async fn empty(&self, ns: &str) -> Remains {
        let mut remains = Remains::default();
        let resources = self.ctx.cluster.resources().into_iter().filter(|r| r.namespaced);
        for resource in resources {
            if let Err(error) = self.empty_resource(ns, &resource, &mut remains).await {
                remains.failures.push(format!("{}: {error}", resource.id.plural));
            }
        }
        remains
    }

    async fn empty_resource(
        &self,
        ns: &str,
        resource: &ResourceInfo,
        remains: &mut Remains,
    ) -> Result<(), Status> {
        let options = ListOptions { namespace: Some(ns.to_owned()), ..ListOptions::default() };
        let found = self.ctx.cluster.list(&resource.id, &options).await?;
        let objects: Vec<ObjectMeta> = found.items.iter().filter_map(partial).collect();
        let going = objects.into_iter().map(|meta| async move {
            if !is_deleting(&meta) {
                self.delete(ns, resource, &meta).await?;
            }
            Ok::<_, Status>(())
        });
        let results: Vec<_> = stream::iter(going).buffer_unordered(CONCURRENCY).collect().await;
        for error in results.into_iter().filter_map(Result::err) {
            remains.failures.push(error.to_string());
        }
        if found.items.is_empty() {
            return Ok(());
        }
        let left = self.ctx.cluster.list(&resource.id, &options).await?;
        if !left.items.is_empty() {
            remains.resources.insert(described(resource), left.items.len());
        }
        for meta in left.items.iter().filter_map(partial) {
            for finalizer in meta.finalizers.into_iter().flatten() {
                *remains.finalizers.entry(finalizer).or_insert(0) += 1;
            }
        }
        Ok(())
    }

    async fn delete(&self, ns: &str, resource: &ResourceInfo, meta: &ObjectMeta) -> Result<(), Status> {
        let at = ObjectRef {
            resource: resource.id.clone(),
            namespace: Some(ns.to_owned()),
            name: name(meta).to_owned(),
        };
        let options = DeleteOptions {
            uid: meta.uid.clone(),
            propagation: Some(Propagation::Background),
            ..DeleteOptions::default()
        };
        match self.ctx.cluster.delete(&at, &options).await {
            // Gone or replaced meanwhile; the list afterwards tells.
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            other => other,
        }
    }

    async fn finalize(&self, found: &Namespace) -> Result<(), Error> {
        let mut changed = found.clone();
        let spec = changed.spec.get_or_insert_default();
        spec.finalizers = Some(spec.finalizers.take().unwrap_or_default());
        spec.finalizers.iter_mut().for_each(|f| f.retain(|name| name != FINALIZER));
        let ns = name(&found.metadata);
        let doing = || format!("finalizing namespace {ns}");
        let body = serde_json::to_vec(&changed).map_err(|e| Error::Object(format!("namespace {ns}: {e}")))?;
        match self.ctx.cluster.update(&self.api.at("", ns), Some("finalize"), Bytes::from(body)).await {
            Err(error) if !error.is_not_found() => Err(error).doing(doing),
            _ => Ok(()),
        }
    }

    async fn show(&self, found: &Namespace, remains: &Remains) -> Result<(), Error> {
        let before = found.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        let after = merged(&before, conditions(remains));
        if before == after {
            return Ok(());
        }
        let ns = name(&found.metadata);
        let patch = serde_json::json!({"status": {"conditions": after}});
        match self.api.patch("", ns, Some("status"), PatchKind::Merge, &patch).await {
            Err(error) if !error.is_not_found() => {
                Err(error).doing(|| format!("conditions of namespace {ns}"))
            }
            _ => Ok(()),
        }
    }
}

impl Reconciler for Namespaces {
    type Key = String;

    fn name(&self) -> &'static str {
        "namespace-controller"
    }

    fn keys(&self) -> Vec<String> {
        let going = self.ctx.informers.namespaces.list().into_iter().filter(|n| is_deleting(&n.metadata));
        going.map(|n| name(&n.metadata).to_owned()).collect()
    }

    async fn reconcile(&self, ns: &String) -> Result<Next, Error> {
        let Some(found) = self.ctx.informers.namespaces.get("", ns).filter(|n| is_deleting(&n.metadata))
        else {
            return Ok(Next::Done);
        };
        let has_finalizer = |n: &Namespace| {
            n.spec
                .as_ref()
                .and_then(|s| s.finalizers.as_ref())
                .is_some_and(|f| f.iter().any(|f| f == FINALIZER))
        };
        if !has_finalizer(&found) {
            return Ok(Next::Done);
        }
        let remains = self.empty(ns).await;
        if remains.resources.is_empty() && remains.failures.is_empty() {
            self.finalize(&found).await?;
            return Ok(Next::Done);
        }
        self.show(&found, &remains).await?;
        match remains.failures.first() {
            Some(failure) => Err(Error::Object(format!("emptying namespace {ns}: {failure}"))),
            None => Ok(Next::After(AGAIN)),
        }
    }
}

fn partial(bytes: &Bytes) -> Option<ObjectMeta> {
    serde_json::from_slice::<Partial>(bytes).map(|p| p.metadata).ok()
}

/// `deployments.apps`, or `pods.` for the core group, as Kubernetes writes it here.
fn described(resource: &ResourceInfo) -> String {
    format!("{}.{}", resource.id.plural, resource.id.group)
}

/// The conditions of a namespace that is going, without times.
fn conditions(remains: &Remains) -> Vec<NamespaceCondition> {
    let listed = |counts: &BTreeMap<String, usize>, what: &str| {
        let parts: Vec<String> =
            counts.iter().map(|(name, n)| format!("{name} {what} {n} resource instances")).collect();
        parts.join(", ")
    };
    let entry = |type_: &str, bad: Option<(&str, String)>, good: (&str, &str)| {
        let status = if bad.is_some() { "True" } else { "False" };
        let (reason, message) = bad.unwrap_or((good.0, good.1.to_owned()));
        NamespaceCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: None,
        }
    };
    let failed = (!remains.failures.is_empty()).then(|| {
        (
            "ContentDeletionFailed",
            format!("Failed to delete all resource types: {}", remains.failures.join(", ")),
        )
    });
    let some = (!remains.resources.is_empty()).then(|| {
        (
            "SomeResourcesRemain",
            format!("Some resources are remaining: {}", listed(&remains.resources, "has")),
        )
    });
    let held = (!remains.finalizers.is_empty()).then(|| {
        (
            "SomeFinalizersRemain",
            format!(
                "Some content in the namespace has finalizers remaining: {}",
                listed(&remains.finalizers, "in")
            ),
        )
    });
    vec![
        entry(
            "NamespaceDeletionDiscoveryFailure",
            None,
            ("ResourcesDiscovered", "All resources successfully discovered"),
        ),
        entry(
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        ),
        entry(
            "NamespaceDeletionContentFailure",
            failed,
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        ),
        entry("NamespaceContentRemaining", some, ("ContentRemoved", "All content successfully removed")),
        entry(
            "NamespaceFinalizersRemaining",
            held,
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        ),
    ]
}

/// New conditions in the place of those of the same type; the time of transition stays while the status does.
fn merged(before: &[NamespaceCondition], new: Vec<NamespaceCondition>) -> Vec<NamespaceCondition> {
    let mut after = before.to_vec();
    for mut condition in new {
        let old = after.iter().position(|c| c.type_ == condition.type_);
        let since = old.map(|i| &after[i]).filter(|c| c.status == condition.status);
        condition.last_transition_time =
            since.map_or_else(|| Some(crate::meta::now()), |c| c.last_transition_time.clone());
        match old {
            Some(i) => after[i] = condition,
            None => after.push(condition),
        }
    }
    after
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_name_what_remains() {
        let remains = Remains {
            resources: BTreeMap::from([("pods.".to_owned(), 2)]),
            finalizers: BTreeMap::from([("example.com/f".to_owned(), 1)]),
            failures: Vec::new(),
        };
        let shown = conditions(&remains);
        let messages: Vec<_> =
            shown.iter().map(|c| (c.status.as_str(), c.message.as_deref().unwrap_or(""))).collect();
        assert_eq!(messages[3], ("True", "Some resources are remaining: pods. has 2 resource instances"));
        assert_eq!(
            messages[4],
            (
                "True",
                "Some content in the namespace has finalizers remaining: example.com/f in 1 resource instances"
            )
        );
        assert_eq!(messages[2].0, "False");
        let first = merged(&[], shown.clone());
        assert_eq!(merged(&first, shown), first, "the same conditions change nothing");
    }
}
