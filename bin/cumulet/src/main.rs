//! The one binary: arguments → configuration → wiring → run until a signal → drain. No logic of its own.
//!
//! `cumulet supervise DIR` is the pod supervisor: it is told apart before anything else happens, so that a supervisor
//! carries neither the argument parser nor an async runtime of the cloud's size. So is `cumulet build-sandbox`, which
//! runs one program of an image's build.

mod detach;
mod down;
mod ranges;
mod registry;
mod up;

use clap::Parser;
use cumulet_cli::{Args, Command, StateDir, exit};
use std::path::Path;
use std::process::ExitCode;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let first = words.next().unwrap_or_default();
    if first == "supervise" {
        return match words.next() {
            Some(dir) => {
                // Its standard error is the pod's supervisor.log.
                log_to_stderr(false);
                cumulet_node::supervisor::run(Path::new(&dir))
            }
            None => ExitCode::from(exit::USAGE),
        };
    }
    if first == cumulet_cli::build_sandbox::COMMAND {
        return cumulet_cli::build_sandbox::main();
    }
    // A usage error ends the program here, with exit code 2.
    let args = Args::parse();
    log_to_stderr(args.verbose);
    match run(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("cumulet: {error:#}");
            ExitCode::from(exit::FAILURE)
        }
    }
}

fn run(args: Args) -> anyhow::Result<u8> {
    let state = StateDir::new(&args.state_dir)?;
    match args.command {
        Command::Up(options) if options.detach => {
            detach::run(&state, &options, args.verbose).map(|()| exit::OK)
        }
        Command::Up(options) => up::run(&state, &options).map(|()| exit::OK),
        Command::Down(options) => down::run(&state, &options).map(|()| exit::OK),
        other => cumulet_cli::run(&state, other),
    }
}

/// Our own messages from `info` (or `debug`) on; other libraries' only when something is wrong.
fn log_to_stderr(verbose: bool) {
    let ours = if verbose { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let targets = Targets::new().with_default(LevelFilter::WARN).with_target("cumulet", ours);
    // The container library logs every recoverable oddity as an error of its own; ours come back as values.
    let targets =
        targets.with_target("libcontainer", LevelFilter::OFF).with_target("libcgroups", LevelFilter::OFF);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(layer).with(targets).init();
}
