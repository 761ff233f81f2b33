//! The plan's rules in a real kernel, with real connections between namespaces.

use super::testbed::{PATIENCE, PodThread, fetch, names, object, on_a_host, serve, service, slice};
use cumulet_net::nft::Nft;
use cumulet_net::{Network, pod_side};
use cumulet_netplan::{Observed, Ruleset, diff, plan, render};
use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

/// Much shorter than any retransmission or timeout, much longer than an answer takes.
const AT_ONCE: Duration = Duration::from_millis(800);

fn ruleset(services: &[Value], slices: &[Value], pods: &[Value]) -> Ruleset {
    let services: Vec<_> = services.iter().cloned().map(object).collect();
    let slices: Vec<_> = slices.iter().cloned().map(object).collect();
    let pods: Vec<_> = pods.iter().cloned().map(object).collect();
    Ruleset::of(&plan(&Observed { node: "here", services: &services, slices: &slices, pods: &pods }))
}

/// Applies a world to the kernel: as a whole, then away and back as differences.
fn apply(network: &Network, services: &[Value], slices: &[Value], pods: &[Value]) -> Nft {
    let mut nft = Nft::open().unwrap();
    let (names, new) = (names(network), ruleset(services, slices, pods));
    nft.run(&render(&names, &new)).unwrap();
    nft.run(&diff(&names, &new, &Ruleset::default())).unwrap();
    nft.run(&diff(&names, &Ruleset::default(), &new)).unwrap();
    nft
}

/// How often each server answered.
fn tally(times: usize, mut fetch: impl FnMut() -> String) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..times {
        *counts.entry(fetch()).or_default() += 1;
    }
    counts
}

fn servers(counts: &BTreeMap<String, usize>) -> BTreeSet<String> {
    counts.keys().cloned().collect()
}

fn check_refused(what: &str, result: std::io::Result<(String, String)>, start: Instant) {
    let error = result.expect_err(what);
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{what}: {error}");
    assert!(start.elapsed() < AT_ONCE, "{what} took {:?}", start.elapsed());
}

