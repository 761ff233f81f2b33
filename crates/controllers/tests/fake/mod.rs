//! A cluster in memory for tests: revisions, watches, conflicts, graceful deletion, finalizers and subresources as
//! the API server has them. What is simpler: no defaulting, no validation, and a node that starts pods at once.
//!
//! Watches can be made slow and unreliable, which is what the controllers must bear.

use bytes::Bytes;
use cumulet_api::Status;
use cumulet_cluster::access::ResourceInfo;
use cumulet_cluster::{
    BoxFuture, BoxStream, Cluster, DeleteOptions, List, ListOptions, ObjectRef, PatchKind, Propagation,
    ResourceId, WatchItem,
};
use futures_util::FutureExt;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;

type At = (String, String, String);

/// One change, as a watch tells it.
#[derive(Clone)]
pub(crate) struct Record {
    pub(crate) resource: String,
    pub(crate) old: Option<Value>,
    pub(crate) new: Option<Value>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<At, Value>,
    log: Vec<Record>,
    uids: u64,
}

/// The cluster.
pub(crate) struct Fake {
    state: Mutex<State>,
    revision: watch::Sender<usize>,
    chaos: Mutex<Chaos>,
}

/// How bad the watches are.
#[derive(Clone, Copy, Default)]
pub(crate) struct Chaos {
    /// Longest delay of an event, in milliseconds.
    pub(crate) lag_ms: u64,
    /// One in so many events ends the watch with `Expired`; 0 for never.
    pub(crate) expire_one_in: u32,
}

