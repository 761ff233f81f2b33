//! The node agent: pods become processes here.
//!
//! ```text
//!   informers ─► runner: one task per pod ─► podlife decides ─► effects ─► supervisor, network, volumes, probes
//!                        ▲                                        │
//!                        └──────────── events ◄───────────────────┘
//! ```
//!
//! A pod's task is its only writer: it turns everything that happens into an event, lets [`cumulet_podlife`] decide and
//! starts the effects, none of which blocks it. The processes belong to the pod's [`supervisor`], which outlives this
//! process. What is absent on purpose: direct access to the store; decisions about life and death (see `podlife`).

mod agent;
mod config;
mod convert;
mod dirs;
mod env;
mod fields;
mod images;
mod inputs;
mod logs;
mod metrics;
mod node;
mod probes;
mod provisioner;
mod runner;
pub mod services;
mod snapshots;
mod streams;
pub mod supervisor;
mod teardown;
mod vm;
mod volumes;

pub use config::NodeConfig;
pub use node::{Node, NodeDeps};
pub use teardown::teardown;
