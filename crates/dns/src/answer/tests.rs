//! Tables of questions and answers; hostile packets.

use super::*;
use proptest::prelude::*;
use std::net::Ipv4Addr;

fn zone() -> Zone {
    let a = |last| Data::A(Ipv4Addr::new(10, 97, 0, last));
    let srv =
        |n: u16| Data::Srv { weight: 100, port: 8000 + n, target: "web.ns.svc.cluster.local".to_owned() };
    let records = [
        ("web.ns.svc.cluster.local", vec![a(5)]),
        ("_http._tcp.web.ns.svc.cluster.local", vec![srv(1), srv(2)]),
        ("many.ns.svc.cluster.local", (0..200).map(a).collect()),
        ("in.ns.svc.cluster.local", vec![Data::Cname("web.ns.svc.cluster.local".to_owned())]),
        ("out.ns.svc.cluster.local", vec![Data::Cname("example.org".to_owned())]),
        ("loop.ns.svc.cluster.local", vec![Data::Cname("loop.ns.svc.cluster.local".to_owned())]),
        ("5.0.97.10.in-addr.arpa", vec![Data::Ptr("web.ns.svc.cluster.local".to_owned())]),
        ("dns-version.cluster.local", vec![Data::Txt("1.1.0".to_owned())]),
    ];
    let origins = vec!["cluster.local".to_owned(), "97.10.in-addr.arpa".to_owned()];
    Zone::new(origins, records.map(|(name, data)| (name.to_owned(), data)), 7)
}

fn packet(question: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries.push(Query::query(Name::from_ascii(question).unwrap(), kind));
    message.edns = edns.map(|size| {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        edns
    });
    message.to_vec().unwrap()
}

