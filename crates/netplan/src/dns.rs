//! DNS records of the cluster's zone, after the Kubernetes DNS specification 1.1.
//!
//! Names are fully qualified, lower case, without the dot at the end. A name with no records exists all the same (a
//! headless service without endpoints). Only IPv4 records are made, so a name of ours has no AAAA.

use crate::endpoints::{Observed, SliceIndex, first_address, pod_address};
use crate::plan::{Protocol, cluster_addresses};
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Version of the specification, as told by the record `dns-version`.
const SCHEMA_VERSION: &str = "1.1.0";
/// All targets of a SRV record are alike.
const SRV_WEIGHT: u16 = 100;

/// One record's data.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DnsData {
    /// IPv4 address.
    A(Ipv4Addr),
    /// Another name.
    Cname(String),
    /// Pointer from an address to a name.
    Ptr(String),
    /// A server for a named port.
    Srv {
        /// All equal here.
        weight: u16,
        /// Port.
        port: u16,
        /// Name with an address record.
        target: String,
    },
    /// Text.
    Txt(String),
}

type Records = BTreeMap<String, BTreeSet<DnsData>>;

/// All names of the zone `domain` (such as `cluster.local`) and of the reverse zones, with their records.
pub fn records(observed: &Observed<'_>, domain: &str) -> BTreeMap<String, BTreeSet<DnsData>> {
    let slices = SliceIndex::new(observed.slices);
    let mut records = Records::new();
    add(&mut records, format!("dns-version.{domain}"), DnsData::Txt(SCHEMA_VERSION.to_owned()));
    for service in observed.services {
        let (Some(namespace), Some(name)) = (&service.metadata.namespace, &service.metadata.name) else {
            continue;
        };
        add_service(
            &mut records,
            service,
            slices.of(namespace, name),
            &format!("{name}.{namespace}.svc.{domain}"),
        );
    }
    for pod in observed.pods {
        let (Some(namespace), Some(address)) = (&pod.metadata.namespace, pod_address(pod)) else { continue };
        add(&mut records, format!("{}.{namespace}.pod.{domain}", dashed(address)), DnsData::A(address));
    }
    records
}

fn add_service(records: &mut Records, service: &Service, slices: &[&EndpointSlice], full: &str) {
    let Some(spec) = &service.spec else { return };
    if spec.type_.as_deref() == Some("ExternalName") {
        let target = spec.external_name.as_deref().unwrap_or("").trim_end_matches('.').to_ascii_lowercase();
        if !target.is_empty() {
            add(records, full.to_owned(), DnsData::Cname(target));
        }
        return;
    }
    let addresses = cluster_addresses(spec);
    if addresses.is_empty() {
        records.entry(full.to_owned()).or_default();
        slices.iter().for_each(|slice| add_headless(records, slice, full));
        return;
    }
    for address in addresses {
        add(records, full.to_owned(), DnsData::A(address));
        add(records, reverse(address), DnsData::Ptr(full.to_owned()));
    }
    add_service_ports(records, spec, full);
}

fn add_service_ports(records: &mut Records, spec: &ServiceSpec, full: &str) {
    for port in spec.ports.iter().flatten() {
        let (Some(name), Ok(number)) = (&port.name, u16::try_from(port.port)) else { continue };
        add_srv(records, name, port.protocol.as_deref(), number, full, full.to_owned());
    }
}

/// The ready endpoints of a service without a virtual address.
fn add_headless(records: &mut Records, slice: &EndpointSlice, full: &str) {
    for endpoint in slice.endpoints.iter().flatten() {
        let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
        let Some(address) = first_address(&endpoint.addresses).filter(|_| ready) else { continue };
        let own = format!("{}.{full}", host_label(endpoint, address));
        add(records, full.to_owned(), DnsData::A(address));
        add(records, own.clone(), DnsData::A(address));
        add(records, reverse(address), DnsData::Ptr(own.clone()));
        for port in slice.ports.iter().flatten() {
            let number = port.port.and_then(|p| u16::try_from(p).ok());
            if let (Some(name), Some(number)) = (&port.name, number) {
                add_srv(records, name, port.protocol.as_deref(), number, full, own.clone());
            }
        }
    }
}

/// An endpoint's label below its service: its host name, else its address with dashes.
fn host_label(endpoint: &Endpoint, address: Ipv4Addr) -> String {
    match endpoint.hostname.as_deref() {
        Some(name) if !name.is_empty() => name.to_ascii_lowercase(),
        _ => dashed(address),
    }
}

fn add_srv(
    records: &mut Records,
    name: &str,
    protocol: Option<&str>,
    port: u16,
    below: &str,
    target: String,
) {
    if !name.is_empty() {
        let full = format!("_{}._{}.{below}", name.to_ascii_lowercase(), Protocol::parse(protocol));
        add(records, full, DnsData::Srv { weight: SRV_WEIGHT, port, target });
    }
}

fn add(records: &mut Records, name: String, data: DnsData) {
    records.entry(name).or_default().insert(data);
}

fn dashed(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("{a}-{b}-{c}-{d}")
}

fn reverse(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("{d}.{c}.{b}.{a}.in-addr.arpa")
}
