//! A blob on its way to the disk: counted and hashed while it is written.
//!
//! The file stays when the stream breaks, so that it can go on later; who made it removes it.

use crate::content::Claim;
use crate::error::io;
use crate::{Digest, ImageError};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Chunks between the network and the disk.
const QUEUE: usize = 16;

/// A file that is being written.
#[derive(Debug)]
pub(crate) struct Sink {
    path: PathBuf,
    file: File,
    hash: Sha256,
    size: u64,
    /// Ends when nothing writes to the file any more, also when who wanted it is gone.
    claim: Option<Claim>,
}

/// Why a stream did not come to its end.
#[derive(Debug)]
pub(crate) enum Broken {
    /// Nothing came for too long.
    Stalled(Duration),
    /// More came than is allowed.
    TooLarge(u64),
    /// The connection failed.
    Connection(String),
    /// The disk failed.
    Disk(ImageError),
}

impl Sink {
    /// A new, empty file.
    pub(crate) fn create(path: PathBuf) -> Result<Self, ImageError> {
        let file = File::create(&path).map_err(io("make", &path))?;
        Ok(Self { path, file, hash: Sha256::new(), size: 0, claim: None })
    }

    /// Goes on with a file that may be there, unless it has more than `most` bytes. Reads it once.
    pub(crate) fn resume(path: PathBuf, most: u64) -> Result<Self, ImageError> {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io("open", &path))?;
        let (mut hash, mut size) = (Sha256::new(), 0);
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let n = file.read(&mut buffer).map_err(io("read", &path))?;
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
            size += n as u64;
            if size > most {
                return Self::create(path);
            }
        }
        Ok(Self { path, file, hash, size, claim: None })
    }

    /// Keeps the right to produce the content for as long as the file is written.
    pub(crate) fn guarded_by(mut self, claim: Claim) -> Self {
        self.claim = Some(claim);
        self
    }

    /// Begins anew, with an empty file.
    pub(crate) fn restart(self) -> Result<Self, ImageError> {
        let claim = self.claim;
        Ok(Self { claim, ..Self::create(self.path)? })
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.file.write_all(bytes).map_err(io("write", &self.path))?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// The digest of what was written.
    pub(crate) fn digest(&self) -> Digest {
        Digest::from_hash(&self.hash.clone().finalize())
    }

    /// Flushes the file to the disk.
    pub(crate) fn sync(&self) -> Result<(), ImageError> {
        self.file.sync_all().map_err(io("write", &self.path))
    }
}

/// Writes a stream to the end of `sink`, at most `most` bytes of it. Returns the sink, unless the disk failed, with
/// how it went. Not safe to drop: the sink is lost then.
pub(crate) async fn pour<E: std::fmt::Display>(
    mut sink: Sink,
    body: impl Stream<Item = Result<Bytes, E>>,
    most: u64,
    stall: Duration,
    mut progress: impl FnMut(u64),
) -> (Option<Sink>, Result<(), Broken>) {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Bytes>(QUEUE);
    let writer = tokio::task::spawn_blocking(move || {
        while let Some(bytes) = receiver.blocking_recv() {
            sink.write(&bytes)?;
        }
        Ok(sink)
    });
    let mut body = std::pin::pin!(body);
    let mut arrived = 0;
    let went = loop {
        let bytes = match tokio::time::timeout(stall, body.next()).await {
            Err(_) => break Err(Broken::Stalled(stall)),
            Ok(None) => break Ok(()),
            Ok(Some(Err(error))) => break Err(Broken::Connection(error.to_string())),
            Ok(Some(Ok(bytes))) => bytes,
        };
        let count = bytes.len() as u64;
        if count > most - arrived {
            break Err(Broken::TooLarge(most));
        }
        arrived += count;
        if sender.send(bytes).await.is_err() {
            // The writer has ended, and says why.
            break Ok(());
        }
        progress(count);
    };
    drop(sender);
    match writer.await {
        Ok(Ok(sink)) => (Some(sink), went),
        Ok(Err(error)) => (None, Err(Broken::Disk(error))),
        Err(error) => {
            let source = std::io::Error::other(error.to_string());
            (None, Err(Broken::Disk(ImageError::Io { what: "write a blob".to_owned(), source })))
        }
    }
}
