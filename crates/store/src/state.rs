//! The state in memory: current records, secondary indexes, and the recent history of every resource.
//!
//! ```text
//!   State ── tables: resource → Table { objects, log }      log: [seq first .. first+len), oldest first
//!         ├─ indexes: name → value → keys
//!         └─ order: which table's log holds the oldest event, the next oldest, ...
//! ```
//!
//! Invariants: everything here is durable; a commit becomes visible as a whole; a table's log holds
//! every event with a revision above its `compacted`, in order. Only the writer thread changes it, under the write
//! lock, for the time of applying one group; nobody holds the lock across I/O or await.

use crate::{Event, EventKind, HistoryError, Key, Record, ResourceTag};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use tokio::sync::watch;

/// Place of an object within its table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    namespace: Arc<str>,
    name: Arc<str>,
}

impl From<&Key> for Place {
    fn from(key: &Key) -> Self {
        Self { namespace: key.namespace.clone(), name: key.name.clone() }
    }
}

/// The objects and the history of one resource.
struct Table {
    objects: BTreeMap<Place, Arc<Record>>,
    log: VecDeque<Arc<Event>>,
    /// Sequence number of the log's first event. Sequence numbers never repeat within a process.
    first: u64,
    /// Events up to this revision are no longer in the log.
    compacted: u64,
    /// Tells watchers the newest revision in this log.
    wake: Arc<watch::Sender<u64>>,
}

impl Table {
    fn new(compacted: u64) -> Self {
        Self {
            objects: BTreeMap::new(),
            log: VecDeque::new(),
            first: 0,
            compacted,
            wake: Arc::new(watch::Sender::new(compacted)),
        }
    }
}

/// Objects found by a list, consistent at `revision`.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The objects, ordered by namespace and name.
    pub items: Vec<Arc<Record>>,
    /// The revision at which this is the truth.
    pub revision: u64,
    /// There are more objects behind the last one.
    pub more: bool,
}

/// Which part of a resource to list.
#[derive(Clone, Copy, Debug, Default)]
pub struct Range<'a> {
    /// Only this namespace; all when `None`.
    pub namespace: Option<&'a str>,
    /// Only objects behind this (namespace, name); from the beginning when `None`.
    pub after: Option<(&'a str, &'a str)>,
    /// At most this many; all when 0.
    pub limit: usize,
}

impl Range<'_> {
    fn start(&self) -> Bound<Place> {
        match (self.namespace, self.after) {
            (wanted, Some((namespace, name))) if wanted.is_none_or(|wanted| wanted <= namespace) => {
                Bound::Excluded(Place { namespace: namespace.into(), name: name.into() })
            }
            (Some(wanted), _) => Bound::Included(Place { namespace: wanted.into(), name: "".into() }),
            (None, _) => Bound::Unbounded,
        }
    }

    /// True for a place that lies in the wanted namespace.
    fn covers(&self, place: &Place) -> bool {
        self.namespace.is_none_or(|namespace| *place.namespace == *namespace)
    }
}

/// How much history to hold over all resources.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

/// What the watchers of one resource get in one go.
pub(crate) struct Tail {
    pub(crate) events: Vec<Arc<Event>>,
    pub(crate) next: u64,
    pub(crate) revision: u64,
}

pub(crate) struct State {
    tables: HashMap<ResourceTag, Table>,
    indexes: HashMap<Arc<str>, HashMap<Arc<str>, BTreeSet<Key>>>,
    /// The resource of every event held, oldest event first.
    order: VecDeque<ResourceTag>,
    held_bytes: usize,
    window: Window,
    revision: u64,
    /// The revision at which the history of this process begins.
    opened_at: u64,
}

