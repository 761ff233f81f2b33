//! The real kubectl against a server of its own. Does nothing where there is no kubectl.

mod common;

use common::{TestServer, kubectl};
use std::process::Command;

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: 'web:1', ports: [{containerPort: 80}]}
      - {name: side, image: 'side:1'}
";

#[tokio::test(flavor = "multi_thread")]
async fn commands() {
    if Command::new("kubectl").arg("version").arg("--client").output().is_err() {
        eprintln!("no kubectl on this machine");
        return;
    }
    let server = TestServer::start().await;
    server.write_kubeconfig();
    let state = server.dir.path().to_owned();
    let run = move || {
        let ok = |arguments: &[&str], input: &str, want: &str| {
            let out = kubectl(&state, arguments, input).unwrap_or_else(|e| panic!("{arguments:?}: {e}"));
            assert!(out.contains(want), "{arguments:?}: {out}\nwanted: {want}");
        };
        let fails = |arguments: &[&str], input: &str, want: &str| {
            let err = kubectl(&state, arguments, input).expect_err("should fail");
            assert!(err.contains(want), "{arguments:?}: {err}\nwanted: {want}");
        };
        ok(&["create", "namespace", "team"], "", "namespace/team created");
        ok(&["create", "configmap", "c", "--from-literal=k=v", "-n", "team"], "", "configmap/c created");
        ok(&["get", "cm", "-n", "team"], "", "c      1");
        ok(&["get", "cm", "c", "-n", "team", "-o", "jsonpath={.data.k}"], "", "v");
        fails(&["create", "configmap", "c", "-n", "team"], "", "configmaps \"c\" already exists");
        ok(&["create", "secret", "generic", "s", "--from-literal=p=q"], "", "secret/s created");
        ok(&["create", "service", "clusterip", "svc", "--tcp=80"], "", "service/svc created");
        ok(&["create", "deployment", "gen", "--image=i"], "", "deployment.apps/gen created");

        ok(&["apply", "-f", "-"], DEPLOYMENT, "deployment.apps/web created");
        ok(&["apply", "-f", "-"], DEPLOYMENT, "deployment.apps/web unchanged");
        ok(&["apply", "-f", "-"], &DEPLOYMENT.replace("web:1", "web:2"), "deployment.apps/web configured");
        let images = "-o=jsonpath={.spec.template.spec.containers[*].image}";
        ok(&["get", "deploy", "web", images], "", "web:2 side:1");
        ok(&["set", "image", "deploy/web", "side=side:2"], "", "image updated");
        ok(&["get", "deploy", "web", images], "", "web:2 side:2");
        ok(&["diff", "-f", "-"], &DEPLOYMENT.replace("web:1", "web:2").replace("side:1", "side:2"), "");
        fails(
            &["apply", "-f", "-"],
            &DEPLOYMENT.replace("replicas:", "replikas:"),
            "unknown field \"spec.replikas\"",
        );
        ok(&["apply", "--dry-run=server", "-f", "-"], DEPLOYMENT, "(server dry run)");
        ok(&["scale", "deploy", "web", "--replicas=5"], "", "scaled");
        ok(&["label", "deploy", "web", "tier=front"], "", "labeled");
        ok(&["annotate", "deploy", "web", "note=x"], "", "annotated");
        ok(&["get", "deploy", "-l", "tier=front", "-o", "wide"], "", "web,side");
        ok(&["rollout", "restart", "deploy/web"], "", "restarted");
        let json = r#"[{"op": "replace", "path": "/spec/replicas", "value": 3}]"#;
        ok(&["patch", "deploy", "web", "--type=json", "-p", json], "", "patched");
        ok(&["get", "deploy", "web", "-o=jsonpath={.spec.replicas}"], "", "3");
        ok(&["explain", "deployment.spec.replicas"], "", "replicas <integer>");
        ok(&["describe", "deploy", "web"], "", "Replicas:");
        ok(&["delete", "deploy", "web", "gen"], "", "deleted");
        fails(
            &["get", "deploy", "web"],
            "",
            "Error from server (NotFound): deployments.apps \"web\" not found",
        );
        fails(&["get", "nonsense"], "", "the server doesn't have a resource type \"nonsense\"");
        ok(&["run", "p", "--image=i"], "", "pod/p created");
        ok(&["get", "pods"], "", "Pending");
        fails(&["exec", "p", "--", "sh"], "", "pod p does not have a host assigned");
        ok(&["delete", "pod", "p"], "", "pod \"p\" deleted");
        ok(&["get", "--raw", "/readyz?verbose"], "", "readyz check passed");
        ok(&["delete", "cm", "--all", "-n", "team"], "", "configmap \"c\" deleted");
    };
    // kubectl blocks; the server needs its threads.
    tokio::task::spawn_blocking(run).await.unwrap();
    server.stop().await;
}