/// group, version, plural, kind, namespaced
const RESOURCES: [(&str, &str, &str, &str, bool); 16] = [
    ("", "v1", "namespaces", "Namespace", false),
    ("", "v1", "nodes", "Node", false),
    ("", "v1", "pods", "Pod", true),
    ("", "v1", "persistentvolumes", "PersistentVolume", false),
    ("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", true),
    ("storage.k8s.io", "v1", "storageclasses", "StorageClass", false),
    ("", "v1", "services", "Service", true),
    ("", "v1", "endpoints", "Endpoints", true),
    ("", "v1", "configmaps", "ConfigMap", true),
    ("", "v1", "serviceaccounts", "ServiceAccount", true),
    ("", "v1", "events", "Event", true),
    ("", "v1", "replicationcontrollers", "ReplicationController", true),
    ("apps", "v1", "replicasets", "ReplicaSet", true),
    ("apps", "v1", "deployments", "Deployment", true),
    ("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", true),
    ("coordination.k8s.io", "v1", "leases", "Lease", true),
];

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State::default()),
            revision: watch::Sender::new(0),
            chaos: Mutex::new(Chaos::default()),
        })
    }

    pub(crate) fn set_chaos(&self, chaos: Chaos) {
        *self.chaos.lock().expect("not poisoned") = chaos;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    /// All objects of a resource.
    pub(crate) fn all(&self, plural: &str) -> Vec<Value> {
        self.lock().objects.iter().filter(|((p, ..), _)| p == plural).map(|(_, o)| o.clone()).collect()
    }

    pub(crate) fn find(&self, plural: &str, ns: &str, name: &str) -> Option<Value> {
        self.lock().objects.get(&(plural.into(), ns.into(), name.into())).cloned()
    }

    /// Every change so far that is not about events.
    pub(crate) fn log(&self) -> Vec<Record> {
        self.lock().log.iter().filter(|r| r.resource != "events").cloned().collect()
    }

    /// Creates an object of a kind of [`RESOURCES`].
    pub(crate) fn put(&self, plural: &str, object: Value) -> Value {
        let ns = object["metadata"]["namespace"].as_str().map(str::to_owned);
        self.create_now(plural, ns.as_deref(), object).expect("a new object")
    }

    /// Changes the main part of an object.
    pub(crate) fn edit(&self, plural: &str, ns: &str, name: &str, change: impl Fn(&mut Value)) {
        self.change(plural, ns, name, None, |o| {
            change(o);
            Ok(())
        })
        .expect("the object exists");
    }

    /// Changes the status of an object.
    pub(crate) fn edit_status(&self, plural: &str, ns: &str, name: &str, status: Value) {
        let set = |o: &mut Value| {
            o["status"] = status.clone();
            Ok(())
        };
        let _ = self.change(plural, ns, name, Some("status"), set);
    }

    pub(crate) fn remove(
        &self,
        plural: &str,
        ns: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<(), Status> {
        self.delete_now(plural, ns, name, options)
    }

    fn create_now(&self, plural: &str, ns: Option<&str>, mut object: Value) -> Result<Value, Status> {
        let (group, version, _, kind, _) = row(plural);
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        assert!(!name.is_empty(), "the controllers choose names themselves: {object}");
        let at = (plural.to_owned(), ns.unwrap_or("").to_owned(), name.clone());
        let mut state = self.lock();
        if let Some(ns) = ns {
            let namespace = state.objects.get(&("namespaces".into(), String::new(), ns.into()));
            let going = namespace.is_none_or(|n| !n["metadata"]["deletionTimestamp"].is_null());
            if going {
                let why =
                    format!("unable to create new content in namespace {ns} because it is being terminated");
                return Err(Status::new(cumulet_api::StatusReason::Forbidden, why));
            }
        }
        if state.objects.contains_key(&at) {
            return Err(Status::already_exists(group, plural, &name));
        }
        state.uids += 1;
        object["apiVersion"] =
            if group.is_empty() { version.into() } else { format!("{group}/{version}").into() };
        object["kind"] = kind.into();
        object["metadata"]["uid"] = format!("uid-{}", state.uids).into();
        object["metadata"]["generation"] = 1.into();
        object["metadata"]["creationTimestamp"] =
            json!(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::now()));
        if plural != "endpoints"
            && plural != "configmaps"
            && plural != "events"
            && !object["status"].is_null()
        {
            object.as_object_mut().expect("a map").remove("status");
        }
        if plural == "namespaces" {
            object["spec"]["finalizers"] = json!(["kubernetes"]);
        }
        Ok(self.commit(state, at, Some(object)))
    }

    /// Stores or removes an object and tells the watches.
    fn commit(&self, mut state: MutexGuard<'_, State>, at: At, new: Option<Value>) -> Value {
        let revision = state.log.len() + 1;
        let old = state.objects.get(&at).cloned();
        let mut stored = new.clone().or_else(|| old.clone()).unwrap_or_default();
        stored["metadata"]["resourceVersion"] = revision.to_string().into();
        match &new {
            Some(_) => state.objects.insert(at.clone(), stored.clone()),
            None => state.objects.remove(&at),
        };
        state.log.push(Record {
            resource: at.0,
            old: if new.is_none() { Some(stored.clone()) } else { old },
            new: new.map(|_| stored.clone()),
        });
        drop(state);
        self.revision.send_replace(revision);
        stored
    }

    fn change(
        &self,
        plural: &str,
        ns: &str,
        name: &str,
        sub: Option<&str>,
        change: impl Fn(&mut Value) -> Result<(), Status>,
    ) -> Result<Value, Status> {
        let (group, ..) = row(plural);
        let at = (plural.to_owned(), ns.to_owned(), name.to_owned());
        let state = self.lock();
        let Some(old) = state.objects.get(&at).cloned() else {
            return Err(Status::not_found(group, plural, name));
        };
        let mut new = old.clone();
        change(&mut new)?;
        let wanted = &new["metadata"]["resourceVersion"];
        if !wanted.is_null() && *wanted != old["metadata"]["resourceVersion"] {
            return Err(Status::conflict(group, plural, name, "the object has been modified"));
        }
        let kept = match sub {
            Some("status") => ["spec", "metadata"].as_slice(),
            Some("finalize") => &["metadata", "status"],
            _ => &["status"],
        };
        for part in kept {
            new[*part] = old[*part].clone();
        }
        for field in ["uid", "creationTimestamp", "generation", "deletionTimestamp", "resourceVersion"] {
            new["metadata"][field] = old["metadata"][field].clone();
        }
        strip_nulls(&mut new);
        if new == old {
            return Ok(old);
        }
        if new["spec"] != old["spec"] {
            new["metadata"]["generation"] = (old["metadata"]["generation"].as_i64().unwrap_or(0) + 1).into();
        }
        let gone = !new["metadata"]["deletionTimestamp"].is_null() && is_free(plural, &new);
        Ok(self.commit(state, at, (!gone).then_some(new)))
    }

    fn delete_now(&self, plural: &str, ns: &str, name: &str, options: &DeleteOptions) -> Result<(), Status> {
        let (group, ..) = row(plural);
        let at = (plural.to_owned(), ns.to_owned(), name.to_owned());
        let state = self.lock();
        let Some(mut object) = state.objects.get(&at).cloned() else {
            return Err(Status::not_found(group, plural, name));
        };
        let differs = |wanted: &Option<String>, field: &str| {
            wanted.as_deref().is_some_and(|w| object["metadata"][field].as_str() != Some(w))
        };
        if differs(&options.uid, "uid") || differs(&options.resource_version, "resourceVersion") {
            return Err(Status::conflict(group, plural, name, "the precondition failed"));
        }
        let finalizer = match options.propagation {
            Some(Propagation::Foreground) => Some("foregroundDeletion"),
            Some(Propagation::Orphan) => Some("orphan"),
            _ => None,
        };
        let before = object.clone();
        if let Some(finalizer) = finalizer {
            let mut finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            if !finalizers.contains(&finalizer.into()) {
                finalizers.push(finalizer.into());
            }
            object["metadata"]["finalizers"] = finalizers.into();
        }
        let graceful = plural == "pods"
            && options.grace_period_seconds != Some(0)
            && object["spec"]["nodeName"].is_string();
        if object["metadata"]["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        if !graceful && is_free(plural, &object) {
            self.commit(state, at, None);
        } else if object != before {
            self.commit(state, at, Some(object));
        }
        Ok(())
    }

    fn events(
        self: Arc<Self>,
        plural: String,
        options: ListOptions,
        from: usize,
    ) -> BoxStream<'static, Result<WatchItem, Status>> {
        let news = self.revision.subscribe();
        let start = (self, news, from, false);
        Box::pin(futures_util::stream::unfold(start, move |(fake, mut news, mut next, ended)| {
            let (plural, options) = (plural.clone(), options.clone());
            async move {
                if ended {
                    return None;
                }
                loop {
                    let record = fake.lock().log.get(next).cloned();
                    let Some(record) = record else {
                        news.changed().await.ok()?;
                        continue;
                    };
                    next += 1;
                    let shown = record.new.as_ref().or(record.old.as_ref()).expect("one side is set");
                    if record.resource != plural || !matches(&options, shown) {
                        continue;
                    }
                    let chaos = *fake.chaos.lock().expect("not poisoned");
                    if chaos.lag_ms > 0 {
                        tokio::time::sleep(Duration::from_millis(rand::random::<u64>() % chaos.lag_ms)).await;
                    }
                    if chaos.expire_one_in > 0 && rand::random::<u32>().is_multiple_of(chaos.expire_one_in) {
                        return Some((Err(Status::expired("too old")), (fake, news, next, true)));
                    }
                    let bytes = Bytes::from(shown.to_string());
                    let item = match (&record.old, &record.new) {
                        (None, _) => WatchItem::Added(bytes),
                        (_, Some(_)) => WatchItem::Modified(bytes),
                        (_, None) => WatchItem::Deleted(bytes),
                    };
                    return Some((Ok(item), (fake, news, next, false)));
                }
            }
        }))
    }

    fn patch_now(
        &self,
        at: &ObjectRef,
        sub: Option<&str>,
        kind: PatchKind,
        patch: &Value,
    ) -> Result<Value, Status> {
        let ns = at.namespace.as_deref().unwrap_or("");
        self.change(&at.resource.plural, ns, &at.name, sub, |object| {
            // Without one in the patch, a patch has no precondition.
            object["metadata"]["resourceVersion"] = Value::Null;
            merge(object, patch, kind == PatchKind::Strategic);
            Ok(())
        })
    }
}

