//! The host's side: one bridge, one veth per pod, and their removal.
//!
//! The kernel is the only state: every name derives from the seed and an address, so a new process (or one that only
//! cleans up) finds everything again. All operations are idempotent.

use crate::error::cannot;
use crate::host::{self, Routes};
use crate::netlink::{Attributes, Batch, CREATE, EXCL, Pool, REPLACE, Socket, u32_at};
use crate::pod_side::{self, PodSide};
use crate::{Addresses, Error};
use ipnet::Ipv4Net;
use std::collections::HashSet;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// Prefix of bridge names.
pub(crate) const BRIDGE_PREFIX: &str = "cum";
/// The pod's end of a veth pair.
const POD_INTERFACE: &str = "eth0";
/// How much of the seed goes into a name: `v` + 6 + 8 digits of the address are the 15 that the kernel allows.
const SEED_DIGITS: usize = 6;

// From linux/veth.h, linux/if_link.h; libc has no names for them.
const VETH_INFO_PEER: u16 = 1;
const IFLA_BR_FORWARD_DELAY: u16 = 1;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
const IFLA_BRPORT_MODE: u16 = 4;

/// A range and the option with which a user chooses it, for error messages.
#[derive(Clone, Copy, Debug)]
pub struct RoutedCidr {
    /// The range.
    pub cidr: Ipv4Net,
    /// Such as `--pod-cidr`.
    pub flag: &'static str,
}

/// What a network is made from.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// At least 6 hexadecimal digits that tell this cloud from others on the machine; all names derive from it.
    pub seed: String,
    /// Addresses of pods; the first one is the bridge's.
    pub pods: RoutedCidr,
    /// More ranges that the host routes to the bridge, so that its own processes use the bridge's address as source
    /// for them. What happens to such packets is up to nftables.
    pub routed: Vec<RoutedCidr>,
    /// File that remembers which kernel parameters were changed, so that [`Network::destroy`] can restore them.
    pub record: PathBuf,
}

/// A network namespace.
#[derive(Clone, Copy, Debug)]
pub enum Netns<'a> {
    /// The one of a process.
    Pid(u32),
    /// An open file of `/proc/<pid>/ns/net` or the like.
    Fd(BorrowedFd<'a>),
}

/// A pod network that is up. Share it in an `Arc`; all calls may run at the same time.
pub struct Network {
    names: Names,
    bridge_index: u32,
    gateway: Ipv4Addr,
    addresses: Addresses,
    sockets: Pool,
}

impl Network {
    /// Creates the network or adopts what is there.
    ///
    /// # Errors
    /// [`Error::RouteConflict`], [`Error::Invalid`], or the kernel's refusal.
    pub fn open(config: &NetworkConfig) -> Result<Self, Error> {
        let names = Names::new(&config.seed)?;
        let addresses = Addresses::new(config.pods.cidr)?;
        let gateway = first_address(addresses.cidr());
        let sockets = Pool::default();
        let ranges: Vec<RoutedCidr> =
            std::iter::once(config.pods).chain(config.routed.iter().copied()).collect();
        let conflict = sockets.with(Routes::read).map_err(cannot("read the routes of this machine"))?;
        conflict.check(&ranges, &names.bridge)?;
        let index =
            sockets.with(|s| create_bridge(s, &names)).map_err(cannot(format!("create {}", names.bridge)))?;
        let pods = Ipv4Net::new(gateway, addresses.cidr().prefix_len())
            .map_err(|e| Error::Invalid(format!("pod range: {e}")))?;
        sockets
            .with(|s| address_bridge(s, index, pods, &config.routed))
            .map_err(cannot(format!("give {} its addresses and routes", names.bridge)))?;
        host::configure_bridge(&names.bridge)?;
        host::enable_forwarding(&config.record)?;
        Ok(Self { names, bridge_index: index, gateway, addresses, sockets })
    }

    /// Name of the bridge.
    pub fn bridge(&self) -> &str {
        &self.names.bridge
    }

    /// Name for this network's nftables table.
    pub fn table(&self) -> &str {
        &self.names.table
    }

    /// The bridge's own address, the gateway of all pods.
    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    /// The allocator of pod addresses.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Name of the host's end of the veth pair of a pod address.
    pub fn host_interface(&self, address: Ipv4Addr) -> String {
        self.names.port(address)
    }

