//! `kill -9` during imports and pruning: an image is there as a whole or not at all, and what is left behind is
//! cleaned up.

mod common;

use common::{Tar, contents, docker_archive, gzip, open};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const DIR: &str = "IMAGES_CRASH_DIR";
const ROUNDS: u64 = 25;

fn archive(i: usize) -> Vec<u8> {
    let layers: Vec<_> = (0..3)
        .map(|j| {
            let files = (0..30).fold(Tar::new(), |tar, k| {
                tar.file(&format!("dir{k}/file"), format!("{i} {j} {k} ").repeat(200).as_bytes())
            });
            files.finish()
        })
        .collect();
    gzip(&docker_archive(&format!("app:{i}"), &layers))
}

/// The process that is killed: loads images and tells when each is loaded.
#[test]
#[ignore = "is started by kill_leaves_whole_images"]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let store = open(&PathBuf::from(dir));
    for i in 0.. {
        store.load_from("burst", std::io::Cursor::new(archive(i % 40))).expect("load");
        // Something to prune each time: an image that has no name any more.
        let passing = 1_000_000 + i + usize::try_from(std::process::id()).expect("pid") * 1000;
        store.load_from("passing", std::io::Cursor::new(archive(passing))).expect("load");
        store.remove(&format!("app:{passing}")).expect("remove");
        let pruned = store.prune(&[]).expect("prune");
        assert!(!pruned.images.is_empty());
        std::io::stdout().write_all(format!("loaded {}\n", i % 40).as_bytes()).expect("write");
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the kill is to fall on another moment in every round")]
fn kill_leaves_whole_images() {
    let dir = tempfile::tempdir().expect("directory");
    let mut loaded = std::collections::BTreeSet::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().expect("exe"))
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("spawn");
        let lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let mut fresh = 0;
        for line in lines.map_while(Result::ok) {
            if let Some((_, i)) = line.split_once("loaded ") {
                loaded.insert(i.to_owned());
                fresh += 1;
            }
            if fresh == 2 {
                // Somewhere within the next imports and their pruning: a different place each round.
                std::thread::sleep(Duration::from_micros(round * 1400));
                child.kill().expect("kill");
                fresh += 1;
            }
        }
        child.wait().expect("wait");
        check(dir.path(), &loaded);
    }
}

fn check(dir: &Path, loaded: &std::collections::BTreeSet<String>) {
    let store = open(dir);
    assert!(contents(&dir.join("tmp")).is_empty(), "temporary files of a dead process stay");
    for i in loaded {
        store.resolve(&format!("app:{i}")).expect("acknowledged images are there");
    }
    assert_eq!(store.verify().expect("verify"), Vec::<String>::new());
}
