//! Streams of a running pod: what the node offers to the API server for logs, exec and attach.

use crate::{BoxFuture, BoxStream};
use bytes::Bytes;
use cumulet_api::Status;
use tokio::sync::mpsc;

/// Which pod. The uid guards against a pod recreated under the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Uid of the pod.
    pub uid: String,
}

/// Which container of which pod. The uid guards against a pod recreated under the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRef {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Uid of the pod.
    pub uid: String,
    /// Name of the container; init containers count.
    pub container: String,
}

/// Options of `pods/log`, after validation.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// Go on with new lines until the container ends.
    pub follow: bool,
    /// The instance before the current one.
    pub previous: bool,
    /// Begin every line with its RFC 3339 time.
    pub timestamps: bool,
    /// Only lines not older than this moment.
    pub since: Option<std::time::SystemTime>,
    /// Only this many lines from the end.
    pub tail_lines: Option<u64>,
    /// Stop after this many bytes.
    pub limit_bytes: Option<u64>,
    /// Only `stdout` or only `stderr`; both when `None`.
    pub stream: Option<String>,
}

/// Options of exec and attach, after validation. For attach the command is empty.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "they are four independent query parameters of pods/exec")]
pub struct ExecOptions {
    /// Program and arguments.
    pub command: Vec<String>,
    /// The client will send standard input.
    pub stdin: bool,
    /// The client wants standard output.
    pub stdout: bool,
    /// The client wants standard error.
    pub stderr: bool,
    /// Run on a terminal.
    pub tty: bool,
}

/// From the client to the process.
#[derive(Clone, Debug)]
pub enum Input {
    /// Bytes of standard input.
    Stdin(Bytes),
    /// End of standard input.
    CloseStdin,
    /// The terminal's new size, in characters.
    Resize {
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
}

/// From the process to the client. `Exit` is the last message; a channel that closes without it means that the
/// process was lost.
#[derive(Clone, Debug)]
pub enum Output {
    /// Bytes of standard output.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// How the process ended.
    Exit(Exit),
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Exit {
    /// Exit code; 128 + signal number for a killed process.
    Code(i32),
    /// It could not be started or was lost.
    Failed(Status),
}

/// A running exec or attach. Dropping `input` closes standard input; dropping `output` detaches.
#[derive(Debug)]
pub struct Session {
    /// Bounded: a process that does not read slows its client down.
    pub input: mpsc::Sender<Input>,
    /// Bounded: a client that does not read slows the process down.
    pub output: mpsc::Receiver<Output>,
}

/// Streams of the pods of this node.
pub trait PodStreams: Send + Sync + 'static {
    /// The log of a container. The stream ends at the end of the log, or with `follow` when the container ends.
    fn logs(
        &self,
        of: ContainerRef,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, std::io::Result<Bytes>>, Status>>;

    /// Runs a command in a running container.
    fn exec(&self, of: ContainerRef, options: ExecOptions) -> BoxFuture<'_, Result<Session, Status>>;

    /// Saves a running pod under a name of its namespace, from which others can go on. The key of what was saved.
    fn checkpoint(&self, of: PodRef, name: String) -> BoxFuture<'_, Result<String, Status>>;

    /// Connects to the main process of a running container.
    fn attach(&self, of: ContainerRef, options: ExecOptions) -> BoxFuture<'_, Result<Session, Status>>;
}
