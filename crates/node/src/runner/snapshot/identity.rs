//! Who a clone becomes, and what is told of it afterwards.

use super::{annotation, event};
use crate::env::Objects;
use crate::metrics::Start;
use crate::runner::task::PodContext;
use crate::snapshots;
use crate::supervisor::proto::{IdentityParts, Restored};
use cumulet_cluster::events::EventType;
use cumulet_guest_proto::identity::Hook;
use cumulet_vmm::ResidentMemory;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

/// How long an after-restore command may take when the pod does not say.
const HOOK_MS: u64 = 10_000;

/// Who the pod is, as its clone is told.
pub(in crate::runner) fn identity(
    context: &PodContext,
    template: &str,
    objects: &dyn Objects,
) -> IdentityParts {
    let (pod, facts, images) = (context.pod(), context.facts(), context.live().images.clone());
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let meta = &pod.metadata;
    let ip = facts.pod_ips.first().cloned().unwrap_or_default();
    let node = &context.shared.config.node_name;
    let document = json!({
        "namespace": meta.namespace, "name": meta.name, "uid": meta.uid, "podIP": ip, "podIPs": facts.pod_ips,
        "hostname": facts.hostname, "nodeName": node, "template": template,
        "restoredAt": Timestamp::now().to_string(),
    });
    let mut env: Vec<String> = [
        ("POD_NAMESPACE", text(&meta.namespace)),
        ("POD_NAME", text(&meta.name)),
        ("POD_UID", text(&meta.uid)),
        ("POD_IP", ip),
        ("NODE_NAME", node.clone()),
    ]
    .map(|(name, value)| format!("{name}={value}"))
    .to_vec();
    env.extend(snapshots::own_env(&pod, &images, &facts, objects));
    IdentityParts { document: document.to_string(), env, after_restore: hook(&pod) }
}

/// The command that runs in a clone before its containers go on.
fn hook(pod: &Pod) -> Option<Hook> {
    let command: String = annotation(pod, "after-restore")?;
    let command = serde_json::from_str::<Vec<String>>(&command)
        .unwrap_or_else(|_| vec!["/bin/sh".to_owned(), "-c".to_owned(), command]);
    let first = pod.spec.as_ref()?.containers.first()?.name.clone();
    let container = annotation(pod, "after-restore-container").unwrap_or(first);
    let timeout_ms =
        annotation::<u64>(pod, "after-restore-timeout").map_or(HOOK_MS, |s| s.saturating_mul(1000));
    Some(Hook { container, command, timeout_ms })
}

/// A clone has become the pod.
pub(in crate::runner) fn restored(context: &PodContext, restored: &Restored) {
    let (asked_at, template) = {
        let mut live = context.live();
        (live.asked_at, live.template.take())
    };
    // The first clone, which was the template, is told of by that.
    let (Some(asked_at), Some(template)) = (asked_at, template) else { return };
    context.shared.templates.entry(&template).restored();
    let took = asked_at.elapsed();
    let start = if restored.standby { Start::Standby } else { Start::Restored };
    context.shared.metrics.restored(start, took, restored);
    let ms = |us: u64| us / 1000;
    let before = match restored.standby {
        true => "from a standby".to_owned(),
        false => format!(
            "spawn {} ms, load {} ms, greeting {} ms",
            ms(restored.spawn_us),
            ms(restored.load_us),
            ms(restored.greet_us)
        ),
    };
    // What it has touched since; a machine that has ended meanwhile has none.
    let memory = ResidentMemory::of(restored.pid).unwrap_or_default();
    let message = format!(
        "Restored from snapshot {} in {} ms: {before}, identity and thaw {} ms; {} MB of memory of its own, {} MB \
         shared with the snapshot",
        template.get(..12).unwrap_or(&template),
        took.as_millis(),
        ms(restored.identity_us),
        memory.own_bytes >> 20,
        memory.shared_bytes >> 20
    );
    event(context, EventType::Normal, "RestoredFromSnapshot", &message);
}
