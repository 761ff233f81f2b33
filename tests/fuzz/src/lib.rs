//! What the fuzz targets do with their bytes: one function for each decoder that strangers can reach.
//!
//! A target fails by panicking: because the decoder did, or because one of the properties that are asserted here does
//! not hold (what is printed can be read again, nothing is written outside, a reply fits its packet).
//!
//! The supervisor's frames and the log entries belong to the node, which pulls in a container runtime and half of the
//! tree. Their files are included here by path instead, so that the decoders are built in seconds and need no door.

// The node's files name the crates that they use; this name leads to the included file.
extern crate self as cumulet_container;

/// All that the supervisor's protocol needs of the container crate.
#[path = "../../../crates/container/src/spec.rs"]
pub mod container_spec;

mod api;
mod description;
mod dns;
mod guest;
mod image;
mod machine;
mod node;
mod patch;
mod scratch;

pub use container_spec::{ContainerSpec, Resources};

/// What is done with one input; it panics when something does not hold.
pub type Target = fn(&[u8]);

/// All targets, by name. Each has a directory of that name in `corpus-seeds`.
pub const TARGETS: &[(&str, Target)] = &[
    ("challenge", cumulet_images::fuzz::challenge),
    ("description", description::description),
    ("dns", dns::dns),
    ("docker_config", cumulet_images::fuzz::docker_config),
    ("frame", node::frame),
    ("guest_link", guest::guest_link),
    ("image_archive", image::image_archive),
    ("image_layer", image::image_layer),
    ("json_body", api::json_body),
    ("json_patch", patch::json_patch),
    ("log_entry", node::log_entry),
    ("manifest", cumulet_images::fuzz::manifest),
    ("packed", cumulet_snapshot_format::fuzz::packed),
    ("protobuf", api::protobuf),
    ("quantity", api::quantity),
    ("reference", description::reference),
    ("registries", cumulet_images::fuzz::registries),
    ("registry_route", cumulet_images::fuzz::route),
    ("selector", api::selector),
    ("strategic", patch::strategic),
    ("stream", machine::stream),
    ("template", cumulet_snapshot_format::fuzz::template),
    ("upload", cumulet_images::fuzz::upload),
];

/// The input as lines of text, for targets that take several documents; `None` when it is no text or has too few.
fn lines<const N: usize>(data: &[u8]) -> Option<[&str; N]> {
    let mut parts = std::str::from_utf8(data).ok()?.splitn(N, '\n');
    let mut found = [""; N];
    for slot in &mut found {
        *slot = parts.next()?;
    }
    Some(found)
}
