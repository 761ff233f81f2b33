//! Pods that start from a memory snapshot: the pet clinic, a Spring application on a Java virtual machine, from the create
//! request to its first answer over HTTP; with a standby, without one, ten at a time; what a clone costs in memory; all
//! against the cold boot of the same pod in the same run, and against QEMU's own `savevm` and `-loadvm`
//! ([`loadvm`]).

mod loadvm;

use crate::pods::{Watched, scale_to};
use crate::vm::floor::Like;
use crate::vm::host;
use crate::{figure, percentile};
use anyhow::{Context, bail};
use cumulet_e2e::{Cloud, examples, wait_within};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const WITH_STANDBY: usize = 50;
const WITHOUT: usize = 20;
const SCALES: usize = 20;
const REPLICAS: usize = 10;
/// A cold boot takes minutes in software emulation on a busy machine.
const COLD: Duration = Duration::from_secs(900);
const PATH: &str = "/owners.json";
const PORT: u16 = 8080;
/// A method's machine code is only made when it is called a hundred times as often as usual: an emulator has to translate
/// all of it in every clone.
const JAVA_OPTIONS: &str = "-Xmx160m -XX:+UseSerialGC -XX:CompileThresholdScaling=100";
/// The image of the pet clinic.
const IMAGE: &str = "127.0.0.1:5000/examples/petclinic:1";

pub(crate) async fn run() -> anyhow::Result<Value> {
    let cloud = Cloud::start()?;
    eprintln!("composing the pet clinic ...");
    cloud.cumulet(&["image", "build", &examples().join("petclinic").to_string_lossy()])?;
    let client = cloud.client().await?;
    eprintln!("cold boot ...");
    let cold = cold(&cloud, &client).await?;
    eprintln!("clones from a standby ...");
    let mut standby = Vec::new();
    let mut identity = Vec::new();
    for round in 0..WITH_STANDBY {
        await_standby(&cloud)?;
        let started = start(&cloud, &client, &format!("standby-{round}"), Some(1)).await?;
        if !started.from_standby {
            bail!("round {round} did not start from a standby");
        }
        standby.push(started.first_answer);
        identity.push(started.identity_ms);
    }
    eprintln!("clones without a standby ...");
    // The last standby is used up first.
    await_standby(&cloud)?;
    start(&cloud, &client, "last", Some(0)).await?;
    let mut alone = Vec::new();
    for round in 0..WITHOUT {
        let started = start(&cloud, &client, &format!("alone-{round}"), Some(0)).await?;
        if started.from_standby {
            bail!("round {round} started from a standby");
        }
        alone.push(started.first_answer);
    }
    eprintln!("QEMU's own savevm and -loadvm ...");
    let p50 = percentile(&mut standby, 0.5);
    let loadvm = loadvm::run(&cloud, &cold.like, p50).await?;
    eprintln!("1 to {REPLICAS} replicas ...");
    let (mut scales, memory) = scales(&cloud, &client).await?;
    cloud.finish()?;
    Ok(json!({
        "cold_boot_to_first_answer": {"value": cold.first_answer, "unit": "s"},
        "builder_stands_still": figure(cold.pause_ms, "ms", 50.0, true),
        "template_memory": {"value": cold.template_mb, "unit": "MB"},
        "with_standby": {
            "rounds": WITH_STANDBY,
            "p50": figure(p50, "s", 0.3, true),
            "p99": figure(percentile(&mut standby, 0.99), "s", 0.5, true),
            "identity_p50": figure(percentile(&mut identity, 0.5), "ms", 150.0, true),
            "ratio_to_cold_boot": figure(p50 / cold.first_answer, "x", 0.01, true),
        },
        "loadvm": loadvm,
        "without_standby": {
            "rounds": WITHOUT,
            "p50": figure(percentile(&mut alone, 0.5), "s", 0.6, true),
            "p99": figure(percentile(&mut alone, 0.99), "s", 0.9, true),
        },
        "scale_1_to_10": {
            "rounds": SCALES,
            "all_ready_with_addresses": scales.len(),
            "median": figure(percentile(&mut scales, 0.5), "s", 4.0, true),
            "worst": {"value": percentile(&mut scales, 1.0), "unit": "s"},
        },
        "memory_of_the_tenth_clone": {
            "own": {"value": memory, "unit": "MB"},
            "booted": {"value": cold.booted_mb, "unit": "MB"},
            "ratio": figure(memory / cold.booted_mb, "x", 0.25, true),
        },
    }))
}

