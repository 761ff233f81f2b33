//! Tests in network namespaces of their own: a thread that plays the host, and threads that play pods. They need root
//! (user namespaces are not used) and leave nothing behind: a namespace vanishes with its thread.

use crate::nft::Nft;
use crate::{Netns, Network, NetworkConfig, RoutedCidr, pod_side};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Runs a test on a thread in a fresh network namespace.
fn on_a_host(test: impl FnOnce(&Network, &NetworkConfig) + Send + 'static) {
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        pod_side::configure_loopback().unwrap();
        // A new namespace takes this from the machine's own; tests start from the kernel's default.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let config = NetworkConfig {
            seed: "abcdef0123".to_owned(),
            pods: RoutedCidr { cidr: "10.86.0.0/16".parse().unwrap(), flag: "--pod-cidr" },
            routed: vec![RoutedCidr { cidr: "10.97.0.0/16".parse().unwrap(), flag: "--service-cidr" }],
            record: dir.path().join("sysctl"),
        };
        let network = Network::open(&config).unwrap();
        test(&network, &config);
    };
    thread::spawn(run).join().unwrap();
}

type Job = Box<dyn FnOnce() + Send>;

/// A pod: a thread in a network namespace.
struct Pod {
    jobs: mpsc::Sender<Job>,
    netns: File,
    address: Ipv4Addr,
}

impl Pod {
    fn new(network: &Network) -> Self {
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
        let pod = Self { jobs, netns, address };
        pod.run(move || pod_side::configure(&side).unwrap());
        pod
    }

    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.jobs.send(Box::new(move || tell.send(job()).unwrap())).unwrap();
        told.recv().unwrap()
    }

    /// Serves its own address to everybody who connects.
    fn serve(&self, port: u16) {
        let answer = self.address.to_string();
        self.run(move || {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let mut stream = stream;
                    let _ = stream.write_all(answer.as_bytes());
                }
            });
        });
    }
}

