//! What survives what: `kill -9` of the main process and of supervisors.

use crate::{shell_pod, wait_field, wait_ready};
use cumulet_e2e::{Cloud, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;

// Not random_crashes_lose_nothing: it is about writes and supervisors, which are the same, and would boot ten machines
// at once. Random ends of machines are in `vm`.
also_as_machines![
    a_killed_main_process_stops_nothing,
    a_killed_supervisor_is_replaced,
    what_was_taken_down_comes_back,
];

/// Rounds of the crash test; the full number is run with CUMULET_CRASH_ROUNDS=50.
const CRASH_ROUNDS: usize = 10;

#[test]
fn a_killed_main_process_stops_nothing() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    let ticks = shell_pod("ticks", "Always", "i=0; while true; do echo $i; i=$((i+1)); sleep 0.02; done", "");
    let ends = shell_pod("ends", "Never", "until [ -e /tmp/end ]; do sleep 0.05; done; exit 5", "");
    cloud.kubectl_with(&["apply", "-f", "-"], &[ticks, ends].join("---\n"))?;
    wait_ready(&cloud, "ticks")?;
    wait_ready(&cloud, "ends")?;
    let id = cloud.field("pod/ticks", ".status.containerStatuses[0].containerID")?;
    cloud.kubectl(&["create", "configmap", "acknowledged"])?;
    // The second pod ends while nobody looks.
    cloud.kubectl(&["exec", "ends", "--", "sh", "-c", "(sleep 0.5; touch /tmp/end) > /dev/null 2>&1 &"])?;
    cloud.kill_main()?;
    pause(1000);
    cloud.up()?;
    cloud.kubectl(&["get", "configmap", "acknowledged"])?;
    wait_field(&cloud, "pod/ends", ".status.containerStatuses[0].state.terminated.exitCode", "5")?;
    assert_eq!(
        cloud.field("pod/ticks", ".status.containerStatuses[0].containerID")?,
        id,
        "the container was replaced"
    );
    assert_eq!(cloud.field("pod/ticks", ".status.containerStatuses[0].restartCount")?, "0");
    // No line is missing.
    let log = wait_for("some lines from before and after", || {
        cloud.kubectl(&["logs", "ticks"]).ok().filter(|log| log.lines().count() > 50)
    })?;
    let numbers: Vec<usize> = log.lines().map(|l| l.parse().unwrap()).collect();
    assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>());
    cloud.finish()
}

#[test]
fn a_killed_supervisor_is_replaced() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    cloud.kubectl_with(&["apply", "-f", "-"], &shell_pod("victim", "Always", "sleep 1000", ""))?;
    wait_ready(&cloud, "victim")?;
    let supervisors = || -> Vec<i32> {
        cloud
            .processes()
            .into_iter()
            .filter(|(_, line)| line.contains(" supervise "))
            .map(|(pid, _)| pid)
            .collect()
    };
    let before = supervisors();
    assert_eq!(before.len(), 1);
    kill(Pid::from_raw(before[0]), Signal::SIGKILL)?;
    wait_field(&cloud, "pod/victim", ".status.containerStatuses[0].restartCount", "1")?;
    wait_ready(&cloud, "victim")?;
    assert_ne!(supervisors(), before);
    cloud.kubectl(&["exec", "victim", "--", "true"])?;
    cloud.finish()
}

/// The end of everything on the machine, and a start from what is on the disk.
#[test]
fn what_was_taken_down_comes_back() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    cloud.kubectl_with(&["apply", "-f", "-"], &shell_pod("stays", "Always", "echo up; sleep 1000", ""))?;
    wait_ready(&cloud, "stays")?;
    let id = ".status.containerStatuses[0].containerID";
    let before = cloud.field("pod/stays", id)?;
    cloud.cumulet(&["down", "--timeout", "1"])?;
    cloud.up()?;
    wait_for("another container", || cloud.field("pod/stays", id).ok().filter(|now| *now != before))?;
    wait_ready(&cloud, "stays")?;
    assert_eq!(cloud.kubectl(&["logs", "stays"])?, "up\n");
    cloud.finish()
}

/// `kill -9` at random moments during a burst of writes and pod starts: what was acknowledged is there, nothing runs
/// twice, nothing leaks.
#[test]
fn random_crashes_lose_nothing() -> anyhow::Result<()> {
    let rounds =
        std::env::var("CUMULET_CRASH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(CRASH_ROUNDS);
    let cloud = Cloud::with_hello()?;
    let mut acknowledged = BTreeSet::new();
    // A small linear congruential generator: the moments differ from round to round and from run to run.
    let mut random = u64::from(std::process::id());
    for round in 0..rounds {
        let pod = shell_pod(&format!("p{round}"), "Always", "sleep 1000", "");
        let writer = std::thread::scope(|scope| {
            let writes = scope.spawn(|| {
                let mut done = Vec::new();
                for n in 0..20 {
                    let name = format!("r{round}-{n}");
                    let object = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n");
                    match cloud.kubectl_with(&["create", "-f", "-"], &object) {
                        Ok(_) => done.push(format!("configmap/{name}")),
                        Err(_) => break,
                    }
                }
                done
            });
            let pods = scope.spawn(|| cloud.kubectl_with(&["create", "-f", "-"], &pod).is_ok());
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            pause(random >> 33 & 0x1ff);
            cloud.kill_main().unwrap();
            let mut done = writes.join().unwrap();
            if pods.join().unwrap() {
                done.push(format!("pod/p{round}"));
            }
            done
        });
        acknowledged.extend(writer);
        cloud.up()?;
    }
    let there = cloud.kubectl(&["get", "configmaps,pods", "-o", "name"])?;
    let there: BTreeSet<String> = there.lines().map(str::to_owned).collect();
    let lost: Vec<_> = acknowledged.difference(&there).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    // Every pod runs once, and none was restarted by our crashes.
    let pods: Vec<&String> = there.iter().filter(|name| name.starts_with("pod/")).collect();
    for pod in &pods {
        wait_ready(&cloud, pod.trim_start_matches("pod/"))?;
    }
    wait_for("one supervisor per pod", || {
        let running = cloud.processes().iter().filter(|(_, line)| line.contains(" supervise ")).count();
        (running == pods.len()).then_some(())
    })?;
    let addresses = cloud.field("pods", ".items[*].status.podIP")?;
    let distinct: BTreeSet<&str> = addresses.split(' ').collect();
    assert_eq!(distinct.len(), pods.len(), "{addresses}");
    cloud.finish()
}

/// The moment of a crash is a moment in time: there is nothing to wait on.
#[expect(clippy::disallowed_methods, reason = "the crash is to come at a moment that nothing announces")]
pub(crate) fn pause(milliseconds: u64) {
    std::thread::sleep(std::time::Duration::from_millis(milliseconds));
}
