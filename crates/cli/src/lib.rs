//! The command line: its grammar, and every command that works on a cloud from outside.
//!
//! `up`, `down` and the hidden `supervise` need the cloud's own parts and are run by the binary; everything else is
//! here: images, templates, status, doctor and the built-in client for people who have no kubectl. Data goes to stdout, progress
//! and errors to stderr.

pub mod args;
mod client;
mod doctor;
mod image;
mod snapshot;
pub mod state_dir;
mod status;
mod table;
mod terminal;
mod vm;

pub use args::{Args, Command};
pub use image::sandbox as build_sandbox;
pub use state_dir::StateDir;

use anyhow::Context;

/// Exit codes that scripts may rely on.
pub mod exit {
    /// Everything went well.
    pub const OK: u8 = 0;
    /// The command failed; stderr says why and what to do.
    pub const FAILURE: u8 = 1;
    /// The command line makes no sense.
    pub const USAGE: u8 = 2;
    /// `status`: no cloud is running on this state directory.
    pub const NOT_RUNNING: u8 = 3;
    /// `doctor`: something that is needed is missing.
    pub const UNFIT: u8 = 4;
}

/// Runs a command that needs no part of the cloud in the process. Gives the exit code.
pub fn run(state: &StateDir, command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Image(task) => image::run(state, task).map(|()| exit::OK),
        Command::Snapshot(task) => snapshot::run(state, task).map(|()| exit::OK),
        Command::Doctor(output) => doctor::run(state, output.format),
        Command::Status(output) => block_on(status::run(state, output.format)),
        Command::Vm(task) => block_on(vm::run(state, task)).map(|()| exit::OK),
        Command::Client(task) => block_on(client::run(state, task)),
        Command::Up(_) | Command::Down(_) => anyhow::bail!("this command is run by the program itself"),
    }
}

fn block_on<T>(task: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("no async runtime")?;
    runtime.block_on(task)
}
