//! What a replica manager has asked for and not yet seen in its cache.
//!
//! The pod cache lags behind the API server. A manager that counted pods right after creating some would find too
//! few and create again; after deleting some it would find too many and delete others. So it notes the names that
//! it is about to create and the uids that it is about to delete, per owner uid, *before* it calls the API server,
//! and decides nothing new for that owner until the cache has shown all of them. This is the one piece of state that
//! a controller keeps between passes; it is rebuilt from nothing, since after a start the caches are fresh.
//!
//! Names are chosen here and not by the API server: so an event can be matched even when it comes before the answer
//! of the call that caused it. An expectation has no time-out. When an event was missed (the pod came and went while
//! a watch was interrupted), the owner asks the API server about the name: see [`Expectations::outstanding`].

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// What one owner waits for.
#[derive(Clone, Debug)]
pub(crate) struct Outstanding {
    /// When the newest expectation was noted.
    pub(crate) since: Instant,
    /// Names of created pods that the cache has not shown yet.
    pub(crate) creates: HashSet<String>,
    /// Uids of deleted pods that the cache still shows as living.
    pub(crate) deletes: HashSet<String>,
}

impl Outstanding {
    fn new() -> Self {
        Self { since: Instant::now(), creates: HashSet::new(), deletes: HashSet::new() }
    }

    fn is_empty(&self) -> bool {
        self.creates.is_empty() && self.deletes.is_empty()
    }
}

/// Expectations of all owners of one kind.
#[derive(Default)]
pub(crate) struct Expectations {
    owners: Mutex<HashMap<String, Outstanding>>,
}

impl Expectations {
    /// Notes a pod that is about to be created.
    pub(crate) fn expect_create(&self, owner: &str, name: &str) {
        self.note(owner, |outstanding| outstanding.creates.insert(name.to_owned()));
    }

    /// Notes a pod that is about to be deleted.
    pub(crate) fn expect_delete(&self, owner: &str, uid: &str) {
        self.note(owner, |outstanding| outstanding.deletes.insert(uid.to_owned()));
    }

    /// The cache showed the pod, or its creation failed.
    pub(crate) fn created(&self, owner: &str, name: &str) {
        self.settle(owner, |outstanding| outstanding.creates.remove(name));
    }

    /// The cache showed the pod's end, or its deletion failed.
    pub(crate) fn deleted(&self, owner: &str, uid: &str) {
        self.settle(owner, |outstanding| outstanding.deletes.remove(uid));
    }

    /// What the owner still waits for; `None` when it may decide anew.
    pub(crate) fn outstanding(&self, owner: &str) -> Option<Outstanding> {
        self.lock().get(owner).cloned()
    }

    /// The owner is gone.
    pub(crate) fn forget(&self, owner: &str) {
        self.lock().remove(owner);
    }

    fn note(&self, owner: &str, change: impl FnOnce(&mut Outstanding) -> bool) {
        let mut owners = self.lock();
        let outstanding = owners.entry(owner.to_owned()).or_insert_with(Outstanding::new);
        change(outstanding);
        outstanding.since = Instant::now();
    }

    fn settle(&self, owner: &str, change: impl FnOnce(&mut Outstanding) -> bool) {
        let mut owners = self.lock();
        if let Some(outstanding) = owners.get_mut(owner) {
            change(outstanding);
            if outstanding.is_empty() {
                owners.remove(owner);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Outstanding>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_waits_until_all_is_seen() {
        let expectations = Expectations::default();
        assert!(expectations.outstanding("o").is_none());
        expectations.expect_create("o", "a");
        expectations.expect_create("o", "b");
        expectations.expect_delete("o", "u");
        expectations.created("o", "a");
        expectations.created("o", "a");
        expectations.created("other", "b");
        assert_eq!(expectations.outstanding("o").map(|o| (o.creates.len(), o.deletes.len())), Some((1, 1)));
        expectations.deleted("o", "u");
        expectations.created("o", "b");
        assert!(expectations.outstanding("o").is_none());
        expectations.expect_delete("o", "u");
        expectations.forget("o");
        assert!(expectations.outstanding("o").is_none());
    }
}
