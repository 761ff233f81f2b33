//! Checks of the repository's shape that no compiler makes.
//!
//! Failures: a crate that knows another one of its own layer or above, a module without `//!`, a crate that
//! ARCHITECTURE.md does not name. Reports only: sizes of files and functions.

use crate::shell::{output, root};
use anyhow::{Context, bail};
use std::collections::BTreeMap;
use std::fs;

/// The layer of every crate of ours. A crate may depend on lower layers only.
const LAYERS: &[(u8, &[&str])] = &[
    (1, &["cumulet-api", "cumulet-cluster", "cumulet-guest-proto", "cumulet-snapshot-format"]),
    (2, &["cumulet-merge", "cumulet-podlife", "cumulet-netplan"]),
    (
        3,
        &[
            "cumulet-store",
            "cumulet-images",
            "cumulet-container",
            "cumulet-vmm",
            "cumulet-net",
            "cumulet-dns",
        ],
    ),
    (4, &["cumulet-apiserver", "cumulet-controllers", "cumulet-node", "cumulet-cli"]),
    (5, &["cumulet", "cumulet-guest"]),
    (6, &["cumulet-e2e", "cumulet-fuzz", "cumulet-perf", "xtask"]),
];

/// Dependencies within one layer that are meant: the contract speaks the vocabulary, the benchmarks use the harness.
const WITHIN_LAYER: &[(&str, &str)] = &[("cumulet-cluster", "cumulet-api"), ("cumulet-perf", "cumulet-e2e")];

/// Only this crate may see the store.
const STORE_USERS: &[&str] = &["cumulet-apiserver"];

/// Lines of code of a file, tests apart, above which it is reported, and above which it fails.
const FILE_REPORT_LINES: usize = 400;
const FILE_FAIL_LINES: usize = 1000;
/// Lines of a function above which it is reported.
const FUNCTION_REPORT_LINES: usize = 70;

/// Runs every check and fails when one of the failing kind does not hold.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut failures = direction()?;
    failures.extend(architecture()?);
    let mut reports = Vec::new();
    for file in output("git", &["ls-files", "*.rs"])?.lines() {
        let Ok(text) = fs::read_to_string(root().join(file)) else { continue };
        check_file(file, &text, &mut failures, &mut reports);
    }
    for report in &reports {
        println!("note: {report}");
    }
    for failure in &failures {
        println!("error: {failure}");
    }
    if failures.is_empty() {
        println!("lint: no failures, {} notes", reports.len());
        return Ok(());
    }
    bail!("{} failures", failures.len())
}

fn direction() -> anyhow::Result<Vec<String>> {
    let layers: BTreeMap<&str, u8> =
        LAYERS.iter().flat_map(|(n, names)| names.iter().map(|name| (*name, *n))).collect();
    let metadata = output("cargo", &["metadata", "--format-version=1", "--no-deps", "--offline"])?;
    let metadata: serde_json::Value =
        serde_json::from_str(&metadata).context("cargo metadata gave no JSON")?;
    let mut failures = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(layer) = layers.get(name) else {
            failures.push(format!("crate {name} has no layer: add it to LAYERS in xtask/src/lint.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let Some(other) = dependency["name"].as_str() else { continue };
            let Some(other_layer) = layers.get(other) else { continue };
            let meant = WITHIN_LAYER.contains(&(name, other));
            if dependency["kind"].is_null() && other_layer >= layer && !meant {
                failures.push(format!("{name} (layer {layer}) depends on {other} (layer {other_layer})"));
            }
            if other == "cumulet-store" && !STORE_USERS.contains(&name) {
                failures.push(format!("{name} depends on the store: only {STORE_USERS:?} may"));
            }
        }
    }
    Ok(failures)
}

/// ARCHITECTURE.md must name every crate.
fn architecture() -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).context("ARCHITECTURE.md")?;
    let names = LAYERS.iter().filter(|(layer, _)| *layer <= 4).flat_map(|(_, names)| *names);
    let missing = names.filter_map(|name| {
        let short = name.strip_prefix("cumulet-").unwrap_or(name);
        (!text.contains(&format!("`{short}`"))).then(|| format!("ARCHITECTURE.md does not name `{short}`"))
    });
    Ok(missing.collect())
}

fn check_file(file: &str, text: &str, failures: &mut Vec<String>, reports: &mut Vec<String>) {
    let is_test = file.contains("/tests/") || file.ends_with("tests.rs") || file.contains("/benches/");
    let code: Vec<&str> = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).collect();
    if !text.trim_start().starts_with("//!") {
        failures.push(format!("{file}: no module documentation (//!) at the top"));
    }
    if is_test {
        return;
    }
    if code.len() > FILE_FAIL_LINES {
        failures
            .push(format!("{file}: {} lines, more than {FILE_FAIL_LINES}: split it by concept", code.len()));
    } else if code.len() > FILE_REPORT_LINES {
        reports.push(format!("{file}: {} lines", code.len()));
    }
    for (name, lines) in functions(&code) {
        if lines > FUNCTION_REPORT_LINES {
            reports.push(format!("{file}: fn {name} has {lines} lines"));
        }
    }
}

/// Names and lengths of functions, found by rustfmt's layout: a function ends at a brace in its own column.
fn functions(code: &[&str]) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (start, line) in code.iter().enumerate() {
        let Some(at) = line.find("fn ") else { continue };
        let trimmed = line.trim_start();
        let declares =
            trimmed.starts_with("fn ") || trimmed.starts_with("pub") || trimmed.starts_with("async fn ");
        if !declares || trimmed.ends_with(';') || (at > 0 && !line[..at].ends_with(' ')) {
            continue;
        }
        let indent = line.len() - trimmed.len();
        let end = format!("{}}}", " ".repeat(indent));
        let name = line[at + 3..].split(['(', '<']).next().unwrap_or_default().to_owned();
        if let Some(length) = code[start..].iter().position(|l| *l == end) {
            found.push((name, length + 1));
        }
    }
    found
}