    /// What the pod with this address is to configure on its side.
    pub fn pod_side(&self, address: Ipv4Addr) -> PodSide {
        PodSide {
            interface: POD_INTERFACE.to_owned(),
            address: Ipv4Net::from(address),
            gateway: self.gateway,
            mtu: 0,
        }
    }

    /// Gives the bridge a further address as /32, so that a local server can listen on it.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn add_address(&self, address: Ipv4Addr) -> Result<(), Error> {
        let mut batch = Batch::default();
        pod_side::add_address(&mut batch, self.bridge_index, Ipv4Net::from(address));
        let result = self.sockets.with(|s| s.execute_all(batch));
        result.map_err(cannot(format!("add {address} to {}", self.names.bridge)))
    }

    /// Creates the veth pair of a pod: one end on the bridge, the other as `eth0` in the pod's namespace, which has
    /// to be configured there ([`pod_side::configure`] with the answer of this call). Whatever the address was
    /// attached to before is replaced, so repeating the call means configuring again.
    ///
    /// # Errors
    /// The kernel's refusal, such as an `eth0` that is not ours.
    pub fn attach(&self, netns: Netns<'_>, address: Ipv4Addr) -> Result<PodSide, Error> {
        let name = self.names.port(address);
        let what = || cannot(format!("attach {address} to {} as {name}", self.names.bridge));
        let create = |s: &mut Socket| s.execute(self.veth_requests(netns, address, &name));
        let mut results = self.sockets.with(create).map_err(what())?;
        if matches!(results.first(), Some(Err(e)) if e.kind() == io::ErrorKind::AlreadyExists) {
            self.detach(address)?;
            results = self.sockets.with(create).map_err(what())?;
        }
        if let Err(source) = results.into_iter().collect::<io::Result<()>>() {
            // Nothing half-made is left, whichever of the requests failed.
            let _ = self.detach(address);
            return Err(what()(source));
        }
        Ok(self.pod_side(address))
    }

    /// Creates the tap device of a virtual machine with this address, as a port of the bridge. Whoever runs the
    /// machine opens it by its name ([`crate::tap::open`]); it stays until [`Network::detach`]. Whatever the address
    /// was attached to before is replaced. The guest is to use [`hardware_address`].
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn attach_tap(&self, address: Ipv4Addr) -> Result<String, Error> {
        let name = self.names.port(address);
        let what = || cannot(format!("attach {address} to {} as tap {name}", self.names.bridge));
        self.detach(address)?;
        crate::tap::create(&name).map_err(what())?;
        let mut batch = Batch::default();
        batch.request(libc::RTM_NEWLINK, 0, |m| {
            m.link(libc::AF_UNSPEC as u8, 0, 0);
            m.attr_str(libc::IFLA_IFNAME, &name).attr(libc::IFLA_MASTER, &self.bridge_index.to_ne_bytes());
        });
        port_requests(&mut batch, &name);
        // A guest that is not up yet answers no question for its hardware address, and the next one is asked a second
        // later: whoever connects too early would wait for that.
        batch.request(libc::RTM_NEWNEIGH, CREATE | REPLACE, |m| {
            m.neighbour(self.bridge_index);
            m.attr(libc::NDA_DST, &address.octets()).attr(libc::NDA_LLADDR, &hardware_address(address));
        });
        if let Err(source) = self.sockets.with(|s| s.execute_all(batch)) {
            let _ = self.detach(address);
            return Err(what()(source));
        }
        Ok(name)
    }

    /// Removes a pod's port; one that is already gone (with its namespace) is fine. The address stays taken.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn detach(&self, address: Ipv4Addr) -> Result<(), Error> {
        let name = self.names.port(address);
        let mut batch = Batch::default();
        batch.request(libc::RTM_DELNEIGH, 0, |m| {
            m.neighbour(self.bridge_index);
            m.attr(libc::NDA_DST, &address.octets());
        });
        // Only machines have one, and nothing is wrong with one that is left: the address decides what is in it.
        let _ = self.sockets.with(|s| s.execute_all(batch));
        self.sockets.with(|s| delete_link(s, &name)).map_err(cannot(format!("remove {name}")))
    }

    /// Removes the ports of all addresses that are not in `known`; returns the names of the removed ones.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn sweep(&self, known: &HashSet<Ipv4Addr>) -> Result<Vec<String>, Error> {
        let keep: HashSet<String> = known.iter().map(|address| self.names.port(*address)).collect();
        let sweep = |s: &mut Socket| remove_ports(s, &self.names, |name| keep.contains(name));
        self.sockets.with(sweep).map_err(cannot(format!("remove left-over ports of {}", self.names.bridge)))
    }

    /// Removes the network of a seed, whoever made it: ports, bridge, changed kernel parameters. Its nftables table
    /// is removed by [`crate::nft::remove_table`]. Nothing being there is fine.
    ///
    /// # Errors
    /// The kernel's refusal; what could be removed is removed.
    pub fn destroy(seed: &str, record: &Path) -> Result<(), Error> {
        let names = Names::new(seed)?;
        let sockets = Pool::default();
        let bridge = &names.bridge;
        let others = sockets
            .with(|s| {
                remove_ports(s, &names, |_| false)?;
                delete_link(s, bridge)?;
                Ok(links(s)?.iter().any(|link| link.is_bridge))
            })
            .map_err(cannot(format!("remove {bridge}")))?;
        host::restore_forwarding(record, others)
    }

    /// Name of the nftables table of a seed.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a seed that cannot be one.
    pub fn table_of(seed: &str) -> Result<String, Error> {
        Ok(Names::new(seed)?.table)
    }

    fn veth_requests(&self, netns: Netns<'_>, address: Ipv4Addr, name: &str) -> Batch {
        let mut batch = Batch::default();
        batch.request(libc::RTM_NEWLINK, CREATE | EXCL, |m| {
            m.link(libc::AF_UNSPEC as u8, 0, 0);
            m.attr_str(libc::IFLA_IFNAME, name).attr(libc::IFLA_MASTER, &self.bridge_index.to_ne_bytes());
            m.nest(libc::IFLA_LINKINFO, |m| {
                m.attr_str(libc::IFLA_INFO_KIND, "veth").nest(libc::IFLA_INFO_DATA, |m| {
                    m.nest(VETH_INFO_PEER, |m| pod_end(m, netns, address));
                });
            });
        });
        port_requests(&mut batch, name);
        batch
    }
}

