//! Builds what virtual machines need and puts it where the program finds it: the agent, and a link to the kernel's package.

use crate::shell::{cache_dir, command, cumulet, run_command, target_dir};
use anyhow::Context;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A target of its own, so that the linking flags reach the agent and not what is built for this machine.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where the agent lies: in a directory of its own, as cargo keeps the agent that it builds for this machine beside the
/// program.
pub(crate) fn agent() -> PathBuf {
    cumulet().with_file_name("vm").join("cumulet-guest")
}

/// The agent that can do wrong, for tests.
pub(crate) fn faulty_agent() -> PathBuf {
    cumulet().with_file_name("vm-faults").join("cumulet-guest")
}

/// Builds [`faulty_agent`].
pub(crate) fn build_faulty() -> anyhow::Result<()> {
    compile(&["--features", "test-faults"], &faulty_agent())
}

/// Builds an agent, statically linked and small.
fn compile(options: &[&str], agent: &Path) -> anyhow::Result<()> {
    let args = ["build", "--quiet", "--profile", "guest", "--package", "cumulet-guest", "--target", TARGET];
    let flags = "-C target-feature=+crt-static";
    run_command(command("cargo").args(args).args(options).env("RUSTFLAGS", flags))?;
    let dir = agent.parent().context("the program is in no directory")?;
    fs::create_dir_all(dir)?;
    let _ = fs::remove_file(agent);
    let built = target_dir().join(TARGET).join("guest/cumulet-guest");
    fs::copy(&built, agent).with_context(|| format!("cannot copy {}", built.display()))?;
    Ok(())
}

/// Builds the agent and says where the kernel is.
pub(crate) fn build() -> anyhow::Result<()> {
    let agent = agent();
    compile(&[], &agent)?;
    let dir = agent.parent().context("the program is in no directory")?;
    let kernel = dir.join("kernel");
    let _ = fs::remove_file(&kernel);
    let package = cache_dir().join("guest-kernel");
    symlink(&package, &kernel).with_context(|| format!("cannot link {}", package.display()))
}
