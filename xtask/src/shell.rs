//! Running programs, and where things are.

use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The built program.
pub(crate) fn cumulet() -> PathBuf {
    target_dir().join("debug/cumulet")
}

/// The cache outside the checkout: downloaded packages, tools. Filled when empty.
pub(crate) fn cache_dir() -> PathBuf {
    std::env::var_os("CUMULET_CACHE").map_or_else(
        || {
            let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
            home.join(".cache/cumulet-build")
        },
        PathBuf::from,
    )
}

/// A command that runs in the repository's root, with the tools of the cache on its path.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    // What cargo says of this program is not to reach the cargo that it runs: build scripts that look at it would be
    // run anew, and all that depends on them built anew, whenever the two take turns.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
        .current_dir(root())
        .env("PATH", format!("{path}:{}:/usr/sbin:/sbin", cache_dir().join("bin").display()));
    command
}

/// Runs a program and fails when it fails.
pub(crate) fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    run_command(command(program).args(args))
}

/// Runs a command and fails when it fails.
pub(crate) fn run_command(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let args: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    let status = command.status().with_context(|| format!("cannot run {name}"))?;
    if !status.success() {
        bail!("`{name} {}` failed: {status}", args.join(" "));
    }
    Ok(())
}

/// Runs a program and gives its standard output.
pub(crate) fn output(program: &str, args: &[&str]) -> anyhow::Result<String> {
    let out = command(program).args(args).output().with_context(|| format!("cannot run {program}"))?;
    if !out.status.success() {
        bail!("`{program} {}` failed: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// True when the program can be found.
pub(crate) fn exists(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let cache = cache_dir().join("bin");
    let places = path.split(':').map(PathBuf::from).chain([cache, "/usr/sbin".into(), "/sbin".into()]);
    places.into_iter().any(|dir| dir.join(program).is_file())
}
