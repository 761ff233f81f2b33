//! Services and endpoints to nftables rules and DNS records, as data.
//!
//! ```text
//!   Services, EndpointSlices, Pods ──plan()──► Plan ──Ruleset::of()──► Ruleset ──render(), diff()──► nft script
//!                                  └─records()─► names and their records
//! ```
//!
//! [`Plan`] says what traffic is to do, in the vocabulary of services; [`Ruleset`] says it in tables, chains and sets;
//! the script of [`diff`] turns one ruleset in the kernel into another in one transaction.
//!
//! Pure: no I/O, no clock, no randomness. IPv4 only; other families are left out of the plan. One node: every
//! endpoint is reachable from here, and only `nodeName` tells whether one counts as local.

mod diff;
mod dns;
mod endpoints;
mod plan;
mod ruleset;

pub use diff::{diff, render};
pub use dns::{DnsData, records};
pub use endpoints::Observed;
pub use plan::{Balancer, Endpoint, Plan, PortKey, Protocol, plan};
pub use ruleset::{Names, Ruleset};

#[cfg(test)]
mod tests;
