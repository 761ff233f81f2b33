//! The command line: what it refuses and how, and its built-in client.

use cumulet_e2e::{Cloud, program};
use std::process::{Command, Output};

fn run(args: &[&str]) -> anyhow::Result<Output> {
    Ok(Command::new(program()).args(args).output()?)
}

fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn a_second_cloud_on_one_directory_is_refused() -> anyhow::Result<()> {
    let cloud = Cloud::start()?;
    let dir = cloud.dir().to_string_lossy().into_owned();
    for extra in [&["--detach"][..], &[]] {
        let out = run(&[&["--state-dir", &dir, "up"], extra].concat())?;
        assert_eq!(out.status.code(), Some(1));
        assert!(stderr(&out).contains("already runs"), "{}", stderr(&out));
    }
    // The one that runs is not disturbed.
    cloud.kubectl(&["get", "nodes"])?;
    cloud.finish()
}

#[test]
fn a_port_in_use_is_named() -> anyhow::Result<()> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let dir = tempfile::Builder::new().prefix("cumulet-test-").tempdir()?;
    let path = dir.path().to_string_lossy().into_owned();
    for detach in [true, false] {
        let mut args = vec!["--state-dir", &path, "up", "--api-listen", &address];
        args.extend(detach.then_some("--detach"));
        let out = run(&args)?;
        assert_eq!(out.status.code(), Some(1));
        let said = stderr(&out);
        assert!(said.contains(&address) && said.contains("--api-listen"), "{said}");
    }
    let down = run(&["--state-dir", &path, "down", "--purge"])?;
    assert!(down.status.success(), "{}", stderr(&down));
    Ok(())
}

#[test]
fn an_unreadable_state_file_loses_nothing() -> anyhow::Result<()> {
    let cloud = Cloud::start()?;
    cloud.kubectl(&["create", "configmap", "kept"])?;
    cloud.cumulet(&["down"])?;
    let store = std::fs::read_dir(cloud.dir())?
        .filter_map(Result::ok)
        .map(|e| e.path())
        .find(|p| p.to_string_lossy().contains("store") && p.is_file())
        .or_else(|| {
            let dir = cloud.dir().join("store");
            std::fs::read_dir(dir)
                .ok()?
                .filter_map(Result::ok)
                .map(|e| e.path())
                .find(|p| p.extension().is_some_and(|e| e == "redb"))
        });
    let store = store.ok_or_else(|| anyhow::anyhow!("no store file"))?;
    let good = std::fs::read(&store)?;
    std::fs::write(&store, b"not a store at all")?;
    let refused = cloud.up().unwrap_err().to_string();
    assert!(refused.contains(&store.to_string_lossy().into_owned()), "{refused}");
    assert_eq!(std::fs::read(&store)?, b"not a store at all", "the file was touched");
    std::fs::write(&store, good)?;
    cloud.up()?;
    cloud.kubectl(&["get", "configmap", "kept"])?;
    cloud.finish()
}

#[test]
fn images_in_and_out() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    let listed = cloud.cumulet(&["image", "ls"])?;
    assert!(listed.contains("hello") && listed.contains('1'), "{listed}");
    let archive = cloud.dir().join("hello.tar");
    let archive = archive.to_string_lossy();
    cloud.cumulet(&["image", "save", "hello:1", &archive])?;
    cloud.cumulet(&["image", "rm", "hello:1"])?;
    assert!(!cloud.cumulet(&["image", "ls"])?.contains("hello"));
    cloud.cumulet(&["image", "load", &archive])?;
    assert!(cloud.cumulet(&["image", "ls"])?.contains("hello"));
    cloud.cumulet(&["image", "verify"])?;
    // A damaged archive is refused and nothing of it stays.
    let mut bytes = std::fs::read(&*archive)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(&*archive, &bytes)?;
    cloud.cumulet(&["image", "rm", "hello:1"])?;
    cloud.cumulet(&["image", "prune"])?;
    assert!(cloud.cumulet(&["image", "load", &archive]).is_err());
    cloud.cumulet(&["image", "verify"])?;
    assert!(!cloud.cumulet(&["image", "ls"])?.contains("hello"));
    cloud.finish()
}

#[test]
fn the_built_in_client() -> anyhow::Result<()> {
    let cloud = Cloud::start()?;
    let file = cloud.dir().join("cm.yaml");
    std::fs::write(&file, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: '1', b: '2'}\n")?;
    let path = file.to_string_lossy();
    assert_eq!(cloud.cumulet(&["apply", "-f", &path])?, "configmap/c created\n");
    assert_eq!(cloud.cumulet(&["apply", "-f", &path])?, "configmap/c unchanged\n");
    std::fs::write(&file, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {b: '3'}\n")?;
    assert_eq!(cloud.cumulet(&["apply", "-f", &path])?, "configmap/c configured\n");
    assert_eq!(cloud.field("cm/c", ".data")?, r#"{"b":"3"}"#);
    assert!(cloud.cumulet(&["get", "cm"])?.starts_with("NAME"));
    assert_eq!(cloud.cumulet(&["get", "cm/c", "-o", "name"])?, "configmap/c\n");
    assert_eq!(cloud.cumulet(&["delete", "cm", "c"])?, "configmap/c deleted\n");
    assert!(cloud.cumulet(&["get", "cm", "c"]).unwrap_err().to_string().contains("not found"));
    let status = cloud.cumulet(&["status", "-o", "json"])?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    assert_eq!((&status["running"], &status["ready"]), (&true.into(), &true.into()));
    std::fs::remove_file(&file)?;
    cloud.finish()
}
