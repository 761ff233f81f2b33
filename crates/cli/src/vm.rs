//! `vm`: virtual machines of this cloud, what they use, and their consoles.
//!
//! Which pods are machines is what the API says: those whose RuntimeClass has the handler `vm`. What they use on the host
//! (QEMU, supervisor and the guest's memory together) is in their cgroups, and a console is a socket in the pod's
//! directory, so both are known on the machine of the cloud only.

use crate::args::{Format, Vm};
use crate::client::connect;
use crate::terminal::RawTerminal;
use crate::{StateDir, table};
use anyhow::{Context, bail};
use cumulet_container::cgroup::{Cgroup, Usage};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Handler of the RuntimeClasses of virtual machines.
const HANDLER: &str = "vm";
/// Ctrl-]: leaves the console, as telnet and virsh have it.
const LEAVE: u8 = 0x1d;
const CHUNK: usize = 4096;
/// Time over which processor use is measured.
const SAMPLE: Duration = Duration::from_millis(250);

pub(crate) async fn run(state: &StateDir, task: Vm) -> anyhow::Result<()> {
    match task {
        Vm::Ls(output) => list(state, output.format).await,
        Vm::Checkpoint { pod, name, scope } => {
            checkpoint(state, &scope.namespace, &pod, name.as_deref()).await
        }
        Vm::Console { pod, scope } => console(state, &scope.namespace, &pod).await,
    }
}

async fn list(state: &StateDir, format: Format) -> anyhow::Result<()> {
    let client = connect(state).await?;
    let classes = Api::<RuntimeClass>::all(client.clone()).list(&ListParams::default()).await?;
    let classes: BTreeSet<String> =
        classes.into_iter().filter(|c| c.handler == HANDLER).filter_map(|c| c.metadata.name).collect();
    let pods = Api::<Pod>::all(client).list(&ListParams::default()).await?;
    let machines: Vec<Pod> = pods
        .into_iter()
        .filter(|p| {
            p.spec.as_ref().and_then(|s| s.runtime_class_name.as_ref()).is_some_and(|c| classes.contains(c))
        })
        .collect();
    let used = if matches!(format, Format::Name) { Vec::new() } else { used(state, &machines).await };
    let rows: Vec<Row> =
        machines.iter().zip(used.into_iter().chain(std::iter::repeat(None))).map(row).collect();
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&objects(&rows))?),
        Format::Yaml => print!("{}", serde_saphyr::to_string(&objects(&rows))?),
        Format::Name => rows.iter().for_each(|row| println!("pod/{}", row.name)),
        Format::Table | Format::Wide => {
            let cells: Vec<Vec<String>> = rows.iter().map(Row::cells).collect();
            table::print(&["NAMESPACE", "NAME", "STATUS", "IP", "CPU(cores)", "MEMORY"], &cells);
        }
    }
    Ok(())
}

/// Asks the pod's node to save it, where Kubernetes has the kubelet's checkpoint.
async fn checkpoint(state: &StateDir, namespace: &str, pod: &str, name: Option<&str>) -> anyhow::Result<()> {
    let client = connect(state).await?;
    let found = Api::<Pod>::namespaced(client.clone(), namespace).get(pod).await;
    let found = found.with_context(|| format!("pod {namespace}/{pod}"))?;
    let node =
        found.spec.and_then(|spec| spec.node_name).with_context(|| format!("pod {pod} is on no node yet"))?;
    let name = name.unwrap_or(pod);
    let path = format!("/api/v1/nodes/{node}/proxy/checkpoint/{namespace}/{pod}?name={name}");
    let request = http::Request::post(path).body(Vec::new())?;
    let saved: serde_json::Value =
        client.request(request).await.with_context(|| format!("pod {namespace}/{pod}"))?;
    let key = saved["items"][0].as_str().unwrap_or_default();
    println!("checkpoint {name} of pod {namespace}/{pod} saved as snapshot {}", key.get(..12).unwrap_or(key));
    println!("pods like it go on from there with the annotation snapshot.cumulet.dev/restore-from: {name}");
    Ok(())
}

/// A machine in the list.
struct Row {
    namespace: String,
    name: String,
    status: String,
    ip: String,
    /// Thousandths of a processor, and bytes; of those that run here.
    used: Option<(u128, u64)>,
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let (cpu, memory) = self.used.map_or_else(Default::default, |(millicores, bytes)| {
            (format!("{millicores}m"), table::bytes(bytes))
        });
        vec![self.namespace.clone(), self.name.clone(), self.status.clone(), self.ip.clone(), cpu, memory]
    }
}

