//! Random histories of commits, restarts, watches and lists against a model that keeps everything for ever.

use cumulet_store::{
    Body, Event, EventKind, HistoryError, IndexTerm, Key, Op, Range, Record, ResourceTag, Store, StoreError,
    StoreOptions, Watcher,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const RESOURCES: [&str; 2] = ["things", "group/others"];
const NAMESPACES: [&str; 3] = ["", "a", "b"];
const NAMES: [&str; 3] = ["x", "x-1", "y"];
const WINDOW: usize = 12;

#[derive(Clone, Debug)]
enum Expect {
    Any,
    Current,
    Wrong,
}

#[derive(Clone, Copy, Debug)]
enum Verb {
    Create,
    Update,
    Delete,
}

#[derive(Clone, Debug)]
struct Change {
    verb: Verb,
    place: (usize, usize, usize),
    expect: Expect,
    owner: usize,
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<Change>),
    Restart,
    Watch { resource: usize, back: u64 },
    Drain(usize),
    ListAt { resource: usize, namespace: Option<usize>, back: u64, page: usize },
}

fn change() -> impl Strategy<Value = Change> {
    let verb = prop_oneof![Just(Verb::Create), Just(Verb::Update), Just(Verb::Delete)];
    let expect = prop_oneof![3 => Just(Expect::Any), 2 => Just(Expect::Current), 1 => Just(Expect::Wrong)];
    let place = (0..RESOURCES.len(), 0..NAMESPACES.len(), 0..NAMES.len());
    (verb, place, expect, 0..3usize).prop_map(|(verb, place, expect, owner)| Change {
        verb,
        place,
        expect,
        owner,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let resource = 0..RESOURCES.len();
    prop_oneof![
        12 => prop::collection::vec(change(), 1..4).prop_map(Step::Commit),
        1 => Just(Step::Restart),
        3 => (resource.clone(), 0..20u64).prop_map(|(resource, back)| Step::Watch { resource, back }),
        4 => (0..8usize).prop_map(Step::Drain),
        4 => (resource, prop::option::of(0..NAMESPACES.len()), 0..16u64, 0..4usize)
            .prop_map(|(resource, namespace, back, page)| Step::ListAt { resource, namespace, back, page }),
    ]
}

/// What the model knows of one record: body, revision, created revision, owner.
type Fact = (String, u64, u64, usize);

#[derive(Clone, Debug, PartialEq)]
struct ModelEvent {
    key: Key,
    kind: EventKind,
    after: Fact,
    before: Option<Fact>,
}

#[derive(Default)]
struct Model {
    /// The state after every revision.
    states: BTreeMap<u64, BTreeMap<Key, Fact>>,
    events: Vec<ModelEvent>,
    revision: u64,
    /// How many events had happened, and at which revision, when the store was opened last.
    opened: (usize, u64),
    serial: u64,
}

impl Model {
    fn now(&self) -> BTreeMap<Key, Fact> {
        self.states[&self.revision].clone()
    }

    fn at(&self, revision: u64) -> &BTreeMap<Key, Fact> {
        self.states.range(..=revision).next_back().expect("a state").1
    }

    /// Events of this process that have left the window.
    fn evicted(&self) -> &[ModelEvent] {
        let held_from = self.events.len().saturating_sub(WINDOW).max(self.opened.0);
        &self.events[self.opened.0..held_from]
    }

    fn oldest(&self, resource: &ResourceTag) -> u64 {
        let of_resource = self.evicted().iter().filter(|event| event.key.resource == *resource);
        of_resource.map(|event| event.after.1).next_back().unwrap_or(self.opened.1)
    }

    fn commit(&mut self, changes: &[Change]) -> (Vec<Op>, Result<u64, &'static str>) {
        let revision = self.revision + 1;
        let mut state = self.now();
        let mut events = Vec::new();
        let mut ops = Vec::new();
        let mut outcome = Ok(revision);
        let mut keys = std::collections::BTreeSet::new();
        let distinct = changes.iter().all(|change| keys.insert(change.place));
        for change in changes {
            let key = key_of(change.place);
            self.serial += 1;
            let head = format!("{}:", self.serial);
            let body = Body::new(head.clone(), "!");
            let index = vec![IndexTerm::new("owner", &change.owner.to_string())];
            let current = state.get(&key).cloned();
            let expected = match (&change.expect, &current) {
                (Expect::Any, _) => None,
                (Expect::Current, Some(fact)) => Some(fact.1),
                _ => Some(revision + 7),
            };
            let text = format!("{head}{revision}!");
            let (op, result) = match (change.verb, &current) {
                (Verb::Create, None) => (
                    Op::Create { key: key.clone(), body, index },
                    Ok((text, revision, revision, change.owner)),
                ),
                (Verb::Create, Some(_)) => (Op::Create { key: key.clone(), body, index }, Err("exists")),
                (Verb::Update, current) => (
                    Op::Update { key: key.clone(), expected, body, index },
                    precondition(current.as_ref(), expected)
                        .map(|fact| (text, revision, fact.2, change.owner)),
                ),
                (Verb::Delete, current) => (
                    Op::Delete { key: key.clone(), expected, tombstone: body },
                    precondition(current.as_ref(), expected).map(|fact| (text, revision, fact.2, fact.3)),
                ),
            };
            ops.push(op);
            match result {
                Err(why) => outcome = outcome.and(Err(why)),
                Ok(after) => {
                    let kind = match change.verb {
                        Verb::Create => EventKind::Created,
                        Verb::Update => EventKind::Updated,
                        Verb::Delete => EventKind::Deleted,
                    };
                    match kind {
                        EventKind::Deleted => state.remove(&key),
                        _ => state.insert(key.clone(), after.clone()),
                    };
                    events.push(ModelEvent { key, kind, after, before: current });
                }
            }
        }
        if !distinct {
            outcome = Err("twice");
        }
        if outcome.is_ok() {
            self.revision = revision;
            self.states.insert(revision, state);
            self.events.extend(events);
        }
        (ops, outcome)
    }
}

fn precondition(current: Option<&Fact>, expected: Option<u64>) -> Result<&Fact, &'static str> {
    match (current, expected) {
        (None, _) => Err("absent"),
        (Some(fact), Some(expected)) if fact.1 != expected => Err("conflict"),
        (Some(fact), _) => Ok(fact),
    }
}

fn key_of((resource, namespace, name): (usize, usize, usize)) -> Key {
    Key::new(&ResourceTag::new(RESOURCES[resource]), NAMESPACES[namespace], NAMES[name])
}

fn fact(record: &Record) -> Fact {
    let owner = record.index.iter().find(|term| &*term.name == "owner").expect("an owner");
    let body = String::from_utf8(record.body.to_vec()).expect("utf-8");
    (body, record.revision, record.created_revision, owner.value.parse().expect("a number"))
}

fn model_event(event: &Event) -> ModelEvent {
    ModelEvent {
        key: event.record.key.clone(),
        kind: event.kind,
        after: fact(&event.record),
        before: event.previous.as_deref().map(fact),
    }
}

fn label(error: &StoreError) -> &'static str {
    match error {
        StoreError::AlreadyExists { .. } => "exists",
        StoreError::NotFound { .. } => "absent",
        StoreError::Conflict { .. } => "conflict",
        StoreError::DuplicateKey { .. } => "twice",
        other => panic!("unexpected: {other}"),
    }
}

