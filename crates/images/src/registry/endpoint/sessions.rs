//! Open uploads and their files. What may happen is decided in [`super::upload`]; this carries it out.

use super::reply::{Code, Refusal};
use super::upload::{Effect, Event, Refused, Upload, UploadLimits};
use crate::registry::sink::{Broken, Sink, pour};
use crate::staging::WorkDir;
use crate::{Digest, ImageError, ImageStore};
use axum::body::Body;
use futures_util::StreamExt;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Most bytes, and longest time, that are spent on what is refused.
const MAX_DRAINED: usize = 1 << 30;
const DRAIN: Duration = Duration::from_secs(10);

struct Session {
    repository: String,
    upload: Upload,
    /// Absent while a request writes.
    sink: Option<Sink>,
}

/// Every open upload of an endpoint. They end with the process.
pub(super) struct Sessions {
    store: ImageStore,
    work: WorkDir,
    limits: UploadLimits,
    start: Instant,
    table: Mutex<HashMap<Uuid, Session>>,
}

impl Sessions {
    pub(super) fn new(store: ImageStore, limits: UploadLimits) -> Result<Self, ImageError> {
        let work = WorkDir::make(&store)?;
        Ok(Self { store, work, limits, start: Instant::now(), table: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Session>> {
        // Sessions are changed in single steps: what a panic leaves is whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(super) fn open(&self, repository: &str) -> Result<Uuid, Refusal> {
        self.sweep();
        let id = Uuid::new_v4();
        let session = |sink| Session {
            repository: repository.to_owned(),
            upload: Upload::new(self.now()),
            sink: Some(sink),
        };
        if self.lock().len() >= self.limits.sessions {
            let message = format!("{} uploads are open: try again later", self.limits.sessions);
            return Err(Refusal::new(Code::TooManyRequests, message));
        }
        let sink = Sink::create(self.work.fresh())?;
        self.lock().insert(id, session(sink));
        Ok(id)
    }

    /// Forgets uploads that nobody goes on with.
    pub(super) fn sweep(&self) {
        let now = self.now();
        let mut gone = Vec::new();
        self.lock().retain(|_, session| {
            let over = session.upload.apply(Event::Tick, now, &self.limits) == Ok(Effect::Discard);
            if over {
                gone.extend(session.sink.take());
            }
            !over
        });
        gone.into_iter().for_each(discard);
    }

    /// How often to sweep.
    pub(super) fn period(&self) -> Duration {
        (self.limits.idle / 2).max(Duration::from_millis(100))
    }

    fn apply(&self, repository: &str, id: Uuid, event: Event) -> Result<(Effect, Option<Sink>), Refusal> {
        let mut table = self.lock();
        let session = table.get_mut(&id).filter(|session| session.repository == repository);
        let session = session.ok_or_else(unknown)?;
        let effect = session.upload.apply(event, self.now(), &self.limits);
        let received = session.upload.received();
        let sink = match effect {
            Ok(Effect::Receive { .. }) => session.sink.take(),
            Ok(Effect::Verify | Effect::Discard) => table.remove(&id).and_then(|session| session.sink),
            Ok(Effect::Wait) | Err(_) => None,
        };
        effect.map(|effect| (effect, sink)).map_err(|refused| refusal(refused, received))
    }

    /// Bytes that an upload has.
    pub(super) fn received(&self, repository: &str, id: Uuid) -> Result<u64, Refusal> {
        let table = self.lock();
        let session = table.get(&id).filter(|session| session.repository == repository);
        session.map(|session| session.upload.received()).ok_or_else(unknown)
    }

    /// Appends a request's body, and tells how many bytes the upload has. Not safe to drop: the upload is lost then.
    pub(super) async fn receive(
        &self,
        repository: &str,
        id: Uuid,
        announced: (Option<(u64, u64)>, Option<u64>),
        body: Body,
    ) -> Result<u64, Refusal> {
        let (range, length) = announced;
        let (effect, sink) = self.apply(repository, id, Event::Begin { range, length })?;
        let (Effect::Receive { most }, Some(sink)) = (effect, sink) else { return Err(unknown()) };
        let before = sink.size();
        let mut body = body.into_data_stream();
        let (sink, went) = pour(sink, body.by_ref(), most, self.limits.stall, |_| {}).await;
        let ended = match sink {
            None => self.apply(repository, id, Event::Lost).map(drop),
            Some(sink) => {
                let bytes = sink.size() - before;
                if let Some(session) = self.lock().get_mut(&id) {
                    session.sink = Some(sink);
                }
                self.apply(repository, id, Event::Ended { bytes }).map(drop)
            }
        };
        match went {
            Ok(()) => ended.and_then(|()| self.received(repository, id)),
            Err(Broken::Disk(error)) => {
                drain(body).await;
                Err(error.into())
            }
            Err(Broken::TooLarge(most)) => {
                drain(body).await;
                let message = format!("more than the {most} bytes that are allowed here");
                Err(Refusal::new(Code::SizeInvalid, message))
            }
            Err(Broken::Stalled(stall)) => {
                let message = format!("nothing came for {} seconds", stall.as_secs());
                Err(Refusal::new(Code::BlobUploadInvalid, message))
            }
            Err(Broken::Connection(error)) => {
                Err(Refusal::new(Code::BlobUploadInvalid, format!("the upload broke off: {error}")))
            }
        }
    }

    /// Verifies and publishes what has come. The upload is over, whatever comes out. Blocks.
    pub(super) fn finish(&self, repository: &str, id: Uuid, expected: &Digest) -> Result<u64, Refusal> {
        let (_, sink) = self.apply(repository, id, Event::Finish)?;
        let sink = sink.ok_or_else(unknown)?;
        let (found, path) = (sink.digest(), sink.path());
        let published = || {
            sink.sync()?;
            self.store.publish_blob(path, expected)
        };
        let result = match found == *expected {
            true => published().map(|()| sink.size()).map_err(Refusal::from),
            false => {
                let message = format!("the content has digest {found}, not {expected}: upload it again");
                Err(Refusal::new(Code::DigestInvalid, message))
            }
        };
        // Published by renaming, or there already, or wrong.
        let _ = std::fs::remove_file(path);
        result
    }

    pub(super) fn cancel(&self, repository: &str, id: Uuid) -> Result<(), Refusal> {
        let (_, sink) = self.apply(repository, id, Event::Cancel)?;
        sink.into_iter().for_each(discard);
        Ok(())
    }
}

/// Reads on for a while: who is not listened to does not hear the answer.
async fn drain(mut body: axum::body::BodyDataStream) {
    let mut left = MAX_DRAINED;
    let rest = async {
        while let Some(Ok(bytes)) = body.next().await {
            left = left.saturating_sub(bytes.len());
            if left == 0 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN, rest).await;
}

fn discard(sink: Sink) {
    let _ = std::fs::remove_file(sink.path());
}

fn unknown() -> Refusal {
    Refusal::new(Code::BlobUploadUnknown, "there is no such upload: begin a new one")
}

fn refusal(refused: Refused, received: u64) -> Refusal {
    let range = |refusal: Refusal| refusal.header(http::header::RANGE, &range_header(received));
    match refused {
        Refused::Busy => Refusal::new(Code::BlobUploadInvalid, "another request writes to this upload"),
        Refused::OutOfOrder { next } => {
            range(Refusal::new(Code::RangeInvalid, format!("the next byte of this upload is number {next}")))
        }
        Refused::TooLarge { most } => {
            Refusal::new(Code::SizeInvalid, format!("a blob may have {most} bytes at the most"))
        }
        Refused::Length { expected, found } => {
            let message = format!("{expected} bytes were announced, {found} came");
            range(Refusal::new(Code::BlobUploadInvalid, message))
        }
    }
}

/// What has been received, as the protocol writes it: inclusive, and `0-0` for nothing.
pub(super) fn range_header(received: u64) -> String {
    format!("0-{}", received.saturating_sub(1))
}
