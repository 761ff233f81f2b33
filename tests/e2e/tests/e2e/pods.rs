//! What a pod means: restarts, exit codes, probes, logs, exec, env, init containers, limits, security.

use crate::{in_class, shell_pod, wait_field, wait_ready};
use cumulet_e2e::{Cloud, wait_for};

also_as_machines![
    exit_codes_and_restart_policies,
    logs_exec_and_attach,
    following_a_log_ends_with_the_container,
    init_containers_environment_and_identity,
    probes_decide_readiness_and_life,
    limits_and_security,
    an_image_that_is_not_there,
];

fn state(pod: &str) -> String {
    format!("pod/{pod}")
}

#[test]
fn exit_codes_and_restart_policies() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    let all = [
        shell_pod("good", "Never", "echo done; echo last words > /dev/termination-log", ""),
        shell_pod("bad", "Never", "echo no >&2; exit 3", "terminationMessagePolicy: FallbackToLogsOnError"),
        shell_pod(
            "again",
            "OnFailure",
            "test -e /data/once && exit 0; touch /data/once; exit 1",
            "volumeMounts: [{name: d, mountPath: /data}]",
        ) + "  volumes: [{name: d, emptyDir: {}}]\n",
        shell_pod("loops", "Always", "echo run; exit 7", ""),
        shell_pod("missing", "Never", "true", "").replace("\"sh\", \"-c\", \"true\"", "\"/no/such/program\""),
    ];
    cloud.kubectl_with(&["apply", "-f", "-"], &all.join("---\n"))?;

    wait_field(&cloud, "pod/good", ".status.phase", "Succeeded")?;
    let terminated = ".status.containerStatuses[0].state.terminated";
    assert_eq!(cloud.field("pod/good", &format!("{terminated}.reason"))?, "Completed");
    assert_eq!(cloud.field("pod/good", &format!("{terminated}.message"))?, "last words\n");

    wait_field(&cloud, "pod/bad", ".status.phase", "Failed")?;
    assert_eq!(cloud.field("pod/bad", &format!("{terminated}.exitCode"))?, "3");
    assert_eq!(cloud.field("pod/bad", &format!("{terminated}.reason"))?, "Error");
    assert_eq!(cloud.field("pod/bad", &format!("{terminated}.message"))?, "no\n");

    wait_field(&cloud, "pod/again", ".status.phase", "Succeeded")?;
    assert_eq!(cloud.field("pod/again", ".status.containerStatuses[0].restartCount")?, "1");
    assert_eq!(cloud.field("pod/again", ".status.containerStatuses[0].lastState.terminated.exitCode")?, "1");

    wait_field(&cloud, "pod/loops", ".status.containerStatuses[0].state.waiting.reason", "CrashLoopBackOff")?;
    assert_eq!(cloud.field("pod/loops", ".status.containerStatuses[0].lastState.terminated.exitCode")?, "7");
    assert_eq!(cloud.kubectl(&["logs", "loops", "--previous"])?, "run\n");
    let table = cloud.kubectl(&["get", "pod", "loops", "--no-headers"])?;
    assert!(table.contains("0/1") && table.contains("CrashLoopBackOff"), "{table}");

    wait_field(&cloud, "pod/missing", ".status.containerStatuses[0].state.terminated.reason", "StartError")?;
    assert_eq!(cloud.field("pod/missing", &format!("{terminated}.exitCode"))?, "128");
    cloud.finish()
}

