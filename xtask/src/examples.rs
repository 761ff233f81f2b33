//! Builds the programs that the examples' images contain.

use crate::shell::{cache_dir, root, run_command};
use anyhow::Context;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

/// Applets of busybox that an example image offers: enough to look around in it.
const APPLETS: &[&str] = &[
    "sh", "ls", "cat", "echo", "env", "ps", "id", "sleep", "wget", "nslookup", "hostname", "ip", "mount",
    "ping", "head", "tail", "grep", "sed", "awk", "dd", "df", "free", "kill", "mkdir", "rm", "cp", "mv",
    "touch", "vi", "tar", "true", "false", "date", "nc", "stat", "seq", "wc", "tr", "test", "printf", "yes",
    "stty", "tty", "ln", "chmod",
];

/// Builds `examples/hello/image/rootfs`: the web server, linked statically, and a shell.
pub(crate) fn build() -> anyhow::Result<()> {
    let example = root().join("examples/hello/image");
    let bin = example.join("rootfs/bin");
    fs::create_dir_all(&bin)?;
    let server = bin.join("hello");
    if newer(&example.join("hello.rs"), &server) {
        run_command(
            Command::new("rustc")
                .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols"])
                .args(["-C", "panic=abort", "--remap-path-prefix"])
                .arg(format!("{}=.", root().display()))
                .arg(example.join("hello.rs"))
                .arg("-o")
                .arg(&server),
        )?;
    }
    let busybox = bin.join("busybox");
    if !busybox.exists() {
        let from = cache_dir().join("bin/busybox");
        fs::copy(&from, &busybox)
            .with_context(|| format!("{} is missing: run `cargo xtask setup`", from.display()))?;
        for applet in APPLETS {
            let _ = symlink("busybox", bin.join(applet));
        }
    }
    fs::create_dir_all(example.join("rootfs/tmp"))?;
    Ok(())
}

/// True when `source` was changed after `built`, or nothing was built.
fn newer(source: &std::path::Path, built: &std::path::Path) -> bool {
    let time = |path: &std::path::Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    match (time(source), time(built)) {
        (Some(source), Some(built)) => source > built,
        _ => true,
    }
}
