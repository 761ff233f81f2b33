//! The README's first minute: three replicas behind one address, healed when killed.

use cumulet_e2e::{Cloud, http_get, wait_for};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The example's manifest with a node port that the cloud chooses: several clouds share this machine.
fn manifest() -> String {
    let text = include_str!("../../../../examples/hello/hello.yaml");
    text.replace(", nodePort: 30080", "")
}

fn deploy(cloud: &Cloud) -> anyhow::Result<String> {
    cloud.kubectl_with(&["apply", "-f", "-"], &manifest())?;
    cloud.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
    Ok(format!("127.0.0.1:{}", cloud.field("service/hello", ".spec.ports[0].nodePort")?))
}

#[test]
fn three_replicas_behind_one_address() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    let address = deploy(&cloud)?;
    // Every replica answers sooner or later, under the ConfigMap's greeting.
    let mut answers = BTreeSet::new();
    wait_for("all three replicas to answer", || {
        let body = http_get(&address, "/").ok()?;
        assert!(body.starts_with("Hello, cloud, from hello-"), "{body}");
        answers.insert(body);
        (answers.len() == 3).then_some(())
    })?;
    // The Service by name and by address, from inside a pod, a pod's own Service included.
    for _ in 0..6 {
        let url = "http://hello.default.svc.cluster.local/";
        let body = cloud.kubectl(&["exec", "deploy/hello", "--", "wget", "-q", "-O", "-", url])?;
        assert!(body.starts_with("Hello, cloud, from hello-"), "{body}");
    }
    let cluster_ip = cloud.field("service/hello", ".spec.clusterIP")?;
    assert!(http_get(&format!("{cluster_ip}:80"), "/")?.starts_with("Hello"));

    let wide = cloud.kubectl(&["get", "pods", "-o", "wide"])?;
    assert_eq!(wide.matches("1/1     Running   0").count(), 3, "{wide}");
    let logs = cloud.kubectl(&["logs", "-l", "app=hello", "--tail=100"])?;
    assert!(logs.contains("listening on port 8080"), "{logs}");
    let described = cloud.kubectl(&["describe", "pods"])?;
    for event in ["Scheduled", "Pulled", "Created", "Started"] {
        assert!(described.contains(event), "no event {event} in:\n{described}");
    }

    cloud.kubectl_with(&["delete", "-f", "-"], &manifest())?;
    wait_for("the pods to be gone", || {
        cloud.kubectl(&["get", "pods", "-o", "name"]).is_ok_and(|names| names.is_empty()).then_some(())
    })?;
    cloud.finish()
}

#[test]
fn killing_a_replica_costs_no_request() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    let address = deploy(&cloud)?;
    wait_for("a first answer", || http_get(&address, "/").ok())?;
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicUsize::new(0));
    let loops: Vec<_> = (0..2)
        .map(|_| {
            let (stop, asked, address) = (stop.clone(), asked.clone(), address.clone());
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    asked.fetch_add(1, Ordering::Relaxed);
                    if let Err(error) = http_get(&address, "/") {
                        failures.push(error.to_string());
                    }
                }
                failures
            })
        })
        .collect();
    for _ in 0..3 {
        let victim = cloud.field("pods", ".items[0].metadata.name")?;
        cloud.kubectl(&["delete", "pod", &victim])?;
        cloud.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
    }
    stop.store(true, Ordering::Relaxed);
    let failures: Vec<String> = loops.into_iter().flat_map(|l| l.join().unwrap()).collect();
    assert!(asked.load(Ordering::Relaxed) > 100, "the loop hardly asked");
    assert!(
        failures.is_empty(),
        "{} of {} failed: {failures:?}",
        failures.len(),
        asked.load(Ordering::Relaxed)
    );
    cloud.finish()
}