fn row((pod, used): (&Pod, Option<(u128, u64)>)) -> Row {
    let status = pod.status.clone().unwrap_or_default();
    Row {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        status: status.phase.unwrap_or_default(),
        ip: status.pod_ip.unwrap_or_default(),
        used,
    }
}

fn objects(rows: &[Row]) -> serde_json::Value {
    let one = |row: &Row| {
        json!({
            "namespace": row.namespace, "name": row.name, "status": row.status, "ip": row.ip,
            "cpu_millicores": row.used.map(|(millicores, _)| millicores),
            "memory_bytes": row.used.map(|(_, bytes)| bytes),
        })
    };
    rows.iter().map(one).collect()
}

/// What machines use: processor time over a moment, and memory.
async fn used(state: &StateDir, pods: &[Pod]) -> Vec<Option<(u128, u64)>> {
    let look = || -> Vec<Option<Usage>> { pods.iter().map(|pod| usage(state, pod)).collect() };
    let (start, before) = (Instant::now(), look());
    if before.iter().any(Option::is_some) {
        // A rate needs two looks.
        tokio::time::sleep(SAMPLE).await;
    }
    let after = look();
    let elapsed_ns = start.elapsed().as_nanos().max(1);
    let one = |(before, after): (Option<Usage>, Option<Usage>)| {
        let after = after?;
        let cpu_ns = after.cpu_ns.saturating_sub(before?.cpu_ns);
        Some((u128::from(cpu_ns) * 1000 / elapsed_ns, after.memory_working_set_bytes))
    };
    before.into_iter().zip(after).map(one).collect()
}

/// What the pod's cgroup counts; `None` when it does not run here.
fn usage(state: &StateDir, pod: &Pod) -> Option<Usage> {
    let sandbox = std::fs::read(pod_dir(state, pod).ok()?.join("sandbox.json")).ok()?;
    let sandbox: serde_json::Value = serde_json::from_slice(&sandbox).ok()?;
    let usage = Cgroup::new(sandbox["cgroup"].as_str()?).ok()?.usage();
    (usage.memory_bytes > 0).then_some(usage)
}

/// Where the node keeps what belongs to a pod.
fn pod_dir(state: &StateDir, pod: &Pod) -> anyhow::Result<PathBuf> {
    let uid = pod.metadata.uid.as_deref().context("the pod has no uid")?;
    if uid.contains(['/', '.']) {
        bail!("{uid:?} is no uid");
    }
    Ok(state.path().join("pods").join(uid))
}

async fn console(state: &StateDir, namespace: &str, name: &str) -> anyhow::Result<()> {
    let pods = Api::<Pod>::namespaced(connect(state).await?, namespace);
    let pod = pods.get(name).await.with_context(|| format!("pod {namespace}/{name}"))?;
    let dir = pod_dir(state, &pod)?.join("vm");
    let stream = open(&dir).await.with_context(|| {
        format!("pod {namespace}/{name} has no console here: is it a virtual machine, and does it run?")
    })?;
    let raw = if std::io::stdin().is_terminal() {
        eprintln!("connected to the console of {name}; Ctrl-] leaves");
        Some(RawTerminal::enter()?)
    } else {
        None
    };
    let result = copy(stream).await;
    drop(raw);
    eprintln!();
    result
}

/// Connects to the console's socket. Its path may be longer than an address can hold, so the way goes through a
/// descriptor of its directory.
async fn open(dir: &Path) -> std::io::Result<UnixStream> {
    let dir = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/console.sock", dir.as_raw_fd())).await
}

/// Copies both ways until the machine ends or the person leaves. The end of piped input ends nothing: what the machine
/// still says is wanted.
async fn copy(stream: UnixStream) -> anyhow::Result<()> {
    let (mut from, mut to) = stream.into_split();
    let output = async {
        let mut chunk = vec![0; CHUNK];
        let mut out = tokio::io::stdout();
        loop {
            let n = from.read(&mut chunk).await?;
            if n == 0 {
                return anyhow::Ok(());
            }
            out.write_all(&chunk[..n]).await?;
            out.flush().await?;
        }
    };
    let input = async {
        let mut chunk = vec![0; CHUNK];
        let mut typed = tokio::io::stdin();
        loop {
            let n = typed.read(&mut chunk).await?;
            if n == 0 {
                std::future::pending::<()>().await;
            }
            let leaves = chunk[..n].iter().position(|byte| *byte == LEAVE);
            to.write_all(&chunk[..leaves.unwrap_or(n)]).await?;
            if leaves.is_some() {
                return anyhow::Ok(());
            }
        }
    };
    tokio::select! {
        // Either end means the end; what the other had not written is not wanted any more.
        result = output => result,
        result = input => result,
    }
}
