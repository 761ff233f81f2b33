//! Connections: accept, TLS, HTTP/1.1 and HTTP/2, graceful shutdown.
//!
//! One task per connection. The identity of the client is worked out once, after the handshake. On shutdown no new
//! connection is taken, watches end, requests in progress may finish until the deadline.

use crate::ApiServer;
use crate::auth::Identity;
use crate::handlers;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A client that has not finished its handshake by then is dropped.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// A connection on which no request comes for so long is closed. Go's clients close theirs after 90 s.
const IDLE_LIMIT: Duration = Duration::from_secs(120);
/// How long requests may go on after shutdown has begun.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// Requests at a time on one HTTP/2 connection: informers hold one each.
const MAX_STREAMS: u32 = 1000;
/// Pause after a failed accept (out of file descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What handlers know of the connection.
pub(crate) struct Connection {
    /// Whom the client certificate proves.
    pub(crate) identity: Option<Arc<Identity>>,
    /// The client is on this machine.
    pub(crate) local: bool,
    /// Ends long answers.
    pub(crate) shutdown: CancellationToken,
}

/// Serves until `shutdown`, then drains.
pub(crate) async fn serve(
    server: Arc<ApiServer>,
    listener: TcpListener,
    tls: rustls::ServerConfig,
    shutdown: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            // Dropping an accept loses no connection: it stays in the backlog.
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (server, acceptor, shutdown) = (server.clone(), acceptor.clone(), shutdown.clone());
                // Ends with its connection, at the latest a drain limit after shutdown; a panic in it costs only
                // this connection.
                connections.spawn(async move {
                    if let Err(error) = connection(server, acceptor, stream, shutdown).await {
                        tracing::debug!(%peer, %error, "connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn connection(
    server: Arc<ApiServer>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    let local = stream.peer_addr().is_ok_and(|peer| peer.ip().to_canonical().is_loopback());
    let tls = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await??;
    let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let identity = certificate.and_then(Identity::from_certificate).map(Arc::new);
    let connection = Arc::new(Connection { identity, local, shutdown: shutdown.clone() });

    let service = service_fn(move |request| {
        let (server, connection) = (server.clone(), connection.clone());
        async move { Ok::<_, Infallible>(handlers::handle(&server, &connection, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_LIMIT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS);
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(tls), service);
    tokio::pin!(serving);
    tokio::select! {
        // Not dropped by the other arm: it is pinned outside and goes on below.
        done = serving.as_mut() => return done,
        () = shutdown.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    tokio::time::timeout(DRAIN_LIMIT, serving).await?
}
