//! Faults on purpose, for tests of what the host makes of a guest that has them.
//!
//! Only an agent that is built with the feature `test-faults` can have one: which, is said by the last line of its own
//! file. In every other agent nothing of this is left.

/// What an agent leaves out.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Clones keep the template's random generator.
    Reseed,
    /// Containers do not stand still.
    Freeze,
    /// An identity is taken on, but never acknowledged.
    Acknowledgement,
}

/// Whether this agent has the fault.
#[cfg(not(feature = "test-faults"))]
pub(crate) const fn has(_: Fault) -> bool {
    false
}

/// Whether this agent has the fault.
#[cfg(feature = "test-faults")]
pub(crate) fn has(fault: Fault) -> bool {
    let name: &[u8] = match fault {
        Fault::Reseed => b"\nno-reseed\n",
        Fault::Freeze => b"\nno-freeze\n",
        Fault::Acknowledgement => b"\nno-acknowledgement\n",
    };
    // The file is deleted, but is there as long as it runs.
    std::fs::read("/proc/self/exe").is_ok_and(|file| file.ends_with(name))
}
