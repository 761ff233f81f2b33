//! Images: rebuilding after an edit, loading, and the registry endpoint, each against what people use today in the
//! same run on the same disk.

use crate::pods::Watched;
use crate::{figure, percentile};
use anyhow::Context;
use cumulet_e2e::{Cloud, succeed};
use serde_json::{Value, json};
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const FILES: usize = 400;
const FILE_BYTES: usize = 1 << 20;
const ROUNDS: usize = 5;
const DESCRIPTION: &str = r#"
name: bench
version: "1"
base: scratch
files:
  ./rootfs: /
  ./data: /data
  ./app: /app
entrypoint: [/bin/hello]
env: {PATH: /bin}
"#;

pub(crate) async fn run() -> anyhow::Result<Value> {
    let work = tempfile::Builder::new().prefix("cumulet-test-").tempdir()?;
    let cloud = Cloud::start()?;
    let project = work.path().join("project");
    describe(&project)?;
    build(&cloud, &project)?;
    let rebuild = rebuild(&cloud, &project)?;
    let first_pod = first_pods(&cloud, &project).await?;
    let archive = work.path().join("image.tar");
    cloud.cumulet(&["image", "save", "bench:1", &archive.to_string_lossy()])?;
    let load = load(work.path(), &archive)?;
    let registry = registry(work.path(), &archive)?;
    Ok(json!({
        "image_bytes": FILES * FILE_BYTES,
        "rebuild_after_one_changed_file": rebuild,
        "first_pod_of_a_new_image": first_pod,
        "load": load,
        "registry": registry,
    }))
}

/// An image of one big layer that does not change and one small that does.
fn describe(project: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(project.join("data"))?;
    fs::create_dir_all(project.join("app"))?;
    for number in 1..FILES {
        fs::write(project.join(format!("data/{number}")), content(number as u64))?;
    }
    fs::write(project.join("app/file"), content(0))?;
    let hello = cumulet_e2e::examples().join("hello/image/rootfs");
    succeed(Command::new("cp").arg("-a").args([hello, project.join("rootfs")]))?;
    fs::write(project.join("cumulet.yaml"), DESCRIPTION)?;
    Ok(())
}

/// Bytes that compress to about half, like programs do; different for every seed.
fn content(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = vec![0; FILE_BYTES];
    for chunk in bytes.chunks_exact_mut(16) {
        // xorshift64: the quality of the numbers does not matter.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk[..8].copy_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn build(cloud: &Cloud, project: &Path) -> anyhow::Result<()> {
    cloud.cumulet(&["image", "build", &project.to_string_lossy()]).map(drop)
}

fn timed(task: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let start = Instant::now();
    task()?;
    Ok(start.elapsed().as_secs_f64())
}

fn rebuild(cloud: &Cloud, project: &Path) -> anyhow::Result<Value> {
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        fs::write(project.join("app/file"), content(1_000_000 + round as u64))?;
        times.push(timed(|| build(cloud, project))?);
    }
    Ok(figure(percentile(&mut times, 0.5), "s", 0.3, true))
}

