//! The contract between the API server and those who work for it: controllers, the node and the service router.
//!
//! ```text
//!   apiserver ──implements──► Cluster      ◄──uses── controllers, node, informers
//!   node      ──implements──► PodStreams   ◄──uses── apiserver (logs, exec, attach)
//! ```
//!
//! The layer-4 crates know only these traits and meet in the binary. The same traits can be served by a remote
//! API server, so nothing here assumes that the store is in the process.

pub mod access;
pub mod api;
pub mod events;
pub mod informer;
pub mod queue;
pub mod streams;

pub use access::{
    Cluster, DeleteOptions, List, ListOptions, ObjectRef, PatchKind, Propagation, ResourceId, WatchItem,
};
pub use api::Api;
pub use events::{EventRecorder, EventType};
pub use informer::{Change, Informer};
pub use queue::Queue;
pub use streams::PodStreams;

/// A boxed future, as the object-safe traits of this crate return.
pub type BoxFuture<'a, T> = futures_util::future::BoxFuture<'a, T>;
/// A boxed stream, as the object-safe traits of this crate return.
pub type BoxStream<'a, T> = futures_util::stream::BoxStream<'a, T>;
