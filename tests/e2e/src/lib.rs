//! A real cloud for a test: its own state directory, its own networks, the built program, and the real kubectl.
//!
//! Nothing here knows the insides of the program. A cloud is taken down when the value is dropped, and what it leaves
//! on the machine is checked by [`Cloud::finish`]. Waiting is always for a level, with a deadline and a message.

use anyhow::{Context, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take before a test gives up on it.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Between two looks at something: most are a process that shares two processors with what is looked at.
const PAUSE: Duration = Duration::from_millis(50);

/// A running cloud.
pub struct Cloud {
    dir: TempDir,
    /// Variables of the program.
    variables: Vec<(String, OsString)>,
}

/// The program under test.
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("CUMULET_BIN") {
        return path.into();
    }
    // target/debug/deps/test-… → target/debug/cumulet
    let test = std::env::current_exe().unwrap_or_default();
    let dir = test.ancestors().find(|dir| dir.join("cumulet").is_file());
    dir.map(|dir| dir.join("cumulet")).unwrap_or_else(|| "cumulet".into())
}

/// Where the examples are.
pub fn examples() -> PathBuf {
    std::env::var_os("CUMULET_EXAMPLES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples"), PathBuf::from)
}

impl Cloud {
    /// Starts a cloud and waits until it is ready.
    pub fn start() -> anyhow::Result<Self> {
        let cloud = Self::new()?;
        cloud.up()?;
        Ok(cloud)
    }

    /// A cloud that has not been started.
    pub fn new() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("cumulet-test-").tempdir()?;
        Ok(Self { dir, variables: Vec::new() })
    }

    /// Gives the program a variable of its environment from now on.
    pub fn with_variable(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// Starts a cloud that has the image `hello:1`.
    pub fn with_hello() -> anyhow::Result<Self> {
        let cloud = Self::start()?;
        cloud.build_hello()?;
        Ok(cloud)
    }

    /// Builds `examples/hello` into this cloud.
    pub fn build_hello(&self) -> anyhow::Result<()> {
        let example = examples().join("hello");
        self.cumulet(&["image", "build", &example.to_string_lossy()])
            .context("run `cargo xtask examples` when its rootfs is missing")
            .map(drop)
    }

    /// Runs `up --detach` on the same state directory (again).
    pub fn up(&self) -> anyhow::Result<()> {
        self.cumulet(&["up", "--detach", "--api-listen", "127.0.0.1:0"]).map(drop)
    }

    /// The state directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the registry listens.
    pub fn registry(&self) -> anyhow::Result<String> {
        let status: serde_json::Value = serde_json::from_str(&self.cumulet(&["status", "-o", "json"])?)?;
        status["registry"].as_str().map(str::to_owned).context("status names no registry")
    }

    /// Process id of the main process.
    pub fn pid(&self) -> anyhow::Result<i32> {
        let text = std::fs::read_to_string(self.dir().join("lock")).context("the cloud never ran")?;
        text.trim().parse().with_context(|| format!("{text:?} is no process id"))
    }

    /// Kills the main process with SIGKILL and waits until it is gone.
    pub fn kill_main(&self) -> anyhow::Result<()> {
        let pid = self.pid()?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
        wait_for("the main process to be gone", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            (stat.is_empty() || stat.contains(") Z ")).then_some(())
        })
    }

    /// Runs the program on this cloud and gives its standard output.
    pub fn cumulet(&self, args: &[&str]) -> anyhow::Result<String> {
        let variables = self.variables.iter().map(|(name, value)| (name, value));
        succeed(Command::new(program()).arg("--state-dir").arg(self.dir()).args(args).envs(variables))
    }

    /// A kubectl command on this cloud.
    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        // A home of its own keeps its caches apart from the user's.
        command.env("KUBECONFIG", self.dir().join("kubeconfig")).env("HOME", self.dir()).args(args);
        command
    }

    /// Runs kubectl and gives its standard output; fails when it fails.
    pub fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        succeed(&mut self.kubectl_command(args))
    }

    /// Runs kubectl with a text as standard input.
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> anyhow::Result<String> {
        succeed_with(&mut self.kubectl_command(args), input)
    }

    /// Runs kubectl that is to fail, and gives what it says on standard error.
    pub fn kubectl_fails(&self, args: &[&str], input: &str) -> anyhow::Result<String> {
        let out = feed(&mut self.kubectl_command(args), input)?;
        if out.status.success() {
            bail!("`kubectl {}` succeeded: {}", args.join(" "), String::from_utf8_lossy(&out.stdout));
        }
        Ok(String::from_utf8_lossy(&out.stderr).into_owned())
    }

    /// One field of an object, as JSONPath.
    pub fn field(&self, object: &str, path: &str) -> anyhow::Result<String> {
        self.kubectl(&["get", object, "-o", &format!("jsonpath={{{path}}}")])
    }

    /// A client of the Rust library kube.
    pub async fn client(&self) -> anyhow::Result<kube::Client> {
        let kubeconfig = Kubeconfig::read_from(self.dir().join("kubeconfig"))?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(kube::Client::try_from(config)?)
    }

    /// The processes of this cloud: the main one, supervisors and whatever runs in pods' cgroups is not listed.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let dir = self.dir().to_string_lossy().into_owned();
        let entries = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
        entries
            .filter_map(|entry| {
                let pid = entry.file_name().to_string_lossy().parse::<i32>().ok()?;
                let line = std::fs::read(entry.path().join("cmdline")).ok()?;
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                (line.contains(&dir) && line.contains("cumulet")).then_some((pid, line))
            })
            .collect()
    }

    /// Takes the cloud down and fails when something of it is left on the machine.
    pub fn finish(self) -> anyhow::Result<()> {
        self.cumulet(&["down", "--purge", "--timeout", "1"])?;
        let mut left: Vec<String> =
            self.processes().iter().map(|(pid, line)| format!("process {pid} {line}")).collect();
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let dir = self.dir().to_string_lossy().into_owned();
        left.extend(mounts.lines().filter(|line| line.contains(&dir)).map(str::to_owned));
        // The directory itself goes with its last entry.
        let entries = std::fs::read_dir(self.dir()).into_iter().flatten().filter_map(Result::ok);
        left.extend(entries.map(|e| e.path().display().to_string()));
        if !left.is_empty() {
            bail!("`down --purge` left behind:\n  {}", left.join("\n  "));
        }
        Ok(())
    }
}