/// The first pod of an image that was just built starts like any other: nothing is left to unpack.
async fn first_pods(cloud: &Cloud, project: &Path) -> anyhow::Result<Value> {
    let client = cloud.client().await?;
    let mut first = Vec::new();
    let mut second = Vec::new();
    for round in 0..ROUNDS {
        fs::write(project.join("app/file"), content(2_000_000 + round as u64))?;
        build(cloud, project)?;
        for (name, times) in [("first", &mut first), ("second", &mut second)] {
            let mut pod = crate::pods::pod(&format!("{name}-{round}"));
            if let Some(spec) = &mut pod.spec {
                spec.containers[0].image = Some("bench:1".into());
            }
            let start = Instant::now();
            let mut watched = Watched::create(&client, &pod).await?;
            watched.ready().await?;
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let (first, second) = (percentile(&mut first, 0.5), percentile(&mut second, 0.5));
    Ok(json!({
        "first": {"value": first, "unit": "s"},
        "second": {"value": second, "unit": "s"},
        // A second unpack of 400 MB would take a large part of a second.
        "ratio": figure(first / second, "x", 2.0, true),
    }))
}

/// `image load` against skopeo's copy of the same archive: to its own store, which unpacks as we do, and to a directory,
/// which only copies.
fn load(work: &Path, archive: &Path) -> anyhow::Result<Value> {
    let (mut own, mut store, mut dir) = (Vec::new(), Vec::new(), Vec::new());
    let from = format!("docker-archive:{}", archive.display());
    for round in 0..ROUNDS {
        let state = tempfile::Builder::new().prefix("cumulet-test-").tempdir()?;
        own.push(timed(|| {
            let mut load = Command::new(cumulet_e2e::program());
            succeed(load.arg("--state-dir").arg(state.path()).args(["image", "load"]).arg(archive)).map(drop)
        })?);
        let (root, run) = (work.join("storage"), work.join("storage-run"));
        let to = format!("containers-storage:[overlay@{}+{}]bench:{round}", root.display(), run.display());
        store.push(timed(|| skopeo(work, &[&from, &to]))?);
        let to = work.join("dir");
        dir.push(timed(|| skopeo(work, &[&from, &format!("dir:{}", to.display())]))?);
        // It leaves its directory mounted on itself.
        succeed(Command::new("umount").arg(root.join("overlay")))?;
        for left in [root, run, to] {
            fs::remove_dir_all(&left).with_context(|| format!("cannot remove {}", left.display()))?;
        }
    }
    let [own, store, dir] = [own, store, dir].map(|mut samples| percentile(&mut samples, 0.5));
    Ok(json!({
        "cumulet": {"value": own, "unit": "s"},
        "skopeo_to_containers_storage": {"value": store, "unit": "s"},
        "skopeo_to_dir_without_unpacking": {"value": dir, "unit": "s"},
        "ratio": figure(own / store, "x", 0.7, true),
        "ratio_to_dir": {"value": own / dir, "unit": "x"},
    }))
}

/// Its caches are in a home of the benchmark's, which is new every time: what it remembers it would not send.
fn skopeo(work: &Path, args: &[&str]) -> anyhow::Result<()> {
    let home = tempfile::tempdir_in(work)?;
    let mut copy = Command::new("skopeo");
    copy.env("HOME", home.path()).env("XDG_DATA_HOME", home.path()).arg("--insecure-policy");
    copy.args(["copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"]);
    succeed(copy.args(args)).context("skopeo comes with `cargo xtask bench images`").map(drop)
}

/// Push and pull with one client through the own endpoint, and through Debian's docker-registry. Both begin empty in
/// every round, and the layers are sent as they are: compressing them would be most of the work.
fn registry(work: &Path, archive: &Path) -> anyhow::Result<Value> {
    let layout = format!("oci:{}", work.join("layout").display());
    skopeo(work, &[&format!("docker-archive:{}", archive.display()), &layout])?;
    let (mut own, mut other) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let cloud = Cloud::start()?;
        own.push(push_and_pull(work, &layout, &cloud.registry()?)?);
        cloud.finish()?;
        let registry = DockerRegistry::start(&work.join("registry"))?;
        other.push(push_and_pull(work, &layout, &registry.address)?);
        drop(registry);
        fs::remove_dir_all(work.join("registry"))?;
    }
    let [own, other] = [own, other].map(|mut samples| percentile(&mut samples, 0.5));
    Ok(json!({
        "cumulet_push_and_pull": {"value": own, "unit": "s"},
        "docker_registry_push_and_pull": {"value": other, "unit": "s"},
        "ratio": figure(own / other, "x", 1.0, true),
    }))
}

fn push_and_pull(work: &Path, from: &str, registry: &str) -> anyhow::Result<f64> {
    let (name, to) = (format!("docker://{registry}/bench/image:1"), work.join("pulled"));
    let took = timed(|| {
        skopeo(work, &["--preserve-digests", from, &name])?;
        skopeo(work, &["--preserve-digests", &name, &format!("dir:{}", to.display())])
    })?;
    fs::remove_dir_all(&to)?;
    Ok(took)
}

/// Debian's docker-registry on a free port.
struct DockerRegistry {
    process: Child,
    address: String,
}

impl DockerRegistry {
    fn start(root: &Path) -> anyhow::Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        fs::create_dir_all(root)?;
        let config = root.join("config.yml");
        let storage = root.join("data");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp: {{addr: \"{address}\"}}\n",
                storage.display()
            ),
        )?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("docker-registry comes with `cargo xtask bench images`")?;
        let registry = Self { process, address };
        cumulet_e2e::wait_for("docker-registry to listen", || {
            std::net::TcpStream::connect(&registry.address).ok().map(drop)
        })?;
        Ok(registry)
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
