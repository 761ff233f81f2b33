//! Deployments: rollouts, undo, scaling, garbage collection, namespaces.

use crate::wait_field;
use cumulet_e2e::{Cloud, wait_for};

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: web, image: "hello:1", env: [{name: VERSION, value: "1"}]}
"#;

#[test]
fn rollout_undo_scale_and_restart() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    let status = || cloud.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    cloud.kubectl_with(&["apply", "-f", "-"], WEB)?;
    status()?;
    let version = || {
        let path = ".items[*].spec.containers[0].env[0].value";
        cloud.kubectl(&[
            "get",
            "pods",
            "--field-selector=status.phase=Running",
            "-o",
            &format!("jsonpath={{{path}}}"),
        ])
    };
    cloud.kubectl(&["set", "env", "deployment/web", "VERSION=2"])?;
    status()?;
    wait_for("only new pods", || (version().ok()? == "2 2 2").then_some(()))?;
    let history = cloud.kubectl(&["rollout", "history", "deployment/web"])?;
    assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
    cloud.kubectl(&["rollout", "undo", "deployment/web"])?;
    status()?;
    wait_for("the old version again", || (version().ok()? == "1 1 1").then_some(()))?;
    cloud.kubectl(&["rollout", "restart", "deployment/web"])?;
    status()?;
    cloud.kubectl(&["scale", "deployment/web", "--replicas=5"])?;
    wait_field(&cloud, "deployment/web", ".status.readyReplicas", "5")?;
    cloud.cumulet(&["scale", "deploy/web", "--replicas", "1"])?;
    wait_for("one pod", || {
        (cloud.kubectl(&["get", "pods", "-o", "name"]).ok()?.lines().count() == 1).then_some(())
    })?;

    cloud.kubectl(&["delete", "deployment", "web"])?;
    wait_for("dependents to be collected", || {
        cloud.kubectl(&["get", "replicasets,pods", "-o", "name"]).ok()?.is_empty().then_some(())
    })?;
    cloud.finish()
}

#[test]
fn orphans_stay_and_are_adopted() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    cloud.kubectl_with(&["apply", "-f", "-"], WEB)?;
    cloud.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    let pods = cloud.kubectl(&["get", "pods", "-o", "name"])?;
    cloud.kubectl(&["delete", "deployment", "web", "--cascade=orphan"])?;
    assert_eq!(cloud.kubectl(&["get", "pods", "-o", "name"])?, pods);
    cloud.kubectl_with(&["apply", "-f", "-"], WEB)?;
    cloud.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    assert_eq!(cloud.kubectl(&["get", "pods", "-o", "name"])?, pods);
    cloud.finish()
}

#[test]
fn a_namespace_takes_everything_with_it() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    cloud.kubectl(&["create", "namespace", "temp"])?;
    cloud.kubectl_with(&["apply", "-n", "temp", "-f", "-"], WEB)?;
    cloud.kubectl(&["create", "configmap", "c", "-n", "temp", "--from-literal=a=b"])?;
    cloud.kubectl(&["rollout", "status", "-n", "temp", "deployment/web", "--timeout=60s"])?;
    wait_for("the default service account", || {
        cloud.kubectl(&["get", "-n", "temp", "serviceaccount", "default"]).ok()
    })?;
    cloud.kubectl(&["delete", "namespace", "temp", "--timeout=60s"])?;
    let gone = cloud.kubectl_fails(&["get", "namespace", "temp"], "")?;
    assert!(gone.contains("namespaces \"temp\" not found"), "{gone}");
    assert_eq!(cloud.kubectl(&["get", "pods", "-A", "-o", "name"])?, "");
    cloud.finish()
}
