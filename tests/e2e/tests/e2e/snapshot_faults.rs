//! What becomes of pods that start from snapshots when something goes wrong: ends of processes in every phase, templates
//! that are damaged, a full disk, guests that do not do their part.
//!
//! Absent: jumps of the machine's clock, which no test can make without all else on the machine.

use crate::vm::{machines, needs_agent};
use crate::{shell_pod, wait_field, wait_ready};
use cumulet_e2e::{Cloud, wait_for, wait_within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Starts at once in the test of many; CUMULET_AT_ONCE says another number.
const AT_ONCE: usize = 20;
/// How long many starts may take on a busy machine.
const MANY_WITHIN: Duration = Duration::from_secs(180);

/// A pod that starts from a snapshot. Those with the same script are of one template.
fn pod(name: &str, script: &str) -> String {
    shell_pod(name, "Always", script, "").replacen("spec:\n", "spec:\n  runtimeClassName: vm-snapshot\n", 1)
}

const SLEEPS: &str = "echo up; sleep 100000";

fn apply(cloud: &Cloud, pods: &[String]) -> anyhow::Result<()> {
    cloud.kubectl_with(&["apply", "-f", "-"], &pods.join("---\n")).map(drop)
}

fn events(cloud: &Cloud, pod: &str) -> String {
    let of = format!("involvedObject.name={pod}");
    cloud.kubectl(&["get", "events", "--field-selector", &of]).unwrap_or_default()
}

fn wait_event(cloud: &Cloud, pod: &str, words: &str) -> anyhow::Result<()> {
    wait_for(&format!("an event of {pod} with {words:?}"), || {
        events(cloud, pod).contains(words).then_some(())
    })
    .map_err(|error| error.context(events(cloud, pod)))
}

/// The directory of the only template on the disk, once it has been written: until then its name begins with a dot.
fn template(cloud: &Cloud) -> anyhow::Result<PathBuf> {
    let dir = cloud.dir().join("snapshots");
    wait_for("the template on the disk", || {
        let entries = fs::read_dir(&dir).ok()?.filter_map(Result::ok);
        let mut found = entries.map(|entry| entry.path()).filter(|path| path.join("template").is_file());
        found.find(|path| !path.file_name().unwrap_or_default().as_encoded_bytes().starts_with(b"."))
    })
}

/// The main process dies and comes back, and knows nothing by heart.
fn forget(cloud: &Cloud) -> anyhow::Result<()> {
    cloud.kill_main()?;
    cloud.up()
}

/// The directory of a pod.
fn pod_dir(cloud: &Cloud, name: &str) -> anyhow::Result<PathBuf> {
    let uid = wait_for("a uid", || cloud.field(&format!("pod/{name}"), ".metadata.uid").ok())?;
    Ok(cloud.dir().join("pods").join(uid))
}

fn kill_hard(pid: i32) {
    // One that has just ended is dead, too.
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

/// Supervisors of a directory below `pods`.
fn supervisors(cloud: &Cloud, words: &str) -> Vec<i32> {
    let of = |(_, line): &(i32, String)| line.contains(" supervise ") && line.contains(words);
    cloud.processes().into_iter().filter(of).map(|(pid, _)| pid).collect()
}

/// A change of a template's files.
type Damage = fn(&Path) -> std::io::Result<()>;

#[test]
fn damaged_templates_are_not_used() -> anyhow::Result<()> {
    needs_agent()?;
    let cloud = Cloud::with_hello()?;
    apply(&cloud, &[pod("first", SLEEPS)])?;
    wait_ready(&cloud, "first")?;
    let damages: [(&str, Damage); 4] = [
        ("truncated", |dir| {
            let memory = fs::OpenOptions::new().write(true).open(dir.join("memory"))?;
            memory.set_len(memory.metadata()?.len() / 2)
        }),
        ("flipped", |dir| flip(&dir.join("memory"))),
        ("version", |dir| {
            use std::os::unix::fs::FileExt;
            let file = fs::OpenOptions::new().write(true).open(dir.join("template"))?;
            // Behind the magic number.
            file.write_all_at(&[0xff; 4], 8)
        }),
        ("foreign", |dir| {
            // Another template under this key.
            let file = dir.join("template");
            let text = fs::read(&file)?;
            let key = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let other: String = key.chars().map(|c| if c == '0' { '1' } else { '0' }).collect();
            let changed = String::from_utf8_lossy(&text).replace(&key, &other);
            fs::write(&file, changed.as_bytes())
        }),
    ];
    for (name, damage) in damages {
        damage(&template(&cloud)?)?;
        forget(&cloud)?;
        apply(&cloud, &[pod(name, SLEEPS)])?;
        wait_ready(&cloud, name)?;
        wait_event(&cloud, name, "is removed")?;
        // It was built anew, and the one after it starts from that.
        wait_event(&cloud, name, "SnapshotBuilt")?;
    }
    // A good one is read from the disk, and clones of one that is removed go on.
    template(&cloud)?;
    forget(&cloud)?;
    apply(&cloud, &[pod("good", SLEEPS)])?;
    wait_ready(&cloud, "good")?;
    wait_event(&cloud, "good", "RestoredFromSnapshot")?;
    let listed = cloud.cumulet(&["snapshot", "ls", "-o", "json"])?;
    let key = template(&cloud)?.file_name().unwrap_or_default().to_string_lossy().into_owned();
    assert!(listed.contains(&key), "{listed}");
    cloud.cumulet(&["snapshot", "rm", &key])?;
    assert_eq!(cloud.kubectl(&["exec", "good", "--", "hostname"])?, "good\n");
    apply(&cloud, &[pod("after", SLEEPS)])?;
    wait_ready(&cloud, "after")?;
    wait_event(&cloud, "after", "SnapshotBuilt")?;
    for name in ["first", "truncated", "flipped", "version", "foreign", "good", "after"] {
        assert_eq!(cloud.kubectl(&["exec", name, "--", "hostname"])?.trim(), name);
        assert_eq!(cloud.field(&format!("pod/{name}"), ".status.containerStatuses[0].restartCount")?, "0");
    }
    cloud.finish()
}

/// Changes one bit in the middle of the data.
fn flip(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut piece = vec![0; 1 << 20];
    let mut from = file.metadata()?.len() / 2;
    // What is zero is not there.
    loop {
        from = from.saturating_sub(piece.len() as u64);
        file.read_exact_at(&mut piece, from)?;
        match piece.iter().position(|byte| *byte != 0) {
            Some(at) => return file.write_all_at(&[piece[at] ^ 1], from + at as u64),
            None if from == 0 => return Err(std::io::Error::other("nothing but zeros")),
            None => {}
        }
    }
}

/// `kill -9` of the main process while the first pod boots, when it has been saved, and while clones are made.
#[test]
fn the_main_process_ends_in_every_phase() -> anyhow::Result<()> {
    needs_agent()?;
    let cloud = Cloud::with_hello()?;
    // It goes on, as a pod of its own.
    apply(&cloud, &[pod("booting", SLEEPS)])?;
    wait_event(&cloud, "booting", "BuildingSnapshot")?;
    wait_for("its machine", || (!machines(&cloud).is_empty()).then_some(()))?;
    forget(&cloud)?;
    wait_ready(&cloud, "booting")?;

    let other = "echo other; sleep 100000";
    apply(&cloud, &[pod("saved", other)])?;
    let state = pod_dir(&cloud, "saved")?.join("vm/template.state");
    wait_for("the state of its devices", || state.exists().then_some(()))?;
    forget(&cloud)?;
    wait_ready(&cloud, "saved")?;
    answers(&cloud, "saved")?;

    apply(&cloud, &[pod("template", other)])?;
    wait_ready(&cloud, "template")?;
    let before = machines(&cloud).len();
    let clones: Vec<String> = (0..3).map(|n| format!("clone-{n}")).collect();
    apply(&cloud, &clones.iter().map(|name| pod(name, other)).collect::<Vec<_>>())?;
    wait_for("a clone", || (machines(&cloud).len() > before).then_some(()))?;
    forget(&cloud)?;
    for name in &clones {
        wait_ready(&cloud, name)?;
        answers(&cloud, name)?;
    }
    cloud.finish()
}

/// A command in the pod sees the pod's own name.
fn answers(cloud: &Cloud, pod: &str) -> anyhow::Result<()> {
    let mut last = String::new();
    wait_for(&format!("an answer of {pod}"), || {
        let asked = cloud.kubectl(&["exec", pod, "--request-timeout=5s", "--", "hostname"]);
        last = asked.unwrap_or_else(|error| error.to_string());
        (last.trim() == pod).then_some(())
    })
    .map_err(|error| error.context(last))
}

/// `kill -9` of the machine of a builder and of what waits for a pod; a builder that is deleted.
#[test]
fn machines_end_in_every_phase() -> anyhow::Result<()> {
    needs_agent()?;
    let cloud = Cloud::with_hello()?;
    apply(&cloud, &[pod("builder", SLEEPS)])?;
    wait_event(&cloud, "builder", "BuildingSnapshot")?;
    let uid = cloud.field("pod/builder", ".metadata.uid")?;
    apply(&cloud, &[pod("waits-1", SLEEPS), pod("waits-2", SLEEPS)])?;
    wait_event(&cloud, "waits-1", "another pod")?;
    kill_hard(wait_for("the builder's machine", || of_pod(&cloud, &uid))?);
    for name in ["builder", "waits-1", "waits-2"] {
        wait_ready(&cloud, name)?;
        answers(&cloud, name)?;
    }

    // The next one builds.
    let other = "echo other; sleep 100000";
    apply(&cloud, &[pod("deleted", other)])?;
    wait_event(&cloud, "deleted", "BuildingSnapshot")?;
    apply(&cloud, &[pod("heir-1", other), pod("heir-2", other)])?;
    wait_event(&cloud, "heir-1", "BuildingSnapshot")?;
    cloud.kubectl(&["delete", "pod", "deleted"])?;
    for name in ["heir-1", "heir-2"] {
        wait_ready(&cloud, name)?;
    }

    // The next pod does without.
    wait_for("a standby", || (!supervisors(&cloud, "standby-").is_empty()).then_some(()))?;
    supervisors(&cloud, "standby-").into_iter().for_each(kill_hard);
    apply(&cloud, &[pod("without", other)])?;
    wait_ready(&cloud, "without")?;
    answers(&cloud, "without")?;

    // A supervisor while its clone is restored, takes on its identity, and goes on.
    let none = "metadata:\n  annotations: {snapshot.cumulet.dev/standby: \"0\"}\n";
    let alone = |name: &str| pod(name, "echo alone; sleep 100000").replacen("metadata:\n", none, 1);
    apply(&cloud, &[alone("alone")])?;
    wait_ready(&cloud, "alone")?;
    for pause_ms in [0_u64, 50, 150, 300] {
        let name = format!("orphan-{pause_ms}");
        apply(&cloud, &[alone(&name)])?;
        let uid = cloud.field(&format!("pod/{name}"), ".metadata.uid")?;
        let hit = wait_for("the pod's supervisor", || supervisors(&cloud, &uid).first().copied())?;
        crate::faults::pause(pause_ms);
        kill_hard(hit);
        wait_for("the pod to be ready with another one", || {
            let ready = cloud
                .field(&format!("pod/{name}"), ".status.conditions[?(@.type==\"Ready\")].status")
                .ok()?;
            (ready == "True" && answers(&cloud, &name).is_ok()).then_some(())
        })?;
    }
    cloud.finish()
}

/// The machine of a pod.
fn of_pod(cloud: &Cloud, uid: &str) -> Option<i32> {
    let in_pod = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains(uid))
    };
    machines(cloud).into_iter().find(in_pod)
}

