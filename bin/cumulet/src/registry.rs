//! The registry endpoint's place on the machine: where it listens, who may use it, how long it is served.
//!
//! The address is part of the names of what is pushed, so it is kept in `DIR/registry` and taken again by the next
//! `up`. Only an address that somebody asked for is insisted on: several clouds on one machine must not need a flag.

use anyhow::{Context, bail};
use cumulet_cli::StateDir;
use cumulet_cli::args::Up;
use cumulet_images::{Endpoint, EndpointOptions, ImageStore, Users};
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Where a registry listens by custom.
const USUAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5000);
const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The endpoint and the port that it is to be served on.
pub(crate) struct Registry {
    endpoint: Arc<Endpoint>,
    hosts: Vec<String>,
    listener: TcpListener,
}

impl Registry {
    /// Takes the port.
    pub(crate) async fn open(state: &StateDir, options: &Up, store: ImageStore) -> anyhow::Result<Self> {
        let listener = listen(state, options.registry_listen).await?;
        let address = listener.local_addr()?;
        let users = match &options.registry_users {
            Some(file) => read_users(file)?,
            None if address.ip().is_loopback() => Users::default(),
            None => bail!(
                "a registry on {address} can be reached from other machines: say with --registry-users FILE who may use it"
            ),
        };
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "the registry's passwords and images travel unencrypted: trusted networks only");
        }
        fs::write(state.registry(), address.to_string())
            .with_context(|| format!("cannot write {}", state.registry().display()))?;
        let hosts = names(address);
        let options = EndpointOptions { names: hosts.clone(), users, ..EndpointOptions::default() };
        let endpoint = Endpoint::new(store, options).context("cannot start the registry")?;
        Ok(Self { endpoint, hosts, listener })
    }

    /// What the endpoint is called in the names of images.
    pub(crate) fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// Serves until `shutdown`; uploads in progress may finish.
    pub(crate) async fn serve(self, shutdown: CancellationToken) {
        let served = axum::serve(self.listener, self.endpoint.router());
        if let Err(error) = served.with_graceful_shutdown(shutdown.cancelled_owned()).await {
            tracing::error!(%error, "the registry ended");
        }
    }
}

async fn listen(state: &StateDir, asked: Option<SocketAddr>) -> anyhow::Result<TcpListener> {
    if let Some(asked) = asked {
        return TcpListener::bind(asked).await.with_context(|| {
            format!(
                "the registry cannot listen on {asked}: free it, or choose another with --registry-listen"
            )
        });
    }
    let last = fs::read_to_string(state.registry()).ok().and_then(|text| text.trim().parse().ok());
    let last = last.filter(|address: &SocketAddr| address.ip().is_loopback());
    for address in last.into_iter().chain([USUAL, ANY_PORT]) {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                tracing::info!(%address, "the registry takes another port: this one is in use");
            }
            Err(error) => {
                return Err(error).with_context(|| format!("the registry cannot listen on {address}"));
            }
        }
    }
    bail!("the registry finds no free port on loopback")
}

/// The names that lead to an address on this machine.
fn names(address: SocketAddr) -> Vec<String> {
    let port = address.port();
    match address {
        SocketAddr::V4(v4) if !v4.ip().is_unspecified() && !v4.ip().is_loopback() => {
            vec![address.to_string(), format!("127.0.0.1:{port}"), format!("localhost:{port}")]
        }
        SocketAddr::V6(v6) if v6.ip().is_loopback() => vec![format!("localhost:{port}")],
        _ => vec![format!("127.0.0.1:{port}"), format!("localhost:{port}")],
    }
}

/// Reads `name:password` lines from a file that only its owner can read.
fn read_users(file: &Path) -> anyhow::Result<Users> {
    let shown = file.display();
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {shown}"))?;
    let mode = fs::metadata(file).with_context(|| format!("cannot read {shown}"))?.permissions().mode();
    if mode & 0o077 != 0 {
        bail!("others can read the passwords in {shown}: run `chmod 600 {shown}`");
    }
    let mut users = Users::default();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once(':') {
            Some((name, password)) if !name.is_empty() && !password.is_empty() => {
                users = users.with(name, password)
            }
            _ => bail!("{shown}, line {}: expected name:password", number + 1),
        }
    }
    if users.is_empty() {
        bail!("{shown} names no user: add a line name:password");
    }
    Ok(users)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read_from_a_private_file() {
        let dir = std::env::temp_dir().join(format!("cumulet-users-{}", std::process::id()));
        let check = |text: &str, mode: u32, problem: Option<&str>| {
            fs::write(&dir, text).expect("write");
            fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).expect("mode");
            let found = read_users(&dir).map(drop).map_err(|error| format!("{error:#}"));
            match problem {
                None => assert_eq!(found, Ok(()), "{text:?}"),
                Some(words) => {
                    assert!(found.as_ref().is_err_and(|e| e.contains(words)), "{text:?}: {found:?}")
                }
            }
        };
        check("# people\nme:secret\n", 0o600, None);
        check("me:secret\n", 0o644, Some("chmod 600"));
        check("me:secret\nyou\n", 0o600, Some("line 2"));
        check("\n", 0o600, Some("names no user"));
        fs::remove_file(&dir).expect("remove");
    }

    #[test]
    fn addresses_have_names() {
        let check = |address: &str, first: &str| {
            assert_eq!(names(address.parse().expect("address"))[0], first);
        };
        check("127.0.0.1:5000", "127.0.0.1:5000");
        check("0.0.0.0:5001", "127.0.0.1:5001");
        check("[::1]:5002", "localhost:5002");
        check("192.0.2.7:5000", "192.0.2.7:5000");
    }
}
