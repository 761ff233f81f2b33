//! Virtual machines that start from a disk of their own. The disk is the smallest that does: the agentless kernel with a
//! busybox, made bootable by `image build --disk`.

use crate::vm::{machines, needs_agent};
use crate::{wait_field, wait_ready};
use anyhow::{Context, ensure};
use cumulet_e2e::{Cloud, http_get, succeed, succeed_with, wait_for};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const INIT: &str = include_str!("disk_init.sh");
const MODULES: [&str; 13] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_blk",
    "cdrom",
    "isofs",
    "button",
    "evdev",
];
const MANIFEST: &str = r#"
apiVersion: v1
kind: Secret
metadata: {name: tiny}
stringData: {userdata: "from the secret\n"}
---
apiVersion: v1
kind: Service
metadata: {name: tiny}
spec:
  selector: {app: tiny}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata:
  name: tiny
  labels: {app: tiny}
  annotations: {vm.cumulet.dev/cloud-init-secret: tiny}
spec:
  runtimeClassName: vm
  containers:
  - name: machine
    image: tiny:1
    readinessProbe: {httpGet: {port: 8080, path: /}, periodSeconds: 5}
    resources: {limits: {memory: 128Mi}}
"#;

fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    let mut entries = fs::read_dir(dir).ok()?.filter_map(Result::ok).map(|e| e.path()).collect::<Vec<_>>();
    entries.sort();
    entries.into_iter().find_map(|path| match path.is_dir() {
        true => find(&path, name),
        false => (path.file_name()?.to_str()? == name).then_some(path),
    })
}

/// A directory for `image build`: kernel, and busybox with an init in an initial RAM disk.
fn tiny(dir: &Path) -> anyhow::Result<()> {
    let kernel = cumulet_e2e::program().with_file_name("vm").join("kernel");
    let busybox = std::env::var_os("CUMULET_BUSYBOX")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("CUMULET_CACHE")?).join("bin/busybox-static")));
    let busybox = busybox.context("neither CUMULET_BUSYBOX nor CUMULET_CACHE is set")?;
    let (boot, ram) = (dir.join("root/boot"), dir.join("ram"));
    fs::create_dir_all(&boot)?;
    for name in ["bin", "proc", "sys", "dev", "mnt", "www", "modules"] {
        fs::create_dir_all(ram.join(name))?;
    }
    let image = fs::read_dir(kernel.join("boot"))?.filter_map(Result::ok).map(|e| e.path());
    let image =
        image.into_iter().find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz")));
    fs::copy(image.context("no kernel")?, boot.join("vmlinuz"))?;
    fs::copy(&busybox, ram.join("bin/busybox")).context("run `cargo xtask setup`")?;
    for module in MODULES {
        let file = format!("{module}.ko");
        let found = find(&kernel.join("lib/modules"), &file).with_context(|| format!("no {file}"))?;
        fs::copy(found, ram.join("modules").join(file))?;
    }
    fs::write(ram.join("init"), INIT)?;
    succeed(Command::new("chmod").arg("755").arg(ram.join("init")).arg(ram.join("bin/busybox")))?;
    let names = succeed(Command::new(&busybox).args(["find", "."]).current_dir(&ram))?;
    let archive = fs::File::create(boot.join("initrd.img"))?;
    let mut cpio = Command::new(&busybox);
    cpio.args(["cpio", "-o", "-H", "newc"]).current_dir(&ram).stdin(Stdio::piped()).stdout(archive);
    let mut cpio = cpio.stderr(Stdio::null()).spawn()?;
    cpio.stdin.take().context("no input")?.write_all(names.as_bytes())?;
    ensure!(cpio.wait()?.success(), "cpio failed");
    let description = "name: tiny\nversion: \"1\"\nfiles: {./root: /}\n\
                       disk: {size: 64Mi, parameters: quiet cryptomgr.notests mitigations=off}\n";
    Ok(fs::write(dir.join("cumulet.yaml"), description)?)
}

