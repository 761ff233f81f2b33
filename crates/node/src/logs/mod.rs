//! Reading container logs: which file, from where, and following it.
//!
//! The supervisor writes, this only reads, so logs are there while the supervisor is not. Following waits on inotify
//! for more lines and on the pod's status for the end of the container; nothing is polled.

mod entry;
mod files;

use crate::runner::{PodContext, PodStatusUpdates};
use bytes::{Bytes, BytesMut};
use cumulet_api::Status;
use cumulet_cluster::BoxStream;
use cumulet_cluster::streams::{ContainerRef, LogOptions};
use entry::Formatter;
use files::LogFiles;
use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;
/// Longest entry: the supervisor splits lines at 16 KiB, so what is longer is no entry and is given up.
const MAX_ENTRY: usize = 64 << 10;

/// Opens the log of a container.
pub(crate) async fn open(
    context: &Arc<PodContext>,
    of: &ContainerRef,
    options: LogOptions,
) -> Result<BoxStream<'static, io::Result<Bytes>>, Status> {
    crate::dirs::component(&of.container).map_err(|e| Status::bad_request(e.to_string()))?;
    let dir = context.dirs.container_logs(&of.container);
    let (tail, previous) = (options.tail_lines, options.previous);
    let chosen = tokio::task::spawn_blocking(move || LogFiles::choose(&dir, previous, tail));
    let chosen = chosen.await.map_err(Status::internal)?.map_err(Status::internal)?;
    let Some(chosen) = chosen else {
        let what = if previous { "previous terminated container" } else { "container log of" };
        return Err(Status::bad_request(format!(
            "{what} \"{}\" in pod \"{}\" not found",
            of.container, of.pod
        )));
    };
    let follow = match options.follow && !previous {
        true => Some(Follow::new(context, &of.container, &chosen).map_err(Status::internal)?),
        false => None,
    };
    let reader = Reader {
        files: chosen,
        current: None,
        pending: BytesMut::new(),
        formatter: Formatter::new(&options),
        follow,
    };
    Ok(futures_util::stream::unfold(Some(reader), |state| async move {
        let mut reader = state?;
        match reader.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(reader))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed())
}

/// Reads entries from one file after the other.
struct Reader {
    files: LogFiles,
    current: Option<File>,
    /// The beginning of an entry whose end has not been read yet.
    pending: BytesMut,
    formatter: Formatter,
    follow: Option<Follow>,
}

impl Reader {
    /// The next piece of the log; `None` at its end.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if self.formatter.is_full() {
                return Ok(None);
            }
            if self.current.is_none() {
                match self.files.next() {
                    Some((path, offset)) => self.current = open_at(&path, offset).await?,
                    None => return Ok(None),
                }
            }
            let Some(file) = &mut self.current else { continue };
            self.pending.reserve(CHUNK);
            if file.read_buf(&mut self.pending).await? > 0 {
                let out = self.formatter.take(&mut self.pending, MAX_ENTRY);
                if !out.is_empty() {
                    return Ok(Some(out));
                }
                continue;
            }
            if !self.at_end_of_file().await? {
                return Ok(None);
            }
        }
    }

    /// What comes after the end of the current file: the next one, more of this one, or nothing (false).
    async fn at_end_of_file(&mut self) -> io::Result<bool> {
        if !self.files.is_last() {
            self.current = None;
            return Ok(true);
        }
        let (Some(follow), Some(file)) = (&mut self.follow, &self.current) else { return Ok(false) };
        // Rotated away: what is under the name now is the continuation.
        let path = self.files.live();
        if let Ok(under_name) = tokio::fs::metadata(path).await
            && under_name.ino() != file.metadata().await?.ino()
        {
            self.current = open_at(path, 0).await?;
            return Ok(true);
        }
        Ok(follow.more().await)
    }
}

/// A file that has vanished (rotated out) has nothing to read.
async fn open_at(path: &Path, offset: u64) -> io::Result<Option<File>> {
    match File::open(path).await {
        Ok(mut file) => {
            file.seek(io::SeekFrom::Start(offset)).await?;
            Ok(Some(file))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Waits for more of a log.
struct Follow {
    changes: EventStream<Vec<u8>>,
    updates: PodStatusUpdates,
    container: String,
    attempt: u32,
    ended: bool,
}

impl Follow {
    /// Watches from now on; made before the file is read, so that no change is missed.
    fn new(context: &PodContext, container: &str, files: &LogFiles) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let dir = files.live().parent().unwrap_or(Path::new("/"));
        inotify.watches().add(dir, WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO)?;
        Ok(Self {
            changes: inotify.into_event_stream(vec![0; 4096])?,
            updates: context.status.updates(),
            container: container.to_owned(),
            attempt: files.attempt(),
            ended: false,
        })
    }

    /// Waits until there may be more to read. False when the container has ended and all was read.
    async fn more(&mut self) -> bool {
        if self.ended {
            return false;
        }
        loop {
            if self.updates.has_ended(&self.container, self.attempt) {
                // Once more to the end: the last lines may have come just before.
                self.ended = true;
                return true;
            }
            tokio::select! {
                // Both arms only wait for a signal; dropping one loses nothing that is not read again.
                change = self.changes.next() => return change.is_some_and(|c| c.is_ok()),
                alive = self.updates.changed() => {
                    if !alive {
                        self.ended = true;
                        return true;
                    }
                }
            }
        }
    }
}
