//! Locks, damaged files, full disks, slow watchers, many committers.

use cumulet_store::{
    Body, HistoryError, Key, Op, OpenError, Range, ResourceTag, Store, StoreError, StoreOptions,
};
use std::path::Path;
use std::time::{Duration, Instant};

fn open(dir: &Path) -> Result<Store, OpenError> {
    Store::open(dir, &StoreOptions::default())
}

fn tag() -> ResourceTag {
    ResourceTag::new("things")
}

fn create(name: &str, size: usize) -> Op {
    Op::Create { key: Key::new(&tag(), "ns", name), body: Body::new("b".repeat(size), ""), index: Vec::new() }
}

fn update(name: &str, expected: Option<u64>) -> Op {
    Op::Update { key: Key::new(&tag(), "ns", name), expected, body: Body::new("u", ""), index: Vec::new() }
}

#[tokio::test]
async fn a_second_process_is_told_who_holds_the_directory() {
    let dir = tempfile::tempdir().expect("directory");
    let store = open(dir.path()).expect("open");
    match open(dir.path()).err().expect("locked") {
        OpenError::Locked { pid, .. } => assert_eq!(pid, Some(std::process::id())),
        other => panic!("{other}"),
    }
    store.close().await;
    assert_eq!(store.commit(vec![create("a", 1)]).await.err(), Some(StoreError::Closed));
    open(dir.path()).expect("free again");
}

#[tokio::test]
async fn damaged_files_are_reported_and_left_alone() {
    let healthy = {
        let dir = tempfile::tempdir().expect("directory");
        let store = open(dir.path()).expect("open");
        for i in 0..50 {
            store.commit(vec![create(&i.to_string(), 2000)]).await.expect("commit");
        }
        store.close().await;
        std::fs::read(dir.path().join("objects.redb")).expect("read")
    };
    let check = |name: &str, bytes: Vec<u8>| {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("objects.redb");
        std::fs::write(&path, &bytes).expect("write");
        match open(dir.path()).err() {
            Some(error @ OpenError::Corrupt { .. }) => {
                assert!(error.to_string().contains("objects.redb is damaged"), "{name}: {error}");
            }
            Some(other) => panic!("{name}: {other:?}"),
            None => panic!("{name}: opened"),
        }
        assert!(path.exists(), "{name}: the file is gone");
        assert_eq!(std::fs::metadata(&path).expect("metadata").len(), bytes.len() as u64, "{name}");
    };
    check("garbage", b"this is not a database at all".repeat(1000));
    check("empty", Vec::new());
    check("cut in half", healthy[..healthy.len() / 2].to_vec());
    check("first page only", healthy[..4096].to_vec());
    let mut zeroed = healthy.clone();
    zeroed[4096..].fill(0);
    check("zeroed behind the header", zeroed);
}

#[tokio::test]
async fn another_format_is_named() {
    let dir = tempfile::tempdir().expect("directory");
    open(dir.path()).expect("open").close().await;
    {
        let database = redb::Database::open(dir.path().join("objects.redb")).expect("open");
        let transaction = database.begin_write().expect("begin");
        let table: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
        transaction.open_table(table).expect("table").insert("format", 99).expect("insert");
        transaction.commit().expect("commit");
    }
    assert!(matches!(open(dir.path()).err(), Some(OpenError::Format { found: 99, supported: 1, .. })));
}

#[tokio::test]
async fn unusable_keys_are_refused() {
    let dir = tempfile::tempdir().expect("directory");
    let store = open(dir.path()).expect("open");
    for name in ["", "nul\0byte"] {
        let error = store.commit(vec![create(name, 1)]).await.err();
        assert!(matches!(error, Some(StoreError::InvalidKey { .. })), "{name:?}: {error:?}");
    }
    assert_eq!(store.commit(Vec::new()).await.expect("nothing to do").revision, store.revision());
}

/// Runs with a small file system of its own, which nobody else sees.
#[test]
fn a_full_disk_fails_commits_and_nothing_else() {
    let run = || {
        use nix::mount::{MsFlags, mount};
        use nix::sched::{CloneFlags, unshare};
        unshare(CloneFlags::CLONE_NEWNS).expect("own mounts");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("private");
        let dir = tempfile::tempdir().expect("directory");
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=6m")).expect("tmpfs");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(fill_and_recover(dir.path()));
        nix::mount::umount(dir.path()).expect("umount");
    };
    std::thread::spawn(run).join().expect("thread");
}

async fn fill_and_recover(dir: &Path) {
    let ballast = dir.join("ballast");
    std::fs::write(&ballast, vec![1; 2 << 20]).expect("ballast");
    let store = open(dir).expect("open");
    let mut acknowledged = 0;
    let error = loop {
        match store.commit(vec![create(&format!("{acknowledged:05}"), 20_000)]).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 1000, "the disk does not fill");
    };
    assert!(matches!(error, StoreError::DiskFull { .. }), "{error}");
    assert!(acknowledged > 10, "only {acknowledged} fitted");
    let revision = store.revision();
    let count = |store: &Store| store.list(&tag(), &Range::default()).items.len();
    assert_eq!(count(&store), acknowledged);
    for _ in 0..3 {
        store.commit(vec![create("too-much", 500_000)]).await.expect_err("still full");
    }
    assert_eq!((store.revision(), count(&store)), (revision, acknowledged));

    std::fs::remove_file(&ballast).expect("make space");
    let committed = store.commit(vec![create("later", 20_000)]).await.expect("there is space again");
    assert_eq!(committed.revision, revision + 1);
    store.close().await;
    let store = open(dir).expect("reopen");
    assert_eq!((store.revision(), count(&store)), (revision + 1, acknowledged + 1));
    store.close().await;
}

