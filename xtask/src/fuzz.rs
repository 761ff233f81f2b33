//! Fuzzing with a stable toolchain: `cargo xtask fuzz [TARGET|all] [--seconds N]`.
//!
//! The flags are those of cargo-fuzz without the sanitizers, which only nightly compilers have: what is found are
//! panics, overflows, failed assertions, hangs and memory without end. Corpora and findings stay in the cache, where the
//! next run goes on from them; `--seconds 0` only replays the seeds and what was collected.

use crate::shell::{cache_dir, command, output, root, run_command};
use anyhow::{Context, bail};
use std::path::Path;

/// Inputs to start from, a directory for each target.
const SEEDS: &str = "tests/fuzz/corpus-seeds";
/// How long each target runs unless told otherwise.
const DEFAULT_SECONDS: &str = "60";
/// One input may take this long, in seconds, and the process this much memory, in MiB.
const LIMITS: [&str; 2] = ["-timeout=10", "-rss_limit_mb=2048"];
const FLAGS: [&str; 8] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Cdebug-assertions",
    "--cfg=fuzzing",
];

/// Builds the targets and runs one or all.
pub(crate) fn run(args: &[String]) -> anyhow::Result<()> {
    let (mut wanted, mut seconds) = ("all", DEFAULT_SECONDS);
    let mut args = args.iter().map(String::as_str);
    while let Some(arg) = args.next() {
        match arg {
            "--seconds" => seconds = args.next().context("--seconds needs a number")?,
            name => wanted = name,
        }
    }
    let seconds: u64 = seconds.parse().with_context(|| format!("--seconds {seconds} is no number"))?;
    let known = targets()?;
    let chosen: Vec<&String> = known.iter().filter(|name| wanted == "all" || *name == wanted).collect();
    if chosen.is_empty() {
        bail!("there is no fuzz target {wanted:?}; there are: {}", known.join(", "));
    }
    let binary = build()?;
    let mut failed = Vec::new();
    for name in chosen {
        println!("== {name}");
        if let Err(error) = fuzz(&binary, name, seconds) {
            eprintln!("{error:#}");
            failed.push(name.as_str());
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => bail!("{} failed; the inputs are below {}", failed.join(", "), work_dir().display()),
    }
}

fn work_dir() -> std::path::PathBuf {
    cache_dir().join("fuzz")
}

/// The targets, by the directories of their seeds.
fn targets() -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join(SEEDS)).context(SEEDS)? {
        found.push(entry?.file_name().to_string_lossy().into_owned());
    }
    found.sort();
    Ok(found)
}

/// Builds the program that holds all targets and says where it is.
fn build() -> anyhow::Result<std::path::PathBuf> {
    let version = output("rustc", &["-vV"])?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let target_dir = work_dir().join("target");
    // With --target the flags are not applied to build scripts and procedural macros, which could not be linked so.
    run_command(
        command("cargo")
            .args(["build", "--quiet", "--locked", "--manifest-path", "tests/fuzz/runner/Cargo.toml"])
            .args(["--target", host, "--target-dir"])
            .arg(&target_dir)
            .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}")),
    )?;
    Ok(target_dir.join(host).join("debug/cumulet-fuzz-runner"))
}

fn fuzz(binary: &Path, name: &str, seconds: u64) -> anyhow::Result<()> {
    let corpus = work_dir().join("corpus").join(name);
    let findings = work_dir().join("findings").join(name);
    let scratch = scratch_dir();
    for dir in [&corpus, &findings, &scratch] {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let mut program = command(binary);
    program.arg(&corpus).arg(root().join(SEEDS).join(name)).args(LIMITS);
    program.arg(format!("-artifact_prefix={}/", findings.display()));
    program.env("FUZZ_TARGET", name).env("TMPDIR", &scratch);
    match seconds {
        0 => program.arg("-runs=0"),
        seconds => program.arg(format!("-max_total_time={seconds}")).arg("-print_final_stats=1"),
    };
    let result = run_command(&mut program);
    std::fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    result
}

/// Memory instead of a disk where there is: the image store flushes what it writes.
fn scratch_dir() -> std::path::PathBuf {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    base.join(format!("fuzz-scratch-{}", std::process::id()))
}
