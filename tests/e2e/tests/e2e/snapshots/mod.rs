//! Pods that start from a memory snapshot: what a program sees that was running when it was taken, in every clone.
//!
//! `CUMULET_CLONES` says how many clones the test of identity makes.

mod capture;
mod checkpoint;
mod pods;
mod records;

use crate::vm::needs_agent;
use crate::wait_ready;
use capture::{Capture, Sender};
use cumulet_e2e::{Cloud, http_get, succeed, wait_for, wait_within};
use nix::net::if_::if_nameindex;
use records::Log;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Clones, and how many are asked for at once.
const CLONES: usize = 24;
const BURST: usize = 8;
/// How far the clock of a clone may be from the host's.
const CLOCK_US: i64 = 50_000;
/// How long a burst may take on a busy machine.
const BURST_WITHIN: Duration = Duration::from_secs(120);
/// Values that no two machines share.
const OWN: &[&str] =
    &["boot_id", "machine_id", "hostname", "mac", "address", "name", "uid", "hosts", "document", "env"];

/// Builds the image `probe:1`.
pub(crate) fn build_probe(cloud: &Cloud) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let bin = dir.path().join("rootfs/bin");
    std::fs::create_dir_all(&bin)?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("probe/probe.rs");
    let options = ["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "panic=abort"];
    succeed(Command::new("rustc").args(options).arg(source).arg("-o").arg(bin.join("probe")))?;
    // What is there in an image is replaced for a pod.
    std::fs::create_dir_all(dir.path().join("rootfs/etc"))?;
    std::fs::write(dir.path().join("rootfs/etc/machine-id"), "of the image\n")?;
    let manifest =
        "name: probe\nversion: \"1\"\nbase: scratch\nfiles:\n  ./rootfs: /\nentrypoint: [/bin/probe]\n";
    std::fs::write(dir.path().join("cumulet.yaml"), manifest)?;
    cloud.cumulet(&["image", "build", &dir.path().to_string_lossy()]).map(drop)
}

/// A pod of the probe. All are of one template, as they differ in their names only.
fn probe_pod(name: &str, peer: &Peer) -> String {
    let (peer, annotations) = (peer.port, peer.annotations);
    format!(
        r#"apiVersion: v1
kind: Pod
metadata: {{name: {name}, annotations: {{{annotations}}}}}
spec:
  runtimeClassName: vm-snapshot
  terminationGracePeriodSeconds: 0
  containers:
  - name: probe
    image: probe:1
    env: [{{name: PEER_PORT, value: "{peer}"}}]
    ports: [{{containerPort: 8080}}]
    readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}}}
    resources: {{requests: {{cpu: 1m, memory: 8Mi}}, limits: {{memory: 32Mi}}}}
    volumeMounts: [{{name: podinfo, mountPath: /podinfo}}]
  volumes:
  - name: podinfo
    downwardAPI:
      items:
      - {{path: name, fieldRef: {{fieldPath: metadata.name}}}}
      - {{path: uid, fieldRef: {{fieldPath: metadata.uid}}}}
"#
    )
}

/// What was said on one connection: when, and by whom.
#[derive(Default)]
struct Said {
    lines: Vec<(Instant, String)>,
}

/// By the address of the other end.
type Connections = BTreeMap<SocketAddr, Said>;

fn locked(all: &Mutex<Connections>) -> MutexGuard<'_, Connections> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Somebody on the host to whom the probes have connections.
struct Peer {
    port: u16,
    /// Annotations of the pods that know it, in YAML.
    annotations: &'static str,
    said: Arc<Mutex<Connections>>,
}

impl Peer {
    fn start(annotations: &'static str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("0.0.0.0:0")?;
        let port = listener.local_addr()?.port();
        let said: Arc<Mutex<Connections>> = Arc::default();
        let all = said.clone();
        // Ends with the test's process, as do its connections' threads.
        std::thread::spawn(move || {
            for stream in listener.incoming().filter_map(Result::ok) {
                let Ok(from) = stream.peer_addr() else { continue };
                let all = all.clone();
                locked(&all).entry(from).or_default();
                std::thread::spawn(move || {
                    for line in BufReader::new(stream).lines().map_while(Result::ok) {
                        locked(&all).entry(from).or_default().lines.push((Instant::now(), line));
                    }
                });
            }
        });
        Ok(Self { port, annotations, said })
    }
}

