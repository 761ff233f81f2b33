//! nftables through libnftables, loaded when it is first needed.
//!
//! A script is one transaction: all of it is applied or nothing. The library is loaded at run time so that the
//! program starts, and can say what is missing, on a machine without it.

mod sys;

use crate::Error;

/// A connection to the kernel's nftables, for one thread at a time.
pub struct Nft {
    context: sys::Context,
}

impl Nft {
    /// Loads the library and opens a connection in the network namespace of this thread.
    ///
    /// # Errors
    /// [`Error::NftMissing`], [`Error::NftContext`].
    pub fn open() -> Result<Self, Error> {
        Ok(Self { context: sys::Context::new()? })
    }

    /// Applies a script in nft's language, atomically.
    ///
    /// # Errors
    /// [`Error::Nft`] with the library's messages.
    pub fn run(&mut self, script: &str) -> Result<(), Error> {
        self.context.run(script).map(drop)
    }

    /// Runs a `list` command and returns its text.
    ///
    /// # Errors
    /// [`Error::Nft`] with the library's messages.
    pub fn list(&mut self, command: &str) -> Result<String, Error> {
        self.context.run(command)
    }
}

/// Removes a table of the `ip` family; its not being there is fine.
///
/// # Errors
/// As of [`Nft`]. Without the library there can be no table that this program made, but the error is returned all the
/// same: the library may have been removed since.
pub fn remove_table(table: &str) -> Result<(), Error> {
    Nft::open()?.run(&format!("add table ip {table}\ndelete table ip {table}\n"))
}
