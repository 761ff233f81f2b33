//! Sockets around [`crate::answer`].
//!
//! One task reads UDP and answers what the zone knows at once, in the order of arrival; what has to be forwarded, and
//! every TCP connection, gets a task of its own, within limits. All of them end with [`DnsServer::serve`].

use crate::answer::{Outcome, Request, Transport, answer};
use crate::forward::Upstreams;
use crate::zone::Zone;
use arc_swap::ArcSwap;
use hickory_proto::op::{Message, Query, ResponseCode};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Queries waiting for an upstream at the same time; more are answered SERVFAIL.
const MAX_FORWARDS: usize = 512;
/// TCP connections at the same time; more are closed.
const MAX_CONNECTIONS: usize = 256;
/// A TCP client that is silent for so long is disconnected.
const IDLE: Duration = Duration::from_secs(10);
/// Larger queries do not exist; larger datagrams are cut and fail to parse.
const MAX_QUERY_BYTES: usize = 4096;
/// Pause after an error of a listening socket, such as too many open files.
const PAUSE: Duration = Duration::from_millis(50);

/// The server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("the DNS server cannot listen on {address}: {source}")]
pub struct Error {
    /// Where it was to listen.
    pub address: SocketAddr,
    /// Why not.
    pub source: io::Error,
}

/// A DNS server that is bound but does not answer yet.
pub struct DnsServer {
    udp: UdpSocket,
    tcp: TcpListener,
    shared: Arc<Shared>,
}

struct Shared {
    zone: Arc<ArcSwap<Zone>>,
    upstreams: Upstreams,
    forwards: Semaphore,
    connections: Semaphore,
    /// The last forward failed and was logged.
    failing: AtomicBool,
}

impl DnsServer {
    /// Binds UDP and TCP to one address; port 0 takes a port that is free for both.
    ///
    /// # Errors
    /// The address is not on this machine, or the port is taken.
    pub async fn bind(
        address: SocketAddr,
        zone: Arc<ArcSwap<Zone>>,
        upstreams: Upstreams,
    ) -> Result<Self, Error> {
        let error = |source| Error { address, source };
        let tcp = TcpListener::bind(address).await.map_err(error)?;
        let udp = UdpSocket::bind(tcp.local_addr().map_err(error)?).await.map_err(error)?;
        let shared = Arc::new(Shared {
            zone,
            upstreams,
            forwards: Semaphore::new(MAX_FORWARDS),
            connections: Semaphore::new(MAX_CONNECTIONS),
            failing: AtomicBool::new(false),
        });
        Ok(Self { udp, tcp, shared })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Answers until `shutdown`; nothing of it runs afterwards.
    pub async fn serve(self, shutdown: CancellationToken) {
        let udp = Arc::new(self.udp);
        tokio::select! {
            // Both only end by being dropped here, and with them the tasks that they started.
            () = serve_udp(udp, self.shared.clone()) => {}
            () = serve_tcp(self.tcp, self.shared) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut forwards = JoinSet::new();
    let mut buffer = vec![0; MAX_QUERY_BYTES];
    loop {
        while forwards.try_join_next().is_some() {}
        let (received, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "DNS query cannot be received");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let outcome = answer(&shared.zone.load(), &buffer[..received], Transport::Udp);
        match outcome {
            Outcome::Reply(reply) => send(&socket, &reply, client).await,
            Outcome::Drop => {}
            later => {
                let (socket, shared) = (socket.clone(), shared.clone());
                forwards.spawn(async move {
                    if let Some(reply) = shared.finish(later).await {
                        send(&socket, &reply, client).await;
                    }
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(reply, client).await {
        tracing::debug!(%client, %error, "DNS answer cannot be sent");
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = shared.clone();
                connections.spawn(async move {
                    if let Ok(_permit) = shared.connections.try_acquire() {
                        // A client that goes away in the middle is its own business.
                        let _ = converse(stream, &shared).await;
                    }
                });
            }
            Err(error) => {
                tracing::debug!(%error, "DNS connection cannot be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn converse(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let query = tokio::time::timeout(IDLE, read_query(&mut stream)).await??;
        let outcome = answer(&shared.zone.load(), &query, Transport::Tcp);
        let Some(reply) = shared.finish(outcome).await else { return Ok(()) };
        let length = u16::try_from(reply.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&reply);
        tokio::time::timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

async fn read_query(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_QUERY_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut query = vec![0; length];
    stream.read_exact(&mut query).await?;
    Ok(query)
}

impl Shared {
    /// The reply for an outcome, with the help of an upstream where it needs one.
    async fn finish(&self, outcome: Outcome) -> Option<Vec<u8>> {
        match outcome {
            Outcome::Reply(reply) => Some(reply),
            Outcome::Drop => None,
            Outcome::Forward(request) => Some(self.forward(&request).await),
            Outcome::Chase(reply, request, query) => Some(self.chase(*reply, &request, query).await),
        }
    }

    async fn forward(&self, request: &Request) -> Vec<u8> {
        match self.ask(request, request.upstream_query(rand::random())).await {
            Some(reply) => request.relay(reply),
            None => request.failure(ResponseCode::ServFail),
        }
    }

    async fn chase(&self, reply: Message, request: &Request, query: Query) -> Vec<u8> {
        match self.ask(request, request.query_for(rand::random(), query)).await {
            Some(upstream) => request.complete(reply, &upstream),
            None => request.failure(ResponseCode::ServFail),
        }
    }

    async fn ask(&self, request: &Request, query: Option<Vec<u8>>) -> Option<Vec<u8>> {
        let _permit = self.forwards.try_acquire().ok()?;
        match self.upstreams.ask(&query?, request.transport()).await {
            Ok(reply) => {
                self.failing.store(false, Ordering::Relaxed);
                Some(reply)
            }
            Err(error) => {
                // Once per outage: a machine without network asks many times.
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(question = %request.question(), %error,
                        "names outside the cluster cannot be resolved: check the nameserver lines of resolv.conf");
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
