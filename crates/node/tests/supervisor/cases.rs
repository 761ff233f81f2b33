//! The cases.

use crate::kit::{PATIENCE, Pod, collect, send, wait_until};
use cumulet_cluster::streams::{Input, Output};
use cumulet_node::supervisor::Supervisor;
use cumulet_node::supervisor::files::State;
use cumulet_node::supervisor::proto::{Event, InstanceState, PodNetwork, Request, SessionRequest};
use std::future::Future;
use std::pin::Pin;
use std::time::Instant;

type Case = fn() -> Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub const ALL: &[(&str, Case)] = &[$((stringify!($name), || Box::pin($name()))),*];
    };
}

cases![
    exit_codes,
    logs,
    log_rotation,
    signals,
    out_of_memory,
    restart_and_previous,
    start_errors,
    inside,
    other_user,
    read_only_root,
    termination_messages,
    exec,
    exec_terminal,
    exec_timeout_and_disconnect,
    attach,
    network,
    adoption,
    killed_supervisor,
    measure,
];

async fn exit_codes() {
    let mut pod = Pod::new().await;
    for (name, args, code, reason) in [
        ("true", &["true"][..], 0, "Completed"),
        ("false", &["exit", "1"], 1, "Error"),
        ("other", &["exit", "42"], 42, "Error"),
    ] {
        let ended = pod.run(pod.order(name, args)).await;
        assert_eq!((ended.exit_code, ended.signal, ended.reason.as_str()), (code, 0, reason), "{name}");
        assert!(ended.started_at_us > 0 && ended.finished_at_us >= ended.started_at_us);
        assert_eq!(ended.id.len(), 64);
    }
    pod.close().await;
}

async fn logs() {
    let mut pod = Pod::new().await;
    pod.run(pod.order("echo", &["echo", "hello world"])).await;
    let mut lines = pod.log("echo");
    lines.sort();
    assert_eq!(lines, ["stderr F err hello world", "stdout F hello world"]);
    pod.run(pod.order("partial", &["partial"])).await;
    assert_eq!(pod.log("partial"), ["stdout P no newline"]);
    pod.run(pod.order("many", &["lines", "20000"])).await;
    let many = pod.log("many");
    assert_eq!((many.len(), many[19_999].as_str()), (20_000, "stdout F line 19999"));
    pod.close().await;
}

async fn log_rotation() {
    let mut pod = Pod::with(|sandbox| (sandbox.log_max_bytes, sandbox.log_max_files) = (64 << 10, 3)).await;
    pod.run(pod.order("many", &["lines", "20000"])).await;
    let dir = pod.log_path("many", 0).parent().unwrap().to_owned();
    assert!((2..=3).contains(&std::fs::read_dir(dir).unwrap().count()));
    pod.close().await;
}

async fn signals() {
    let mut pod = Pod::new().await;
    let ended = pod.run(pod.order("segv", &["kill", "11"])).await;
    // The first process of a pid namespace is immune to its own signals: abort ends it by an instruction.
    assert!(ended.exit_code > 128, "{ended:?}");
    let signal =
        |container: &str, attempt, signal| Request::Signal { container: container.into(), attempt, signal };
    pod.start(pod.order("polite", &["sleep"])).await.unwrap();
    wait_until("it is ready", || pod.log_path("polite", 0).exists() && !pod.log("polite").is_empty()).await;
    pod.supervisor.request(signal("polite", 9, 15)).await.unwrap();
    pod.supervisor.request(signal("polite", 0, 15)).await.unwrap();
    let ended = pod.ended("polite", 0).await;
    assert_eq!((ended.exit_code, ended.signal), (7, 0));
    assert_eq!(pod.log("polite"), ["stdout F ready", "stdout F term"]);
    pod.start(pod.order("stubborn", &["fork"])).await.unwrap();
    pod.supervisor.request(signal("stubborn", 0, 15)).await.unwrap();
    pod.supervisor.request(signal("stubborn", 0, 9)).await.unwrap();
    let ended = pod.ended("stubborn", 0).await;
    assert_eq!((ended.exit_code, ended.signal, ended.reason.as_str()), (137, 9, "Error"));
    pod.supervisor.request(signal("stubborn", 0, 15)).await.unwrap();
    pod.close().await;
}

