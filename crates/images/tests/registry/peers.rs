//! Other people's programs: skopeo against the endpoint, the client against Debian's docker-registry. Each runs when
//! the environment names the program: `CUMULET_SKOPEO`, `CUMULET_DOCKER_REGISTRY`.

use crate::common::load;
use crate::support::{Peer, Registry, ask, image, image_packed};
use cumulet_images::{Keyring, Reference, RegistryError};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

fn program(variable: &str) -> Option<PathBuf> {
    let set = std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    if set.is_none() {
        eprintln!("{variable} is not set: not tried");
    }
    set
}

async fn run(mut command: Command) -> Output {
    let ran = tokio::task::spawn_blocking(move || command.output().expect("run")).await.expect("wait");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    ran
}

fn skopeo(program: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.arg("--insecure-policy").args(words);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_and_the_endpoint() {
    let Some(program) = program("CUMULET_SKOPEO") else { return };
    let registry = Registry::start().await;
    let dir = tempfile::tempdir().expect("directory");
    let archive = dir.path().join("image.tar");
    std::fs::write(&archive, image(&[10_000, 2_000_000]).archive()).expect("write");
    let source = format!("oci-archive:{}", archive.display());
    let target = format!("docker://{}", registry.name("team/app:1"));
    run(skopeo(&program, &["copy", "--dest-tls-verify=false", &source, &target])).await;
    let image = registry.store.resolve(&registry.name("team/app:1")).expect("what is pushed can be run");
    assert_eq!(image.layers.len(), 2);

    let inspected = run(skopeo(&program, &["inspect", "--tls-verify=false", &target])).await;
    let inspected: serde_json::Value = serde_json::from_slice(&inspected.stdout).expect("JSON");
    assert_eq!(inspected["Digest"], image.digest.as_str());
    let tags = format!("docker://{}", registry.name("team/app"));
    let tags = run(skopeo(&program, &["list-tags", "--tls-verify=false", &tags])).await;
    assert!(String::from_utf8_lossy(&tags.stdout).contains("\"1\""));

    // Docker's own format, and a copy between two repositories.
    let second = format!("docker://{}", registry.name("other/app:2"));
    let both = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    let words = [&["copy", "--format", "v2s2"], &both[..], &[&target, &second]].concat();
    run(skopeo(&program, &words)).await;
    registry.store.resolve(&registry.name("other/app:2")).expect("Docker's format can be run");
    let out = dir.path().join("out");
    let out = format!("dir:{}", out.display());
    run(skopeo(&program, &["copy", "--src-tls-verify=false", &second, &out])).await;
    run(skopeo(&program, &["delete", "--tls-verify=false", &second])).await;
    assert!(registry.store.resolve(&registry.name("other/app:2")).is_err());
    assert_eq!(registry.store.verify().expect("verify"), Vec::<String>::new());
}

/// A docker-registry, gone when dropped.
struct Docker {
    child: Child,
    host: String,
    _dir: tempfile::TempDir,
}

impl Drop for Docker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Docker {
    async fn start(program: &Path, more: &str) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        // A port that was free a moment ago.
        let (listener, host) = crate::support::listen().await;
        drop(listener);
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  \
             delete: {{enabled: true}}\nhttp: {{addr: \"{host}\"}}\n{more}",
            dir.path().join("data").display()
        );
        let path = dir.path().join("config.yml");
        std::fs::write(&path, config).expect("write");
        let child = Command::new(program)
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start");
        let start = std::time::Instant::now();
        while tokio::net::TcpStream::connect(&host).await.is_err() {
            assert!(start.elapsed().as_secs() < 30, "docker-registry does not listen");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        Self { child, host, _dir: dir }
    }

    fn name(&self, rest: &str) -> Reference {
        Reference::parse(&format!("{}/{rest}", self.host)).expect("reference")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_and_docker_registry() {
    let Some(program) = program("CUMULET_DOCKER_REGISTRY") else { return };
    let docker = Docker::start(&program, "").await;
    let (from, to) = (Peer::new(), Peer::new());
    let layout = image_packed(&[10_000, 3_000_000, 1], crate::common::gzip);
    let digest = load(&from.store, layout.archive()).expect("load")[0].digest.clone();
    let anonymous = Keyring::default();
    let pushed = from.client.push(digest.as_str(), &docker.name("team/app:1"), &anonymous, &()).await;
    let pushed = pushed.expect("push");
    assert_eq!((&pushed.digest, pushed.blobs_reused), (&digest, 0));

    let pulled = to.client.pull(&docker.name("team/app:1"), &anonymous, &()).await.expect("pull");
    assert_eq!((&pulled.digest, pulled.bytes_fetched), (&digest, pushed.bytes_sent));
    assert_eq!(to.store.verify().expect("verify"), Vec::<String>::new());

    // Known to be in another repository of the same registry: mounted, not sent.
    let again =
        to.client.push(digest.as_str(), &docker.name("other/app:1"), &anonymous, &()).await.expect("push");
    assert_eq!((again.bytes_sent, again.blobs_reused), (0, 4));
    let there = ask(&docker.host, "GET", "/v2/other/app/tags/list", &[], b"").await;
    assert_eq!(there.json()["tags"], serde_json::json!(["1"]));

    let error =
        to.client.pull(&docker.name("team/app:none"), &anonymous, &()).await.expect_err("no such tag");
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("MANIFEST_UNKNOWN"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_registry_with_a_password() {
    let Some(program) = program("CUMULET_DOCKER_REGISTRY") else { return };
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("htpasswd");
    // bcrypt of "secret"
    let line = "me:$2y$05$8SWGGnCG3hJYgaxAhxL0h.kOI/DDzHoG3JFMvZQ4XOBSkxXlHv3v2\n";
    std::fs::write(&path, line).expect("write");
    let more = format!("auth: {{htpasswd: {{realm: test, path: \"{}\"}}}}\n", path.display());
    let docker = Docker::start(&program, &more).await;
    let peer = Peer::new();
    let digest = load(&peer.store, image(&[1000]).archive()).expect("load")[0].digest.clone();
    let target = docker.name("app:1");
    let error =
        peer.client.push(digest.as_str(), &target, &Keyring::default(), &()).await.expect_err("anonymous");
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
}
