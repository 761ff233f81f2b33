//! Accepts connections and serves control connections.
//!
//! Every connection has a task of its own; requests of one connection are carried out in order. The supervisor ends
//! when the reply to a `Shutdown` has been written.

use super::backend::{Backend, refuse};
use super::frame::{self, Frame};
use super::proto::{Event, Hello, Reply, Request, ToClient, VERSION};
use super::session;
use std::io;
use std::rc::Rc;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};

/// Replies that wait behind events for a control connection.
const REPLY_QUEUE: usize = 8;

/// Serves until a shutdown has been carried out.
pub(super) async fn serve(listener: UnixListener, backend: Backend) -> io::Result<()> {
    let stop = Rc::new(Notify::new());
    loop {
        let stream = tokio::select! {
            // Both are cancel-safe.
            accepted = listener.accept() => accepted?.0,
            () = stop.notified() => return Ok(()),
        };
        // Only the owner of the pod's directory can connect; checked, because modes can be changed.
        if stream.peer_cred()?.uid() != nix::unistd::geteuid().as_raw() {
            continue;
        }
        let (backend, stop) = (backend.clone(), stop.clone());
        // Ends with its connection.
        tokio::task::spawn_local(async move {
            if let Err(error) = connection(stream, &backend, &stop).await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
}

async fn connection(stream: UnixStream, backend: &Backend, stop: &Notify) -> io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let Some(first) = frame::read(&mut reader).await? else { return Ok(()) };
    let hello: Hello = first.decode()?;
    if hello.version > VERSION {
        let text = format!("supervisor speaks version {VERSION}, client {}", hello.version);
        return frame::write(
            &mut writer,
            &Frame::json(&ToClient::Reply(refuse("UnsupportedVersion", text)))?,
        )
        .await;
    }
    if hello.session {
        return session::serve(backend, reader, writer).await;
    }
    let (replies, reply_receiver) = mpsc::channel(REPLY_QUEUE);
    let writing = tokio::task::spawn_local(write(writer, backend.listen(), reply_receiver));
    let result = requests(&mut reader, backend, &replies).await;
    drop(replies);
    // The writer ends when it has written the last reply.
    let _ = writing.await;
    if result? {
        stop.notify_one();
    }
    Ok(())
}

/// Carries out requests until the client goes or the pod has been shut down; true for the latter.
async fn requests(
    reader: &mut OwnedReadHalf,
    backend: &Backend,
    replies: &mpsc::Sender<Reply>,
) -> io::Result<bool> {
    while let Some(frame) = frame::read(reader).await? {
        let request: Request = frame.decode()?;
        let shutdown = matches!(request, Request::Shutdown);
        let reply = backend.handle(request).await;
        let done = shutdown && matches!(reply, Reply::Ok);
        if replies.send(reply).await.is_err() || done {
            return Ok(done);
        }
    }
    Ok(false)
}

/// Writes events and replies. Ends when there are no more replies to come, or the client fell too far behind.
async fn write(
    mut writer: OwnedWriteHalf,
    mut events: mpsc::Receiver<Event>,
    mut replies: mpsc::Receiver<Reply>,
) {
    loop {
        let message = tokio::select! {
            // What a request caused is told before its reply. Both receives are cancel-safe.
            biased;
            event = events.recv() => event.map(ToClient::Event),
            reply = replies.recv() => reply.map(ToClient::Reply),
        };
        let Some(message) = message else { return };
        let written = match Frame::json(&message) {
            Ok(frame) => frame::write(&mut writer, &frame).await,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            tracing::debug!(%error, "control connection");
            return;
        }
    }
}
