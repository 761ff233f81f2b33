//! Watch: the store's events, narrowed by selectors.
//!
//! ```text
//!   initial objects (ADDED…) ─► [marker that they are complete] ─► events ─► end at the deadline, or an error
//! ```
//!
//! An object that begins to match becomes ADDED, one that ceases to match becomes DELETED with its last matching
//! state. Bookmarks are told now and then while nothing happens, so that a client may resume near the present.

use crate::core::{Call, Core};
use crate::object::body;
use crate::verbs::list::{Page, invalid, parse_version, too_large};
use crate::verbs::select::Filter;
use bytes::Bytes;
use cumulet_api::{Status, meta};
use cumulet_cluster::WatchItem;
use cumulet_store::{Event, EventKind, HistoryError, Record, Watcher};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Time between bookmarks.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(30);

/// How a watch begins and ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct WatchOptions {
    /// `resourceVersion`, as sent.
    pub(crate) version: Option<String>,
    /// `resourceVersionMatch`, as sent.
    pub(crate) version_match: Option<String>,
    /// `sendInitialEvents`, as sent.
    pub(crate) send_initial_events: Option<bool>,
    /// The client understands bookmarks.
    pub(crate) bookmarks: bool,
    /// When to end; never when `None`.
    pub(crate) deadline: Option<Instant>,
}

/// One thing that a feed tells.
pub(crate) enum Told {
    /// An event or a bookmark.
    Item(WatchItem),
    /// The bookmark after the initial objects.
    InitialEnd(u64),
}

/// A running watch.
pub(crate) struct Feed {
    watcher: Watcher,
    filter: Filter,
    queue: VecDeque<Told>,
    bookmarks: bool,
    deadline: Option<Instant>,
    next_bookmark: Instant,
}

impl Core {
    /// Starts a watch.
    pub(crate) fn watch(
        &self,
        call: &Call<'_>,
        filter: Filter,
        options: &WatchOptions,
    ) -> Result<Feed, Status> {
        let version = match options.version.as_deref() {
            None => 0,
            Some(text) => parse_version(text)?,
        };
        match (options.send_initial_events, options.version_match.as_deref()) {
            (None, None) | (Some(_), Some("NotOlderThan")) => {}
            (None, Some(_)) => {
                let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                return Err(invalid("resourceVersionMatch", why));
            }
            (Some(_), _) => {
                let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                return Err(invalid("resourceVersionMatch", why));
            }
        }
        let now = self.store.revision();
        if version > now {
            return Err(too_large(version, now));
        }
        let initial = options.send_initial_events.unwrap_or(version == 0);
        let mut queue = VecDeque::new();
        let from = if initial {
            let listed = self.list(call, &filter, &Page::default())?;
            queue.extend(listed.items.iter().map(|r| Told::Item(WatchItem::Added(r.body.clone()))));
            if options.send_initial_events == Some(true) && options.bookmarks {
                queue.push_back(Told::InitialEnd(listed.revision));
            }
            listed.revision
        } else if version == 0 {
            now
        } else {
            version
        };
        let watcher = self.store.watch(&call.resource.tag, from).map_err(expired)?;
        Ok(Feed {
            watcher,
            filter,
            queue,
            bookmarks: options.bookmarks,
            deadline: options.deadline,
            next_bookmark: Instant::now() + BOOKMARK_PERIOD,
        })
    }
}

/// 410: the client has to list again.
fn expired(error: HistoryError) -> Status {
    match error {
        HistoryError::Compacted { asked, oldest } => {
            Status::expired(format!("too old resource version: {asked} ({oldest})"))
        }
        HistoryError::Future { asked, current } => too_large(asked, current),
    }
}

impl Feed {
    /// The next thing to tell; `None` at the deadline. After an error the feed is over. Safe to drop and call again.
    pub(crate) async fn next(&mut self) -> Option<Result<Told, Status>> {
        loop {
            if let Some(told) = self.queue.pop_front() {
                return Some(Ok(told));
            }
            let wake = match (self.bookmarks, self.deadline) {
                (true, Some(deadline)) => Some(deadline.min(self.next_bookmark)),
                (true, None) => Some(self.next_bookmark),
                (false, deadline) => deadline,
            };
            let batch = match wake {
                Some(at) => tokio::time::timeout_at(at, self.watcher.next_batch()).await,
                None => Ok(self.watcher.next_batch().await),
            };
            match batch {
                Ok(Ok(batch)) => {
                    for event in &batch.events {
                        self.queue.extend(self.translate(event).map(Told::Item));
                    }
                }
                Ok(Err(error)) => return Some(Err(expired(error))),
                Err(_) if self.deadline.is_some_and(|at| at <= Instant::now()) => return None,
                Err(_) => {
                    self.next_bookmark = Instant::now() + BOOKMARK_PERIOD;
                    match self.watcher.poll_batch() {
                        Ok(batch) if batch.events.is_empty() => {
                            return Some(Ok(Told::Item(WatchItem::Bookmark(batch.revision))));
                        }
                        Ok(batch) => {
                            for event in &batch.events {
                                self.queue.extend(self.translate(event).map(Told::Item));
                            }
                        }
                        Err(error) => return Some(Err(expired(error))),
                    }
                }
            }
        }
    }

    /// What an event means to this watch; `None` when it is nothing to it.
    fn translate(&self, event: &Event) -> Option<WatchItem> {
        if event.record.key.namespace.as_ref()
            != self.filter.namespace().unwrap_or(&event.record.key.namespace)
        {
            return None;
        }
        let is = event.kind != EventKind::Deleted && self.filter.matches(&event.record);
        let was = event.previous.as_ref().is_some_and(|previous| self.filter.matches(previous));
        match (was, is) {
            (false, false) => None,
            (false, true) => Some(WatchItem::Added(event.record.body.clone())),
            (true, true) => Some(WatchItem::Modified(event.record.body.clone())),
            (true, false) if event.kind == EventKind::Deleted => {
                Some(WatchItem::Deleted(event.record.body.clone()))
            }
            (true, false) => {
                let previous = event.previous.as_ref()?;
                Some(WatchItem::Deleted(at_revision(previous, event.revision())))
            }
        }
    }
}

/// The object with another resourceVersion.
fn at_revision(record: &Arc<Record>, revision: u64) -> Bytes {
    match body::parse(record) {
        Ok(mut object) => {
            meta::set_text(&mut object, "resourceVersion", &revision.to_string());
            body::encode_detached(&object)
        }
        // What was stored by this server decodes; if it ever does not, its old revision is better than nothing.
        Err(_) => record.body.clone(),
    }
}
