//! Flow control of one channel, for its sender and its receiver: who may send how much, and what can be sent again.
//!
//! Offsets count a channel's bytes from its beginning, so a window message is right however often it comes, and a
//! receiver that starts anew says where it wants to go on.
//!
//! ```text
//!   sender    0 ···· acknowledged ──────── sent ──────── written        at most a window from first to last
//!                    (forgotten before)    (kept)        (kept)
//! ```

use crate::WINDOW_BYTES;
use std::collections::VecDeque;

/// The sending side. Keeps what the receiver has not acknowledged.
#[derive(Debug, Default)]
pub struct SendQueue {
    kept: VecDeque<u8>,
    /// Offset of the first byte kept.
    acknowledged: u64,
    sent: u64,
    /// False until the receiver of this conversation has said where it is.
    open: bool,
    ended: bool,
    end_told: bool,
}

impl SendQueue {
    /// A queue whose receiver is at its beginning.
    #[must_use]
    pub fn opened() -> Self {
        Self { open: true, ..Self::default() }
    }

    /// A queue whose source goes on at `offset`, and whose receiver has not said where it is.
    #[must_use]
    pub fn suspended_at(offset: u64) -> Self {
        Self { acknowledged: offset, sent: offset, ..Self::default() }
    }

    /// Bytes that can be appended now.
    #[must_use]
    pub fn room(&self) -> usize {
        (WINDOW_BYTES as usize).saturating_sub(self.kept.len())
    }

    /// Appends what the source gave. At most [`Self::room`] bytes are taken; the number is returned.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        let length = bytes.len().min(self.room());
        self.kept.extend(&bytes[..length]);
        length
    }

    /// The source has ended.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// The receiver is done with all before `offset`. After [`Self::suspend`], sending goes on from there.
    /// False when the receiver cannot have seen that much.
    pub fn acknowledge(&mut self, offset: u64) -> bool {
        let first = !self.open;
        if first {
            // What was sent to the receiver's predecessor counts as not sent.
            let end = self.acknowledged + self.kept.len() as u64;
            if offset > end {
                return false;
            }
            self.sent = offset.max(self.acknowledged);
            self.end_told = false;
            self.open = true;
        } else if offset > self.sent {
            return false;
        }
        let done = offset.saturating_sub(self.acknowledged);
        self.kept.drain(..done as usize);
        self.acknowledged += done;
        true
    }

    /// Nothing is sent until the next [`Self::acknowledge`]: the receiver is gone.
    pub fn suspend(&mut self) {
        self.open = false;
    }

    /// True between [`Self::suspend`] and the next [`Self::acknowledge`].
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        !self.open
    }

    /// True when everything was sent, the end included.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.open && self.ended && self.end_told && self.unsent() == 0
    }

    /// Offset of the first byte that the receiver has not acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// True when [`Self::next_chunk`] or [`Self::take_end`] has something.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.open && (self.unsent() > 0 || self.ended && !self.end_told)
    }

    /// True when everything was acknowledged, the end included in what was told.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.ended && self.end_told && self.kept.is_empty()
    }

    fn unsent(&self) -> usize {
        self.kept.len() - (self.sent - self.acknowledged) as usize
    }

    /// The next bytes to send, at most `limit`; they count as sent.
    pub fn next_chunk(&mut self, limit: usize) -> Option<&[u8]> {
        if !self.open || self.unsent() == 0 {
            return None;
        }
        let at = (self.sent - self.acknowledged) as usize;
        let (front, back) = self.kept.as_slices();
        let chunk = if at < front.len() { &front[at..] } else { &back[at - front.len()..] };
        let chunk = &chunk[..chunk.len().min(limit)];
        self.sent += chunk.len() as u64;
        Some(chunk)
    }

    /// True once, when everything was sent and the receiver has to be told that no more comes.
    pub fn take_end(&mut self) -> bool {
        let now = self.open && self.ended && !self.end_told && self.unsent() == 0;
        self.end_told |= now;
        now
    }
}

/// The receiving side: checks the sender and says when to acknowledge.
#[derive(Debug, Default)]
pub struct ReceiveWindow {
    received: u64,
    consumed: u64,
    told: u64,
    closed: bool,
}

impl ReceiveWindow {
    /// A receiver that goes on at `offset`.
    #[must_use]
    pub fn at(offset: u64) -> Self {
        Self { received: offset, consumed: offset, told: offset, closed: false }
    }