#[test]
fn logs_exec_and_attach() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    let script = "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done; sleep 1000";
    cloud.kubectl_with(&["apply", "-f", "-"], &shell_pod("talk", "Always", script, ""))?;
    wait_ready(&cloud, "talk")?;
    wait_for("all lines", || (cloud.kubectl(&["logs", "talk"]).ok()?.lines().count() == 200).then_some(()))?;
    assert_eq!(cloud.kubectl(&["logs", "talk", "--tail=2"])?, "line 198\nline 199\n");
    let stamped = cloud.kubectl(&["logs", "talk", "--tail=1", "--timestamps"])?;
    assert!(stamped.starts_with("20") && stamped.ends_with("Z line 199\n"), "{stamped}");
    assert_eq!(cloud.kubectl(&["logs", "talk", "--limit-bytes=6"])?, "line 0");

    assert_eq!(cloud.kubectl(&["exec", "talk", "--", "echo", "hi"])?, "hi\n");
    assert_eq!(cloud.kubectl_with(&["exec", "-i", "talk", "--", "cat"], "through stdin")?, "through stdin");
    let failed = cloud.kubectl_fails(&["exec", "talk", "--", "sh", "-c", "echo oops >&2; exit 42"], "")?;
    assert!(failed.contains("oops") && failed.contains("exit code 42"), "{failed}");
    let missing = cloud.kubectl_fails(&["exec", "talk", "--", "nosuch"], "")?;
    assert!(missing.contains("nosuch"), "{missing}");
    assert!(cloud.cumulet(&["exec", "talk", "--", "hostname"])?.contains("talk"));
    assert_eq!(cloud.cumulet(&["logs", "talk", "--tail", "1"])?, "line 199\n");
    cloud.finish()
}

#[test]
fn following_a_log_ends_with_the_container() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    let script = "for i in 1 2 3 4 5; do echo $i; sleep 0.1; done";
    cloud.kubectl_with(&["apply", "-f", "-"], &shell_pod("counts", "Never", script, ""))?;
    wait_for("a log", || cloud.kubectl(&["logs", "counts"]).ok().filter(|log| !log.is_empty()))?;
    assert_eq!(cloud.kubectl(&["logs", "-f", "counts"])?, "1\n2\n3\n4\n5\n");
    cloud.finish()
}

#[test]
fn init_containers_environment_and_identity() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    let manifest = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: blue, size: "3"}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {token: s3cret}
---
apiVersion: v1
kind: Pod
metadata: {name: env, labels: {tier: test}}
spec:
  restartPolicy: Never
  initContainers:
  - name: first
    image: hello:1
    command: ["sh", "-c", "echo from-init > /shared/word"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
  - name: main
    image: hello:1
    command: ["sh", "-c"]
    args: ["cat /shared/word; echo $COLOR-$P_size-$TOKEN-$TIER-$NODE-$(GREETING)-$IP; id -u; id -g; hostname; pwd"]
    workingDir: /tmp
    securityContext: {runAsUser: 1234, runAsGroup: 2345}
    envFrom: [{prefix: P_, configMapRef: {name: settings}}]
    env:
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
    - {name: TOKEN, valueFrom: {secretKeyRef: {name: keys, key: token}}}
    - {name: TIER, valueFrom: {fieldRef: {fieldPath: "metadata.labels['tier']"}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: GREETING, value: hi-$(COLOR)}
    volumeMounts: [{name: shared, mountPath: /shared}]
  volumes: [{name: shared, emptyDir: {}}]
"#;
    cloud.kubectl_with(&["apply", "-f", "-"], &in_class(manifest))?;
    wait_field(&cloud, "pod/env", ".status.phase", "Succeeded")?;
    let ip = cloud.field("pod/env", ".status.podIP")?;
    let log = cloud.kubectl(&["logs", "env", "-c", "main"])?;
    let expected = format!("from-init\nblue-3-s3cret-test-default-hi-blue-{ip}\n1234\n2345\nenv\n/tmp\n");
    assert_eq!(log, expected);
    assert_eq!(
        cloud.field("pod/env", ".status.initContainerStatuses[0].state.terminated.reason")?,
        "Completed"
    );
    cloud.finish()
}

#[test]
fn probes_decide_readiness_and_life() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    let readiness = "readinessProbe:\n  exec: {command: [test, -e, /tmp/ready]}\n  periodSeconds: 1";
    let liveness = "livenessProbe:\n  exec: {command: [test, '!', -e, /tmp/dead]}\n  periodSeconds: 1\n  failureThreshold: 1";
    cloud.kubectl_with(
        &["apply", "-f", "-"],
        &[
            shell_pod("gate", "Always", "sleep 1000", readiness),
            shell_pod("alive", "Always", "sleep 1000", liveness),
        ]
        .join("---\n"),
    )?;
    wait_field(&cloud, "pod/gate", ".status.phase", "Running")?;
    assert_eq!(cloud.field("pod/gate", ".status.containerStatuses[0].ready")?, "false");
    cloud.kubectl(&["exec", "gate", "--", "touch", "/tmp/ready"])?;
    wait_ready(&cloud, "gate")?;
    cloud.kubectl(&["exec", "gate", "--", "rm", "/tmp/ready"])?;
    wait_field(&cloud, "pod/gate", ".status.containerStatuses[0].ready", "false")?;

    wait_ready(&cloud, "alive")?;
    cloud.kubectl(&["exec", "alive", "--", "touch", "/tmp/dead"])?;
    wait_field(&cloud, "pod/alive", ".status.containerStatuses[0].restartCount", "1")?;
    let events = cloud.kubectl(&["get", "events", "--field-selector", "involvedObject.name=alive"])?;
    assert!(events.contains("Unhealthy") && events.contains("Killing"), "{events}");
    cloud.finish()
}

