//! Claims: what pods write outlives them, the cloud's `down` and a killed main process, and goes when it should.

use crate::{wait_field, wait_ready};
use cumulet_e2e::{Cloud, wait_for, wait_within};
use std::time::Duration;

/// The runtime classes for which the same has to hold; empty for containers.
const VM: &str = "vm";

fn claim(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec:\n  accessModes: \
         [ReadWriteOnce]\n  resources: {{requests: {{storage: 64Mi}}}}\n{spec}---\n"
    )
}

/// A pod that runs a command with a claim at /data. `more` are further lines of its specification.
fn pod(name: &str, class: &str, script: &str, claim: &str, more: &str) -> String {
    let class = if class.is_empty() { String::new() } else { format!("  runtimeClassName: {class}\n") };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n{class}  restartPolicy: Never\n  \
         terminationGracePeriodSeconds: 1\n{more}  containers:\n  - name: main\n    image: hello:1\n    command: [sh, \
         -c, \"{script}\"]\n    volumeMounts: [{{name: data, mountPath: /data}}]\n  volumes:\n  - {{name: data, \
         persistentVolumeClaim: {{claimName: {claim}}}}}\n"
    )
}

fn wait_end(cloud: &Cloud, pod: &str) -> anyhow::Result<String> {
    wait_field(cloud, &format!("pod/{pod}"), ".status.phase", "Succeeded")?;
    cloud.kubectl(&["logs", pod])
}

/// What lies in the directory of volumes.
fn files(cloud: &Cloud) -> Vec<String> {
    let entries = std::fs::read_dir(cloud.dir().join("volumes")).into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn wait_no_volumes(cloud: &Cloud) -> anyhow::Result<()> {
    let mut last = String::new();
    wait_for("all volumes to be gone", || {
        last = cloud.kubectl(&["get", "pv,pvc", "-A", "-o", "name"]).ok()? + &files(cloud).join("\n");
        last.is_empty().then_some(())
    })
    .map_err(|error| error.context(last.clone()))
}

#[test]
fn of_containers() -> anyhow::Result<()> {
    persistence("")
}

#[test]
fn of_machines() -> anyhow::Result<()> {
    crate::vm::needs_agent()?;
    persistence(VM)
}

fn persistence(class: &str) -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    let classes = cloud.kubectl(&["get", "sc"])?;
    assert!(classes.contains("local (default)") && classes.contains("WaitForFirstConsumer"), "{classes}");

    // A claim waits for its first pod, and a pod for its claim.
    cloud.kubectl_with(&["apply", "-f", "-"], &pod("first", class, "echo kept > /data/f", "data", ""))?;
    let message = ".status.conditions[?(@.type==\"PodScheduled\")].message";
    wait_field(
        &cloud,
        "pod/first",
        message,
        "0/1 nodes are available: persistentvolumeclaim \"data\" not found.",
    )?;
    cloud.kubectl_with(&["apply", "-f", "-"], &claim("unused", ""))?;
    cloud.kubectl_with(&["apply", "-f", "-"], &claim("data", ""))?;
    wait_end(&cloud, "first")?;
    wait_field(&cloud, "pvc/data", ".status.phase", "Bound")?;
    assert_eq!(cloud.field("pvc/data", ".spec.storageClassName")?, "local");
    assert_eq!(cloud.field("pvc/unused", ".status.phase")?, "Pending");
    let described = cloud.kubectl(&["describe", "pvc", "unused"])?;
    assert!(described.contains("WaitForFirstConsumer"), "{described}");
    wait_for("the event of the volume", || {
        cloud.kubectl(&["describe", "pvc", "data"]).ok().filter(|text| text.contains("ProvisioningSucceeded"))
    })?;
    let table = cloud.kubectl(&["get", "pv"])?;
    assert!(table.contains("default/data") && table.contains("Bound") && table.contains("RWO"), "{table}");

    // The next pod sees it, as another user with the volume's group, and one that may not write cannot.
    cloud.kubectl(&["delete", "pod", "first"])?;
    let user = "  securityContext: {runAsUser: 1000, runAsGroup: 1000, fsGroup: 2000}\n";
    let script = "cat /data/f && echo more >> /data/f && mkdir /data/sub && echo below > /data/sub/g && stat -c %g /data/f";
    cloud.kubectl_with(&["apply", "-f", "-"], &pod("second", class, script, "data", user))?;
    assert_eq!(wait_end(&cloud, "second")?, "kept\n2000\n");
    let reading = pod("third", class, "cat /data/g; ! touch /data/x 2>/dev/null", "data", "")
        .replace("mountPath: /data}", "mountPath: /data, subPath: sub, readOnly: true}");
    cloud.kubectl_with(&["apply", "-f", "-"], &reading)?;
    assert_eq!(wait_end(&cloud, "third")?, "below\n");

    // It is there after `down` and `up`.
    cloud.kubectl(&["delete", "pod", "--all"])?;
    cloud.cumulet(&["down", "--timeout", "1"])?;
    cloud.up()?;
    cloud
        .kubectl_with(&["apply", "-f", "-"], &pod("holder", class, "cat /data/f; sleep 1000", "data", ""))?;
    wait_ready(&cloud, "holder")?;
    wait_for("what was written before", || {
        cloud.kubectl(&["logs", "holder"]).ok().filter(|text| text == "kept\nmore\n")
    })?;

    // While a pod has it, a deleted claim stays; afterwards all of it goes.
    cloud.kubectl(&["delete", "pvc", "data", "--wait=false"])?;
    let claims = cloud.kubectl(&["get", "pvc", "data"])?;
    assert!(claims.contains("Terminating"), "{claims}");
    assert_eq!(cloud.kubectl(&["exec", "holder", "--", "cat", "/data/sub/g"])?, "below\n");
    cloud.kubectl(&["delete", "pod", "holder"])?;
    cloud.kubectl(&["delete", "pvc", "unused"])?;
    wait_no_volumes(&cloud)?;
    cloud.finish()
}

