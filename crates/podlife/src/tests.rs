//! The machine against a simulated node: tables for what a kubectl user sees, properties for arbitrary histories.

use crate::container::after;
use crate::*;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A node that does what it is told, at once or when the test says so.
struct Sim {
    life: PodLife,
    pod: Value,
    now: Timestamp,
    timer: Option<Timestamp>,
    /// Effects that are still owed an answer.
    owed: Vec<Effect>,
    running: BTreeMap<String, u32>,
    starts: Vec<(String, u32)>,
    /// The next start goes on from a snapshot.
    restored: bool,
    events: Vec<(String, String)>,
    status: PodStatus,
    signals: Vec<(String, bool)>,
    gone: bool,
}

fn pod(spec: Value) -> Value {
    json!({"metadata": {"name": "web", "namespace": "default", "uid": "u1", "generation": 1}, "spec": spec})
}

fn digest(pod: &Value) -> PodDigest {
    PodDigest::of(&serde_json::from_value::<Pod>(pod.clone()).unwrap())
}

fn ended(exit_code: i32, at: Timestamp) -> Ended {
    let reason = if exit_code == 0 { "Completed" } else { "Error" };
    Ended {
        id: "c0".into(),
        exit_code,
        signal: 0,
        reason: reason.into(),
        message: String::new(),
        started_at: None,
        finished_at: at,
    }
}

impl Sim {
    fn new(spec: Value) -> Self {
        Self::with(pod(spec), None, Found::Nothing)
    }

    fn with(pod: Value, status: Option<PodStatus>, found: Found) -> Self {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let running = match &found {
            Found::Running { containers, .. } => {
                containers.iter().filter(|c| c.state.is_ok()).map(|c| (c.name.clone(), c.attempt)).collect()
            }
            _ => BTreeMap::new(),
        };
        let life = PodLife::new(digest(&pod), vec!["192.0.2.1".into()], status.as_ref(), found, now);
        let mut sim = Self {
            life,
            pod,
            now,
            timer: None,
            owed: Vec::new(),
            running,
            starts: Vec::new(),
            restored: false,
            events: Vec::new(),
            status: PodStatus::default(),
            signals: Vec::new(),
            gone: false,
        };
        sim.observe();
        sim
    }

    fn observe(&mut self) {
        let digest = digest(&self.pod);
        self.send(Event::SpecObserved(Box::new(digest)));
    }

    fn delete(&mut self, grace: i64) {
        self.pod["metadata"]["deletionTimestamp"] = json!("2024-01-01T00:00:00Z");
        self.pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.observe();
    }

    fn send(&mut self, event: Event) {
        for effect in self.life.apply(event, self.now) {
            match effect {
                Effect::PublishStatus(status) => self.publish(*status),
                Effect::RecordEvent { reason, message, .. } => self.events.push((reason.to_owned(), message)),
                Effect::ArmTimer { at } => self.timer = at,
                Effect::ConfirmDeleted => {
                    assert!(self.running.is_empty(), "gone with running containers");
                    self.gone = true;
                }
                Effect::Signal { container, kill, .. } => self.signals.push((container, kill)),
                Effect::StartContainer { container, attempt } => {
                    assert!(!self.running.contains_key(&container), "{container} is running already");
                    assert!(
                        !self.owed.iter().any(
                            |e| matches!(e, Effect::StartContainer { container: c, .. } if *c == container)
                        ),
                        "{container} is starting already"
                    );
                    self.starts.push((container.clone(), attempt));
                    self.owed.push(Effect::StartContainer { container, attempt });
                }
                other => self.owed.push(other),
            }
        }
    }