#[test]
fn many_at_once() -> anyhow::Result<()> {
    needs_agent()?;
    let count = std::env::var("CUMULET_AT_ONCE").ok().and_then(|n| n.parse().ok()).unwrap_or(AT_ONCE);
    let cloud = Cloud::with_hello()?;
    let names: Vec<String> = (0..count).map(|n| format!("many-{n}")).collect();
    apply(&cloud, &names.iter().map(|name| pod(name, SLEEPS)).collect::<Vec<_>>())?;
    wait_within(MANY_WITHIN, "all to be ready", || {
        let ready = cloud.field("pods", ".items[*].status.conditions[?(@.type==\"Ready\")].status").ok()?;
        (ready.split(' ').filter(|status| *status == "True").count() == count).then_some(())
    })
    .map_err(|error| error.context(cloud.kubectl(&["get", "pods,events"]).unwrap_or_default()))?;
    let events = cloud.kubectl(&["get", "events"])?;
    let clones = events.matches("RestoredFromSnapshot").count();
    assert_eq!(clones, count - 1, "{events}");
    let addresses = cloud.field("pods", ".items[*].status.podIP")?;
    let distinct: std::collections::BTreeSet<&str> = addresses.split(' ').collect();
    assert_eq!(distinct.len(), count, "{addresses}");
    for name in &names {
        assert_eq!(cloud.kubectl(&["exec", name, "--", "hostname"])?.trim(), name);
    }
    // The first pod's line is either in the template, and then nobody says it again, or everybody says it once.
    let said = |name: &String| Ok(cloud.kubectl(&["logs", name])?.matches("up\n").count());
    let lines: usize = names.iter().map(said).sum::<anyhow::Result<usize>>()?;
    assert!(lines == 1 || lines == count, "{count} pods said {lines} lines");
    cloud.finish()
}

