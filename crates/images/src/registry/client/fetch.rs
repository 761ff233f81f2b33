//! One blob into the store: once at a time on the whole machine, resumed where it broke off, verified on the way.

use super::error::Failure;
use super::session::Session;
use super::transport::chain;
use super::{Client, Meter, blocking};
use crate::oci::Descriptor;
use crate::registry::sink::{Broken, Sink, pour};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt;
use std::time::{Duration, Instant};

/// A download that got so much further is not held against the connection that broke.
const GOOD_PROGRESS: u64 = 1 << 20;
/// Least bytes in the time after which silence is given up: who drips keeps others waiting for the same blob.
const LEAST: u64 = 64 * 1024;

impl Client {
    /// Gets a blob from the first session that has it, and leaves it in the store with a lease. Tells how many bytes
    /// came over the network; `None` when it was there already. With a failure comes who failed.
    pub(super) async fn fetch<'s>(
        &self,
        sessions: &'s [Session<'_>],
        wanted: &Descriptor,
        meter: &Meter<'_>,
    ) -> Result<Option<u64>, (Failure, &'s str)> {
        let first = sessions.first().map_or("", Session::host);
        let here = |failure| (failure, first);
        if self.is_there(wanted, meter).await.map_err(here)? {
            return Ok(None);
        }
        let _gate = self.gate(&wanted.digest).await;
        let (store, digest) = (self.store.clone(), wanted.digest.clone());
        let claim = blocking(move || store.claim(&digest)).await.map_err(here)?;
        // Whoever was waited for may have got it.
        if self.is_there(wanted, meter).await.map_err(here)? {
            return Ok(None);
        }
        // The semaphore is never closed.
        let _slot = self.slots.acquire().await.ok();
        let (path, size) = (self.store.partial(&wanted.digest), wanted.size);
        let sink = blocking(move || Ok(Sink::resume(path, size)?.guarded_by(claim))).await.map_err(here)?;
        let resumed = sink.size() > 0;
        let mut download = Download { client: self, wanted, meter, sink: Some(sink), resumed, moved: 0 };
        let mut failed = (Failure::Peer("there is no registry to ask".to_owned()), first);
        for session in sessions {
            match download.run(session).await {
                Ok(()) => return Ok(Some(download.moved)),
                Err(failure @ Failure::Image(_)) => return Err((failure, session.host())),
                Err(failure) => failed = (failure, session.host()),
            }
        }
        Err(failed)
    }

    /// Whether a blob is in the store, where it stays for as long as a lease lasts.
    async fn is_there(&self, wanted: &Descriptor, meter: &Meter<'_>) -> Result<bool, Failure> {
        let (store, digest) = (self.store.clone(), wanted.digest.clone());
        match blocking(move || store.blob_on_lease(&digest)).await? {
            None => Ok(false),
            Some(size) if size == wanted.size => {
                meter.reach(size);
                Ok(true)
            }
            Some(size) => {
                Err(Failure::Content(format!("the manifest gives it {} bytes, it has {size}", wanted.size)))
            }
        }
    }
}

/// A blob on its way.
struct Download<'a> {
    client: &'a Client,
    wanted: &'a Descriptor,
    meter: &'a Meter<'a>,
    /// Absent only while bytes come, or after the disk failed.
    sink: Option<Sink>,
    /// Whether what is in the sink did not all come from who is asked now.
    resumed: bool,
    moved: u64,
}

