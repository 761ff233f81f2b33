//! Pods as virtual machines: the same pods as elsewhere with a `runtimeClassName`. In software emulation a boot takes
//! seconds, so one cloud serves several checks here.

use crate::{wait_field, wait_ready};
use cumulet_e2e::{Cloud, http_get, succeed, wait_for};

fn manifest() -> &'static str {
    include_str!("../../../../examples/hello/vm.yaml")
}

/// A pod that runs a shell command in a virtual machine.
pub(crate) fn machine_pod(name: &str, restart: &str, script: &str) -> String {
    crate::shell_pod(name, restart, script, "").replacen("spec:\n", "spec:\n  runtimeClassName: vm\n", 1)
}

/// The QEMU processes of a cloud: theirs are the cgroups with its pods' uids.
pub(crate) fn machines(cloud: &Cloud) -> Vec<i32> {
    let uids: Vec<String> = std::fs::read_dir(cloud.dir().join("pods"))
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let of_cloud = |pid: &i32| {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let groups = read("cgroup");
        read("comm").starts_with("qemu") && uids.iter().any(|uid| groups.contains(uid))
    };
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(of_cloud).collect()
}

/// The program has to find the agent of its machines and their kernel.
pub(crate) fn needs_agent() -> anyhow::Result<()> {
    let dir = cumulet_e2e::program().with_file_name("vm");
    match dir.join("cumulet-guest").exists() && dir.join("kernel").exists() {
        true => Ok(()),
        false => anyhow::bail!("no agent and kernel in {}: run `cargo xtask guest`", dir.display()),
    }
}

