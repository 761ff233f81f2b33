//! The router between a small cluster and a real kernel.

use super::testbed::{POD_CIDR, PodThread, SERVICE_CIDR, fetch, on_a_host, service, slice};
use super::{ServiceRouter, ServiceRouterConfig};
use bytes::Bytes;
use cumulet_api::Status;
use cumulet_cluster::access::{
    DeleteOptions, List, ListOptions, ObjectRef, PatchKind, ResourceId, ResourceInfo, WatchItem,
};
use cumulet_cluster::{BoxFuture, BoxStream, Cluster};
use cumulet_net::Network;
use cumulet_net::nft::Nft;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A cluster that can be listed and watched: a log of changes of named plurals.
struct Log(watch::Sender<Vec<(&'static str, WatchItem)>>);

impl Log {
    fn new() -> Arc<Self> {
        Arc::new(Self(watch::Sender::new(Vec::new())))
    }

    fn tell(&self, plural: &'static str, object: &Value, item: fn(Bytes) -> WatchItem) {
        self.0.send_modify(|log| log.push((plural, item(Bytes::from(object.to_string())))));
    }
}

fn unused<T: Send + 'static>() -> BoxFuture<'static, Result<T, Status>> {
    Box::pin(async { Err(Status::internal("the router only lists and watches")) })
}

impl Cluster for Log {
    fn get<'a>(&'a self, _: &'a ObjectRef) -> BoxFuture<'a, Result<Bytes, Status>> {
        unused()
    }

    fn list<'a>(
        &'a self,
        resource: &'a ResourceId,
        _: &'a ListOptions,
    ) -> BoxFuture<'a, Result<List, Status>> {
        let log = self.0.borrow();
        let mine = log.iter().filter(|(plural, _)| *plural == resource.plural);
        let items = mine.filter_map(|(_, item)| match item {
            WatchItem::Added(bytes) => Some(bytes.clone()),
            _ => None,
        });
        let list = List { items: items.collect(), revision: log.len() as u64 };
        Box::pin(async { Ok(list) })
    }

    fn watch<'a>(
        &'a self,
        resource: &'a ResourceId,
        _: &'a ListOptions,
        from: u64,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<WatchItem, Status>>, Status>> {
        let (plural, log) = (resource.plural.to_string(), self.0.subscribe());
        let events = futures_util::stream::unfold((log, from as usize), |(mut log, at)| async move {
            let next = log.wait_for(|log| log.len() > at).await.ok()?[at].clone();
            Some((next, (log, at + 1)))
        });
        let mine = events.filter_map(move |(kind, item)| {
            let item = (kind == plural).then_some(Ok(item));
            async move { item }
        });
        Box::pin(async move { Ok(mine.boxed()) })
    }

    fn create<'a>(
        &'a self,
        _: &'a ResourceId,
        _: Option<&'a str>,
        _: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Status>> {
        unused()
    }

    fn create_sub<'a>(
        &'a self,
        _: &'a ObjectRef,
        _: &'a str,
        _: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Status>> {
        unused()
    }

    fn update<'a>(
        &'a self,
        _: &'a ObjectRef,
        _: Option<&'a str>,
        _: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Status>> {
        unused()
    }

    fn patch<'a>(
        &'a self,
        _: &'a ObjectRef,
        _: Option<&'a str>,
        _: PatchKind,
        _: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Status>> {
        unused()
    }

    fn delete<'a>(&'a self, _: &'a ObjectRef, _: &'a DeleteOptions) -> BoxFuture<'a, Result<(), Status>> {
        unused()
    }

    fn resources(&self) -> Vec<ResourceInfo> {
        Vec::new()
    }
}

/// Runs a router on this thread's machine while `test` runs beside it, on the same machine.
fn with_router(network: &Network, cluster: &Arc<Log>, test: impl FnOnce(&ServiceRouter)) {
    // Its workers are started from this thread, so they are on the same machine.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let shutdown = CancellationToken::new();
    let config = ServiceRouterConfig {
        node_name: "here".to_owned(),
        pod_cidr: POD_CIDR.parse().unwrap(),
        service_cidr: SERVICE_CIDR.parse().unwrap(),
        dns: "10.97.0.10".parse().unwrap(),
        domain: "cluster.local".to_owned(),
        host_resolv_conf: "/nonexistent/resolv.conf".into(),
    };
    let router = runtime.block_on(async {
        let spawn = ServiceRouter::spawn(cluster.clone(), config, network, shutdown.clone());
        let router = spawn.await.unwrap();
        tokio::time::timeout(Duration::from_secs(20), router.ready()).await.expect("never ready");
        router
    });
    assert!(router.is_ready());
    test(&router);
    shutdown.cancel();
    runtime.shutdown_timeout(Duration::from_secs(5));
}