fn template(annotations: Value) -> Value {
    let probe = |period: u32, failures: u32| {
        json!({"httpGet": {"path": "/healthz", "port": PORT}, "periodSeconds": period, "timeoutSeconds": 5,
            "failureThreshold": failures})
    };
    json!({
        "metadata": {"labels": {"app": "clinic"}, "annotations": annotations},
        "spec": {
            "runtimeClassName": "vm-snapshot",
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "petclinic",
                "image": IMAGE,
                "ports": [{"containerPort": PORT}],
                "startupProbe": probe(1, 900),
                "readinessProbe": probe(5, 3),
                // As in examples/petclinic/snapshot.
                "env": [{"name": "JAVA_TOOL_OPTIONS", "value": JAVA_OPTIONS}],
                // With what the agent and the kernel get, 512 MiB.
                "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "2", "memory": "416Mi"}},
            }],
        },
    })
}

fn annotations(standbys: Option<u32>) -> Value {
    let mut all =
        json!({"snapshot.cumulet.dev/warmup-path": PATH, "snapshot.cumulet.dev/warmup-requests": "30"});
    if let Some(count) = standbys {
        all["snapshot.cumulet.dev/standby"] = json!(count.to_string());
    }
    all
}

fn pod(name: &str, standbys: Option<u32>) -> anyhow::Result<Pod> {
    let mut pod = template(annotations(standbys));
    pod["metadata"]["name"] = json!(name);
    Ok(serde_json::from_value(pod)?)
}

/// The first pod of the kind, which boots and becomes the template.
struct Cold {
    first_answer: f64,
    pause_ms: f64,
    template_mb: f64,
    /// Memory of its processes when it had answered.
    booted_mb: f64,
    /// What its machine was started with.
    like: Like,
}

async fn cold(cloud: &Cloud, client: &Client) -> anyhow::Result<Cold> {
    let start = Instant::now();
    let mut watched = Watched::create(client, &pod("cold", Some(1))?).await?;
    let address = watched.address(COLD).await?;
    answer(&address, COLD).await?;
    let first_answer = start.elapsed().as_secs_f64();
    let booted_mb = resident_mb(cloud, "cold")?;
    // Now: a clone's machine has other options.
    let like = Like::of(host::processes(cloud, "cold")?.qemu, cloud.dir())?;
    watched.ready_within(COLD).await?;
    let built = event(cloud, "cold", "SnapshotBuilt")?;
    let (pause, memory) = (number_before(&built, " ms")?, number_before(&built, " MB")?);
    // It is a clone itself by now, and its standby is its own demand.
    watched.delete().await?;
    start_once(cloud, client).await?;
    Ok(Cold { first_answer, pause_ms: pause, template_mb: memory, booted_mb, like })
}

/// The first clone, which is not counted: it asks for the first standby.
async fn start_once(cloud: &Cloud, client: &Client) -> anyhow::Result<()> {
    start(cloud, client, "warm-up", Some(1)).await.map(drop)
}

struct Started {
    /// Create request → first answer, in seconds.
    first_answer: f64,
    identity_ms: f64,
    from_standby: bool,
}

async fn start(cloud: &Cloud, client: &Client, name: &str, standbys: Option<u32>) -> anyhow::Result<Started> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let pod = pod(name, standbys)?;
    let start = Instant::now();
    let mut watched = Watched::create(client, &pod).await?;
    let address = watched.address(PATIENCE).await?;
    if let Err(error) = answer(&address, PATIENCE).await {
        // The figure is lost: what is left is to see why.
        let said = |args: &[&str]| cloud.kubectl(args).unwrap_or_else(|e| e.to_string());
        let seen = [said(&["describe", "pod", name]), said(&["logs", "--tail=40", name])].join("\n");
        return Err(error.context(seen));
    }
    let first_answer = start.elapsed().as_secs_f64();
    watched.ready_within(PATIENCE).await?;
    let restored = event(cloud, name, "RestoredFromSnapshot")?;
    watched.delete().await?;
    await_removal(cloud, 0)?;
    let identity_ms = number_before(restored.rsplit_once("identity").map_or("", |(_, end)| end), " ms")?;
    Ok(Started { first_answer, identity_ms, from_standby: restored.contains("from a standby") })
}

/// Waits until nothing of deleted pods runs any more, beside so many others: the API forgets them sooner.
fn await_removal(cloud: &Cloud, others: usize) -> anyhow::Result<()> {
    wait_within(Duration::from_secs(60), "the pods' end", || {
        let entries = fs::read_dir(cloud.dir().join("pods")).ok()?.filter_map(Result::ok);
        let is_pod = |entry: &fs::DirEntry| !entry.file_name().to_string_lossy().starts_with("standby-");
        (entries.filter(is_pod).count() == others).then_some(())
    })
}