    /// A status must never contradict itself, nor a terminal phase change.
    fn publish(&mut self, status: PodStatus) {
        let before = self.status.phase.clone().unwrap_or_default();
        let phase = status.phase.clone().unwrap();
        if before == "Succeeded" || before == "Failed" {
            assert_eq!(phase, before, "a terminal phase is final");
        }
        let all: Vec<&ContainerStatus> = status.container_statuses.iter().flatten().collect();
        let ready = self.condition_of(&status, "Ready");
        if ready == "True" {
            assert_eq!(phase, "Running");
            assert!(all.iter().all(|c| c.ready), "Ready with an unready container");
        }
        for c in all.iter().copied().chain(status.init_container_statuses.iter().flatten()) {
            let state = c.state.clone().unwrap();
            let kinds = [state.running.is_some(), state.waiting.is_some(), state.terminated.is_some()];
            assert_eq!(kinds.iter().filter(|k| **k).count(), 1, "exactly one state: {state:?}");
            assert!(!(c.started == Some(true) && state.running.is_none()), "started but not running");
            if phase == "Succeeded" || phase == "Failed" {
                assert!(state.running.is_none(), "{phase} with a running container");
            }
            let old = self.status.container_statuses.iter().flatten().find(|o| o.name == c.name);
            assert!(old.is_none_or(|o| o.restart_count <= c.restart_count), "restart count went back");
        }
        self.status = status;
    }

    fn condition_of(&self, status: &PodStatus, name: &str) -> String {
        let all = status.conditions.iter().flatten();
        all.filter(|c| c.type_ == name).map(|c| c.status.clone()).next().unwrap_or_default()
    }

    fn condition(&self, name: &str) -> String {
        self.condition_of(&self.status, name)
    }

    /// Answers one owed effect in the good way.
    fn answer(&mut self, effect: Effect) {
        let now = self.now;
        let event = match effect {
            Effect::PrepareVolumes => Event::VolumesReady,
            Effect::EnsureImage { container } => {
                Event::ImageResolved { container, image_id: "sha256:1".into(), pulled: None }
            }
            Effect::CreateSandbox => Event::SandboxReady { ips: vec!["10.86.0.2".into()] },
            Effect::StartContainer { container, attempt } => {
                self.running.insert(container.clone(), attempt);
                let restored = std::mem::take(&mut self.restored);
                Event::ContainerStarted { container, attempt, id: "c0".into(), at: now, restored }
            }
            Effect::RunHook { container, attempt, hook, .. } => {
                Event::HookFinished { container, attempt, hook, failure: None }
            }
            Effect::RunProbe { container, attempt, probe } => {
                Event::ProbeResult { container, attempt, probe, outcome: ProbeOutcome::Success }
            }
            Effect::DestroySandbox => {
                self.lose_processes();
                Event::SandboxDestroyed
            }
            other => unreachable!("{other:?} is not answered"),
        };
        self.send(event);
    }

    /// With the supervisor, what runs is gone, and so are pending starts, hooks and probes.
    fn lose_processes(&mut self) {
        self.running.clear();
        let needs_sandbox = |e: &Effect| {
            matches!(e, Effect::StartContainer { .. } | Effect::RunHook { .. } | Effect::RunProbe { .. })
        };
        self.owed.retain(|e| !needs_sandbox(e));
    }

    /// Answers everything owed in the good way, until nothing is.
    fn settle(&mut self) {
        while !self.owed.is_empty() {
            let effect = self.owed.remove(0);
            self.answer(effect);
        }
    }

    /// Lets time pass, firing the timer when it is due.
    fn pass(&mut self, by: SignedDuration) {
        let until = after(self.now, by);
        while let Some(at) = self.timer.filter(|at| *at <= until) {
            self.now = at.max(self.now);
            self.timer = None;
            self.send(Event::TimerFired);
            self.settle();
        }
        self.now = until;
    }

    fn end(&mut self, container: &str, exit_code: i32) {
        let Some(attempt) = self.running.remove(container) else { return };
        let ended = ended(exit_code, self.now);
        self.send(Event::ContainerEnded { container: container.to_owned(), attempt, ended });
    }

    /// The word that kubectl would show for a container.
    fn word(&self, container: &str) -> String {
        let all = self.status.container_statuses.iter().chain(&self.status.init_container_statuses).flatten();
        let status = all.clone().find(|c| c.name == container).unwrap();
        let state = status.state.clone().unwrap();
        let waiting = state.waiting.and_then(|w| w.reason);
        let terminated = state.terminated.and_then(|t| t.reason);
        waiting.or(terminated).unwrap_or_else(|| "Running".to_owned())
    }