/// A pod as the API tells of it.
#[derive(Clone, Debug)]
struct Told {
    name: String,
    uid: String,
    ip: Ipv4Addr,
}

fn told(cloud: &Cloud, name: &str) -> anyhow::Result<Told> {
    let object: Value = serde_json::from_str(&cloud.kubectl(&["get", "pod", name, "-o", "json"])?)?;
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(Told { name: name.to_owned(), uid: text("/metadata/uid"), ip: text("/status/podIP").parse()? })
}

/// Microseconds since the epoch.
fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// The tap of an address.
fn tap_of(address: Ipv4Addr) -> anyhow::Result<String> {
    let end = format!("{:08x}", u32::from(address));
    let interfaces = if_nameindex()?;
    let mut names = interfaces.iter().map(|i| i.name().to_string_lossy().into_owned());
    names
        .find(|name| name.starts_with('v') && name.ends_with(&end))
        .ok_or_else(|| anyhow::anyhow!("no tap {end}"))
}

/// What all clones together show.
#[derive(Default)]
struct Seen {
    /// By name of the value, who had it.
    own: BTreeMap<(&'static str, String), String>,
    /// Numbers that were drawn, by whom.
    drawn: BTreeMap<String, String>,
    first_ticks: BTreeMap<u64, Vec<String>>,
    worst_clock_us: i64,
    complaints: Vec<String>,
}

impl Seen {
    fn complain(&mut self, who: &str, what: impl AsRef<str>) {
        self.complaints.push(format!("{who}: {}", what.as_ref()));
    }

    /// Takes note of a clone's records from the first that lies wholly after the thaw.
    fn clone(&mut self, pod: &Told, log: &Log, gateway: &str, asked_us: i64) {
        let who = &pod.name;
        let Some(after) = log.after_thaw() else { return self.complain(who, "no record after the thaw") };
        let first = &after[0];
        for record in &after {
            let expected = [
                ("hostname", pod.name.as_str()),
                ("name", &pod.name),
                ("uid", &pod.uid),
                ("address", &pod.ip.to_string()),
                ("route", gateway),
                ("generation", first.get("generation_last")),
            ];
            for (field, value) in expected {
                if record.get(field) != value {
                    let text = format!("{field} is {:?}, not {value:?}: {record}", record.get(field));
                    self.complain(who, text);
                }
            }
            let within = [("document", &pod.uid), ("env", &pod.name), ("hosts", &pod.ip.to_string())];
            for (field, value) in within {
                if !record.get(field).contains(value.as_str()) {
                    self.complain(who, format!("{field} has no {value}: {record}"));
                }
            }
            for name in OWN {
                if record.get(name) != first.get(name) {
                    self.complain(who, format!("{name} changed after the thaw: {record}"));
                }
            }
            for name in ["random", "uuid", "random_last"] {
                if let Some(other) = self.drawn.insert(record.get(name).to_owned(), format!("{who} {name}")) {
                    self.complain(who, format!("{other} had drawn the same {name} {}", record.get(name)));
                }
            }
            let tcp = record.get("tcp");
            if tcp.starts_with("alive") && !tcp.starts_with(&format!("alive from {}:", pod.ip)) {
                self.complain(who, format!("its connection is {tcp}"));
            }
            let wall = record.number("wall");
            if wall < asked_us - CLOCK_US || wall > record.logged_us + CLOCK_US {
                let (early, late) = (asked_us - wall, wall - record.logged_us);
                self.complain(
                    who,
                    format!("its clock is {early} us before its time or {late} us after: {record}"),
                );
            }
        }
        for name in OWN {
            if let Some(other) = self.own.insert((*name, first.get(name).to_owned()), who.clone()) {
                self.complain(who, format!("{other} has the same {name}: {}", first.get(name)));
            }
        }
        if log.records.iter().filter(|record| record.get("tcp").starts_with("dead")).count() != 1 {
            self.complain(who, "the template's connection did not end once");
        }
        if let Some(pair) = log.records.windows(2).find(|pair| {
            pair[0].number("monotonic_last") > pair[1].number("monotonic")
                || pair[1].number("monotonic") > pair[1].number("monotonic_last")
        }) {
            self.complain(who, format!("the monotonic clock goes back: {} {}", pair[0], pair[1]));
        }
        match log.ticks.first() {
            Some(tick) => self.first_ticks.entry(*tick).or_default().push(who.clone()),
            None => self.complain(who, "no output"),
        }
    }

