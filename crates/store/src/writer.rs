//! The one writer: a thread that takes whatever is queued as one group, makes it durable, publishes it, answers.
//!
//! ```text
//!   queue ──► stage: check preconditions against published state + this group ──► flush ──► publish ──► answer
//!               └─ a failed precondition answers its own commit at once and leaves the group alone
//! ```
//!
//! A failed flush fails its whole group and leaves memory as it was. Since the engine cannot tell whether a failed
//! flush reached the disk, the file is opened again: if the group turns out to be durable it is published and its
//! clients get success; if the file cannot be opened yet, the group stays in doubt until it can, and no revision
//! is given out meanwhile.

use crate::disk::{Changes, Disk, is_encodable};
use crate::state::State;
use crate::store::Shared;
use crate::{Committed, Event, EventKind, Key, Op, Record, StoreError};
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// What the queue carries.
pub(crate) enum Message {
    /// A commit, and whom to answer.
    Commit(Vec<Op>, oneshot::Sender<Result<Committed, StoreError>>),
    /// Take no more, finish what is queued, close the file, answer.
    Close(oneshot::Sender<()>),
}

/// Most operations and bytes in one group, so that a group's flush stays short.
const GROUP_OPS: usize = 4096;
const GROUP_BYTES: usize = 16 << 20;

/// Commits staged together.
#[derive(Default)]
struct Group {
    changes: Changes,
    events: Vec<Arc<Event>>,
    answers: Vec<(oneshot::Sender<Result<Committed, StoreError>>, Committed)>,
    bytes: usize,
    /// Revision of the last commit in it.
    revision: u64,
}

pub(crate) struct Writer {
    disk: Disk,
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Message>,
    /// A group whose flush failed and whose fate is not known yet.
    in_doubt: Option<(Group, StoreError)>,
    closing: Vec<oneshot::Sender<()>>,
}

impl Writer {
    pub(crate) fn new(disk: Disk, shared: Arc<Shared>, queue: mpsc::Receiver<Message>) -> Self {
        Self { disk, shared, queue, in_doubt: None, closing: Vec::new() }
    }

    /// Runs until the queue is closed and empty.
    pub(crate) fn run(mut self) {
        while let Some(first) = self.queue.blocking_recv() {
            let group = match (self.settle(), first) {
                (Err(error), Message::Commit(_, answer)) => {
                    // Whoever asked may have gone away.
                    let _ = answer.send(Err(error));
                    continue;
                }
                (_, first) => self.collect(first),
            };
            if !group.answers.is_empty() {
                self.flush(group);
            }
        }
        // The file and the directory's lock are released before anybody is told that they are.
        drop(self.disk);
        for answer in self.closing {
            // Whoever asked may have gone away.
            let _ = answer.send(());
        }
    }

    /// Stages `first` and whatever else is queued by now.
    fn collect(&mut self, first: Message) -> Group {
        let mut group = Group { revision: self.shared.read().revision(), ..Group::default() };
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Commit(ops, answer) => self.stage(&mut group, ops, answer),
                Message::Close(answer) => {
                    self.queue.close();
                    self.closing.push(answer);
                }
            }
            if group.changes.len() >= GROUP_OPS || group.bytes >= GROUP_BYTES {
                break;
            }
            next = self.queue.try_recv().ok();
        }
        group
    }

    fn stage(&self, group: &mut Group, ops: Vec<Op>, answer: oneshot::Sender<Result<Committed, StoreError>>) {
        let revision = group.revision + 1;
        let events = {
            let state = self.shared.read();
            check_keys(&ops).and_then(|()| {
                ops.iter()
                    .map(|op| plan(op, revision, current(&state, group, op.key())))
                    .collect::<Result<Vec<_>, _>>()
            })
        };
        let events = match events {
            Ok(events) => events,
            Err(error) => {
                // Whoever asked may have gone away.
                let _ = answer.send(Err(error));
                return;
            }
        };
        for event in &events {
            let after = (event.kind != EventKind::Deleted).then(|| event.record.clone());
            group.changes.insert(event.record.key.clone(), after);
        }
        group.bytes += ops.iter().map(Op::len).sum::<usize>();
        group.revision = revision;
        let records = events.iter().map(|event| event.record.clone()).collect();
        group.answers.push((answer, Committed { revision, records }));
        group.events.extend(events);
    }

    fn flush(&mut self, group: Group) {
        let Err(error) = self.disk.write(&group.changes, group.revision) else { return self.publish(group) };
        tracing::error!(%error, commits = group.answers.len(), "a group of commits could not be made durable");
        self.in_doubt = Some((group, error));
        // When the file cannot be opened yet the group stays in doubt, but its clients are not kept waiting.
        if self.settle().is_err()
            && let Some((group, error)) = &mut self.in_doubt
        {
            refuse(group, error);
        }
    }

    /// After a failed flush: opens the file again and learns from it what became of the group in doubt. Until
    /// that works nothing can be staged, since revisions and preconditions depend on it.
    fn settle(&mut self) -> Result<(), StoreError> {
        if self.disk.is_open() {
            return Ok(());
        }
        let durable = self.disk.reopen()?;
        if let Some((mut group, error)) = self.in_doubt.take() {
            if durable >= group.revision {
                self.publish(group);
            } else {
                refuse(&mut group, &error);
            }
        }
        Ok(())
    }

    fn publish(&self, group: Group) {
        self.shared.publish(&group.events, group.revision);
        for (answer, committed) in group.answers {
            // Whoever asked may have gone away.
            let _ = answer.send(Ok(committed));
        }
    }
}