fn fetch(address: Ipv4Addr, port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&(address, port).into(), std::time::Duration::from_secs(3))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn pods_and_host_reach_each_other() {
    on_a_host(|network, _| {
        let (a, b) = (Pod::new(network), Pod::new(network));
        b.serve(80);
        let (to, gateway) = (b.address, network.gateway());
        assert_eq!(fetch(to, 80).unwrap(), to.to_string(), "host to pod");
        assert_eq!(a.run(move || fetch(to, 80).unwrap()), to.to_string(), "pod to pod");
        let listener = TcpListener::bind((gateway, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || listener.accept().unwrap().0.write_all(b"host").unwrap());
        assert_eq!(a.run(move || fetch(gateway, port).unwrap()), "host", "pod to host");
    });
}

#[test]
fn attach_replaces_and_detach_is_idempotent() {
    on_a_host(|network, _| {
        let pod = Pod::new(network);
        let side = network.attach(Netns::Fd(pod.netns.as_fd()), pod.address).unwrap();
        pod.run(move || {
            pod_side::configure(&side).unwrap();
            pod_side::configure(&side).unwrap();
        });
        pod.serve(80);
        assert_eq!(fetch(pod.address, 80).unwrap(), pod.address.to_string());
        network.detach(pod.address).unwrap();
        network.detach(pod.address).unwrap();
        assert!(pod_side::configure(&network.pod_side(pod.address)).is_err());
    });
}

#[test]
fn adoption_keeps_pods_and_sweep_removes_strangers() {
    on_a_host(|network, config| {
        let (keep, gone) = (Pod::new(network), Pod::new(network));
        let again = Network::open(config).unwrap();
        assert!(again.addresses().reserve(keep.address));
        let removed = again.sweep(&HashSet::from([keep.address])).unwrap();
        assert_eq!(removed, [network.host_interface(gone.address)]);
        keep.serve(80);
        assert_eq!(fetch(keep.address, 80).unwrap(), keep.address.to_string());
    });
}

#[test]
fn destroy_leaves_nothing() {
    on_a_host(|network, config| {
        let pod = Pod::new(network);
        let forwarding = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
        assert_eq!(forwarding().trim(), "1");
        let mut nft = Nft::open().unwrap();
        nft.run(&format!("add table ip {}\n", network.table())).unwrap();
        Network::destroy(&config.seed, &config.record).unwrap();
        crate::nft::remove_table(network.table()).unwrap();
        Network::destroy(&config.seed, &config.record).unwrap();
        // /proc/net is the namespace of the process; the thread's own is asked for.
        let devices = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let ours: Vec<&str> = devices.lines().filter(|l| l.contains("cum") || l.contains("vabc")).collect();
        assert!(ours.is_empty(), "{ours:?}");
        assert_eq!(nft.list("list ruleset").unwrap().trim(), "");
        assert!(!config.record.exists());
        assert_eq!(forwarding().trim(), "0");
        drop(pod);
    });
}

#[test]
fn a_taken_range_is_refused() {
    on_a_host(|_, config| {
        let other = NetworkConfig { seed: "99999999".to_owned(), ..config.clone() };
        let message = Network::open(&other).err().unwrap().to_string();
        assert!(message.contains("--pod-cidr") && message.contains("cumabcdef"), "{message}");
    });
}

#[test]
fn nft_scripts_are_atomic_and_errors_are_told() {
    on_a_host(|_, _| {
        let mut nft = Nft::open().unwrap();
        let error = nft.run("add table ip t\nadd rule ip t missing drop\n").unwrap_err().to_string();
        assert!(error.contains("missing"), "{error}");
        assert_eq!(nft.list("list ruleset").unwrap().trim(), "");
        assert!(nft.run("add table ip \0").is_err());
    });
}

#[test]
fn attach_is_fast() {
    on_a_host(|network, _| {
        let pods: Vec<Pod> = (0..3).map(|_| Pod::new(network)).collect();
        let mut times = Vec::new();
        for pod in pods.iter().cycle().take(30) {
            network.detach(pod.address).unwrap();
            let start = Instant::now();
            let side = network.attach(Netns::Fd(pod.netns.as_fd()), pod.address).unwrap();
            let attached = start.elapsed();
            let configured = pod.run(move || {
                let start = Instant::now();
                pod_side::configure(&side).unwrap();
                start.elapsed()
            });
            times.push((attached, configured));
        }
        times.sort();
        let (attached, configured) = times[times.len() / 2];
        println!("attach {attached:?}, configure {configured:?} (medians of {})", times.len());
        assert!(attached.as_millis() < 50, "far too slow, even for a busy machine: {attached:?}");
    });
}

#[test]
fn a_tap_is_a_port_until_it_is_detached() {
    on_a_host(|network, _| {
        let address = network.addresses().allocate().unwrap();
        assert!(crate::tap::open(&network.host_interface(address)).is_err());
        let name = network.attach_tap(address).unwrap();
        assert_eq!(name, network.host_interface(address));
        let mut tap = File::from(crate::tap::open(&name).unwrap());
        let busy = crate::tap::open(&name).unwrap_err();
        assert_eq!(busy.raw_os_error(), Some(nix::libc::EBUSY));
        // The host knows the guest's hardware address: what it sends first is meant for the guest already.
        let sender = thread::spawn(move || TcpStream::connect_timeout(&(address, 80).into(), DEADLINE));
        let mut frame = [0; 2048];
        let destination = loop {
            let mut ready = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
            let found = poll(&mut ready, PollTimeout::try_from(DEADLINE).unwrap()).unwrap();
            assert!(found > 0, "nothing arrived for {address}");
            let length = tap.read(&mut frame).unwrap();
            // virtio's header, then Ethernet: 0x0806 is ARP, 0x0800 is IPv4, whose destination ends its header.
            let ethernet = &frame[10..length];
            assert_ne!(ethernet[12..14], [8, 6], "the host asks for an address that it was told");
            if ethernet[12..14] == [8, 0] && ethernet[30..34] == address.octets() {
                break ethernet[..6].to_vec();
            }
        };
        assert_eq!(destination, crate::hardware_address(address));
        drop(tap);
        assert!(crate::tap::open(&name).is_ok(), "it outlives whoever had it open");
        assert_eq!(network.sweep(&HashSet::new()).unwrap(), std::slice::from_ref(&name));
        assert!(crate::tap::open(&name).is_err());
        assert!(sender.join().unwrap().is_err(), "nobody answers");
    });
}