/// Nothing can be written where templates are kept: pods start from it all the same, while it is in use.
#[test]
fn a_full_disk_keeps_no_template() -> anyhow::Result<()> {
    needs_agent()?;
    let cloud = Cloud::new()?;
    let dir = cloud.dir().join("snapshots");
    fs::create_dir(&dir)?;
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), Some("size=6m,mode=700"))?;
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        }
    }
    let mounted = Mounted(dir.clone());
    cloud.up()?;
    cloud.build_hello()?;
    apply(&cloud, &[pod("first", SLEEPS)])?;
    wait_ready(&cloud, "first")?;
    wait_event(&cloud, "first", "SnapshotNotKept")?;
    apply(&cloud, &[pod("second", SLEEPS)])?;
    wait_ready(&cloud, "second")?;
    wait_event(&cloud, "second", "RestoredFromSnapshot")?;
    let left: Vec<_> = fs::read_dir(&dir)?.filter_map(Result::ok).map(|e| e.file_name()).collect();
    assert!(!left.iter().any(|name| name.len() == 64), "{left:?}");
    cloud.cumulet(&["down", "--timeout", "1"])?;
    drop(mounted);
    cloud.finish()
}

/// An agent with a fault, see `bin/cumulet-guest/src/fault.rs`.
fn faulty(dir: &Path, fault: &str) -> anyhow::Result<PathBuf> {
    let built = cumulet_e2e::program().with_file_name("vm-faults").join("cumulet-guest");
    let agent = dir.join("cumulet-guest");
    let copied = fs::copy(&built, &agent);
    copied.map_err(|e| anyhow::anyhow!("{}: {e}; run `cargo xtask guest-faults`", built.display()))?;
    write!(fs::OpenOptions::new().append(true).open(&agent)?, "\n{fault}\n")?;
    Ok(agent)
}

