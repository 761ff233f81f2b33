//! A clone is a pod like any other: several containers, init containers, logs, commands, changed files, restarts, ends.

use crate::vm::needs_agent;
use crate::{wait_field, wait_ready};
use cumulet_e2e::{Cloud, wait_for};
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

fn pod(name: &str) -> String {
    let container = |name: &str, script: &str| {
        format!(
            "  - name: {name}\n    image: hello:1\n    command: [sh, -c, '{script}']\n    volumeMounts:\n    \
             - {{name: made, mountPath: /made}}\n    - {{name: config, mountPath: /config}}\n    \
             - {{name: secret, mountPath: /secret}}\n"
        )
    };
    // Ready when it has said something, so that a clone could say it again.
    let counts = "i=0; while true; do i=$((i+1)); echo $i; [ $i = 10 ] && touch /tmp/warm; sleep 0.2; done";
    let ready = "    readinessProbe: {exec: {command: [test, -e, /tmp/warm]}}\n";
    let ends = "echo begins; until [ -e /tmp/end ]; do sleep 0.5; done; exit 4";
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  annotations: {{snapshot.cumulet.dev/after-restore: \
         'hostname > /tmp/hook; cat /run/cumulet/generation >> /tmp/hook'}}\nspec:\n  runtimeClassName: vm-snapshot\n  \
         terminationGracePeriodSeconds: 1\n  volumes:\n  - {{name: made, emptyDir: {{}}}}\n  \
         - {{name: config, configMap: {{name: config}}}}\n  - {{name: secret, secret: {{secretName: secret}}}}\n  \
         initContainers:\n{}  containers:\n{}{ready}{}",
        container("prepares", "echo prepared; cat /proc/sys/kernel/random/uuid > /made/once"),
        container("counts", counts),
        container("ends", ends)
    )
}

/// A pod that ends by itself.
fn job(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  runtimeClassName: vm-snapshot\n  \
         restartPolicy: Never\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: hello:1\n    \
         command: [sh, -c, 'until [ -e /tmp/end ]; do sleep 0.5; done; echo done > /dev/termination-log; exit 3']\n"
    )
}

fn numbers(cloud: &Cloud, pod: &str) -> anyhow::Result<Vec<u64>> {
    let log = cloud.kubectl(&["logs", pod, "-c", "counts"])?;
    Ok(log.lines().map(str::parse).collect::<Result<_, _>>()?)
}

fn is_gapless(numbers: &[u64]) -> bool {
    numbers.windows(2).all(|pair| pair[1] == pair[0] + 1)
}

/// A connection to a clone without an identity would be forgotten without a word when it gets one.
fn standbys_accept_nothing(cloud: &Cloud) -> anyhow::Result<()> {
    let dir = wait_for("a standby", || {
        let waits = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("standby-");
        let entries = fs::read_dir(cloud.dir().join("pods")).ok()?.filter_map(Result::ok).filter(waits);
        // The state is written when it has gone through its rehearsal.
        let mut dirs = entries.map(|entry| entry.path());
        dirs.find(|dir| dir.join("state.json").exists())
    })?;
    let sandbox: serde_json::Value = serde_json::from_slice(&fs::read(dir.join("sandbox.json"))?)?;
    // Its address is in its hardware address.
    let mac: [u8; 6] = serde_json::from_value(sandbox["vm"]["mac"].clone())?;
    let address = Ipv4Addr::new(mac[2], mac[3], mac[4], mac[5]);
    let connected = TcpStream::connect_timeout(&(address, 8080).into(), Duration::from_millis(500));
    anyhow::ensure!(connected.is_err(), "the standby at {address} accepts connections");
    Ok(())
}

