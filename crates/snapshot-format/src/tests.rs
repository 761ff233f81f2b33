//! Whole templates on a disk: round trips, and everything that may be wrong with one.

use crate::compatibility::tests::sample;
use crate::envelope::{PRELUDE_BYTES, seal, table_bytes};
use crate::*;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const MIB: u64 = 1 << 20;
const STATE: &[u8] = b"what QEMU says of the devices";

fn description() -> Description {
    Description {
        created_us: 1_700_000_000_000_000,
        namespace: "shop".to_owned(),
        name: "petclinic".to_owned(),
        images: vec!["docker.io/library/petclinic:1".to_owned()],
        compatibility: sample(),
        guest: serde_json::json!({ "containers": ["web"] }),
    }
}

/// Guest memory of some MiB with data here and there, and what is written where.
fn memory(mib: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(mib * MIB).unwrap();
    file.write_all_at(b"first", 0).unwrap();
    file.write_all_at(&[0; 8192], 65536).unwrap();
    file.write_all_at(&[7; 3 * 4096], MIB - 4096).unwrap();
    file.write_all_at(b"last", mib * MIB - 4).unwrap();
    file
}

/// What of [`memory`] is not zero, in bytes.
const DATA: u64 = 5 * 4096;

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn make(dir: &Path, key: Key, mib: u64) -> Template {
    let mut writer = Writer::create(dir, key).unwrap();
    assert_eq!(writer.memory_from(&memory(mib)).unwrap(), DATA);
    writer.state(STATE).unwrap();
    writer.finish(description()).unwrap()
}

fn key() -> Key {
    Key::of([("test", &b"1"[..])])
}

/// A directory with one template of 3 MiB.
fn one() -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("snapshots");
    let template = make(&dir, key(), 3);
    (temp, template.path())
}

fn open(path: &Path) -> Result<Template, Error> {
    Template::open(path.parent().unwrap(), &key())
}

/// Opens and verifies in each way; the first error, which all must agree on.
fn refused(path: &Path) -> Error {
    match open(path) {
        Err(error) => error,
        Ok(template) => {
            let error = template.verify().expect_err("damage is found");
            let loaded = template.state().and_then(|_| template.load_memory(&tempfile::tempfile().unwrap()));
            assert_eq!(loaded.unwrap_err().to_string(), error.to_string());
            error
        }
    }
}

#[test]
fn round_trip() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("snapshots");
    for mib in [1, 3, 70] {
        let key = Key::of([("mib", &[mib as u8][..])]);
        // The smallest is cut: of what is around the end of the first MiB it has one page.
        let expected = if mib == 1 { 2 * 4096 } else { DATA };
        let mut writer = Writer::create(&dir, key).unwrap();
        let from = memory(mib.max(2));
        from.set_len(mib * MIB).unwrap();
        from.write_all_at(b"last", mib * MIB - 4).unwrap();
        let written = writer.memory_from(&from).unwrap();
        writer.state(STATE).unwrap();
        let template = writer.finish(description()).unwrap();
        assert_eq!(written, expected, "{mib} MiB");
        assert_eq!(template.header().description, description());
        assert_eq!((template.header().key, template.header().memory_bytes), (key, mib * MIB));
        assert_eq!(template.header().pages.nonzero_bytes, written);
        assert_eq!(template.state().unwrap(), STATE);
        let loaded = tempfile::tempfile().unwrap();
        assert_eq!(template.load_memory(&loaded).unwrap(), written);
        assert!(contents(&loaded) == contents(&from), "{mib} MiB");
        assert!(contents(template.memory()) == contents(&from), "can be mapped as it is");
        assert!(template.memory().metadata().unwrap().blocks() * 512 <= written + 65536);
        template.verify().unwrap();
        let again = template.load_memory(&loaded).unwrap_err().to_string();
        assert!(again.contains("empty file"), "{again}");
    }
    assert_eq!(list(&dir).unwrap().len(), 3);
}

