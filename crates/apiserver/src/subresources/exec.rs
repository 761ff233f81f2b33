//! `pods/NAME/exec` and `pods/NAME/attach`: checks the request, then turns the connection into a session.
//!
//! What is wrong with the request is told before the upgrade, so that a client sees it whichever way it tried; what
//! goes wrong with the process is told through the session. Only WebSocket is spoken: a client that tries SPDY gets
//! the same checks and then a 400.

use crate::ApiServer;
use crate::auth::Identity;
use crate::core::Call;
use crate::handlers::{Answer, not_allowed};
use crate::query::Query;
use crate::route::Target;
use crate::server::Connection;
use crate::subresources::{pod, session};
use axum::extract::FromRequestParts;
use axum::extract::ws::WebSocketUpgrade;
use cumulet_api::{Status, meta};
use cumulet_cluster::streams::ExecOptions;
use http::Method;
use http::request::Parts;
use serde_json::Value;
use std::sync::Arc;

/// Subprotocols, best first. Version 5 can close standard input alone.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// Greatest message of a client; kubectl sends 32 KiB.
const MESSAGE_MAX: usize = 1 << 20;

pub(crate) async fn answer(
    server: &Arc<ApiServer>,
    connection: &Connection,
    user: &Identity,
    target: &Target<'_>,
    query: &Query<'_>,
    parts: &mut Parts,
) -> Answer {
    if !target.resource.is("", "pods") {
        return Err(crate::handlers::not_found());
    }
    if parts.method != Method::GET && parts.method != Method::POST {
        return Err(not_allowed());
    }
    let exec = target.subresource == Some("exec");
    let call = Call {
        resource: target.resource,
        namespace: target.namespace.as_deref(),
        name: target.name.as_deref().unwrap_or(""),
        user,
        dry_run: false,
    };
    let options = options(query, exec)?;
    let object = pod::read(&server.core, &call)?;
    let container = pod::container(&object, query.get("container"), true)?;
    pod::must_be_bound(&object)?;
    let phase = object.pointer("/status/phase").and_then(Value::as_str).unwrap_or("");
    if matches!(phase, "Succeeded" | "Failed") {
        return Err(Status::bad_request(format!(
            "cannot exec into a container in a completed pod; current phase is {phase}"
        )));
    }
    let streams = pod::streams(&server.core)?;

    let upgrade = WebSocketUpgrade::from_request_parts(parts, &()).await;
    let upgrade = upgrade.map_err(|_| Status::bad_request("Upgrade request required"))?;
    let upgrade = upgrade.protocols(PROTOCOLS).max_message_size(MESSAGE_MAX).max_frame_size(MESSAGE_MAX);
    if upgrade.selected_protocol().is_none() {
        let offered = PROTOCOLS.join(", ");
        return Err(Status::bad_request(format!(
            "unable to upgrade: the supported subprotocols are {offered}"
        )));
    }
    let name = meta::name(&object).to_owned();
    let shutdown = connection.shutdown.clone();
    Ok(upgrade
        .on_failed_upgrade(move |error| tracing::debug!(pod = %name, %error, "upgrade failed"))
        .on_upgrade(move |socket| async move {
            let started =
                if exec { streams.exec(container, options) } else { streams.attach(container, options) };
            tokio::select! {
                // Dropping a session detaches from its process.
                () = session::run(socket, started) => {}
                () = shutdown.cancelled() => {}
            }
        }))
}

fn options(query: &Query<'_>, exec: bool) -> Result<ExecOptions, Status> {
    let tty = query.flag("tty");
    let options = ExecOptions {
        command: if exec { query.all("command").map(str::to_owned).collect() } else { Vec::new() },
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        // A terminal has one output.
        stderr: query.flag("stderr") && !tty,
        tty,
    };
    if exec && options.command.is_empty() {
        return Err(Status::bad_request("you must specify at least one command for the container"));
    }
    if !options.stdin && !options.stdout && !options.stderr {
        return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    Ok(options)
}
