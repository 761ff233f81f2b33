//! Accepts connections and serves control connections.
//!
//! Every connection has a task of its own. Requests of one connection are begun in order and answered in order; one
//! that takes long (a virtual machine boots) does not keep later ones from being begun. The supervisor ends when the
//! reply to a `Shutdown` has been written, or when its sandbox has ended by itself.

use super::backend::{Backend, refuse};
use super::frame::{self, Frame};
use super::proto::{Event, Hello, Reply, Request, ToClient, VERSION};
use super::session;
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc, oneshot};

/// Requests of one connection that may be under way.
const REPLY_QUEUE: usize = 64;
/// When a sandbox has ended by itself, how long clients may take to read the replies that this caused.
const LAST_REPLIES: Duration = Duration::from_secs(2);

/// The answer to a request, and the request's place among the unanswered ones.
struct Answer {
    reply: Outcome,
    ticket: Ticket,
}

/// A reply that is there, or will be.
enum Outcome {
    Now(Reply),
    Later(oneshot::Receiver<Reply>),
}

/// How many requests have not been answered, over all connections.
#[derive(Default)]
struct Unanswered {
    count: Cell<usize>,
    fewer: Notify,
}

impl Unanswered {
    async fn none(&self) {
        loop {
            let fewer = self.fewer.notified();
            if self.count.get() == 0 {
                return;
            }
            fewer.await;
        }
    }
}

/// One request that has not been answered; dropped when its reply has been written, or nobody will read it.
struct Ticket(Rc<Unanswered>);

impl Ticket {
    fn new(of: &Rc<Unanswered>) -> Self {
        of.count.set(of.count.get() + 1);
        Self(of.clone())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.fewer.notify_waiters();
    }
}

/// Serves until a shutdown has been carried out.
pub(super) async fn serve(listener: UnixListener, backend: Backend) -> io::Result<()> {
    let stop = Rc::new(Notify::new());
    let unanswered = Rc::new(Unanswered::default());
    loop {
        let stream = tokio::select! {
            // All are cancel-safe.
            accepted = listener.accept() => accepted?.0,
            () = stop.notified() => return Ok(()),
            () = backend.over() => {
                let _ = tokio::time::timeout(LAST_REPLIES, unanswered.none()).await;
                return Ok(());
            }
        };
        // Only the owner of the pod's directory can connect; checked, because modes can be changed.
        if stream.peer_cred()?.uid() != nix::unistd::geteuid().as_raw() {
            continue;
        }
        let (backend, stop, unanswered) = (backend.clone(), stop.clone(), unanswered.clone());
        // Ends with its connection.
        tokio::task::spawn_local(async move {
            if let Err(error) = connection(stream, &backend, &stop, &unanswered).await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
}

async fn connection(
    stream: UnixStream,
    backend: &Backend,
    stop: &Notify,
    unanswered: &Rc<Unanswered>,
) -> io::Result<()> {
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
    let result = requests(&mut reader, backend, &replies, unanswered).await;
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
    replies: &mpsc::Sender<Answer>,
    unanswered: &Rc<Unanswered>,
) -> io::Result<bool> {
    while let Some(frame) = frame::read(reader).await? {
        let request: Request = frame.decode()?;
        let ticket = Ticket::new(unanswered);
        let shutdown = matches!(request, Request::Shutdown);
        let reply = match shutdown {
            true => Outcome::Now(backend.handle(request).await),
            false => begin(backend, request).await,
        };
        let done = shutdown && matches!(reply, Outcome::Now(Reply::Ok));
        if replies.send(Answer { reply, ticket }).await.is_err() || done {
            return Ok(done);
        }
    }
    Ok(false)
}

/// Begins a request. What needs no waiting is done when this returns.
async fn begin(backend: &Backend, request: Request) -> Outcome {
    let own = backend.clone();
    let mut work = Box::pin(async move { own.handle(request).await });
    match futures_util::poll!(work.as_mut()) {
        Poll::Ready(reply) => Outcome::Now(reply),
        Poll::Pending => {
            let (sender, receiver) = oneshot::channel();
            // Goes on when the client is gone: what was begun is not left half done.
            tokio::task::spawn_local(async move {
                let _ = sender.send(work.await);
            });
            Outcome::Later(receiver)
        }
    }
}

/// Writes events and replies. Ends when there are no more replies to come, or the client fell too far behind.
async fn write(
    mut writer: OwnedWriteHalf,
    mut events: mpsc::Receiver<Event>,
    mut replies: mpsc::Receiver<Answer>,
) {
    let mut next = None;
    loop {
        let (message, _ticket) = tokio::select! {
            // What a request caused is told before its reply. Both are cancel-safe.
            biased;
            event = events.recv() => match event {
                Some(event) => (ToClient::Event(event), None),
                None => return,
            },
            reply = next_reply(&mut replies, &mut next) => match reply {
                Some((reply, ticket)) => (ToClient::Reply(reply), Some(ticket)),
                None => return,
            },
        };
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

/// The next reply in the order of the requests; `None` when no more will come. Cancel-safe: what it waits for stays in
/// `next`.
async fn next_reply(
    replies: &mut mpsc::Receiver<Answer>,
    next: &mut Option<(oneshot::Receiver<Reply>, Ticket)>,
) -> Option<(Reply, Ticket)> {
    if next.is_none() {
        let Answer { reply, ticket } = replies.recv().await?;
        match reply {
            Outcome::Now(reply) => return Some((reply, ticket)),
            Outcome::Later(receiver) => *next = Some((receiver, ticket)),
        }
    }
    // Whoever works on a request always answers, unless it panicked.
    let lost = |_| refuse("Internal", "the request was lost");
    let reply = (&mut next.as_mut()?.0).await.unwrap_or_else(lost);
    next.take().map(|(_, ticket)| (reply, ticket))
}
