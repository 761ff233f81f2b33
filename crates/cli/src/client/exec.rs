//! `exec`: a command in a container, on a terminal when asked.

use super::explain;
use crate::exit;
use crate::terminal::RawTerminal;
use anyhow::{Context, bail};
use futures_util::{Sink, SinkExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{AttachParams, AttachedProcess, TerminalSize};
use kube::{Api, Client};
use std::io::IsTerminal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};

/// What to run and how.
pub(super) struct Options {
    pub(super) container: Option<String>,
    pub(super) stdin: bool,
    pub(super) tty: bool,
    pub(super) command: Vec<String>,
}

/// Runs the command and gives its exit code.
pub(super) async fn run(client: Client, namespace: &str, pod: &str, options: Options) -> anyhow::Result<u8> {
    let tty = options.tty && std::io::stdin().is_terminal();
    if options.tty && !tty {
        eprintln!("standard input is no terminal: running without one");
    }
    let mut params = AttachParams::default().stdin(options.stdin).stdout(true).stderr(!tty).tty(tty);
    if let Some(container) = options.container {
        params = params.container(container);
    }
    let pods: Api<Pod> = Api::namespaced(client, namespace);
    let mut process = pods.exec(pod, &options.command, &params).await.map_err(explain)?;
    let _raw = if tty { Some(RawTerminal::enter()?) } else { None };
    let status = process.take_status().context("the server gave no status channel")?;
    let output = tokio::spawn(copy_output(process.stdout(), process.stderr()));
    // Both end with the process: reading standard input may outlive it and is given up then.
    let input = tokio::spawn(copy_input(process.stdin()));
    let resize = tokio::spawn(follow_size(process.terminal_size()));
    let status = status.await;
    output.await.context("copying output")??;
    input.abort();
    resize.abort();
    exit_code(status, process)
}

fn exit_code(
    status: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Status>,
    _process: AttachedProcess,
) -> anyhow::Result<u8> {
    let status = status.context("the connection to the container was lost")?;
    if status.status.as_deref() == Some("Success") {
        return Ok(exit::OK);
    }
    let causes = status.details.and_then(|details| details.causes).unwrap_or_default();
    let code =
        causes.iter().find(|c| c.reason.as_deref() == Some("ExitCode")).and_then(|c| c.message.clone());
    match code.and_then(|code| code.parse::<i32>().ok()) {
        Some(code) => Ok(u8::try_from(code).unwrap_or(exit::FAILURE)),
        None => bail!("{}", status.message.unwrap_or_else(|| "the command could not be run".to_owned())),
    }
}

async fn copy_output(
    stdout: Option<impl tokio::io::AsyncRead + Unpin>,
    stderr: Option<impl tokio::io::AsyncRead + Unpin>,
) -> anyhow::Result<()> {
    let out = async {
        if let Some(mut from) = stdout {
            pump(&mut from, &mut tokio::io::stdout()).await?;
        }
        anyhow::Ok(())
    };
    let err = async {
        if let Some(mut from) = stderr {
            pump(&mut from, &mut tokio::io::stderr()).await?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(out, err)?;
    Ok(())
}

/// Copies and flushes after every read, so that prompts are seen.
async fn pump(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
) -> anyhow::Result<()> {
    let mut chunk = vec![0; 32 << 10];
    loop {
        let n = from.read(&mut chunk).await?;
        if n == 0 {
            return Ok(());
        }
        to.write_all(&chunk[..n]).await?;
        to.flush().await?;
    }
}

async fn copy_input(to: Option<impl tokio::io::AsyncWrite + Unpin>) {
    if let Some(mut to) = to {
        let _ = pump(&mut tokio::io::stdin(), &mut to).await;
        let _ = to.shutdown().await;
    }
}

async fn follow_size(sender: Option<impl Sink<TerminalSize> + Unpin>) {
    let (Some(mut sender), Ok(mut changes)) = (sender, signal(SignalKind::window_change())) else { return };
    loop {
        if let Some(size) = terminal_size() {
            let _ = sender.send(size).await;
        }
        changes.recv().await;
    }
}

nix::ioctl_read_bad!(window_size, libc::TIOCGWINSZ, libc::winsize);

fn terminal_size() -> Option<TerminalSize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ fills the winsize that `size` points to, which lives until the call returns.
    // JUSTIFICATION: the standard library does not tell the size of a terminal.
    unsafe { window_size(libc::STDIN_FILENO, &raw mut size) }.ok()?;
    Some(TerminalSize { width: size.ws_col, height: size.ws_row })
}
