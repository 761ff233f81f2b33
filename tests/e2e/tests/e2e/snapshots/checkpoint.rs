//! Checkpoints: a pod that runs is saved by hand, and others go on from there.

use crate::vm::needs_agent;
use crate::wait_ready;
use cumulet_e2e::{Cloud, wait_for};

/// A pod that remembers nothing on a disk. `more` is for its metadata.
fn pod(name: &str, class: &str, env: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}{more}}}\nspec:\n  runtimeClassName: {class}\n  \
         terminationGracePeriodSeconds: 0\n  containers:\n  - name: main\n    image: hello:1\n    env: [{{name: KIND, \
         value: {env}}}]\n    command: [sh, -c, 'while sleep 1; do :; done']\n"
    )
}

const FROM: &str = ", annotations: {snapshot.cumulet.dev/restore-from: saved}";

#[test]
fn a_pod_is_saved_by_hand_and_others_go_on_from_there() -> anyhow::Result<()> {
    needs_agent()?;
    let cloud = Cloud::with_hello()?;
    let apply = |text: &str| cloud.kubectl_with(&["apply", "-f", "-"], text).map(drop);
    let exec = |pod: &str, script: &str| cloud.kubectl(&["exec", pod, "--", "sh", "-c", script]);
    let says = |pod: &str, words: &str| {
        wait_for(&format!("{words:?} in the events of {pod}"), || {
            cloud.kubectl(&["describe", "pod", pod]).ok().filter(|text| text.contains(words))
        })
    };
    apply(&pod("origin", "vm-snapshot", "one", ""))?;
    apply(&pod("early", "vm-snapshot", "one", FROM))?;
    wait_ready(&cloud, "origin")?;
    says("early", "checkpoint \"saved\" is not in namespace \"default\"")?;

    // More than a state of devices may have, and a clone's own: a machine that was saved twice must not show it.
    exec(
        "origin",
        "head -c 100000000 /dev/urandom > /tmp/large; busybox md5sum < /tmp/large > /tmp/sum; echo first > /tmp/word",
    )?;
    let sum = exec("origin", "cat /tmp/sum")?;
    let said = cloud.cumulet(&["vm", "checkpoint", "origin", "--name", "saved"])?;
    assert!(said.contains("checkpoint saved of pod default/origin"), "{said}");

    // It goes on as itself: its name, its files, its time, and no restart.
    assert_eq!(exec("origin", "hostname; cat /tmp/word")?, "origin\nfirst\n");
    exec("origin", "echo second > /tmp/word")?;
    let there: u64 = exec("origin", "date +%s")?.trim().parse()?;
    let here = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    assert!(here.abs_diff(there) <= 1, "{here} here, {there} in the pod");
    assert_eq!(cloud.field("pod/origin", ".status.containerStatuses[0].restartCount")?, "0");

    // Who waited for it goes on from it, and so does one after `kill -9`; each is somebody of its own.
    wait_ready(&cloud, "early")?;
    cloud.kill_main()?;
    cloud.up()?;
    apply(&pod("late", "vm-snapshot", "one", FROM))?;
    wait_ready(&cloud, "late")?;
    for name in ["early", "late"] {
        says(name, "RestoredFromSnapshot")?;
        assert_eq!(exec(name, "hostname; cat /tmp/word")?, format!("{name}\nfirst\n"));
        assert_eq!(exec(name, "busybox md5sum < /tmp/large")?, sum);
    }
    // A clone can be saved as well, under the same name.
    exec("late", "echo third > /tmp/word")?;
    cloud.cumulet(&["vm", "checkpoint", "late", "--name", "saved"])?;
    apply(&pod("last", "vm-snapshot", "one", FROM))?;
    wait_ready(&cloud, "last")?;
    assert_eq!(
        exec("last", "hostname; cat /tmp/word; busybox md5sum < /tmp/large")?,
        format!("last\nthird\n{sum}")
    );

    // Another pod cannot go on from it, and machines of the other class are not saved.
    apply(&pod("other", "vm-snapshot", "two", FROM))?;
    says("other", "was made of another pod")?;
    apply(&pod("machine", "vm", "one", ""))?;
    wait_ready(&cloud, "machine")?;
    let refused = cloud.cumulet(&["vm", "checkpoint", "machine"]).unwrap_err().to_string();
    assert!(refused.contains("vm-snapshot"), "{refused}");
    cloud.finish()
}
