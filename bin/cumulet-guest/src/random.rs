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
    mix_in(entropy)
}

/// The last thing before a snapshot, and nothing but for [`Fault::Reseed`]: a young kernel draws a new key every few
/// seconds by itself. Clones that keep the template's key are to have that time before them.
pub(crate) fn before_snapshot() -> Result<(), Error> {
    if fault::has(Fault::Reseed) { mix_in(&[0; 32]) } else { Ok(()) }
}

fn mix_in(entropy: &[u8]) -> Result<(), Error> {
    let what = || "reseed the random generator".to_owned();
    let random = OpenOptions::new().write(true).open("/dev/random").doing(what)?;
    sys::reseed(&random, entropy).doing(what)
}