async fn out_of_memory() {
    let mut pod = Pod::new().await;
    let mut order = pod.order("eater", &["eat"]);
    order.spec.resources.memory_limit_bytes = Some(24 << 20);
    order.spec.resources.oom_score_adj = Some(-500);
    let ended = pod.run(order).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"));
    pod.close().await;
}

async fn restart_and_previous() {
    let mut pod = Pod::new().await;
    let order = pod.order("again", &["exit", "5"]);
    let first = pod.run(order.clone()).await;
    // Repeating a start that happened does nothing.
    pod.start(order.clone()).await.unwrap();
    let mut next = order;
    next.attempt = 1;
    next.spec.args[2] = "0".into();
    let second = pod.run(next).await;
    assert_eq!((first.exit_code, second.exit_code), (5, 0));
    assert_ne!(first.id, second.id);
    assert_eq!(pod.known["again"].previous.as_deref(), Some(&first));
    assert!(pod.log_path("again", 1).exists());
    pod.close().await;
}

async fn start_errors() {
    let mut pod = Pod::new().await;
    for (name, program, message) in [
        ("missing", "nosuch", r#"exec: "nosuch": executable file not found in $PATH"#),
        ("missing-path", "/no/such", r#"exec: "/no/such": stat /no/such: no such file or directory"#),
        ("directory", "/etc", r#"exec: "/etc": is a directory"#),
        ("not-executable", "/etc/passwd", r#"exec: "/etc/passwd": permission denied"#),
    ] {
        let mut order = pod.order(name, &[]);
        order.spec.args = vec![program.into()];
        let error = pod.start(order).await.unwrap_err();
        assert_eq!(error.reason, "StartError", "{error:?}");
        assert!(error.message.ends_with(message), "{}", error.message);
        let ended = pod.ended(name, 0).await;
        assert_eq!((ended.exit_code, ended.reason.as_str()), (128, "StartError"));
    }
    let mut order = pod.order("nobody", &["true"]);
    order.spec.user = "nobody".into();
    let error = pod.start(order.clone()).await.unwrap_err();
    assert_eq!(error.reason, "CreateContainerConfigError");
    order.spec.user = "0".into();
    order.spec.must_not_be_root = true;
    assert!(pod.start(order.clone()).await.unwrap_err().message.contains("runAsNonRoot"));
    order.spec.must_not_be_root = false;
    order.spec.layers.push("/no/such/layer".into());
    assert_eq!(pod.start(order.clone()).await.unwrap_err().reason, "CreateContainerError");
    // After all these failures it starts.
    order.spec.layers.pop();
    assert_eq!(pod.run(order).await.exit_code, 0);
    pod.close().await;
}

/// The lines of the tool's `probe` by their first word.
fn probe(pod: &Pod, name: &str) -> std::collections::BTreeMap<String, String> {
    let words = |line: &String| {
        let line = line.strip_prefix("stdout F ").unwrap_or(line).replace('\t', " ");
        line.split_once(' ').map(|(key, rest)| (key.trim_end_matches(':').to_owned(), rest.trim().to_owned()))
    };
    pod.log(name).iter().filter_map(words).collect()
}

#[track_caller]
fn check(probe: &std::collections::BTreeMap<String, String>, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        assert_eq!(probe.get(*key).map(String::as_str), Some(*value), "{key} in {probe:#?}");
    }
    assert!(!probe.contains_key("leak"), "{probe:#?}");
}

async fn inside() {
    let mut pod = Pod::new().await;
    let mut order = pod.order("probe", &["probe"]);
    order.spec.cwd = "/made/for/it".into();
    order.spec.resources.cpu_shares = Some(512);
    order.spec.resources.cpu_quota_us = Some(50_000);
    order.spec.resources.pids_limit = Some(20);
    assert_eq!(pod.run(order.clone()).await.exit_code, 0, "{:?}", pod.log("probe"));
    let default = [
        ("uid", "0 gid 0 pid 1"),
        ("cwd", "/made/for/it"),
        ("home", "/ path /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("host", "pod-host"),
        ("CapEff", "00000000a80425fb"),
        ("CapBnd", "00000000a80425fb"),
        ("Seccomp", "2"),
        ("NoNewPrivs", "0"),
        ("SigBlk", "0000000000000000"),
        ("mount", "Operation not permitted"),
        ("unshare", "Operation not permitted"),
        ("write-root", "ok"),
        ("write-sysctl", "Read-only file system"),
        ("masked", "1 3"),
        ("mem", "Operation not permitted"),
        ("null", "ok"),
        ("shm", "ok"),
    ];
    check(&probe(&pod, "probe"), &default);

    order.name = "limits".into();
    order.spec.resources.memory_limit_bytes = Some(48 << 20);
    let memory = ["/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max"];
    let unified = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    order.spec.args = vec!["tool".into(), "file".into(), memory[usize::from(unified)].into()];
    pod.run(order.clone()).await;
    assert_eq!(pod.log("limits"), ["stdout F 50331648"]);
    order.name = "cgroup".into();
    order.spec.args[2] = "/proc/self/cgroup".into();
    pod.run(order.clone()).await;
    let groups = pod.log("cgroup");
    assert!(groups.iter().all(|line| line.ends_with(":/") || line.contains("name=")), "{groups:?}");
    order.spec.args = vec!["tool".into(), "probe".into()];

    order.name = "bare".into();
    order.spec.security.drop_capabilities = vec!["ALL".into()];
    order.spec.security.add_capabilities = vec!["NET_BIND_SERVICE".into()];
    order.spec.security.no_new_privileges = true;
    pod.run(order.clone()).await;
    check(&probe(&pod, "bare"), &[("CapEff", "0000000000000400"), ("NoNewPrivs", "1"), ("Seccomp", "2")]);

    order.name = "privileged".into();
    order.spec.security = Default::default();
    order.spec.security.privileged = true;
    pod.run(order).await;
    check(&probe(&pod, "privileged"), &[("mount", "ok"), ("Seccomp", "0"), ("write-sysctl", "ok")]);
    pod.close().await;
}

async fn other_user() {
    let mut pod = Pod::new().await;
    let mut order = pod.order("web", &["probe"]);
    order.spec.user = "web".into();
    order.spec.additional_gids = vec![1234];
    pod.run(order).await;
    let expected = [
        ("uid", "33 gid 34 pid 1"),
        ("groups", "29 34 1234"),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "00000000a80425fb"),
        ("write-root", "Permission denied"),
        ("home", "/var/www path /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ];
    check(&probe(&pod, "web"), &expected);
    pod.close().await;
}

async fn read_only_root() {
    use cumulet_container::spec::{Mount, MountSource, Propagation};
    let mut pod = Pod::new().await;
    let shared = pod.dir.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("file"), "from outside\n").unwrap();
    let mut order = pod.order("ro", &["probe"]);
    order.spec.read_only_root = true;
    order.spec.mounts = vec![
        Mount {
            source: MountSource::Bind(shared.clone()),
            destination: "/data/in".into(),
            read_only: true,
            propagation: Propagation::Private,
        },
        Mount {
            source: MountSource::Tmpfs { size_bytes: Some(1 << 20) },
            destination: "/scratch".into(),
            read_only: false,
            propagation: Propagation::Private,
        },
    ];
    pod.run(order.clone()).await;
    check(&probe(&pod, "ro"), &[("write-root", "Read-only file system"), ("shm", "ok")]);
    for (name, args, expected) in [
        ("read", ["file", "/data/in/file"], "stdout F from outside"),
        ("write", ["message", "/data/in/x"], "stderr F /data/in/x: Read-only file system"),
        ("scratch", ["message", "/scratch/x"], "stdout F in the log"),
    ] {
        order.name = name.into();
        order.spec.args = vec!["tool".into(), args[0].into(), args[1].into()];
        pod.run(order.clone()).await;
        assert_eq!(pod.log(name), [expected]);
    }
    order.name = "lost".into();
    order.spec.mounts[0].source = MountSource::Bind("/no/such/source".into());
    assert!(pod.start(order).await.unwrap_err().message.contains("/no/such/source"));
    pod.close().await;
}

async fn termination_messages() {
    let mut pod = Pod::new().await;
    let mut order = pod.order("words", &["message", "/dev/termination-log"]);
    assert_eq!(pod.run(order.clone()).await.message, "last words");
    order.name = "log".into();
    order.spec.args[2] = "/elsewhere".into();
    assert_eq!(pod.run(order.clone()).await.message, "");
    order.name = "fallback".into();
    order.termination_message_from_logs = true;
    assert_eq!(pod.run(order).await.message, "in the log\n");
    pod.close().await;
}

async fn exec() {
    let mut pod = Pod::new().await;
    let error = pod.exec("c", &["tool", "true"], false, false).await.unwrap_err();
    assert_eq!(error.reason, "NotRunning");
    pod.start(pod.order("c", &["sleep"])).await.unwrap();
    let session = pod.exec("c", &["tool", "echo", "hi"], false, false).await.unwrap();
    assert_eq!(collect(session).await, ("hi\n".into(), "err hi\n".into(), 0));
    let session = pod.exec("c", &["tool", "exit", "3"], false, false).await.unwrap();
    assert_eq!(collect(session).await.2, 3);
    let error = pod.exec("c", &["nosuch"], false, false).await.unwrap_err();
    assert!(error.message.contains("executable file not found"), "{error:?}");
    let session = pod.exec("c", &["tool", "cat"], true, false).await.unwrap();
    let big = "x".repeat(300_000);
    let input = session.input.clone();
    let sender = tokio::spawn(async move {
        input.send(Input::Stdin(big.clone().into())).await.unwrap();
        input.send(Input::CloseStdin).await.unwrap();
        big
    });
    let (out, _, code) = collect(session).await;
    assert_eq!((out, code), (sender.await.unwrap(), 0));
    // As confined as the container itself.
    let session = pod.exec("c", &["tool", "probe"], false, false).await.unwrap();
    let (out, _, _) = collect(session).await;
    for line in ["Seccomp:\t2", "CapEff:\t00000000a80425fb", "mount Operation not permitted", "host pod-host"]
    {
        assert!(out.contains(line), "{line} in {out}");
    }
    assert!(!out.contains("leak"), "{out}");
    // A command ends with its container.
    let session = pod.exec("c", &["tool", "stubborn"], false, false).await.unwrap();
    pod.supervisor.request(Request::Signal { container: "c".into(), attempt: 0, signal: 9 }).await.unwrap();
    assert_eq!(collect(session).await.2, 137);
    pod.ended("c", 0).await;
    assert_eq!(pod.exec("c", &["tool", "true"], false, false).await.unwrap_err().reason, "NotRunning");
    pod.close().await;
}

async fn exec_terminal() {
    let pod = Pod::new().await;
    pod.start(pod.order("c", &["sleep"])).await.unwrap();
    let mut session = pod.exec("c", &["tool", "size"], true, true).await.unwrap();
    let Some(Output::Stdout(first)) = session.output.recv().await else { panic!() };
    assert_eq!(&first[..], b"tty 1\r\n");
    session.input.send(Input::Resize { columns: 99, rows: 33 }).await.unwrap();
    send(&session, "\n").await;
    let (out, _, code) = collect(session).await;
    assert_eq!(code, 0);
    assert!(out.contains("size 99 33"), "{out:?}");
    pod.close().await;
}

async fn exec_timeout_and_disconnect() {
    let pod = Pod::new().await;
    pod.start(pod.order("c", &["sleep"])).await.unwrap();
    let started = Instant::now();
    let session = pod.exec_for("c", &["tool", "fork"], false, false, 100).await.unwrap();
    assert_eq!(collect(session).await.2, 137);
    assert!(started.elapsed() < PATIENCE / 4);
    // A client that goes away takes its command with it.
    let cgroup = cumulet_container::cgroup::Cgroup::new(&format!("{}/c", pod.sandbox.cgroup)).unwrap();
    let session = pod.exec("c", &["tool", "fork"], true, false).await.unwrap();
    wait_until("the command runs", || cgroup.processes().len() == 3).await;
    drop(session);
    wait_until("the command is gone", || cgroup.processes().len() == 1).await;
    pod.close().await;
}

async fn attach() {
    let mut pod = Pod::new().await;
    let request = || SessionRequest::Attach { container: "cat".into(), stdin: true };
    assert_eq!(pod.supervisor.session(request()).await.unwrap_err().reason, "NotRunning");
    let mut order = pod.order("cat", &["cat"]);
    (order.stdin, order.stdin_once) = (true, true);
    pod.start(order).await.unwrap();
    let mut watcher = pod
        .supervisor
        .session(SessionRequest::Attach { container: "cat".into(), stdin: false })
        .await
        .unwrap();
    let session = pod.supervisor.session(request()).await.unwrap();
    send(&session, "one\n").await;
    let Some(Output::Stdout(seen)) = watcher.output.recv().await else { panic!() };
    assert_eq!(&seen[..], b"one\n");
    session.input.send(Input::CloseStdin).await.unwrap();
    assert_eq!(collect(session).await, ("one\n".into(), String::new(), 0));
    assert_eq!(collect(watcher).await.2, 0);
    assert_eq!(pod.ended("cat", 0).await.exit_code, 0);
    assert_eq!(pod.log("cat"), ["stdout F one"]);

    let mut order = pod.order("tty", &["size"]);
    (order.stdin, order.tty) = (true, true);
    pod.start(order).await.unwrap();
    let session = pod
        .supervisor
        .session(SessionRequest::Attach { container: "tty".into(), stdin: true })
        .await
        .unwrap();
    session.input.send(Input::Resize { columns: 80, rows: 25 }).await.unwrap();
    send(&session, "\n").await;
    let (out, _, code) = collect(session).await;
    assert_eq!(code, 0);
    assert!(out.contains("size 80 25"), "{out:?}");
    pod.close().await;
}

async fn network() {
    let mut pod = Pod::new().await;
    let asked = PodNetwork {
        interface: "eth0".into(),
        address: "10.86.0.7/32".into(),
        gateway: "10.86.0.1".into(),
        mtu: 1400,
        tap: None,
    };
    let configure = || Request::ConfigureNetwork(asked.clone());
    assert_eq!(pod.supervisor.request(configure()).await.unwrap_err().reason, "NetworkError");
    let pid = pod.supervisor.pid().to_string();
    let made = std::process::Command::new("nsenter")
        .args(["-t", &pid, "-n", "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other"])
        .status();
    if made.is_ok_and(|status| status.success()) {
        pod.supervisor.request(configure()).await.unwrap();
        pod.supervisor.request(configure()).await.unwrap();
        pod.run(pod.order("route", &["file", "/proc/net/route"])).await;
        let routes = pod.log("route").join("\n");
        assert!(routes.contains("eth0\t00000000\t0100560A"), "{routes}");
        let again = Supervisor::connect(pod.dir.path()).await.unwrap();
        let Some(Event::Snapshot { network, .. }) = again.events().recv().await else { panic!() };
        assert_eq!(network, Some(asked));
    }
    let sysctl = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    pod.run(pod.order("sysctl", &["file", sysctl])).await;
    assert_eq!(pod.log("sysctl"), ["stdout F 0"]);
    pod.close().await;
    // On the host's network nothing is changed.
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let mut pod = Pod::with(|sandbox| {
        (sandbox.host_network, sandbox.host_ipc) = (true, true);
        sandbox.sysctls.clear();
    })
    .await;
    pod.run(pod.order("host", &["probe"])).await;
    check(&probe(&pod, "host"), &[("host", hostname.trim())]);
    pod.close().await;
}

async fn adoption() {
    let mut pod = Pod::new().await;
    pod.start(pod.order("c", &["sleep"])).await.unwrap();
    pod.run(pod.order("done", &["exit", "4"])).await;
    let exe = std::env::current_exe().unwrap();
    let error = Supervisor::spawn(&exe, pod.dir.path(), &pod.sandbox, None).await.unwrap_err();
    assert!(error.message.contains("runs already"), "{error:?}");
    let again = Supervisor::connect(pod.dir.path()).await.unwrap();
    assert_eq!(again.pid(), pod.supervisor.pid());
    let Some(Event::Snapshot { containers, network, .. }) = again.events().recv().await else { panic!() };
    assert_eq!(network, None);
    assert!(matches!(containers["c"].state, InstanceState::Running { .. }));
    assert!(matches!(&containers["done"].state, InstanceState::Ended(ended) if ended.exit_code == 4));
    // A service manager's goodbye does not reach the pod.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(again.pid()), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    let session = pod.exec("c", &["tool", "true"], false, false).await.unwrap();
    assert_eq!(collect(session).await.2, 0);
    pod.close().await;
}

async fn killed_supervisor() {
    let mut pod = Pod::new().await;
    pod.start(pod.order("c", &["fork"])).await.unwrap();
    pod.run(pod.order("done", &["exit", "4"])).await;
    let pid = nix::unistd::Pid::from_raw(pod.supervisor.pid());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let cgroup = cumulet_container::cgroup::Cgroup::new(&pod.sandbox.cgroup).unwrap();
    wait_until("the containers die too", || cgroup.processes().is_empty()).await;
    let state = State::load(pod.dir.path()).unwrap();
    assert!(matches!(&state.containers["done"].state, InstanceState::Ended(ended) if ended.exit_code == 4));
    assert!(matches!(state.containers["c"].state, InstanceState::Running { .. }));
    assert!(Supervisor::connect(pod.dir.path()).await.is_err());
    pod.check_gone().await;
}

/// Prints what starting costs; asserts only that nothing is absurd.
async fn measure() {
    let began = Instant::now();
    let mut pod = Pod::new().await;
    let spawn = began.elapsed();
    let mut starts = Vec::new();
    for number in 0..20 {
        let order = pod.order(&format!("c{number}"), &["true"]);
        let began = Instant::now();
        pod.start(order).await.unwrap();
        starts.push(began.elapsed());
        pod.ended(&format!("c{number}"), 0).await;
    }
    pod.start(pod.order("c", &["sleep"])).await.unwrap();
    let began = Instant::now();
    let session = pod.exec("c", &["tool", "true"], false, false).await.unwrap();
    assert_eq!(collect(session).await.2, 0);
    let exec = began.elapsed();
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", pod.supervisor.pid())).unwrap();
    let part = |name: &str| -> u64 {
        let line = rollup.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let (dirty, clean) = (part("Private_Dirty"), part("Private_Clean"));
    let private = dirty + clean;
    starts.sort();
    println!(
        "       supervisor {} ms; start {:.1} / {:.1} / {:.1} ms (best, median, worst); exec {:.1} ms; private {dirty} kB dirty, {clean} kB clean",
        spawn.as_millis(),
        starts[0].as_secs_f64() * 1e3,
        starts[10].as_secs_f64() * 1e3,
        starts[19].as_secs_f64() * 1e3,
        exec.as_secs_f64() * 1e3,
    );
    assert!(private < 20_000);
    pod.close().await;
}
