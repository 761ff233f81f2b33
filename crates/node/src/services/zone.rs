//! From the plan's records to the DNS server's zone.

use super::ServiceRouterConfig;
use cumulet_dns::{Data, Zone};
use cumulet_netplan::{DnsData, Observed, records};
use ipnet::Ipv4Net;

/// The zone of everything observed.
pub(super) fn zone(observed: &Observed<'_>, config: &ServiceRouterConfig, serial: u32) -> Zone {
    let mut origins = vec![config.domain.clone()];
    origins.extend([config.pod_cidr, config.service_cidr].into_iter().flat_map(reverse));
    let all = records(observed, &config.domain);
    Zone::new(
        origins,
        all.into_iter().map(|(name, data)| (name, data.into_iter().map(convert).collect())),
        serial,
    )
}

fn convert(data: DnsData) -> Data {
    match data {
        DnsData::A(address) => Data::A(address),
        DnsData::Cname(name) => Data::Cname(name),
        DnsData::Ptr(name) => Data::Ptr(name),
        DnsData::Srv { weight, port, target } => Data::Srv { weight, port, target },
        DnsData::Txt(text) => Data::Txt(text),
    }
}

/// The reverse zones of a range. Zones are cut at whole octets, so a /12 is sixteen of them; together they are exactly
/// the range, and addresses next to it are left to the upstreams.
fn reverse(cidr: Ipv4Net) -> Vec<String> {
    let octets = cidr.prefix_len().div_ceil(8).clamp(1, 3);
    let zone = |net: Ipv4Net| {
        let octets = net.network().octets().into_iter().take(usize::from(octets));
        let labels: Vec<String> = octets.rev().map(|octet| octet.to_string()).collect();
        format!("{}.in-addr.arpa", labels.join("."))
    };
    // A range within the last octet has no zone of its own: its /24 it is.
    match cidr.subnets(octets * 8) {
        Ok(subnets) => subnets.map(zone).collect(),
        Err(_) => vec![zone(cidr)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_zones() {
        for (cidr, first, last, count) in [
            ("10.86.0.0/16", "86.10.in-addr.arpa", "86.10.in-addr.arpa", 1),
            ("10.1.2.0/24", "2.1.10.in-addr.arpa", "2.1.10.in-addr.arpa", 1),
            ("10.16.0.0/12", "16.10.in-addr.arpa", "31.10.in-addr.arpa", 16),
            ("10.1.4.0/22", "4.1.10.in-addr.arpa", "7.1.10.in-addr.arpa", 4),
            ("10.1.2.64/26", "2.1.10.in-addr.arpa", "2.1.10.in-addr.arpa", 1),
        ] {
            let zones = reverse(cidr.parse().unwrap());
            assert_eq!(zones.len(), count, "{cidr}");
            assert_eq!((zones[0].as_str(), zones[count - 1].as_str()), (first, last));
        }
    }
}
