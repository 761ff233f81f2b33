//! `vm`: virtual machines of this cloud, and their consoles.
//!
//! Which pods are machines is what the API says: those whose RuntimeClass has the handler `vm`. A console is a socket in
//! the pod's directory, so it works on the machine of the cloud only.

use crate::args::{Format, Vm};
use crate::client::connect;
use crate::terminal::RawTerminal;
use crate::{StateDir, table};
use anyhow::{Context, bail};
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
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Handler of the RuntimeClasses of virtual machines.
const HANDLER: &str = "vm";
/// Ctrl-]: leaves the console, as telnet and virsh have it.
const LEAVE: u8 = 0x1d;
const CHUNK: usize = 4096;

pub(crate) async fn run(state: &StateDir, task: Vm) -> anyhow::Result<()> {
    match task {
        Vm::Ls(output) => list(state, output.format).await,
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
    let row = |pod: &Pod| {
        let status = pod.status.clone().unwrap_or_default();
        vec![
            pod.metadata.namespace.clone().unwrap_or_default(),
            pod.metadata.name.clone().unwrap_or_default(),
            status.phase.unwrap_or_default(),
            status.pod_ip.unwrap_or_default(),
        ]
    };
    let rows: Vec<Vec<String>> = machines.iter().map(row).collect();
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&objects(&rows))?),
        Format::Yaml => print!("{}", serde_saphyr::to_string(&objects(&rows))?),
        Format::Name => rows.iter().for_each(|row| println!("pod/{}", row[1])),
        Format::Table | Format::Wide => table::print(&["NAMESPACE", "NAME", "STATUS", "IP"], &rows),
    }
    Ok(())
}

fn objects(rows: &[Vec<String>]) -> serde_json::Value {
    let one =
        |row: &Vec<String>| json!({"namespace": row[0], "name": row[1], "status": row[2], "ip": row[3]});
    rows.iter().map(one).collect()
}

async fn console(state: &StateDir, namespace: &str, name: &str) -> anyhow::Result<()> {
    let pods = Api::<Pod>::namespaced(connect(state).await?, namespace);
    let pod = pods.get(name).await.with_context(|| format!("pod {namespace}/{name}"))?;
    let uid = pod.metadata.uid.context("the pod has no uid")?;
    if uid.contains(['/', '.']) {
        bail!("{uid:?} is no uid");
    }
    let dir = state.path().join("pods").join(uid).join("vm");
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
