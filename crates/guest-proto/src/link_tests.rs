//! Both sides of a channel against each other, without a machine between them.

use super::*;
use crate::guest::{FromHost, GuestLink};
use crate::message::{InstanceState, Reply};

/// Moves bytes until nobody has any, in pieces; both sides' events.
fn settle(host: &mut HostLink, guest: &mut GuestLink, piece: usize) -> (Vec<FromGuest>, Vec<FromHost>) {
    let (mut from_guest, mut from_host) = (vec![], vec![]);
    loop {
        let down = host.take_output();
        for piece in down.chunks(piece) {
            let before = from_host.len();
            guest.receive(piece, &mut from_host);
            for event in &from_host[before..] {
                if matches!(event, FromHost::Hello(_)) {
                    let streams = guest.open_streams();
                    guest.send(&ToHost::Snapshot(Box::new(Snapshot { streams, ..Snapshot::default() })));
                }
            }
        }
        let up = guest.output().to_vec();
        let up = &up[..up.len().min(piece)];
        guest.wrote(up.len());
        host.receive(up, &mut from_guest).unwrap();
        if down.is_empty() && up.is_empty() {
            return (from_guest, from_host);
        }
    }
}

fn output(events: &[FromGuest], stream: u32, wanted: Channel) -> Vec<u8> {
    let of = |event: &FromGuest| match event {
        FromGuest::Output { stream: s, channel, bytes } if *s == stream && *channel == wanted => {
            bytes.clone()
        }
        _ => vec![],
    };
    events.iter().flat_map(of).collect()
}

#[test]
fn a_conversation() {
    let (mut host, mut guest) = (HostLink::new(), GuestLink::new());
    host.begin(7, "test");
    let id = host.request(Request::Freeze);
    let (up, down) = settle(&mut host, &mut guest, 3);
    assert!(matches!(&up[0], FromGuest::Hello(hello) if hello.epoch == 7));
    assert!(matches!(&up[1], FromGuest::Message(ToHost::Snapshot(_))));
    let FromHost::Request(to, request) = &down[1] else { panic!("{down:?}") };
    assert!(matches!(request.as_deref(), Ok(Request::Freeze)));
    guest.reply(*to, Reply::Done);
    let (up, _) = settle(&mut host, &mut guest, 1000);
    assert_eq!(up, [FromGuest::Message(ToHost::Reply { id, reply: Reply::Done })]);
}