fn refuse(group: &mut Group, error: &StoreError) {
    for (answer, _) in group.answers.drain(..) {
        // Whoever asked may have gone away.
        let _ = answer.send(Err(error.clone()));
    }
}

fn check_keys(ops: &[Op]) -> Result<(), StoreError> {
    if let Some(op) = ops.iter().find(|op| !is_encodable(op.key())) {
        return Err(StoreError::InvalidKey { key: op.key().clone() });
    }
    let mut seen = HashSet::new();
    match ops.iter().find(|op| ops.len() > 1 && !seen.insert(op.key())) {
        Some(op) => Err(StoreError::DuplicateKey { key: op.key().clone() }),
        None => Ok(()),
    }
}

/// The object at `key` as the commits before this one leave it.
fn current<'a>(state: &'a State, group: &'a Group, key: &Key) -> Option<&'a Arc<Record>> {
    match group.changes.get(key) {
        Some(changed) => changed.as_ref(),
        None => state.get(key),
    }
}

/// The event that `op` amounts to, if its preconditions hold.
fn plan(op: &Op, revision: u64, current: Option<&Arc<Record>>) -> Result<Arc<Event>, StoreError> {
    let event = match op {
        Op::Create { key, .. } if current.is_some() => {
            return Err(StoreError::AlreadyExists { key: key.clone() });
        }
        Op::Create { key, body, index } => {
            let record = Record {
                key: key.clone(),
                body: body.at(revision),
                revision,
                created_revision: revision,
                index: index.clone(),
            };
            Event { kind: EventKind::Created, record: Arc::new(record), previous: None }
        }
        Op::Update { key, expected, body, index } => {
            let previous = expect(key, *expected, current)?;
            let record = Record {
                key: previous.key.clone(),
                body: body.at(revision),
                revision,
                created_revision: previous.created_revision,
                index: index.clone(),
            };
            Event { kind: EventKind::Updated, record: Arc::new(record), previous: Some(previous.clone()) }
        }
        Op::Delete { key, expected, tombstone } => {
            let previous = expect(key, *expected, current)?;
            let record = Record {
                key: previous.key.clone(),
                body: tombstone.at(revision),
                revision,
                created_revision: previous.created_revision,
                index: previous.index.clone(),
            };
            Event { kind: EventKind::Deleted, record: Arc::new(record), previous: Some(previous.clone()) }
        }
    };
    Ok(Arc::new(event))
}

fn expect<'a>(
    key: &Key,
    expected: Option<u64>,
    current: Option<&'a Arc<Record>>,
) -> Result<&'a Arc<Record>, StoreError> {
    match (current, expected) {
        (None, _) => Err(StoreError::NotFound { key: key.clone() }),
        (Some(record), Some(expected)) if record.revision != expected => {
            Err(StoreError::Conflict { key: key.clone(), expected, current: record.revision })
        }
        (Some(record), _) => Ok(record),
    }
}
