//! Builds the programs that the examples' images contain.

use crate::shell::{cache_dir, output, root, run_command};
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
    let rootfs = example.join("rootfs");
    let bin = rootfs.join("bin");
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
        // A static one could not look up names: the C library loads parts of itself for that.
        for library in libraries(&from)? {
            let at = rootfs.join(library.trim_start_matches('/'));
            fs::create_dir_all(at.parent().unwrap_or(&rootfs))?;
            fs::copy(&library, &at).with_context(|| format!("cannot copy {library}"))?;
        }
        for applet in APPLETS {
            let _ = symlink("busybox", bin.join(applet));
        }
    }
    fs::create_dir_all(rootfs.join("tmp"))?;
    Ok(())
}

/// The shared libraries of a program, the loader included.
fn libraries(program: &std::path::Path) -> anyhow::Result<Vec<String>> {
    let listed = output("ldd", &[&program.to_string_lossy()])?;
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(str::to_owned);
    Ok(listed.lines().filter_map(path).collect())
}

/// True when `source` was changed after `built`, or nothing was built.
fn newer(source: &std::path::Path, built: &std::path::Path) -> bool {
    let time = |path: &std::path::Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    match (time(source), time(built)) {
        (Some(source), Some(built)) => source > built,
        _ => true,
    }
}
