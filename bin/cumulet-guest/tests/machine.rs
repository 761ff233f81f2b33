//! The agent in real machines: the distribution's kernel, software emulation, containers of a busybox image.
//!
//! Needs what `cargo xtask setup` fetches, a static busybox in `CUMULET_BUSYBOX`, and the agent as guests run it, in `CUMULET_GUEST`:
//! `RUSTFLAGS="-C target-feature=+crt-static" cargo build --profile guest -p cumulet-guest --target
//! x86_64-unknown-linux-gnu`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod host;
mod tap;

use cumulet_guest_proto::Channel;
use cumulet_guest_proto::identity::{Hook, Identity, Phase};
use cumulet_guest_proto::message::{Event, InstanceState, Reply, Request};
use cumulet_guest_proto::spec::{
    ContainerStart, ExecStart, File, FileTree, Mount, Neighbour, Network, Pod, Process, Resources, Rlimit,
    Root, Route, Security, Volume,
};
use cumulet_vmm::State;
use host::{Host, Parts, SERIAL};
use std::time::{Duration, Instant};

/// What container engines give by default.
const CAPABILITIES: u64 = 0xa804_25fb;

fn container(name: &str, stream: u32, script: &str) -> ContainerStart {
    ContainerStart {
        name: name.into(),
        id: format!("id-{name}"),
        stream,
        root: Root { images: vec![SERIAL.into()], read_only: false },
        process: Process { args: ["sh", "-c", script].map(str::to_owned).into(), ..Process::default() },
        security: Security { capabilities: CAPABILITIES, ..Security::default() },
        termination_message_path: "/dev/termination-log".into(),
        ..ContainerStart::default()
    }
}

fn exec(container: &str, stream: u32, script: &str) -> ExecStart {
    let command = ["sh", "-c", script].map(str::to_owned).into();
    ExecStart { container: container.into(), stream, command, ..ExecStart::default() }
}

fn tree(files: &[(&str, &str)]) -> FileTree {
    let file = |text: &str| File { content: text.into(), mode: 0o644, uid: None };
    files.iter().map(|(path, text)| ((*path).to_owned(), file(text))).collect()
}

fn pod() -> Pod {
    Pod {
        hostname: "web-0".into(),
        clock_us: 1_800_000_000_000_000,
        machine_id: "0123456789abcdef0123456789abcdef".into(),
        entropy: vec![7; 32].into(),
        etc: tree(&[("hosts", "127.0.0.1 localhost\n"), ("resolv.conf", "nameserver 10.0.0.1\n")]),
        volumes: [
            (
                "config".to_owned(),
                Volume::Files { files: tree(&[("key", "one"), ("d/e", "two")]), gid: None },
            ),
            ("cache".to_owned(), Volume::EmptyDir { size_bytes: None, memory: false, gid: Some(5) }),
        ]
        .into(),
        sysctls: [("kernel.shm_rmid_forced".to_owned(), "1".to_owned())].into(),
        ..Pod::default()
    }
}

fn ended(host: &Host, name: &str) -> Option<cumulet_guest_proto::message::Ended> {
    host.events.iter().rev().find_map(|event| match event {
        Event::Container { name: n, instance } if n == name => match &instance.state {
            InstanceState::Ended(ended) => Some(ended.clone()),
            InstanceState::Running { .. } => None,
        },
        _ => None,
    })
}

fn exec_ended(host: &Host, wanted: u32) -> Option<i32> {
    host.events.iter().find_map(|event| match event {
        Event::ExecEnded { stream, exit_code } if *stream == wanted => Some(*exit_code),
        _ => None,
    })
}

async fn run(host: &mut Host, order: ExecStart) -> (i32, String) {
    let stream = order.stream;
    host.link.open_stream(stream);
    assert_eq!(host.ask(Request::Exec(order.into())).await, Reply::Done);
    host.until("the command to end", |host| exec_ended(host, stream).is_some()).await;
    let code = exec_ended(host, stream).unwrap();
    (code, host.output(stream, Channel::Stdout) + &host.output(stream, Channel::Stderr))
}