#[test]
fn a_service_reaches_all_its_pods_from_everywhere() {
    on_a_host(|network| {
        let pods = [PodThread::serving(network, 8080), PodThread::serving(network, 8080)];
        let client = PodThread::new(network);
        let addresses = [pods[0].address, pods[1].address];
        let ports = json!({"ports": [{"port": 80, "nodePort": 30080}], "externalIPs": ["192.0.2.77"]});
        let endpoints = slice("web", "TCP", 8080, &addresses);
        apply(network, &[service("web", "10.97.0.5", ports)], &[endpoints], &[]);
        let expected: BTreeSet<String> = addresses.iter().map(ToString::to_string).collect();
        let gateway = network.gateway().to_string();
        for (address, port) in [("10.97.0.5", 80), (gateway.as_str(), 30080), ("127.0.0.1", 30080)] {
            let counts = tally(40, || fetch(address, port).unwrap().0);
            assert_eq!(servers(&counts), expected, "host to {address}:{port}");
        }
        for (address, port) in [("10.97.0.5", 80), (gateway.as_str(), 30080), ("192.0.2.77", 80)] {
            let (own, address) = (client.address.to_string(), address.to_owned());
            let counts = client.run(move || {
                tally(40, || {
                    let (server, seen) = fetch(&address, port).unwrap();
                    assert_eq!(seen, own, "pods keep their address");
                    server
                })
            });
            assert_eq!(servers(&counts), expected, "pod to port {port}");
        }
        // Loopback is the pod's own: it must not lead to the machine's.
        client.run(|| assert!(fetch("127.0.0.1", 30080).is_err()));
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    on_a_host(|network| {
        let pod = PodThread::serving(network, 8080);
        let own = pod.address;
        let endpoints = slice("me", "TCP", 8080, &[own]);
        apply(network, &[service("me", "10.97.0.5", json!({}))], &[endpoints], &[]);
        let (server, client) = pod.run(|| fetch("10.97.0.5", 80).unwrap());
        assert_eq!(server, own.to_string());
        assert_eq!(client, network.gateway().to_string(), "seen from itself it must be somebody else");
    });
}

#[test]
fn what_has_no_endpoint_is_refused_at_once() {
    on_a_host(|network| {
        let pod = PodThread::serving(network, 8080);
        let more = json!({"ports": [{"port": 80, "nodePort": 30080}], "externalIPs": ["192.0.2.77"]});
        let services = [service("none", "10.97.0.5", more), service("one", "10.97.0.6", json!({}))];
        apply(network, &services, &[slice("one", "TCP", 8080, &[pod.address])], &[]);
        for (what, address, port) in [
            ("no endpoints", "10.97.0.5", 80),
            ("no endpoints, external", "192.0.2.77", 80),
            ("another port", "10.97.0.6", 81),
            ("no such service", "10.97.200.1", 80),
        ] {
            // This machine has no route to the external address; a pod has one, through the machine.
            if address.starts_with("10.") {
                let start = Instant::now();
                check_refused(what, fetch(address, port), start);
            }
            pod.run(move || {
                let start = Instant::now();
                check_refused(what, fetch(address, port), start);
            });
        }
        let gateway = network.gateway().to_string();
        let start = Instant::now();
        check_refused("node port", fetch("127.0.0.1", 30080), start);
        pod.run(move || check_refused("node port", fetch(&gateway, 30080), Instant::now()));
        assert!(fetch("10.97.0.6", 80).is_ok());
    });
}

#[test]
fn affinity_keeps_a_client_and_spreads_clients() {
    on_a_host(|network| {
        let pods: Vec<PodThread> = (0..3).map(|_| PodThread::serving(network, 8080)).collect();
        let clients: Vec<PodThread> = (0..8).map(|_| PodThread::new(network)).collect();
        let addresses: Vec<Ipv4Addr> = pods.iter().map(|pod| pod.address).collect();
        let web = [service("web", "10.97.0.5", json!({"sessionAffinity": "ClientIP"}))];
        let world = |addresses: &[Ipv4Addr]| vec![slice("web", "TCP", 8080, addresses)];
        let mut nft = apply(network, &web, &world(&addresses), &[]);
        let who = |client: &PodThread| {
            let counts = client.run(|| tally(10, || fetch("10.97.0.5", 80).unwrap().0));
            assert_eq!(counts.len(), 1, "{counts:?}");
            counts.into_keys().next().unwrap()
        };
        let before: Vec<String> = clients.iter().map(who).collect();
        assert!(before.iter().collect::<BTreeSet<_>>().len() > 1, "all clients at one server: {before:?}");
        // One endpoint goes: its clients move, the others stay where they were.
        let (old, new) =
            (ruleset(&web, &world(&addresses), &[]), ruleset(&web, &world(&addresses[1..]), &[]));
        nft.run(&diff(&names(network), &old, &new)).unwrap();
        let gone = addresses[0].to_string();
        for (client, before) in clients.iter().zip(&before) {
            let after = who(client);
            assert!(if *before == gone { after != gone } else { after == *before }, "{before} then {after}");
        }
    });
}

#[test]
fn a_server_on_the_machines_loopback_can_be_an_endpoint() {
    on_a_host(|network| {
        let pod = PodThread::new(network);
        serve(Ipv4Addr::LOCALHOST, 6443, "api");
        let loopback = slice("api", "TCP", 6443, &[Ipv4Addr::LOCALHOST]);
        apply(network, &[service("api", "10.97.0.1", json!({}))], &[loopback], &[]);
        assert_eq!(fetch("10.97.0.1", 80).unwrap().0, "api");
        assert_eq!(pod.run(|| fetch("10.97.0.1", 80).unwrap().0), "api");
    });
}

#[test]
fn host_ports() {
    on_a_host(|network| {
        let pod = PodThread::serving(network, 8080);
        let client = PodThread::new(network);
        let object = json!({"metadata": {"namespace": "default", "name": "p"},
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 8080, "hostPort": 8081},
                {"containerPort": 8080, "hostPort": 8082, "hostIP": "127.0.0.1"}]}]},
            "status": {"podIP": pod.address, "phase": "Running"}});
        apply(network, &[], &[], &[object]);
        let gateway = network.gateway().to_string();
        assert_eq!(fetch("127.0.0.1", 8081).unwrap().0, pod.address.to_string());
        assert_eq!(fetch("127.0.0.1", 8082).unwrap().0, pod.address.to_string());
        let start = Instant::now();
        check_refused("bound elsewhere", fetch(&gateway, 8082), start);
        for from in [&client, &pod] {
            let gateway = gateway.clone();
            assert_eq!(from.run(move || fetch(&gateway, 8081).unwrap().0), pod.address.to_string());
        }
    });
}

