//! A machine and its pods in network namespaces of their own, for tests. Needs root; everything vanishes with the
//! threads, and the machine that runs the tests is never touched.

use cumulet_net::{Netns, Network, NetworkConfig, RoutedCidr, pod_side};
use cumulet_netplan::Names;
use k8s_openapi::serde::de::DeserializeOwned;
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

pub(super) const POD_CIDR: &str = "10.86.0.0/16";
pub(super) const SERVICE_CIDR: &str = "10.97.0.0/16";
/// Nothing here takes nearly so long; a lost packet's first retransmission comes after a second.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Present where bridged packets can pass netfilter. Each network namespace has its own.
const BRIDGE_NETFILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// Runs a test on a thread that is a machine of its own with a pod network; once more for the other way in which a
/// kernel may treat bridged packets, since translation then happens at another place.
pub(super) fn on_a_host(test: impl Fn(&Arc<Network>) + Send + Sync + 'static) {
    let test = Arc::new(test);
    for bridged in ["1", "0"] {
        let test = test.clone();
        let run = move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            pod_side::configure_loopback().unwrap();
            if std::fs::exists(BRIDGE_NETFILTER).unwrap() {
                std::fs::write(BRIDGE_NETFILTER, bridged).unwrap();
            }
            let dir = tempfile::tempdir().unwrap();
            let range = |cidr: &str, flag| RoutedCidr { cidr: cidr.parse().unwrap(), flag };
            let config = NetworkConfig {
                seed: "5e41ce00".to_owned(),
                pods: range(POD_CIDR, "--pod-cidr"),
                routed: vec![range(SERVICE_CIDR, "--service-cidr")],
                record: dir.path().join("network"),
            };
            test(&Arc::new(Network::open(&config).unwrap()));
        };
        assert!(thread::spawn(run).join().is_ok(), "failed with bridge-nf-call-iptables = {bridged}");
    }
}

pub(super) fn names(network: &Network) -> Names {
    Names {
        table: network.table().to_owned(),
        bridge: network.bridge().to_owned(),
        pods: POD_CIDR.parse().unwrap(),
        services: SERVICE_CIDR.parse().unwrap(),
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A pod: a thread in a namespace that is attached to the network.
pub(super) struct PodThread {
    jobs: mpsc::Sender<Job>,
    pub(super) address: Ipv4Addr,
}

impl PodThread {
    pub(super) fn new(network: &Network) -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
            inbox.iter().for_each(|job| job());
        });
        let netns = told.recv().unwrap();
        let address = network.addresses().allocate().unwrap();
        let side = network.attach(Netns::Fd(netns.as_fd()), address).unwrap();
        let pod = Self { jobs, address };
        pod.run(move || pod_side::configure(&side).unwrap());
        pod
    }

    /// Runs something inside the pod.
    pub(super) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.jobs.send(Box::new(move || tell.send(job()).unwrap())).unwrap();
        told.recv().unwrap()
    }

    /// A pod that answers every TCP connection with its own address and the client's.
    pub(super) fn serving(network: &Network, port: u16) -> Self {
        let pod = Self::new(network);
        let own = pod.address;
        pod.run(move || serve(Ipv4Addr::UNSPECIFIED, port, &own.to_string()));
        pod
    }

    /// Answers every datagram with its own address.
    pub(super) fn serve_udp(&self, port: u16) {
        let own = self.address.to_string();
        self.run(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, client)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(own.as_bytes(), client);
                }
            });
        });
    }
}

/// Answers TCP connections in this thread's namespace.
pub(super) fn serve(address: Ipv4Addr, port: u16, name: &str) {
    let listener = TcpListener::bind((address, port)).unwrap();
    let name = name.to_owned();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let client = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
            let _ = stream.write_all(format!("{name} {client}").as_bytes());
        }
    });
}

/// Connects and returns who answered and whom he saw.
pub(super) fn fetch(address: &str, port: u16) -> std::io::Result<(String, String)> {
    let address: Ipv4Addr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&(address, port).into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (server, client) = text.split_once(' ').ok_or(std::io::ErrorKind::InvalidData)?;
    Ok((server.to_owned(), client.to_owned()))
}

pub(super) fn object<T: DeserializeOwned>(json: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(json).unwrap())
}

/// A service of the namespace `default` with one port 80.
pub(super) fn service(name: &str, address: &str, more: Value) -> Value {
    let mut spec = json!({"clusterIP": address, "ports": [{"port": 80}]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "default", "name": name, "resourceVersion": "1"}, "spec": spec})
}

/// Its endpoints, all ready.
pub(super) fn slice(service: &str, protocol: &str, port: u16, addresses: &[Ipv4Addr]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "default", "name": format!("{service}-1"), "resourceVersion": "1",
                     "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"port": port, "protocol": protocol}], "endpoints": endpoints})
}