async fn start(host: &mut Host, order: ContainerStart) -> Reply {
    host.link.open_stream(order.stream);
    host.ask(Request::Start(order.into())).await
}

#[tokio::test]
#[ignore = "boots a virtual machine with the agent in CUMULET_GUEST"]
async fn a_pod_lives() {
    let mut host = Host::boot(Vec::new()).await;
    assert_eq!(host.ask(Request::Configure(pod().into())).await, Reply::Done);
    assert_eq!(host.ask(Request::Configure(pod().into())).await, Reply::Done, "a repetition");

    let script = "echo out; echo err >&2; cat /etc/hosts /config/key /config/d/e; hostname; id; pwd; \
        cat /proc/self/status | grep -E 'CapEff|NoNewPrivs'; date +%Y; echo last words > /dev/termination-log; \
        touch /cache/x; stat -c %a:%g /cache; cat /etc/machine-id; ls /proc | grep -c '^[0-9]'; exit 3";
    let mut order = container("first", 1, script);
    order.process.user = "1000:1000".into();
    order.process.cwd = "/work/dir".into();
    order.security.no_new_privileges = true;
    order.mounts = vec![
        Mount { volume: "config".into(), destination: "/config".into(), ..Mount::default() },
        Mount { volume: "cache".into(), destination: "/cache".into(), ..Mount::default() },
    ];
    let began = Instant::now();
    assert_eq!(start(&mut host, order.clone()).await, Reply::Done);
    println!("container start: {} ms", began.elapsed().as_millis());
    host.until("the end of the first container", |host| ended(host, "first").is_some()).await;
    let end = ended(&host, "first").unwrap();
    let text = host.output(1, Channel::Stdout);
    println!("{text}");
    assert_eq!((end.exit_code, end.reason.as_str(), end.message.as_str()), (3, "Error", "last words\n"));
    for part in [
        "out\n127.0.0.1 localhost\nonetwoweb-0\nuid=1000 gid=1000",
        "/work/dir\n",
        "CapEff:\t0000000000000000\n",
        "NoNewPrivs:\t1\n",
        "2027\n",
        "2777:5\n",
    ] {
        assert!(text.contains(part), "{part:?}");
    }
    assert_eq!(host.output(1, Channel::Stderr), "err\n");
    assert_eq!(start(&mut host, order.clone()).await, Reply::Done, "it ran already");
    order.attempt = 1;
    order.stream = 2;
    order.process.args = vec!["/nope".into()];
    let Reply::Error { reason, message } = start(&mut host, order).await else { panic!() };
    assert_eq!(
        (reason.as_str(), message.as_str()),
        ("StartError", "exec: \"/nope\": stat /nope: no such file or directory")
    );

    commands(&mut host).await;
    limits(&mut host).await;
    throughput(&mut host).await;
    let id = host.link.request(Request::Shutdown { grace_ms: 5000 });
    host.machine.expect_end();
    host.until("the end to be answered", |host| host.replies.contains_key(&id)).await;
    let state = tokio::time::timeout(Duration::from_secs(20), host.machine.ended()).await.unwrap();
    assert_eq!(state, State::Gone);
    println!("{}", host.console());
}

