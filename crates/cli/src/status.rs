//! `status`: whether the cloud runs, and how it is.

use crate::args::Format;
use crate::client::connect;
use crate::{StateDir, exit, table};
use anyhow::Context;
use http::Request;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::{Api, Client};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long the cloud may take to answer before it counts as stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Prints the state of the cloud. Exit code 3 when none runs.
pub(crate) async fn run(state: &StateDir, format: Format) -> anyhow::Result<u8> {
    let Some(pid) = state.running()? else {
        let report = json!({"stateDir": state.path(), "running": false});
        print(&report, format, |_| {
            println!("no cloud runs on {}: start it with `cumulet up`", state.path().display())
        })?;
        return Ok(exit::NOT_RUNNING);
    };
    let asked = tokio::time::timeout(ANSWER_WITHIN, ask(state)).await;
    let mut report = match asked {
        Ok(Ok(report)) => report,
        Ok(Err(error)) => json!({"problem": format!("{error:#}")}),
        Err(_) => {
            json!({"problem": format!("no answer within {} s: see {}", ANSWER_WITHIN.as_secs(), state.log().display())})
        }
    };
    report["stateDir"] = json!(state.path());
    report["running"] = json!(true);
    report["pid"] = json!(pid);
    report["registry"] = json!(state.registry_address());
    report["residentBytes"] = json!(resident_bytes(pid));
    print(&report, format, people)?;
    Ok(if report.get("problem").is_some() { exit::FAILURE } else { exit::OK })
}

async fn ask(state: &StateDir) -> anyhow::Result<Value> {
    let client = connect(state).await?;
    let ready = client.request_text(Request::get("/readyz?verbose").body(Vec::new())?).await;
    let version = client.apiserver_version().await.context("the API does not answer")?;
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await?;
    let node_ready = |node: &Node| {
        let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref()).into_iter().flatten();
        conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let nodes: Vec<Value> =
        nodes.iter().map(|n| json!({"name": n.metadata.name, "ready": node_ready(n)})).collect();
    Ok(json!({
        "ready": ready.is_ok(),
        "version": version.git_version,
        "nodes": nodes,
        "pods": phases(client).await?,
    }))
}

async fn phases(client: Client) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut count = BTreeMap::new();
    for pod in Api::<Pod>::all(client).list(&ListParams::default()).await? {
        let phase = pod.status.and_then(|status| status.phase).unwrap_or_else(|| "Unknown".to_owned());
        *count.entry(phase).or_default() += 1;
    }
    Ok(count)
}

/// Resident memory of a process, in bytes.
fn resident_bytes(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

fn print(report: &Value, format: Format, people: impl Fn(&Value)) -> anyhow::Result<()> {
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(report)?),
        Format::Yaml => print!("{}", serde_saphyr::to_string(report)?),
        Format::Table | Format::Wide | Format::Name => people(report),
    }
    Ok(())
}

fn people(report: &Value) {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut rows = vec![vec!["state directory".to_owned(), text(&report["stateDir"])]];
    let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    row("process", text(&report["pid"]));
    if let Some(bytes) = report["residentBytes"].as_u64() {
        row("memory", table::bytes(bytes));
    }
    if let Some(problem) = report["problem"].as_str() {
        row("problem", problem.to_owned());
    } else {
        row("version", text(&report["version"]));
        row("ready", if report["ready"] == true { "yes".into() } else { "no".into() });
        for node in report["nodes"].as_array().into_iter().flatten() {
            let ready = if node["ready"] == true { "Ready" } else { "NotReady" };
            row("node", format!("{} ({ready})", text(&node["name"])));
        }
        let pods: Vec<String> = report["pods"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(phase, n)| format!("{n} {phase}"))
            .collect();
        if let Some(address) = report["registry"].as_str() {
            row("registry", address.to_owned());
        }
        row("pods", if pods.is_empty() { "none".to_owned() } else { pods.join(", ") });
    }
    let rows: Vec<Vec<String>> = rows;
    table::print(&["CLOUD", ""], &rows);
}
