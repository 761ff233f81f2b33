//! Starting a container: everything it needs is resolved here, so that its order leaves nothing open.

use super::image::on_disk;
use super::snapshot;
use super::task::{PodContext, container};
use crate::convert::{Parts, container_spec};
use crate::supervisor::client::GONE;
use crate::supervisor::proto::{ContainerStart, GuestParts, Request};
use crate::{env, vm, volumes};
use cumulet_guest_proto::spec::disk_serial;
use cumulet_podlife::Event;
use std::sync::Arc;

/// Where a program leaves its last words when the pod does not say.
const TERMINATION_MESSAGE_PATH: &str = "/dev/termination-log";

/// Why a container was not started: reason and message of `state.waiting`.
type Refusal = (String, String);

/// Starts one instance and reports a failure; success is told by the supervisor's event.
pub(super) async fn start_container(context: Arc<PodContext>, name: String, attempt: u32) {
    let refusal = match order(&context, &name, attempt).await {
        Ok(order) => match context.supervisor() {
            Some(supervisor) => supervisor.request(Request::Start(Box::new(order))).await.err(),
            // Its loss is on its way as an event of its own.
            None => return,
        },
        Err((reason, message)) => {
            return context.report(Event::StartFailed { container: name, attempt, reason, message });
        }
    };
    // A container that could not be executed has ended, and the supervisor tells of that.
    if let Some(error) = refusal
        && error.reason != GONE
        && error.reason != "StartError"
    {
        let (reason, message) = (error.reason, error.message);
        context.report(Event::StartFailed { container: name, attempt, reason, message });
    }
}

async fn order(context: &Arc<PodContext>, name: &str, attempt: u32) -> Result<ContainerStart, Refusal> {
    let config_error = |message: String| ("CreateContainerConfigError".to_owned(), message);
    let pod = context.pod();
    let container =
        container(&pod, name).ok_or_else(|| config_error(format!("the pod has no container {name}")))?;
    let (image, prepared) = {
        let live = context.live();
        (live.images.get(name).cloned(), live.prepared.clone())
    };
    // After a restart of this process neither is known any more; both are quickly found again.
    let image = match image {
        Some(image) => image,
        None => {
            let reference = container.image.clone().unwrap_or_default();
            let policy = container.image_pull_policy.clone();
            let images = context.shared.images.clone();
            // It may have to be unpacked again.
            on_disk(move || images.present(&reference, policy.as_deref()))
                .await
                .map_err(|error| (error.reason.to_owned(), error.message))?
        }
    };
    let machine = context.kind().await.map_err(|e| config_error(e.to_string()))?.is_machine();
    if image.disk.is_some() && !machine {
        return Err(config_error(
            "the image is the disk of a virtual machine: the pod needs `runtimeClassName: vm`".to_owned(),
        ));
    }
    let objects = context.shared.inputs.collect(&pod).await;
    let facts = context.facts();
    let prepared = match prepared {
        Some(prepared) => prepared,
        None => volumes::prepare(&pod, &context.dirs, &facts, &objects, machine).map_err(config_error)?,
    };
    let environment = env::build(&pod, container, &image.env, &facts, &objects)
        .map_err(|error| config_error(error.to_string()))?;
    let template = context.live().template.clone();
    let identity = template.map(|template| snapshot::identity(context, &template, &objects));
    let guest = (machine && image.disk.is_none()).then(|| GuestParts {
        images: vec![disk_serial(&image.id)],
        mounts: vm::mounts(container, &environment, &prepared),
        devices: vm::devices(container),
        identity,
    });
    let mounts = match machine {
        true => Vec::new(),
        false => {
            volumes::mounts(&pod, container, &prepared, &context.dirs, &environment).map_err(config_error)?
        }
    };
    let spec = container_spec(Parts {
        pod: &pod,
        container,
        attempt,
        image: &image,
        environment: &environment,
        mounts,
        dirs: &context.dirs,
        cgroup: &context.cgroup(),
        supervisor_pid: context.supervisor().map_or(0, |s| s.pid()),
        node_memory_bytes: facts.node_memory_bytes,
    })
    .map_err(|error| config_error(error.to_string()))?;
    let message_path = container.termination_message_path.as_deref().filter(|path| !path.is_empty());
    Ok(ContainerStart {
        name: name.to_owned(),
        attempt,
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        termination_message_path: message_path.unwrap_or(TERMINATION_MESSAGE_PATH).to_owned(),
        termination_message_from_logs: container.termination_message_policy.as_deref()
            == Some("FallbackToLogsOnError"),
        spec,
        guest,
    })
}
