//! Cluster addresses and node ports of Services.
//!
//! Both pools have a lower band that is handed out only on request or when the rest is used up, so that addresses and
//! ports chosen by people seldom collide with chosen ones. Two addresses are never chosen here: the first, which is
//! the API's own Service, and the tenth, which is the cluster's DNS.
//!
//! ```text
//!   reserve ──► Reservation ──commit──► what the new object holds is held, what the old one held more is free
//!                    └───── dropped ──► as before
//! ```
//!
//! The state is in memory and is rebuilt at the start from the stored Services. One short lock, no I/O under it.

use crate::kinds::service::shape;
use crate::kinds::value::{at_mut, int, items, items_mut, set, text};
use cumulet_api::field::FieldError;
use ipnet::Ipv4Net;
use rand::RngExt;
use serde_json::{Value, json};
use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Ports on every node that Services can have, as in Kubernetes.
pub(crate) const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// Position of the address of the API's own Service in the range.
const API_INDEX: u32 = 1;
/// Position of the address of the cluster's DNS in the range.
const DNS_INDEX: u32 = 10;
const ALLOCATED_IP: &str = "provided IP is already allocated";
const ALLOCATED_PORT: &str = "provided port is already allocated";
const WRONG_NETWORK: &str = "the provided network does not match the current range";
const FULL: &str = "range is full";

/// The addresses and node ports of all Services.
pub(crate) struct ServiceAllocator {
    cidr: Ipv4Net,
    pools: Arc<Mutex<Pools>>,
}

struct Pools {
    ips: Pool<u32>,
    ports: Pool<u16>,
}

impl ServiceAllocator {
    /// An allocator for `cidr` in which `in_use` hold what their specs say. Services have IPv4 addresses only.
    pub(crate) fn new<S: Borrow<Value>>(cidr: Ipv4Net, in_use: impl IntoIterator<Item = S>) -> Self {
        let cidr = cidr.trunc();
        let (network, broadcast) = (u32::from(cidr.network()), u32::from(cidr.broadcast()));
        let ips = Pool::new(
            network.saturating_add(1)..=broadcast.saturating_sub(1),
            u32::from(band(u64::from(broadcast - network) + 1, 16, 256, 16)),
            vec![network.saturating_add(API_INDEX), network.saturating_add(DNS_INDEX)],
        );
        let count = u64::from(NODE_PORTS.end() - NODE_PORTS.start()) + 1;
        let mut ports = Pool::new(NODE_PORTS, band(count, 16, 128, 32), Vec::new());
        // Clouds of one machine share its ports, and the first to answer at one hides the others: begin anywhere.
        ports.cursor = rand::rng().random_range(ports.upper..=*NODE_PORTS.end());
        let mut pools = Pools { ips, ports };
        for service in in_use {
            pools.take(&Held::of(service.borrow()));
        }
        Self { cidr, pools: Arc::new(Mutex::new(pools)) }
    }

    /// The address of the API's own Service, `default/kubernetes`.
    pub(crate) fn api_address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.cidr.network()).saturating_add(API_INDEX))
    }

    /// Gives `service` what its type needs and what it asks for: `clusterIP`, `clusterIPs`, `nodePort`s and
    /// `healthCheckNodePort`. `old` is the Service before the change, if there is one; what both have stays.
    ///
    /// # Errors
    /// The field whose wish cannot be granted; nothing is held then.
    pub(crate) fn reserve(
        &self,
        service: &mut Value,
        old: Option<&Value>,
    ) -> Result<Reservation, FieldError> {
        shape(service)?;
        let had = old.map(Held::of).unwrap_or_default();
        let mut granted = Granting { pools: &self.pools, had: &had, taken: Held::default() };
        let result = granted.all(service);
        let taken = granted.taken;
        if let Err(error) = result {
            lock(&self.pools).free(&taken);
            return Err(error);
        }
        let has = Held::of(service);
        let freed = had.without(&has);
        Ok(Reservation { pools: Arc::clone(&self.pools), taken, freed, committed: false })
    }

    /// Frees what a removed Service held.
    pub(crate) fn release(&self, service: &Value) {
        lock(&self.pools).free(&Held::of(service));
    }
}