    fn phase(&self) -> &str {
        self.status.phase.as_deref().unwrap_or_default()
    }

    fn told(&self, reason: &str) -> bool {
        self.events.iter().any(|(r, _)| r == reason)
    }
}

fn secs(n: i64) -> SignedDuration {
    SignedDuration::from_secs(n)
}

fn one(policy: &str) -> Value {
    json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "hello"}]})
}

#[test]
fn plain_pod_runs_and_goes() {
    let mut sim = Sim::new(one("Always"));
    assert_eq!((sim.phase(), sim.word("a").as_str()), ("Pending", "ContainerCreating"));
    // Sandbox, volumes and image are asked for at once.
    assert_eq!(sim.owed.len(), 3);
    sim.settle();
    assert_eq!((sim.phase(), sim.condition("Ready").as_str()), ("Running", "True"));
    assert_eq!(sim.status.pod_ip.as_deref(), Some("10.86.0.2"));
    sim.delete(30);
    assert_eq!(sim.signals, [("a".to_owned(), false)]);
    sim.end("a", 0);
    sim.settle();
    assert!(sim.gone);
    assert_eq!(sim.phase(), "Succeeded");
}

#[test]
fn restart_policies() {
    for (policy, code, restarts, phase) in [
        ("Always", 0, true, "Running"),
        ("Always", 1, true, "Running"),
        ("OnFailure", 0, false, "Succeeded"),
        ("OnFailure", 1, true, "Running"),
        ("Never", 0, false, "Succeeded"),
        ("Never", 1, false, "Failed"),
    ] {
        let mut sim = Sim::new(one(policy));
        sim.settle();
        sim.end("a", code);
        sim.settle();
        assert_eq!(sim.starts.len() == 2, restarts, "{policy} {code}");
        assert_eq!(sim.phase(), phase, "{policy} {code}");
    }
}

#[test]
fn crash_loop_backs_off() {
    let mut sim = Sim::new(one("Always"));
    sim.settle();
    sim.end("a", 1);
    sim.settle();
    assert_eq!(sim.word("a"), "Running");
    sim.end("a", 1);
    sim.settle();
    assert_eq!(sim.word("a"), "CrashLoopBackOff");
    assert!(sim.told("BackOff"));
    let status = &sim.status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(status.restart_count, 1);
    assert_eq!(status.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
    let message = status.state.as_ref().unwrap().waiting.as_ref().unwrap().message.clone().unwrap();
    assert_eq!(message, "back-off 10s restarting failed container=a pod=web_default(u1)");
    sim.pass(secs(9));
    assert_eq!(sim.word("a"), "CrashLoopBackOff");
    sim.pass(secs(2));
    assert_eq!(sim.word("a"), "Running");
    assert_eq!(sim.starts.last().unwrap().1, 2);
}

#[test]
fn missing_image() {
    let mut sim = Sim::new(one("Always"));
    let fail = |sim: &mut Sim| {
        let at = sim.owed.iter().position(|e| matches!(e, Effect::EnsureImage { .. })).unwrap();
        sim.owed.remove(at);
        let reason = "ErrImagePull".to_owned();
        sim.send(Event::ImageFailed { container: "a".into(), reason, message: "not in the store".into() });
    };
    fail(&mut sim);
    sim.settle();
    assert_eq!((sim.phase(), sim.word("a").as_str()), ("Pending", "ErrImagePull"));
    sim.pass(secs(3));
    assert_eq!(sim.word("a"), "ImagePullBackOff");
    let told = sim.events.iter().filter(|(reason, _)| reason == "BackOff").count();
    assert_eq!(told, 1, "{:?}", sim.events);
    sim.send(Event::ImagesChanged);
    assert_eq!(sim.word("a"), "ErrImagePull");
    sim.settle();
    assert_eq!(sim.word("a"), "Running");
}

#[test]
fn init_containers_and_sidecars_in_order() {
    let mut sim = Sim::new(json!({
        "initContainers": [{"name": "i", "image": "x"}, {"name": "s", "image": "x", "restartPolicy": "Always"}],
        "containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "x"}], "restartPolicy": "OnFailure",
    }));
    sim.settle();
    assert_eq!(sim.starts, [("i".to_owned(), 0)]);
    assert_eq!(sim.word("a"), "PodInitializing");
    assert_eq!(sim.condition("Initialized"), "False");
    sim.end("i", 1);
    sim.settle();
    sim.end("i", 0);
    sim.settle();
    let names: Vec<_> = sim.starts.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names, ["i", "i", "s", "a", "b"]);
    assert_eq!((sim.phase(), sim.condition("Initialized").as_str()), ("Running", "True"));
    sim.end("a", 0);
    sim.end("b", 0);
    assert_eq!(sim.signals, [("s".to_owned(), false)]);
    sim.end("s", 143);
    sim.settle();
    assert_eq!(sim.phase(), "Succeeded");
}