/// A cloud whose guests have a fault.
pub(crate) fn with_fault(dir: &Path, fault: &str) -> anyhow::Result<Cloud> {
    needs_agent()?;
    let cloud = Cloud::new()?.with_variable("CUMULET_GUEST", faulty(dir, fault)?);
    cloud.up()?;
    Ok(cloud)
}

#[test]
fn guests_that_do_not_freeze_or_answer_are_no_templates() -> anyhow::Result<()> {
    let check = |fault: &str, words: &str| -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let cloud = with_fault(dir.path(), fault)?;
        cloud.build_hello()?;
        apply(&cloud, &[pod("first", SLEEPS)])?;
        wait_event(&cloud, "first", "SnapshotFailed")?;
        wait_event(&cloud, "first", words)?;
        wait_ready(&cloud, "first")?;
        apply(&cloud, &[pod("second", SLEEPS)])?;
        wait_ready(&cloud, "second")?;
        wait_event(&cloud, "second", "SnapshotUnavailable")?;
        for name in ["first", "second"] {
            assert_eq!(cloud.kubectl(&["exec", name, "--", "hostname"])?.trim(), name);
        }
        wait_field(&cloud, "pod/second", ".status.containerStatuses[0].restartCount", "0")?;
        cloud.finish()
    };
    check("no-freeze", "do not stand still")?;
    check("no-acknowledgement", "no answer within")
}