/// Configures a new port of the bridge and brings it up. Hairpin, and no isolation between ports: where bridged
/// packets pass netfilter (bridge-nf-call-iptables), a Service's translation happens on the bridge, which must then be
/// free to deliver to any port, the same too.
fn port_requests(batch: &mut Batch, name: &str) {
    batch.request(libc::RTM_NEWLINK, 0, |m| {
        m.link(libc::AF_UNSPEC as u8, 0, 0);
        m.attr_str(libc::IFLA_IFNAME, name);
        m.nest(libc::IFLA_LINKINFO, |m| {
            m.attr_str(libc::IFLA_INFO_SLAVE_KIND, "bridge");
            m.nest(libc::IFLA_INFO_SLAVE_DATA, |m| {
                m.attr(IFLA_BRPORT_MODE, &[1]);
            });
        });
    });
    batch.request(libc::RTM_NEWLINK, 0, |m| {
        m.link(libc::AF_UNSPEC as u8, 0, libc::IFF_UP as u32);
        m.attr_str(libc::IFLA_IFNAME, name);
    });
}

/// The hardware address of a pod's interface. It derives from the address, so that a neighbour entry that the host
/// still holds from an earlier pod of this address stays right.
pub fn hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// The pod's end of a pair.
fn pod_end(m: &mut crate::netlink::Body<'_>, netns: Netns<'_>, address: Ipv4Addr) {
    m.link(libc::AF_UNSPEC as u8, 0, 0);
    m.attr_str(libc::IFLA_IFNAME, POD_INTERFACE).attr(libc::IFLA_ADDRESS, &hardware_address(address));
    match netns {
        Netns::Pid(pid) => m.attr(libc::IFLA_NET_NS_PID, &pid.to_ne_bytes()),
        Netns::Fd(fd) => m.attr(libc::IFLA_NET_NS_FD, &fd.as_raw_fd().to_ne_bytes()),
    };
}

/// The names of one cloud's things.
struct Names {
    bridge: String,
    table: String,
    port_prefix: String,
}

impl Names {
    fn new(seed: &str) -> Result<Self, Error> {
        let fits = (SEED_DIGITS..=64).contains(&seed.len()) && seed.bytes().all(|b| b.is_ascii_hexdigit());
        if !fits {
            return Err(Error::Invalid(format!(
                "the network seed {seed:?} is not 6 to 64 hexadecimal digits"
            )));
        }
        let short = seed[..SEED_DIGITS].to_ascii_lowercase();
        Ok(Self {
            bridge: format!("{BRIDGE_PREFIX}{short}"),
            table: format!("cumulet-{short}"),
            port_prefix: format!("v{short}"),
        })
    }

