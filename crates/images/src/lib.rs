//! Images: a content store, import of archives, unpacking, a registry's client and endpoint, and the composer.
//!
//! ```text
//!   DIR/refs.json             name → manifest digest; replaced atomically; what is not in it does not exist
//!   DIR/blobs/sha256/<hex>    manifests, configs, layers as they came, each under its own digest
//!   DIR/layers/<hex>/         layers unpacked for overlayfs, by the digest of the uncompressed tar
//!   DIR/leases/, DIR/partial/ what is about to be named, and downloads that broke off: see `content`
//!   DIR/tmp/                  work of running imports; removed at open when its process is gone
//!   DIR/lock, DIR/gc.lock     flocks: short changes of the above; imports (shared) against pruning (exclusive)
//! ```
//!
//! Invariants: content is verified before it is named, and a reference is written last, so that a crash at any point
//! leaves either the whole image or none of it. Blobs and layers never change once they have their name. Several
//! processes may use one directory.
//!
//! Calls of the store block; asynchronous callers use a blocking thread. The registry's two sides ([`Client`],
//! [`Endpoint`]) are asynchronous. Absent on purpose: Kubernetes' vocabulary, mounting, listening.

mod artifact;
mod build;
mod content;
mod digest;
mod disk;
mod document;
mod error;
mod gc;
mod inspect;
mod load;
mod oci;
mod reference;
mod refs;
mod registry;
mod save;
mod staging;
mod store;
mod tarball;
mod unpack;
mod verify;

pub use artifact::{Artifact, ArtifactLayer, ArtifactWriter};
pub use build::{
    BuildOptions, BuildSandbox, BuiltImage, Event, Outcome, Report, SandboxError, SandboxJob, Step, Tools,
};
pub use digest::Digest;
pub use error::ImageError;
pub use gc::Pruned;
pub use inspect::{Inspection, LayerInfo, Step as HistoryStep};
pub use load::LoadedImage;
pub use oci::ImageConfig;
pub use reference::Reference;
pub use refs::Origin;
pub use registry::client::artifact::Accept;
pub use registry::client::config::RegistriesConfig;
pub use registry::client::error::RegistryError;
pub use registry::client::keyring::Keyring;
pub use registry::client::progress::Progress;
pub use registry::client::pull::Pulled;
pub use registry::client::push::Pushed;
pub use registry::client::{Client, ClientOptions};
pub use registry::endpoint::upload::UploadLimits;
pub use registry::endpoint::users::Users;
pub use registry::endpoint::{Endpoint, EndpointOptions};
#[doc(hidden)]
pub use registry::fuzz;
pub use store::{Image, ImageStore, ImageSummary, Limits};
