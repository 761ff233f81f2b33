//! End-to-end tests. One binary, so that it is linked once; one cloud per test, so that tests know nothing of each
//! other; every test ends with the check that nothing is left on the machine.

/// Makes tests of a module a second time, as `machines::NAME`: the same pods as virtual machines. What a module leaves
/// out is said beside its list.
macro_rules! also_as_machines {
    ($($test:ident),+ $(,)?) => {
        mod machines {
            $(
                #[test]
                fn $test() -> anyhow::Result<()> {
                    crate::as_machines(super::$test)
                }
            )+
        }
    };
}

mod api;
mod claims;
mod cli;
mod deployments;
mod disk_vm;
mod examples;
mod faults;
mod hello;
mod isolation;
mod network;
mod old_kubectl;
mod pods;
mod registry;
mod selectors;
mod snapshot_faults;
mod snapshots;
mod vm;
mod volumes;

use cumulet_e2e::{Cloud, wait_for};
use std::cell::Cell;

thread_local! {
    /// The RuntimeClass of the pods that this thread's test makes.
    static RUNTIME_CLASS: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Runs a test whose pods are virtual machines.
fn as_machines(test: fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
    /// A thread may run several tests, and a test may panic.
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            RUNTIME_CLASS.set(None);
        }
    }
    vm::needs_agent()?;
    let _reset = Reset;
    RUNTIME_CLASS.set(Some("vm"));
    test()
}

/// A manifest whose pods have the RuntimeClass of this test.
fn in_class(manifest: &str) -> String {
    let Some(class) = RUNTIME_CLASS.get() else { return manifest.to_owned() };
    let with_class = |document: &str| match document.contains("kind: Pod\n") {
        true => document.replacen("\nspec:\n", &format!("\nspec:\n  runtimeClassName: {class}\n"), 1),
        false => document.to_owned(),
    };
    manifest.split("---\n").map(with_class).collect::<Vec<_>>().join("---\n")
}

/// Manifest of a pod that runs a shell command in the hello image. `extra` are further lines of the container.
fn shell_pod(name: &str, restart: &str, script: &str, extra: &str) -> String {
    let extra: String = extra.lines().map(|line| format!("    {line}\n")).collect();
    let script = script.replace('"', "\\\"");
    in_class(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {name}}}\nspec:\n  \
         restartPolicy: {restart}\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    \
         image: hello:1\n    command: [\"sh\", \"-c\", \"{script}\"]\n{extra}"
    ))
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
