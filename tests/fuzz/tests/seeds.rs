//! Replays every seed: what was once found, and at least one input of each shape.

use cumulet_fuzz::TARGETS;
use std::fs;
use std::path::{Path, PathBuf};

/// The entries of a directory, in order.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let list = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut found: Vec<PathBuf> = list.map(|entry| entry.expect("an entry").path()).collect();
    found.sort();
    found
}

fn seeds() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus-seeds")
}

#[test]
fn seeds_hold() {
    for (name, target) in TARGETS {
        let files = entries(&seeds().join(name));
        assert!(!files.is_empty(), "{name} has no seeds");
        for file in files {
            // Shown only when the test fails: the last line names the input.
            println!("{}", file.display());
            target(&fs::read(&file).unwrap());
        }
    }
}

#[test]
fn every_directory_has_a_target() {
    for dir in entries(&seeds()) {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        assert!(TARGETS.iter().any(|(target, _)| *target == name), "{name}");
    }
}