struct Run<'a> {
    dir: &'a Path,
    runtime: tokio::runtime::Runtime,
    store: Store,
    model: Model,
    /// Watchers, their resource, and the revision up to which the model has seen their events.
    watchers: Vec<(Watcher, ResourceTag, u64)>,
}

impl<'a> Run<'a> {
    fn new(dir: &'a Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let store = Store::open(dir, &options()).expect("open");
        let revision = store.revision();
        let mut model = Model { revision, opened: (0, revision), ..Model::default() };
        model.states.insert(revision, BTreeMap::new());
        Self { dir, runtime, store, model, watchers: Vec::new() }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Commit(changes) => self.commit(changes),
            Step::Restart => self.restart(),
            Step::Watch { resource, back } => self.watch(&ResourceTag::new(RESOURCES[*resource]), *back),
            Step::Drain(which) => self.drain(*which),
            Step::ListAt { resource, namespace, back, page } => {
                let namespace = namespace.map(|i| NAMESPACES[i]);
                self.list_at(&ResourceTag::new(RESOURCES[*resource]), namespace, *back, *page);
            }
        }
        self.check_now();
    }

    fn commit(&mut self, changes: &[Change]) {
        let (ops, expected) = self.model.commit(changes);
        let result = self.runtime.block_on(self.store.commit(ops));
        match (result, expected) {
            (Ok(committed), Ok(revision)) => {
                assert_eq!(committed.revision, revision);
                assert_eq!(committed.records.len(), changes.len());
            }
            // With several things wrong in one commit any of them may be told.
            (Err(_), Err(_)) if changes.len() > 1 => {}
            (Err(error), Err(why)) => assert_eq!(label(&error), why),
            (got, expected) => panic!("got {got:?}, expected {expected:?}"),
        }
    }

    fn restart(&mut self) {
        self.watchers.clear();
        self.runtime.block_on(self.store.close());
        self.store = Store::open(self.dir, &options()).expect("reopen");
        self.model.opened = (self.model.events.len(), self.model.revision);
    }

    fn watch(&mut self, resource: &ResourceTag, back: u64) {
        let (asked, current, oldest) =
            (self.model.revision.saturating_sub(back), self.model.revision, self.model.oldest(resource));
        match self.store.watch(resource, asked) {
            Ok(watcher) => {
                assert!(asked >= oldest, "watching from {asked} must fail: only {oldest} is held");
                self.watchers.push((watcher, resource.clone(), asked));
            }
            Err(error) => assert!(asked < oldest, "from {asked} of {oldest}..={current}: {error}"),
        }
        let future = HistoryError::Future { asked: current + 1, current };
        assert_eq!(self.store.watch(resource, current + 1).err(), Some(future));
    }

    fn drain(&mut self, which: usize) {
        if self.watchers.is_empty() {
            return;
        }
        let which = which % self.watchers.len();
        let (watcher, resource, seen) = &mut self.watchers[which];
        let missed = self.model.oldest(resource) > *seen;
        match watcher.poll_batch() {
            Err(error) => {
                assert!(missed, "{error}");
                self.watchers.remove(which);
            }
            Ok(batch) => {
                assert!(!missed, "events are gone and the watcher was not told");
                let wanted: Vec<ModelEvent> = self
                    .model
                    .events
                    .iter()
                    .filter(|event| event.key.resource == *resource && event.after.1 > *seen)
                    .cloned()
                    .collect();
                let got: Vec<ModelEvent> = batch.events.iter().map(|event| model_event(event)).collect();
                assert_eq!(got, wanted);
                assert_eq!(batch.revision, self.model.revision);
                *seen = self.model.revision;
            }
        }
    }

    fn list_at(&self, resource: &ResourceTag, namespace: Option<&str>, back: u64, page: usize) {
        let asked = self.model.revision.saturating_sub(back);
        let mut after: Option<(Arc<str>, Arc<str>)> = None;
        let mut got = Vec::new();
        loop {
            let cursor = after.as_ref().map(|(namespace, name)| (&**namespace, &**name));
            let range = Range { namespace, after: cursor, limit: page };
            let snapshot = match self.store.list_at(resource, asked, &range) {
                Ok(snapshot) => snapshot,
                Err(error) => return assert!(asked < self.model.oldest(resource), "{error}"),
            };
            assert!(asked >= self.model.oldest(resource));
            assert_eq!(snapshot.revision, asked);
            assert!(page == 0 || snapshot.items.len() <= page);
            after = snapshot.items.last().map(|last| (last.key.namespace.clone(), last.key.name.clone()));
            got.extend(snapshot.items.iter().map(|record| (record.key.clone(), fact(record))));
            if !snapshot.more {
                break;
            }
        }
        let wanted: Vec<(Key, Fact)> = self
            .model
            .at(asked)
            .iter()
            .filter(|(key, _)| key.resource == *resource && namespace.is_none_or(|n| *key.namespace == *n))
            .map(|(key, fact)| (key.clone(), fact.clone()))
            .collect();
        assert_eq!(got, wanted);
    }

    fn check_now(&self) {
        assert_eq!(self.store.revision(), self.model.revision);
        let now = self.model.now();
        let mut listed = Vec::new();
        for resource in RESOURCES {
            let snapshot = self.store.list(&ResourceTag::new(resource), &Range::default());
            assert_eq!(snapshot.revision, self.model.revision);
            listed.extend(snapshot.items);
        }
        let facts: BTreeMap<Key, Fact> =
            listed.iter().map(|record| (record.key.clone(), fact(record))).collect();
        assert_eq!(facts, now);
        for owner in 0..3 {
            let found = self.store.by_index("owner", &owner.to_string(), None);
            let got: Vec<Key> = found.items.iter().map(|record| record.key.clone()).collect();
            let wanted: Vec<Key> =
                now.iter().filter(|(_, fact)| fact.3 == owner).map(|(key, _)| key.clone()).collect();
            assert_eq!(got, wanted);
        }
        for key in now.keys() {
            assert_eq!(self.store.get(key).map(|record| fact(&record)), now.get(key).cloned());
        }
    }
}

fn options() -> StoreOptions {
    StoreOptions { history_events: WINDOW, ..StoreOptions::default() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_histories_agree_with_the_model(steps in prop::collection::vec(step(), 1..60)) {
        let dir = tempfile::tempdir().expect("directory");
        let mut run = Run::new(dir.path());
        for step in &steps {
            run.step(step);
        }
    }
}
