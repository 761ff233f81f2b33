//! From a pod's container and its image to what the container driver starts.

use crate::dirs::PodDirs;
use crate::env::Environment;
use crate::images::ResolvedImage;
use cumulet_api::Quantity;
use cumulet_container::{ContainerSpec, Mount, Namespaces, Resources, Security};
use cumulet_podlife::{QosClass, qos_class};
use k8s_openapi::api::core::v1::{
    Container, Pod, PodSecurityContext, PodSpec, ResourceRequirements, SecurityContext,
};
use std::path::PathBuf;

/// Why a container cannot be made from its pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConvertError {
    /// Neither pod nor image say what to run.
    #[error("no command specified: neither the pod nor the image \"{0}\" has a command")]
    NoCommand(String),
    /// A setting that this version cannot honour.
    #[error("{0}")]
    Unsupported(String),
}

/// Everything that goes into a container.
pub(crate) struct Parts<'a> {
    /// The pod.
    pub(crate) pod: &'a Pod,
    /// The container.
    pub(crate) container: &'a Container,
    /// Instance number.
    pub(crate) attempt: u32,
    /// Its image.
    pub(crate) image: &'a ResolvedImage,
    /// Its environment.
    pub(crate) environment: &'a Environment,
    /// Its mounts.
    pub(crate) mounts: Vec<Mount>,
    /// The pod's directories.
    pub(crate) dirs: &'a PodDirs,
    /// The pod's cgroup.
    pub(crate) cgroup: &'a str,
    /// The process whose namespaces are the pod's.
    pub(crate) supervisor_pid: i32,
    /// Memory of the node, in bytes.
    pub(crate) node_memory_bytes: i64,
}

/// Makes the specification of a container.
///
/// # Errors
/// [`ConvertError`].
pub(crate) fn container_spec(parts: Parts<'_>) -> Result<ContainerSpec, ConvertError> {
    let Parts { pod, container, attempt, image, environment, .. } = parts;
    let empty_spec = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty_spec);
    let of_pod = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let ns = |name: &str| Some(PathBuf::from(format!("/proc/{}/ns/{name}", parts.supervisor_pid)));
    let cwd = [container.working_dir.as_deref().unwrap_or_default(), &image.working_dir, "/"]
        .into_iter()
        .find(|dir| !dir.is_empty())
        .unwrap_or("/")
        .to_owned();
    Ok(ContainerSpec {
        layers: image.layers.clone(),
        writable: parts.dirs.writable(&container.name, attempt),
        read_only_root: own.read_only_root_filesystem.unwrap_or(false),
        args: arguments(container, image, environment)?,
        env: environment.vars.clone(),
        cwd,
        user: user(&own, &of_pod, image),
        run_as_group: own.run_as_group.or(of_pod.run_as_group).map(id),
        additional_gids: groups(&of_pod),
        must_not_be_root: own.run_as_non_root.or(of_pod.run_as_non_root).unwrap_or(false),
        mounts: parts.mounts,
        resources: resources(pod, container, parts.node_memory_bytes),
        security: security(&own, &of_pod)?,
        cgroup: format!("{}/{}-{attempt}", parts.cgroup, container.name),
        namespaces: Namespaces {
            net: ns("net"),
            ipc: ns("ipc"),
            uts: ns("uts"),
            pid: None,
            host_pid: spec.host_pid.unwrap_or(false),
        },
    })
}

/// `command` replaces the image's entrypoint and its arguments, `args` only the arguments.
fn arguments(c: &Container, image: &ResolvedImage, env: &Environment) -> Result<Vec<String>, ConvertError> {
    let expand = |list: &[String]| list.iter().map(|a| env.expand(a)).collect::<Vec<_>>();
    let command = c.command.as_deref().unwrap_or_default();
    let args = c.args.as_deref().unwrap_or_default();
    let all = match (command.is_empty(), args.is_empty()) {
        (false, _) => [expand(command), expand(args)].concat(),
        (true, false) => [image.entrypoint.clone(), expand(args)].concat(),
        (true, true) => [image.entrypoint.clone(), image.cmd.clone()].concat(),
    };
    // A disk starts by itself.
    if all.is_empty() && image.disk.is_none() {
        return Err(ConvertError::NoCommand(c.image.clone().unwrap_or_default()));
    }
    Ok(all)
}

fn user(own: &SecurityContext, of_pod: &PodSecurityContext, image: &ResolvedImage) -> String {
    match own.run_as_user.or(of_pod.run_as_user) {
        Some(uid) => id(uid).to_string(),
        None if image.user.is_empty() => "0".to_owned(),
        None => image.user.clone(),
    }
}

fn groups(of_pod: &PodSecurityContext) -> Vec<u32> {
    let mut all: Vec<u32> = of_pod.supplemental_groups.iter().flatten().map(|g| id(*g)).collect();
    all.extend(of_pod.fs_group.map(id));
    all.dedup();
    all
}

/// User and group ids are validated to 31 bits by the API; anything else is nobody rather than somebody.
pub(crate) fn id(n: i64) -> u32 {
    u32::try_from(n).unwrap_or(65534)
}

