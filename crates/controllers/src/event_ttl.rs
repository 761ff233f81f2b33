//! Old events go. Kubernetes gives each a lease in its store; here a slow period looks for those that are past it.

use crate::context::Context;
use crate::driver::{Doing, Error, Next, Reconciler};
use cumulet_api::Status;
use cumulet_cluster::{Cluster, DeleteOptions, ListOptions, ObjectRef, ResourceId};
use futures_util::stream::{self, StreamExt};
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

/// Deletions at once.
const CONCURRENCY: usize = 16;
/// Parts of the lifetime after which is looked again: events may live longer by one of them.
const LOOKS: u32 = 12;

/// The controller. It has one key.
pub(crate) struct EventTtl {
    cluster: Arc<dyn Cluster>,
    ttl: Duration,
}

/// The fields of an event that tell its age.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Partial {
    metadata: PartialMeta,
    last_timestamp: Option<Time>,
    event_time: Option<MicroTime>,
    series: Option<PartialSeries>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PartialMeta {
    name: String,
    namespace: Option<String>,
    uid: Option<String>,
    creation_timestamp: Option<Time>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PartialSeries {
    last_observed_time: Option<MicroTime>,
}

impl Partial {
    fn last_seen(&self) -> Option<Timestamp> {
        let times = [
            self.metadata.creation_timestamp.as_ref().map(|t| t.0),
            self.last_timestamp.as_ref().map(|t| t.0),
            self.event_time.as_ref().map(|t| t.0),
            self.series.as_ref().and_then(|s| s.last_observed_time.as_ref()).map(|t| t.0),
        ];
        times.into_iter().flatten().max()
    }

    fn is_expired(&self, ttl: Duration, now: Timestamp) -> bool {
        self.last_seen().is_some_and(|seen| crate::meta::remaining(seen, ttl, now).is_zero())
    }
}

impl EventTtl {
    pub(crate) fn new(ctx: &Context, ttl: Duration) -> Self {
        Self { cluster: ctx.cluster.clone(), ttl }
    }

    async fn delete(&self, event: Partial) -> Result<(), Status> {
        let meta = event.metadata;
        let at =
            ObjectRef { resource: ResourceId::of::<Event>(), namespace: meta.namespace, name: meta.name };
        let options = DeleteOptions { uid: meta.uid, ..DeleteOptions::default() };
        match self.cluster.delete(&at, &options).await {
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            other => other,
        }
    }
}

impl Reconciler for EventTtl {
    type Key = ();

    fn name(&self) -> &'static str {
        "event-ttl-controller"
    }

    fn keys(&self) -> Vec<()> {
        vec![()]
    }

    async fn reconcile(&self, (): &()) -> Result<Next, Error> {
        let list = self.cluster.list(&ResourceId::of::<Event>(), &ListOptions::default()).await;
        let now = Timestamp::now();
        let events = list.doing(|| "listing events".to_owned())?.items;
        let read = events.iter().filter_map(|bytes| serde_json::from_slice::<Partial>(bytes).ok());
        // Collected first: the stream then does not borrow the list across awaits.
        let expired: Vec<Partial> = read.filter(|event| event.is_expired(self.ttl, now)).collect();
        let calls = expired.into_iter().map(|event| self.delete(event));
        let results: Vec<_> = stream::iter(calls).buffer_unordered(CONCURRENCY).collect().await;
        results.into_iter().collect::<Result<(), _>>().doing(|| "deleting old events".to_owned())?;
        Ok(Next::After(self.ttl / LOOKS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_lives_on_when_it_happens_again() {
        let now: Timestamp = "2026-01-01T02:00:00Z".parse().expect("a time");
        for (last, series, expired) in [
            (None, None, true),
            (Some("2026-01-01T01:00:00Z"), None, true),
            (Some("2026-01-01T01:00:01Z"), None, false),
            (None, Some("2026-01-01T01:59:00.000000Z"), false),
        ] {
            let event: Partial = serde_json::from_value(json!({
                "metadata": {"name": "e", "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "lastTimestamp": last, "series": series.map(|t| json!({"lastObservedTime": t})),
            }))
            .expect("an event");
            assert_eq!(event.is_expired(Duration::from_secs(3600), now), expired, "{last:?} {series:?}");
        }
    }
}
