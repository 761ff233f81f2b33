//! From a start order to what the agent in the guest is told. Pure.

use crate::supervisor::proto::{ContainerStart, GuestParts};
use cumulet_container::{ContainerSpec, Error, guest_security};
use cumulet_guest_proto::spec;

/// The agent's start order. `id`, `stream` and the agent's number of the
/// instance are the supervisor's choice.
///
/// # Errors
/// Those of unknown capabilities.
pub(super) fn guest_order(
    order: &ContainerStart,
    parts: &GuestParts,
    id: &str,
    (stream, attempt): (u32, u32),
) -> Result<spec::ContainerStart, Error> {
    let ContainerSpec { read_only_root, args, env, cwd, user, resources, security, .. } = &order.spec;
    let (capabilities, seccomp) = guest_security(security)?;
    let positive = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
    Ok(spec::ContainerStart {
        name: order.name.clone(),
        attempt,
        id: id.to_owned(),
        stream,
        stdin: order.stdin,
        tty: order.tty,
        root: spec::Root { images: parts.images.clone(), read_only: *read_only_root },
        process: spec::Process {
            args: args.clone(),
            env: env.clone(),
            cwd: cwd.clone(),
            user: user.clone(),
            run_as_group: order.spec.run_as_group,
            additional_gids: order.spec.additional_gids.clone(),
            must_not_be_root: order.spec.must_not_be_root,
            ..spec::Process::default()
        },
        mounts: parts.mounts.clone(),
        devices: parts.devices.clone(),
        resources: spec::Resources {
            memory_limit_bytes: positive(resources.memory_limit_bytes),
            cpu_shares: resources.cpu_shares,
            cpu_quota_us: positive(resources.cpu_quota_us),
            pids_limit: positive(resources.pids_limit),
            oom_score_adj: resources.oom_score_adj,
        },
        security: spec::Security {
            privileged: security.privileged,
            capabilities,
            no_new_privileges: security.no_new_privileges,
            seccomp: seccomp.into(),
            unmasked_proc: security.unmasked_proc,
        },
        termination_message_path: order.termination_message_path.clone(),
    })
}