impl Download<'_> {
    /// Tries one registry until it has it all or there is no hope.
    async fn run(&mut self, session: &Session<'_>) -> Result<(), Failure> {
        let mut retry = self.client.retry();
        loop {
            let before = self.size();
            let failure = match self.attempt(session).await {
                Ok(()) => match self.finish().await? {
                    None => return Ok(()),
                    // What had come earlier, perhaps from somebody else, was wrong: all of it once more.
                    Some(_) if self.resumed => {
                        self.resumed = false;
                        continue;
                    }
                    Some(failure) => failure,
                },
                Err(failure) => failure,
            };
            if self.size() >= before + GOOD_PROGRESS {
                retry.reset();
            }
            if let Err(failure) = retry.after(failure).await {
                self.resumed = self.size() > 0;
                return Err(failure);
            }
        }
    }

    fn size(&self) -> u64 {
        self.sink.as_ref().map_or(0, Sink::size)
    }

    fn take(&mut self) -> Result<Sink, Failure> {
        let gone = || Failure::Connection("the download was lost".to_owned());
        self.sink.take().ok_or_else(gone)
    }

    /// Begins anew.
    async fn restart(&mut self) -> Result<(), Failure> {
        let sink = self.take()?;
        self.sink = Some(blocking(move || sink.restart()).await?);
        self.resumed = false;
        Ok(())
    }

    /// One request for what is missing.
    async fn attempt(&mut self, session: &Session<'_>) -> Result<(), Failure> {
        let have = self.size();
        if have == self.wanted.size && have > 0 {
            return Ok(());
        }
        let mut call = session.call(Method::GET, &format!("blobs/{}", self.wanted.digest))?;
        if have > 0 {
            let range = HeaderValue::from_str(&format!("bytes={have}-"));
            call.headers.insert(RANGE, range.map_err(|error| Failure::Peer(error.to_string()))?);
        }
        let response = match session.send(&call).await {
            Err(Failure::Status { status: StatusCode::RANGE_NOT_SATISFIABLE, words, .. }) if have > 0 => {
                self.restart().await?;
                return Err(Failure::Connection(words));
            }
            other => other?,
        };
        if have > 0 && !continues(&response, have) {
            self.restart().await?;
            if response.status() == StatusCode::PARTIAL_CONTENT {
                return Err(Failure::Connection("another part came than was asked for".to_owned()));
            }
        }
        let (sink, stall) = (self.take()?, self.client.options.stall);
        let left = self.wanted.size - sink.size();
        if let Some(length) = content_length(response.headers()).filter(|length| *length != left) {
            self.sink = Some(sink);
            return Err(Failure::Content(format!("{length} bytes instead of {left}")));
        }
        let (mut at, meter) = (sink.size(), self.meter);
        let body = paced(response.into_body().into_data_stream(), stall);
        let (sink, went) = pour(sink, body, left, stall, |bytes| {
            at += bytes;
            meter.reach(at);
        })
        .await;
        let arrived = sink.as_ref().map_or(0, Sink::size);
        self.moved += left.saturating_sub(self.wanted.size.saturating_sub(arrived));
        self.sink = sink;
        match went {
            Ok(()) if arrived == self.wanted.size => Ok(()),
            Ok(()) => Err(Failure::Connection(format!(
                "it broke off after {arrived} of {} bytes",
                self.wanted.size
            ))),
            Err(Broken::Disk(error)) => Err(Failure::Image(error)),
            Err(Broken::Stalled(_)) => {
                let size = self.wanted.size;
                Err(Failure::Connection(format!("nothing more came after {arrived} of {size} bytes")))
            }
            Err(Broken::Connection(words)) => {
                let size = self.wanted.size;
                Err(Failure::Connection(format!("it broke off after {arrived} of {size} bytes: {words}")))
            }
            Err(Broken::TooLarge(_)) => {
                self.restart().await?;
                Err(Failure::Content(format!("more than the {} bytes it should have", self.wanted.size)))
            }
        }
    }

    /// Publishes the blob if it is the right one; else begins anew, and tells what is wrong.
    async fn finish(&mut self) -> Result<Option<Failure>, Failure> {
        let sink = self.take()?;
        let (store, wanted) = (self.client.store.clone(), self.wanted.digest.clone());
        let (sink, found) = blocking(move || {
            let found = sink.digest();
            if found != wanted {
                return Ok((Some(sink.restart()?), found));
            }
            sink.sync()?;
            store.publish_blob(sink.path(), &wanted)?;
            // There already after all, if it was not moved away.
            let _ = std::fs::remove_file(sink.path());
            Ok((None, found))
        })
        .await?;
        self.sink = sink;
        let wrong =
            || Failure::Content(format!("content with digest {found} instead of {}", self.wanted.digest));
        Ok(self.sink.is_some().then(wrong))
    }
}

/// Whether an answer goes on where we are.
fn continues<B>(response: &http::Response<B>, have: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok());
    response.status() == StatusCode::PARTIAL_CONTENT && first == Some(have)
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Fails when too little comes in a while.
fn paced(
    body: impl Stream<Item = Result<Bytes, hyper::Error>>,
    window: Duration,
) -> impl Stream<Item = Result<Bytes, String>> {
    let (mut since, mut bytes) = (Instant::now(), 0);
    body.map(move |chunk| {
        let chunk = chunk.map_err(|error| chain(&error))?;
        bytes += chunk.len() as u64;
        if since.elapsed() >= window {
            if bytes < LEAST {
                return Err(format!("{bytes} bytes in {} seconds are too few", window.as_secs_f32()));
            }
            (since, bytes) = (Instant::now(), 0);
        }
        Ok(chunk)
    })
}
