//! Images: rebuilding after an edit, loading, and the registry endpoint, each against what people use today in the
//! same run on the same disk.

use crate::pods::Watched;
use crate::{figure, percentile};
use anyhow::{Context, bail};
use cumulet_e2e::{Cloud, succeed};
use serde_json::{Value, json};
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
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
    let registry = registry(&cloud, work.path(), &archive)?;
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

/// `image load` against skopeo's copy of the same archive to a directory, which does not even unpack.
fn load(work: &Path, archive: &Path) -> anyhow::Result<Value> {
    let mut own = Vec::new();
    let mut other = Vec::new();
    for round in 0..ROUNDS {
        let dir = tempfile::Builder::new().prefix("cumulet-test-").tempdir()?;
        own.push(timed(|| {
            let mut load = Command::new(cumulet_e2e::program());
            succeed(load.arg("--state-dir").arg(dir.path()).args(["image", "load"]).arg(archive)).map(drop)
        })?);
        let to = work.join(format!("skopeo-{round}"));
        other.push(timed(|| {
            skopeo(&[&format!("docker-archive:{}", archive.display()), &format!("dir:{}", to.display())])
        })?);
        fs::remove_dir_all(to)?;
    }
    let (own, other) = (percentile(&mut own, 0.5), percentile(&mut other, 0.5));
    Ok(json!({
        "cumulet": {"value": own, "unit": "s"},
        "skopeo_to_dir": {"value": other, "unit": "s"},
        "ratio": figure(own / other, "x", 0.7, true),
    }))
}

fn skopeo(args: &[&str]) -> anyhow::Result<()> {
    let mut copy = Command::new("skopeo");
    copy.args(["copy", "--quiet", "--insecure-policy", "--src-tls-verify=false", "--dest-tls-verify=false"]);
    succeed(copy.args(args)).context("skopeo comes with `cargo xtask bench images`").map(drop)
}

/// Push and pull with one client through the own endpoint, and through Debian's docker-registry.
fn registry(cloud: &Cloud, work: &Path, archive: &Path) -> anyhow::Result<Value> {
    let status: Value = serde_json::from_str(&cloud.cumulet(&["status", "-o", "json"])?)?;
    let own = status["registry"].as_str().context("status names no registry")?.to_owned();
    let other = DockerRegistry::start(&work.join("registry"))?;
    let mut times = [(own, Vec::new()), (other.address.clone(), Vec::new())];
    for round in 0..ROUNDS {
        for (address, samples) in &mut times {
            let to = work.join("pulled");
            let name = format!("docker://{address}/bench/image:{round}");
            samples.push(timed(|| {
                skopeo(&[&format!("docker-archive:{}", archive.display()), &name])?;
                skopeo(&[&name, &format!("dir:{}", to.display())])
            })?);
            fs::remove_dir_all(&to)?;
        }
        // What is there already would not be sent again.
        cloud.cumulet(&["image", "rm", &format!("{}/bench/image:{round}", times[0].0)])?;
        cloud.cumulet(&["image", "prune"])?;
        other.empty()?;
    }
    let [own, other] = times.map(|(_, mut samples)| percentile(&mut samples, 0.5));
    Ok(json!({
        "cumulet_push_and_pull": {"value": own, "unit": "s"},
        "docker_registry_push_and_pull": {"value": other, "unit": "s"},
        "ratio": figure(own / other, "x", 1.0, true),
    }))
}

/// Debian's docker-registry on a free port.
struct DockerRegistry {
    process: Child,
    address: String,
    root: PathBuf,
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
        let registry = Self { process, address, root: storage };
        cumulet_e2e::wait_for("docker-registry to listen", || {
            std::net::TcpStream::connect(&registry.address).ok().map(drop)
        })?;
        Ok(registry)
    }

    fn empty(&self) -> anyhow::Result<()> {
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                bail!("{}: {error}", self.root.display())
            }
            _ => Ok(()),
        }
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
