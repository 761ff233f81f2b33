//! What a build tells while it runs.

use std::time::Duration;

/// Something that people may want to see.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A step begins.
    Begin(&'a str),
    /// The current step is this far, from 0 to 1, and does this.
    Advance(f32, &'a str),
    /// A line that a program wrote.
    Line(&'a str),
    /// Something that is worth a line of its own.
    Note(&'a str),
    /// A step is done.
    End(&'a Step),
}

/// A finished step of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// `base`, `packages`, `require`, `build`, `files`, with what it is about.
    pub name: String,
    /// Layers that it gave to the image.
    pub layers: usize,
    /// How many of them were there already.
    pub reused: usize,
    /// Size of its layers as stored.
    pub size_bytes: u64,
    /// How long it took.
    pub took: Duration,
}

/// Takes events; called from the thread that builds and from those that serve it.
pub type Report<'a> = &'a (dyn Fn(Event<'_>) + Sync);
