//! Building images from a directory.

mod common;

use common::{contents, open};
use cumulet_images::{BuildOptions, ImageError, ImageStore};
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().expect("parent")).expect("directory");
    std::fs::write(path, text).expect("write");
}

const HELLO: &str = r#"
name: hello
version: "1"
files:
  ./rootfs: /
  ./conf/app.toml: /etc/app/
entrypoint: ["/bin/hello"]
cmd: ["--port", "8080"]
env: {PATH: /bin, B: "2", A: "1"}
user: "1000"
workdir: /srv
expose: [8080, 53/udp]
labels: {title: hello}
"#;

fn sources(dir: &Path) {
    write(dir, "cumulet.yaml", HELLO);
    write(dir, "rootfs/bin/hello", "#!/bin/sh\n");
    std::fs::set_permissions(dir.join("rootfs/bin/hello"), Permissions::from_mode(0o711)).expect("mode");
    write(dir, "rootfs/share/text", "text");
    std::fs::set_permissions(dir.join("rootfs/share/text"), Permissions::from_mode(0o600)).expect("mode");
    write(dir, "rootfs/share/backup~", "no");
    write(dir, "rootfs/cache/x", "no");
    write(dir, "conf/app.toml", "a = 1");
    write(dir, ".cumuletignore", "*~\ncache/\n");
    symlink("bin/hello", dir.join("rootfs/run")).expect("symlink");
    symlink("/nowhere", dir.join("rootfs/dangling")).expect("symlink");
}

fn build(store: &ImageStore, dir: &Path) -> Result<cumulet_images::BuiltImage, ImageError> {
    store.build(dir, &BuildOptions::default())
}

