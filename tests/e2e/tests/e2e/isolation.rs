//! What root in a machine can reach: a privileged container, which is as much as a pod can ask for, tries; and what QEMU
//! could reach if a guest took it over is looked at from the host.
//!
//! Absent here: a guest that lies on the channel as its agent. The supervisor's link is tested with such guests, and
//! fuzzed, since from inside a container the port is the agent's alone (which is tested here).

use crate::vm::{machine_pod, machines, needs_agent};
use crate::{wait_field, wait_ready};
use cumulet_e2e::Cloud;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// PCI devices of a machine: the board's two bridges, then virtio-console, -rng, -balloon, -blk and -net.
const DEVICES: [&str; 7] = [
    "0x8086:0x29c0",
    "0x8086:0x2918",
    "0x1af4:0x1043",
    "0x1af4:0x1044",
    "0x1af4:0x1045",
    "0x1af4:0x1042",
    "0x1af4:0x1041",
];
/// More than all buffers between a container and its log.
const FLOOD_MIB: usize = 64;
/// What a supervisor may grow by while its guest floods it: twice the windows of a container's two streams.
const GROWTH_KIB: u64 = 2048;

fn privileged(name: &str) -> String {
    let pod = machine_pod(name, "Always", "sleep 100000");
    pod.replacen("    image: hello:1\n", "    image: hello:1\n    securityContext: {privileged: true}\n", 1)
}

#[test]
fn root_in_a_machine_reaches_its_own_devices() -> anyhow::Result<()> {
    needs_agent()?;
    let cloud = Cloud::with_hello()?;
    let pods = [privileged("root"), machine_pod("other", "Always", "sleep 100000")].join("---\n");
    cloud.kubectl_with(&["apply", "-f", "-"], &pods)?;
    wait_ready(&cloud, "root")?;
    wait_ready(&cloud, "other")?;
    let root = |script: &str| cloud.kubectl(&["exec", "root", "--", "sh", "-c", script]);
    assert!(root("grep CapEff /proc/self/status")?.contains("1ffffffffff"), "not all capabilities");

    // Its devices, and no others.
    let script = "for d in /sys/bus/pci/devices/*; do echo $(cat $d/vendor):$(cat $d/device); done";
    let found = root(script)?;
    let found: BTreeSet<&str> = found.lines().collect();
    assert_eq!(found, BTreeSet::from(DEVICES));
    assert_eq!(root("ls /sys/class/net")?.split_whitespace().collect::<Vec<_>>(), ["eth0", "lo"]);
    assert_eq!(root("grep -c virtiofs /proc/mounts; true")?.trim(), "0", "a directory of the host");

    // The image's disk is shared by all machines of the image: nobody writes to it.
    let disk = only_file(&cloud.dir().join("rootfs"), ".erofs")?;
    let before = (fs::read(&disk)?, fs::metadata(&disk)?.mtime_nsec());
    assert_eq!(root("cat /sys/block/vda/ro")?.trim(), "1");
    let script = "echo 0 > /sys/block/vda/ro; dd if=/dev/zero of=/dev/vda bs=4096 count=1 conv=fsync";
    assert!(root(script).is_err(), "the image's disk could be written");
    assert_eq!((fs::read(&disk)?, fs::metadata(&disk)?.mtime_nsec()), before);

    // The channel belongs to the agent.
    let error = root("echo x > /dev/vport0p1").err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("busy"), "{error}");
    // Whoever takes the whole machine down takes down his own.
    root("echo c > /proc/sysrq-trigger").err();
    wait_field(&cloud, "pod/root", ".status.containerStatuses[0].restartCount", "1")?;
    assert_eq!(cloud.field("pod/other", ".status.containerStatuses[0].restartCount")?, "0");
    assert_eq!(cloud.kubectl(&["exec", "other", "--", "echo", "here"])?, "here\n");
    wait_ready(&cloud, "root")?;

    what_qemu_has(&cloud, &disk)?;
    what_a_flood_costs(&cloud)?;
    cloud.finish()
}

