//! Builds what virtual machines need and puts it where the program finds it: the agent, and a link to the kernel's package.

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
    // A directory of its own: beside the program, cargo keeps the agent that it builds for this machine.
    let dir = program.parent().context("the program is in no directory")?.join("vm");
    fs::create_dir_all(&dir)?;
    let agent = dir.join("cumulet-guest");
    let _ = fs::remove_file(&agent);
    let built = target_dir().join(TARGET).join("guest/cumulet-guest");
    fs::copy(&built, &agent).with_context(|| format!("cannot copy {}", built.display()))?;
    let kernel = dir.join("kernel");
    let _ = fs::remove_file(&kernel);
    let package = cache_dir().join("guest-kernel");
    symlink(&package, &kernel).with_context(|| format!("cannot link {}", package.display()))
}
