//! Forwarding to the machine's own name servers.
//!
//! Each query goes out from a socket of its own (a random port, only that server may answer) under a random number,
//! and what comes back is passed on as it is. The number of queries in flight is bounded by the caller.

use crate::answer::Transport;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// How long one server may take.
const TIMEOUT: Duration = Duration::from_secs(2);
const DNS_PORT: u16 = 53;
/// As many as the C library looks at.
const MAX_SERVERS: usize = 3;
const MAX_RESOLV_CONF_BYTES: u64 = 64 * 1024;

/// The upstream name servers: fixed, or those of a resolv.conf, read again when it changes.
#[derive(Debug)]
pub struct Upstreams {
    /// Never forwarded to: the server itself.
    except: IpAddr,
    file: Option<PathBuf>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    modified: Option<SystemTime>,
    servers: Vec<SocketAddr>,
}

impl Upstreams {
    /// The servers of a file in resolv.conf's format, without `except`.
    pub fn from_file(path: &Path, except: IpAddr) -> Self {
        Self { except, file: Some(path.to_owned()), known: Mutex::default() }
    }

    /// These servers.
    pub fn fixed(servers: Vec<SocketAddr>) -> Self {
        let known = Known { modified: None, servers };
        Self { except: Ipv4Addr::UNSPECIFIED.into(), file: None, known: Mutex::new(known) }
    }

    /// The servers, as of now.
    fn servers(&self) -> Vec<SocketAddr> {
        let Some(path) = &self.file else { return self.lock().servers.clone() };
        // One stat per forwarded query; the file is read only when it has changed (a laptop that moved).
        let meta = std::fs::metadata(path).ok().filter(|m| m.len() <= MAX_RESOLV_CONF_BYTES);
        let modified = meta.and_then(|m| m.modified().ok());
        {
            let known = self.lock();
            if known.modified.is_some() && known.modified == modified {
                return known.servers.clone();
            }
        }
        let text = modified.and_then(|_| std::fs::read_to_string(path).ok()).unwrap_or_default();
        let servers = name_servers(&text, self.except);
        *self.lock() = Known { modified, servers: servers.clone() };
        servers
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks one server after the other until one answers.
    ///
    /// # Errors
    /// `NotFound` when there is no server; else what went wrong with the last one.
    pub(crate) async fn ask(&self, query: &[u8], transport: Transport) -> io::Result<Vec<u8>> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no upstream name server is configured");
        for server in self.servers() {
            let attempt = async {
                match transport {
                    Transport::Udp => ask_udp(server, query).await,
                    Transport::Tcp => ask_tcp(server, query).await,
                }
            };
            match tokio::time::timeout(TIMEOUT, attempt).await {
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }
}

fn name_servers(text: &str, except: IpAddr) -> Vec<SocketAddr> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let servers = lines.filter_map(|rest| rest.split_whitespace().next()?.parse::<IpAddr>().ok());
    servers.filter(|ip| *ip != except).take(MAX_SERVERS).map(|ip| SocketAddr::new(ip, DNS_PORT)).collect()
}

async fn ask_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let received = socket.recv(&mut buffer).await?;
        // A late or forged answer is not ours; the caller's timeout ends the wait.
        if is_answer(query, &buffer[..received]) {
            buffer.truncate(received);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(query);
    stream.write_all(&framed).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    if is_answer(query, &reply) { Ok(reply) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Whether a packet is a response with the number of the query.
fn is_answer(query: &[u8], reply: &[u8]) -> bool {
    reply.len() >= 12 && reply.get(..2) == query.get(..2) && reply[2] & 0x80 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_resolv_conf() {
        let text = "# c\nsearch x\nnameserver 10.97.0.10\n nameserver 9.9.9.9 # x\nnameserver fd00::1\nnameserver bad\n";
        let servers = name_servers(text, "10.97.0.10".parse().unwrap());
        let shown: Vec<String> = servers.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["9.9.9.9:53", "[fd00::1]:53"]);
    }

    #[test]
    fn notices_changes_and_absence() {
        let dir = std::env::temp_dir().join(format!("cumulet-dns-{}", std::process::id()));
        let upstreams = Upstreams::from_file(&dir, Ipv4Addr::UNSPECIFIED.into());
        assert!(upstreams.servers().is_empty());
        std::fs::write(&dir, "nameserver 9.9.9.9\n").unwrap();
        assert_eq!(upstreams.servers().len(), 1);
        std::fs::remove_file(&dir).unwrap();
        assert!(upstreams.servers().is_empty());
    }
}