    /// Counts bytes that came. False when the sender exceeds the window.
    #[must_use]
    pub fn receive(&mut self, length: usize) -> bool {
        let received = self.received + length as u64;
        if received.saturating_sub(self.told) > WINDOW_BYTES {
            return false;
        }
        self.received = received;
        true
    }

    /// Counts bytes that the receiver is done with. The offset to acknowledge, if it is time.
    pub fn consume(&mut self, length: u64) -> Option<u64> {
        self.consumed = self.consumed.saturating_add(length).min(self.received);
        let untold = self.consumed.saturating_sub(self.told);
        let last = self.closed && self.consumed == self.received && untold > 0;
        (last || untold >= WINDOW_BYTES / 4).then(|| self.acknowledge())
    }

    /// The sender has nothing more. The offset to acknowledge, if all was consumed.
    pub fn close(&mut self) -> Option<u64> {
        self.closed = true;
        self.consume(0)
    }

    /// True after [`Self::close`].
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// The offset to acknowledge now.
    pub fn acknowledge(&mut self) -> u64 {
        self.told = self.told.max(self.consumed);
        self.told
    }

    /// A new conversation: what came need not come again, even if it was not used up yet. The offset to tell.
    pub fn resume(&mut self) -> u64 {
        self.told = self.received;
        self.received
    }

    /// Offset of the next byte that has not come.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Offset of the next byte that the receiver is not done with.
    #[must_use]
    pub fn consumed(&self) -> u64 {
        self.consumed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write(usize),
        Send(usize),
        Consume(u64),
        /// The receiver dies and its successor goes on at what was acknowledged.
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..400_000usize).prop_map(Step::Write),
            (0..70_000usize).prop_map(Step::Send),
            (0..300_000u64).prop_map(Step::Consume),
            Just(Step::Restart),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order, the receiver sees the bytes in order from where it began, the window
        /// is never exceeded, and with a receiver that reads, everything arrives.
        #[test]
        fn model(steps in prop::collection::vec(step(), 0..60)) {
            let mut sender = SendQueue::opened();
            let mut receiver = ReceiveWindow::default();
            let (mut written, mut seen) = (0u64, 0u64);
            let byte = |offset: u64| (offset % 251) as u8;
            let deliver = |sender: &mut SendQueue, receiver: &mut ReceiveWindow, seen: &mut u64, limit| {
                if let Some(chunk) = sender.next_chunk(limit) {
                    assert!(chunk.iter().enumerate().all(|(i, b)| *b == byte(*seen + i as u64)));
                    assert!(receiver.receive(chunk.len()));
                    *seen += chunk.len() as u64;
                }
            };
            for step in steps {
                match step {
                    Step::Write(length) => {
                        let bytes: Vec<u8> = (written..written + length as u64).map(byte).collect();
                        written += sender.append(&bytes) as u64;
                    }
                    Step::Send(limit) => deliver(&mut sender, &mut receiver, &mut seen, limit),
                    Step::Consume(length) => {
                        if let Some(offset) = receiver.consume(length) {
                            prop_assert!(sender.acknowledge(offset));
                        }
                    }
                    Step::Restart => {
                        sender.suspend();
                        prop_assert!(sender.next_chunk(10).is_none());
                        receiver = ReceiveWindow::at(sender.acknowledged());
                        seen = receiver.consumed();
                        prop_assert!(sender.acknowledge(receiver.acknowledge()));
                    }
                }
            }
            sender.end();
            while seen < written {
                deliver(&mut sender, &mut receiver, &mut seen, 10_000);
                if let Some(offset) = receiver.consume(u64::MAX / 2) {
                    prop_assert!(sender.acknowledge(offset));
                }
            }
            prop_assert!(sender.take_end() && !sender.take_end());
            prop_assert!(sender.acknowledge(written) && sender.is_finished());
            prop_assert!(!sender.acknowledge(written + 1));
        }
    }

    #[test]
    fn a_sender_that_floods_is_caught() {
        let mut receiver = ReceiveWindow::default();
        assert!(receiver.receive(WINDOW_BYTES as usize));
        assert!(!receiver.receive(1));
        assert_eq!(receiver.consume(10), None);
        assert_eq!(receiver.consume(WINDOW_BYTES), Some(WINDOW_BYTES));
        assert!(receiver.receive(1));
    }
}
