//! End-to-end tests. One binary, so that it is linked once; one cloud per test, so that tests know nothing of each
//! other; every test ends with the check that nothing is left on the machine.

mod api;
mod cli;
mod deployments;
mod disk_vm;
mod examples;
mod faults;
mod hello;
mod network;
mod old_kubectl;
mod pods;
mod registry;
mod selectors;
mod vm;
mod volumes;

use cumulet_e2e::{Cloud, wait_for};

/// Manifest of a pod that runs a shell command in the hello image. `extra` are further lines of the container.
fn shell_pod(name: &str, restart: &str, script: &str, extra: &str) -> String {
    let extra: String = extra.lines().map(|line| format!("    {line}\n")).collect();
    let script = script.replace('"', "\\\"");
    // The same tests for virtual machines: CUMULET_RUNTIME_CLASS=vm.
    let class = std::env::var("CUMULET_RUNTIME_CLASS").map(|class| format!("runtimeClassName: {class}\n  "));
    let class = class.unwrap_or_default();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {name}}}\nspec:\n  {class}\
         restartPolicy: {restart}\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    \
         image: hello:1\n    command: [\"sh\", \"-c\", \"{script}\"]\n{extra}"
    )
}

/// Waits until a field of an object has a value.
fn wait_field(cloud: &Cloud, object: &str, path: &str, value: &str) -> anyhow::Result<()> {
    let mut last = String::new();
    wait_for(&format!("{object} {path} to be {value:?}"), || {
        last = cloud.field(object, path).unwrap_or_else(|e| e.to_string());
        (last == value).then_some(())
    })
    .map_err(|error| {
        let described = cloud.kubectl(&["describe", object]).unwrap_or_default();
        error.context(format!("last seen: {last:?}\n{described}"))
    })
}

/// Waits until a pod is Ready.
fn wait_ready(cloud: &Cloud, pod: &str) -> anyhow::Result<()> {
    wait_field(cloud, &format!("pod/{pod}"), ".status.conditions[?(@.type==\"Ready\")].status", "True")
}