#[test]
fn what_is_retained_and_what_was_there_before() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    let host = tempfile::tempdir()?;
    std::fs::write(host.path().join("f"), "of the host")?;
    let manifest = format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: host}}\nspec:\n  capacity: {{storage: 1Gi}}\n  \
         accessModes: [ReadWriteOnce]\n  hostPath: {{path: {}}}\n---\n{}{}---\napiVersion: storage.k8s.io/v1\nkind: \
         StorageClass\nmetadata: {{name: kept}}\nprovisioner: cumulet.dev/local\nreclaimPolicy: Retain\n---\n{}{}",
        host.path().display(),
        claim("host", "  storageClassName: \"\"\n"),
        pod("host", "", "cat /data/f", "host", ""),
        claim("kept", "  storageClassName: kept\n"),
        pod("kept", "", "echo kept > /data/f", "kept", ""),
    );
    cloud.kubectl_with(&["apply", "-f", "-"], &manifest)?;
    assert_eq!(wait_end(&cloud, "host")?, "of the host");
    assert_eq!(cloud.field("pvc/host", ".spec.volumeName")?, "host");
    wait_end(&cloud, "kept")?;
    let volume = cloud.field("pvc/kept", ".spec.volumeName")?;
    cloud.kubectl(&["delete", "pod,pvc", "--all"])?;
    wait_field(&cloud, &format!("pv/{volume}"), ".status.phase", "Released")?;
    wait_field(&cloud, "pv/host", ".status.phase", "Released")?;
    // Its object goes, what is in it stays.
    cloud.kubectl(&["delete", "pv", &volume, "host"])?;
    let kept = std::fs::read_to_string(cloud.dir().join("volumes").join(&volume).join("f"))?;
    assert_eq!(kept, "kept\n");
    assert!(host.path().join("f").exists());

    // A pod's own volume comes and goes with it.
    let own = pod("own", "", "echo mine > /data/f; sleep 1000", "x", "").replace(
        "persistentVolumeClaim: {claimName: x}",
        "ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}}",
    );
    cloud.kubectl_with(&["apply", "-f", "-"], &own)?;
    wait_ready(&cloud, "own")?;
    assert_eq!(cloud.field("pvc/own-data", ".status.phase")?, "Bound");
    cloud.kubectl(&["delete", "pod", "own"])?;
    wait_for("the pod's volume to be gone", || {
        cloud.kubectl(&["get", "pv,pvc", "-o", "name"]).is_ok_and(|names| names.is_empty()).then_some(())
    })?;
    cloud.finish()
}