fn reply(packet: &[u8], transport: Transport) -> Message {
    match answer(&zone(), packet, transport) {
        Outcome::Reply(bytes) => Message::from_vec(&bytes).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Code, answers in order of text, and whether the reply proves absence with a SOA record.
fn check(question: &str, kind: RecordType, code: ResponseCode, answers: &[&str], soa: bool) {
    let reply = reply(&packet(question, kind, None), Transport::Udp);
    assert_eq!(reply.metadata.response_code, code, "{question} {kind}");
    assert_eq!(reply.metadata.id, 4711);
    assert!(reply.metadata.authoritative);
    let mut got: Vec<String> =
        reply.answers.iter().map(|r| format!("{} {} {}", r.name, r.record_type(), r.data)).collect();
    got.sort();
    assert_eq!(got, answers, "{question} {kind}");
    assert_eq!(
        reply.authorities.iter().any(|r| r.record_type() == RecordType::SOA),
        soa,
        "{question} {kind}"
    );
}

#[test]
fn authoritative_answers() {
    use RecordType as T;
    use ResponseCode::{NXDomain, NoError};
    let web = "web.ns.svc.cluster.local.";
    check(web, T::A, NoError, &["web.ns.svc.cluster.local. A 10.97.0.5"], false);
    check("WEB.ns.svc.Cluster.local.", T::A, NoError, &["WEB.ns.svc.Cluster.local. A 10.97.0.5"], false);
    check(web, T::AAAA, NoError, &[], true);
    check(web, T::MX, NoError, &[], true);
    check("ns.svc.cluster.local.", T::A, NoError, &[], true);
    check("nope.ns.svc.cluster.local.", T::A, NXDomain, &[], true);
    check("example.org.ns.svc.cluster.local.", T::AAAA, NXDomain, &[], true);
    check("9.0.97.10.in-addr.arpa.", T::PTR, NXDomain, &[], true);
    check(
        "5.0.97.10.in-addr.arpa.",
        T::PTR,
        NoError,
        &["5.0.97.10.in-addr.arpa. PTR web.ns.svc.cluster.local."],
        false,
    );
    check("dns-version.cluster.local.", T::TXT, NoError, &["dns-version.cluster.local. TXT 1.1.0"], false);
    check(web, T::ANY, NoError, &["web.ns.svc.cluster.local. A 10.97.0.5"], false);
    let alias = "in.ns.svc.cluster.local. CNAME web.ns.svc.cluster.local.";
    check(
        "in.ns.svc.cluster.local.",
        T::A,
        NoError,
        &[alias, "web.ns.svc.cluster.local. A 10.97.0.5"],
        false,
    );
    check("in.ns.svc.cluster.local.", T::CNAME, NoError, &[alias], false);
    let srv = |n| format!("_http._tcp.web.ns.svc.cluster.local. SRV 0 100 800{n} web.ns.svc.cluster.local.");
    check("_http._tcp.web.ns.svc.cluster.local.", T::SRV, NoError, &[&srv(1), &srv(2)], false);
    let soa = "cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 5";
    check("cluster.local.", T::SOA, NoError, &[soa], false);
    check("cluster.local.", T::NS, NoError, &["cluster.local. NS ns.dns.cluster.local."], false);
}

#[test]
fn an_alias_loop_ends() {
    let reply = reply(&packet("loop.ns.svc.cluster.local.", RecordType::A, None), Transport::Udp);
    assert_eq!(reply.answers.len(), MAX_ALIASES);
}

#[test]
fn foreign_names_are_forwarded() {
    let forwarded = |name| {
        matches!(answer(&zone(), &packet(name, RecordType::A, None), Transport::Udp), Outcome::Forward(_))
    };
    assert!(forwarded("example.org."));
    assert!(forwarded("mycluster.local."));
    assert!(forwarded("."));
    let chased = answer(&zone(), &packet("out.ns.svc.cluster.local.", RecordType::A, None), Transport::Udp);
    let Outcome::Chase(begun, request, query) = chased else { panic!("{chased:?}") };
    assert_eq!(query.name().to_ascii(), "example.org.");
    let mut upstream = Message::new(1, MessageType::Response, OpCode::Query);
    let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
    upstream.answers.push(Record::from_rdata(query.name().clone(), 60, data));
    let whole = Message::from_vec(&request.complete(*begun, &upstream.to_vec().unwrap())).unwrap();
    assert_eq!((whole.answers.len(), whole.metadata.id), (2, 4711));
}

#[test]
fn sizes_and_truncation() {
    let size = |edns, transport| {
        let Outcome::Reply(bytes) =
            answer(&zone(), &packet("many.ns.svc.cluster.local.", RecordType::A, edns), transport)
        else {
            panic!("no reply")
        };
        (bytes.len(), Message::from_vec(&bytes).unwrap().metadata.truncation)
    };
    let (bytes, cut) = size(None, Transport::Udp);
    assert!(bytes <= 512 && cut, "{bytes} {cut}");
    let (bytes, cut) = size(Some(65_000), Transport::Udp);
    assert!(bytes > 512 && bytes <= 1232 && cut, "{bytes} {cut}");
    let (bytes, cut) = size(Some(0), Transport::Udp);
    assert!(bytes <= 512 && cut, "{bytes} {cut}");
    let (bytes, cut) = size(None, Transport::Tcp);
    assert!(bytes > 1232 && !cut, "{bytes} {cut}");
}

#[test]
fn strange_queries() {
    let code = |packet: &[u8]| reply(packet, Transport::Udp).metadata.response_code;
    let good = packet("web.ns.svc.cluster.local.", RecordType::A, None);
    let with = |change: fn(&mut Vec<u8>)| {
        let mut packet = good.clone();
        change(&mut packet);
        packet
    };
    assert_eq!(code(&packet("cluster.local.", RecordType::AXFR, None)), ResponseCode::Refused);
    // Opcode STATUS; class CHAOS; two questions; an answer in a query; half a packet.
    assert_eq!(code(&with(|p| p[2] |= 2 << 3)), ResponseCode::NotImp);
    assert_eq!(code(&with(|p| *p.last_mut().unwrap() = 3)), ResponseCode::Refused);
    assert_eq!(code(&with(|p| p[5] = 2)), ResponseCode::FormErr);
    assert_eq!(code(&with(|p| p[7] = 1)), ResponseCode::FormErr);
    assert_eq!(code(&with(|p| p.truncate(20))), ResponseCode::FormErr);
    // A response must never be answered: two servers would talk for ever.
    assert!(matches!(answer(&zone(), &with(|p| p[2] |= 0x80), Transport::Udp), Outcome::Drop));
    assert!(matches!(answer(&zone(), &good[..11], Transport::Udp), Outcome::Drop));
    let mut edns = Edns::new();
    edns.set_version(1);
    let mut message = Message::from_vec(&good).unwrap();
    message.edns = Some(edns);
    // The number has two names, and the parser takes the other one.
    assert_eq!(u16::from(code(&message.to_vec().unwrap())), u16::from(ResponseCode::BADVERS));
}

proptest! {
    #[test]
    fn no_packet_is_too_strange(noise in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = answer(&zone(), &noise, Transport::Udp);
    }

    #[test]
    fn no_damage_is_too_strange(at in 0usize..60, value: u8, cut in 0usize..60) {
        let mut packet = packet("_http._tcp.web.ns.svc.cluster.local.", RecordType::SRV, Some(1232));
        let length = packet.len();
        packet[at % length] = value;
        packet.truncate(length.saturating_sub(cut));
        if let Outcome::Reply(bytes) = answer(&zone(), &packet, Transport::Udp) {
            prop_assert!(bytes.len() <= 1232);
        }
    }
}