/// Exec, terminals, input, signals, volumes that change.
async fn commands(host: &mut Host) {
    let mut order = container("main", 10, "trap 'echo bye; exit 0' TERM; while true; do sleep 1; done");
    order.mounts = vec![Mount { volume: "config".into(), destination: "/config".into(), ..Mount::default() }];
    assert_eq!(start(host, order).await, Reply::Done);
    let began = Instant::now();
    let (code, text) = run(host, exec("main", 11, "echo hi; exit 7")).await;
    println!("exec: {} ms", began.elapsed().as_millis());
    assert_eq!((code, text.as_str()), (7, "hi\n"));

    let files = tree(&[("key", "three")]);
    assert_eq!(host.ask(Request::WriteFiles { volume: "config".into(), files }).await, Reply::Done);
    assert_eq!(
        run(host, exec("main", 12, "cat /config/key; ls /config; echo x > /config/key"))
            .await
            .1
            .lines()
            .next(),
        Some("threekey")
    );
    let etc = Request::WriteEtc { files: tree(&[("hosts", "10.1.1.1 other\n")]) };
    assert_eq!(host.ask(etc).await, Reply::Done);
    assert_eq!(run(host, exec("main", 13, "cat /etc/hosts")).await.1, "10.1.1.1 other\n");

    let mut terminal = exec("main", 14, "tty; stty size; read line; echo got $line; stty size");
    (terminal.tty, terminal.stdin, terminal.columns, terminal.rows) = (true, true, 100, 30);
    host.link.open_stream(14);
    assert_eq!(host.ask(Request::Exec(terminal.into())).await, Reply::Done);
    host.until("a terminal", |host| host.output(14, Channel::Stdout).contains("30 100")).await;
    host.link.resize(14, 80, 24);
    host.link.write_stdin(14, b"hello\n");
    host.until("the terminal's end", |host| exec_ended(host, 14).is_some()).await;
    let text = host.output(14, Channel::Stdout);
    assert!(text.starts_with("/dev/pts/0\r\n") && text.ends_with("got hello\r\n24 80\r\n"), "{text:?}");

    let mut input = exec("main", 15, "wc -c");
    input.stdin = true;
    host.link.open_stream(15);
    assert_eq!(host.ask(Request::Exec(input.into())).await, Reply::Done);
    let mut left = 1_000_000;
    while left > 0 {
        left -= host.link.write_stdin(15, &vec![b'x'; left]);
        host.step().await;
    }
    host.link.close_stdin(15);
    host.until("wc to end", |host| exec_ended(host, 15).is_some()).await;
    assert_eq!(host.output(15, Channel::Stdout), "1000000\n");

    let mut slow = exec("main", 16, "sleep 100");
    slow.timeout_ms = 300;
    assert_eq!(run(host, slow).await.0, 137);
    let missing = exec("none", 17, "true");
    let reply = host.ask(Request::Exec(missing.into())).await;
    assert!(matches!(reply, Reply::Error { reason, .. } if reason == "NotRunning"));
    let masked = run(
        host,
        exec(
            "main",
            18,
            "wc -c < /proc/kcore; echo x > /proc/sys/kernel/panic; ls -A /sys/firmware; mount | grep ' / '",
        ),
    )
    .await
    .1;
    assert!(masked.contains("Read-only file system") && masked.starts_with("0\n"), "{masked}");

    // A host that begins anew finds everything.
    host.reconnect().await;
    let snapshot = host.snapshot.clone().unwrap();
    assert!(
        snapshot.configured && matches!(snapshot.containers["main"].state, InstanceState::Running { .. })
    );

    let signal = Request::Signal { container: "main".into(), attempt: 0, signal: 15 };
    assert_eq!(host.ask(signal).await, Reply::Done);
    host.until("main to end", |host| ended(host, "main").is_some()).await;
    assert_eq!(host.output(10, Channel::Stdout), "bye\n");
    assert_eq!(ended(host, "main").unwrap().exit_code, 0);
}

