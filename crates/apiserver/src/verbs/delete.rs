//! Delete: mark, wait for grace and finalizers, remove.
//!
//! ```text
//!             grace > 0                     grace 0 or over, no finalizer
//!   live ───────────────► marked, graceful ─────────────────────────────► gone
//!     │  finalizers                              ▲
//!     └───────────────► marked, grace 0 ─────────┘ (the update that takes the last finalizer removes)
//! ```
//!
//! [`plan`] decides, without effects; it is asked again when the object has changed in between.

use crate::admission;
use crate::core::{Call, Core, delete_op, update_op};
use crate::object::{body, rules};
use crate::registry::Resource;
use crate::row::Allocation;
use crate::verbs::namespace;
use bytes::Bytes;
use cumulet_api::{Status, StatusReason, meta};
use cumulet_cluster::{DeleteOptions, Propagation};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

/// How often a deletion is tried on a newer object.
const ATTEMPTS: usize = 64;

/// What became of a deletion.
#[derive(Debug)]
pub(crate) struct Deleted {
    /// The object, with its marks; its last state when it is gone.
    pub(crate) object: Bytes,
    /// Its uid.
    pub(crate) uid: String,
    /// True when it is gone, false when that takes time.
    pub(crate) gone: bool,
}

/// What a deletion does next.
#[derive(Debug, PartialEq)]
enum Plan {
    /// Nothing: it is being deleted and stays so.
    Wait,
    /// Store this.
    Mark(Value),
    /// Remove it.
    Remove,
}

impl Core {
    /// Deletes an object or starts its deletion.
    pub(crate) async fn delete(&self, call: &Call<'_>, options: &DeleteOptions) -> Result<Deleted, Status> {
        for _ in 0..ATTEMPTS {
            let record = self.get(call)?;
            admission::admit_delete(call)?;
            let old = body::parse(&record)?;
            preconditions(call, &old, options)?;
            let uid = meta::uid(&old).to_owned();
            let (op, gone, shown) = match plan(call.resource, &old, options, Timestamp::now()) {
                Plan::Wait => return Ok(Deleted { object: record.body.clone(), uid, gone: false }),
                Plan::Mark(new) => (update_op(&record, &new), false, new),
                Plan::Remove => (delete_op(&record, &old), true, old),
            };
            if call.dry_run {
                return Ok(Deleted { object: body::encode_detached(&shown), uid, gone });
            }
            match self.commit(call, op).await {
                Ok(object) => {
                    if gone {
                        self.release(call.resource, &shown);
                    }
                    return Ok(Deleted { object, uid, gone });
                }
                Err(Some(status)) => return Err(status),
                Err(None) => {}
            }
        }
        Err(Status::new(StatusReason::ServerTimeout, "the object changes too quickly; please try again"))
    }

    /// Gives back what a removed object held.
    pub(crate) fn release(&self, resource: &Resource, object: &Value) {
        match resource.row.strategy.allocation() {
            Allocation::None => {}
            Allocation::Service => self.services.release(object),
        }
    }
}

fn preconditions(call: &Call<'_>, object: &Value, options: &DeleteOptions) -> Result<(), Status> {
    let check = |what: &str, wanted: &Option<String>, is: &str| match wanted {
        Some(wanted) if wanted != is => {
            let why =
                format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {is}");
            Err(call.conflict(&why))
        }
        _ => Ok(()),
    };
    check("UID", &options.uid, meta::uid(object))?;
    check("ResourceVersion", &options.resource_version, meta::resource_version(object))
}

fn plan(resource: &Resource, old: &Value, options: &DeleteOptions, now: Timestamp) -> Plan {
    let mut new = old.clone();
    propagate(resource, &mut new, options.propagation);
    let held = meta::finalizers(&new).next().is_some() || namespace::holds(resource, &new);
    let marked_grace = meta::deletion_grace_period_seconds(old).unwrap_or(0);
    let grace = match meta::deletion_timestamp(old) {
        Some(_) if marked_grace == 0 => {
            // Grace is over: only the finalizers may still change.
            return match (held, new == *old) {
                (false, _) => Plan::Remove,
                (true, true) => Plan::Wait,
                (true, false) => Plan::Mark(new),
            };
        }
        // A grace period can only become shorter.
        Some(marked) => match options.grace_period_seconds.map(at_least_zero) {
            Some(wanted) if wanted < marked_grace => {
                let until = meta::parse_time(marked).unwrap_or(now);
                let until =
                    until.saturating_sub(SignedDuration::from_secs(marked_grace - wanted)).unwrap_or(now);
                mark(resource, &mut new, until, wanted);
                wanted
            }
            _ => return Plan::Wait,
        },
        None => {
            let grace = resource.row.strategy.grace_period_seconds(old, options.grace_period_seconds);
            let until = now.saturating_add(SignedDuration::from_secs(grace)).unwrap_or(now);
            mark(resource, &mut new, until, grace);
            if meta::generation(old) > 0 {
                new["metadata"]["generation"] = (meta::generation(old) + 1).into();
            }
            grace
        }
    };
    if grace == 0 && !held { Plan::Remove } else { Plan::Mark(new) }
}

/// A negative period means one second, as in Kubernetes.
fn at_least_zero(period: i64) -> i64 {
    if period < 0 { 1 } else { period }
}

fn mark(resource: &Resource, object: &mut Value, until: Timestamp, grace: i64) {
    if let Some(metadata) = meta::metadata_mut(object) {
        metadata.insert("deletionTimestamp".into(), meta::time(until).into());
        if !resource.is("", "namespaces") {
            metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
        }
    }
    namespace::mark_terminating(resource, object);
}