impl State {
    pub(crate) fn new(records: Vec<Record>, revision: u64, window: Window) -> Self {
        let mut state = Self {
            tables: HashMap::new(),
            indexes: HashMap::new(),
            order: VecDeque::new(),
            held_bytes: 0,
            window,
            revision,
            opened_at: revision,
        };
        for record in records {
            let record = Arc::new(record);
            state.index(&record);
            state.table(&record.key.resource).objects.insert(Place::from(&record.key), record);
        }
        state
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    fn table(&mut self, resource: &ResourceTag) -> &mut Table {
        let opened_at = self.opened_at;
        self.tables.entry(resource.clone()).or_insert_with(|| Table::new(opened_at))
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<Record>> {
        self.tables.get(&key.resource)?.objects.get(&Place::from(key))
    }

    pub(crate) fn list(&self, resource: &ResourceTag, range: &Range<'_>) -> Snapshot {
        let mut page = Page::new(range, self.revision);
        if let Some(table) = self.tables.get(resource) {
            for (place, record) in table.objects.range((range.start(), Bound::Unbounded)) {
                if !page.take(place, record) {
                    break;
                }
            }
        }
        page.found
    }

    /// Lists as it was at `revision`, by undoing the events since.
    pub(crate) fn list_at(
        &self,
        resource: &ResourceTag,
        revision: u64,
        range: &Range<'_>,
    ) -> Result<Snapshot, HistoryError> {
        self.check_held(resource, revision)?;
        let mut page = Page::new(range, revision);
        let Some(table) = self.tables.get(resource) else { return Ok(page.found) };
        let mut undone: BTreeMap<Place, Option<&Arc<Record>>> = BTreeMap::new();
        for event in table.log.iter().rev().take_while(|event| event.revision() > revision) {
            undone.insert(Place::from(&event.record.key), event.previous.as_ref());
        }
        let bounds = (range.start(), Bound::Unbounded);
        let mut now = table.objects.range(bounds.clone()).peekable();
        let mut then = undone.range(bounds).peekable();
        loop {
            let ordering = match (now.peek(), then.peek()) {
                (None, None) => break,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some((a, _)), Some((b, _))) => a.cmp(b),
            };
            let place_and_record = if ordering.is_lt() {
                now.next().map(|(place, record)| (place, Some(record)))
            } else {
                if ordering.is_eq() {
                    now.next();
                }
                then.next().map(|(place, record)| (place, *record))
            };
            if let Some((place, Some(record))) = place_and_record
                && !page.take(place, record)
            {
                break;
            }
        }
        Ok(page.found)
    }

    pub(crate) fn by_index(&self, name: &str, value: &str, resource: Option<&ResourceTag>) -> Snapshot {
        let keys = self.indexes.get(name).and_then(|values| values.get(value));
        let items = keys
            .into_iter()
            .flatten()
            .filter(|key| resource.is_none_or(|resource| key.resource == *resource))
            .filter_map(|key| self.get(key).cloned())
            .collect();
        Snapshot { items, revision: self.revision, more: false }
    }

    fn check_held(&self, resource: &ResourceTag, asked: u64) -> Result<(), HistoryError> {
        let oldest = self.tables.get(resource).map_or(self.opened_at, |table| table.compacted);
        if asked > self.revision {
            return Err(HistoryError::Future { asked, current: self.revision });
        }
        if asked < oldest { Err(HistoryError::Compacted { asked, oldest }) } else { Ok(()) }
    }

    /// Registers a watcher: the sequence number of the first event after `from`, and what wakes it.
    pub(crate) fn subscribe(
        &mut self,
        resource: &ResourceTag,
        from: u64,
    ) -> Result<(u64, watch::Receiver<u64>), HistoryError> {
        self.check_held(resource, from)?;
        let table = self.table(resource);
        let behind = table.log.partition_point(|event| event.revision() <= from);
        Ok((table.first + behind as u64, table.wake.subscribe()))
    }

    /// The events from sequence number `next` on: about `limit` of them, but always whole revisions.
    pub(crate) fn tail(
        &self,
        resource: &ResourceTag,
        next: u64,
        reached: u64,
        limit: usize,
    ) -> Result<Tail, HistoryError> {
        let Some(table) = self.tables.get(resource) else {
            return Ok(Tail { events: Vec::new(), next, revision: self.revision });
        };
        if next < table.first {
            return Err(HistoryError::Compacted { asked: reached, oldest: table.compacted });
        }
        // The log is held in memory, so its offsets fit a usize.
        let skip = usize::try_from(next - table.first).unwrap_or(usize::MAX);
        let mut events: Vec<Arc<Event>> = Vec::new();
        let mut whole = true;
        for event in table.log.iter().skip(skip) {
            if events.len() >= limit && events.last().is_some_and(|last| last.revision() != event.revision())
            {
                whole = false;
                break;
            }
            events.push(event.clone());
        }
        let revision =
            if whole { self.revision } else { events.last().map_or(reached, |last| last.revision()) };
        Ok(Tail { next: next + events.len() as u64, events, revision })
    }

    /// Makes durable changes visible. Returns what has to be woken after the lock is released.
    pub(crate) fn publish(&mut self, events: &[Arc<Event>], revision: u64) -> Vec<Arc<watch::Sender<u64>>> {
        let mut touched: BTreeMap<ResourceTag, Arc<watch::Sender<u64>>> = BTreeMap::new();
        for event in events {
            self.apply(event);
            let resource = &event.record.key.resource;
            if !touched.contains_key(resource) {
                let wake = self.table(resource).wake.clone();
                touched.insert(resource.clone(), wake);
            }
        }
        self.revision = revision;
        self.evict();
        touched.into_values().collect()
    }

    fn apply(&mut self, event: &Arc<Event>) {
        let key = &event.record.key;
        if let Some(previous) = &event.previous {
            self.unindex(previous);
        }
        if event.kind != EventKind::Deleted {
            self.index(&event.record);
        }
        self.held_bytes += cost(event);
        self.order.push_back(key.resource.clone());
        let table = self.table(&key.resource);
        match event.kind {
            EventKind::Deleted => table.objects.remove(&Place::from(key)),
            EventKind::Created | EventKind::Updated => {
                table.objects.insert(Place::from(key), event.record.clone())
            }
        };
        table.log.push_back(event.clone());
    }

    /// Forgets the oldest events until the window holds. When that takes only a part of a commit, the rest of it
    /// stays in the log out of everybody's reach, since `compacted` is then the commit's revision.
    fn evict(&mut self) {
        while self.order.len() > self.window.events || self.held_bytes > self.window.bytes {
            let Some(resource) = self.order.pop_front() else { break };
            let Some(table) = self.tables.get_mut(&resource) else { continue };
            if let Some(event) = table.log.pop_front() {
                table.first += 1;
                table.compacted = event.revision();
                self.held_bytes -= cost(&event);
            }
        }
    }

    fn index(&mut self, record: &Record) {
        for term in &record.index {
            let values = self.indexes.entry(term.name.clone()).or_default();
            values.entry(term.value.clone()).or_default().insert(record.key.clone());
        }
    }

    fn unindex(&mut self, record: &Record) {
        for term in &record.index {
            let Some(values) = self.indexes.get_mut(&term.name) else { continue };
            let Some(keys) = values.get_mut(&term.value) else { continue };
            keys.remove(&record.key);
            if keys.is_empty() {
                values.remove(&term.value);
            }
        }
    }
}

/// Memory that an event keeps alive, roughly: the record before it is paid for by the event that made it.
fn cost(event: &Event) -> usize {
    const OVERHEAD: usize = 256;
    event.record.body.len() + OVERHEAD
}

/// Collects one page of a list.
struct Page<'a> {
    range: &'a Range<'a>,
    found: Snapshot,
}

impl<'a> Page<'a> {
    fn new(range: &'a Range<'a>, revision: u64) -> Self {
        Self { range, found: Snapshot { items: Vec::new(), revision, more: false } }
    }

    /// Takes the next record in order; false when the page is complete.
    fn take(&mut self, place: &Place, record: &Arc<Record>) -> bool {
        if !self.range.covers(place) {
            return false;
        }
        if self.range.limit != 0 && self.found.items.len() == self.range.limit {
            self.found.more = true;
            return false;
        }
        self.found.items.push(record.clone());
        true
    }
}