/// Memory limits, freezing, figures.
async fn limits(host: &mut Host) {
    let mut order = container("hungry", 20, "x=a; while true; do x=$x$x; done");
    order.resources = Resources { memory_limit_bytes: Some(16 << 20), ..Resources::default() };
    assert_eq!(start(host, order).await, Reply::Done);
    host.until("memory to end", |host| ended(host, "hungry").is_some()).await;
    let end = ended(host, "hungry").unwrap();
    assert_eq!((end.exit_code, end.signal, end.reason.as_str()), (137, 9, "OOMKilled"));

    let script = "while true; do cat /proc/sys/kernel/random/uuid > /tmp/tick; done";
    assert_eq!(start(host, container("busy", 21, &format!("mkdir -p /tmp; {script}"))).await, Reply::Done);
    assert_eq!(host.ask(Request::Freeze).await, Reply::Done);
    let refused = host.ask(Request::Exec(exec("busy", 22, "true").into())).await;
    assert!(matches!(refused, Reply::Error { reason, .. } if reason == "Conflict"));
    let identity = Identity {
        generation: 1,
        entropy: vec![9; 32].into(),
        clock_us: 1_900_000_000_000_000,
        hostname: "clone-1".into(),
        machine_id: "f".repeat(32),
        boot_id: "11111111-2222-3333-4444-555555555555".into(),
        document: "{}".into(),
        env: "A=b\n".into(),
        after_restore: Some(Hook {
            container: "busy".into(),
            command: ["sh", "-c", "cat /run/cumulet/generation > /tmp/hooked"].map(str::to_owned).into(),
            timeout_ms: 10_000,
        }),
        thaw: true,
        ..Identity::default()
    };
    let Reply::Adopted(report) = host.ask(Request::Adopt(identity.clone().into())).await else { panic!() };
    println!("identity: {report:?}");
    assert_eq!(report.phases.last().unwrap().0, Phase::Thaw);
    let seen = run(
        host,
        exec(
            "busy",
            23,
            "echo $A; hostname; date +%Y; cat /proc/sys/kernel/random/boot_id /run/cumulet/* /tmp/hooked",
        ),
    )
    .await
    .1;
    assert_eq!(seen, "b\nclone-1\n2030\n11111111-2222-3333-4444-555555555555\nA=b\n1\n{}1\n");
    let Reply::Stats(stats) = host.ask(Request::Stats).await else { panic!() };
    println!("{stats:?}");
    assert!(stats.containers["busy"].cpu_usage_us > 0 && stats.guest.memory_total_bytes > 64 << 20);
    let kill = Request::Signal { container: "busy".into(), attempt: 0, signal: 9 };
    assert_eq!(host.ask(kill).await, Reply::Done);
    host.until("busy to end", |host| ended(host, "busy").is_some()).await;
}

async fn throughput(host: &mut Host) {
    const BYTES: usize = 64 << 20;
    let script = format!("dd if=/dev/zero bs=65536 count={} 2>/dev/null", BYTES / 65536);
    let began = Instant::now();
    assert_eq!(start(host, container("noisy", 30, &script)).await, Reply::Done);
    host.until("64 MiB of output", |host| ended(host, "noisy").is_some()).await;
    let seconds = began.elapsed().as_secs_f64();
    println!("output: {:.0} MB/s", BYTES as f64 / 1e6 / seconds);
    assert_eq!(host.counted(30), BYTES);
}

fn network(address: &str, mac: &str) -> Network {
    Network {
        interface: "eth0".into(),
        mac: mac.into(),
        addresses: vec![format!("{address}/32")],
        routes: vec![Route { destination: "0.0.0.0/0".into(), gateway: tap::GATEWAY.into(), onlink: true }],
        neighbours: vec![Neighbour { address: tap::GATEWAY.into(), mac: tap::GATEWAY_MAC.into() }],
        mtu: 1400,
    }
}