#[test]
fn disks_of_machines() -> anyhow::Result<()> {
    crate::vm::needs_agent()?;
    let cloud = Cloud::with_hello()?;
    let claims = claim("disk", "  storageClassName: local-disk\n") + &claim("raw", "  volumeMode: Block\n");
    cloud.kubectl_with(&["apply", "-f", "-"], &claims)?;
    let both = |name: &str, script: &str| {
        let with_device = "volumeDevices: [{name: raw, devicePath: /dev/raw}]\n    volumeMounts:";
        pod(name, VM, script, "disk", "").replace("volumeMounts:", with_device)
            + "  - {name: raw, persistentVolumeClaim: {claimName: raw}}\n"
    };
    // Nothing is flushed by the program: the machine's end does it.
    let script = "echo on disk > /data/f; grep -c ext4 /proc/mounts > /data/mounts; echo raw bytes | dd of=/dev/raw bs=512 conv=sync";
    cloud.kubectl_with(&["apply", "-f", "-"], &both("writer", script))?;
    wait_end(&cloud, "writer")?;
    // A second pod cannot have a disk that the first one still has.
    cloud.kubectl_with(&["apply", "-f", "-"], &both("reader", "cat /data/f; head -c 9 /dev/raw"))?;
    cloud.kubectl(&["delete", "pod", "writer"])?;
    assert_eq!(wait_end(&cloud, "reader")?, "on disk\nraw bytes");
    cloud.kubectl(&["delete", "pod", "reader"])?;

    // A container gets the file system of the disk too, where the machine has loop devices; devices it does not get.
    if std::path::Path::new("/dev/loop-control").exists() {
        cloud.kubectl_with(&["apply", "-f", "-"], &pod("mounts", "", "cat /data/f", "disk", ""))?;
        assert_eq!(wait_end(&cloud, "mounts")?, "on disk\n");
    }
    let device = pod("device", "", "true", "raw", "").replace(
        "volumeMounts: [{name: data, mountPath: /data}]",
        "volumeDevices: [{name: data, devicePath: /dev/x}]",
    );
    cloud.kubectl_with(&["apply", "-f", "-"], &device)?;
    wait_for("an event that says so", || {
        cloud
            .kubectl(&["describe", "pod", "device"])
            .ok()
            .filter(|text| text.contains("runtimeClassName: vm"))
    })?;
    cloud.kubectl(&["delete", "pod,pvc", "--all"])?;
    wait_no_volumes(&cloud)?;
    cloud.finish()
}

/// `kill -9` at moments while volumes are made and removed: every pod gets its volume, and nothing is left of any.
#[test]
fn a_killed_main_process_leaks_no_volumes() -> anyhow::Result<()> {
    const PODS: usize = 6;
    let cloud = Cloud::with_hello()?;
    for (round, pause_ms) in [0_u64, 30, 60, 90, 150].into_iter().enumerate() {
        let name = |n: usize| format!("c{round}-{n}");
        let all: String = (0..PODS)
            .map(|n| {
                claim(&name(n), "")
                    + &pod(&name(n), "", "echo x > /data/f; sleep 1000", &name(n), "")
                    + "---\n"
            })
            .collect();
        cloud.kubectl_with(&["create", "-f", "-"], &all)?;
        crate::faults::pause(pause_ms);
        cloud.kill_main()?;
        cloud.up()?;
        for n in 0..PODS {
            wait_ready(&cloud, &name(n))?;
        }
        let volumes = files(&cloud);
        assert!(volumes.len() == PODS && volumes.iter().all(|v| v.starts_with("pvc-")), "{volumes:?}");
        cloud.kubectl(&["delete", "pod", "--all", "--force", "--grace-period=0"])?;
        cloud.kubectl(&["delete", "pvc", "--all", "--wait=false"])?;
        crate::faults::pause(pause_ms);
        cloud.kill_main()?;
        cloud.up()?;
        wait_no_volumes(&cloud)?;
    }
    // A claim that goes while nobody looks takes what was half made with it.
    let orphan = cloud.dir().join("volumes");
    std::fs::create_dir_all(orphan.join("pvc-nobody"))?;
    std::fs::write(orphan.join(".new-pvc-nobody"), "")?;
    std::fs::create_dir_all(orphan.join("kept"))?;
    cloud.kill_main()?;
    cloud.up()?;
    wait_within(Duration::from_secs(10), "the half-made volume to be gone", || {
        (files(&cloud) == ["kept"]).then_some(())
    })?;
    cloud.finish()
}
