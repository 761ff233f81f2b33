//! An exec or attach session over a WebSocket: channels are the first byte of every message.
//!
//! ```text
//!   0 stdin   1 stdout   2 stderr   3 status (JSON, once, at the end)   4 resize (JSON)   255 close a channel (v5)
//! ```
//!
//! Both directions run at once and slow each other's sender down, so a process that does not read cannot block its
//! own output. The end of the process ends the session; the end of the connection drops the process's channels.

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::{BufMut, Bytes, BytesMut};
use cumulet_api::Status;
use cumulet_cluster::streams::{Exit, Input, Output, Session};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Runs a session to its end.
pub(super) async fn run(socket: WebSocket, started: impl Future<Output = Result<Session, Status>>) {
    let (mut to_client, from_client) = socket.split();
    let exit = match started.await {
        Ok(Session { input, output }) => {
            tokio::select! {
                // Whichever ends first ends the session; what the other one still holds is of no use then.
                exit = outputs(&mut to_client, output) => exit,
                () = inputs(from_client, input) => None,
            }
        }
        Err(status) => Some(Exit::Failed(status)),
    };
    if let Some(exit) = exit {
        let status = status_of(&exit).to_string();
        // The client may be gone already; there is nobody else to tell.
        let _ = to_client.send(message(STATUS, status.as_bytes())).await;
    }
    // Without a normal close code kubectl takes the end for a failure.
    let close = CloseFrame { code: close_code::NORMAL, reason: "".into() };
    let _ = to_client.send(Message::Close(Some(close))).await;
    let _ = to_client.close().await;
}

/// Sends what the process writes; `None` when the client is gone.
async fn outputs(
    to_client: &mut SplitSink<WebSocket, Message>,
    mut output: mpsc::Receiver<Output>,
) -> Option<Exit> {
    while let Some(written) = output.recv().await {
        let sent = match written {
            Output::Stdout(bytes) => to_client.send(message(STDOUT, &bytes)).await,
            Output::Stderr(bytes) => to_client.send(message(STDERR, &bytes)).await,
            Output::Exit(exit) => return Some(exit),
        };
        if sent.is_err() {
            return None;
        }
    }
    Some(Exit::Failed(Status::internal("the process was lost")))
}

/// Hands over what the client sends, until it goes away.
async fn inputs(mut from_client: SplitStream<WebSocket>, input: mpsc::Sender<Input>) {
    let mut open = true;
    while let Some(Ok(message)) = from_client.next().await {
        let bytes: Bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Close(_) => return,
            // Clients send binary messages only; pings are answered below us.
            Message::Text(_) | Message::Ping(_) | Message::Pong(_) => continue,
        };
        if let Some(read) = read(&bytes)
            && open
        {
            // A process that has ended or has no input: its output tells how the session ends.
            open = input.send(read).await.is_ok();
        }
    }
}

/// What a message means; `None` for what is nothing to us.
fn read(message: &Bytes) -> Option<Input> {
    let (channel, data) = message.split_first()?;
    match *channel {
        STDIN if data.is_empty() => None,
        STDIN => Some(Input::Stdin(message.slice(1..))),
        RESIZE => {
            let size: Size = serde_json::from_slice(data).ok()?;
            Some(Input::Resize { columns: size.width, rows: size.height })
        }
        CLOSE if data.first() == Some(&STDIN) => Some(Input::CloseStdin),
        _ => None,
    }
}

fn message(channel: u8, data: &[u8]) -> Message {
    let mut bytes = BytesMut::with_capacity(data.len() + 1);
    bytes.put_u8(channel);
    bytes.put_slice(data);
    Message::Binary(bytes.freeze())
}

/// The `Status` that tells how the process ended.
fn status_of(exit: &Exit) -> Value {
    match exit {
        Exit::Code(0) => json!({"metadata": {}, "status": "Success"}),
        Exit::Code(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Exit::Failed(status) => status.to_json(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let read = |bytes: &'static [u8]| read(&Bytes::from_static(bytes));
        assert!(matches!(read(b"\0hi"), Some(Input::Stdin(b)) if b == "hi"));
        assert!(matches!(read(b"\xff\0"), Some(Input::CloseStdin)));
        assert!(matches!(
            read(b"\x04{\"Width\":80,\"Height\":24}"),
            Some(Input::Resize { columns: 80, rows: 24 })
        ));
        for nothing in [&b""[..], b"\0", b"\x01x", b"\x04x", b"\xff", b"\xff\x01"] {
            assert!(read(nothing).is_none(), "{nothing:?}");
        }
    }

    #[test]
    fn exits() {
        assert_eq!(status_of(&Exit::Code(0))["status"], "Success");
        let failed = status_of(&Exit::Code(3));
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
    }
}
