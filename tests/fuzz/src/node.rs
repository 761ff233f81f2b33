//! The node's decoders: frames between node and supervisor, and entries of log files.

mod logs;
mod supervisor;

pub(crate) use logs::log_entry;
use supervisor::{frame as codec, proto};

/// The two directions of a connection. What is read can be written, as the same bytes.
pub(crate) fn frame(data: &[u8]) {
    let mut rest = data;
    loop {
        let before = rest;
        let Ok(Some(frame)) = ready(codec::read(&mut rest)) else { return };
        let mut written = Vec::new();
        ready(codec::write(&mut written, &frame)).expect("memory can be written");
        assert_eq!(written, &before[..before.len() - rest.len()]);
        let _ = frame.decode_resize();
        let _ = frame.decode::<proto::Hello>();
        if let Ok(request) = frame.decode::<proto::Request>() {
            let again = codec::Frame::json(&request).and_then(|frame| frame.decode::<proto::Request>());
            again.expect("what is read can be sent");
        }
        let _ = frame.decode::<proto::SessionRequest>();
        if let Ok(message) = frame.decode::<proto::ToClient>() {
            let again = codec::Frame::json(&message).and_then(|frame| frame.decode::<proto::ToClient>());
            again.expect("what is read can be sent");
        }
    }
}

/// The result of a future that never waits.
fn ready<F: Future>(future: F) -> F::Output {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(output) => output,
        std::task::Poll::Pending => unreachable!("memory is always ready"),
    }
}