#[test]
fn hello_as_a_machine() -> anyhow::Result<()> {
    needs_agent()?;
    let cloud = Cloud::with_hello()?;
    cloud.kubectl_with(&["apply", "-f", "-"], manifest())?;
    let rolled = cloud.kubectl(&["rollout", "status", "deployment/hello-vm", "--timeout=120s"]);
    rolled.map_err(|error| error.context(cloud.kubectl(&["describe", "pods"]).unwrap_or_default()))?;
    let pod = cloud.field("pods", ".items[0].metadata.name")?;

    // Through the Service, with the ConfigMap's greeting and the downward API's name.
    let address = format!("{}:80", cloud.field("service/hello-vm", ".spec.clusterIP")?);
    assert_eq!(http_get(&address, "/")?.trim(), format!("Hello, machine, from {pod}"));
    let logs = cloud.kubectl(&["logs", &pod])?;
    assert!(logs.contains("listening on port 8080"), "{logs}");

    // Its own kernel, its own network with the pod's address, and the host's tools work on it as on a container.
    let ip = cloud.field(&format!("pod/{pod}"), ".status.podIP")?;
    let addresses = cloud.kubectl(&["exec", &pod, "--", "ip", "-o", "-4", "addr", "show", "eth0"])?;
    assert!(addresses.contains(&ip), "{addresses}");
    let kernel = cloud.kubectl(&["exec", &pod, "--", "cat", "/proc/sys/kernel/osrelease"])?;
    assert_ne!(kernel, std::fs::read_to_string("/proc/sys/kernel/osrelease")?);
    let echoed = cloud.kubectl_with(&["exec", "-i", &pod, "--", "tr", "a-z", "A-Z"], "through and back")?;
    assert_eq!(echoed, "THROUGH AND BACK");
    let failed = cloud.kubectl_fails(&["exec", &pod, "--", "sh", "-c", "echo oops >&2; exit 7"], "")?;
    assert!(failed.contains("oops") && failed.contains("exit code 7"), "{failed}");
    let name = cloud.kubectl(&["exec", &pod, "--", "wget", "-q", "-O", "-", "http://hello-vm/"])?;
    assert!(name.starts_with("Hello, machine"), "{name}");

    // A changed ConfigMap reaches the machine.
    cloud.kubectl(&["patch", "configmap/hello-vm", "-p", r#"{"data":{"greeting":"Changed,"}}"#])?;
    wait_for("the new greeting", || {
        http_get(&address, "/").ok().filter(|body| body.starts_with("Changed,"))
    })?;

    // The main process dies and comes back: the machine goes on.
    let before = machines(&cloud);
    assert_eq!(before.len(), 1);
    cloud.kill_main()?;
    assert!(http_get(&format!("{ip}:8080"), "/")?.starts_with("Changed,"));
    cloud.up()?;
    wait_for("exec after the restart", || cloud.kubectl(&["exec", &pod, "--", "true"]).ok())?;
    assert_eq!(machines(&cloud), before);
    let listed: serde_json::Value = serde_json::from_str(&cloud.cumulet(&["vm", "ls", "-o", "json"])?)?;
    assert_eq!(listed[0]["name"], pod.as_str());
    let memory = listed[0]["memory_bytes"].as_u64().unwrap_or_default();
    assert!((30 << 20..1 << 30).contains(&memory) && listed[0]["cpu_millicores"].is_u64(), "{listed}");
    assert!(cloud.cumulet(&["vm", "ls"])?.contains(" MB"));

    cloud.kubectl_with(&["delete", "-f", "-"], manifest())?;
    wait_for("the pod to be gone", || {
        cloud.kubectl(&["get", "pods", "-o", "name"]).is_ok_and(|names| names.is_empty()).then_some(())
    })?;
    assert!(machines(&cloud).is_empty());
    cloud.finish()
}

#[test]
fn a_machine_ends_and_what_follows() -> anyhow::Result<()> {
    needs_agent()?;
    let cloud = Cloud::with_hello()?;
    // A program's exit code and its last words.
    let script = "echo out; echo last words > /dev/termination-log; exit 3";
    cloud.kubectl_with(&["apply", "-f", "-"], &machine_pod("once", "Never", script))?;
    wait_field(&cloud, "pod/once", ".status.phase", "Failed")?;
    let state = ".status.containerStatuses[0].state.terminated";
    assert_eq!(cloud.field("pod/once", &format!("{state}.exitCode"))?, "3");
    assert_eq!(cloud.field("pod/once", &format!("{state}.message"))?.trim(), "last words");
    assert_eq!(cloud.kubectl(&["logs", "once"])?, "out\n");

    // A directory of the host, both ways.
    let shared = tempfile::tempdir()?;
    std::fs::write(shared.path().join("from-host"), "shared")?;
    let volume = format!(
        "    volumeMounts: [{{name: shared, mountPath: /shared}}]\n  volumes: [{{name: shared, hostPath: {{path: {}}}}}]\n",
        shared.path().display()
    );
    let script = "cat /shared/from-host && echo back > /shared/from-guest";
    cloud.kubectl_with(&["apply", "-f", "-"], &(machine_pod("sharing", "Never", script) + &volume))?;
    wait_field(&cloud, "pod/sharing", ".status.phase", "Succeeded")?;
    assert_eq!(cloud.kubectl(&["logs", "sharing"])?, "shared");
    assert_eq!(std::fs::read_to_string(shared.path().join("from-guest"))?, "back\n");

    // QEMU is killed: the container has ended with a reason, and is started anew in another machine.
    cloud.kubectl_with(&["apply", "-f", "-"], &machine_pod("again", "Always", "echo up; sleep 1000"))?;
    wait_ready(&cloud, "again")?;
    let uid = cloud.field("pod/again", ".metadata.uid")?;
    let victim = machines(&cloud).into_iter().find(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains(&uid))
    });
    let victim = nix::unistd::Pid::from_raw(victim.expect("a machine of the pod"));
    nix::sys::signal::kill(victim, nix::sys::signal::Signal::SIGKILL)?;
    let last = ".status.containerStatuses[0].lastState.terminated";
    wait_field(&cloud, "pod/again", &format!("{last}.reason"), "MachineFailed")?;
    let message = cloud.field("pod/again", &format!("{last}.message"))?;
    assert!(message.contains("QEMU was killed by signal 9"), "{message}");
    wait_ready(&cloud, "again")?;
    assert_eq!(cloud.field("pod/again", ".status.containerStatuses[0].restartCount")?, "1");

    // A kernel of the pod's own choice, among those that the node offers.
    let with_kernel = |pod: &str, kernel: &str| {
        let annotation = format!("metadata:\n  annotations: {{vm.cumulet.dev/kernel: {kernel}}}\n");
        machine_pod(pod, "Never", "true").replacen("metadata:\n", &annotation, 1)
    };
    std::fs::create_dir(cloud.dir().join("kernels"))?;
    let package = std::fs::canonicalize(cumulet_e2e::program().with_file_name("vm").join("kernel"))?;
    std::os::unix::fs::symlink(&package, cloud.dir().join("kernels/outside"))?;
    succeed(std::process::Command::new("cp").arg("-r").arg(package).arg(cloud.dir().join("kernels/mine")))?;
    let pods =
        [with_kernel("chooses", "mine"), with_kernel("roams", "outside"), with_kernel("climbs", "../x")];
    cloud.kubectl_with(&["apply", "-f", "-"], &pods.join("---\n"))?;
    for (pod, words) in [("roams", "leads out of"), ("climbs", "is no name of a kernel")] {
        wait_for(words, || {
            cloud.kubectl(&["describe", &format!("pod/{pod}")]).ok().filter(|text| text.contains(words))
        })?;
    }
    wait_field(&cloud, "pod/chooses", ".status.phase", "Succeeded")?;

    // What cannot be: an unknown class, and a directory of the host.
    let unknown =
        machine_pod("unknown", "Never", "true").replace("runtimeClassName: vm", "runtimeClassName: gone");
    cloud.kubectl_with(&["apply", "-f", "-"], &unknown)?;
    wait_for("an event about the class", || {
        cloud.kubectl(&["describe", "pod/unknown"]).ok().filter(|text| text.contains("\"gone\" not found"))
    })?;
    cloud.finish()
}