/// An address, and another one: nothing of the first is left.
#[tokio::test]
#[ignore = "boots a virtual machine with the agent in CUMULET_GUEST; needs root for a network namespace"]
async fn addresses_change() {
    let mut host = Host::boot(vec![tap::make([2, 0, 0, 0, 0, 2])]).await;
    let configured = Pod { network: Some(network("10.9.0.2", "02:00:00:00:00:02")), ..pod() };
    assert_eq!(host.ask(Request::Configure(configured.into())).await, Reply::Done);
    let serve = "mkdir -p /www; echo served > /www/f; httpd -f -p 80 -h /www";
    assert_eq!(start(&mut host, container("web", 1, serve)).await, Reply::Done);
    let script =
        "ip -o addr show dev eth0; ip route; cat /sys/class/net/eth0/mtu; cat /sys/class/net/eth0/address";
    let seen = run(&mut host, exec("web", 2, script)).await.1;
    println!("{seen}");
    for part in ["inet 10.9.0.2/32", "default via 10.9.0.1 dev eth0", "1400\n02:00:00:00:00:02\n"] {
        assert!(seen.contains(part), "{part}");
    }
    assert!(tap::get("10.9.0.2").contains("served"));

    let listener = std::net::TcpListener::bind("10.9.0.1:9000").unwrap();
    let talk = "nc 10.9.0.1 9000; echo gone $?";
    // With its input open it has nothing to say and does not say that it is done.
    let client = ContainerStart { stdin: true, ..container("client", 3, talk) };
    assert_eq!(start(&mut host, client).await, Reply::Done);
    let (connection, _) = listener.accept().unwrap();
    assert_eq!(host.ask(Request::Quiesce).await, Reply::Done);
    let identity = Identity {
        generation: 5,
        entropy: vec![9; 64].into(),
        clock_us: 1_900_000_000_000_000,
        hostname: "clone-5".into(),
        network: Some(network("10.9.0.3", "02:00:00:00:00:03")),
        thaw: true,
        ..Identity::default()
    };
    let reply = host.ask(Request::Adopt(identity.into())).await;
    let Reply::Adopted(report) = reply else { panic!("{reply:?}") };
    println!("identity: {report:?}");
    // The client's, and what is left of the request before.
    assert!(report.connections_aborted >= 1);
    host.until("the client to notice", |host| ended(host, "client").is_some()).await;
    assert!(host.output(3, Channel::Stdout).starts_with("gone "));
    assert!(tap::get("10.9.0.3").contains("served"));
    // No reset came from the old address.
    connection.set_nonblocking(true).unwrap();
    let read = std::io::Read::read(&mut &connection, &mut [0]);
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    let seen = run(&mut host, exec("web", 4, script)).await.1;
    assert!(seen.contains("inet 10.9.0.3/32") && !seen.contains("10.9.0.2"), "{seen}");
    assert!(seen.contains("02:00:00:00:00:03\n"));
    println!("{}", host.console());
    host.machine.kill().await;
}

