//! Supervisors and containers for real: every case starts a supervisor process (this same program) and containers of
//! a tiny static root file system. Needs root, cgroups and a C compiler; says so and succeeds where they are missing.
//!
//! A program of its own instead of the usual harness, because `exe supervise DIR` must be the supervisor. Arguments
//! are substrings of the names of the cases to run.

#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a test program has no public interface and fails by panicking"
)]

mod cases;
mod kit;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, verb, dir] = &args[..]
        && verb == "supervise"
    {
        return cumulet_node::supervisor::run(Path::new(dir));
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return ExitCode::SUCCESS;
    }
    let wanted = wanted(&args[1..]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (mut ran, mut failed) = (0, 0);
    for (name, case) in cases::ALL {
        if !wanted.is_empty() && !wanted.iter().any(|w| name.contains(w.as_str())) {
            continue;
        }
        let started = std::time::Instant::now();
        // A case that fails panics in a task of its own.
        let outcome = runtime.block_on(async { tokio::spawn(case()).await });
        let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("{verdict:6} {name} ({} ms)", started.elapsed().as_millis());
        ran += 1;
        failed += u32::from(outcome.is_err());
    }
    println!("{ran} cases, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The names among the arguments; options of the usual harness, which every test program is given, are passed over.
fn wanted(args: &[String]) -> Vec<&String> {
    let mut args = args.iter();
    let mut names = Vec::new();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--test-threads" => drop(args.next()),
            option if option.starts_with('-') => {}
            _ => names.push(arg),
        }
    }
    names
}
