//! Pods as virtual machines: which pods are, what this machine has for them, and what a pod's machine is made of.
//!
//! ```text
//!   pod ─► Kind::of (RuntimeClass) ─► Host (QEMU, kernel, initramfs, KVM or not: once per node)
//!                                  ─► images as disks (once per digest) ─► spec ─► the supervisor's VmSpec
//! ```
//!
//! Absent: anything that runs. The machine belongs to the pod's supervisor.

pub(crate) mod disk;
mod host;
mod kernels;
mod spec;

pub(crate) use host::{Host, Hosts, text, user};
pub(crate) use spec::{Root, TRANSLATION_CACHE_BYTES, devices, mounts, vm_spec};

use cumulet_cluster::Api;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// Handler of RuntimeClasses for virtual machines that boot.
const VM: &str = "vm";
/// Handler of those for virtual machines that start from a template.
const VM_SNAPSHOT: &str = "vm-snapshot";

/// What a pod runs in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Containers of this machine's kernel.
    Container,
    /// A virtual machine, with the `overhead.podFixed` of its RuntimeClass.
    Machine {
        /// Resources of the machine beside those of its containers.
        overhead: BTreeMap<String, Quantity>,
        /// It starts from a template, or becomes one.
        snapshot: bool,
    },
}

/// Why it cannot be said what a pod runs in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KindError {
    /// It could be said later.
    #[error("{0}")]
    NotNow(String),
    /// It will never run here.
    #[error("{0}")]
    Never(String),
}

impl Kind {
    /// What the pod asks for.
    ///
    /// # Errors
    /// [`KindError`], in words for the pod's events.
    pub(crate) async fn of(pod: &Pod, classes: &Api<RuntimeClass>) -> Result<Self, KindError> {
        let class = pod.spec.as_ref().and_then(|s| s.runtime_class_name.as_deref()).filter(|c| !c.is_empty());
        let Some(class) = class else { return Ok(Self::Container) };
        match classes.get("", class).await {
            Ok(class) => Self::by_class(pod, &class),
            Err(error) if error.is_not_found() => Err(KindError::NotNow(format!(
                "failed to get sandbox runtime: RuntimeClass \"{class}\" not found"
            ))),
            Err(error) => Err(KindError::NotNow(format!("cannot look up RuntimeClass \"{class}\": {error}"))),
        }
    }

    fn by_class(pod: &Pod, class: &RuntimeClass) -> Result<Self, KindError> {
        let snapshot = match class.handler.as_str() {
            VM => false,
            VM_SNAPSHOT => true,
            other => {
                return Err(KindError::Never(format!(
                    "no runtime for \"{other}\" is configured: this version has the handlers \"{VM}\" and \
                     \"{VM_SNAPSHOT}\", and containers without a runtimeClassName",
                )));
            }
        };
        let spec = pod.spec.clone().unwrap_or_default();
        let shared =
            [(spec.host_network, "hostNetwork"), (spec.host_pid, "hostPID"), (spec.host_ipc, "hostIPC")];
        if let Some((_, field)) = shared.iter().find(|(value, _)| *value == Some(true)) {
            return Err(KindError::Never(format!("{field} cannot be had in a virtual machine")));
        }
        let fixed = class.overhead.as_ref().and_then(|overhead| overhead.pod_fixed.clone());
        Ok(Self::Machine { overhead: spec.overhead.or(fixed).unwrap_or_default(), snapshot })
    }

    /// True for a virtual machine that starts from a template or becomes one.
    pub(crate) fn is_snapshot(&self) -> bool {
        matches!(self, Self::Machine { snapshot: true, .. })
    }

    /// True for a virtual machine.
    pub(crate) fn is_machine(&self) -> bool {
        matches!(self, Self::Machine { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn by_class() {
        let check = |spec: Value, class: Value, expected: Result<usize, &str>| {
            let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
            let class: RuntimeClass = serde_json::from_value(class).unwrap();
            match (Kind::by_class(&pod, &class), expected) {
                (Ok(Kind::Machine { overhead, .. }), Ok(n)) => assert_eq!(overhead.len(), n),
                (Err(KindError::Never(message)), Err(text)) => assert!(message.contains(text), "{message}"),
                (got, _) => panic!("{got:?}"),
            }
        };
        let plain = json!({"containers": []});
        check(plain.clone(), json!({"handler": "vm"}), Ok(0));
        let fixed = json!({"handler": "vm", "overhead": {"podFixed": {"memory": "64Mi"}}});
        check(plain.clone(), fixed.clone(), Ok(1));
        check(json!({"containers": [], "overhead": {"memory": "1Mi", "cpu": "1"}}), fixed, Ok(2));
        check(plain, json!({"handler": "gvisor"}), Err("\"gvisor\""));
        check(json!({"containers": [], "hostNetwork": true}), json!({"handler": "vm"}), Err("hostNetwork"));
    }
}
