//! Endpoints of services with a selector, for clients that do not know EndpointSlices.
//!
//! Endpoints of services without a selector belong to whoever wrote them and are left alone.

use crate::context::Context;
use crate::driver::{Doing, Error, Next, Reconciler};
use crate::meta::{self, Map};
use crate::queue::Queue;
use crate::service::backends::{backends, is_headless, is_selecting};
use crate::service::observe_services_and_pods;
use crate::service::slices::HEADLESS;
use crate::service::subsets::subsets;
use cumulet_cluster::informer::Key;
use cumulet_cluster::{Api, DeleteOptions};
use k8s_openapi::api::core::v1::{Endpoints as EndpointsObject, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::sync::Arc;

/// Label by which Endpoints made here are told from those that people wrote.
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpoint-controller";

/// The controller.
pub(crate) struct Endpoints {
    ctx: Arc<Context>,
    api: Api<EndpointsObject>,
}

impl Endpoints {
    pub(crate) fn new(ctx: &Arc<Context>, queue: &Arc<Queue<Key>>) -> Self {
        observe_services_and_pods(ctx, queue);
        let q = queue.clone();
        ctx.informers.endpoints.observe(move |change| {
            if let Some(endpoints) = change.latest() {
                q.add(meta::key(&endpoints.metadata));
            }
        });
        Self { ctx: ctx.clone(), api: Api::new(ctx.cluster.clone()) }
    }

    /// Endpoints made here go with their service.
    async fn remove(&self, ns: &str, service: &str) -> Result<(), Error> {
        let existing = self.ctx.informers.endpoints.get(ns, service);
        let Some(existing) = existing.filter(|e| is_managed(&e.metadata)) else { return Ok(()) };
        let options = DeleteOptions { uid: existing.metadata.uid.clone(), ..DeleteOptions::default() };
        match self.api.delete(ns, service, &options).await {
            Err(error) if !error.is_not_found() => {
                Err(error).doing(|| format!("deleting endpoints {ns}/{service}"))
            }
            _ => Ok(()),
        }
    }
}

impl Reconciler for Endpoints {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER
    }

    fn keys(&self) -> Vec<Key> {
        let informers = &self.ctx.informers;
        let services = informers.services.list().into_iter().map(|s| meta::key(&s.metadata));
        let managed = informers.endpoints.list().into_iter().filter(|e| is_managed(&e.metadata));
        services.chain(managed.map(|e| meta::key(&e.metadata))).collect()
    }

    async fn reconcile(&self, (ns, service_name): &Key) -> Result<Next, Error> {
        let Some(service) = self.ctx.informers.services.get(ns, service_name) else {
            self.remove(ns, service_name).await?;
            return Ok(Next::Done);
        };
        if !is_selecting(&service) || meta::is_deleting(&service.metadata) {
            return Ok(Next::Done);
        }
        let pods = self.ctx.informers.pods.list_namespace(ns);
        let publish = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true);
        let subsets = subsets(&backends(&service, &pods), publish);
        let wanted_labels = labels(&service);
        let doing = || format!("writing endpoints {ns}/{service_name}");
        match self.ctx.informers.endpoints.get(ns, service_name) {
            None => {
                let metadata = ObjectMeta {
                    name: Some(service_name.clone()),
                    namespace: Some(ns.clone()),
                    labels: Some(wanted_labels),
                    ..ObjectMeta::default()
                };
                self.api.create(&EndpointsObject { metadata, subsets: Some(subsets) }).await.doing(doing)?;
            }
            Some(existing) => {
                let same = existing.subsets.as_deref().unwrap_or(&[]) == subsets;
                if same && existing.metadata.labels.as_ref() == Some(&wanted_labels) {
                    return Ok(Next::Done);
                }
                let mut changed = (*existing).clone();
                changed.metadata.labels = Some(wanted_labels);
                changed.subsets = Some(subsets);
                self.api.update(&changed).await.doing(doing)?;
            }
        }
        Ok(Next::Done)
    }
}

fn is_managed(meta: &ObjectMeta) -> bool {
    meta.labels.as_ref().and_then(|l| l.get(MANAGED_BY)).is_some_and(|m| m == CONTROLLER)
}

fn labels(service: &Service) -> Map {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER.to_owned());
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}
