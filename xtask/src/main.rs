//! Tasks of this repository: `cargo xtask setup | demo | test | bench NAME | fuzz NAME | lint | examples | guest | guest-faults | schema`.
//!
//! Only the standard library and two small crates, so that it is built in seconds on a machine on which nothing else
//! can be built yet: `setup` is what makes the rest buildable.

mod bench;
mod demo;
mod examples;
mod fuzz;
mod guest;
mod lint;
mod schema;
mod setup;
mod shell;
mod test;

use anyhow::bail;
use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask <task>

  setup        installs what building and testing need (Debian packages, a kubectl)
  demo         builds, starts a cloud, deploys examples/hello, shows what happened
  test [NAME]  installs what it needs, then runs every test (or those whose name contains NAME)
  bench NAME   runs a benchmark and prints JSON; `bench all` runs every one
  fuzz [NAME]  builds and runs the fuzz targets (--seconds N for each; 0 only replays what is known)
  lint         checks dependency direction, module docs and sizes
  examples     builds the programs that the examples' images contain
  guest        builds the agent for virtual machines and puts it beside the program, with their kernel
  guest-faults builds an agent that can do wrong, for tests
  schema       regenerates the schema table from Kubernetes' Go sources (--from DIR)
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> anyhow::Result<()> {
    let rest = args.get(1..).unwrap_or_default();
    match args.first().map(String::as_str) {
        Some("setup") => setup::run(),
        Some("demo") => demo::run(),
        Some("test") => test::run(rest),
        Some("bench") => bench::run(rest),
        Some("fuzz") => fuzz::run(rest),
        Some("lint") => lint::run(),
        Some("examples") => examples::build(),
        Some("guest") => guest::build(),
        Some("guest-faults") => guest::build_faulty(),
        Some("schema") => schema::run(rest),
        None | Some("help" | "--help" | "-h") => {
            print!("{USAGE}");
            Ok(())
        }
        Some(other) => bail!("there is no task {other:?}\n\n{USAGE}"),
    }
}
