//! The old way: the same guest under a QEMU that is started by hand, its state saved with `savevm` into a qcow2 file when
//! it is warm, and then started again and again with `-loadvm`, until the first answer over HTTP.
//!
//! Kernel, processor, memory and network device are those of the cloud's own machine, the files are the same disk, and the
//! program, its user and its environment are what the image says. There is no agent and there are no namespaces: the
//! first process is a static one ([`init.c`](../vm/init.c)) that mounts and starts. The cloud has nothing to do meanwhile.
//! Tap, QEMU and files go when their values are dropped.

use super::{COLD, IMAGE, answer};
use crate::vm::floor::{Like, Running, THERE, Tap, archive, build_init};
use crate::{figure, percentile};
use anyhow::{Context, bail, ensure};
use cumulet_e2e::{Cloud, succeed};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

const STARTS: usize = 5;
/// As many as the cloud's own warm-up sends.
const WARM_UP: usize = 30;
const SNAPSHOT: &str = "warm";
/// For a machine to come up from a snapshot, to open its monitor, to save, to end.
const PATIENCE: Duration = Duration::from_secs(120);
/// The state of a guest takes less than its memory.
const STATE_SIZE: &str = "2G";

/// Measures it; `p50` is what a pod takes from a standby, in seconds.
pub(super) async fn run(cloud: &Cloud, like: &Like, p50: f64) -> anyhow::Result<Value> {
    let rootfs = largest(&cloud.dir().join("rootfs"))?;
    let program = program(&serde_json::from_str(&cloud.cumulet(&["image", "inspect", IMAGE])?)?)?;
    let (savevm, mut starts) = measure(like, &rootfs, &program).await?;
    let median = percentile(&mut starts, 0.5);
    Ok(json!({
        "starts": STARTS,
        "savevm": {"value": savevm, "unit": "s"},
        "to_first_answer_median": {"value": median, "unit": "s"},
        "min": {"value": percentile(&mut starts, 0.0), "unit": "s"},
        "max": {"value": percentile(&mut starts, 1.0), "unit": "s"},
        "ratio_of_standby_p50": figure(p50 / median, "x", 0.33, true),
    }))
}

/// Seconds of `savevm`, and of each start from the start of QEMU to the first answer.
async fn measure(like: &Like, rootfs: &Path, program: &str) -> anyhow::Result<(f64, Vec<f64>)> {
    let guest = Guest::prepare(like, rootfs, program)?;
    let mut machine = guest.start(false)?;
    guest.answered(&mut machine, COLD).await?;
    for _ in 0..WARM_UP {
        answer(THERE, PATIENCE).await?;
    }
    let mut monitor = Monitor::connect(&guest.monitor()).await?;
    let begin = Instant::now();
    monitor.savevm().await?;
    let savevm = begin.elapsed().as_secs_f64();
    monitor.quit(machine).await?;
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        let begin = Instant::now();
        let mut machine = guest.start(true)?;
        guest.answered(&mut machine, PATIENCE).await?;
        starts.push(begin.elapsed().as_secs_f64());
        // In order: the file has to be whole for the next one.
        Monitor::connect(&guest.monitor()).await?.quit(machine).await?;
    }
    Ok((savevm, starts))
}

/// What the machine is started with.
struct Guest<'a> {
    like: &'a Like,
    rootfs: &'a Path,
    dir: TempDir,
    _tap: Tap,
}

impl<'a> Guest<'a> {
    fn prepare(like: &'a Like, rootfs: &'a Path, program: &str) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let manifest: Value = serde_json::from_slice(&fs::read(like.kernel.join("manifest.json"))?)?;
        let modules = manifest["modules"].as_array().context("a kernel without a list of modules")?;
        let names: Vec<&str> = modules.iter().filter_map(|module| module["name"].as_str()).collect();
        let initramfs = dir.path().join("initramfs");
        let files = [("program", program.as_bytes())];
        archive(&like.kernel, &build_init(dir.path())?, &[("net", &names)], &files, &initramfs)?;
        let state = dir.path().join("state");
        succeed(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(state).arg(STATE_SIZE))?;
        Ok(Self { like, rootfs, dir, _tap: Tap::new()? })
    }

    fn monitor(&self) -> PathBuf {
        self.dir.path().join("monitor")
    }

    fn start(&self, load: bool) -> anyhow::Result<Running> {
        let dir = self.dir.path();
        let mut command = self.like.command(true, &dir.join("initramfs"));
        // As QEMU has it by itself.
        command.args(["-object", &format!("memory-backend-ram,id=ram,size={}", self.like.memory)]);
        command.args(["-chardev", &format!("file,id=console,path={}", dir.join("console").display())]);
        command.args([
            "-object",
            "rng-builtin,id=rng",
            "-device",
            "virtio-rng-pci,rng=rng,disable-legacy=on",
        ]);
        let rootfs = self.rootfs.display();
        command.args([
            "-drive",
            &format!("if=none,id=root,format=raw,readonly=on,file.locking=off,file={rootfs}"),
        ]);
        command.args(["-device", "virtio-blk-pci,drive=root,disable-legacy=on"]);
        // No device of the guest: it is there for the snapshot alone.
        let state = dir.join("state");
        command.args(["-drive", &format!("if=none,id=state,format=qcow2,file={}", state.display())]);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", self.monitor().display())]);
        // A guest that fails ends instead of starting again.
        command.args(["-action", "reboot=shutdown,panic=shutdown"]);
        if load {
            command.args(["-loadvm", SNAPSHOT]);
        }
        let child = command.stdin(Stdio::null()).spawn().context("cannot run QEMU")?;
        Ok(Running(child))
    }

    /// Waits for the first answer, or for the end of the machine.
    async fn answered(&self, machine: &mut Running, limit: Duration) -> anyhow::Result<()> {
        let ended = async {
            let mut clock = tokio::time::interval(Duration::from_millis(200));
            loop {
                clock.tick().await;
                if let Some(status) = machine.0.try_wait()? {
                    bail!("QEMU ended ({status})");
                }
            }
        };
        let outcome = tokio::select! {
            outcome = answer(THERE, limit) => outcome,
            outcome = ended => outcome,
        };
        outcome.with_context(|| {
            let said = fs::read(self.dir.path().join("console")).unwrap_or_default();
            format!("the guest said: {}", String::from_utf8_lossy(&said))
        })
    }
}

