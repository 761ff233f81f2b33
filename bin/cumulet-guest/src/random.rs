//! The kernel's random generator.

use crate::error::{Doing, Error};
use crate::fault::{self, Fault};
use crate::sys;
use std::fs::OpenOptions;

/// Mixes in fresh bytes, counts them as entropy, and makes the generator draw a new key from them at once: what it
/// gives from now on nobody else can have.
pub(crate) fn reseed(entropy: &[u8]) -> Result<(), Error> {
    if fault::has(Fault::Reseed) {
        return Ok(());
    }
    let what = || "reseed the random generator".to_owned();
    let random = OpenOptions::new().write(true).open("/dev/random").doing(what)?;
    sys::reseed(&random, entropy).doing(what)
}