#[test]
fn only_their_owner_may_read_them() {
    let (_temp, path) = one();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o700));
    assert_eq!((mode(&path.join("template")), mode(&path.join("memory"))), (0o600, 0o600));
    fs::set_permissions(path.join("memory"), fs::Permissions::from_mode(0o622)).unwrap();
    assert!(refused(&path).to_string().contains("others may write"));
}

#[test]
fn the_first_of_a_key_stays() {
    let (_temp, path) = one();
    let inode = fs::metadata(&path).unwrap().ino();
    let dir = path.parent().unwrap();
    let mut writer = Writer::create(dir, key()).unwrap();
    writer.memory_from(&memory(4)).unwrap();
    writer.state(b"other").unwrap();
    let kept = writer.finish(description()).unwrap();
    assert_eq!((kept.header().memory_bytes, fs::metadata(&path).unwrap().ino()), (3 * MIB, inode));
    // A broken one is replaced.
    fs::write(path.join("template"), "nothing").unwrap();
    let made = make(dir, key(), 4);
    assert_eq!(made.header().memory_bytes, 4 * MIB);
    assert_eq!(fs::read_dir(dir).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn another_takes_its_place_whole_or_not_at_all() {
    let temp = tempfile::tempdir().unwrap();
    for mib in [3, 4, 5] {
        let mut writer = Writer::create(temp.path(), key()).unwrap();
        writer.memory_from(&memory(mib)).unwrap();
        writer.state(STATE).unwrap();
        let template = writer.replace(description()).unwrap();
        assert_eq!(template.header().memory_bytes, mib * MIB);
        template.verify().unwrap();
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1, "nothing else is left");
    }
    let mut stopped = Writer::create(temp.path(), key()).unwrap();
    stopped.memory_from(&memory(1)).unwrap();
    assert!(stopped.replace(description()).is_err(), "its state is missing");
    assert_eq!(Template::open(temp.path(), &key()).unwrap().header().memory_bytes, 5 * MIB);
}

#[test]
fn many_writers_of_one_key() {
    let temp = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| make(temp.path(), key(), 3).verify().unwrap());
            scope.spawn(|| clean(temp.path()).unwrap());
        }
    });
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
}

#[test]
fn parts_are_not_forgotten() {
    let temp = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(temp.path(), key()).unwrap();
    writer.state(STATE).unwrap();
    assert!(writer.finish(description()).unwrap_err().to_string().contains("without its memory"));
    let mut writer = Writer::create(temp.path(), key()).unwrap();
    writer.memory_from(&memory(2)).unwrap();
    assert!(writer.state(&vec![0; MAX_STATE_BYTES + 1]).is_err());
    assert!(writer.finish(description()).unwrap_err().to_string().contains("without its device state"));
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0, "nothing is left");
}

#[test]
fn memory_filled_in_place_has_the_same_checksums() {
    let (temp, path) = one();
    let mut writer = Writer::create(&temp.path().join("other"), key()).unwrap();
    let from = memory(3);
    let to = writer.memory_file(3 * MIB).unwrap();
    // Zeroes that were written out are no data.
    to.write_all_at(&contents(&from), 0).unwrap();
    assert_eq!(writer.memory_in_place().unwrap(), DATA);
    writer.state(STATE).unwrap();
    let template = writer.finish(description()).unwrap();
    template.verify().unwrap();
    assert_eq!(template.memory_sum(), open(&path).unwrap().memory_sum());
}

#[test]
fn every_truncation_is_found() {
    let (_temp, path) = one();
    let check = |file: &str, length: u64| {
        let bytes = fs::read(path.join(file)).unwrap();
        OpenOptions::new().write(true).open(path.join(file)).unwrap().set_len(length).unwrap();
        let error = open(&path).expect_err("the length shows without reading");
        assert!(error.is_damage(), "{file} of {length} bytes: {error}");
        fs::write(path.join(file), bytes).unwrap();
    };
    let whole = fs::metadata(path.join("template")).unwrap().len();
    (0..whole).step_by(7).chain([111, 112, 113, whole - 1, whole + 1]).for_each(|n| check("template", n));
    for length in [0, 1, MIB, 3 * MIB - 4096, 3 * MIB - 1, 3 * MIB + 1, 4 * MIB] {
        check("memory", length);
    }
    open(&path).unwrap().verify().unwrap();
}