/// Containers side by side, on a scratch disk, with everything that can be set.
#[tokio::test]
#[ignore = "boots a virtual machine with the agent in CUMULET_GUEST"]
async fn settings_count() {
    let parts = Parts::make();
    let mut host = Host::boot_with(&parts, Vec::new(), Some(64 << 20)).await;
    let memory = Volume::EmptyDir { size_bytes: Some(1 << 20), memory: true, gid: None };
    let mut order = pod();
    order.share_process_namespace = true;
    order.volumes.insert("memory".into(), memory);
    order.volumes.insert(
        "late".into(),
        Volume::Disk { serial: "not-here".into(), fs_type: "ext4".into(), read_only: false, gid: None },
    );
    assert_eq!(host.ask(Request::Configure(order.into())).await, Reply::Done);
    let forever = "while true; do sleep 1; done";
    assert_eq!(start(&mut host, container("one", 1, forever)).await, Reply::Done);

    let mut two = container("two", 2, forever);
    two.root.read_only = true;
    two.resources = Resources { cpu_quota_us: Some(50_000), pids_limit: Some(20), ..Resources::default() };
    two.process.user = "web".into();
    two.process.rlimits = [("nofile".to_owned(), Rlimit { soft: 77, hard: 88 })].into();
    let mount = |volume: &str, sub_path: &str, destination: &str, read_only| Mount {
        volume: volume.into(),
        sub_path: sub_path.into(),
        destination: destination.into(),
        read_only,
    };
    two.mounts = vec![
        mount("config", "d/e", "/etc/one-file", false),
        mount("cache", "deep/er", "/deeper", false),
        mount("cache", "", "/cache-ro", true),
        mount("memory", "", "/memory", false),
    ];
    // A program that allows everything but uname, which fails as if it did not exist.
    let instruction =
        |code: u16, jt: u8, jf: u8, k: u32| [&code.to_ne_bytes()[..], &[jt, jf], &k.to_ne_bytes()].concat();
    let errno = 0x0005_0000 | libc::ENOSYS as u32;
    two.security.seccomp = [
        instruction(0x20, 0, 0, 0),
        instruction(0x15, 0, 1, libc::SYS_uname as u32),
        instruction(0x06, 0, 0, errno),
        instruction(0x06, 0, 0, 0x7fff_0000),
    ]
    .concat()
    .into();
    assert_eq!(start(&mut host, two).await, Reply::Done);
    let script = "id -un; ulimit -n; cat /etc/one-file; echo; touch /deeper/x /cache-ro/y /etc/z /memory/m; \
        ls /cache-ro /cache-ro/deep/er; uname | wc -c; ps | grep -c 'sleep 1'; cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/pids.max; \
        dd if=/dev/zero of=/memory/big bs=1M count=2; mount | grep -c ' / .*upperdir=/run/writable/containers/two-0'";
    let seen = run(&mut host, exec("two", 3, script)).await.1;
    println!("{seen}");
    for part in ["web\n77\ntwo\n", "50000 100000\n20\n", "er:\nx\n1\n", "No space left"] {
        assert!(seen.contains(part), "{part:?}");
    }
    assert_eq!(seen.matches("Read-only file system").count(), 2, "{seen}");

    // The right to make device nodes opens none.
    let script = "mkdir -p /tmp; for at in /dev/x /tmp/x /dev/shm/x; do mknod $at b 254 0; head -c1 $at; done; \
        echo fine > /dev/null && head -c3 /dev/zero | wc -c";
    let seen = run(&mut host, exec("one", 6, script)).await.1;
    assert!(seen.starts_with("3\n") && seen.matches("x: Permission denied").count() == 3, "{seen}");

    let mut strong = container(
        "strong",
        4,
        "grep CapEff /proc/self/status; ls /dev/vda; echo 1 > /proc/sys/vm/drop_caches && echo done",
    );
    strong.security.privileged = true;
    assert_eq!(start(&mut host, strong).await, Reply::Done);
    host.until("strong to end", |host| ended(host, "strong").is_some()).await;
    let seen = host.output(4, Channel::Stdout);
    assert!(seen.contains("000001ffffffffff") && seen.contains("/dev/vda\ndone\n"), "{seen}");
    let Reply::Stats(stats) = host.ask(Request::Stats).await else { panic!() };
    assert!(stats.guest.writable_total_bytes < 64 << 20, "the writable layers lie on the disk");

    let mut terminal =
        container("terminal", 5, "tty; readlink /proc/self/fd/0; echo x > /dev/console; exit 4");
    terminal.tty = true;
    assert_eq!(start(&mut host, terminal).await, Reply::Done);
    host.until("terminal to end", |host| ended(host, "terminal").is_some()).await;
    assert_eq!(ended(&host, "terminal").unwrap().exit_code, 4);
    assert_eq!(host.output(5, Channel::Stdout), "/dev/pts/0\r\n/dev/pts/0\r\nx\r\n");

    refusals(&mut host).await;
    host.machine.kill().await;
}

/// What cannot be made true is refused with a reason, and leaves nothing.
async fn refusals(host: &mut Host) {
    let change = |stream: u32, change: &dyn Fn(&mut ContainerStart)| {
        let mut order = container("bad", stream, "true");
        change(&mut order);
        order
    };
    let mount = |volume: &str, destination: &str| {
        vec![Mount { volume: volume.into(), destination: destination.into(), ..Mount::default() }]
    };
    let cases = [
        (
            change(40, &|o| o.process.user = "nobody-here".into()),
            "CreateContainerError",
            "unable to find user",
        ),
        (change(41, &|o| o.process.must_not_be_root = true), "CreateContainerError", "runAsNonRoot"),
        (change(42, &|o| o.mounts = mount("none", "/x")), "CreateContainerError", "no volume none"),
        (change(43, &|o| o.mounts = mount("cache", "/x/../y")), "CreateContainerError", "without .."),
        (
            change(44, &|o| o.mounts = mount("late", "/x")),
            "CreateContainerError",
            "there is no disk not-here",
        ),
        (change(45, &|o| o.name = "../x".into()), "CreateContainerError", "name"),
        (change(46, &|o| o.process.args = vec!["nothing".into()]), "StartError", "not found in $PATH"),
        (change(47, &|o| o.process.cwd = "/bin/sh".into()), "SystemError", "working directory"),
        (change(1, &|_| ()), "Conflict", "stream 1 is in use"),
    ];
    for (order, wanted, part) in cases {
        let Reply::Error { reason, message } = start(host, order).await else { panic!("{part}") };
        assert!(reason == wanted && message.contains(part), "{reason}: {message}");
    }
    host.link.begin(99, "test");
    assert!(matches!(start(host, container("bad", 48, "true")).await, Reply::Done), "the name is free");
}

