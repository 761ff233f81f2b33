//! Pods that are virtual machines: how long one takes until it is Ready, against the barest machine that answers at all;
//! whether five at a time all come up; what a command in one costs against a container; what a machine costs the host
//! beside the guest's memory; how much it can log.

pub(crate) mod floor;
pub(crate) mod host;
mod logs;
mod phases;

use crate::pods::Watched;
use crate::{figure, percentile};
use anyhow::bail;
use cumulet_e2e::Cloud;
use floor::Floor;
use host::Memory;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use phases::Phases;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Instant, SystemTime};

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
    let alone = overhead(&cloud, &["first"])?;
    let floor = Floor::like(host::processes(&cloud, "first")?.qemu, cloud.dir())?;
    let starts = starts(&cloud, &client, &floor).await?;
    let serial = floor.serial()?;
    drop(floor);
    Watched::create(&client, &crate::pods::pod("container")).await?.ready().await?;
    let (in_machine, in_container) = (command(&cloud, "first")?, command(&cloud, "container")?);
    cloud.kubectl(&["delete", "pod", "first", "container", "--now"])?;
    let logs = log_figures(&cloud, serial)?;
    let mut together = Vec::new();
    let mut among_five = json!(null);
    for round in 0..ROUNDS {
        let (took, memory) = at_once(&cloud, &client, round).await?;
        together.push(took);
        among_five = memory;
    }
    cloud.finish()?;
    Ok(json!({
        "first_create_to_ready": {"value": first, "unit": "s"},
        "starts": starts,
        "five_at_once": {
            "rounds": ROUNDS,
            "all_ready_with_addresses": together.len(),
            "median": {"value": percentile(&mut together, 0.5), "unit": "s"},
            "worst": {"value": percentile(&mut together, 1.0), "unit": "s"},
        },
        "host_memory_beside_the_guest": {"alone": alone, "each_of_five": among_five},
        "exec": {
            "machine": {"value": in_machine, "unit": "s"},
            "container": {"value": in_container, "unit": "s"},
            "ratio": figure(in_machine / in_container, "x", 3.0, true),
        },
        "logs": logs,
    }))
}

/// Starts one after the other, and in turn with them bare machines.
async fn starts(cloud: &Cloud, client: &kube::Client, floor: &Floor) -> anyhow::Result<Value> {
    let (mut pods, mut bare, mut by_hand, mut parts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..BOOTS {
        let name = format!("one-{round}");
        let (start, created) = (Instant::now(), SystemTime::now());
        let mut watched = Watched::create(client, &machine(&name)).await?;
        watched.ready().await?;
        pods.push(start.elapsed().as_secs_f64());
        parts.push(Phases::of(cloud, &name, created, SystemTime::now())?);
        watched.delete().await?;
        bare.push(floor.boot(true)?);
        by_hand.push(floor.boot(false)?);
    }
    let (pod, bare) = (percentile(&mut pods, 0.5), percentile(&mut bare, 0.5));
    let by_hand = percentile(&mut by_hand, 0.5);
    Ok(json!({
        "create_to_ready_median": {"value": pod, "unit": "s"},
        "phases": Phases::medians(&parts),
        "bare_machine": {"value": bare, "unit": "s", "note": "same QEMU options, kernel image and firmware, static init, to its first HTTP 200"},
        "ratio_to_bare_machine": figure(pod / bare, "x", 1.3, true),
        "machine_by_hand": {"value": by_hand, "unit": "s", "note": "the same with the packed kernel and QEMU's own firmware"},
        "ratio_to_machine_by_hand": {"value": pod / by_hand, "unit": "x"},
    }))
}

/// What machines cost the host beside their guests' memory and translated code, the mean of these pods.
fn overhead(cloud: &Cloud, pods: &[&str]) -> anyhow::Result<Value> {
    const MB: f64 = 1e6;
    let (mut qemu, mut files, mut supervisor, mut translated) = (0, 0, 0, 0);
    for pod in pods {
        let processes = host::processes(cloud, pod)?;
        let memory = Memory::read(processes.qemu)?;
        qemu += memory.overhead();
        files += memory.files;
        translated += memory.translated;
        supervisor += Memory::read(processes.supervisor)?.overhead();
    }
    #[expect(clippy::cast_precision_loss, reason = "counts of bytes far below 2^52")]
    let mean = |sum: u64| sum as f64 / MB / pods.len() as f64;
    Ok(json!({
        "qemu": {"value": mean(qemu), "unit": "MB"},
        "qemu_programs_and_libraries": {"value": mean(files), "unit": "MB"},
        "supervisor": {"value": mean(supervisor), "unit": "MB"},
        "translated_code": {"value": mean(translated), "unit": "MB"},
        "overhead": figure(mean(qemu + supervisor), "MB", 30.0, true),
    }))
}

/// Logging in a machine and in a container, beside what the channel carries when nothing else is done.
fn log_figures(cloud: &Cloud, serial: f64) -> anyhow::Result<Value> {
    const MB: f64 = 1e6;
    let machine = logs::throughput(cloud, "logs-machine", Some("vm"))?;
    let container = logs::throughput(cloud, "logs-container", None)?;
    Ok(json!({
        "line": {"value": logs::LINE, "unit": "bytes"},
        "machine": figure(machine / MB, "MB/s", 50.0, false),
        "container": {"value": container / MB, "unit": "MB/s"},
        "channel_alone": {"value": serial / MB, "unit": "MB/s", "note": "a static init's writes to a virtio-serial port"},
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

/// Starts several and gives the time until all are Ready, and what each costs; each has to have an address of its own.
async fn at_once(cloud: &Cloud, client: &kube::Client, round: usize) -> anyhow::Result<(f64, Value)> {
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
    let names: Vec<String> = (0..AT_ONCE).map(|number| format!("m{round}-{number}")).collect();
    let memory = overhead(cloud, &names.iter().map(String::as_str).collect::<Vec<_>>())?;
    for watched in all {
        watched.delete().await?;
    }
    Ok((took, memory))
}
