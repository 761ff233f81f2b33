//! A container that runs in a virtual machine: its stream and its output. One task per output channel empties the
//! link's queue; the guest may send more when a chunk has been written.

use super::link::{self, Link};
use crate::supervisor::log;
use crate::supervisor::output::Output;
use cumulet_guest_proto::Channel;
use std::cell::Cell;
use std::rc::Rc;
use tokio::task::JoinHandle;

/// A running container.
pub(super) struct Live {
    pub(super) attempt: u32,
    pub(super) id: String,
    pub(super) stream: u32,
    pub(super) started_at_us: i64,
    /// Standard input is open.
    pub(super) stdin: Cell<bool>,
    pub(super) stdin_once: bool,
    pub(super) tty: bool,
    pub(super) output: Output,
}

impl Live {
    /// Starts the tasks that take the container's output. They end with it.
    pub(super) fn pumps(self: &Rc<Self>, link: &Rc<Link>, output: [link::Output; 2]) -> Vec<JoinHandle<()>> {
        let channels = [(Channel::Stdout, log::Channel::Stdout), (Channel::Stderr, log::Channel::Stderr)];
        let pairs = output.into_iter().zip(channels);
        pairs
            .map(|(queue, of)| tokio::task::spawn_local(self.clone().pump(link.clone(), queue, of)))
            .collect()
    }

    async fn pump(self: Rc<Self>, link: Rc<Link>, mut queue: link::Output, of: (Channel, log::Channel)) {
        let (channel, logged) = of;
        // Receiving is cancel-safe.
        while let Some(bytes) = self.output.next(logged, async || queue.recv().await).await {
            self.output.write(logged, &bytes).await;
            link.consumed(self.stream, channel, bytes.len());
        }
        self.output.end(logged);
    }
}
