//! Volumes: what they hold, with which modes, and that they follow their sources.

use crate::{in_class, wait_field, wait_ready};
use cumulet_e2e::{Cloud, wait_for};

also_as_machines![config_secret_downward_and_host_volumes, a_pod_waits_for_its_config];

#[test]
fn config_secret_downward_and_host_volumes() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    let host = tempfile::tempdir()?;
    std::fs::write(host.path().join("file"), "of the host")?;
    let manifest = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {a: one, b: two}
---
apiVersion: v1
kind: Secret
metadata: {name: sec}
stringData: {password: hunter2}
---
apiVersion: v1
kind: Pod
metadata: {name: vols, annotations: {note: hello}}
spec:
  containers:
  - name: main
    image: hello:1
    command: ["sleep", "1000"]
    volumeMounts:
    - {name: conf, mountPath: /conf}
    - {name: conf, mountPath: /single/a, subPath: a}
    - {name: sec, mountPath: /sec, readOnly: true}
    - {name: all, mountPath: /all}
    - {name: mem, mountPath: /mem}
    - {name: host, mountPath: /host}
  volumes:
  - {name: conf, configMap: {name: conf, items: [{key: a, path: sub/a}, {key: a, path: a}]}}
  - {name: sec, secret: {secretName: sec, defaultMode: 0400}}
  - name: all
    projected:
      sources:
      - configMap: {name: conf, items: [{key: b, path: b}]}
      - secret: {name: sec}
      - downwardAPI: {items: [{path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}}]}
  - {name: mem, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: host, hostPath: {path: HOST, type: Directory}}
"#
    .replace("HOST", &host.path().to_string_lossy());
    cloud.kubectl_with(&["apply", "-f", "-"], &in_class(&manifest))?;
    wait_ready(&cloud, "vols")?;
    let sh = |script: &str| cloud.kubectl(&["exec", "vols", "--", "sh", "-c", script]);
    assert_eq!(
        sh("cat /conf/sub/a /single/a /sec/password /all/b /all/password /all/note /host/file")?,
        "oneonehunter2twohunter2helloof the host"
    );
    assert_eq!(sh("stat -L -c %a /sec/password")?, "400\n");
    assert!(sh("echo x > /sec/password").is_err());
    assert!(
        sh("dd if=/dev/zero of=/mem/big bs=1M count=2 2>/dev/null").is_err(),
        "the size limit does not hold"
    );
    sh("echo back > /host/answer")?;
    assert_eq!(std::fs::read_to_string(host.path().join("answer"))?, "back\n");
    // A changed ConfigMap reaches the running pod.
    cloud.kubectl(&["patch", "configmap", "conf", "-p", r#"{"data":{"a":"changed"}}"#])?;
    wait_for("the change to arrive", || (sh("cat /conf/a").ok()? == "changed").then_some(()))?;
    cloud.finish()
}

#[test]
fn a_pod_waits_for_its_config() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    let pod = crate::shell_pod("later", "Never", "cat /c/k", "volumeMounts: [{name: c, mountPath: /c}]")
        + "  volumes: [{name: c, configMap: {name: later}}]\n";
    cloud.kubectl_with(&["apply", "-f", "-"], &pod)?;
    wait_for("an event FailedMount", || {
        let events = cloud.kubectl(&["get", "events"]).ok()?;
        (events.contains("FailedMount") && events.contains("configmap \"later\" not found")).then_some(())
    })?;
    cloud.kubectl(&["create", "configmap", "later", "--from-literal=k=v"])?;
    wait_field(&cloud, "pod/later", ".status.phase", "Succeeded")?;
    assert_eq!(cloud.kubectl(&["logs", "later"])?, "v");
    cloud.finish()
}
