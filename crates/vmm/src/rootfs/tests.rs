//! Images out of layers, read back through the tools of erofs.

use super::*;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

const DIGEST: &str = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn whiteout(path: &Path) {
    mknod(path, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).unwrap();
}

/// The image's contents as a directory.
fn extract(image: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let target = format!("--extract={}", dir.path().join("root").display());
    let output = Command::new("fsck.erofs").args([&target, &image.display().to_string()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    dir
}

#[test]
fn layers_are_merged_once() {
    let dir = tempfile::tempdir().unwrap();
    let (low, high) = (dir.path().join("low"), dir.path().join("high"));
    for layer in [&low, &high] {
        fs::create_dir_all(layer.join("etc")).unwrap();
    }
    fs::write(low.join("etc/kept"), "low").unwrap();
    fs::write(low.join("etc/changed"), "low").unwrap();
    fs::write(low.join("etc/removed"), "low").unwrap();
    fs::write(high.join("etc/changed"), "high").unwrap();
    whiteout(&high.join("etc/removed"));
    let images = dir.path().join("images");
    let layers = [low, high];
    let paths: Vec<PathBuf> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| build(&images, DIGEST, &layers).unwrap())).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(paths.windows(2).all(|pair| pair[0] == pair[1]));
    let image = &paths[0];
    let merged = extract(image);
    let read = |name: &str| fs::read_to_string(merged.path().join("root/etc").join(name)).ok();
    assert_eq!(read("kept").as_deref(), Some("low"));
    assert_eq!(read("changed").as_deref(), Some("high"));
    assert_eq!(read("removed"), None);
    let left: Vec<_> = fs::read_dir(&images).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 1, "{left:?}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&*images.to_string_lossy()));
}

#[test]
fn any_number_of_layers() {
    let dir = tempfile::tempdir().unwrap();
    let layers: Vec<PathBuf> = (0..120)
        .map(|n| {
            let layer = dir.path().join(format!("a-layer-with-a-rather-long-name-{n:064}"));
            fs::create_dir(&layer).unwrap();
            fs::write(layer.join("top"), n.to_string()).unwrap();
            layer
        })
        .collect();
    for (n, expected) in [(1, "0"), (120, "119")] {
        let image = build(&dir.path().join(n.to_string()), DIGEST, &layers[..n]).unwrap();
        let merged = extract(&image);
        assert_eq!(fs::read_to_string(merged.path().join("root/top")).unwrap(), expected, "{n} layers");
    }
    build(&dir.path().join("none"), DIGEST, &[]).unwrap();
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for (digest, layers, expected) in [
        ("sha256:../../etc/passwd", vec![], "digest"),
        ("", vec![], "digest"),
        (DIGEST, vec![dir.path().join("missing")], "missing"),
    ] {
        let error = build(dir.path(), digest, &layers).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name.to_string_lossy().ends_with(".lock")), "{left:?}");
    assert_eq!(serial(DIGEST), "00112233445566778899");
}
