//! From the plan's records to the DNS server's zone.

use super::ServiceRouterConfig;
use cumulet_dns::{Data, Zone};
use cumulet_netplan::{DnsData, Observed, records};
use ipnet::Ipv4Net;

/// The zone of everything observed.
pub(super) fn zone(observed: &Observed<'_>, config: &ServiceRouterConfig, serial: u32) -> Zone {
    let origins = vec![config.domain.clone(), reverse(config.pod_cidr), reverse(config.service_cidr)];
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

/// The reverse zone of a range, at the whole octet that its prefix covers.
fn reverse(cidr: Ipv4Net) -> String {
    let octets = cidr.network().octets();
    let labels: Vec<String> =
        octets.iter().take(usize::from(cidr.prefix_len() / 8)).rev().map(ToString::to_string).collect();
    format!("{}.in-addr.arpa", labels.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_zones() {
        for (cidr, zone) in [
            ("10.86.0.0/16", "86.10.in-addr.arpa"),
            ("10.1.2.0/24", "2.1.10.in-addr.arpa"),
            ("10.16.0.0/12", "10.in-addr.arpa"),
        ] {
            assert_eq!(reverse(cidr.parse().unwrap()), zone);
        }
    }
}