#[test]
fn limits_and_security() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    let greedy = shell_pod(
        "greedy",
        "Never",
        "dd if=/dev/zero of=/dev/null bs=200M count=1; exit 9",
        "resources: {limits: {memory: 32Mi}}",
    );
    let readonly = shell_pod(
        "readonly",
        "Never",
        "touch /x && exit 1; exit 0",
        "securityContext: {readOnlyRootFilesystem: true}",
    );
    let script = "grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status; grep Seccomp: /proc/self/status; cat /proc/kcore | head -c1 | wc -c";
    let confined = shell_pod(
        "confined",
        "Never",
        script,
        "securityContext: {capabilities: {drop: [ALL]}, allowPrivilegeEscalation: false, runAsUser: 1000}",
    );
    cloud.kubectl_with(&["apply", "-f", "-"], &[greedy, readonly, confined].join("---\n"))?;
    wait_field(&cloud, &state("readonly"), ".status.phase", "Succeeded")?;
    wait_field(&cloud, &state("confined"), ".status.phase", "Succeeded")?;
    let log = cloud.kubectl(&["logs", "confined"])?;
    assert!(
        log.contains("CapEff:\t0000000000000000")
            && log.contains("NoNewPrivs:\t1")
            && log.contains("Seccomp:\t2"),
        "{log}"
    );
    assert!(log.ends_with("0\n"), "{log}");
    wait_field(&cloud, &state("greedy"), ".status.phase", "Failed")?;
    wait_field(
        &cloud,
        &state("greedy"),
        ".status.containerStatuses[0].state.terminated.reason",
        "OOMKilled",
    )?;
    cloud.finish()
}

#[test]
fn an_image_that_is_not_there() -> anyhow::Result<()> {
    let cloud = Cloud::start()?;
    cloud.kubectl_with(&["apply", "-f", "-"], &shell_pod("wants", "Always", "sleep 1000", ""))?;
    let reason = ".status.containerStatuses[0].state.waiting.reason";
    wait_for("a reason", || {
        let reason = cloud.field("pod/wants", reason).ok()?;
        ["ErrImagePull", "ImagePullBackOff"].contains(&reason.as_str()).then_some(())
    })?;
    let described = cloud.kubectl(&["describe", "pod", "wants"])?;
    assert!(described.contains("cumulet image"), "no remedy in:\n{described}");
    // Once it is there the pod starts by itself.
    cloud.build_hello()?;
    wait_ready(&cloud, "wants")?;
    cloud.finish()
}