fn row(plural: &str) -> (&'static str, &'static str, &'static str, &'static str, bool) {
    *RESOURCES.iter().find(|r| r.2 == plural).unwrap_or_else(|| panic!("no resource {plural}"))
}

fn is_free(plural: &str, object: &Value) -> bool {
    let empty = |v: &Value| v.as_array().is_none_or(Vec::is_empty);
    empty(&object["metadata"]["finalizers"])
        && (plural != "namespaces" || empty(&object["spec"]["finalizers"]))
}

fn matches(options: &ListOptions, object: &Value) -> bool {
    assert!(options.label_selector.is_none(), "not needed so far");
    let named = options.field_selector.as_deref().and_then(|f| f.strip_prefix("metadata.name="));
    let in_namespace = options.namespace.as_deref().is_none_or(|ns| object["metadata"]["namespace"] == ns);
    in_namespace && named.is_none_or(|name| object["metadata"]["name"] == name)
}

/// RFC 7396, and for strategic patches lists of conditions merged by type.
fn merge(target: &mut Value, patch: &Value, strategic: bool) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in fields {
        if value.is_null() {
            target.as_object_mut().expect("a map").remove(key);
        } else if strategic && key == "conditions" {
            let list = target[key].as_array().cloned().unwrap_or_default();
            let patched: Vec<Value> = value.as_array().expect("a list").clone();
            let kept = list.into_iter().filter(|old| !patched.iter().any(|new| new["type"] == old["type"]));
            target[key] = kept.chain(patched.iter().cloned()).collect();
        } else {
            merge(&mut target[key], value, strategic);
        }
    }
}