#[test]
fn a_clone_is_a_pod_like_any_other() -> anyhow::Result<()> {
    needs_agent()?;
    let cloud = Cloud::with_hello()?;
    cloud.kubectl(&["create", "configmap", "config", "--from-literal=key=one"])?;
    cloud.kubectl(&["create", "secret", "generic", "secret", "--from-literal=key=hidden"])?;
    for name in ["first", "second", "third"] {
        cloud.kubectl_with(&["apply", "-f", "-"], &pod(name))?;
        wait_ready(&cloud, name)?;
    }
    let exec = |pod: &str, script: &str| {
        cloud
            .kubectl(&["exec", pod, "-c", "ends", "--", "sh", "-c", script])
            .map(|text| text.trim().to_owned())
    };

    // What the init container has made is in all of them: it ran once, in the template.
    let made = exec("first", "cat /made/once")?;
    assert_eq!((exec("second", "cat /made/once")?, exec("third", "cat /made/once")?), (made.clone(), made));
    wait_field(
        &cloud,
        "pod/second",
        ".status.initContainerStatuses[0].state.terminated.reason",
        "Completed",
    )?;
    assert_eq!(exec("second", "hostname; cat /secret/key")?, "second\nhidden");

    // The command of the annotation ran in each of them, after it had its name and before its containers went on.
    for name in ["first", "second", "third"] {
        let hook = cloud.kubectl(&["exec", name, "-c", "counts", "--", "cat", "/tmp/hook"])?;
        let generation =
            cloud.kubectl(&["exec", name, "-c", "counts", "--", "cat", "/run/cumulet/generation"])?;
        assert_eq!(hook, format!("{name}\n{generation}"));
    }
    let metrics = cloud.kubectl(&["get", "--raw", "/metrics"])?;
    for line in [
        "starts_total{start=\"built\"} 1",
        "builds_total{result=\"built\"} 1",
        "phase_seconds_count{phase=\"identity\"} 2",
    ] {
        assert!(metrics.contains(line), "no {line} in\n{metrics}");
    }

    // Each line of output is somebody's, once.
    let first = numbers(&cloud, "first")?;
    assert!(is_gapless(&first) && first[0] == 1, "{first:?}");
    let begins: Vec<u64> = ["second", "third"]
        .iter()
        .map(|name| {
            let clone = wait_for("output", || numbers(&cloud, name).ok().filter(|n| n.len() > 10))?;
            anyhow::ensure!(is_gapless(&clone), "{name}: {clone:?}");
            Ok(clone[0])
        })
        .collect::<anyhow::Result<_>>()?;
    assert!(begins[0] == begins[1] && begins[0] > 1 && first.contains(&begins[0]), "{begins:?}");
    assert_eq!(cloud.kubectl(&["logs", "second", "-c", "ends"])?, "");

    // A changed file reaches clones and the first pod alike.
    cloud.kubectl(&["patch", "configmap/config", "-p", r#"{"data":{"key":"two"}}"#])?;
    for name in ["first", "second"] {
        wait_for("the new file", || exec(name, "cat /config/key").ok().filter(|text| text == "two"))?;
    }

    // A container that ends in a clone is started anew, in the same machine.
    exec("second", "touch /tmp/end")?;
    wait_field(&cloud, "pod/second", ".status.containerStatuses[?(@.name==\"ends\")].restartCount", "1")?;
    let last = ".status.containerStatuses[?(@.name==\"ends\")].lastState.terminated.exitCode";
    wait_field(&cloud, "pod/second", last, "4")?;
    wait_ready(&cloud, "second")?;
    wait_for("the new instance's output", || {
        let logs = cloud.kubectl(&["logs", "second", "-c", "ends"]).ok()?;
        (logs == "begins\n").then_some(())
    })?;
    assert_eq!(exec("second", "hostname; cat /config/key")?, "second\ntwo");
    let count = ".status.containerStatuses[?(@.name==\"counts\")].restartCount";
    assert_eq!(cloud.field("pod/second", count)?, "0");
    assert_eq!(cloud.field("pod/first", ".status.containerStatuses[?(@.name==\"ends\")].restartCount")?, "0");

    // One that ends for good.
    for name in ["job-1", "job-2"] {
        cloud.kubectl_with(&["apply", "-f", "-"], &job(name))?;
        wait_ready(&cloud, name)?;
    }
    cloud.kubectl(&["exec", "job-2", "--", "touch", "/tmp/end"])?;
    wait_field(&cloud, "pod/job-2", ".status.phase", "Failed")?;
    let state = ".status.containerStatuses[0].state.terminated";
    assert_eq!(cloud.field("pod/job-2", &format!("{state}.exitCode"))?, "3");
    assert_eq!(cloud.field("pod/job-2", &format!("{state}.message"))?.trim(), "done");
    assert_eq!(cloud.field("pod/job-1", ".status.phase")?, "Running");

    let done = ["delete", "pod", "first", "second", "third", "job-1", "job-2", "--wait=false"];
    cloud.kubectl(&done)?;

    // A new key: the Deployment is rolled over to a new template.
    cloud.kubectl_with(&["apply", "-f", "-"], include_str!("../../../../../examples/hello/snapshot.yaml"))?;
    cloud.kubectl(&["scale", "deployment/hello-snapshot", "--replicas=3"])?;
    let rolled = || cloud.kubectl(&["rollout", "status", "deployment/hello-snapshot", "--timeout=120s"]);
    rolled()?;
    standbys_accept_nothing(&cloud)?;
    cloud.kubectl(&["set", "env", "deployment/hello-snapshot", "MORE=1"])?;
    rolled().map_err(|error| error.context(cloud.kubectl(&["get", "pods,events"]).unwrap_or_default()))?;
    cloud.finish()
}
