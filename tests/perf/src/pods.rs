//! How long pods take from the create request until a watching client sees them Ready.

use crate::{figure, percentile};
use anyhow::{Context, bail};
use cumulet_e2e::{Cloud, DEADLINE};
use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::{Duration, Instant};
use tokio::time::timeout;

const ROUNDS: usize = 40;
const REPLICAS: usize = 30;
const SCALE_ROUNDS: usize = 3;

/// A pod with one small static HTTP server and a readiness probe.
pub(crate) fn pod(name: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container()]},
    }))
    .unwrap_or_default()
}

fn container() -> Value {
    json!({"name": "hello", "image": "hello:1", "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}}})
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref()).into_iter().flatten();
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// A pod with the watch that was opened before it was created.
pub(crate) struct Watched {
    name: String,
    events: BoxStream<'static, kube::Result<WatchEvent<Pod>>>,
    pods: Api<Pod>,
}

impl Watched {
    /// Opens the watch, then creates the pod.
    pub(crate) async fn create(client: &Client, pod: &Pod) -> anyhow::Result<Self> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
        let name = pod.metadata.name.clone().unwrap_or_default();
        let params = WatchParams::default().fields(&format!("metadata.name={name}"));
        let revision = pods.list(&Default::default()).await?.metadata.resource_version.unwrap_or_default();
        let events = pods.watch(&params, &revision).await?.boxed();
        pods.create(&PostParams::default(), pod).await?;
        Ok(Self { name, events, pods })
    }

    /// Waits until the pod is Ready.
    pub(crate) async fn ready(&mut self) -> anyhow::Result<()> {
        self.ready_within(DEADLINE).await
    }

    /// The same with another limit.
    pub(crate) async fn ready_within(&mut self, limit: Duration) -> anyhow::Result<()> {
        self.until(limit, "Ready", |event| match event {
            WatchEvent::Modified(pod) | WatchEvent::Added(pod) => is_ready(pod).then_some(()),
            _ => None,
        })
        .await
    }

    /// Waits until the pod has an address.
    pub(crate) async fn address(&mut self, limit: Duration) -> anyhow::Result<String> {
        self.until(limit, "on the network", |event| match event {
            WatchEvent::Modified(pod) | WatchEvent::Added(pod) => pod.status.as_ref()?.pod_ip.clone(),
            _ => None,
        })
        .await
    }

    async fn until<T>(
        &mut self,
        limit: Duration,
        what: &str,
        hit: impl Fn(&WatchEvent<Pod>) -> Option<T>,
    ) -> anyhow::Result<T> {
        let search = async {
            while let Some(event) = self.events.try_next().await? {
                if let Some(found) = hit(&event) {
                    return Ok(found);
                }
            }
            bail!("the watch ended")
        };
        timeout(limit, search).await.with_context(|| format!("pod {} is not {what}", self.name))?
    }

    /// Deletes the pod and waits until it is gone.
    pub(crate) async fn delete(mut self) -> anyhow::Result<()> {
        self.pods.delete(&self.name, &DeleteParams::default().grace_period(0)).await?;
        self.until(DEADLINE, "gone", |event| matches!(event, WatchEvent::Deleted(_)).then_some(())).await
    }
}

/// Pods one after another.
pub(crate) async fn one_by_one() -> anyhow::Result<Value> {
    let cloud = Cloud::with_hello()?;
    let client = cloud.client().await?;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let start = Instant::now();
        let mut watched = Watched::create(&client, &pod(&format!("p{round}"))).await?;
        watched.ready().await?;
        times.push(start.elapsed().as_secs_f64());
        watched.delete().await?;
    }
    let median = percentile(&mut times, 0.5);
    Ok(json!({
        "rounds": ROUNDS,
        "create_to_ready_median": figure(median, "s", 0.10, true),
        "create_to_ready_p95": {"value": percentile(&mut times, 0.95), "unit": "s"},
        "ratio_to_kubernetes": {"value": 0.99 / median, "note": "real Kubernetes on such a machine: 0.99 s"},
    }))
}

/// A Deployment from 0 to 30 replicas, until all are Ready, and back.
pub(crate) async fn scale() -> anyhow::Result<Value> {
    let cloud = Cloud::with_hello()?;
    let client = cloud.client().await?;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "many"},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "many"}},
            "template": {
                "metadata": {"labels": {"app": "many"}},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [container()]},
            },
        },
    }))?;
    deployments.create(&PostParams::default(), &deployment).await?;
    let mut up = Vec::new();
    let mut down = Vec::new();
    for _ in 0..SCALE_ROUNDS {
        up.push(scale_to(&client, &deployments, REPLICAS).await?);
        down.push(scale_to(&client, &deployments, 0).await?);
    }
    Ok(json!({
        "replicas": REPLICAS,
        "rounds": SCALE_ROUNDS,
        "all_ready_median": figure(percentile(&mut up, 0.5), "s", 3.0, true),
        "all_ready_max": figure(percentile(&mut up, 1.0), "s", 3.0, true),
        "all_gone_median": {"value": percentile(&mut down, 0.5), "unit": "s"},
        "ratio_to_kubernetes": {"value": 24.6 / percentile(&mut up, 0.5), "note": "real Kubernetes on such a machine: 24.6 s"},
    }))
}

pub(crate) async fn scale_to(
    client: &Client,
    deployments: &Api<Deployment>,
    replicas: usize,
) -> anyhow::Result<f64> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let list = pods.list(&Default::default()).await?;
    let mut alive: HashSet<String> = list.items.iter().filter_map(|p| p.metadata.name.clone()).collect();
    let mut ready: HashSet<String> =
        list.items.iter().filter(|p| is_ready(p)).filter_map(|p| p.metadata.name.clone()).collect();
    let revision = list.metadata.resource_version.unwrap_or_default();
    let mut events = pods.watch(&WatchParams::default(), &revision).await?.boxed();
    let start = Instant::now();
    let patch = json!({"spec": {"replicas": replicas}});
    deployments.patch("many", &PatchParams::default(), &Patch::Merge(patch)).await?;
    let all = async {
        while !(alive.len() == replicas && ready.len() == replicas) {
            let Some(event) = events.try_next().await? else { bail!("the watch ended") };
            match event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                    let name = pod.metadata.name.clone().unwrap_or_default();
                    if is_ready(&pod) {
                        ready.insert(name.clone())
                    } else {
                        ready.remove(&name)
                    };
                    alive.insert(name);
                }
                WatchEvent::Deleted(pod) => {
                    let name = pod.metadata.name.unwrap_or_default();
                    ready.remove(&name);
                    alive.remove(&name);
                }
                WatchEvent::Bookmark(_) | WatchEvent::Error(_) => {}
            }
        }
        anyhow::Ok(start.elapsed().as_secs_f64())
    };
    timeout(DEADLINE + Duration::from_secs(60), all).await.with_context(|| format!("{replicas} replicas"))?
}