/// What `reserve` took; taken back unless committed.
#[must_use = "a reservation that is dropped is taken back"]
pub(crate) struct Reservation {
    pools: Arc<Mutex<Pools>>,
    taken: Held,
    freed: Held,
    committed: bool,
}

impl Reservation {
    /// The change is stored: keeps what was taken, and frees what the object does not hold any more.
    pub(crate) fn commit(mut self) {
        self.committed = true;
        lock(&self.pools).free(&self.freed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.committed {
            lock(&self.pools).free(&self.taken);
        }
    }
}

/// No operation under the lock can leave the pools half-changed, so a poisoned lock is as good as any.
fn lock(pools: &Mutex<Pools>) -> MutexGuard<'_, Pools> {
    pools.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Addresses and ports held by one Service.
#[derive(Default)]
struct Held {
    ips: Vec<u32>,
    ports: Vec<u16>,
}

impl Held {
    fn of(service: &Value) -> Self {
        if text(service, "spec.type") == "ExternalName" {
            return Self::default();
        }
        let port = |value: Option<i64>| value.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0);
        let mut ips: Vec<u32> = items(service, "spec.clusterIPs")
            .iter()
            .filter_map(Value::as_str)
            .chain([text(service, "spec.clusterIP")])
            .filter_map(|ip| ip.parse::<Ipv4Addr>().ok())
            .map(u32::from)
            .collect();
        ips.sort_unstable();
        ips.dedup();
        let mut ports: Vec<u16> =
            items(service, "spec.ports").iter().filter_map(|p| port(int(p, "nodePort"))).collect();
        ports.extend(port(int(service, "spec.healthCheckNodePort")));
        ports.sort_unstable();
        ports.dedup();
        Self { ips, ports }
    }

    fn without(&self, other: &Self) -> Self {
        Self {
            ips: self.ips.iter().copied().filter(|ip| !other.ips.contains(ip)).collect(),
            ports: self.ports.iter().copied().filter(|p| !other.ports.contains(p)).collect(),
        }
    }
}

impl Pools {
    fn take(&mut self, held: &Held) {
        self.ips.used.extend(&held.ips);
        self.ports.used.extend(&held.ports);
    }

    fn free(&mut self, held: &Held) {
        for ip in &held.ips {
            self.ips.used.remove(ip);
        }
        for port in &held.ports {
            self.ports.used.remove(port);
        }
    }
}

/// One reservation being made.
struct Granting<'a> {
    pools: &'a Mutex<Pools>,
    had: &'a Held,
    taken: Held,
}