fn strip_nulls(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.retain(|_, v| !v.is_null());
        fields.values_mut().for_each(strip_nulls);
    }
}

fn encoded(object: Value) -> Bytes {
    Bytes::from(object.to_string())
}

/// The cluster as the controllers see it.
pub(crate) struct Handle(pub(crate) Arc<Fake>);

impl Cluster for Handle {
    fn get<'a>(&'a self, at: &'a ObjectRef) -> BoxFuture<'a, Result<Bytes, Status>> {
        let found = self.0.find(&at.resource.plural, at.namespace.as_deref().unwrap_or(""), &at.name);
        let result = found
            .map(encoded)
            .ok_or_else(|| Status::not_found(&at.resource.group, &at.resource.plural, &at.name));
        async move { result }.boxed()
    }

    fn list<'a>(
        &'a self,
        resource: &'a ResourceId,
        options: &'a ListOptions,
    ) -> BoxFuture<'a, Result<List, Status>> {
        let state = self.0.lock();
        let of = |(p, ..): &At| *p == resource.plural;
        let found = state.objects.iter().filter(|(at, o)| of(at) && matches(options, o));
        let items = found.map(|(_, o)| encoded(o.clone())).collect();
        let list = List { items, revision: state.log.len() as u64 };
        async move { Ok(list) }.boxed()
    }

    fn watch<'a>(
        &'a self,
        resource: &'a ResourceId,
        options: &'a ListOptions,
        from: u64,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<WatchItem, Status>>, Status>> {
        let from = usize::try_from(from).expect("small");
        let stream = self.0.clone().events(resource.plural.to_string(), options.clone(), from);
        async move { Ok(stream) }.boxed()
    }

    fn create<'a>(
        &'a self,
        resource: &'a ResourceId,
        namespace: Option<&'a str>,
        object: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Status>> {
        async move {
            tokio::task::yield_now().await;
            let object = serde_json::from_slice(&object).expect("JSON");
            self.0.create_now(&resource.plural, namespace, object).map(encoded)
        }
        .boxed()
    }

    fn create_sub<'a>(
        &'a self,
        at: &'a ObjectRef,
        subresource: &'a str,
        object: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Status>> {
        async move {
            tokio::task::yield_now().await;
            assert_eq!((subresource, &*at.resource.plural), ("binding", "pods"));
            let binding: Value = serde_json::from_slice(&object).expect("JSON");
            let ns = at.namespace.as_deref().unwrap_or("");
            let bound = self.0.change("pods", ns, &at.name, None, |pod| {
                let other = pod["metadata"]["uid"] != binding["metadata"]["uid"];
                if other
                    || pod["spec"]["nodeName"].is_string()
                    || !pod["metadata"]["deletionTimestamp"].is_null()
                {
                    return Err(Status::conflict("", "pods", &at.name, "it is bound or going"));
                }
                pod["spec"]["nodeName"] = binding["target"]["name"].clone();
                Ok(())
            })?;
            Ok(encoded(bound))
        }
        .boxed()
    }

    fn update<'a>(
        &'a self,
        at: &'a ObjectRef,
        subresource: Option<&'a str>,
        object: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Status>> {
        async move {
            tokio::task::yield_now().await;
            let new: Value = serde_json::from_slice(&object).expect("JSON");
            let ns = at.namespace.as_deref().unwrap_or("");
            let set = |object: &mut Value| {
                *object = new.clone();
                Ok(())
            };
            self.0.change(&at.resource.plural, ns, &at.name, subresource, set).map(encoded)
        }
        .boxed()
    }

    fn patch<'a>(
        &'a self,
        at: &'a ObjectRef,
        subresource: Option<&'a str>,
        kind: PatchKind,
        patch: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Status>> {
        async move {
            tokio::task::yield_now().await;
            let patch: Value = serde_json::from_slice(&patch).expect("JSON");
            self.0.patch_now(at, subresource, kind, &patch).map(encoded)
        }
        .boxed()
    }

    fn delete<'a>(
        &'a self,
        at: &'a ObjectRef,
        options: &'a DeleteOptions,
    ) -> BoxFuture<'a, Result<(), Status>> {
        async move {
            tokio::task::yield_now().await;
            self.0.delete_now(&at.resource.plural, at.namespace.as_deref().unwrap_or(""), &at.name, options)
        }
        .boxed()
    }

    fn resources(&self) -> Vec<ResourceInfo> {
        let info = |(group, version, plural, kind, namespaced): &(
            &'static str,
            &'static str,
            &'static str,
            &str,
            bool,
        )| {
            ResourceInfo {
                id: ResourceId::new(group, version, plural),
                kind: (*kind).to_owned(),
                namespaced: *namespaced,
            }
        };
        RESOURCES.iter().map(info).collect()
    }
}

/// A node that runs every pod bound to it: ready at once, with an address; gone at once when deleted. Pods whose
/// image is `broken` never become ready.
pub(crate) async fn run_node(fake: Arc<Fake>) {
    let mut news = fake.revision.subscribe();
    let mut addresses = 0u32;
    loop {
        for pod in fake.all("pods") {
            let (ns, name) = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
            if !pod["spec"]["nodeName"].is_string() {
                continue;
            }
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
                let _ = fake.remove("pods", ns, name, &options);
            } else if pod["status"]["phase"].is_null() {
                addresses += 1;
                let ready = if pod["spec"]["containers"][0]["image"] == "broken" { "False" } else { "True" };
                let status = json!({"phase": "Running", "podIP": format!("10.1.{}.{}", addresses / 250, addresses % 250),
                    "conditions": [{"type": "Ready", "status": ready}]});
                fake.edit_status("pods", ns, name, status);
            }
        }
        if news.changed().await.is_err() {
            return;
        }
    }
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}