/// Sets the finalizers by which the garbage collector knows what to do with the dependents.
fn propagate(resource: &Resource, object: &mut Value, wanted: Option<Propagation>) {
    let has = |name: &str| meta::finalizers(object).any(|f| f == name);
    let wanted = wanted.unwrap_or_else(|| match (has(rules::ORPHAN), has(rules::FOREGROUND)) {
        (true, _) => Propagation::Orphan,
        (false, true) => Propagation::Foreground,
        (false, false) => resource.row.strategy.default_propagation(),
    });
    let mut finalizers: Vec<Value> = meta::finalizers(object)
        .filter(|f| *f != rules::ORPHAN && *f != rules::FOREGROUND)
        .map(Value::from)
        .collect();
    match wanted {
        Propagation::Background => {}
        Propagation::Foreground => finalizers.push(rules::FOREGROUND.into()),
        Propagation::Orphan => finalizers.push(rules::ORPHAN.into()),
    }
    let Some(metadata) = meta::metadata_mut(object) else { return };
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), finalizers.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;
    use serde_json::json;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn check(plural: &str, object: Value, options: DeleteOptions, want: &str) {
        let registry = Registry::new(crate::kinds::rows(), crate::kinds::views());
        let resource = registry.resources().find(|r| r.row.plural == plural).unwrap();
        let got = match plan(resource, &object, &options, NOW.parse().unwrap()) {
            Plan::Wait => "wait".to_owned(),
            Plan::Remove => "remove".to_owned(),
            Plan::Mark(new) => format!(
                "mark {} {} {}",
                meta::deletion_timestamp(&new).unwrap_or("-"),
                meta::deletion_grace_period_seconds(&new).map_or("-".into(), |g| g.to_string()),
                meta::finalizers(&new).collect::<Vec<_>>().join("+"),
            ),
        };
        assert_eq!(got.trim_end(), want, "{plural} {object} {options:?}");
    }

    fn grace(seconds: i64) -> DeleteOptions {
        DeleteOptions { grace_period_seconds: Some(seconds), ..DeleteOptions::default() }
    }

    fn propagation(propagation: Propagation) -> DeleteOptions {
        DeleteOptions { propagation: Some(propagation), ..DeleteOptions::default() }
    }

    #[test]
    fn plans() {
        let none = DeleteOptions::default;
        let pod = |metadata: Value, node: &str, phase: &str| {
            json!({"kind": "Pod", "metadata": metadata, "status": {"phase": phase},
                   "spec": {"nodeName": node, "terminationGracePeriodSeconds": 30}})
        };
        let running = pod(json!({}), "n", "Running");
        check("pods", running.clone(), none(), "mark 2026-01-01T00:00:30Z 30");
        check("pods", running.clone(), grace(5), "mark 2026-01-01T00:00:05Z 5");
        check("pods", running.clone(), grace(-1), "mark 2026-01-01T00:00:01Z 1");
        check("pods", running, grace(0), "remove");
        check("pods", pod(json!({}), "", "Pending"), none(), "remove");
        check("pods", pod(json!({}), "", "Pending"), grace(30), "remove");
        check("pods", pod(json!({}), "n", "Succeeded"), none(), "remove");
        check("pods", pod(json!({}), "n", "Failed"), grace(30), "remove");
        check(
            "pods",
            pod(json!({"finalizers": ["x/y"]}), "n", "Failed"),
            none(),
            "mark 2026-01-01T00:00:00Z 0 x/y",
        );
        let impatient = json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 0}});
        check("pods", impatient.clone(), none(), "remove");
        check("pods", impatient, grace(5), "mark 2026-01-01T00:00:05Z 5");
        let marked = json!({"deletionTimestamp": "2026-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30});
        check("pods", pod(marked.clone(), "n", "Running"), none(), "wait");
        check("pods", pod(marked.clone(), "n", "Running"), grace(40), "wait");
        check("pods", pod(marked.clone(), "n", "Running"), grace(10), "mark 2026-01-01T00:00:10Z 10");
        check("pods", pod(marked, "n", "Running"), grace(0), "remove");
        let held = json!({"metadata": {"finalizers": ["x/y"]}});
        check("configmaps", json!({}), none(), "remove");
        check("configmaps", held.clone(), none(), "mark 2026-01-01T00:00:00Z 0 x/y");
        check("configmaps", held, propagation(Propagation::Orphan), "mark 2026-01-01T00:00:00Z 0 x/y+orphan");
        check(
            "configmaps",
            json!({}),
            propagation(Propagation::Foreground),
            "mark 2026-01-01T00:00:00Z 0 foregroundDeletion",
        );
        let foreground = json!({"metadata": {"deletionTimestamp": NOW, "deletionGracePeriodSeconds": 0,
                                             "finalizers": ["foregroundDeletion"]}});
        check("configmaps", foreground.clone(), none(), "wait");
        check("configmaps", foreground.clone(), propagation(Propagation::Background), "remove");
        check(
            "configmaps",
            foreground,
            propagation(Propagation::Orphan),
            "mark 2026-01-01T00:00:00Z 0 orphan",
        );
        check(
            "namespaces",
            json!({"spec": {"finalizers": ["kubernetes"]}}),
            none(),
            "mark 2026-01-01T00:00:00Z -",
        );
        check("namespaces", json!({"spec": {}}), none(), "remove");
    }
}