#[test]
fn failed_init_of_a_never_pod_fails_it() {
    let mut sim = Sim::new(json!({"restartPolicy": "Never",
        "initContainers": [{"name": "i", "image": "x"}], "containers": [{"name": "a", "image": "x"}]}));
    sim.settle();
    sim.end("i", 3);
    sim.settle();
    assert_eq!((sim.phase(), sim.starts.len()), ("Failed", 1));
}

#[test]
fn liveness_failure_restarts() {
    let mut sim = Sim::new(json!({"containers": [{"name": "a", "image": "x",
        "livenessProbe": {"periodSeconds": 1, "failureThreshold": 2}}]}));
    sim.settle();
    for _ in 0..2 {
        sim.now = sim.timer.unwrap();
        sim.send(Event::TimerFired);
        assert_eq!(sim.owed.len(), 1);
        sim.owed.clear();
        let outcome = ProbeOutcome::Failure("connection refused".into());
        let probe = ProbeKind::Liveness;
        sim.send(Event::ProbeResult { container: "a".into(), attempt: 0, probe, outcome });
    }
    assert!(sim.told("Unhealthy"));
    let killing = sim.events.iter().find(|(r, _)| r == "Killing").unwrap();
    assert_eq!(killing.1, "Container a failed liveness probe, will be restarted");
    sim.end("a", 143);
    sim.settle();
    assert_eq!(sim.starts.last().unwrap(), &("a".to_owned(), 1));
}

#[test]
fn startup_gates_readiness() {
    let mut sim = Sim::new(json!({"containers": [{"name": "a", "image": "x",
        "startupProbe": {"periodSeconds": 10}, "readinessProbe": {"periodSeconds": 10}}]}));
    while !sim.owed.iter().any(|e| matches!(e, Effect::RunProbe { .. })) {
        let effect = sim.owed.remove(0);
        sim.answer(effect);
    }
    assert_eq!(sim.status.container_statuses.as_ref().unwrap()[0].started, Some(false));
    assert_eq!(sim.condition("Ready"), "False");
    sim.settle();
    assert_eq!(sim.status.container_statuses.as_ref().unwrap()[0].started, Some(true));
    assert_eq!(sim.condition("Ready"), "True");
}

#[test]
fn what_goes_on_from_a_snapshot_has_started() {
    let spec = json!({"containers": [{"name": "a", "image": "x", "startupProbe": {"initialDelaySeconds": 60},
        "readinessProbe": {"initialDelaySeconds": 30}}]});
    let mut sim = Sim::new(spec);
    sim.restored = true;
    sim.settle();
    assert_eq!(sim.status.container_statuses.as_ref().unwrap()[0].started, Some(true));
    assert_eq!(sim.condition("Ready"), "True", "its readiness was asked for at once");
    // The next instance boots.
    sim.end("a", 1);
    sim.settle();
    assert_eq!(sim.starts.len(), 2);
    assert_eq!(sim.status.container_statuses.as_ref().unwrap()[0].started, Some(false));
    assert_eq!(sim.condition("Ready"), "False");
}

