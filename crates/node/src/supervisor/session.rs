//! Exec and attach: one connection each, whatever kind of sandbox the process runs in.
//!
//! Frames to the client go through one bounded queue. A process whose client does not read waits; a client that goes
//! away takes its command with it, while an attached container just goes on.

use super::backend::{Backend, refuse};
use super::exec::{LocalInput, LocalProcess};
use super::frame::{self, Frame};
use super::guest::session::{GuestInput, GuestProcess};
use super::proto::{FrameKind, Reply, SessionRequest, ToClient};
use bytes::Bytes;
use std::io;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

/// Serves a session connection to its end.
pub(super) async fn serve(
    backend: &Backend,
    mut reader: OwnedReadHalf,
    mut writer: OwnedWriteHalf,
) -> io::Result<()> {
    let Some(first) = frame::read(&mut reader).await? else { return Ok(()) };
    let opened = match first.decode()? {
        SessionRequest::Exec { container, command, stdin, tty, timeout_ms } => {
            let command = Command { command, stdin, tty, timeout_ms };
            backend.exec(&container, &command).await
        }
        SessionRequest::Attach { container, stdin } => backend.attach(&container, stdin),
    };
    let (reply, session) = match opened {
        Ok(session) => (Reply::Ok, Some(session)),
        Err(reply) => (reply, None),
    };
    frame::write(&mut writer, &Frame::json(&ToClient::Reply(reply))?).await?;
    if let Some(Session { mut output, mut input, process }) = session {
        tokio::select! {
            // Dropping the other side half-way is sound: the session is over either way.
            result = write_output(&mut writer, &mut output) => result?,
            result = read_input(&mut reader, &mut input) => result?,
        }
        input.end();
        if let Some(process) = process {
            process.kill();
        }
    }
    Ok(())
}

/// A command to run in a container.
pub(super) struct Command {
    pub(super) command: Vec<String>,
    pub(super) stdin: bool,
    pub(super) tty: bool,
    /// Kill it after this time; never when 0.
    pub(super) timeout_ms: u64,
}

/// A session that is open.
pub(super) struct Session {
    pub(super) output: mpsc::Receiver<Frame>,
    pub(super) input: Input,
    /// The command to end together with the session.
    pub(super) process: Option<Process>,
}

/// Where a session's input goes.
pub(super) enum Input {
    /// To descriptors of this process.
    Local(LocalInput),
    /// To a virtual machine.
    Guest(GuestInput),
}

/// A command that may still run.
pub(super) enum Process {
    /// A child of this process.
    Local(LocalProcess),
    /// In a virtual machine.
    Guest(GuestProcess),
}

impl Process {
    fn kill(&self) {
        match self {
            Self::Local(process) => process.kill(),
            Self::Guest(process) => process.kill(),
        }
    }
}

impl Input {
    /// Passes bytes on; what the process does not read any more is dropped.
    async fn write(&mut self, bytes: Bytes) {
        match self {
            Self::Local(input) => input.write(&bytes).await,
            Self::Guest(input) => input.write(&bytes).await,
        }
    }

    /// Closes standard input; for a container, only if it asked for that.
    fn end(&mut self) {
        match self {
            Self::Local(input) => input.end(),
            Self::Guest(input) => input.end(),
        }
    }

    fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        match self {
            Self::Local(input) => input.resize(columns, rows),
            Self::Guest(input) => {
                input.resize(columns, rows);
                Ok(())
            }
        }
    }
}

pub(super) fn not_running(container: &str) -> Reply {
    refuse("NotRunning", format!("container {container} is not running"))
}

async fn write_output(to: &mut OwnedWriteHalf, output: &mut mpsc::Receiver<Frame>) -> io::Result<()> {
    while let Some(frame) = output.recv().await {
        frame::write(to, &frame).await?;
        if frame.kind == FrameKind::Exit {
            return Ok(());
        }
    }
    Ok(())
}

/// Passes input on until the client is gone.
async fn read_input(from: &mut OwnedReadHalf, to: &mut Input) -> io::Result<()> {
    while let Some(frame) = frame::read(from).await? {
        match frame.kind {
            FrameKind::Stdin => to.write(frame.payload).await,
            FrameKind::CloseStdin => to.end(),
            FrameKind::Resize => {
                let (columns, rows) = frame.decode_resize()?;
                to.resize(columns, rows)?;
            }
            other => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("unexpected {other:?} frame"),
                ));
            }
        }
    }
    Ok(())
}
