//! Recorder of core/v1 Events: what happened to an object, for `kubectl describe` and `kubectl get events`.
//!
//! ```text
//!   caller ──try_send──► bounded channel ──► one task: coalesce a batch, then write it concurrently
//! ```
//!
//! Recording never blocks and never fails: it is off everybody's hot path, and under pressure events are dropped
//! (said once in the log). Equal events — same object, type, reason and message — become one object whose `count`
//! and `lastTimestamp` grow, as Kubernetes' correlator does. Absent on purpose: retries. An event that cannot be
//! written (its namespace is going, the API server is stopping) is lost.

use crate::access::{Cluster, PatchKind};
use crate::api::{Api, Kind};
use cumulet_api::Status;
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Events that may wait to be written; more are dropped.
const QUEUE: usize = 1024;
/// Events that are written together.
const BATCH: usize = 64;
/// Distinct events that are remembered for aggregation, the number that Kubernetes' correlator holds.
const REMEMBERED: usize = 4096;
/// Longest message, in bytes; the API refuses longer ones.
const MESSAGE_MAX: usize = 1024;
/// How long writing may go on after the shutdown began.
const DRAIN: Duration = Duration::from_secs(1);

/// Severity of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// The ordinary course of things.
    Normal,
    /// Something that a person may have to look at.
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// What makes two events equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct EventKey {
    namespace: String,
    kind: String,
    name: String,
    uid: String,
    field_path: String,
    event_type: EventType,
    reason: String,
    message: String,
}

struct Occurrence {
    key: EventKey,
    object: ObjectReference,
    at: Timestamp,
}

/// Records events of one component. Cheap to clone.
#[derive(Clone)]
pub struct EventRecorder {
    queue: mpsc::Sender<Occurrence>,
    dropped: Arc<AtomicBool>,
}

impl EventRecorder {
    /// Starts a recorder for `component` (such as `kubelet`) on `host` (empty for none). After `shutdown` what is
    /// queued is still written, for one second at most.
    pub fn spawn(
        cluster: Arc<dyn Cluster>,
        component: &str,
        host: &str,
        shutdown: CancellationToken,
    ) -> Self {
        let (queue, inbox) = mpsc::channel(QUEUE);
        let source = EventSource {
            component: Some(component.to_owned()),
            host: (!host.is_empty()).then(|| host.to_owned()),
        };
        let writer = Writer { api: Api::new(cluster), source, known: HashMap::new(), order: VecDeque::new() };
        // Ends with the shutdown token or with the last recorder; its failure only loses events.
        tokio::spawn(writer.run(inbox, shutdown));
        Self { queue, dropped: Arc::new(AtomicBool::new(false)) }
    }

    /// Records that something happened to `object`.
    pub fn event(&self, object: &ObjectReference, event_type: EventType, reason: &str, message: &str) {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let key = EventKey {
            namespace: object
                .namespace
                .clone()
                .filter(|n| !n.is_empty())
                .unwrap_or_else(|| "default".to_owned()),
            kind: text(&object.kind),
            name: text(&object.name),
            uid: text(&object.uid),
            field_path: text(&object.field_path),
            event_type,
            reason: reason.to_owned(),
            message: clipped(message).to_owned(),
        };
        let sent = self.queue.try_send(Occurrence { key, object: object.clone(), at: Timestamp::now() });
        if sent.is_err() && !self.dropped.swap(true, Ordering::Relaxed) {
            tracing::warn!(reason, "events are dropped: their queue is full or closed");
        }
    }
}

