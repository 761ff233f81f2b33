//! The built-in client: the everyday commands for people who have no kubectl.
//!
//! It talks to the cloud of the state directory over HTTPS like every other client and knows nothing of its insides.
//! What is absent on purpose: everything that kubectl does better; use kubectl when it is there.

mod apply;
mod change;
mod exec;
mod get;
mod logs;
mod manifest;
mod resource;

use crate::args::Client as Task;
use crate::{StateDir, exit};
use anyhow::{Context, anyhow, bail};
use http::{Method, Request};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// Runs one client command. Gives the exit code: that of the remote program for `exec`.
pub(crate) async fn run(state: &StateDir, task: Task) -> anyhow::Result<u8> {
    let client = connect(state).await?;
    match task {
        Task::Apply { files, scope } => apply::run(&client, &files, &scope.namespace).await?,
        Task::Get { what, all_namespaces, selector, output, scope } => {
            let namespace = (!all_namespaces).then_some(scope.namespace.as_str());
            get::run(&client, &what, namespace, selector.as_deref(), output.format).await?;
        }
        Task::Logs { pod, container, follow, previous, tail, scope } => {
            let query = logs::Query { container, follow, previous, tail };
            logs::run(&client, &scope.namespace, &pod, &query).await?;
        }
        Task::Exec { pod, container, stdin, tty, command, scope } => {
            let options = exec::Options { container, stdin, tty, command };
            return exec::run(client, &scope.namespace, &pod, options).await;
        }
        Task::Scale { what, replicas, scope } => {
            change::scale(&client, &what, replicas, &scope.namespace).await?
        }
        Task::Delete { what, files, grace_period, scope } => {
            change::delete(&client, &what, &files, grace_period, &scope.namespace).await?;
        }
    }
    Ok(exit::OK)
}

/// A client of the cloud of this state directory.
pub(crate) async fn connect(state: &StateDir) -> anyhow::Result<Client> {
    let path = state.kubeconfig();
    if !path.exists() {
        bail!("{} does not exist: start the cloud with `cumulet up --detach`", path.display());
    }
    let kubeconfig =
        Kubeconfig::read_from(&path).with_context(|| format!("cannot use {}", path.display()))?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("cannot use {}", path.display()))?;
    // `exec` and `logs -f` may be silent for hours.
    config.read_timeout = None;
    Client::try_from(config).context("cannot set up TLS")
}

/// One request with a JSON body, or none. The answer's text; an API failure becomes its own message.
async fn call(
    client: &Client,
    method: Method,
    path: &str,
    content_type: &str,
    accept: &str,
    body: Vec<u8>,
) -> anyhow::Result<String> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, content_type)
        .header(http::header::ACCEPT, accept)
        .body(body)?;
    client.request_text(request).await.map_err(explain)
}

/// GET with a JSON answer.
async fn get_json(client: &Client, path: &str) -> anyhow::Result<serde_json::Value> {
    let text = call(client, Method::GET, path, "application/json", "application/json", Vec::new()).await?;
    serde_json::from_str(&text).with_context(|| format!("{path}: the answer is no JSON"))
}

/// An error as its reader needs it: the API's own message, or what to do when there is no API.
fn explain(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow!("{} ({})", status.message, status.reason),
        other => anyhow::Error::new(other).context("the cloud does not answer: `cumulet status` tells more"),
    }
}

/// True for an API failure with this reason.
fn is_reason(error: &anyhow::Error, reason: &str) -> bool {
    error.to_string().ends_with(&format!("({reason})"))
}