/// Waits until something holds, looking again and again.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(10);
    let (_never, timer) = std::sync::mpsc::channel::<()>();
    while !holds() {
        assert!(Instant::now() < give_up, "never: {what}");
        let _ = timer.recv_timeout(Duration::from_millis(2));
    }
}

/// Asks the cluster DNS for an address record; the code and, if there is an answer, its address.
fn resolve(name: &str) -> (u8, Option<[u8; 4]>) {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.send_to(&query, "10.97.0.10:53").unwrap();
    let mut reply = [0; 512];
    let received = socket.recv(&mut reply).unwrap();
    let address = reply[..received].last_chunk::<4>().copied();
    (reply[3] & 15, address.filter(|_| reply[7] > 0))
}

/// A cluster with nothing but the API's own Service.
fn cluster() -> Arc<Log> {
    let cluster = Log::new();
    let ports = json!({"ports": [{"name": "https", "port": 443}]});
    cluster.tell("services", &service("kubernetes", "10.97.0.1", ports), WatchItem::Added);
    let endpoints = slice("kubernetes", "TCP", 6443, &[Ipv4Addr::LOCALHOST]);
    cluster.tell("endpointslices", &endpoints, WatchItem::Added);
    cluster
}

fn answers(pod: &PodThread) -> bool {
    fetch("10.97.0.5", 80).is_ok_and(|(who, _)| who == pod.address.to_string())
}

#[test]
fn follows_what_happens() {
    on_a_host(|network| {
        let cluster = cluster();
        let (a, b) = (PodThread::serving(network, 8080), PodThread::serving(network, 8080));
        let to = |pod: &PodThread| slice("web", "TCP", 8080, &[pod.address]);
        with_router(network, &cluster, |router| {
            assert_eq!(resolve("kubernetes.default.svc.cluster.local"), (0, Some([10, 97, 0, 1])));
            assert_eq!(a.run(|| resolve("kubernetes.default.svc.cluster.local")), (0, Some([10, 97, 0, 1])));
            assert_eq!(resolve("web.default.svc.cluster.local").0, 3, "not there yet");
            assert_eq!(resolve("example.org").0, 2, "nobody to ask");
            let web = service("web", "10.97.0.5", json!({}));
            cluster.tell("services", &web, WatchItem::Added);
            eventually("the name", || resolve("web.default.svc.cluster.local") == (0, Some([10, 97, 0, 5])));
            assert!(fetch("10.97.0.5", 80).is_err());
            cluster.tell("endpointslices", &to(&a), WatchItem::Added);
            eventually("the first pod", || answers(&a));
            cluster.tell("endpointslices", &to(&b), WatchItem::Modified);
            eventually("the second pod", || answers(&b));
            assert!(router.last_apply().is_some());
            // Somebody removes the table: the next difference is refused, and everything comes back.
            Nft::open().unwrap().run(&format!("delete table ip {}\n", network.table())).unwrap();
            cluster.tell("endpointslices", &to(&a), WatchItem::Modified);
            eventually("the first pod again", || answers(&a));
            cluster.tell("services", &web, WatchItem::Deleted);
            eventually("no name", || resolve("web.default.svc.cluster.local").0 == 3);
            eventually("no service", || fetch("10.97.0.5", 80).is_err());
        });
    });
}

#[test]
fn rules_outlive_the_router() {
    on_a_host(|network| {
        let cluster = cluster();
        let pod = PodThread::serving(network, 8080);
        cluster.tell("services", &service("web", "10.97.0.5", json!({})), WatchItem::Added);
        let endpoints = slice("web", "TCP", 8080, &[pod.address]);
        cluster.tell("endpointslices", &endpoints, WatchItem::Added);
        with_router(network, &cluster, |_| assert!(answers(&pod)));
        assert!(answers(&pod), "rules stay when the router ends");
        with_router(network, &cluster, |_| assert!(answers(&pod)));
    });
}
