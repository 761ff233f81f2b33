//! Addresses, Services and names.

use crate::{shell_pod, wait_ready};
use cumulet_e2e::{Cloud, http_get, wait_for};

// Not session_affinity_and_host_ports: what it tests is rules on the host, for which a pod is an address.
also_as_machines![pods_have_names_addresses_and_each_other, a_service_without_endpoints_refuses_at_once];

const SERVER: &str = "hello";

fn server(name: &str, extra: &str) -> String {
    shell_pod(name, "Always", SERVER, extra).replace("\"sh\", \"-c\", \"hello\"", "\"/bin/hello\"")
}

#[test]
fn pods_have_names_addresses_and_each_other() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    let manifest = [server("a", ""), server("b", "")].join("---\n")
        + "---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: None, selector: {app: a}, ports: [{name: web, port: 8080}]}\n"
        + "---\napiVersion: v1\nkind: Service\nmetadata: {name: outside}\nspec: {type: ExternalName, externalName: example.org}\n";
    cloud.kubectl_with(&["apply", "-f", "-"], &manifest)?;
    wait_ready(&cloud, "a")?;
    wait_ready(&cloud, "b")?;
    let ip = cloud.field("pod/a", ".status.podIP")?;
    let from_b = |script: &str| cloud.kubectl(&["exec", "b", "--", "sh", "-c", script]);
    assert!(from_b(&format!("wget -q -O - http://{ip}:8080/"))?.contains("from a"));
    // A headless Service is its pods' addresses; short names go through the search path.
    wait_for("the headless name", || from_b("wget -q -O - http://a:8080/").ok())?;
    let found = from_b("nslookup a.default.svc.cluster.local")?;
    assert!(found.contains(&ip), "{found}");
    let dashed = ip.replace('.', "-");
    assert!(from_b(&format!("nslookup {dashed}.default.pod.cluster.local"))?.contains(&ip));
    assert!(from_b("nslookup nosuch.default.svc.cluster.local").is_err());
    assert!(
        from_b("cat /etc/resolv.conf")?
            .contains("search default.svc.cluster.local svc.cluster.local cluster.local")
    );
    assert!(from_b("cat /etc/hosts")?.contains("\tb"));
    assert_eq!(from_b("hostname")?, "b\n");
    // The API is where every program in a pod looks for it.
    let env = from_b("echo $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT")?;
    let api = cloud.field("service/kubernetes", ".spec.clusterIP")?;
    assert_eq!(env.trim(), format!("{api}:443"));
    from_b(&format!("nc -w 5 {api} 443 < /dev/null"))?;
    cloud.finish()
}

#[test]
fn a_service_without_endpoints_refuses_at_once() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {type: NodePort, selector: {app: s}, ports: [{port: 80, targetPort: 8080}]}\n";
    cloud.kubectl_with(&["apply", "-f", "-"], service)?;
    let address = format!("{}:80", cloud.field("service/s", ".spec.clusterIP")?);
    wait_for("a refusal", || {
        let error = http_get(&address, "/").err()?;
        format!("{error:#}").contains("refused").then_some(())
    })?;
    cloud.kubectl_with(&["apply", "-f", "-"], &server("s", ""))?;
    wait_for("an answer", || http_get(&address, "/").ok())?;
    // A pod reaches itself through its own Service.
    let body = cloud.kubectl(&["exec", "s", "--", "wget", "-q", "-O", "-", "http://s.default/"])?;
    assert!(body.contains("from s"), "{body}");
    cloud.kubectl(&["delete", "pod", "s"])?;
    wait_for("a refusal again", || http_get(&address, "/").err())?;
    cloud.finish()
}

#[test]
fn session_affinity_and_host_ports() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    let labels = |name: &str| server(name, "").replace(&format!("{{app: {name}}}"), "{app: sticky}");
    let port = 18000 + std::process::id() % 1000;
    let host_port = server("hosted", &format!("ports: [{{containerPort: 8080, hostPort: {port}}}]"));
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: sticky}\nspec: {sessionAffinity: ClientIP, selector: {app: sticky}, ports: [{port: 80, targetPort: 8080}]}\n";
    cloud.kubectl_with(
        &["apply", "-f", "-"],
        &[labels("x1"), labels("y1"), labels("z1"), host_port, service.to_owned()].join("---\n"),
    )?;
    for pod in ["x1", "y1", "z1", "hosted"] {
        wait_ready(&cloud, pod)?;
    }
    let address = format!("{}:80", cloud.field("service/sticky", ".spec.clusterIP")?);
    let slices = "get endpointslices -l kubernetes.io/service-name=sticky -o jsonpath={.items[*].endpoints[*].conditions.ready}";
    wait_for("three endpoints", || {
        (cloud.kubectl(&slices.split(' ').collect::<Vec<_>>()).ok()? == "true true true").then_some(())
    })?;
    let first = wait_for("an answer", || http_get(&address, "/").ok())?;
    for _ in 0..20 {
        assert_eq!(http_get(&address, "/")?, first);
    }
    wait_for("the host port", || http_get(&format!("127.0.0.1:{port}"), "/").ok())?;
    cloud.finish()
}