/// Waits until a clone waits for its pod.
fn await_standby(cloud: &Cloud) -> anyhow::Result<()> {
    let pods = cloud.dir().join("pods");
    wait_within(Duration::from_secs(60), "a standby", || {
        let mut entries = fs::read_dir(&pods).ok()?.filter_map(Result::ok);
        entries.find(|entry| {
            entry.file_name().to_string_lossy().starts_with("standby-")
                && entry.path().join("state.json").exists()
        })
    })
    .map(drop)
}

/// Asks until there is an answer of status 200.
async fn answer(address: &str, limit: Duration) -> anyhow::Result<()> {
    let ask = async {
        loop {
            if once(address).await.is_ok_and(|status| status == 200) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(limit, ask).await.with_context(|| format!("{address} does not answer"))
}

async fn once(address: &str) -> anyhow::Result<u16> {
    let connect = TcpStream::connect((address, PORT));
    // What was sent before the pod was there is not sent again for a second.
    let mut stream = tokio::time::timeout(Duration::from_millis(100), connect).await??;
    stream
        .write_all(format!("GET {PATH} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    Ok(std::str::from_utf8(&head[9..])?.parse()?)
}

/// Scales a Deployment again and again; seconds until all are Ready, and the memory of the last one in MB.
async fn scales(cloud: &Cloud, client: &Client) -> anyhow::Result<(Vec<f64>, f64)> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "many"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "clinic"}}, "template": template(annotations(None))},
    }))?;
    deployments.create(&PostParams::default(), &deployment).await?;
    scale_to(client, &deployments, 1).await?;
    let (mut times, mut memory) = (Vec::new(), 0.0);
    for round in 0..SCALES {
        times.push(scale_to(client, &deployments, REPLICAS).await?);
        let pods = Api::<Pod>::namespaced(client.clone(), "default").list(&ListParams::default()).await?;
        let addresses: BTreeSet<_> =
            pods.iter().filter_map(|pod| pod.status.as_ref()?.pod_ip.clone()).collect();
        if addresses.len() != REPLICAS {
            bail!("round {round}: {REPLICAS} replicas have the addresses {addresses:?}");
        }
        let newest = pods.iter().max_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|t| t.0));
        let newest = newest.and_then(|pod| pod.metadata.name.clone()).context("no pods")?;
        memory = private_mb(cloud, &newest)?;
        scale_to(client, &deployments, 1).await?;
        await_removal(cloud, 1)?;
    }
    Ok((times, memory))
}

/// The message of a pod's event.
fn event(cloud: &Cloud, pod: &str, reason: &str) -> anyhow::Result<String> {
    let selector = format!("--field-selector=involvedObject.name={pod},reason={reason}");
    let get = || {
        let message =
            cloud.kubectl(&["get", "events", &selector, "-o", "jsonpath={.items[0].message}"]).ok()?;
        (!message.is_empty()).then_some(message)
    };
    wait_within(Duration::from_secs(10), reason, get)
}

/// The number before a unit.
fn number_before(text: &str, unit: &str) -> anyhow::Result<f64> {
    let before = text.split(unit).next().unwrap_or_default();
    let number = before.rsplit(|c: char| !(c.is_ascii_digit() || c == '.')).next().unwrap_or_default();
    number.parse().with_context(|| format!("no number before {unit:?} in {text:?}"))
}

/// What a pod's processes have in memory, shared or not.
fn resident_mb(cloud: &Cloud, pod: &str) -> anyhow::Result<f64> {
    memory_mb(cloud, pod, &["Rss:"])
}

/// What a pod's processes have in memory that nobody shares.
fn private_mb(cloud: &Cloud, pod: &str) -> anyhow::Result<f64> {
    memory_mb(cloud, pod, &["Private_Clean:", "Private_Dirty:"])
}

fn memory_mb(cloud: &Cloud, pod: &str, fields: &[&str]) -> anyhow::Result<f64> {
    let processes = host::processes(cloud, pod)?;
    let mut kib = 0;
    for pid in [processes.supervisor, processes.qemu] {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        for line in rollup.lines().filter(|line| fields.iter().any(|field| line.starts_with(field))) {
            kib += line.split_whitespace().nth(1).and_then(|n| n.parse::<u32>().ok()).unwrap_or_default();
        }
    }
    Ok(f64::from(kib) * 1024.0 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_events() {
        let built = "Snapshot 1a2b is there after 6.0 s: 66 MB of memory, the pod stood still for 10 ms";
        let all = [
            number_before(built, " s:").unwrap(),
            number_before(built, " MB").unwrap(),
            number_before(built, " ms").unwrap(),
        ];
        assert_eq!(all, [6.0, 66.0, 10.0]);
        assert!(number_before("none", " ms").is_err());
    }
}
