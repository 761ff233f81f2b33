//! A kubectl of some years ago. It validates with OpenAPI v2 and execs over SPDY, which are not served; all else works.

use cumulet_e2e::{Cloud, succeed, succeed_with, wait_for};
use std::process::Command;

#[test]
fn an_old_kubectl_works_without_validation_and_exec() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    let old = |args: &[&str]| -> Command {
        let program = std::env::var("CUMULET_OLD_KUBECTL").unwrap_or_else(|_| "kubectl-old".to_owned());
        let mut command = Command::new(program);
        command.env("KUBECONFIG", cloud.dir().join("kubeconfig")).env("HOME", cloud.dir()).args(args);
        command
    };
    let run = |args: &[&str]| succeed(&mut old(args));
    let manifest = include_str!("../../../../examples/hello/hello.yaml").replace(", nodePort: 30080", "");
    succeed_with(&mut old(&["apply", "--validate=false", "-f", "-"]), &manifest)?;
    assert!(run(&["rollout", "status", "deployment/hello"])?.contains("successfully rolled out"));
    assert_eq!(run(&["get", "pods", "-o", "wide"])?.matches("1/1     Running   0").count(), 3);
    assert!(run(&["logs", "deploy/hello"])?.contains("listening on port 8080"));
    assert!(run(&["describe", "pods", "-l", "app=hello"])?.contains("Created container"));
    // Applying again finds nothing to do: the two-way merge through the last-applied annotation agrees.
    let again = succeed_with(&mut old(&["apply", "--validate=false", "-f", "-"]), &manifest)?;
    assert_eq!(again.matches("unchanged").count(), 3, "{again}");
    run(&["scale", "deployment/hello", "--replicas=1"])?;
    run(&["create", "configmap", "a", "--from-literal=x=y"])?;
    assert_eq!(run(&["get", "cm", "a", "-o", "jsonpath={.data.x}"])?, "y");
    run(&["patch", "deployment/hello", "-p", r#"{"metadata":{"labels":{"old":"yes"}}}"#])?;
    assert!(run(&["get", "deployments", "-l", "old=yes"])?.contains("hello"));
    run(&["delete", "deployment/hello", "configmap/a"])?;
    wait_for("the pods to be gone", || {
        run(&["get", "pods", "-o", "name"]).is_ok_and(|names| names.is_empty()).then_some(())
    })?;
    cloud.finish()
}