    fn port(&self, address: Ipv4Addr) -> String {
        format!("{}{:08x}", self.port_prefix, u32::from(address))
    }
}

/// The first address of a range, which is the gateway's.
fn first_address(cidr: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(cidr.network()) + 1)
}

fn create_bridge(socket: &mut Socket, names: &Names) -> io::Result<u32> {
    // A fixed hardware address: without it the bridge takes the lowest one of its ports, and pods would lose their
    // gateway whenever a pod comes or goes.
    let mut mac = [0x0a, 0x58, 0, 0, 0, 0];
    for (byte, digits) in mac[2..5].iter_mut().zip(names.bridge.as_bytes()[BRIDGE_PREFIX.len()..].chunks(2)) {
        *byte = std::str::from_utf8(digits).ok().and_then(|d| u8::from_str_radix(d, 16).ok()).unwrap_or(0);
    }
    mac[5] = 0xfe;
    let mut batch = Batch::default();
    batch.request(libc::RTM_NEWLINK, CREATE, |m| {
        m.link(libc::AF_UNSPEC as u8, 0, 0);
        m.attr_str(libc::IFLA_IFNAME, &names.bridge).attr(libc::IFLA_ADDRESS, &mac);
        m.nest(libc::IFLA_LINKINFO, |m| {
            m.attr_str(libc::IFLA_INFO_KIND, "bridge").nest(libc::IFLA_INFO_DATA, |m| {
                m.attr(IFLA_BR_FORWARD_DELAY, &0u32.to_ne_bytes()).attr(IFLA_BR_MCAST_SNOOPING, &[0]);
            });
        });
    });
    socket.execute_all(batch)?;
    let index = pod_side::link_index(socket, &names.bridge)?;
    index.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the new bridge is not there"))
}

fn address_bridge(socket: &mut Socket, index: u32, pods: Ipv4Net, routed: &[RoutedCidr]) -> io::Result<()> {
    let mut batch = Batch::default();
    batch.request(libc::RTM_NEWLINK, 0, |m| {
        m.link(libc::AF_UNSPEC as u8, index, libc::IFF_UP as u32);
    });
    pod_side::add_address(&mut batch, index, pods);
    for range in routed {
        batch.request(libc::RTM_NEWROUTE, CREATE | REPLACE, |m| {
            m.route(range.cidr.prefix_len(), libc::RT_SCOPE_LINK, 0);
            m.attr(libc::RTA_DST, &range.cidr.network().octets()).attr(libc::RTA_OIF, &index.to_ne_bytes());
            m.attr(libc::RTA_PREFSRC, &pods.addr().octets());
        });
    }
    socket.execute_all(batch)
}

fn delete_link(socket: &mut Socket, name: &str) -> io::Result<()> {
    let mut batch = Batch::default();
    batch.request(libc::RTM_DELLINK, 0, |m| {
        m.link(libc::AF_UNSPEC as u8, 0, 0);
        m.attr_str(libc::IFLA_IFNAME, name);
    });
    match socket.execute_all(batch) {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

fn remove_ports(socket: &mut Socket, names: &Names, keep: impl Fn(&str) -> bool) -> io::Result<Vec<String>> {
    let stale: Vec<String> = links(socket)?
        .into_iter()
        .map(|link| link.name)
        .filter(|name| name.len() == 15 && name.starts_with(&names.port_prefix) && !keep(name))
        .collect();
    for name in &stale {
        delete_link(socket, name)?;
    }
    Ok(stale)
}

struct Link {
    name: String,
    is_bridge: bool,
}

fn links(socket: &mut Socket) -> io::Result<Vec<Link>> {
    let mut found = Vec::new();
    socket.dump(
        libc::RTM_GETLINK,
        |m| m.link(libc::AF_UNSPEC as u8, 0, 0),
        |_, body| {
            let (mut name, mut is_bridge) = (String::new(), false);
            for (kind, value) in Attributes(body.get(16..).unwrap_or_default()) {
                match kind {
                    libc::IFLA_IFNAME => name = text(value),
                    libc::IFLA_LINKINFO => {
                        is_bridge =
                            Attributes(value).any(|(k, v)| k == libc::IFLA_INFO_KIND && text(v) == "bridge");
                    }
                    _ => {}
                }
            }
            if u32_at(body, 4).is_some() {
                found.push(Link { name, is_bridge });
            }
        },
    )?;
    Ok(found)
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}