/// QEMU's monitor (QMP).
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    async fn connect(path: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(path).await.context("cannot reach QEMU's monitor")?;
        let mut monitor = Self(BufReader::new(stream));
        monitor.line().await?;
        monitor.execute("qmp_capabilities", json!({})).await?;
        Ok(monitor)
    }

    async fn line(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, self.0.read_line(&mut line));
        ensure!(read.await.context("QEMU's monitor is silent")?? > 0, "QEMU's monitor ended");
        Ok(serde_json::from_str(&line)?)
    }

    async fn execute(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let request = json!({"execute": command, "arguments": arguments}).to_string();
        self.0.write_all(request.as_bytes()).await?;
        loop {
            let mut answer = self.line().await?;
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
            // Everything else is an event.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    async fn savevm(&mut self) -> anyhow::Result<()> {
        let command = json!({"command-line": format!("savevm {SNAPSHOT}")});
        match self.execute("human-monitor-command", command).await?.as_str() {
            // It only speaks of what went wrong.
            Some("") => Ok(()),
            said => bail!("savevm: {said:?}"),
        }
    }

    /// Ends QEMU so that its files are whole.
    async fn quit(mut self, mut machine: Running) -> anyhow::Result<()> {
        self.execute("quit", json!({})).await?;
        let deadline = Instant::now() + PATIENCE;
        let mut clock = tokio::time::interval(Duration::from_millis(5));
        while machine.0.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "QEMU does not end");
            clock.tick().await;
        }
        Ok(())
    }
}

/// The largest file of a directory: of the pods' disks, the one of the pet clinic.
fn largest(dir: &Path) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let files = entries.filter_map(|entry| entry.ok().filter(|e| e.path().extension().is_some()));
    let file = files.max_by_key(|entry| entry.metadata().map_or(0, |m| m.len()));
    Ok(file.context("no disk of an image")?.path())
}

/// What an image starts, as the init reads it: one word per line.
fn program(inspected: &Value) -> anyhow::Result<String> {
    let config = &inspected[0]["config"]["config"];
    let words = |name: &str| config[name].as_array().into_iter().flatten().filter_map(Value::as_str);
    let user = config["User"].as_str().filter(|user| !user.is_empty()).unwrap_or("0:0");
    let (user, group) = user.split_once(':').unwrap_or((user, user));
    for id in [user, group] {
        id.parse::<u32>().with_context(|| format!("the user {id:?} is no number"))?;
    }
    let directory = config["WorkingDir"].as_str().filter(|dir| !dir.is_empty()).unwrap_or("/");
    let mut lines = vec![('d', directory), ('u', user), ('g', group)];
    lines.extend(words("Entrypoint").chain(words("Cmd")).map(|word| ('a', word)));
    lines.extend(words("Env").map(|word| ('e', word)));
    let mut text = String::new();
    for (kind, word) in lines {
        ensure!(!word.contains('\n'), "a word of two lines: {word:?}");
        writeln!(text, "{kind}{word}")?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_what_the_image_says() {
        let config = |config: Value| program(&json!([{"config": {"config": config}}]));
        let all =
            config(json!({"User": "7:8", "WorkingDir": "/app", "Entrypoint": ["/a", "b"], "Env": ["X=1"]}));
        assert_eq!(all.unwrap(), "d/app\nu7\ng8\na/a\nab\neX=1\n");
        assert_eq!(config(json!({"Cmd": ["/a"]})).unwrap(), "d/\nu0\ng0\na/a\n");
        assert!(config(json!({"User": "www", "Cmd": ["/a"]})).is_err());
        assert!(config(json!({"Cmd": ["/a\nu0"]})).is_err());
    }
}
