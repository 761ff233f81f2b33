//! Benchmarks: `cargo xtask bench NAME` prints JSON. The measuring itself is in tests/perf.

use crate::shell::{self, command, run_command, target_dir};
use crate::{examples, guest, setup, test};

/// Runs one benchmark, or `all`.
pub(crate) fn run(args: &[String]) -> anyhow::Result<()> {
    setup::run()?;
    if args.iter().any(|name| name == "images" || name == "all") {
        setup::test_tools()?;
        setup::docker_registry()?;
    }
    examples::build()?;
    if args.iter().any(|name| matches!(name.as_str(), "vm" | "snapshot" | "all")) {
        guest::build()?;
    }
    // The same selection of packages as the tests build, so that nothing is built twice.
    shell::run("cargo", &["build", "--workspace", "--all-targets", "--quiet"])?;
    run_command(test::with_environment(&mut command(target_dir().join("debug/cumulet-perf"))).args(args))
}
