//! A pod for a case: its directory, supervisor and root file system, and what is checked when it is over.

use cumulet_cluster::streams::{Exit, Input, Output, Session};
use cumulet_container::ContainerSpec;
use cumulet_container::cgroup::{Cgroup, kill_and_remove};
use cumulet_container::spec::{Namespaces, Resources, Security};
use cumulet_node::supervisor::client::clean_up;
use cumulet_node::supervisor::files::running_pid;
use cumulet_node::supervisor::proto::{
    ContainerStart, Ended, Event, Instance, InstanceState, Request, SandboxSpec, SessionRequest,
};
use cumulet_node::supervisor::{Supervisor, SupervisorError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// Nothing in these tests takes longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The test program, compiled once.
fn tool() -> &'static Path {
    static BUILT: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = BUILT.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/supervisor/tool.c");
        let path = dir.path().join("tool");
        let status = std::process::Command::new("gcc")
            .args(["-static", "-O1", "-o"])
            .args([&path, &source])
            .status()
            .unwrap();
        assert!(status.success());
        (dir, path)
    });
    path
}

pub struct Pod {
    pub dir: tempfile::TempDir,
    pub sandbox: SandboxSpec,
    pub supervisor: Supervisor,
    pub events: mpsc::Receiver<Event>,
    pub known: BTreeMap<String, Instance>,
}

