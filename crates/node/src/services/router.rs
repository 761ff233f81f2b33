//! The router's thread: what is observed becomes what the kernel and the DNS have, pass by pass.
//!
//! The ruleset that the kernel has is known, so only the difference is sent. When the kernel refuses a difference
//! (somebody else changed the table), or the table is found missing (`nft flush ruleset`, a firewall's restart),
//! nothing is assumed any more and everything is sent.

use super::{Informers, ServiceRouterConfig, zone};
use arc_swap::ArcSwap;
use cumulet_dns::Zone;
use cumulet_net::Network;
use cumulet_net::nft::Nft;
use cumulet_netplan::{Names, Observed, Plan, Ruleset, diff, plan, render};
use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Pause before a refused ruleset is sent again.
const RETRY: Duration = Duration::from_secs(1);
/// How often an idle router looks whether its table is still there.
const VERIFY: Duration = Duration::from_secs(30);

/// How far the router has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// The zone holds what was observed.
    pub(super) zone_known: bool,
    /// Rules are applied and the API's own name is known.
    pub(super) ready: bool,
    /// Duration of the last pass that changed rules.
    pub(super) last_apply: Option<Duration>,
}

pub(super) struct Router {
    config: ServiceRouterConfig,
    names: Names,
    informers: Informers,
    zone: Arc<ArcSwap<Zone>>,
    serial: u32,
    /// What the kernel has; unknown at first and after a failure.
    applied: Option<Applied>,
    report: watch::Sender<Progress>,
}

struct Applied {
    ruleset: Ruleset,
    udp: HashSet<(Ipv4Addr, u16)>,
}

impl Router {
    pub(super) fn new(
        config: ServiceRouterConfig,
        network: &Network,
        informers: Informers,
        zone: Arc<ArcSwap<Zone>>,
        report: watch::Sender<Progress>,
    ) -> Self {
        let names = Names {
            table: network.table().to_owned(),
            bridge: network.bridge().to_owned(),
            pods: config.pod_cidr,
            services: config.service_cidr,
        };
        Self { config, names, informers, zone, serial: 0, applied: None, report }
    }

    /// Passes until `stopped`: one at once, one per wake-up, and now and then one that checks.
    pub(super) fn run(mut self, mut nft: Nft, woken: &Receiver<()>, stopped: impl Fn() -> bool) {
        while !stopped() {
            let pause = if self.pass(&mut nft) { VERIFY } else { RETRY };
            match woken.recv_timeout(pause) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => self.verify(&mut nft),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Forgets what was applied when it is no longer there.
    fn verify(&mut self, nft: &mut Nft) {
        // Only the names of tables: what removes rules behind our back removes whole tables, and this stays cheap.
        let listed = nft.list("list tables ip").unwrap_or_default();
        let there = listed.lines().any(|line| line.trim() == format!("table ip {}", self.names.table));
        if self.applied.is_some() && !there {
            tracing::warn!(table = %self.names.table, "the Services' rules were removed by somebody else; restoring them");
            self.applied = None;
        }
    }

    /// One pass from what is observed to what is applied. False when the kernel refused.
    fn pass(&mut self, nft: &mut Nft) -> bool {
        let start = Instant::now();
        let (services, slices, pods) =
            (self.informers.services.list(), self.informers.slices.list(), self.informers.pods.list());
        let observed =
            Observed { node: &self.config.node_name, services: &services, slices: &slices, pods: &pods };
        self.serial = self.serial.wrapping_add(1);
        let zone = zone::zone(&observed, &self.config, self.serial);
        let knows_api = zone.has(&format!("kubernetes.default.svc.{}", self.config.domain));
        self.zone.store(Arc::new(zone));
        self.report.send_modify(|progress| progress.zone_known = true);
        let plan = plan(&observed);
        let Some(changed) = self.apply(nft, &plan) else { return false };
        let duration = start.elapsed();
        tracing::debug!(
            services = services.len(),
            changed,
            us = duration.as_micros(),
            "rules and names applied"
        );
        self.report.send_modify(|progress| {
            progress.ready |= knows_api;
            if changed {
                progress.last_apply = Some(duration);
            }
        });
        true
    }

    /// Makes the kernel's rules equal to a plan; tells whether they were different, or `None` when they still are.
    fn apply(&mut self, nft: &mut Nft, plan: &Plan) -> Option<bool> {
        let ruleset = Ruleset::of(plan);
        let mut changed = true;
        let mut done = false;
        if let Some(applied) = &self.applied {
            let script = diff(&self.names, &applied.ruleset, &ruleset);
            changed = !script.is_empty();
            done = !changed || run(nft, &script, "sending all of them again");
        }
        if !done && !run(nft, &render(&self.names, &ruleset), "trying again in a second") {
            self.applied = None;
            return None;
        }
        let udp: HashSet<(Ipv4Addr, u16)> = plan.udp_endpoints().map(|e| (e.address, e.port)).collect();
        let before = self.applied.replace(Applied { ruleset, udp: udp.clone() });
        if let Some(before) = before {
            forget(before.udp.difference(&udp).copied().collect());
        }
        Some(changed)
    }
}

fn run(nft: &mut Nft, script: &str, next: &str) -> bool {
    match nft.run(script) {
        Ok(()) => true,
        Err(error) => {
            tracing::error!(%error, "the kernel refused the Services' rules; {next}");
            false
        }
    }
}

/// Lets UDP clients of removed endpoints find the remaining ones.
fn forget(removed: HashSet<(Ipv4Addr, u16)>) {
    if removed.is_empty() {
        return;
    }
    match cumulet_net::flush_udp(&removed) {
        Ok(count) => tracing::debug!(count, "UDP connections to removed endpoints forgotten"),
        // Their clients wait for the kernel's timeout instead.
        Err(error) => tracing::debug!(%error, "UDP connections to removed endpoints stay"),
    }
}
