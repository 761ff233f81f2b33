//! The link against a guest that is played by the guest's own side of the protocol, and against one that lies.

use super::*;
use cumulet_guest_proto::guest::{FromHost, GuestLink, RequestId};
use cumulet_guest_proto::message::Snapshot;
use cumulet_guest_proto::spec::ExecStart;
use std::collections::VecDeque;
use tokio::task::LocalSet;

/// A guest on the other end of a channel.
struct Guest {
    link: GuestLink,
    channel: UnixStream,
    heard: VecDeque<FromHost>,
}

impl Guest {
    /// Writes what is due, then waits for the next thing that the host says.
    async fn hear(&mut self) -> FromHost {
        loop {
            self.flush().await;
            if let Some(heard) = self.heard.pop_front() {
                return heard;
            }
            let mut buffer = [0; 4096];
            let length = self.channel.read(&mut buffer).await.unwrap();
            assert!(length > 0, "the host is gone");
            let mut heard = Vec::new();
            self.link.receive(&buffer[..length], &mut heard);
            self.heard.extend(heard);
        }
    }

    async fn flush(&mut self) {
        loop {
            let bytes = self.link.output().to_vec();
            if bytes.is_empty() {
                return;
            }
            self.channel.write_all(&bytes).await.unwrap();
            self.link.wrote(bytes.len());
        }
    }

    async fn request(&mut self) -> (RequestId, Request) {
        loop {
            if let FromHost::Request(id, request) = self.hear().await {
                return (id, *request.unwrap());
            }
        }
    }
}

/// A link whose conversation is open, its guest, and how the link will end.
async fn open() -> (Rc<Link>, Guest, tokio::task::JoinHandle<String>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (link, greeted) = Link::new(7);
    let running = link.clone();
    let ended = tokio::task::spawn_local(async move {
        let why = running.run(ours).await;
        running.end();
        why
    });
    let mut guest = Guest { link: GuestLink::new(), channel: theirs, heard: VecDeque::new() };
    assert!(matches!(guest.hear().await, FromHost::Hello(_)));
    guest.link.send(&ToHost::Snapshot(Box::new(Snapshot { kernel: "6.1".into(), ..Snapshot::default() })));
    guest.flush().await;
    assert_eq!(greeted.await.unwrap().kernel, "6.1");
    (link, guest, ended)
}

fn on_one_thread(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        timeout(Duration::from_secs(20), test()).await.expect("in time");
    });
}

#[test]
fn a_command_from_its_order_to_its_end() {
    on_one_thread(async || {
        let (link, mut guest, _ended) = open().await;
        let Opened { stream, output: [mut out, mut err], end } = link.open_stream();
        let order = ExecStart { stream, stdin: true, ..ExecStart::default() };
        let asked = link.request(Request::Exec(Box::new(order)));
        let input = vec![b'x'; 600_000];
        let played = async {
            let (id, request) = guest.request().await;
            assert!(matches!(request, Request::Exec(order) if order.stream == stream));
            assert!(guest.link.open_stream(stream));
            guest.link.reply(id, Reply::Done);
            let mut taken = 0;
            while taken < input.len() {
                if let FromHost::Stdin { bytes, .. } = guest.hear().await {
                    taken += bytes.len();
                    guest.link.consumed(stream, bytes.len());
                }
            }
            assert_eq!(guest.link.append(stream, Channel::Stdout, b"out"), 3);
            guest.link.end(stream, Channel::Stdout);
            guest.link.end(stream, Channel::Stderr);
            guest.flush().await;
            guest.link.send(&ToHost::Event(Event::ExecEnded { stream, exit_code: 5 }));
            guest.flush().await;
        };
        let (answer, (), written) = tokio::join!(asked, played, link.write_stdin(stream, &input));
        assert_eq!(answer, Ok(Reply::Done));
        assert!(written);
        assert_eq!(out.recv().await.as_deref(), Some(&b"out"[..]));
        assert_eq!((out.recv().await, err.recv().await), (None, None));
        assert_eq!(end.await.unwrap().exit_code, 5);
        link.forget(stream);
        assert!(!link.write_stdin(stream, b"late").await);
    });
}

#[test]
fn nobody_waits_for_a_guest_that_is_gone() {
    on_one_thread(async || {
        let (link, mut guest, ended) = open().await;
        let opened = link.open_stream();
        let asked = link.clone();
        let waiting = tokio::task::spawn_local(async move { asked.request(Request::Freeze).await });
        let stuck = link.clone();
        let stdin =
            tokio::task::spawn_local(async move { stuck.write_stdin(opened.stream, &[0; 1 << 20]).await });
        assert!(matches!(guest.request().await.1, Request::Freeze));
        drop(guest);
        assert!(ended.await.unwrap().contains("channel"));
        assert_eq!(waiting.await.unwrap(), Err(LinkError::Gone));
        assert!(!stdin.await.unwrap());
        assert!(opened.end.await.is_err());
        assert_eq!(link.request(Request::Thaw).await, Err(LinkError::Gone));
    });
}

#[test]
fn garbage_ends_the_conversation() {
    on_one_thread(async || {
        for garbage in
            [&[0xff; 64][..], &[0, 0, 0, 1, 0, 0, 0, 0, 3, b'{'][..], &[0, 0, 0, 0, 0, 0, 0, 9, 4][..]]
        {
            let (_link, mut guest, ended) = open().await;
            guest.channel.write_all(garbage).await.unwrap();
            assert!(ended.await.unwrap().contains("the guest"), "{garbage:?}");
        }
    });
}

#[test]
fn a_guest_that_floods_is_caught() {
    on_one_thread(async || {
        let (link, mut guest, ended) = open().await;
        // Nobody empties its queues, so nothing is acknowledged.
        let opened = link.open_stream();
        let stream = opened.stream;
        let chunk = vec![b'y'; 32 * 1024];
        let mut wire = Vec::new();
        for _ in 0..=cumulet_guest_proto::WINDOW_BYTES as usize / chunk.len() {
            cumulet_guest_proto::frame::write(&mut wire, cumulet_guest_proto::Kind::Stdout, stream, &chunk);
        }
        // The host may close before all is written.
        let _ = guest.channel.write_all(&wire).await;
        assert!(ended.await.unwrap().contains("flow control"));
    });
}