/// A reference to an object, as events carry it.
pub fn reference<K: Kind>(object: &K) -> ObjectReference {
    let meta = object.metadata();
    ObjectReference {
        api_version: Some(K::API_VERSION.to_owned()),
        kind: Some(K::KIND.to_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

fn clipped(message: &str) -> &str {
    let mut end = MESSAGE_MAX.min(message.len());
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

/// An event that was written before.
#[derive(Clone, Debug)]
struct Written {
    name: String,
    count: i32,
}

/// Several equal occurrences of one batch.
struct Group {
    key: EventKey,
    object: ObjectReference,
    first: Timestamp,
    last: Timestamp,
    times: i32,
    before: Option<Written>,
}

/// The task's own state: which events exist already. Losing it only costs aggregation.
struct Writer {
    api: Api<Event>,
    source: EventSource,
    known: HashMap<EventKey, Written>,
    /// Keys of `known`, oldest first.
    order: VecDeque<EventKey>,
}

impl Writer {
    async fn run(mut self, mut inbox: mpsc::Receiver<Occurrence>, shutdown: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                // Both arms are cancel-safe: `recv_many` takes nothing when it is dropped.
                n = inbox.recv_many(&mut batch, BATCH) => if n == 0 { return },
                () = shutdown.cancelled() => break,
            }
            self.write(&mut batch).await;
        }
        inbox.close();
        let drain = async {
            while inbox.recv_many(&mut batch, BATCH).await > 0 {
                self.write(&mut batch).await;
            }
        };
        if tokio::time::timeout(DRAIN, drain).await.is_err() {
            tracing::debug!("events were still queued at shutdown");
        }
    }

    async fn write(&mut self, batch: &mut Vec<Occurrence>) {
        let groups = self.coalesce(batch.drain(..));
        let (api, source) = (&self.api, &self.source);
        let written = join_all(groups.into_iter().map(|group| async move {
            let result = put(api, source, &group).await;
            (group.key, result)
        }));
        for (key, result) in written.await {
            match result {
                Ok(written) => self.remember(key, written),
                Err(error) => {
                    tracing::debug!(reason = key.reason, object = key.name, %error, "event was lost")
                }
            }
        }
    }

    fn coalesce(&self, batch: impl Iterator<Item = Occurrence>) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let mut index: HashMap<EventKey, usize> = HashMap::new();
        for Occurrence { key, object, at } in batch {
            if let Some(group) = index.get(&key).and_then(|i| groups.get_mut(*i)) {
                group.times += 1;
                group.last = at;
                continue;
            }
            index.insert(key.clone(), groups.len());
            let before = self.known.get(&key).cloned();
            groups.push(Group { key, object, first: at, last: at, times: 1, before });
        }
        groups
    }

    fn remember(&mut self, key: EventKey, written: Written) {
        if self.known.insert(key.clone(), written).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }
}

/// Counts an event that exists, or creates it.
async fn put(api: &Api<Event>, source: &EventSource, group: &Group) -> Result<Written, Status> {
    if let Some(before) = &group.before {
        let count = before.count.saturating_add(group.times);
        let patch = serde_json::json!({ "count": count, "lastTimestamp": Time(group.last) });
        match api.patch(&group.key.namespace, &before.name, None, PatchKind::Merge, &patch).await {
            Ok(_) => return Ok(Written { name: before.name.clone(), count }),
            // Expired or deleted since: begin anew.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    let event = new_event(source, group);
    let name = event.metadata.name.clone().unwrap_or_default();
    api.create(&event).await?;
    Ok(Written { name, count: group.times })
}

fn new_event(source: &EventSource, group: &Group) -> Event {
    let key = &group.key;
    // Kubernetes' own form: the object's name and the nanoseconds of the first occurrence, in hexadecimal.
    let name = format!("{}.{:x}", key.name, group.first.as_nanosecond());
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(key.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: group.object.clone(),
        type_: Some(key.event_type.as_str().to_owned()),
        reason: Some(key.reason.clone()),
        message: Some(key.message.clone()),
        first_timestamp: Some(Time(group.first)),
        last_timestamp: Some(Time(group.last)),
        count: Some(group.times),
        source: Some(source.clone()),
        reporting_component: source.component.clone(),
        reporting_instance: Some(source.host.clone().unwrap_or_default()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occurrence(name: &str, message: &str) -> Occurrence {
        let key = EventKey {
            namespace: "default".into(),
            kind: "Pod".into(),
            name: name.into(),
            uid: "u".into(),
            field_path: String::new(),
            event_type: EventType::Normal,
            reason: "Started".into(),
            message: message.into(),
        };
        Occurrence { key, object: ObjectReference::default(), at: Timestamp::now() }
    }

    #[test]
    fn long_messages_are_clipped_at_a_character() {
        let long = "ä".repeat(MESSAGE_MAX);
        assert_eq!(clipped(&long).len(), MESSAGE_MAX);
        assert_eq!(clipped(&format!("x{long}")).len(), MESSAGE_MAX - 1);
        assert_eq!(clipped("short"), "short");
    }

    #[test]
    fn names_differ_by_time() {
        let group = |first: i64| Group {
            key: occurrence("web", "m").key,
            object: ObjectReference::default(),
            first: Timestamp::from_second(first).expect("in range"),
            last: Timestamp::from_second(first).expect("in range"),
            times: 3,
            before: None,
        };
        let event = new_event(&EventSource::default(), &group(1));
        assert_eq!(event.metadata.name.as_deref(), Some("web.3b9aca00"));
        assert_eq!(event.count, Some(3));
        assert_ne!(event.metadata.name, new_event(&EventSource::default(), &group(2)).metadata.name);
    }
}
