//! The client: pulls images into the content store and pushes them out of it.
//!
//! ```text
//!   pull ─► keyring, config ─► session ──► manifest ─► fetch (config) ─► fetch ×n ─► unpack ×m ─► name
//!   push ─────────────────────► session ──► HEAD, mount or upload ×n ─► manifests
//!                                  │
//!                                  └► follow redirects ► transport;  401 ► challenge ► token
//! ```
//!
//! Invariants: every blob is verified while it is written and has its name only afterwards; one blob is downloaded
//! once at a time on the whole machine; what arrived of a broken download is kept and gone on with; an image has its
//! name only when all of it is there. A pull or push may be dropped at any moment.
//!
//! Nothing goes over plain HTTP unless to this machine or where the configuration says so, and credentials go nowhere
//! else than to the registry they are for and the token service it names.
//!
//! Absent on purpose: Docker's first schema, uploads in chunks, layers fetched from foreign addresses, proxies.

pub(crate) mod artifact;
pub(crate) mod challenge;
pub(crate) mod config;
pub(crate) mod error;
mod fetch;
mod helper;
pub(crate) mod keyring;
mod manifest;
pub(crate) mod progress;
pub(crate) mod pull;
pub(crate) mod push;
mod retry;
mod session;
mod token;
mod transport;

use crate::{Digest, ImageError, ImageStore};
use config::RegistriesConfig;
use error::{Failure, RegistryError};
use progress::Progress;
use retry::Retry;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use token::Tokens;
use tokio::sync::{OwnedMutexGuard, Semaphore};
use transport::Transport;

/// Most layers that are unpacked at a time while others download.
const MAX_UNPACKERS: usize = 4;
/// How many gates are there before those that nobody uses are thrown away.
const MANY_GATES: usize = 256;

/// How a client is to be.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Mirrors and insecure registries.
    pub registries: RegistriesConfig,
    /// Most blobs that are moved at a time, by all pulls and pushes together.
    pub parallel: usize,
    /// How often a request is tried that might succeed later.
    pub attempts: u32,
    /// The first pause between two attempts; each further one is twice as long, up to 10 seconds.
    pub backoff: Duration,
    /// A connection on which nothing moves for so long is given up.
    pub stall: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            registries: RegistriesConfig::default(),
            parallel: 6,
            attempts: 4,
            backoff: Duration::from_millis(500),
            stall: Duration::from_secs(60),
        }
    }
}

/// Pulls and pushes. Meant to be kept: it holds connections and tokens.
pub struct Client {
    store: ImageStore,
    options: ClientOptions,
    transport: Transport,
    tokens: Tokens,
    slots: Semaphore,
    unpackers: Semaphore,
    gates: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

impl Client {
    /// A client of a store. Asks nobody for anything yet.
    ///
    /// # Errors
    /// When the registries' configuration has a mistake.
    pub fn new(store: ImageStore, options: ClientOptions) -> Result<Self, RegistryError> {
        options.registries.check().map_err(|message| RegistryError::Config {
            path: "registries".into(),
            at: None,
            message,
        })?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            transport: Transport::new(options.stall),
            tokens: Tokens::default(),
            slots: Semaphore::new(options.parallel.max(1)),
            unpackers: Semaphore::new(cores.min(MAX_UNPACKERS)),
            gates: Mutex::default(),
            store,
            options,
        })
    }

    fn retry(&self) -> Retry {
        Retry::new(self.options.attempts, self.options.backoff)
    }

    /// Waits for whoever produces this content in this process; others are kept away by the store's claims, waiting
    /// for which takes a thread.
    async fn gate(&self, digest: &Digest) -> OwnedMutexGuard<()> {
        let gate = {
            let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
            if gates.len() >= MANY_GATES {
                gates.retain(|_, gate| gate.strong_count() > 0);
            }
            let known = gates.get(digest).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let gate = Arc::default();
                gates.insert(digest.clone(), Arc::downgrade(&gate));
                gate
            })
        };
        gate.lock_owned().await
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Runs work on the disk where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        let source = std::io::Error::other(error.to_string());
        Err(ImageError::Io { what: "work on the image store".to_owned(), source })
    })
    .map_err(Failure::Image)
}

/// How far one blob is. What is moved again after a failure does not count twice.
struct Meter<'a> {
    progress: &'a dyn Progress,
    reached: AtomicU64,
}

impl<'a> Meter<'a> {
    fn new(progress: &'a dyn Progress) -> Self {
        Self { progress, reached: AtomicU64::new(0) }
    }

    /// So many bytes of the blob are done.
    fn reach(&self, bytes: u64) {
        let before = self.reached.fetch_max(bytes, Ordering::Relaxed);
        if bytes > before {
            self.progress.advance(bytes - before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Keyring, Reference};

    /// Whoever pulls for many pods does so in tasks.
    #[test]
    fn can_be_spawned() {
        fn task<T: Send>(_: &T) {}
        let dir = tempfile::tempdir().expect("directory");
        let store = ImageStore::open(dir.path()).expect("open");
        let client = Client::new(store, ClientOptions::default()).expect("client");
        let (reference, keyring) = (Reference::parse("a").expect("reference"), Keyring::default());
        task(&client.pull(&reference, &keyring, &()));
        task(&client.push("a", &reference, &keyring, &()));
    }
}
