//! The channel between a host and a virtual machine's agent, of which either side may go mad.

use cumulet_guest_proto::Channel;
use cumulet_guest_proto::guest::{FromHost, GuestLink};
use cumulet_guest_proto::host::{FromGuest, HostLink};
use cumulet_guest_proto::message::{Snapshot, ToHost};

/// The stream that both know.
const STREAM: u32 = 1;

/// Moves bytes until nobody has any. The guest answers a greeting as the agent does.
fn settle(host: &mut HostLink, guest: &mut GuestLink) -> Vec<FromGuest> {
    let (mut up, mut down) = (Vec::new(), Vec::new());
    loop {
        let bytes = host.take_output();
        guest.receive(&bytes, &mut down);
        for event in down.drain(..) {
            if matches!(event, FromHost::Hello(_)) {
                let streams = guest.open_streams();
                guest.send(&ToHost::Snapshot(Box::new(Snapshot { streams, ..Snapshot::default() })));
            }
        }
        let answer = guest.output().to_vec();
        guest.wrote(answer.len());
        assert!(host.receive(&answer, &mut up).is_ok(), "an honest guest is refused");
        if bytes.is_empty() && answer.is_empty() {
            return up;
        }
    }
}

/// One byte for the size of the pieces, then bytes that either side takes for the other's. Afterwards a new
/// conversation opens, and output that waited comes through once.
pub(crate) fn guest_link(data: &[u8]) {
    let Some((piece, garbage)) = data.split_first() else { return };
    let (mut host, mut guest) = (HostLink::new(), GuestLink::new());
    host.begin(1, "fuzz");
    host.open_stream(STREAM);
    assert!(guest.open_stream(STREAM));
    settle(&mut host, &mut guest);
    for piece in garbage.chunks(usize::from(*piece).max(1)) {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        guest.receive(piece, &mut down);
        if host.receive(piece, &mut up).is_err() {
            assert!(!host.is_open(), "a guest that breaks the protocol is heard on");
        }
    }
    // The guest's stream is as it was: nothing that is no acknowledgement of what was sent can move it.
    assert_eq!(guest.append(STREAM, Channel::Stdout, b"waits"), 5);
    let mut successor = HostLink::new();
    successor.begin(2, "fuzz");
    let up = settle(&mut successor, &mut guest);
    assert!(matches!(&up[0], FromGuest::Hello(hello) if hello.epoch == 2), "no new conversation");
    let waited = |event: &FromGuest| matches!(event, FromGuest::Output { bytes, .. } if bytes == b"waits");
    assert_eq!(up.iter().filter(|event| waited(event)).count(), 1, "{up:?}");
}