/// Types a line on the console of a pod's machine.
fn type_line(cloud: &Cloud, pod: &str, line: &str) -> anyhow::Result<()> {
    let mut command = Command::new("timeout");
    command
        .arg("3")
        .arg(cumulet_e2e::program())
        .arg("--state-dir")
        .arg(cloud.dir())
        .args(["vm", "console", pod]);
    // The end of typing ends nothing, so the time limit does, or the machine.
    let _ = succeed_with(&mut command, line);
    Ok(())
}

#[test]
fn a_disk_is_built_boots_and_ends() -> anyhow::Result<()> {
    needs_agent()?;
    let (cloud, dir) = (Cloud::start()?, tempfile::tempdir()?);
    tiny(dir.path())?;
    let file = dir.path().join("tiny.qcow2");
    let (from, to) = (dir.path().to_string_lossy().into_owned(), file.to_string_lossy().into_owned());
    let digest = cloud.cumulet(&["image", "build", "--disk", "--output", &to, &from])?;
    assert_eq!(
        cloud.cumulet(&["image", "build", "--disk", &from])?,
        digest,
        "the same layers, the same disk"
    );
    assert_eq!(fs::read(&file)?[..4], *b"QFI\xfb");

    cloud.kubectl_with(&["apply", "-f", "-"], MANIFEST)?;
    // What cannot be: a difference to a file of the host, a program in a machine, and a disk in a container.
    let hostile = dir.path().join("hostile.qcow2");
    let options = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd"];
    succeed(Command::new("qemu-img").args(options).arg(&hostile))?;
    let bad = MANIFEST.rsplit("---").next().unwrap_or_default().replace("name: tiny", "name: bad");
    let bad = bad.replace("image: tiny:1", &format!("image: file://{}", hostile.display()));
    cloud.kubectl_with(&["apply", "-f", "-"], &bad.replace("app: tiny", "app: bad"))?;
    let plain = "apiVersion: v1\nkind: Pod\nmetadata: {name: plain}\nspec:\n  containers: [{name: a, image: \"tiny:1\"}]\n";
    cloud.kubectl_with(&["apply", "-f", "-"], plain)?;
    let describes = |pod: &str, words: &str| {
        let described = || cloud.kubectl(&["describe", "pod", pod]).unwrap_or_default();
        wait_for(words, || described().contains(words).then_some(())).map_err(|e| e.context(described()))
    };
    describes("bad", "difference to another file")?;
    describes("plain", "the pod needs `runtimeClassName: vm`")?;

    wait_ready(&cloud, "tiny")
        .map_err(|e| e.context(cloud.kubectl(&["logs", "tiny"]).unwrap_or_default()))?;
    let address = format!("{}:80", cloud.field("service/tiny", ".spec.clusterIP")?);
    assert_eq!(http_get(&address, "/")?, "from the secret\n");
    let (ip, uid) = (cloud.field("pod/tiny", ".status.podIP")?, cloud.field("pod/tiny", ".metadata.uid")?);
    let log = cloud.kubectl(&["logs", "tiny"])?;
    assert!(log.contains(&format!("up with {ip}/32\n")) && log.contains(&uid), "{log}");
    let refused = cloud.kubectl_fails(&["exec", "tiny", "--", "true"], "")?;
    assert!(refused.contains("there is no agent of ours") && refused.contains("vm console"), "{refused}");

    // The guest's own end is the container's; the machine is switched on again, in the same sandbox.
    let before = machines(&cloud);
    assert_eq!(before.len(), 1);
    type_line(&cloud, "tiny", "\npoweroff -f\n")?;
    let status = ".status.containerStatuses[0]";
    wait_field(&cloud, "pod/tiny", &format!("{status}.lastState.terminated.reason"), "Completed")?;
    assert_eq!(cloud.field("pod/tiny", &format!("{status}.lastState.terminated.exitCode"))?, "0");
    wait_ready(&cloud, "tiny")?;
    assert_eq!(cloud.field("pod/tiny", &format!("{status}.restartCount"))?, "1");
    assert_eq!(cloud.field("pod/tiny", ".status.podIP")?, ip);
    assert_ne!(machines(&cloud), before);

    // Deleting presses the power button, and the guest does not use up its grace period.
    let began = Instant::now();
    cloud.kubectl(&["delete", "pod", "tiny"])?;
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(machines(&cloud).is_empty());
    cloud.finish()
}
