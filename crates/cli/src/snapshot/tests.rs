//! Commands on a directory with templates, whole and broken.

use super::*;
use crate::args::{Format, SnapshotPrune};
use cumulet_snapshot_format::{Compatibility, Description, Writer};
use std::fs;
use std::time::{Duration, SystemTime};

pub(super) fn make(dir: &Path, key: Key, qemu: &str) -> Template {
    let mut writer = Writer::create(dir, key).unwrap();
    let memory = tempfile::tempfile().unwrap();
    memory.set_len(2 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&memory, &key.0, 4096).unwrap();
    writer.memory_from(&memory).unwrap();
    writer.state(b"devices").unwrap();
    let description = Description {
        created_us: 1_700_000_000_000_000,
        namespace: "shop".to_owned(),
        name: "petclinic".to_owned(),
        images: vec!["docker.io/library/petclinic:1@sha256:0".to_owned()],
        compatibility: Compatibility { qemu: qemu.to_owned(), vcpus: 2, ..Compatibility::default() },
        guest: serde_json::json!({ "containers": 1 }),
    };
    writer.finish(description).unwrap()
}

/// Two templates and a broken one.
fn three() -> (tempfile::TempDir, StateDir) {
    let temp = tempfile::tempdir().unwrap();
    let state = StateDir::new(temp.path()).unwrap();
    let dir = state.snapshots();
    make(&dir, Key([0x11; 32]), "8");
    let mut near = [0x11; 32];
    near[31] = 0x22;
    make(&dir, Key(near), "7");
    fs::create_dir(dir.join("3".repeat(64))).unwrap();
    (temp, state)
}

#[test]
fn names_by_their_first_digits() {
    let (_temp, state) = three();
    let dir = state.snapshots();
    let check = |text: &str, words: &str| {
        let said = find(&dir, text).map_or_else(|error| error.to_string(), |key| key.to_string());
        assert!(said.contains(words), "{text}: {said}");
    };
    check("3", &"3".repeat(64));
    check(&"1".repeat(64), &"1".repeat(64));
    check("1", "2 keys: 111111111111, 111111111111; give more digits");
    check("4", "snapshot ls");
    check("", "first digits");
    let said = find(&dir.join("nowhere"), "1").unwrap_err().to_string();
    assert!(said.contains("none at all"), "{said}");
}

#[test]
fn listed_with_what_fits() {
    let (_temp, state) = three();
    let dir = state.snapshots();
    for format in [Format::Table, Format::Wide, Format::Json, Format::Yaml, Format::Name] {
        list::list(&dir, format).unwrap();
    }
    let template = open(&dir, &"1".repeat(64)).unwrap();
    let check = |here: Option<&Compatibility>, expected: serde_json::Value| {
        let object = list::object(&template, here).unwrap();
        assert_eq!(object["fits"], expected);
        assert_eq!(object["created"], "2023-11-14T22:13:20Z");
        assert_eq!((&object["memoryBytes"], &object["nonzeroBytes"]), (&(2 << 20).into(), &4096.into()));
        object
    };
    check(None, serde_json::Value::Null);
    let here = Compatibility { qemu: "8".to_owned(), ..Compatibility::default() };
    check(Some(&here), true.into());
    let other = Compatibility { qemu: "9".to_owned(), ..here };
    assert_eq!(check(Some(&other), false.into())["reason"], "made with QEMU 8, here it is 9");
    other.publish(&dir).unwrap();
    list::list(&dir, Format::Table).unwrap();
    list::inspect(&dir, &["1".repeat(64)], None).unwrap();
    assert!(list::inspect(&dir, &["3".to_owned()], None).is_err(), "it is broken");
    list::list(&dir.join("nowhere"), Format::Table).unwrap();
}

#[test]
fn removed_and_pruned() {
    let (_temp, state) = three();
    let dir = state.snapshots();
    let prune = |options: SnapshotPrune| prune::prune(&dir, &options).unwrap();
    let plain = SnapshotPrune { all: false, older_than: None, budget: None };
    let said = run(&state, Task::Verify { keys: Vec::new() }).unwrap_err().to_string();
    assert!(said.contains("1 of 3"), "{said}");
    prune(plain.clone());
    assert_eq!(keys(&dir).unwrap().len(), 2, "only what is broken goes");
    run(&state, Task::Verify { keys: Vec::new() }).unwrap();
    prune(SnapshotPrune { older_than: Some("1h".to_owned()), ..plain.clone() });
    assert_eq!(keys(&dir).unwrap().len(), 2);
    let old = open(&dir, &"1".repeat(64)).unwrap();
    old.touch(SystemTime::now() - Duration::from_secs(7200)).unwrap();
    prune(SnapshotPrune { older_than: Some("1h".to_owned()), ..plain.clone() });
    assert_eq!(keys(&dir).unwrap().len(), 1);
    assert!(rm(&dir, &["1".to_owned(), "4".to_owned()]).is_err());
    assert_eq!(keys(&dir).unwrap().len(), 1, "all or nothing of what is named");
    rm(&dir, &["1".to_owned()]).unwrap();
    make(&dir, Key([5; 32]), "8");
    prune(SnapshotPrune { budget: Some("1Mi".to_owned()), ..plain.clone() });
    assert_eq!(keys(&dir).unwrap().len(), 1);
    prune(SnapshotPrune { all: true, ..plain });
    assert!(keys(&dir).unwrap().is_empty());
}

#[test]
fn ages() {
    let then = SystemTime::UNIX_EPOCH;
    for (seconds, text) in [(0, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (200_000, "2d")] {
        assert_eq!(list::age(then + Duration::from_secs(seconds), then), text);
    }
    assert_eq!(list::age(then, then + Duration::from_secs(5)), "0s", "clocks may differ");
}
