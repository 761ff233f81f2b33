//! A container that runs: its process, its streams and its output. One task per output stream reads.

use super::io::Stream;
use super::log::Channel;
use super::output::{CHUNK, Output};
use cumulet_container::{Bundle, ContainerSpec};
use std::cell::RefCell;
use std::rc::Rc;
use tokio::task::JoinHandle;

/// A running container.
pub(super) struct Live {
    pub(super) attempt: u32,
    pub(super) id: String,
    pub(super) pid: i32,
    pub(super) bundle: Bundle,
    pub(super) spec: ContainerSpec,
    pub(super) started_at_us: i64,
    /// Standard input, while it is open; the terminal itself when there is one.
    pub(super) stdin: RefCell<Option<Rc<Stream>>>,
    pub(super) stdin_once: bool,
    pub(super) terminal: Option<Rc<Stream>>,
    pub(super) output: Output,
}

impl Live {
    /// Starts the task that reads one output stream. It ends with the stream.
    pub(super) fn pump(self: &Rc<Self>, from: Rc<Stream>, channel: Channel) -> JoinHandle<()> {
        let live = self.clone();
        tokio::task::spawn_local(async move {
            let mut buffer = vec![0; CHUNK];
            while let Ok(length @ 1..) =
                live.output.next(channel, async || from.read(&mut buffer).await).await
            {
                live.output.write(channel, &buffer[..length]).await;
            }
            live.output.end(channel);
        })
    }
}