#[test]
fn every_flipped_bit_is_found() {
    let (_temp, path) = one();
    let template = open(&path).unwrap();
    let state_at = fs::metadata(path.join("template")).unwrap().len() as usize - STATE.len();
    let table_at = state_at - table_bytes(template.header());
    let check = |file: &str, at: usize, words: &str| {
        let file = OpenOptions::new().read(true).write(true).open(path.join(file)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at as u64).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at as u64).unwrap();
        let said = refused(&path).to_string();
        assert!(said.contains(words), "byte {at}: {said}");
        file.write_all_at(&byte, at as u64).unwrap();
    };
    check("template", 0, "is no template");
    check("template", 8, "newer version");
    check("template", 12, "damaged");
    for at in [16, 48, 80, PRELUDE_BYTES, table_at - 1] {
        check("template", at, "the header is damaged");
    }
    check("template", table_at, "the table of checksums is damaged");
    check("template", state_at - 1, "the table of checksums is damaged");
    check("template", state_at, "the device state is damaged");
    for at in [0, 4096, MIB as usize - 4096, MIB as usize - 1] {
        check("memory", at, "chunk 0 (1 MiB from byte 0) is damaged");
    }
    check("memory", MIB as usize, "chunk 1 (1 MiB from byte 1048576)");
    check("memory", 2 * MIB as usize + 5, "chunk 2");
    open(&path).unwrap().verify().unwrap();
}

#[test]
fn the_first_damaged_chunk_is_named_whoever_reads_it() {
    let temp = tempfile::tempdir().unwrap();
    let template = make(temp.path(), key(), 100);
    let file = OpenOptions::new().write(true).open(template.path().join("memory")).unwrap();
    for chunk in [40, 41, 99] {
        file.write_all_at(b"x", chunk * MIB + 9).unwrap();
    }
    for _ in 0..10 {
        assert!(template.verify().unwrap_err().to_string().contains("chunk 40"));
    }
}

#[test]
fn other_versions_and_keys() {
    let (_temp, path) = one();
    let change = |at: usize, bytes: &[u8]| {
        let mut text = fs::read(path.join("template")).unwrap();
        text[at..at + bytes.len()].copy_from_slice(bytes);
        seal(&mut text);
        fs::write(path.join("template"), text).unwrap();
        refused(&path).to_string()
    };
    assert!(change(8, &2u32.to_le_bytes()).contains("a newer version of this program (format 2"));
    assert!(change(8, &0u32.to_le_bytes()).contains("an older version of this program (format 0"));
    assert!(change(8, &1u32.to_le_bytes()[..0]).contains("older"));
    let (_temp, path) = one();
    let other = Key([9; 32]);
    let dir = path.parent().unwrap();
    fs::rename(&path, dir.join(other.to_string())).unwrap();
    let said = Template::open(dir, &other).unwrap_err().to_string();
    assert!(said.contains(&key().to_string()) && said.contains("moved"), "{said}");
    assert!(matches!(open(&path), Err(Error::NotFound { .. })));
}

#[test]
fn what_is_no_file_is_not_opened() {
    let check = |name: &str, put: &dyn Fn(&Path), words: &str| {
        let (temp, path) = one();
        let target = path.join(name);
        let kept = temp.path().join("kept");
        fs::rename(&target, &kept).unwrap();
        put(&target);
        let said = refused(&path).to_string();
        assert!(said.contains(words), "{name}: {said}");
        remove(path.parent().unwrap(), &key()).unwrap();
        assert!(kept.exists() && !path.exists());
    };
    for name in ["template", "memory"] {
        check(name, &|target| symlink("../../kept", target).unwrap(), "is a link");
        check(name, &|target| fs::create_dir(target).unwrap(), "not an ordinary file");
        check(name, &|target| mkfifo(target), "not an ordinary file");
        check(name, &|_| {}, "is missing");
    }
    let (temp, path) = one();
    let kept = temp.path().join("kept");
    fs::rename(&path, &kept).unwrap();
    symlink(&kept, &path).unwrap();
    assert!(refused(&path).to_string().contains("not a directory"));
    remove(path.parent().unwrap(), &key()).unwrap();
    assert!(kept.join("memory").exists(), "only the link is removed");
}