#[test]
fn the_image_is_what_the_description_says() {
    let (dir, state) = (tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory"));
    sources(dir.path());
    let store = open(state.path());
    let built = build(&store, dir.path()).expect("build");
    assert_eq!(built.reference.short(), "hello:1");
    let image = store.resolve("hello:1").expect("resolve");
    assert_eq!((&image.digest, image.size_bytes), (&built.digest, built.size_bytes));
    assert_eq!(image.config.entrypoint, ["/bin/hello"]);
    assert_eq!(image.config.cmd, ["--port", "8080"]);
    assert_eq!(image.config.env, ["A=1", "B=2", "PATH=/bin"]);
    assert_eq!((image.config.user.as_str(), image.config.workdir.as_str()), ("1000", "/srv"));
    assert_eq!(image.config.exposed, ["53/udp", "8080/tcp"]);
    let [root] = &image.layers[..] else { panic!("one layer") };
    let expected =
        ["bin", "bin/hello", "dangling", "etc", "etc/app", "etc/app/app.toml", "run", "share", "share/text"];
    assert_eq!(contents(root), expected);
    assert_eq!(built.entries, expected.len());
    let at = |name: &str| std::fs::symlink_metadata(root.join(name)).expect(name);
    assert_eq!((at("bin/hello").mode() & 0o7777, at("share/text").mode() & 0o7777), (0o755, 0o644));
    assert_eq!((at("bin/hello").uid(), at("bin/hello").mtime()), (0, 0));
    assert_eq!(std::fs::read_link(root.join("run")).expect("link"), Path::new("bin/hello"));
    assert!(store.verify().expect("verify").is_empty());
}

#[test]
fn the_same_inputs_give_the_same_digest() {
    let digest = |epoch: i64, change: &dyn Fn(&Path)| {
        let (dir, state) = (tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory"));
        sources(dir.path());
        change(dir.path());
        let options = BuildOptions { source_date_epoch: epoch, ..BuildOptions::default() };
        open(state.path()).build(dir.path(), &options).expect("build").digest
    };
    let first = digest(0, &|_| {});
    assert_eq!(digest(0, &|_| {}), first);
    assert_eq!(digest(0, &|dir| write(dir, "rootfs/share/other~", "ignored")), first);
    assert_eq!(digest(0, &|dir| write(dir, "outside", "not named")), first);
    let chmod = |dir: &Path| {
        std::fs::set_permissions(dir.join("rootfs/share/text"), Permissions::from_mode(0o664)).expect("mode");
    };
    assert_eq!(digest(0, &chmod), first, "the umask of a checkout does not matter");
    assert_ne!(digest(0, &|dir| write(dir, "rootfs/share/text", "changed")), first);
    assert_ne!(digest(86400, &|_| {}), first);
    assert_eq!(first, digest(0, &|dir| write(dir, "cumulet.yaml", &format!("# a comment\n{HELLO}"))));
}

#[test]
fn an_image_can_build_on_another() {
    let state = tempfile::tempdir().expect("directory");
    let store = open(state.path());
    let base = tempfile::tempdir().expect("directory");
    sources(base.path());
    build(&store, base.path()).expect("base");
    let dir = tempfile::tempdir().expect("directory");
    write(dir.path(), "app", "binary");
    write(
        dir.path(),
        "cumulet.yaml",
        "name: localhost/app\nversion: 2\nbase: hello:1\nfiles: {app: /opt/renamed}\nentrypoint: [/opt/renamed]\nenv: {B: new}\n",
    );
    build(&store, dir.path()).expect("build");
    let image = store.resolve("localhost/app:2").expect("resolve");
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.layers[0], store.resolve("hello:1").expect("base").layers[0]);
    assert_eq!(std::fs::read(image.layers[1].join("opt/renamed")).expect("read"), b"binary");
    assert_eq!(image.config.env, ["A=1", "B=new", "PATH=/bin"]);
    assert_eq!((image.config.cmd.len(), image.config.user.as_str()), (0, "1000"));
    assert!(matches!(store.resolve("app:2"), Err(ImageError::NotFound { .. })));
    store.remove("hello:1").expect("remove");
    store.prune(&[]).expect("prune");
    assert!(store.verify().expect("verify").is_empty(), "the base's layer is still needed");
}

#[test]
fn mistakes_are_explained_and_leave_nothing() {
    let check = |files: &str, prepare: &dyn Fn(&Path), expected: &str| {
        let (dir, state) = (tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory"));
        write(dir.path(), "cumulet.yaml", &format!("name: a\nversion: \"1\"\n{files}\n"));
        write(dir.path(), "there", "x");
        prepare(dir.path());
        let store = open(state.path());
        let before = contents(state.path());
        let error = build(&store, dir.path()).expect_err(files).to_string();
        assert!(error.contains(expected), "{files}\n got: {error}\nwant: {expected}");
        assert_eq!(contents(state.path()), before);
    };
    let nothing = |_: &Path| {};
    check("files: {../x: /x}", &nothing, "../x: only files below");
    check("files: {/etc/passwd: /x}", &nothing, "/etc/passwd: only files below");
    check("files: {a/../../x: /x}", &nothing, "only files below");
    check("files: {missing: /x}", &nothing, "missing: No such file");
    check("files: {there: x}", &nothing, "must begin with \"/\"");
    check("files: {there: /a/../../x}", &nothing, "\"..\" is not allowed");
    check(
        "files: {link/passwd: /x}",
        &|dir| symlink("/etc", dir.join("link")).expect("link"),
        "only files below",
    );
    check("files: {there: /x, ./there: /x}", &nothing, "two things want to be /x");
    check("files: {there: /x, ./there: /x/y}", &nothing, "two things want to be /x");
    check("base: nothing:1", &nothing, "base: image \"nothing:1\" is not present");
    check(
        "entripoint: []",
        &nothing,
        "cumulet.yaml:3:1: unknown key \"entripoint\": did you mean \"entrypoint\"?",
    );
    let fifo =
        |dir: &Path| nix::unistd::mkfifo(&dir.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    check("files: {pipe: /pipe}", &fifo, "only files, directories and links");
}