#[test]
fn what_is_unknown_is_refused_alone() {
    let (mut host, mut guest) = (HostLink::new(), GuestLink::new());
    host.begin(7, "test");
    frame::write(&mut host.out, Kind::Message, 0, br#"{"id":9,"request":{"fly":{"to":"moon"}}}"#);
    host.request(Request::Thaw);
    let (_, down) = settle(&mut host, &mut guest, 1000);
    assert!(matches!(&down[1], FromHost::Request(_, Err(message)) if message.contains("fly")), "{down:?}");
    assert!(matches!(&down[2], FromHost::Request(_, Ok(_))));
}

#[test]
fn windows_hold_and_streams_take_turns() {
    let (mut host, mut guest) = (HostLink::new(), GuestLink::new());
    host.begin(1, "test");
    for stream in [1, 2] {
        host.open_stream(stream);
        assert!(guest.open_stream(stream) && !guest.open_stream(stream));
        let much = vec![stream as u8; 1 << 20];
        assert_eq!(guest.append(stream, Channel::Stdout, &much), crate::WINDOW_BYTES as usize);
        assert_eq!(guest.append(stream, Channel::Stdout, &much), 0);
    }
    let (up, _) = settle(&mut host, &mut guest, 5000);
    for stream in [1, 2] {
        assert_eq!(output(&up, stream, Channel::Stdout).len(), crate::WINDOW_BYTES as usize);
    }
    let order: Vec<u32> = up
        .iter()
        .filter_map(|e| if let FromGuest::Output { stream, .. } = e { Some(*stream) } else { None })
        .collect();
    assert!(order.windows(2).all(|pair| pair[0] != pair[1]), "{order:?}");
    assert_eq!(guest.room(1, Channel::Stdout), 0);
    host.consumed(1, Channel::Stdout, 200_000);
    let (_, down) = settle(&mut host, &mut guest, 5000);
    assert!(matches!(down[..], [FromHost::Room { stream: 1 }]));
    assert_eq!(guest.room(1, Channel::Stdout), 200_000);
    guest.end(1, Channel::Stdout);
    guest.end(1, Channel::Stderr);
    assert!(!guest.is_told(1));
    let (up, _) = settle(&mut host, &mut guest, 5000);
    assert_eq!(up.iter().filter(|e| matches!(e, FromGuest::Closed { stream: 1, .. })).count(), 2);
    assert!(guest.is_told(1) && !guest.reap_stream(1));
    // The last bytes are acknowledged as soon as they are used up, however few.
    host.consumed(1, Channel::Stdout, crate::WINDOW_BYTES as usize - 200_001);
    settle(&mut host, &mut guest, 5000);
    assert!(!guest.reap_stream(1));
    host.consumed(1, Channel::Stdout, 1);
    settle(&mut host, &mut guest, 5000);
    assert!(guest.reap_stream(1));
    host.discard_stream(2);
    settle(&mut host, &mut guest, 5000);
    assert_eq!(guest.room(2, Channel::Stdout), crate::WINDOW_BYTES as usize);
}

#[test]
fn input_goes_down_and_ends() {
    let (mut host, mut guest) = (HostLink::new(), GuestLink::new());
    host.begin(1, "test");
    host.open_stream(5);
    guest.open_stream(5);
    assert_eq!(host.write_stdin(5, &vec![b'x'; 1 << 20]), crate::WINDOW_BYTES as usize);
    host.close_stdin(5);
    host.resize(5, 100, 40);
    let (_, down) = settle(&mut host, &mut guest, 100_000);
    let bytes: usize =
        down.iter().map(|e| if let FromHost::Stdin { bytes, .. } = e { bytes.len() } else { 0 }).sum();
    assert_eq!(bytes, crate::WINDOW_BYTES as usize);
    assert!(down.iter().any(|e| matches!(e, FromHost::Resize { stream: 5, columns: 100, rows: 40 })));
    let at = |wanted: &dyn Fn(&FromHost) -> bool| down.iter().rposition(wanted);
    assert!(
        at(&|e| matches!(e, FromHost::StdinClosed { stream: 5 }))
            > at(&|e| matches!(e, FromHost::Stdin { .. }))
    );
    guest.consumed(5, 200_000);
    let (up, _) = settle(&mut host, &mut guest, 100_000);
    assert_eq!(up, [FromGuest::StdinRoom { stream: 5 }]);
    assert_eq!(host.stdin_room(5), 200_000);
}

/// A host dies in the middle of anything; its successor sees what was not acknowledged, and nothing twice that was.
#[test]
fn a_successor_goes_on() {
    let (mut host, mut guest) = (HostLink::new(), GuestLink::new());
    host.begin(1, "test");
    host.open_stream(3);
    guest.open_stream(3);
    guest.append(3, Channel::Stdout, &[1; 200_000]);
    settle(&mut host, &mut guest, 5000);
    host.consumed(3, Channel::Stdout, 150_000);
    settle(&mut host, &mut guest, 5000);
    guest.append(3, Channel::Stdout, &[2; 1000]);
    // Half a frame is on the channel, the rest never comes.
    let half = guest.output()[..20].to_vec();
    guest.wrote(20);
    let mut successor = HostLink::new();
    successor.begin(2, "test");
    successor.receive(&half, &mut vec![]).unwrap();
    let (up, _) = settle(&mut successor, &mut guest, 5000);
    let seen = output(&up, 3, Channel::Stdout);
    assert_eq!(seen, [vec![1; 50_000], vec![2; 1000]].concat());
    // The same process may also begin again; what it has not used up yet does not come twice.
    successor.consumed(3, Channel::Stdout, 11_000);
    successor.begin(3, "test");
    guest.append(3, Channel::Stdout, &[3; 10]);
    let (up, _) = settle(&mut successor, &mut guest, 77);
    assert_eq!(output(&up, 3, Channel::Stdout), [3; 10]);
    successor.consumed(3, Channel::Stdout, 20_010);
    // A stream that is gone is closed.
    guest.drop_stream(3);
    successor.begin(4, "test");
    let (up, _) = settle(&mut successor, &mut guest, 77);
    assert_eq!(up.iter().filter(|e| matches!(e, FromGuest::Closed { stream: 3, .. })).count(), 2);
}

#[test]
fn a_late_answer_is_dropped() {
    let (mut host, mut guest) = (HostLink::new(), GuestLink::new());
    host.begin(1, "test");
    host.request(Request::Stats);
    let (_, down) = settle(&mut host, &mut guest, 1000);
    let Some(FromHost::Request(old, _)) = down.into_iter().next_back() else { panic!() };
    host.begin(2, "test");
    settle(&mut host, &mut guest, 1000);
    guest.reply(old, Reply::Done);
    assert_eq!(settle(&mut host, &mut guest, 1000).0, []);
}

#[test]
fn hostile_guests_are_caught() {
    let check = |wire: &dyn Fn(&mut Vec<u8>), expected: &str| {
        let (mut host, mut guest) = (HostLink::new(), GuestLink::new());
        host.begin(1, "test");
        host.open_stream(1);
        settle(&mut host, &mut guest, 1000);
        let mut bytes = vec![];
        wire(&mut bytes);
        let error = host.receive(&bytes, &mut vec![]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!host.is_open());
    };
    check(&|o| o.extend([0xff; 9]), "exceeds the limit");
    check(&|o| o.extend([0, 0, 0, 0, 0, 0, 0, 0, 99]), "unknown kind");
    check(
        &|o| (0..10).for_each(|_| frame::write(o, Kind::Stdout, 1, &[0; 60_000])),
        "flow control on stream 1",
    );
    check(&|o| frame::write_window(o, 1, Channel::Stdin, 1), "flow control on stream 1");
    check(&|o| frame::write_window(o, 1, Channel::Stdout, 0), "flow control on stream 1");
    check(&|o| frame::write(o, Kind::Stdin, 1, b"x"), "Stdin frame");
    check(&|o| frame::write(o, Kind::Window, 1, b"x"), "Window frame");
    check(&|o| frame::write_close(o, 1, Channel::Stdin), "Close frame");
    check(&|o| frame::write(o, Kind::Message, 0, b"{"), "no messages");
    check(&|o| (0..20).for_each(|_| frame::write(o, Kind::Part, 0, &[b' '; 60_000])), "limit of 1048576");
    check(&|o| o.extend(MAGIC), "Hello frame");
    check(&|o| frame::write(o, Kind::Message, 0, br#"{"snapshot":{}}"#), "Message frame");
}

#[test]
fn messages_look_like_this() {
    let check = |message: &str| {
        let parsed: ToHost = serde_json::from_str(message).unwrap();
        assert_eq!(serde_json::to_string(&parsed).unwrap(), message);
    };
    check(r#"{"reply":{"id":1,"reply":"done"}}"#);
    check(r#"{"reply":{"id":1,"reply":{"error":{"reason":"StartError","message":"no"}}}}"#);
    check(r#"{"event":{"exec_ended":{"stream":9,"exit_code":137}}}"#);
    let old = r#"{"snapshot":{"containers":{"a":{"attempt":0,"id":"x","stream":1,"state":{"running":
        {"started_at_us":5,"pid":7}},"from_the_future":true}}}}"#;
    let ToHost::Snapshot(snapshot) = serde_json::from_str(old).unwrap() else { panic!() };
    assert_eq!(snapshot.containers["a"].state, InstanceState::Running { started_at_us: 5, pid: 7 });
    let start =
        r#"{"id":3,"request":{"start":{"name":"a","process":{"args":["sh"]},"root":{"images":["00"]}}}}"#;
    let Request::Start(start) = serde_json::from_str::<ToGuest>(start).unwrap().request else { panic!() };
    assert_eq!((start.name.as_str(), start.process.args.len()), ("a", 1));
}

use proptest::prelude::*;

proptest! {
    /// Garbage from either side neither panics nor opens anything that was not asked for.
    #[test]
    fn garbage(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0u8), 0xf8..=0xffu8], 0..3000),
        piece in 1..200usize,
    ) {
        let (mut host, mut guest) = (HostLink::new(), GuestLink::new());
        host.begin(1, "test");
        guest.open_stream(1);
        settle(&mut host, &mut guest, 1000);
        for piece in bytes.chunks(piece) {
            guest.receive(piece, &mut vec![]);
            let _ = host.receive(piece, &mut vec![]);
        }
        host.begin(2, "test");
        let (up, _) = settle(&mut host, &mut guest, piece);
        prop_assert!(matches!(&up[0], FromGuest::Hello(hello) if hello.epoch == 2));
    }
}
