//! Templates on disk: what a virtual machine that was saved consists of, and how it is found whole or not at all.
//!
//! ```text
//!   DIR/                               0700
//!     <key>/                           0700, 64 hexadecimal digits
//!       template                       0600
//!         magic · version · length of the header · checksums of table, state, header      112 bytes
//!         header                       JSON, see [`Header`]
//!         table                        32 bytes for each MiB of memory
//!         state                        the devices, as QEMU wrote them
//!       memory                         0600, the guest's memory as it was: sparse, can be mapped
//!     .<key>.<random>.partial/         being written, locked by its writer
//!     .<key>.<random>.removed/         being deleted
//!     compatibility.json               what this machine offers, see [`Compatibility::publish`]
//! ```
//!
//! Invariants:
//! - A template under its key is complete: it was written aside, flushed, and renamed. It never changes afterwards, but
//!   for the time stamp that says when it was last used.
//! - The header can be read without the rest. Its checksum covers the checksums of everything else, so that one digest
//!   holds the whole template together.
//! - Nothing is allocated on the word of a length before it was compared with a cap, and nothing is given out before its
//!   checksum was: [`Template::load_memory`] verifies a chunk before it writes it.
//! - For registries a template is taken apart, see [`Template::pack`], and put together again, see [`Unpacker`].
//! - An open [`Template`] has its files open: whoever removes it from the directory takes nothing from who uses it.
//!
//! Checksums are SHA-256: processors have instructions for it, and it is in the tree; a shorter sum would not be quicker
//! than the memory's way through the page cache. That of a chunk is over a bitmap of the pages that are not zero, and those
//! pages, so that holes cost nothing and where a file system puts them makes no difference.
//!
//! Absent on purpose: QEMU, the guest's protocol, the decision when a template is made or evicted, clocks (times are
//! given), asynchronous I/O (everything here blocks).

mod compatibility;
mod directory;
mod envelope;
mod error;
mod files;
#[doc(hidden)]
pub mod fuzz;
mod header;
mod key;
mod memory;
mod pack;
mod template;
#[cfg(test)]
mod tests;
mod unpack;
mod writer;

pub use compatibility::{Compatibility, Difference, Mismatch};
pub use directory::{Listed, Usage, clean, evict, list, remove};
pub use error::{Error, Part};
pub use header::{Description, Header, Pages};
pub use key::{Key, KeyError};
pub use pack::{Config, Packed};
pub use template::Template;
pub use unpack::Unpacker;
pub use writer::Writer;

/// Version of the format, which other versions of the program may not read.
pub const VERSION: u32 = 1;
/// Pages of memory, in bytes. The size of a memory is a multiple.
pub const PAGE_BYTES: usize = 4096;
/// What has a checksum of its own, in bytes of memory.
pub const CHUNK_BYTES: usize = 1 << 20;
/// Largest header, in bytes of JSON.
pub const MAX_HEADER_BYTES: usize = 1 << 20;
/// Largest state of devices, in bytes.
pub const MAX_STATE_BYTES: usize = 64 << 20;
/// Largest memory, in bytes.
pub const MAX_MEMORY_BYTES: u64 = 256 << 30;
