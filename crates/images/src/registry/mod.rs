//! Registries: an endpoint that others push to and pull from, and a client that pushes and pulls.
//!
//! ```text
//!   endpoint/   OCI Distribution v1.1 over the content store: what is pushed is in the store, under the name a pod uses
//!   client/     the other side of the same protocol: pull and push, with credentials, mirrors, retries, resumption
//!   sink        bytes on their way to the disk: counted, hashed, capped, with a deadline for the next ones
//! ```
//!
//! Both sides are asynchronous at the network and hand bytes to blocking threads for the disk. Neither holds the
//! store's content lock while it waits for the other side: see [`crate::content`].

pub(crate) mod client;
pub(crate) mod endpoint;
pub mod fuzz;
mod sink;

/// Words an error of the system on a file.
fn sink_error(verb: &str, path: &std::path::Path, error: std::io::Error) -> crate::ImageError {
    crate::error::io(verb, path)(error)
}
