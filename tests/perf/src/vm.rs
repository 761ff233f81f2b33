//! Pods that are virtual machines: how long one takes until it is Ready, whether five at a time all come up, and what
//! a command in one costs against a container.

use crate::pods::Watched;
use crate::{figure, percentile};
use anyhow::bail;
use cumulet_e2e::Cloud;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Instant;

const BOOTS: usize = 5;
const AT_ONCE: usize = 5;
const ROUNDS: usize = 20;
const COMMANDS: usize = 20;

fn machine(name: &str) -> Pod {
    let mut pod = crate::pods::pod(name);
    if let Some(spec) = &mut pod.spec {
        spec.runtime_class_name = Some("vm".into());
    }
    pod
}

pub(crate) async fn run() -> anyhow::Result<Value> {
    let cloud = Cloud::with_hello()?;
    let client = cloud.client().await?;
    // The first one also makes the disk of the image and tries KVM.
    let start = Instant::now();
    Watched::create(&client, &machine("first")).await?.ready().await?;
    let first = start.elapsed().as_secs_f64();
    let mut boots = Vec::new();
    for round in 0..BOOTS {
        let start = Instant::now();
        let mut watched = Watched::create(&client, &machine(&format!("one-{round}"))).await?;
        watched.ready().await?;
        boots.push(start.elapsed().as_secs_f64());
        watched.delete().await?;
    }
    Watched::create(&client, &crate::pods::pod("container")).await?.ready().await?;
    let (machine, container) = (command(&cloud, "first")?, command(&cloud, "container")?);
    cloud.kubectl(&["delete", "pod", "first", "container", "--now"])?;
    let mut together = Vec::new();
    for round in 0..ROUNDS {
        together.push(at_once(&client, round).await?);
    }
    cloud.finish()?;
    Ok(json!({
        "first_create_to_ready": {"value": first, "unit": "s"},
        "create_to_ready_median": {"value": percentile(&mut boots, 0.5), "unit": "s"},
        "five_at_once": {
            "rounds": ROUNDS,
            "all_ready_with_addresses": together.len(),
            "median": {"value": percentile(&mut together, 0.5), "unit": "s"},
            "worst": {"value": percentile(&mut together, 1.0), "unit": "s"},
        },
        "exec": {
            "machine": {"value": machine, "unit": "s"},
            "container": {"value": container, "unit": "s"},
            "ratio": figure(machine / container, "x", 3.0, true),
        },
    }))
}

/// Median of a command's round trip, kubectl included.
fn command(cloud: &Cloud, pod: &str) -> anyhow::Result<f64> {
    let mut times = Vec::new();
    for _ in 0..COMMANDS {
        let start = Instant::now();
        cloud.kubectl(&["exec", pod, "--", "true"])?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(percentile(&mut times, 0.5))
}

/// Starts several and gives the time until all are Ready; each has to have an address of its own.
async fn at_once(client: &kube::Client, round: usize) -> anyhow::Result<f64> {
    let start = Instant::now();
    let mut all = Vec::new();
    for number in 0..AT_ONCE {
        all.push(Watched::create(client, &machine(&format!("m{round}-{number}"))).await?);
    }
    for watched in &mut all {
        watched.ready().await?;
    }
    let took = start.elapsed().as_secs_f64();
    let pods = Api::<Pod>::namespaced(client.clone(), "default").list(&Default::default()).await?;
    let addresses: BTreeSet<String> = pods
        .iter()
        .filter(|pod| {
            pod.metadata.name.as_deref().is_some_and(|name| name.starts_with(&format!("m{round}-")))
        })
        .filter_map(|pod| pod.status.as_ref()?.pod_ip.clone())
        .collect();
    if addresses.len() != AT_ONCE {
        bail!("round {round}: {AT_ONCE} machines have the addresses {addresses:?}");
    }
    for watched in all {
        watched.delete().await?;
    }
    Ok(took)
}