fn mkfifo(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
}

#[test]
fn listed_used_removed() {
    let (_temp, path) = one();
    let dir = path.parent().unwrap();
    fs::create_dir(dir.join("2".repeat(64))).unwrap();
    fs::create_dir(dir.join("something")).unwrap();
    sample().publish(dir).unwrap();
    let listed = list(dir).unwrap();
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().any(|one| matches!(one, Err((Key([0x22, ..]), Error::Foreign { .. })))));
    let template = open(&path).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_234_567);
    template.touch(time).unwrap();
    let usage = open(&path).unwrap().usage().unwrap();
    assert_eq!((usage.last_used, usage.key), (time, key()));
    assert!((DATA..DATA + 131_072).contains(&usage.disk_bytes), "{usage:?}");
    template.remove().unwrap();
    assert!(matches!(template.remove(), Err(Error::NotFound { .. })));
    // Who has it open can go on with it.
    template.load_memory(&tempfile::tempfile().unwrap()).unwrap();
    assert_eq!(template.state().unwrap(), STATE);
    remove(dir, &Key([0x22; 32])).unwrap();
    assert_eq!(list(dir).unwrap().len(), 0);
}

#[test]
fn only_what_the_dead_left_is_cleaned() {
    let (_temp, path) = one();
    let dir = path.parent().unwrap();
    let mut alive = Writer::create(dir, Key([1; 32])).unwrap();
    let dead = dir.join(format!(".{}.0123.partial", Key([2; 32])));
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("memory"), "half").unwrap();
    fs::create_dir(dir.join(format!(".{}.0123.removed", Key([3; 32])))).unwrap();
    fs::create_dir(dir.join(".something.partial")).unwrap();
    assert_eq!(clean(dir).unwrap(), 2);
    assert_eq!(clean(dir).unwrap(), 0);
    alive.memory_from(&memory(2)).unwrap();
    alive.state(STATE).unwrap();
    alive.finish(description()).unwrap();
    open(&path).unwrap();
    assert_eq!(list(dir).unwrap().len(), 2);
    assert_eq!(clean(&dir.join("nowhere")).unwrap(), 0);
}

/// Parts of a memory, and where they belong.
type Parts = Vec<(u64, Vec<u8>)>;

fn unpack(dir: &Path, config: &Config, state: &[u8], parts: &Parts) -> Result<Template, Error> {
    let config = Config::parse(&serde_json::to_vec(config).unwrap())?;
    let mut unpacker = Unpacker::begin(dir, config)?;
    for (offset, part) in parts {
        unpacker.part(*offset, &part[..])?;
    }
    unpacker.state(state)?;
    unpacker.finish()
}

