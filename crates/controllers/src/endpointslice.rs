//! EndpointSlices of services with a selector.
//!
//! A pod that begins to end leaves the ready endpoints with the very watch event that tells of it. Slices go with
//! their service, by their owner reference.

use crate::context::Context;
use crate::driver::{Doing, Error, Next, Reconciler};
use crate::meta::{self, controller_of, name, uid};
use crate::queue::Queue;
use crate::service::backends::{backends, is_selecting};
use crate::service::observe_services_and_pods;
use crate::service::slices::{CONTROLLER_NAME, MANAGED_BY, Plan, SERVICE_NAME, plan};
use cumulet_cluster::informer::Key;
use cumulet_cluster::{Api, DeleteOptions};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::sync::Arc;

/// The controller.
pub(crate) struct EndpointSlices {
    ctx: Arc<Context>,
    api: Api<EndpointSlice>,
}

impl EndpointSlices {
    pub(crate) fn new(ctx: &Arc<Context>, queue: &Arc<Queue<Key>>) -> Self {
        observe_services_and_pods(ctx, queue);
        let q = queue.clone();
        ctx.informers.endpoint_slices.observe(move |change| {
            let managed = |s: &&Arc<EndpointSlice>| label(s, MANAGED_BY) == Some(CONTROLLER_NAME);
            for slice in [&change.old, &change.new].into_iter().flatten().filter(managed) {
                let service = label(slice, SERVICE_NAME).unwrap_or("");
                q.add((meta::namespace(&slice.metadata).to_owned(), service.to_owned()));
            }
        });
        Self { ctx: ctx.clone(), api: Api::new(ctx.cluster.clone()) }
    }

    /// The slices that this controller keeps for a service.
    fn existing(&self, service: &Service, ns: &str) -> Vec<Arc<EndpointSlice>> {
        let mut slices = self.ctx.informers.endpoint_slices.list_namespace(ns);
        slices.retain(|slice| {
            label(slice, MANAGED_BY) == Some(CONTROLLER_NAME)
                && label(slice, SERVICE_NAME) == Some(name(&service.metadata))
                // Those of a service of the same name that was deleted go with it.
                && controller_of(&slice.metadata).is_none_or(|o| o.uid == uid(&service.metadata))
                && !meta::is_deleting(&slice.metadata)
        });
        slices
    }

    async fn carry_out(&self, ns: &str, plan: Plan) -> Result<(), Error> {
        // What appears comes before what goes, so that no endpoint is missing in between.
        for slice in &plan.create {
            self.api
                .create(slice)
                .await
                .doing(|| format!("creating endpoint slice {ns}/{}", name(&slice.metadata)))?;
        }
        for slice in &plan.update {
            self.api
                .update(slice)
                .await
                .doing(|| format!("updating endpoint slice {ns}/{}", name(&slice.metadata)))?;
        }
        for slice in &plan.delete {
            let options = DeleteOptions { uid: slice.metadata.uid.clone(), ..DeleteOptions::default() };
            match self.api.delete(ns, name(&slice.metadata), &options).await {
                Err(error) if !error.is_not_found() => {
                    return Err(error)
                        .doing(|| format!("deleting endpoint slice {ns}/{}", name(&slice.metadata)));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Reconciler for EndpointSlices {
    type Key = Key;

    fn name(&self) -> &'static str {
        "endpointslice-controller"
    }

    fn keys(&self) -> Vec<Key> {
        self.ctx.informers.services.list().iter().map(|s| meta::key(&s.metadata)).collect()
    }

    async fn reconcile(&self, (ns, service_name): &Key) -> Result<Next, Error> {
        let service = self.ctx.informers.services.get(ns, service_name);
        let Some(service) = service.filter(|s| is_selecting(s) && !meta::is_deleting(&s.metadata)) else {
            return Ok(Next::Done);
        };
        let pods = self.ctx.informers.pods.list_namespace(ns);
        let plan = plan(&service, &backends(&service, &pods), &self.existing(&service, ns));
        self.carry_out(ns, plan).await?;
        Ok(Next::Done)
    }
}

fn label<'a>(slice: &'a EndpointSlice, key: &str) -> Option<&'a str> {
    slice.metadata.labels.as_ref()?.get(key).map(String::as_str)
}