impl Pod {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut SandboxSpec)) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = tempfile::Builder::new().prefix("container-").tempdir().unwrap();
        let path = dir.path();
        for (layer, file, content) in [
            ("base", "etc/passwd", "web:x:33:34::/var/www:\n"),
            ("top", "etc/group", "web:x:34:\naudio:x:29:web\n"),
        ] {
            let file = path.join("layers").join(layer).join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, content).unwrap();
        }
        std::fs::create_dir_all(path.join("layers/top/bin")).unwrap();
        std::fs::create_dir_all(path.join("layers/top/tmp")).unwrap();
        std::fs::copy(tool(), path.join("layers/top/bin/tool")).unwrap();
        let mut sandbox = SandboxSpec {
            uid: format!("uid{number}"),
            namespace: "default".into(),
            name: "pod".into(),
            hostname: "pod-host".into(),
            host_network: false,
            host_ipc: false,
            sysctls: BTreeMap::from([("net.ipv4.ip_unprivileged_port_start".into(), "0".into())]),
            cgroup: format!("/cumulet-test-{}/pod{number}", std::process::id()),
            log_dir: path.join("logs").display().to_string(),
            log_max_bytes: 10 << 20,
            log_max_files: 5,
            standby: false,
            vm: None,
        };
        change(&mut sandbox);
        let exe = std::env::current_exe().unwrap();
        let supervisor = Supervisor::spawn(&exe, path, &sandbox, None).await.unwrap();
        let mut events = supervisor.events();
        let first = events.recv().await.unwrap();
        assert!(matches!(first, Event::Snapshot { pid, .. } if pid == supervisor.pid()));
        Self { dir, sandbox, supervisor, events, known: BTreeMap::new() }
    }

    pub fn order(&self, name: &str, args: &[&str]) -> ContainerStart {
        let path = self.dir.path();
        let mut all = vec!["tool".to_owned()];
        all.extend(args.iter().map(|a| (*a).to_owned()));
        ContainerStart {
            name: name.into(),
            attempt: 0,
            stdin: false,
            stdin_once: false,
            tty: false,
            termination_message_path: "/dev/termination-log".into(),
            termination_message_from_logs: false,
            spec: ContainerSpec {
                layers: vec![path.join("layers/base"), path.join("layers/top")],
                writable: path.join("writable").join(name),
                read_only_root: false,
                args: all,
                env: vec![],
                cwd: "/".into(),
                user: String::new(),
                run_as_group: None,
                additional_gids: vec![],
                must_not_be_root: false,
                mounts: vec![],
                resources: Resources::default(),
                security: Security::default(),
                cgroup: format!("{}/{name}", self.sandbox.cgroup),
                namespaces: Namespaces::default(),
            },
            guest: None,
        }
    }

    pub async fn start(&self, order: ContainerStart) -> Result<(), SupervisorError> {
        self.supervisor.request(Request::Start(Box::new(order))).await
    }

    /// Starts a container and waits for its end.
    pub async fn run(&mut self, order: ContainerStart) -> Ended {
        let (name, attempt) = (order.name.clone(), order.attempt);
        self.start(order).await.unwrap();
        self.ended(&name, attempt).await
    }

    /// Waits for the end of an instance.
    pub async fn ended(&mut self, name: &str, attempt: u32) -> Ended {
        let wait = async {
            loop {
                if let Some(Instance { attempt: a, state: InstanceState::Ended(ended), .. }) =
                    self.known.get(name)
                    && *a == attempt
                {
                    return ended.clone();
                }
                match self.events.recv().await.expect("supervisor is gone") {
                    Event::Container { name, instance } => {
                        self.known.insert(name, instance);
                    }
                    Event::Snapshot { .. } => panic!("second snapshot"),
                    Event::Restored(_) => panic!("no clone"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("container does not end")
    }

    pub fn log_path(&self, name: &str, attempt: u32) -> PathBuf {
        Path::new(&self.sandbox.log_dir).join(name).join(format!("{attempt}.log"))
    }

    /// The log without times.
    pub fn log(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.log_path(name, 0)).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    pub async fn exec(
        &self,
        name: &str,
        args: &[&str],
        stdin: bool,
        tty: bool,
    ) -> Result<Session, SupervisorError> {
        self.exec_for(name, args, stdin, tty, 0).await
    }

    pub async fn exec_for(
        &self,
        name: &str,
        args: &[&str],
        stdin: bool,
        tty: bool,
        timeout_ms: u64,
    ) -> Result<Session, SupervisorError> {
        let command = args.iter().map(|a| (*a).to_owned()).collect();
        let request = SessionRequest::Exec { container: name.into(), command, stdin, tty, timeout_ms };
        self.supervisor.session(request).await
    }

    /// Shuts the pod down and checks that nothing is left of it.
    pub async fn close(self) {
        self.supervisor.request(Request::Shutdown).await.unwrap();
        self.check_gone().await;
    }

    /// Waits until the supervisor is gone, cleans up what a killed one leaves, and checks.
    pub async fn check_gone(mut self) {
        let closed = async { while self.events.recv().await.is_some() {} };
        tokio::time::timeout(PATIENCE, closed).await.expect("supervisor does not end");
        // The connection is closed a moment before the process has ended, and its parent may leave it a zombie.
        let dir = self.dir.path().to_owned();
        wait_until("the supervisor ends", || running_pid(&dir).is_none()).await;
        clean_up(self.dir.path(), &self.sandbox.cgroup).unwrap();
        assert!(Cgroup::new(&self.sandbox.cgroup).unwrap().processes().is_empty());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "{mounts}");
        kill_and_remove(&format!("/cumulet-test-{}", std::process::id())).unwrap();
    }
}

/// A case that failed leaves nothing behind either.
impl Drop for Pod {
    fn drop(&mut self) {
        if let Some(pid) = running_pid(self.dir.path()) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            let _ = kill_and_remove(&self.sandbox.cgroup);
            eprintln!(
                "{}",
                std::fs::read_to_string(self.dir.path().join("supervisor.log")).unwrap_or_default()
            );
        }
    }
}

/// Waits for a level that nothing announces, with a deadline.
pub async fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "waited for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Collects a session's output to its end.
pub async fn collect(session: Session) -> (String, String, i32) {
    let Session { input, mut output } = session;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let all = async {
        while let Some(item) = output.recv().await {
            match item {
                Output::Stdout(bytes) => out.extend(bytes),
                Output::Stderr(bytes) => err.extend(bytes),
                Output::Exit(Exit::Code(code)) => return code,
                Output::Exit(other) => panic!("{other:?}"),
            }
        }
        panic!("session ended without an exit code")
    };
    let code = tokio::time::timeout(PATIENCE, all).await.expect("session does not end");
    drop(input);
    (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), code)
}

pub async fn send(session: &Session, text: &str) {
    session.input.send(Input::Stdin(text.to_owned().into())).await.unwrap();
}
