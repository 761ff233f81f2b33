//! Informer: a typed cache of one kind, kept current by list and watch.
//!
//! One task per informer owns the cache. It lists, then watches from the list's revision; when the watch expires or
//! fails it lists again and turns the difference into changes, so that observers never miss the last state of an
//! object (they may miss intermediate ones). The observers are called by that task, in order, and must not block:
//! they put a key into a queue or signal a task.

use crate::access::{Cluster, ListOptions, ResourceId, WatchItem};
use crate::api::{Kind, decode};
use cumulet_api::Status;
use futures_util::StreamExt;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Pause before a failed list is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// Namespace (empty for cluster scope) and name.
pub type Key = (String, String);

/// One change of an object. At least one side is set: only `new` for an object that appeared, only `old` for one
/// that is gone.
#[derive(Debug)]
pub struct Change<K> {
    /// The state before.
    pub old: Option<Arc<K>>,
    /// The state after.
    pub new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The newest state that the change tells of.
    pub fn latest(&self) -> Option<&Arc<K>> {
        self.new.as_ref().or(self.old.as_ref())
    }
}

type Observer<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

/// A cache of the objects of one kind.
pub struct Informer<K> {
    cache: RwLock<BTreeMap<Key, Arc<K>>>,
    observers: Mutex<Vec<Observer<K>>>,
    synced: watch::Sender<bool>,
}

impl<K: Kind> Informer<K> {
    /// Starts an informer; it runs until `shutdown`.
    pub fn spawn(cluster: Arc<dyn Cluster>, options: ListOptions, shutdown: CancellationToken) -> Arc<Self> {
        let informer = Arc::new(Self {
            cache: RwLock::new(BTreeMap::new()),
            observers: Mutex::new(Vec::new()),
            synced: watch::Sender::new(false),
        });
        let task = informer.clone();
        // Ends with the shutdown token; a panic in it would be a bug of an observer and shows as an aborted task.
        tokio::spawn(async move {
            tokio::select! {
                // Dropping the run half-way is sound: the cache is only changed between awaits.
                () = task.run(cluster, options) => {}
                () = shutdown.cancelled() => {}
            }
        });
        informer
    }

    /// Adds an observer and replays the objects already known to it as appeared. No change is missed or told twice.
    pub fn observe(&self, observer: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let mut observers = self.lock_observers();
        for object in self.list() {
            observer(&Change { old: None, new: Some(object) });
        }
        observers.push(Box::new(observer));
    }

    /// Waits until the first list is in the cache.
    pub async fn wait_synced(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.synced.subscribe().wait_for(|done| *done).await;
    }

    /// The object, as last heard of.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.read().get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// All objects.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.read().values().cloned().collect()
    }

    /// The objects of one namespace.
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let from = (namespace.to_owned(), String::new());
        self.read().range(from..).take_while(|((ns, _), _)| ns == namespace).map(|(_, o)| o.clone()).collect()
    }

    async fn run(&self, cluster: Arc<dyn Cluster>, options: ListOptions) {
        let resource = ResourceId::of::<K>();
        loop {
            if let Err(error) = self.list_and_watch(&*cluster, &resource, &options).await {
                tracing::debug!(resource = %resource.plural, %error, "watch ended; listing again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    async fn list_and_watch(
        &self,
        cluster: &dyn Cluster,
        resource: &ResourceId,
        options: &ListOptions,
    ) -> Result<(), Status> {
        let list = cluster.list(resource, options).await?;
        let mut objects = HashMap::with_capacity(list.items.len());
        for item in &list.items {
            let object: K = decode(item)?;
            objects.insert(key(&object), Arc::new(object));
        }
        self.replace(objects);
        self.synced.send_replace(true);
        let mut events = cluster.watch(resource, options, list.revision).await?;
        while let Some(event) = events.next().await {
            match event? {
                WatchItem::Added(bytes) | WatchItem::Modified(bytes) => {
                    let object: K = decode(&bytes)?;
                    self.apply(key(&object), Some(Arc::new(object)));
                }
                WatchItem::Deleted(bytes) => {
                    let object: K = decode(&bytes)?;
                    self.apply(key(&object), None);
                }
                WatchItem::Bookmark(_) => {}
            }
        }
        Ok(())
    }

    /// Makes the cache equal to a fresh list.
    fn replace(&self, objects: HashMap<Key, Arc<K>>) {
        let gone: Vec<Key> = self.read().keys().filter(|k| !objects.contains_key(*k)).cloned().collect();
        for key in gone {
            self.apply(key, None);
        }
        for (key, object) in objects {
            let known = self.read().get(&key).and_then(|o| o.metadata().resource_version.clone());
            if known.is_none() || known != object.metadata().resource_version {
                self.apply(key, Some(object));
            }
        }
    }

    fn apply(&self, key: Key, new: Option<Arc<K>>) {
        // Held across the cache change, so that `observe` replays a state that no notification overtakes.
        let observers = self.lock_observers();
        let old = {
            let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
            match &new {
                Some(object) => cache.insert(key, object.clone()),
                None => cache.remove(&key),
            }
        };
        if old.is_some() || new.is_some() {
            let change = Change { old, new };
            observers.iter().for_each(|observer| observer(&change));
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<Key, Arc<K>>> {
        self.cache.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_observers(&self) -> MutexGuard<'_, Vec<Observer<K>>> {
        self.observers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key of an object in an informer's cache.
pub fn key<K: Kind>(object: &K) -> Key {
    let meta = object.metadata();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}
