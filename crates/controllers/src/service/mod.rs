//! What stands behind a service: the parts that Endpoints and EndpointSlices share.

pub(crate) mod backends;
pub(crate) mod slices;
pub(crate) mod subsets;

use crate::context::Context;
use crate::meta::{key, namespace};
use crate::queue::Queue;
use cumulet_cluster::informer::Key;
use std::sync::Arc;

/// Queues services that changed, and those behind which a pod changed in something that shows.
pub(crate) fn observe_services_and_pods(ctx: &Context, queue: &Arc<Queue<Key>>) {
    let q = queue.clone();
    ctx.informers.services.observe(move |change| {
        if let Some(service) = change.latest() {
            q.add(key(&service.metadata));
        }
    });
    let (q, services) = (queue.clone(), ctx.informers.services.clone());
    ctx.informers.pods.observe(move |change| {
        if let (Some(old), Some(new)) = (&change.old, &change.new)
            && backends::fingerprint(old) == backends::fingerprint(new)
        {
            return;
        }
        let Some(pod) = change.latest() else { return };
        for service in services.list_namespace(namespace(&pod.metadata)) {
            let touched =
                [&change.old, &change.new].into_iter().flatten().any(|p| backends::selects(&service, p));
            if touched {
                q.add(key(&service.metadata));
            }
        }
    });
}