fn security(own: &SecurityContext, of_pod: &PodSecurityContext) -> Result<Security, ConvertError> {
    let privileged = own.privileged.unwrap_or(false);
    let capabilities = own.capabilities.clone().unwrap_or_default();
    let seccomp = own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref());
    let unconfined = match seccomp.map(|p| p.type_.as_str()) {
        None | Some("RuntimeDefault") => false,
        Some("Unconfined") => true,
        Some(other) => {
            return Err(ConvertError::Unsupported(format!(
                "seccompProfile type {other} is not supported by this version; use RuntimeDefault or Unconfined"
            )));
        }
    };
    Ok(Security {
        privileged,
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        no_new_privileges: !privileged && own.allow_privilege_escalation == Some(false),
        seccomp_unconfined: unconfined || privileged,
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
    })
}

/// Smallest CPU shares and quota that the kernel takes.
const LEAST_SHARES: i64 = 2;
const LEAST_QUOTA_US: i64 = 1000;

fn resources(pod: &Pod, container: &Container, node_memory_bytes: i64) -> Resources {
    let given = container.resources.clone().unwrap_or_default();
    let limit = |name| quantity(&given, true, name);
    let request = |name| quantity(&given, false, name).or_else(|| limit(name));
    let shares =
        request("cpu").map_or(0, |q| q.millis().saturating_mul(1024) / 1000).clamp(LEAST_SHARES, 262_144);
    let quota =
        limit("cpu").filter(|q| q.sign() > 0).map(|q| q.millis().saturating_mul(100).max(LEAST_QUOTA_US));
    let request_bytes = request("memory").map_or(0, |q| q.units());
    Resources {
        memory_limit_bytes: limit("memory").filter(|q| q.sign() > 0).map(|q| q.units()),
        cpu_shares: u64::try_from(shares).ok(),
        cpu_quota_us: quota,
        pids_limit: None,
        oom_score_adj: Some(oom_score_adj(qos_class(pod), request_bytes, node_memory_bytes)),
    }
}

fn quantity(resources: &ResourceRequirements, limit: bool, name: &str) -> Option<Quantity> {
    let map = if limit { resources.limits.as_ref() } else { resources.requests.as_ref() };
    map.and_then(|m| m.get(name)).and_then(|q| Quantity::parse(&q.0).ok())
}

/// The kubelet's rule: who asked for more memory is killed later.
fn oom_score_adj(qos: QosClass, request_bytes: i64, node_bytes: i64) -> i32 {
    match qos {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let share = 1000 * i128::from(request_bytes.max(0)) / i128::from(node_bytes.max(1));
            i32::try_from((1000 - share).clamp(3, 999)).unwrap_or(999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn image() -> ResolvedImage {
        ResolvedImage {
            id: "sha256:1".into(),
            layers: vec!["/l1".into()],
            entrypoint: vec!["/entry".into()],
            cmd: vec!["default".into()],
            env: vec![],
            working_dir: "/srv".into(),
            user: "app".into(),
            stop_signal: None,
            disk: None,
        }
    }

    fn convert(container: Value, extra: Value) -> Result<ContainerSpec, ConvertError> {
        let mut spec = json!({"containers": [container]});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "w"}, "spec": spec})).unwrap();
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        let none = crate::inputs::ObjectSet::default();
        let environment = crate::env::build(&pod, &container, &[], &Default::default(), &none).unwrap();
        let dirs = PodDirs { root: "/p".into(), logs: "/l".into() };
        container_spec(Parts {
            pod: &pod,
            container: &container,
            attempt: 2,
            image: &image(),
            environment: &environment,
            mounts: vec![],
            dirs: &dirs,
            cgroup: "/c/podu",
            supervisor_pid: 7,
            node_memory_bytes: 1 << 30,
        })
    }

    #[test]
    fn command_and_args() {
        for (given, want) in [
            (json!({}), vec!["/entry", "default"]),
            (json!({"args": ["x"]}), vec!["/entry", "x"]),
            (json!({"command": ["/c"]}), vec!["/c"]),
            (
                json!({"command": ["/c"], "args": ["$(HOME2)", "y"], "env": [{"name": "HOME2", "value": "h"}]}),
                vec!["/c", "h", "y"],
            ),
        ] {
            let mut c = given;
            c["name"] = json!("a");
            assert_eq!(convert(c, json!({})).unwrap().args, want);
        }
    }

    #[test]
    fn security_and_resources() {
        let spec = convert(
            json!({"name": "a", "securityContext": {"runAsUser": 1000, "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}, "readOnlyRootFilesystem": true},
                "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}}),
            json!({"securityContext": {"runAsNonRoot": true, "fsGroup": 2000, "supplementalGroups": [5]}}),
        )
        .unwrap();
        assert_eq!((spec.user.as_str(), spec.must_not_be_root, spec.read_only_root), ("1000", true, true));
        assert_eq!(spec.additional_gids, [5, 2000]);
        assert!(spec.security.no_new_privileges);
        assert_eq!(spec.resources.cpu_shares, Some(256));
        assert_eq!(spec.resources.cpu_quota_us, Some(50_000));
        assert_eq!(spec.resources.memory_limit_bytes, Some(64 << 20));
        assert_eq!(spec.cgroup, "/c/podu/a-2");
        let plain = convert(json!({"name": "a"}), json!({})).unwrap();
        assert_eq!((plain.user.as_str(), plain.cwd.as_str()), ("app", "/srv"));
        assert_eq!(plain.resources.oom_score_adj, Some(1000));
        assert_eq!(plain.resources.cpu_shares, Some(2));
        let local = json!({"name": "a", "securityContext": {"seccompProfile": {"type": "Localhost"}}});
        assert!(convert(local, json!({})).is_err());
    }
}