/// QEMU as its guest would have it after an escape: a user of its own without privilege, and a few descriptors.
fn what_qemu_has(cloud: &Cloud, disk: &Path) -> anyhow::Result<()> {
    let mut users = BTreeSet::new();
    let all = machines(cloud);
    assert_eq!(all.len(), 2);
    for pid in all {
        let proc = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
        let status = proc("status")?;
        for line in
            ["CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"]
        {
            assert!(status.contains(line), "no {line} in\n{status}");
        }
        let user = fs::metadata(format!("/proc/{pid}/status"))?.uid();
        assert!(user >= 0x7000_0000, "user {user}");
        users.insert(user);
        assert_eq!(owned_by(cloud.dir(), user), Vec::<String>::new());
        // Neither an interface nor somebody else's tap: its own is a descriptor.
        let interfaces = proc("net/dev")?;
        let names: Vec<&str> =
            interfaces.lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
        assert_eq!(names, ["lo"]);
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let path = entry?.path();
            let (Ok(target), Some(number)) = (fs::read_link(&path), path.file_name()) else { continue };
            let target = target.to_string_lossy().into_owned();
            let flags = proc(&format!("fdinfo/{}", number.to_string_lossy()))?;
            let flags = flags.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or_default();
            let writable = u32::from_str_radix(flags.trim(), 8)? & 0o3 != 0;
            let own = ["socket:", "pipe:", "anon_inode:", "/memfd:", "/dev/null", "/dev/net/tun"];
            let shared =
                [disk.to_string_lossy().into_owned(), cloud.dir().join("kernel").display().to_string()];
            let fine = own.iter().any(|start| target.starts_with(start))
                || !writable && shared.iter().any(|start| target.starts_with(start));
            assert!(fine, "QEMU has {target} (writable: {writable})");
        }
    }
    assert_eq!(users.len(), 2, "machines share a user");
    Ok(())
}

/// A guest that writes as fast as it can fills its log, which is rotated, and not the supervisor's memory.
fn what_a_flood_costs(cloud: &Cloud) -> anyhow::Result<()> {
    let uid = cloud.field("pod/root", ".metadata.uid")?;
    let file = fs::read_to_string(cloud.dir().join("pods").join(uid).join("supervisor.pid"))?;
    let supervisor = file.split_whitespace().next().unwrap_or_default().to_owned();
    let memory = || -> anyhow::Result<u64> {
        let text = fs::read_to_string(format!("/proc/{supervisor}/smaps_rollup"))?;
        let dirty = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:"));
        Ok(dirty.and_then(|kib| kib.split_whitespace().next()?.parse().ok()).unwrap_or_default())
    };
    let flood = |to: &str| {
        let script = format!("dd if=/dev/zero bs=1M count={FLOOD_MIB} 2>/dev/null | tr '\\0' x > {to}");
        cloud.kubectl(&["exec", "root", "--", "sh", "-c", &script])
    };
    let before = memory()?;
    // As the container's output, into its log.
    flood("/proc/1/fd/1")?;
    // As a command's, to a client.
    assert_eq!(flood("/dev/stdout")?.len(), FLOOD_MIB << 20);
    let after = memory()?;
    assert!(after < before + GROWTH_KIB, "a supervisor grew from {before} to {after} KiB");
    Ok(())
}

/// The one file of a directory with this ending.
fn only_file(dir: &Path, ending: &str) -> anyhow::Result<std::path::PathBuf> {
    let mut found = fs::read_dir(dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().ends_with(ending));
    match (found.next(), found.next()) {
        (Some(path), None) => Ok(path),
        _ => anyhow::bail!("not one {ending} in {}", dir.display()),
    }
}

/// Everything below a directory that belongs to a user.
fn owned_by(dir: &Path, user: u32) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().filter_map(Result::ok) {
            let Ok(meta) = entry.path().symlink_metadata() else { continue };
            if meta.uid() == user {
                found.push(entry.path().display().to_string());
            }
            if meta.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    found
}