#[test]
fn a_udp_client_moves_when_its_endpoint_goes() {
    on_a_host(|network| {
        let pods = [PodThread::new(network), PodThread::new(network)];
        pods.iter().for_each(|pod| pod.serve_udp(5353));
        let dns = json!({"ports": [{"port": 53, "protocol": "UDP"}]});
        let dns = [service("dns", "10.97.0.5", dns)];
        let both = [slice("dns", "UDP", 5353, &[pods[0].address, pods[1].address])];
        let mut nft = apply(network, &dns, &both, &[]);
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let ask = || {
            socket.send_to(b"?", "10.97.0.5:53").unwrap();
            let mut buffer = [0; 64];
            let received = socket.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..received]).into_owned()
        };
        let first = ask();
        assert_eq!(ask(), first, "one connection goes to one server");
        let (gone, left) = if pods[0].address.to_string() == first { (0, 1) } else { (1, 0) };
        let one = [slice("dns", "UDP", 5353, &[pods[left].address])];
        nft.run(&diff(&names(network), &ruleset(&dns, &both, &[]), &ruleset(&dns, &one, &[]))).unwrap();
        let removed = (pods[gone].address, 5353);
        assert_eq!(cumulet_net::flush_udp(&[removed].into()).unwrap(), 1);
        assert_eq!(ask(), pods[left].address.to_string());
    });
}

#[test]
fn pods_cannot_pose_as_others_or_reach_the_machines_loopback() {
    on_a_host(|network| {
        let pod = PodThread::new(network);
        let mut nft = apply(network, &[], &[], &[]);
        let listen = |address: Ipv4Addr| {
            let socket = UdpSocket::bind((address, 0)).unwrap();
            let port = socket.local_addr().unwrap().port();
            (socket, port)
        };
        let (loopback, gateway) = (Ipv4Addr::LOCALHOST, network.gateway());
        let ((inner, inner_port), (outer, outer_port)) = (listen(loopback), listen(gateway));
        let foreign: Ipv4Addr = "203.0.113.5".parse().unwrap();
        let mut side = network.pod_side(pod.address);
        side.address = foreign.into();
        pod.run(move || pod_side::configure(&side).unwrap());
        let own = pod.address;
        let send = |from: Ipv4Addr, to: Ipv4Addr, port: u16| {
            pod.run(move || {
                let socket = UdpSocket::bind((from, 0)).unwrap();
                // Any program may do this, and then 127.0.0.1 leaves the pod.
                setsockopt(&socket, BindToDevice, &"eth0".into()).unwrap();
                socket.send_to(b"!", (to, port)).unwrap();
            });
        };
        let within = |socket: &UdpSocket, time| {
            socket.set_read_timeout(Some(time)).unwrap();
            socket.recv(&mut [0; 8]).is_ok()
        };
        let received = |socket: &UdpSocket| within(socket, PATIENCE);
        let nothing = |socket: &UdpSocket| !within(socket, Duration::from_millis(300));
        send(own, gateway, outer_port);
        assert!(received(&outer), "honest");
        send(foreign, gateway, outer_port);
        assert!(nothing(&outer), "a source that is no pod's");
        send(own, loopback, inner_port);
        assert!(nothing(&inner), "loopback from outside");
        // It is the guard that stops them, and not this test's clumsiness.
        nft.run(&format!("flush chain ip {} guard\n", network.table())).unwrap();
        send(foreign, gateway, outer_port);
        assert!(received(&outer));
        send(own, loopback, inner_port);
        assert!(received(&inner));
    });
}

/// Prints how long planning and applying take; run it alone and with `--nocapture` to read the figures.
#[test]
fn times() {
    on_a_host(|network| {
        let names = names(network);
        let mut nft = Nft::open().unwrap();
        for count in [1_u32, 100, 1000] {
            let services: Vec<Value> =
                (0..count).map(|n| service(&format!("s{n}"), &nth([10, 97, 1, 0], n), json!({}))).collect();
            let endpoints = |n: u32| [0, 1, 2].map(|k| nth([10, 86, 1, 0], 3 * n + k).parse().unwrap());
            let mut slices: Vec<Value> =
                (0..count).map(|n| slice(&format!("s{n}"), "TCP", 8080, &endpoints(n))).collect();
            let old = ruleset(&services, &slices, &[]);
            let start = Instant::now();
            nft.run(&render(&names, &old)).unwrap();
            let whole = start.elapsed();
            slices[0]["endpoints"].as_array_mut().unwrap().pop();
            let new = ruleset(&services, &slices, &[]);
            let start = Instant::now();
            nft.run(&diff(&names, &old, &new)).unwrap();
            let change = start.elapsed();
            let start = Instant::now();
            nft.list("list tables ip").unwrap();
            let verify = start.elapsed();
            println!("{count} services: whole {whole:?}, one change {change:?}, verification {verify:?}");
        }
    });
}

fn nth(base: [u8; 4], n: u32) -> String {
    Ipv4Addr::from(u32::from_be_bytes(base) + n).to_string()
}
