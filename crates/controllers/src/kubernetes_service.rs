//! The endpoints of the service `default/kubernetes`, by which pods find the API server.
//!
//! The service itself, with its cluster address, is made by the API server; it has no selector, so nobody else
//! writes its endpoints.

use crate::context::Context;
use crate::driver::{Doing, Error, Next, Reconciler};
use crate::queue::Queue;
use crate::service::slices::SERVICE_NAME;
use cumulet_cluster::Api;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointPort as SlicePort, EndpointSlice,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";
const PORT_NAME: &str = "https";
/// Label that keeps others from mirroring the Endpoints into a slice.
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";

/// The controller. It has one key.
pub(crate) struct KubernetesService {
    ctx: Arc<Context>,
    endpoints: Api<Endpoints>,
    slices: Api<EndpointSlice>,
    apiserver: SocketAddr,
}

impl KubernetesService {
    pub(crate) fn new(ctx: &Arc<Context>, queue: &Arc<Queue<()>>, apiserver: SocketAddr) -> Self {
        let is_ours = |meta: &ObjectMeta| {
            meta.name.as_deref() == Some(NAME) && meta.namespace.as_deref() == Some(NAMESPACE)
        };
        let q = queue.clone();
        ctx.informers.services.observe(move |change| {
            if change.latest().is_some_and(|o| is_ours(&o.metadata)) {
                q.add(());
            }
        });
        let q = queue.clone();
        ctx.informers.endpoints.observe(move |change| {
            if change.latest().is_some_and(|o| is_ours(&o.metadata)) {
                q.add(());
            }
        });
        let q = queue.clone();
        ctx.informers.endpoint_slices.observe(move |change| {
            if change.latest().is_some_and(|o| is_ours(&o.metadata)) {
                q.add(());
            }
        });
        let (endpoints, slices) = (Api::new(ctx.cluster.clone()), Api::new(ctx.cluster.clone()));
        Self { ctx: ctx.clone(), endpoints, slices, apiserver }
    }

    async fn write_endpoints(&self) -> Result<(), Error> {
        let subset = EndpointSubset {
            addresses: Some(vec![EndpointAddress {
                ip: self.apiserver.ip().to_string(),
                ..EndpointAddress::default()
            }]),
            not_ready_addresses: None,
            ports: Some(vec![EndpointPort {
                name: Some(PORT_NAME.to_owned()),
                port: i32::from(self.apiserver.port()),
                protocol: Some("TCP".to_owned()),
                app_protocol: None,
            }]),
        };
        let doing = || format!("writing endpoints {NAMESPACE}/{NAME}");
        match self.ctx.informers.endpoints.get(NAMESPACE, NAME) {
            Some(existing) if existing.subsets.as_deref() == Some(std::slice::from_ref(&subset)) => {}
            Some(existing) => {
                let changed = Endpoints { subsets: Some(vec![subset]), ..(*existing).clone() };
                self.endpoints.update(&changed).await.doing(doing)?;
            }
            None => {
                let metadata = metadata(SKIP_MIRROR, "true");
                self.endpoints
                    .create(&Endpoints { metadata, subsets: Some(vec![subset]) })
                    .await
                    .doing(doing)?;
            }
        }
        Ok(())
    }

    async fn write_slice(&self) -> Result<(), Error> {
        let address_type = if self.apiserver.is_ipv6() { "IPv6" } else { "IPv4" }.to_owned();
        let endpoints = Some(vec![Endpoint {
            addresses: vec![self.apiserver.ip().to_string()],
            conditions: Some(EndpointConditions { ready: Some(true), ..EndpointConditions::default() }),
            ..Endpoint::default()
        }]);
        let ports = Some(vec![SlicePort {
            name: Some(PORT_NAME.to_owned()),
            port: Some(i32::from(self.apiserver.port())),
            protocol: Some("TCP".to_owned()),
            app_protocol: None,
        }]);
        let doing = || format!("writing endpoint slice {NAMESPACE}/{NAME}");
        match self.ctx.informers.endpoint_slices.get(NAMESPACE, NAME) {
            Some(existing) => {
                let changed = EndpointSlice { endpoints, ports, ..(*existing).clone() };
                if changed != *existing {
                    self.slices.update(&changed).await.doing(doing)?;
                }
            }
            None => {
                let metadata = metadata(SERVICE_NAME, NAME);
                self.slices
                    .create(&EndpointSlice { metadata, address_type, endpoints, ports })
                    .await
                    .doing(doing)?;
            }
        }
        Ok(())
    }
}

impl Reconciler for KubernetesService {
    type Key = ();

    fn name(&self) -> &'static str {
        "kubernetes-service-controller"
    }

    fn keys(&self) -> Vec<()> {
        vec![()]
    }

    async fn reconcile(&self, (): &()) -> Result<Next, Error> {
        // Without its service nobody would ask for the endpoints, and the namespace may not exist yet.
        if self.ctx.informers.services.get(NAMESPACE, NAME).is_some() {
            self.write_endpoints().await?;
            self.write_slice().await?;
        }
        Ok(Next::Done)
    }
}

fn metadata(label: &str, value: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(NAME.to_owned()),
        namespace: Some(NAMESPACE.to_owned()),
        labels: Some(BTreeMap::from([(label.to_owned(), value.to_owned())])),
        ..ObjectMeta::default()
    }
}