    /// Asks for the time, and bounds the difference by the times of the question and of the answer.
    fn clock(&mut self, pod: &Told) -> anyhow::Result<()> {
        let before = now_us();
        let theirs: i64 = http_get(&format!("{}:8080", pod.ip), "/now")?.trim().parse()?;
        let off = (before - theirs).max(theirs - now_us()).max(0);
        self.worst_clock_us = self.worst_clock_us.max(off);
        if off > CLOCK_US {
            self.complain(&pod.name, format!("its clock is off by {} ms", off / 1000));
        }
        Ok(())
    }
}

/// Makes clones in bursts and gives what was wrong with them.
fn look_at_clones(
    cloud: &Cloud,
    (clones, at_once): (usize, usize),
    annotations: &'static str,
) -> anyhow::Result<Vec<String>> {
    build_probe(cloud)?;
    let peer = Peer::start(annotations)?;
    let mut seen = Seen::default();
    let asked_us = now_us();
    cloud.kubectl_with(&["apply", "-f", "-"], &probe_pod("template", &peer))?;
    wait_ready(cloud, "template")?;
    let template = told(cloud, "template")?;
    let its_tap = tap_of(template.ip)?;
    let capture = Capture::start(its_tap[..its_tap.len() - 8].to_owned())?;
    let gateway = (u32::from(template.ip) & 0xffff_0000) + 1;
    let gateway = Ipv4Addr::from(gateway).to_string();
    let log = wait_for("the template's records", || log_of(cloud, "template").ok().filter(Log::is_complete))?;
    seen.clone(&template, &log, &gateway, asked_us);
    let mac = log.after_thaw().map(|after| after[0].get("mac").to_owned()).unwrap_or_default();
    // What it drew before is nobody's to draw again.
    for record in log.records.iter().filter(|record| record.generation().is_none()) {
        seen.drawn.insert(record.get("random").to_owned(), "before the snapshot".to_owned());
        seen.drawn.insert(record.get("uuid").to_owned(), "before the snapshot".to_owned());
    }
    seen.clock(&template)?;
    let mut done = 0;
    while done < clones {
        let names: Vec<String> = (done..clones.min(done + at_once)).map(|n| format!("clone-{n}")).collect();
        burst(cloud, &names, &peer, (&gateway, &mut seen))?;
        done += names.len();
    }
    let senders = capture.finish()?;
    seen.complaints.extend(strangers(&senders, &its_tap, &mac, template.ip));
    connections(&peer, &mut seen);
    let again = log_of(cloud, "template")?;
    if !again.is_gapless() || again.ticks.first() != Some(&0) {
        seen.complain("template", "lines of its output are lost or doubled");
    }
    if seen.first_ticks.values().map(Vec::len).sum::<usize>() != clones + 1 || seen.first_ticks.len() != 2 {
        let text = format!("output begins differently: {:?}", seen.first_ticks);
        seen.complain("clones", text);
    }
    println!("{clones} clones, clocks off by at most {} us, {senders:?}", seen.worst_clock_us);
    Ok(seen.complaints)
}

fn log_of(cloud: &Cloud, pod: &str) -> anyhow::Result<Log> {
    Log::parse(&cloud.kubectl(&["logs", "--timestamps", pod])?)
}

fn burst(
    cloud: &Cloud,
    names: &[String],
    peer: &Peer,
    (gateway, seen): (&str, &mut Seen),
) -> anyhow::Result<()> {
    let pods: Vec<String> = names.iter().map(|name| probe_pod(name, peer)).collect();
    let (asked_us, began) = (now_us(), Instant::now());
    cloud.kubectl_with(&["apply", "-f", "-"], &pods.join("---\n"))?;
    let timeout = format!("--timeout={}s", BURST_WITHIN.as_secs());
    let mut wait = vec!["wait", "pod", "--for=condition=Ready", &timeout];
    wait.extend(names.iter().map(String::as_str));
    cloud
        .kubectl(&wait)
        .map_err(|error| error.context(cloud.kubectl(&["describe", "pods"]).unwrap_or_default()))?;
    println!("{} clones ready after {} ms", names.len(), began.elapsed().as_millis());
    for name in names {
        let pod = told(cloud, name)?;
        seen.clock(&pod)?;
        let log = wait_within(BURST_WITHIN, "a clone's records", || {
            log_of(cloud, name).ok().filter(Log::is_complete)
        })?;
        if !log.is_gapless() {
            seen.complain(name, format!("lines of its output are lost or doubled: {:?}", log.ticks));
        }
        seen.clone(&pod, &log, gateway, asked_us);
        let events =
            cloud.kubectl(&["get", "events", "--field-selector", &format!("involvedObject.name={name}")])?;
        if !events.contains("RestoredFromSnapshot") {
            seen.complain(name, format!("is no clone:\n{events}"));
        }
    }
    let mut delete = vec!["delete", "pod"];
    delete.extend(names.iter().map(String::as_str));
    cloud.kubectl(&delete).map(drop)
}

/// Senders with the template's address, or with an address that is not their tap's.
fn strangers(senders: &BTreeSet<Sender>, its_tap: &str, mac: &str, ip: Ipv4Addr) -> Vec<String> {
    let text = |mac: &[u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    let wrong = |(tap, from, address): &&Sender| {
        let own = u32::from_str_radix(&tap[tap.len() - 8..], 16).map(Ipv4Addr::from).ok();
        tap != its_tap && (text(from) == mac || *address == Some(ip))
            || address.is_some_and(|a| Some(a) != own)
    };
    senders
        .iter()
        .filter(wrong)
        .map(|(tap, from, address)| format!("{tap}: a frame from {} {address:?}", text(from)))
        .collect()
}

/// Nobody says anything on the connection of another.
fn connections(peer: &Peer, seen: &mut Seen) {
    for (from, said) in locked(&peer.said).iter() {
        let names: BTreeSet<&str> = said.lines.iter().map(|(_, name)| name.as_str()).collect();
        if names.len() > 1 {
            seen.complaints.push(format!("{names:?} all spoke on the connection from {from}"));
        }
    }
}

#[test]
fn every_clone_is_somebody_of_its_own() -> anyhow::Result<()> {
    needs_agent()?;
    let clones = std::env::var("CUMULET_CLONES").ok().and_then(|n| n.parse().ok()).unwrap_or(CLONES);
    let cloud = Cloud::start()?;
    let complaints = look_at_clones(&cloud, (clones, BURST), "")?;
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    cloud.finish()
}

/// The test above must be able to fail: clones of an agent that does not reseed draw the same numbers.
#[test]
fn clones_that_do_not_reseed_are_found_out() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let cloud = crate::snapshot_faults::with_fault(dir.path(), "no-reseed")?;
    // A standby lives for long enough to draw a new key by itself, and so does one of many that start at once.
    let complaints = look_at_clones(&cloud, (4, 2), "snapshot.cumulet.dev/standby: \"0\"")?;
    let same = complaints.iter().any(|complaint| complaint.contains("had drawn the same"));
    assert!(same, "nobody noticed: {complaints:?}");
    cloud.finish()
}
