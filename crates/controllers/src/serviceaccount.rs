//! What every namespace has: the `default` ServiceAccount, and the ConfigMap with the cluster's CA.

use crate::context::Context;
use crate::driver::{Doing, Error, Next, Reconciler};
use crate::informers::ROOT_CA;
use crate::meta::{is_deleting, name, namespace};
use crate::queue::Queue;
use cumulet_api::Status;
use cumulet_cluster::Api;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The account of pods that name none.
const DEFAULT: &str = "default";
/// Key of the certificates in the ConfigMap.
const CA_KEY: &str = "ca.crt";

/// The controller; its keys are names of namespaces.
pub(crate) struct ServiceAccounts {
    ctx: Arc<Context>,
    accounts: Api<ServiceAccount>,
    config_maps: Api<ConfigMap>,
    root_ca_pem: Option<String>,
}

impl ServiceAccounts {
    pub(crate) fn new(ctx: &Arc<Context>, queue: &Arc<Queue<String>>, root_ca_pem: Option<String>) -> Self {
        let q = queue.clone();
        ctx.informers.namespaces.observe(move |change| {
            if let Some(new) = &change.new {
                q.add(name(&new.metadata).to_owned());
            }
        });
        let q = queue.clone();
        ctx.informers.service_accounts.observe(move |change| {
            if let (Some(old), None) = (&change.old, &change.new) {
                q.add(namespace(&old.metadata).to_owned());
            }
        });
        let q = queue.clone();
        ctx.informers.root_cas.observe(move |change| {
            if let Some(map) = change.latest() {
                q.add(namespace(&map.metadata).to_owned());
            }
        });
        let (accounts, config_maps) = (Api::new(ctx.cluster.clone()), Api::new(ctx.cluster.clone()));
        Self { ctx: ctx.clone(), accounts, config_maps, root_ca_pem }
    }

    async fn ensure_account(&self, ns: &str) -> Result<(), Error> {
        if self.ctx.informers.service_accounts.get(ns, DEFAULT).is_some() {
            return Ok(());
        }
        let account = ServiceAccount { metadata: metadata(ns, DEFAULT), ..ServiceAccount::default() };
        created(self.accounts.create(&account).await)
            .doing(|| format!("creating service account {ns}/{DEFAULT}"))
    }

    async fn ensure_root_ca(&self, ns: &str) -> Result<(), Error> {
        let Some(pem) = &self.root_ca_pem else { return Ok(()) };
        let data = Some(BTreeMap::from([(CA_KEY.to_owned(), pem.clone())]));
        let doing = || format!("writing config map {ns}/{ROOT_CA}");
        match self.ctx.informers.root_cas.get(ns, ROOT_CA) {
            Some(existing) if existing.data == data => Ok(()),
            Some(existing) => {
                let restored = ConfigMap { data, ..(*existing).clone() };
                self.config_maps.update(&restored).await.doing(doing)?;
                Ok(())
            }
            None => {
                let mut metadata = metadata(ns, ROOT_CA);
                let why = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
                           endpoints such as the internal service IP or kubernetes.default.svc.";
                metadata.annotations =
                    Some(BTreeMap::from([("kubernetes.io/description".to_owned(), why.to_owned())]));
                let map = ConfigMap { metadata, data, ..ConfigMap::default() };
                created(self.config_maps.create(&map).await).doing(doing)
            }
        }
    }
}

impl Reconciler for ServiceAccounts {
    type Key = String;

    fn name(&self) -> &'static str {
        "serviceaccount-controller"
    }

    fn keys(&self) -> Vec<String> {
        self.ctx.informers.namespaces.list().iter().map(|n| name(&n.metadata).to_owned()).collect()
    }

    async fn reconcile(&self, ns: &String) -> Result<Next, Error> {
        let namespace = self.ctx.informers.namespaces.get("", ns);
        if namespace.is_none_or(|n| is_deleting(&n.metadata)) {
            return Ok(Next::Done);
        }
        self.ensure_account(ns).await?;
        self.ensure_root_ca(ns).await?;
        Ok(Next::Done)
    }
}

fn metadata(ns: &str, name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), namespace: Some(ns.to_owned()), ..ObjectMeta::default() }
}

/// A creation that found the object there is as good as one that made it.
fn created<K>(result: Result<K, Status>) -> Result<(), Status> {
    match result {
        Err(error) if !error.is_already_exists() => Err(error),
        _ => Ok(()),
    }
}
