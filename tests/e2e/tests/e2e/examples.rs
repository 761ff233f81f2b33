//! The composed examples: built of Debian's packages, pushed to the cloud's registry, run from there as Deployments.

use cumulet_e2e::{Cloud, examples, http_get, wait_within};
use std::time::Duration;

/// A Java program on a busy machine.
const ANSWERS_WITHIN: Duration = Duration::from_secs(180);

/// Builds, pushes and deploys an example, and gives the address of its node port.
fn deploy(cloud: &Cloud, name: &str) -> anyhow::Result<String> {
    let dir = examples().join(name);
    cloud.cumulet(&["image", "build", &dir.to_string_lossy()])?;
    let (built, registry) = (format!("127.0.0.1:5000/examples/{name}:1"), cloud.registry()?);
    let pushed = format!("{registry}/examples/{name}:1");
    cloud.cumulet(&["image", "push", &built, &pushed])?;
    if built != pushed {
        cloud.cumulet(&["image", "rm", &built])?;
    }
    let manifest = std::fs::read_to_string(dir.join(format!("{name}.yaml")))?.replace(&built, &pushed);
    // Several clouds share this machine: each chooses its own node ports.
    let manifest: String = manifest.lines().map(|line| format!("{}\n", without_node_port(line))).collect();
    cloud.kubectl_with(&["apply", "-f", "-"], &manifest)?;
    let rollout = ["rollout", "status", &format!("deployment/{name}"), "--timeout=180s"];
    cloud
        .kubectl(&rollout)
        .map_err(|error| error.context(cloud.kubectl(&["describe", "pods"]).unwrap_or_default()))?;
    Ok(format!("127.0.0.1:{}", cloud.field(&format!("service/{name}"), ".spec.ports[0].nodePort")?))
}

fn without_node_port(line: &str) -> String {
    match line.find(", nodePort:") {
        Some(at) => format!("{}}}", &line[..at]),
        None => line.to_owned(),
    }
}

fn answer(address: &str, path: &str, words: &str) -> anyhow::Result<()> {
    let mut last = String::new();
    wait_within(ANSWERS_WITHIN, &format!("{path} to say {words:?}"), || {
        last = http_get(address, path).unwrap_or_else(|error| error.to_string());
        last.contains(words).then_some(())
    })
    .map_err(|error| error.context(format!("last answer: {last}")))
}

#[test]
fn composed_images_run_from_the_registry() -> anyhow::Result<()> {
    let cloud = Cloud::start()?;
    let site = deploy(&cloud, "static-site")?;
    answer(&site, "/", "<html")?;
    let flask = deploy(&cloud, "flask")?;
    answer(&flask, "/", "Notes of the third floor")?;
    let clinic = deploy(&cloud, "petclinic")?;
    answer(&clinic, "/owners.json", "lastName")?;

    // Nothing changed, so nothing is made: the same digest, and every layer is known.
    let dir = examples().join("flask");
    let again = cloud.cumulet(&["image", "build", &dir.to_string_lossy()])?;
    let running = cloud.kubectl(&["get", "pods", "-l", "app=flask", "-o", "jsonpath={..imageID}"])?;
    assert!(running.contains(again.trim()), "{running} is not {again}");
    assert_eq!(cloud.cumulet(&["image", "verify"])?.trim(), "every blob and layer is what its digest says");
    cloud.finish()
}