#[test]
fn taken_apart_and_put_together() {
    let temp = tempfile::tempdir().unwrap();
    let template = make(&temp.path().join("from"), key(), 70);
    let packed = template.pack().unwrap();
    let (config, state) = (packed.config(), packed.state().unwrap());
    let read = |offset: u64| {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut packed.part(offset).unwrap(), &mut bytes).unwrap();
        (offset, bytes)
    };
    let parts: Parts = packed.parts().into_iter().map(read).collect();
    let offsets: Vec<u64> = parts.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, [0, 64 * MIB], "three parts have nothing but zeroes");
    assert!(parts.iter().all(|(_, bytes)| bytes.len() < 4096), "zeroes and repetitions take up nothing");
    let to = temp.path().join("to");
    let again = unpack(&to, &config, &state, &parts).unwrap();
    again.verify().unwrap();
    assert_eq!((again.header(), again.memory_sum()), (template.header(), template.memory_sum()));

    let check = |words: &str, change: &dyn Fn(&mut Config, &mut Vec<u8>, &mut Parts)| {
        let (mut config, mut state, mut parts) = (config.clone(), state.clone(), parts.clone());
        change(&mut config, &mut state, &mut parts);
        let dir = temp.path().join("refused");
        let said = unpack(&dir, &config, &state, &parts).unwrap_err().to_string();
        assert!(said.contains(words), "{words}: {said}");
        assert_eq!(list(&dir).unwrap().len(), 0);
        assert!(fs::read_dir(&dir).map_or(true, |mut left| left.next().is_none()), "nothing is left");
    };
    check("number of its pages", &|_, _, parts| drop(parts.pop()));
    check("its memory is", &|config, _, _| config.memory_digest.push('0'));
    check("its memory is", &|_, _, parts| {
        let other = [vec![0; 5 * 32], [&[0; 31][..], &[0x80]].concat(), vec![1; 4096]].concat();
        parts[1].1 = zstd::bulk::compress(&other, 1).unwrap();
    });
    check("its device state is", &|_, state, _| {
        *state = zstd::bulk::compress(&[7; STATE.len()], 1).unwrap();
    });
    check("device state does not have", &|_, state, _| *state = zstd::bulk::compress(b"x", 1).unwrap());
    check("device state does not have", &|_, state, _| {
        *state = zstd::bulk::compress(&vec![0; 100 << 20], 1).unwrap();
    });
    check("more pages than it says", &|_, _, parts| {
        let full = [&[0xff; 32][..], &vec![1; CHUNK_BYTES]].concat().repeat(16);
        parts[0].1 = zstd::bulk::compress(&full, 1).unwrap();
    });
    check("cannot be read", &|_, _, parts| parts[0].1.truncate(40));
    check("cannot be read", &|_, _, parts| parts[0].1 = zstd::bulk::compress(&[0; 100], 1).unwrap());
    check("too long", &|_, _, parts| parts[0].1 = zstd::bulk::compress(&[0; 32 * 17], 1).unwrap());
    check("beyond its memory", &|config, _, parts| {
        config.header.memory_bytes = 70 * MIB - 4096;
        parts[1].1 = read(64 * MIB).1;
    });
    check("no part", &|_, _, parts| parts[1].0 = 80 * MIB);
    check("no part", &|_, _, parts| parts[1].0 = 4096);
    check("parts cover", &|config, _, _| config.part_bytes = 0);
    check("multiple", &|config, _, _| config.header.memory_bytes = 4097);
    check("more pages than memory", &|config, _, _| config.header.pages.nonzero_bytes = u64::MAX);
}

#[test]
fn damage_is_not_packed() {
    let (_temp, path) = one();
    let file = OpenOptions::new().write(true).open(path.join("memory")).unwrap();
    file.write_all_at(b"x", MIB + 9).unwrap();
    let template = open(&path).unwrap();
    let packed = template.pack().unwrap();
    let read = std::io::Read::read_to_end(&mut packed.part(0).unwrap(), &mut Vec::new());
    assert!(read.unwrap_err().to_string().contains("chunk 1"));
}

/// A small file system of its own.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path, options: &str) -> Self {
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some(options)).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let _disk = Disk::mount(temp.path(), "size=1m");
    let dir = temp.path().join("snapshots");
    let from = tempfile::tempfile().unwrap();
    from.write_all_at(&vec![7; 2 << 20], 0).unwrap();
    let mut writer = Writer::create(&dir, key()).unwrap();
    let full = |error: Error| {
        assert!(
            matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull)
        );
        assert!(!error.is_damage(), "it is no reason to remove a template");
    };
    full(writer.memory_from(&from).unwrap_err());
    // The memory fits, the rest does not.
    writer.memory_from(&memory(3)).unwrap();
    writer.state(&vec![7; 2 << 20]).unwrap();
    full(writer.finish(description()).unwrap_err());
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "nothing is left");
    make(&dir, key(), 3).verify().unwrap();
}
