//! Builds what virtual machines need and puts it beside the program: the agent, and a link to the kernel's package.

use crate::shell::{cache_dir, command, cumulet, run_command, target_dir};
use anyhow::Context;
use std::fs;
use std::os::unix::fs::symlink;

/// A target of its own, so that the linking flags reach the agent and not what is built for this machine.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the agent, statically linked and small.
pub(crate) fn build() -> anyhow::Result<()> {
    let args = ["build", "--quiet", "--profile", "guest", "--package", "cumulet-guest", "--target", TARGET];
    run_command(command("cargo").args(args).env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    let program = cumulet();
    let beside = program.parent().context("the program is in no directory")?;
    fs::create_dir_all(beside)?;
    let agent = beside.join("cumulet-guest");
    // Not overwritten: a debug build may have put a link to its own there.
    let _ = fs::remove_file(&agent);
    let built = target_dir().join(TARGET).join("guest/cumulet-guest");
    fs::copy(&built, &agent).with_context(|| format!("cannot copy {}", built.display()))?;
    let kernel = beside.join("guest-kernel");
    let _ = fs::remove_file(&kernel);
    let package = cache_dir().join("guest-kernel");
    symlink(&package, &kernel).with_context(|| format!("cannot link {}", package.display()))
}