#[tokio::test]
async fn slow_watchers_are_told_and_quick_ones_see_whole_commits() {
    let dir = tempfile::tempdir().expect("directory");
    let options = StoreOptions { history_events: 2000, ..StoreOptions::default() };
    let store = Store::open(dir.path(), &options).expect("open");
    let start = store.revision();
    let mut slow = store.watch(&tag(), start).expect("watch");
    let mut quick = store.watch(&tag(), start).expect("watch");
    for i in 0..500 {
        let ops = (0..3).map(|j| create(&format!("{i}-{j}"), 10)).collect();
        store.commit(ops).await.expect("commit");
    }
    let mut seen = 0;
    while seen < 1500 {
        let batch = quick.next_batch().await.expect("batch");
        assert_eq!(batch.events.len() % 3, 0, "a commit was torn");
        assert_eq!(batch.events.last().map(|event| event.revision()), Some(batch.revision));
        seen += batch.events.len();
    }
    for i in 500..700 {
        let ops = (0..3).map(|j| create(&format!("{i}-{j}"), 10)).collect();
        store.commit(ops).await.expect("commit");
    }
    let compacted = slow.next_batch().await.expect_err("too slow");
    assert!(matches!(compacted, HistoryError::Compacted { asked, .. } if asked == start));
    assert_eq!(quick.next_batch().await.expect("batch").events.len(), 513, "512 and the rest of a commit");
}

#[tokio::test]
async fn history_is_bounded_by_bytes_too() {
    let dir = tempfile::tempdir().expect("directory");
    let options = StoreOptions { history_bytes: 100_000, ..StoreOptions::default() };
    let store = Store::open(dir.path(), &options).expect("open");
    let start = store.revision();
    for i in 0..20 {
        store.commit(vec![create(&i.to_string(), 10_000)]).await.expect("commit");
    }
    assert!(matches!(store.watch(&tag(), start).err(), Some(HistoryError::Compacted { .. })));
    assert!(store.watch(&tag(), store.revision() - 8).is_ok());
}

#[tokio::test]
async fn a_quiet_watcher_learns_the_progress() {
    let dir = tempfile::tempdir().expect("directory");
    let store = open(dir.path()).expect("open");
    let mut quiet = store.watch(&ResourceTag::new("quiet"), store.revision()).expect("watch");
    let committed = store.commit(vec![create("a", 1)]).await.expect("commit");
    let batch = quiet.poll_batch().expect("progress");
    assert!(batch.events.is_empty());
    assert_eq!((batch.revision, quiet.reached()), (committed.revision, committed.revision));
}

#[tokio::test]
async fn waiting_for_a_revision() {
    let dir = tempfile::tempdir().expect("directory");
    let store = open(dir.path()).expect("open");
    let next = store.revision() + 1;
    assert!(!store.wait_revision(next, Instant::now() + Duration::from_millis(20)).await);
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.wait_revision(next, Instant::now() + Duration::from_secs(20)).await }
    });
    store.commit(vec![create("a", 1)]).await.expect("commit");
    assert!(waiting.await.expect("task"));
}

/// Every committer adds one to a shared counter by compare-and-swap; a watcher sees each value once, in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_updates_are_serialised() {
    const COMMITTERS: usize = 16;
    const EACH: usize = 25;
    let dir = tempfile::tempdir().expect("directory");
    let store = open(dir.path()).expect("open");
    let first = store.commit(vec![create("counter", 1)]).await.expect("create").revision;
    let mut watcher = store.watch(&tag(), first).expect("watch");
    let tasks: Vec<_> = (0..COMMITTERS)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let key = Key::new(&tag(), "ns", "counter");
                let mut done = 0;
                while done < EACH {
                    let current = store.get(&key).expect("it is there").revision;
                    match store.commit(vec![update("counter", Some(current))]).await {
                        Ok(committed) => {
                            assert!(store.get(&key).expect("it is there").revision >= committed.revision);
                            done += 1;
                        }
                        Err(StoreError::Conflict { expected, current, .. }) => assert!(current > expected),
                        Err(other) => panic!("{other}"),
                    }
                }
            })
        })
        .collect();
    let mut last = first;
    let mut seen = 0;
    while seen < COMMITTERS * EACH {
        for event in watcher.next_batch().await.expect("batch").events {
            let previous = event.previous.as_ref().expect("an update").revision;
            assert_eq!((previous, event.revision()), (last, last + 1));
            last = event.revision();
            seen += 1;
        }
    }
    for task in tasks {
        task.await.expect("task");
    }
    assert_eq!(store.revision(), last);
}
