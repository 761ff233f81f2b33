//! Which addresses this cloud uses, and the names that derive from its state directory.
//!
//! Ranges given on the command line are used as they are. Without them the first pair that no other cloud (or anybody
//! else) has on this machine is taken; the choice is kept in `DIR/ranges.json`, since running pods have addresses.

use anyhow::{Context, bail};
use cumulet_cli::StateDir;
use cumulet_cli::args::Up;
use cumulet_net::{Network, NetworkConfig, RoutedCidr};
use ipnet::Ipv4Net;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// Second octets of the first pod range and of the first Service range, and how many pairs are tried.
const FIRST_POD_OCTET: u8 = 86;
const FIRST_SERVICE_OCTET: u8 = 97;
const PAIRS: u8 = 11;
/// The cluster DNS has this address within the Service range, as in most clusters.
const DNS_HOST: u32 = 10;
/// One lock for all clouds of the machine.
const MACHINE_LOCK: &str = "/run/cumulet.lock";

/// The address ranges of a cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ranges {
    pub(crate) pods: Ipv4Net,
    pub(crate) services: Ipv4Net,
}

impl Ranges {
    /// The address of the cluster DNS.
    pub(crate) fn dns(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.services.network().to_bits() + DNS_HOST)
    }

    /// The address of the Service `default/kubernetes`: the first of the Service range.
    pub(crate) fn api(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.services.network().to_bits() + 1)
    }
}

/// What tells this cloud's links, tables and cgroups from those of other clouds: 8 hexadecimal digits.
pub(crate) fn seed(state: &StateDir) -> String {
    let hash = Sha256::digest(state.path().as_os_str().as_encoded_bytes());
    hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// The cloud's cgroup, relative to the root of each hierarchy.
pub(crate) fn cgroup(state: &StateDir) -> String {
    format!("/cumulet-{}", seed(state))
}

/// Where the network remembers what it changed on the machine.
pub(crate) fn network_record(state: &StateDir) -> PathBuf {
    state.path().join("network.json")
}

/// Waits for the right to change what all clouds of this machine share: address ranges, forwarding. Held while a
/// network is opened or destroyed, so that one cloud's end does not undo what another one's start relies on.
pub(crate) fn lock_machine() -> anyhow::Result<Flock<File>> {
    let lock = File::create(MACHINE_LOCK).with_context(|| format!("cannot create {MACHINE_LOCK}"))?;
    Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("cannot lock {MACHINE_LOCK}"))
}

/// Opens the network with the ranges asked for, those of the last time, or the first free ones.
pub(crate) fn open_network(state: &StateDir, options: &Up) -> anyhow::Result<(Network, Ranges)> {
    let _lock = lock_machine()?;
    let file = state.path().join("ranges.json");
    let last = match fs::read(&file) {
        Ok(bytes) => Some(serde_json::from_slice::<Ranges>(&bytes).with_context(|| {
            format!("{} is unreadable: remove it when no pod of this cloud runs", file.display())
        })?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    let asked = (
        parse("--pod-cidr", options.pod_cidr.as_deref())?,
        parse("--service-cidr", options.service_cidr.as_deref())?,
    );
    let candidates = match (asked, last) {
        ((None, None), Some(last)) => vec![last],
        ((pods, services), last) => (0..PAIRS)
            .map(|n| Ranges {
                pods: pods.or(last.map(|l| l.pods)).unwrap_or_else(|| sixteen(FIRST_POD_OCTET + n)),
                services: services
                    .or(last.map(|l| l.services))
                    .unwrap_or_else(|| sixteen(FIRST_SERVICE_OCTET + n)),
            })
            .collect(),
    };
    let mut refusal = None;
    for ranges in candidates {
        let config = NetworkConfig {
            seed: seed(state),
            pods: RoutedCidr { cidr: ranges.pods, flag: "--pod-cidr" },
            routed: vec![RoutedCidr { cidr: ranges.services, flag: "--service-cidr" }],
            record: network_record(state),
        };
        match Network::open(&config) {
            Ok(network) => {
                fs::write(&file, serde_json::to_vec(&ranges)?)
                    .with_context(|| format!("cannot write {}", file.display()))?;
                return Ok((network, ranges));
            }
            Err(error @ cumulet_net::Error::RouteConflict { .. }) => refusal = Some(error),
            Err(error) => return Err(error).context("cannot set up the network"),
        }
    }
    match refusal {
        Some(error) => Err(error).context("cannot set up the network"),
        None => bail!("no address range was tried"),
    }
}

fn sixteen(second: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, second, 0, 0), 16)
}

fn parse(flag: &str, text: Option<&str>) -> anyhow::Result<Option<Ipv4Net>> {
    let Some(text) = text else { return Ok(None) };
    let net: Ipv4Net =
        text.parse().with_context(|| format!("{flag} {text:?} is no IPv4 range such as 10.86.0.0/16"))?;
    if !(12..=24).contains(&net.prefix_len()) {
        bail!("{flag} {text}: use a prefix length between 12 and 24");
    }
    Ok(Some(net.trunc()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses() {
        let temp = std::env::temp_dir();
        let state = StateDir::new(&temp).unwrap();
        assert_eq!(seed(&state).len(), 8);
        let ranges = Ranges { pods: sixteen(86), services: sixteen(97) };
        assert_eq!(ranges.dns(), Ipv4Addr::new(10, 97, 0, 10));
    }

    #[test]
    fn ranges_on_the_command_line() {
        assert_eq!(parse("--pod-cidr", Some("10.1.2.3/16")).unwrap().unwrap().to_string(), "10.1.0.0/16");
        for bad in ["10.0.0.0", "10.0.0.0/8", "10.0.0.0/30", "fd00::/16", "x"] {
            assert!(parse("--pod-cidr", Some(bad)).unwrap_err().to_string().contains("--pod-cidr"), "{bad}");
        }
    }
}
