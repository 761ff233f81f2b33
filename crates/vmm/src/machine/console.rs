//! The serial console: a log with a limit, and a socket where people attach.
//!
//! What the guest writes goes to the log and to everybody who is attached; what they write goes to the guest. The guest
//! is never held up by people: one who does not read misses output, and a guest that does not read misses input. Only
//! the owner's own queue of output ([`ConsoleSpec::output`]) misses nothing, and holds the guest up when it is full.

use super::spec::ConsoleSpec;
use crate::Error;
use crate::error::file;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

/// More people than this cannot attach at once.
const MAX_ATTACHED: usize = 8;
const CHUNK: usize = 4096;

/// The log with its limit.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
}

impl Log {
    fn open(path: PathBuf, limit: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, file, size, limit })
    }

    /// Appends; what is above the limit begins a new file and the one before the last goes.
    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + data.len() as u64 > self.limit {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            fs::rename(&self.path, old)?;
            *self = Self::open(self.path.clone(), self.limit)?;
        }
        self.file.write_all(data)?;
        self.size += data.len() as u64;
        Ok(())
    }
}

/// A console before its machine has started.
#[derive(Debug)]
pub(super) struct Console {
    log: Log,
    listener: Option<UnixListener>,
    socket: Option<PathBuf>,
    guest: UnixStream,
    output: Option<mpsc::Sender<Vec<u8>>>,
}

impl Console {
    /// Opens the log and the socket. `guest` is our end of QEMU's serial line.
    pub(super) fn open(spec: &ConsoleSpec, guest: UnixStream) -> Result<Self, Error> {
        let log = Log::open(spec.log.clone(), spec.log_limit_bytes.max(CHUNK as u64))
            .map_err(file("open the console's log", &spec.log))?;
        let listener = spec.socket.as_ref().map(|path| {
            // Left over by a process that was killed.
            let _ = fs::remove_file(path);
            let listener = UnixListener::bind(path)?;
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
            Ok(listener)
        });
        let listener = listener
            .transpose()
            .map_err(file("make the console's socket", spec.socket.clone().unwrap_or_default()))?;
        Ok(Self { log, listener, socket: spec.socket.clone(), guest, output: spec.output.clone() })
    }

    /// Runs until QEMU closes its end.
    pub(super) async fn run(mut self) {
        let mut people: Vec<UnixStream> = Vec::new();
        let mut buffer = [0; CHUNK];
        loop {
            // Every arm only waits for readiness or takes one whole connection: dropping it loses nothing.
            tokio::select! {
                ready = self.guest.readable() => {
                    let Some(n) = ready.ok().and_then(|()| self.show_output(&mut people, &mut buffer)) else {
                        break;
                    };
                    if n > 0 && let Some(output) = &self.output {
                        // An owner who has stopped listening wants no more.
                        let _ = output.send(buffer[..n].to_vec()).await;
                    }
                }
                accepted = accept(self.listener.as_ref()) => {
                    if let Ok(person) = accepted && people.len() < MAX_ATTACHED {
                        people.push(person);
                    }
                }
                person = any_readable(&people) => self.pass_input(&mut people, person, &mut buffer),
            }
        }
        if let Some(socket) = &self.socket {
            let _ = fs::remove_file(socket);
        }
    }

    /// How many bytes came; `None` when QEMU has closed.
    fn show_output(&mut self, people: &mut Vec<UnixStream>, buffer: &mut [u8]) -> Option<usize> {
        let n = match self.guest.try_read(buffer) {
            Ok(0) => return None,
            Ok(n) => n,
            Err(e) => return (e.kind() == io::ErrorKind::WouldBlock).then_some(0),
        };
        if let Err(error) = self.log.write(&buffer[..n]) {
            tracing::debug!(%error, "the console's log cannot be written");
        }
        people.retain(|person| match person.try_write(&buffer[..n]) {
            Ok(_) => true,
            Err(e) => e.kind() == io::ErrorKind::WouldBlock,
        });
        Some(n)
    }

    fn pass_input(&self, people: &mut Vec<UnixStream>, person: usize, buffer: &mut [u8]) {
        match people[person].try_read(buffer) {
            Ok(0) => drop(people.swap_remove(person)),
            Ok(n) => {
                let _ = self.guest.try_write(&buffer[..n]);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => drop(people.swap_remove(person)),
        }
    }
}

async fn accept(listener: Option<&UnixListener>) -> io::Result<UnixStream> {
    match listener {
        Some(listener) => Ok(listener.accept().await?.0),
        None => std::future::pending().await,
    }
}

/// The first of them that has something to say.
async fn any_readable(people: &[UnixStream]) -> usize {
    std::future::poll_fn(|context| {
        people
            .iter()
            .position(|person| person.poll_read_ready(context).is_ready())
            .map_or(std::task::Poll::Pending, std::task::Poll::Ready)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn output_is_logged_and_shown_and_input_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let (mut guest, ours) = UnixStream::pair().unwrap();
        let socket = dir.path().join("console.sock");
        let (queue, mut output) = mpsc::channel(1);
        let spec = ConsoleSpec {
            log: dir.path().join("console.log"),
            log_limit_bytes: 8192,
            socket: Some(socket.clone()),
            output: Some(queue),
        };
        let collected = tokio::spawn(async move {
            let mut all = 0;
            while let Some(chunk) = output.recv().await {
                all += chunk.len();
            }
            all
        });
        let running = tokio::spawn(Console::open(&spec, ours).unwrap().run());
        drop(spec);
        let mut person = UnixStream::connect(&socket).await.unwrap();
        person.write_all(b"in").await.unwrap();
        let mut two = [0; 2];
        guest.read_exact(&mut two).await.unwrap();
        assert_eq!(&two, b"in");
        guest.write_all(b"ok").await.unwrap();
        person.read_exact(&mut two).await.unwrap();
        assert_eq!(&two, b"ok");
        for _ in 0..20 {
            guest.write_all(&[b'x'; 1000]).await.unwrap();
        }
        drop(guest);
        running.await.unwrap();
        let size = |name: &str| fs::metadata(dir.path().join(name)).unwrap().len();
        assert!(size("console.log") <= 8192 && size("console.log.1") <= 8192);
        assert!(!socket.exists());
        assert_eq!(collected.await.unwrap(), 20_002);
    }
}
