//! DNS packets, from clients and from upstream servers.

use cumulet_dns::{Data, Zone};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

/// The most that goes out over UDP; smaller when the client did not ask for more than DNS' original 512.
const MAX_UDP_BYTES: usize = 1232;

/// A zone with every kind of record, an alias chain, a loop, and an alias that leads outside.
static ZONE: LazyLock<Zone> = LazyLock::new(|| {
    let many = |n: u8| (0..n).map(|i| Data::A(Ipv4Addr::new(10, 0, 0, i))).collect();
    let alias = |to: &str| vec![Data::Cname(to.to_owned())];
    let server = Data::Srv { weight: 1, port: 80, target: "a.b".to_owned() };
    let records: [(&str, Vec<Data>); 8] = [
        ("a.b", vec![Data::A(Ipv4Addr::LOCALHOST), Data::Aaaa(Ipv6Addr::LOCALHOST)]),
        ("m.b", many(255)),
        ("c.b", alias("a.b")),
        ("l.b", alias("l.b")),
        ("x.b", alias("x.y")),
        ("_h._tcp.b", vec![server]),
        ("t.b", vec![Data::Txt("text".to_owned())]),
        ("1.0.0.127.in-addr.arpa", vec![Data::Ptr("a.b".to_owned())]),
    ];
    let records = records.map(|(name, data)| (name.to_owned(), data));
    Zone::new(vec!["b".to_owned(), "in-addr.arpa".to_owned()], records, 1)
});

/// One byte for the length of the query, the query, and what an upstream answers to it. A reply fits its transport
/// and carries the client's number.
pub(crate) fn dns(data: &[u8]) {
    let Some((length, rest)) = data.split_first() else { return };
    let (query, upstream) = rest.split_at(usize::from(*length).min(rest.len()));
    for (tcp, most) in [(false, MAX_UDP_BYTES), (true, usize::from(u16::MAX))] {
        if let Some(reply) = cumulet_dns::exchange(&ZONE, query, upstream, tcp) {
            assert!(reply.len() <= most.max(upstream.len()), "{} bytes", reply.len());
            if let (Some(asked), Some(answered)) = (query.get(..2), reply.get(..2)) {
                assert_eq!(asked, answered);
            }
        }
    }
}
