//! A server on loopback with another one as its upstream.

use super::*;
use crate::zone::Data;
use hickory_proto::op::{MessageType, OpCode};
use hickory_proto::rr::{Name, RecordType};
use std::net::Ipv4Addr;

const LOCAL: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

async fn start(
    origin: &str,
    name: &str,
    data: Data,
    upstreams: Upstreams,
) -> (SocketAddr, CancellationToken) {
    let zone = Zone::new(vec![origin.to_owned()], [(name.to_owned(), vec![data])], 1);
    let server =
        DnsServer::bind(LOCAL.into(), Arc::new(ArcSwap::from_pointee(zone)), upstreams).await.unwrap();
    let (address, shutdown) = (server.local_addr().unwrap(), CancellationToken::new());
    tokio::spawn(server.serve(shutdown.clone()));
    (address, shutdown)
}

fn query(name: &str) -> Vec<u8> {
    let mut message = Message::new(99, MessageType::Query, OpCode::Query);
    message.queries.push(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

/// Asks over UDP and TCP and expects the same from both.
async fn ask(server: SocketAddr, name: &str) -> (ResponseCode, Vec<String>) {
    let socket = UdpSocket::bind(SocketAddr::from(LOCAL)).await.unwrap();
    socket.send_to(&query(name), server).await.unwrap();
    let mut buffer = [0; 1500];
    let received = socket.recv(&mut buffer).await.unwrap();
    let mut stream = TcpStream::connect(server).await.unwrap();
    let packet = query(name);
    stream.write_all(&(packet.len() as u16).to_be_bytes()).await.unwrap();
    stream.write_all(&packet).await.unwrap();
    let mut framed = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut framed).await.unwrap();
    let read = |bytes: &[u8]| {
        let reply = Message::from_vec(bytes).unwrap();
        assert_eq!(reply.metadata.id, 99);
        let answers = reply.answers.iter().map(|r| r.data.to_string()).collect::<Vec<_>>();
        (reply.metadata.response_code, answers)
    };
    assert_eq!(read(&buffer[..received]), read(&framed));
    read(&framed)
}

#[tokio::test]
async fn answers_and_forwards() {
    let up = Data::A(Ipv4Addr::new(192, 0, 2, 1));
    let (upstream, _up) = start("org", "example.org", up, Upstreams::fixed(vec![])).await;
    // The first server is dead: its port was free a moment ago.
    let dead = UdpSocket::bind(SocketAddr::from(LOCAL)).await.unwrap().local_addr().unwrap();
    let alias = Data::Cname("example.org".to_owned());
    let (server, stop) = start("zone", "alias.zone", alias, Upstreams::fixed(vec![dead, upstream])).await;
    assert_eq!(ask(server, "example.org.").await, (ResponseCode::NoError, vec!["192.0.2.1".to_owned()]));
    let both = vec!["example.org.".to_owned(), "192.0.2.1".to_owned()];
    assert_eq!(ask(server, "alias.zone.").await, (ResponseCode::NoError, both));
    assert_eq!(ask(server, "nope.org.").await.0, ResponseCode::NXDomain);
    assert_eq!(ask(server, "nope.zone.").await.0, ResponseCode::NXDomain);
    stop.cancel();
}

#[tokio::test]
async fn without_upstreams_it_says_so_at_once() {
    let data = Data::A(Ipv4Addr::LOCALHOST);
    let (server, _stop) = start("zone", "a.zone", data, Upstreams::fixed(vec![])).await;
    let start = std::time::Instant::now();
    assert_eq!(ask(server, "example.org.").await.0, ResponseCode::ServFail);
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_taken_address_is_told() {
    let taken = TcpListener::bind(SocketAddr::from(LOCAL)).await.unwrap();
    let zone = Arc::new(ArcSwap::from_pointee(Zone::default()));
    let address = taken.local_addr().unwrap();
    let error = DnsServer::bind(address, zone, Upstreams::fixed(vec![])).await.err().unwrap();
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}