#[test]
fn grace_then_kill() {
    let mut sim = Sim::new(json!({"containers": [{"name": "a", "image": "x",
        "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}]}));
    sim.settle();
    sim.delete(5);
    assert!(sim.signals.is_empty(), "the hook comes first");
    sim.settle();
    assert_eq!(sim.signals, [("a".to_owned(), false)]);
    sim.pass(secs(6));
    assert_eq!(sim.signals[1], ("a".to_owned(), true));
    sim.pass(secs(20));
    assert!(sim.gone, "the sandbox goes with what does not die");
}

#[test]
fn deadline_fails_the_pod() {
    let mut spec = one("Always");
    spec["activeDeadlineSeconds"] = json!(5);
    let mut sim = Sim::new(spec);
    sim.settle();
    sim.pass(secs(6));
    assert_eq!(sim.signals, [("a".to_owned(), false)]);
    sim.end("a", 143);
    sim.settle();
    assert_eq!((sim.phase(), sim.status.reason.as_deref()), ("Failed", Some("DeadlineExceeded")));
    assert!(!sim.gone);
}

#[test]
fn readiness_gates() {
    let mut spec = one("Always");
    spec["readinessGates"] = json!([{"conditionType": "example.com/up"}]);
    let mut sim = Sim::new(spec);
    sim.settle();
    assert_eq!(
        (sim.condition("ContainersReady").as_str(), sim.condition("Ready").as_str()),
        ("True", "False")
    );
    sim.pod["status"]["conditions"] = json!([{"type": "example.com/up", "status": "True"}]);
    sim.observe();
    assert_eq!(sim.condition("Ready"), "True");
}

#[test]
fn adoption_keeps_what_runs() {
    let mut first = Sim::new(one("Always"));
    first.settle();
    first.end("a", 1);
    first.settle();
    let container = FoundContainer {
        name: "a".into(),
        attempt: 1,
        id: "c1".into(),
        state: Ok(first.now),
        previous: Some(ended(1, first.now)),
    };
    let found = Found::Running { ips: vec!["10.86.0.2".into()], containers: vec![container] };
    let mut sim = Sim::with(first.pod.clone(), Some(first.status.clone()), found);
    sim.settle();
    assert!(sim.starts.is_empty());
    assert_eq!((sim.phase(), sim.condition("Ready").as_str()), ("Running", "True"));
    assert_eq!(sim.status.container_statuses.as_ref().unwrap()[0].restart_count, 1);
    assert_eq!(sim.status.start_time, first.status.start_time);
}

#[test]
fn lost_sandbox_is_made_anew() {
    for (policy, starts, phase) in [("Always", 2, "Running"), ("Never", 1, "Failed")] {
        let mut sim = Sim::new(one(policy));
        sim.settle();
        sim.running.clear();
        sim.send(Event::SandboxLost { ended: vec![] });
        sim.settle();
        assert_eq!((sim.starts.len(), sim.phase()), (starts, phase), "{policy}");
    }
}

#[test]
fn reboot_keeps_restart_counts() {
    let mut first = Sim::new(one("Always"));
    first.settle();
    let mut sim = Sim::with(first.pod.clone(), Some(first.status.clone()), Found::Nothing);
    sim.settle();
    assert_eq!(sim.starts, [("a".to_owned(), 1)]);
}

#[derive(Clone, Debug)]
enum Act {
    Answer(usize),
    Refuse(usize),
    End(usize, i32),
    Pass(i64),
    Delete(i64),
    Lose,
    Remove,
    Change,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        10 => (0usize..8).prop_map(Act::Answer),
        3 => (0usize..8).prop_map(Act::Refuse),
        4 => (0usize..4, 0i32..3).prop_map(|(c, code)| Act::End(c, code)),
        4 => (0i64..400).prop_map(Act::Pass),
        1 => (0i64..40).prop_map(Act::Delete),
        1 => Just(Act::Lose),
        1 => Just(Act::Remove),
        1 => Just(Act::Change),
    ];
    proptest::collection::vec(act, 0..60)
}

impl Sim {
    fn refuse(&mut self, effect: Effect) {
        let now = self.now;
        let event = match effect {
            Effect::PrepareVolumes => Event::VolumesFailed { message: "no".into() },
            Effect::EnsureImage { container } => {
                Event::ImageFailed { container, reason: "ErrImagePull".into(), message: "no".into() }
            }
            Effect::CreateSandbox => Event::SandboxFailed { message: "no".into(), permanent: false },
            Effect::StartContainer { container, attempt } if attempt % 2 == 0 => {
                let (reason, message) = ("CreateContainerError".to_owned(), "no".to_owned());
                Event::StartFailed { container, attempt, reason, message }
            }
            Effect::StartContainer { container, attempt } => {
                Event::ContainerEnded { container, attempt, ended: ended(128, now) }
            }
            Effect::RunHook { container, attempt, hook, .. } => {
                Event::HookFinished { container, attempt, hook, failure: Some("no".into()) }
            }
            Effect::RunProbe { container, attempt, probe } => {
                Event::ProbeResult { container, attempt, probe, outcome: ProbeOutcome::Failure("no".into()) }
            }
            other => return self.answer(other),
        };
        self.send(event);
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Answer(n) if n < self.owed.len() => {
                let effect = self.owed.remove(n);
                self.answer(effect);
            }
            Act::Refuse(n) if n < self.owed.len() => {
                let effect = self.owed.remove(n);
                self.refuse(effect);
            }
            Act::End(n, code) => {
                if let Some(name) = self.running.keys().nth(n).cloned() {
                    self.end(&name, code);
                }
            }
            Act::Pass(s) => {
                self.now = after(self.now, secs(s));
                if self.timer.is_some_and(|at| at <= self.now) {
                    self.timer = None;
                    self.send(Event::TimerFired);
                }
            }
            Act::Delete(grace) => self.delete(grace),
            Act::Lose => {
                self.lose_processes();
                self.send(Event::SandboxLost { ended: vec![] });
            }
            Act::Remove => self.send(Event::Removed),
            Act::Change => {
                self.send(Event::InputsChanged);
                self.send(Event::ImagesChanged);
            }
            Act::Answer(_) | Act::Refuse(_) => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// `Sim` itself asserts that nothing runs twice and that no status contradicts itself.
    #[test]
    fn any_history(policy in 0usize..3, shape in 0usize..3, history in acts()) {
        let policy = ["Always", "OnFailure", "Never"][policy];
        let probe = json!({"periodSeconds": 5, "failureThreshold": 2});
        let app = json!({"name": "a", "image": "x", "livenessProbe": probe, "readinessProbe": probe,
            "lifecycle": {"preStop": {"sleep": {"seconds": 1}}, "postStart": {"sleep": {"seconds": 1}}}});
        let plain = json!({"name": "b", "image": "x"});
        let sidecar = json!({"name": "s", "image": "x", "restartPolicy": "Always", "startupProbe": probe});
        let init = json!({"name": "i", "image": "x"});
        let spec = match shape {
            0 => json!({"restartPolicy": policy, "containers": [plain]}),
            1 => json!({"restartPolicy": policy, "containers": [app, plain], "activeDeadlineSeconds": 600}),
            _ => json!({"restartPolicy": policy, "containers": [app], "initContainers": [init, sidecar]}),
        };
        let mut sim = Sim::new(spec);
        let mut through = None;
        for act in history {
            sim.act(act);
            if policy == "Never" {
                for name in ["a", "b", "i"] {
                    let made = sim.starts.iter().filter(|(n, a)| n == name && *a > 0).count();
                    prop_assert_eq!(made, 0, "{} of a Never pod was restarted", name);
                }
            }
            if sim.gone {
                through.get_or_insert(sim.starts.len());
            }
        }
        // Whatever happened: a deleted pod comes to its end, and nothing is started any more.
        sim.delete(3);
        let starts = sim.starts.len();
        for _ in 0..4 {
            sim.settle();
            sim.pass(secs(30));
        }
        prop_assert!(sim.gone, "not gone: {:?}", sim.life);
        prop_assert_eq!(sim.starts.len(), starts);
        if let Some(n) = through {
            prop_assert_eq!(n, starts);
        }
    }
}