/// A cloud of which only the registry is used, by somebody who has to say a password.
pub struct Registry {
    /// The cloud.
    pub cloud: Cloud,
    /// Where its registry listens.
    pub address: String,
    user: String,
    password: String,
}

impl Registry {
    /// Starts it with one user.
    pub fn start(user: &str, password: &str) -> anyhow::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let cloud = Cloud::new()?;
        let users = cloud.dir().join("users");
        let mut file = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&users)?;
        std::io::Write::write_all(&mut file, format!("{user}:{password}\n").as_bytes())?;
        let users = users.to_string_lossy().into_owned();
        let listen = ["--api-listen", "127.0.0.1:0", "--registry-listen", "127.0.0.1:0"];
        cloud.cumulet(&[&["up", "--detach", "--registry-users", &users], &listen[..]].concat())?;
        let address = cloud.registry()?;
        Ok(Self { cloud, address, user: user.to_owned(), password: password.to_owned() })
    }

    /// A directory with a `config.json` as `docker login` writes it.
    pub fn docker_config(&self) -> anyhow::Result<TempDir> {
        let dir = tempfile::tempdir()?;
        let login = serde_json::json!({"username": self.user, "password": self.password});
        let config = serde_json::json!({"auths": {self.address.clone(): login}});
        std::fs::write(dir.path().join("config.json"), config.to_string())?;
        Ok(dir)
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir().join("cumulet.log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- the cloud's log, last lines ---");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        // After `finish` there is nothing left to take down and this says so without harm.
        let _ = self.cumulet(&["down", "--purge", "--timeout", "1"]);
    }
}

/// Runs a command and gives its standard output; its standard error is in the failure.
pub fn succeed(command: &mut Command) -> anyhow::Result<String> {
    succeed_with(command, "")
}

/// The same with a text as standard input.
pub fn succeed_with(command: &mut Command, input: &str) -> anyhow::Result<String> {
    let out = feed(command, input)?;
    if !out.status.success() {
        let args: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        bail!(
            "`{} {}` failed ({}):\n{}{}",
            command.get_program().to_string_lossy(),
            args.join(" "),
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn feed(command: &mut Command, input: &str) -> anyhow::Result<Output> {
    use std::io::Write;
    let program = command.get_program().to_string_lossy().into_owned();
    let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    Ok(child.wait_with_output()?)
}

/// Waits until `look` finds something.
pub fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    wait_within(DEADLINE, what, look)
}

/// Waits until `look` finds something, at most this long.
pub fn wait_within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if start.elapsed() > limit {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "a test looks from outside: there is nothing to wait on"
        )]
        std::thread::sleep(PAUSE);
    }
}

/// GET over plain HTTP/1.1; the body of a 200.
pub fn http_get(address: &str, path: &str) -> anyhow::Result<String> {
    use std::io::{Read, Write};
    let to = address.parse().with_context(|| format!("{address:?} is no address"))?;
    let mut stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
        _ => bail!("{address}{path} answered {text:?}"),
    }
}