/// Clones of one template, whose container runs in a tight loop through it all.
#[tokio::test]
#[ignore = "boots a virtual machine with the agent in CUMULET_GUEST"]
async fn clones_are_somebody_else() {
    let parts = Parts::make();
    let mut host = Host::boot_with(&parts, Vec::new(), None).await;
    assert_eq!(host.ask(Request::Configure(pod().into())).await, Reply::Done);
    let script = "while true; do read u < /proc/sys/kernel/random/uuid; read b < /proc/sys/kernel/random/boot_id; \
        read m < /etc/machine-id; read h < /proc/sys/kernel/hostname; read t < /config/key; \
        echo $u $b $m $h $t; usleep 1000; done";
    let mut order = container("probe", 1, script);
    order.mounts = vec![Mount { volume: "config".into(), destination: "/config".into(), ..Mount::default() }];
    assert_eq!(start(&mut host, order).await, Reply::Done);
    host.until("some output", |host| host.counted(1) > 1000).await;
    assert_eq!(host.ask(Request::Quiesce).await, Reply::Done);
    host.link.acknowledge_consumed();
    for _ in 0..3 {
        host.step().await;
    }
    host.save(&parts).await;
    let before = host.output(1, Channel::Stdout);
    host.machine.kill().await;

    let mut seen = vec![before];
    for number in 1..4_u8 {
        let mut clone = Host::clone_of(&parts, &format!("clone-{number}")).await;
        let snapshot = clone.snapshot.clone().unwrap();
        assert!(snapshot.frozen && snapshot.generation == 0 && snapshot.containers.contains_key("probe"));
        let identity = Identity {
            generation: 1,
            entropy: vec![number; 32].into(),
            clock_us: 1_900_000_000_000_000,
            hostname: format!("clone-{number}"),
            machine_id: format!("{number}").repeat(32),
            boot_id: format!("{number}0000000-0000-4000-8000-000000000000"),
            volumes: [("config".to_owned(), tree(&[("key", &format!("value-{number}\n"))]))].into(),
            thaw: true,
            ..Identity::default()
        };
        // In emulation, code that runs for the first time is slow: a clone on standby has rehearsed.
        let rehearsal = Identity { hostname: "nobody".into(), thaw: false, ..identity.clone() };
        let reply = clone.ask(Request::Adopt(rehearsal.into())).await;
        let Reply::Adopted(report) = reply else { panic!("{reply:?}") };
        println!("rehearsed: {report:?}");
        let identity = Identity { generation: 2, ..identity };
        let began = Instant::now();
        let reply = clone.ask(Request::Adopt(identity.into())).await;
        let Reply::Adopted(report) = reply else { panic!("{reply:?}") };
        println!("adopted in {} ms: {report:?}", began.elapsed().as_millis());
        clone.until("lines of its own", |clone| clone.counted(1) > 1000).await;
        let text = clone.output(1, Channel::Stdout);
        // The loop may have been between its reads when it was frozen: its first line may be of both.
        for line in text.lines().skip(1).filter(|line| line.split(' ').count() == 5).take(5) {
            let expected = format!(
                " {number}0000000-0000-4000-8000-000000000000 {} clone-{number} value-{number}",
                format!("{number}").repeat(32)
            );
            assert!(line.ends_with(&expected), "{line}");
        }
        seen.push(text);
        clone.machine.kill().await;
    }
    let uuids = |text: &str| {
        text.lines().skip(1).map(|line| line.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let mut all: Vec<String> =
        seen.iter().flat_map(|text| uuids(text)).filter(|uuid| uuid.len() == 36).collect();
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), count, "two machines drew the same number");
}
