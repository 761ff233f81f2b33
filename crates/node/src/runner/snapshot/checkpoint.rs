//! Checkpoints: a running pod that is saved when somebody asks, and pods that go on from there.
//!
//! What is saved is a template like any other, under a key that is made of its namespace and name. A pod that names it
//! must be the same as the one that was saved, as KEP-5823 wants it: that pod's own key is in the notes. It never boots
//! instead, as its memory is what was asked for.

use super::{Clone, Way, annotation, hot, identity};
use crate::runner::machine::Parts;
use crate::runner::sandbox::blocking;
use crate::runner::task::PodContext;
use crate::snapshots::{self, Hot, Origin};
use crate::supervisor::files::{MACHINE, SANDBOX, read_json};
use crate::supervisor::proto::{
    CHECKPOINT_MEMORY, Request, SandboxSpec, TEMPLATE_NOTES, TEMPLATE_STATE, TemplateNotes, VmSpec,
};
use cumulet_api::{Status, StatusReason};
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// The checkpoint that a pod is to go on from.
pub(super) fn wanted(pod: &Pod) -> Option<String> {
    annotation(pod, "restore-from")
}

fn key(namespace: &str, name: &str) -> String {
    snapshots::digest(&[
        ("checkpoint".to_owned(), name.as_bytes().to_vec()),
        ("namespace".to_owned(), namespace.as_bytes().to_vec()),
    ])
}

/// How a pod starts that is to go on from a checkpoint.
pub(super) async fn way(
    context: &Arc<PodContext>,
    pod: &Pod,
    name: &str,
    (made_of, needs): (String, &cumulet_snapshot_format::Compatibility),
) -> Result<Way, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let entry = context.shared.templates.entry(&key(namespace, name));
    let (shared, known) = (context.shared.clone(), entry.clone());
    let there = blocking(move || Ok(shared.templates.look(&known))).await?;
    if !there {
        return Err(format!(
            "checkpoint \"{name}\" is not in namespace \"{namespace}\" of this node: `cumulet vm checkpoint POD --name \
             {name}` makes it"
        ));
    }
    // It stays, whatever the reason: nobody but who made it can make it again.
    let loaded = hot(context, &entry, needs).await;
    let hot =
        loaded.map_err(|unusable| format!("checkpoint \"{name}\" cannot be used: {}", unusable.why()))?;
    if hot.notes.made_of.as_ref() != Some(&made_of) {
        return Err(format!(
            "checkpoint \"{name}\" was made of another pod: spec, images, environment and files have to be the same"
        ));
    }
    Ok(Way::Clone(Clone { entry, hot, required: true }))
}

impl PodContext {
    /// Saves the pod, which runs, under this name. The key of what was saved.
    pub(crate) async fn checkpoint(self: &Arc<Self>, name: &str) -> Result<String, Status> {
        let refused = |why: String| Status::new(StatusReason::Conflict, why);
        let pod = self.pod();
        let class =
            |why: String| refused(format!("pod {}: {why}", pod.metadata.name.as_deref().unwrap_or_default()));
        let supervisor = self.supervisor().ok_or_else(|| class("it does not run".to_owned()))?;
        if let Some(why) = snapshots::unsuitable(&pod) {
            return Err(class(why));
        }
        let file = self.dirs.root.join(SANDBOX);
        let sandbox = blocking(move || read_json::<SandboxSpec>(&file)).await.map_err(Status::internal)?;
        let Some(running) = sandbox.vm else { return Err(class("it is not a virtual machine".to_owned())) };
        let parts = Parts::collect(self, &pod).await.map_err(Status::internal)?;
        let overhead = BTreeMap::new();
        let draft = parts.spec(self, &pod, Ipv4Addr::UNSPECIFIED, &overhead);
        let (made_of, compatibility, objects) =
            super::described(self, &pod, &draft, &parts).await.map_err(Status::internal)?;
        if !same_machine(&running, &draft) {
            return Err(class(
                "the kernel, agent or QEMU of this node is another one since it started".to_owned(),
            ));
        }
        let identity = identity(self, "", &objects);
        supervisor.request(Request::Checkpoint(Box::new(identity))).await.map_err(|e| class(e.message))?;
        let entry = self.shared.templates.entry(&key(sandbox.namespace.as_str(), name));
        let (shared, into, dir) = (self.shared.clone(), entry.clone(), self.dirs.root.join(MACHINE));
        let origin = Origin {
            namespace: sandbox.namespace.clone(),
            name: format!("checkpoint {name}"),
            images: super::origin(&pod).images,
        };
        let stored = blocking(move || {
            let memory =
                File::open(dir.join(CHECKPOINT_MEMORY)).map_err(|e| format!("{CHECKPOINT_MEMORY}: {e}"))?;
            // It is in the template from now on, and belongs to nobody when that cannot be written.
            let _ = fs::remove_file(dir.join(CHECKPOINT_MEMORY));
            let mut notes: TemplateNotes = read_json(&dir.join(TEMPLATE_NOTES))?;
            notes.made_of = Some(made_of);
            let hot = Hot { memory, state: dir.join(TEMPLATE_STATE), notes, data_bytes: 0 };
            let stored = shared.templates.store(&into, &hot, origin, compatibility);
            // Nobody goes on from what is in memory of an earlier one of the same name.
            into.removed();
            stored
        });
        stored.await.map_err(Status::internal)?;
        Ok(entry.key().to_owned())
    }
}

fn same_machine(running: &VmSpec, draft: &VmSpec) -> bool {
    running.kernel == draft.kernel && running.initramfs == draft.initramfs && running.kvm == draft.kvm
}