impl Granting<'_> {
    fn all(&mut self, service: &mut Value) -> Result<(), FieldError> {
        let kind = text(service, "spec.type").to_owned();
        if kind == "ExternalName" {
            return Ok(());
        }
        if text(service, "spec.clusterIP") != "None" {
            self.address(service)?;
        }
        let balanced = kind == "LoadBalancer";
        let allocate = kind == "NodePort"
            || (balanced
                && crate::kinds::value::flag(service, "spec.allocateLoadBalancerNodePorts") != Some(false));
        let ports = items_mut(service, "spec.ports");
        // Explicit ports first, lest one of them is handed to another port of the same Service.
        for pass in [true, false] {
            for (i, port) in ports.iter_mut().enumerate() {
                let wanted = int(port, "nodePort").filter(|p| *p != 0);
                if wanted.is_some() != pass || (wanted.is_none() && !allocate) {
                    continue;
                }
                let number = self.port(wanted, &format!("spec.ports[{i}].nodePort"))?;
                set(port, "nodePort", number);
            }
        }
        if balanced && text(service, "spec.externalTrafficPolicy") == "Local" {
            let wanted = int(service, "spec.healthCheckNodePort").filter(|p| *p != 0);
            let number = self.port(wanted, "spec.healthCheckNodePort")?;
            if let Some(spec) = at_mut(service, "spec") {
                set(spec, "healthCheckNodePort", number);
            }
        }
        Ok(())
    }

    fn address(&mut self, service: &mut Value) -> Result<(), FieldError> {
        const FIELD: &str = "spec.clusterIPs";
        let wanted = text(service, "spec.clusterIP").to_owned();
        let mut pools = lock(self.pools);
        if wanted.is_empty() {
            let message = format!("failed to allocate a serviceIP: {FULL}");
            let ip = pools.ips.next().ok_or_else(|| FieldError::invalid(FIELD, Value::Null, message))?;
            self.taken.ips.push(ip);
            let ip = Ipv4Addr::from(ip).to_string();
            if let Some(spec) = at_mut(service, "spec") {
                set(spec, "clusterIPs", json!([ip]));
                set(spec, "clusterIP", ip);
            }
            return Ok(());
        }
        // What is no address of this family is refused by validation, with the right words.
        let Ok(ip) = wanted.parse::<Ipv4Addr>().map(u32::from) else { return Ok(()) };
        if self.had.ips.contains(&ip) {
            return Ok(());
        }
        let problem = match pools.ips.claim(ip) {
            Claim::Granted => {
                self.taken.ips.push(ip);
                return Ok(());
            }
            Claim::Used => ALLOCATED_IP,
            Claim::OutOfRange => WRONG_NETWORK,
        };
        Err(FieldError::invalid(FIELD, json!([wanted]), format!("failed to allocate IP {wanted}: {problem}")))
    }

    fn port(&mut self, wanted: Option<i64>, field: &str) -> Result<u16, FieldError> {
        let mut pools = lock(self.pools);
        let Some(wanted) = wanted else {
            let message = format!("failed to allocate a nodePort: {FULL}");
            let port = pools.ports.next().ok_or_else(|| FieldError::invalid(field, 0, message))?;
            self.taken.ports.push(port);
            return Ok(port);
        };
        let number = u16::try_from(wanted).unwrap_or(0);
        // One Service may use one number for several protocols.
        if self.had.ports.contains(&number) || self.taken.ports.contains(&number) {
            return Ok(number);
        }
        let problem = match pools.ports.claim(number) {
            Claim::Granted => {
                self.taken.ports.push(number);
                return Ok(number);
            }
            Claim::Used => ALLOCATED_PORT.to_owned(),
            Claim::OutOfRange => {
                let (first, last) = (NODE_PORTS.start(), NODE_PORTS.end());
                format!("provided port is not in the valid range. The range of valid ports is {first}-{last}")
            }
        };
        Err(FieldError::invalid(field, wanted, problem))
    }
}

enum Claim {
    Granted,
    Used,
    OutOfRange,
}

/// Numbers of a range, some of them used.
struct Pool<N> {
    range: RangeInclusive<N>,
    /// First number of the upper band.
    upper: N,
    /// Never chosen, only given on request.
    kept: Vec<N>,
    used: HashSet<N>,
    /// Where the next choice begins, so that a freed number rests for a while.
    cursor: N,
}

impl<N: Copy + Ord + Hash + TryFrom<u64> + Into<u64>> Pool<N> {
    fn new(range: RangeInclusive<N>, band: impl Into<u64>, kept: Vec<N>) -> Self {
        let first: u64 = (*range.start()).into();
        let upper = N::try_from(first + band.into()).unwrap_or(*range.start()).min(*range.end());
        Self { range, upper, kept, used: HashSet::new(), cursor: upper }
    }

    fn claim(&mut self, number: N) -> Claim {
        if !self.range.contains(&number) {
            return Claim::OutOfRange;
        }
        if self.used.insert(number) { Claim::Granted } else { Claim::Used }
    }

    /// Chooses a free number: above the cursor, else in the upper band, else in the lower.
    fn next(&mut self) -> Option<N> {
        let (first, last): (u64, u64) = ((*self.range.start()).into(), (*self.range.end()).into());
        let (upper, cursor): (u64, u64) = (self.upper.into(), self.cursor.into());
        let found = (cursor..=last)
            .chain(upper..cursor)
            .chain(first..upper)
            .filter_map(|n| N::try_from(n).ok())
            .find(|n| !self.used.contains(n) && !self.kept.contains(n))?;
        self.used.insert(found);
        if found >= self.upper {
            let after: u64 = found.into();
            self.cursor =
                N::try_from(after + 1).ok().filter(|n| *n <= *self.range.end()).unwrap_or(self.upper);
        }
        Some(found)
    }
}

/// How many numbers at the low end of a range of `count` are only given on request: one in `share`, within bounds.
fn band(count: u64, least: u16, most: u16, share: u64) -> u16 {
    if count < u64::from(least) {
        return 0;
    }
    u16::try_from(count / share).unwrap_or(most).clamp(least, most)
}

#[cfg(test)]
mod tests;
