//! All controllers together on a cluster in memory: they reach the wanted state from wherever they are, keep their
//! bounds on the way, and then write nothing more.

mod fake;

use cumulet_cluster::{DeleteOptions, Propagation};
use cumulet_controllers::{Controllers, ControllersConfig, spawn};
use fake::{Chaos, Fake, Handle, run_node, text};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How long a level may take to be reached. Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    fake: Arc<Fake>,
    controllers: Controllers,
    shutdown: CancellationToken,
    node: tokio::task::JoinHandle<()>,
}

impl World {
    /// Controllers over a cluster with one node and the namespace `default`; they go through everything every
    /// 50 ms, so that a write without need would show.
    async fn start(fake: Arc<Fake>) -> Self {
        if fake.find("nodes", "", "n").is_none() {
            fake.put("nodes", json!({"metadata": {"name": "n"}}));
            let room = json!({"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "500"}});
            fake.edit_status("nodes", "", "n", room);
            fake.put("namespaces", json!({"metadata": {"name": "default"}}));
        }
        let shutdown = CancellationToken::new();
        let mut config = ControllersConfig::new("n");
        config.resync = Duration::from_millis(50);
        config.root_ca_pem = Some("pem".to_owned());
        config.api_endpoint = Some("10.0.0.1:6443".parse().expect("an address"));
        let controllers = spawn(Arc::new(Handle(fake.clone())), config, shutdown.clone());
        controllers.synced().await;
        let node = tokio::spawn(run_node(fake.clone()));
        Self { fake, controllers, shutdown, node }
    }

    /// Waits until a level is reached.
    async fn until(&self, what: &str, reached: impl Fn(&Fake) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !reached(&self.fake) {
            if Instant::now() > deadline {
                let shown = |plural: &str| {
                    let all = self.fake.all(plural);
                    all.iter().map(|o| format!("  {plural} {o}\n")).collect::<String>()
                };
                let objects: String =
                    ["deployments", "replicasets", "pods"].iter().map(|p| shown(p)).collect();
                panic!("not reached: {what}\n{objects}{:#?}", self.controllers.status().snapshot());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Checks that nothing is written any more although every controller looks at everything several times.
    async fn is_at_rest(&self) {
        let passes = || self.controllers.status().snapshot().iter().map(|s| s.passes).sum::<u64>();
        // News that are on their way may still cause writes: rest is reached when a while brings none.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (before, count) = (self.fake.log().len(), passes());
            tokio::time::sleep(Duration::from_millis(400)).await;
            let log = self.fake.log();
            if log.len() == before && passes() > count {
                return;
            }
            let last: Vec<_> =
                log[before.min(log.len())..].iter().map(|r| format!("{} {:?}", r.resource, r.new)).collect();
            assert!(Instant::now() < deadline, "writes go on and on: {last:#?}");
        }
    }

    async fn stop(self) -> Arc<Fake> {
        self.shutdown.cancel();
        self.controllers.join().await;
        self.node.abort();
        self.fake
    }
}

fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": {
            "replicas": replicas, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 2,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 2, "maxUnavailable": 1}},
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": image}]}},
        },
    })
}

fn service(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default"}, "spec": {
        "clusterIP": "10.2.0.1", "selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]}})
}

fn set_image(fake: &Fake, name: &str, image: &str) {
    fake.edit("deployments", "default", name, |d| {
        d["spec"]["template"]["spec"]["containers"][0]["image"] = image.into()
    });
}

fn set_replicas(fake: &Fake, name: &str, replicas: i32) {
    fake.edit("deployments", "default", name, |d| d["spec"]["replicas"] = replicas.into());
}

/// True when the deployment has exactly its replicas, all ready, of the present image, and its status says so.
fn is_rolled_out(fake: &Fake, name: &str) -> bool {
    let Some(d) = fake.find("deployments", "default", name) else { return false };
    let wanted = d["spec"]["replicas"].as_i64().unwrap_or(1);
    let image = &d["spec"]["template"]["spec"]["containers"][0]["image"];
    let pods: Vec<Value> =
        fake.all("pods").into_iter().filter(|p| p["metadata"]["labels"]["app"] == name).collect();
    let good = |p: &Value| is_ready(p) && p["spec"]["containers"][0]["image"] == *image;
    let n = |field: &str| d["status"][field].as_i64().unwrap_or(0);
    pods.len() as i64 == wanted
        && pods.iter().all(good)
        && n("observedGeneration") == d["metadata"]["generation"].as_i64().unwrap_or(0)
        && [n("replicas"), n("updatedReplicas"), n("readyReplicas"), n("availableReplicas")] == [wanted; 4]
        && condition(&d, "Progressing") == "NewReplicaSetAvailable"
}

fn is_ready(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null()
        && pod["status"]["conditions"]
            .as_array()
            .is_some_and(|c| c.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

fn condition(object: &Value, type_: &str) -> String {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().find(|c| c["type"] == type_).map(|c| text(&c["reason"]).to_owned()).unwrap_or_default()
}

/// Addresses of ready endpoints in the slices, and in the Endpoints object.
fn addresses(fake: &Fake, service: &str) -> (Vec<String>, Vec<String>) {
    let slices = fake.all("endpointslices");
    let mine = slices.iter().filter(|s| s["metadata"]["labels"]["kubernetes.io/service-name"] == service);
    let endpoints = mine.flat_map(|s| s["endpoints"].as_array().cloned().unwrap_or_default());
    let ready = endpoints.filter(|e| e["conditions"]["ready"] == true);
    let mut sliced: Vec<String> = ready.map(|e| text(&e["addresses"][0]).to_owned()).collect();
    let object = fake.find("endpoints", "default", service).unwrap_or_default();
    let subset = object["subsets"][0]["addresses"].as_array().cloned().unwrap_or_default();
    let mut old: Vec<String> = subset.iter().map(|a| text(&a["ip"]).to_owned()).collect();
    sliced.sort();
    old.sort();
    (sliced, old)
}

fn pod_addresses(fake: &Fake, app: &str) -> Vec<String> {
    let pods = fake.all("pods");
    let ready = pods.iter().filter(|p| p["metadata"]["labels"]["app"] == app && is_ready(p));
    let mut ips: Vec<String> = ready.map(|p| text(&p["status"]["podIP"]).to_owned()).collect();
    ips.sort();
    ips
}

/// Creations of pods, by the image they were created with.
fn created(fake: &Fake, image: &str) -> usize {
    let log = fake.log();
    let pods = log.iter().filter(|r| r.resource == "pods" && r.old.is_none());
    pods.filter_map(|r| r.new.as_ref()).filter(|p| p["spec"]["containers"][0]["image"] == image).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_lives_its_life() {
    let world = World::start(Fake::new()).await;
    let fake = &world.fake;
    fake.put("services", service("web"));
    fake.put("deployments", deployment("web", 3, "one"));
    world.until("three replicas", |f| is_rolled_out(f, "web")).await;
    world
        .until("endpoints of three", |f| {
            addresses(f, "web") == (pod_addresses(f, "web"), pod_addresses(f, "web"))
        })
        .await;
    world.is_at_rest().await;
    assert_eq!(created(fake, "one"), 3, "no pod was created twice");

    set_replicas(fake, "web", 30);
    let start = Instant::now();
    world.until("thirty replicas", |f| is_rolled_out(f, "web")).await;
    println!("0 -> 30 in {:?}", start.elapsed());
    set_image(fake, "web", "two");
    world.until("the second revision", |f| is_rolled_out(f, "web")).await;
    set_replicas(fake, "web", 4);
    world.until("four replicas", |f| is_rolled_out(f, "web")).await;
    world
        .until("endpoints of four", |f| {
            addresses(f, "web") == (pod_addresses(f, "web"), pod_addresses(f, "web"))
        })
        .await;

    // A roll-back, as kubectl does it, gives the old ReplicaSet the next number.
    set_image(fake, "web", "one");
    world.until("the first revision again", |f| is_rolled_out(f, "web")).await;
    world.is_at_rest().await;
    let d = fake.find("deployments", "default", "web").expect("it exists");
    assert_eq!(d["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "3");
    assert_eq!(fake.all("replicasets").len(), 2);

    // The history is cut.
    for image in ["three", "four", "five"] {
        set_image(fake, "web", image);
        world.until(image, |f| is_rolled_out(f, "web")).await;
    }
    world.until("two old sets", |f| f.all("replicasets").len() == 3).await;

    fake.remove("deployments", "default", "web", &DeleteOptions::default()).expect("it exists");
    world.until("everything gone", |f| f.all("pods").is_empty() && f.all("replicasets").is_empty()).await;
    fake.remove("services", "default", "web", &DeleteOptions::default()).expect("it exists");
    world.until("no slices", |f| f.all("endpointslices").is_empty() && f.all("endpoints").is_empty()).await;
    world.is_at_rest().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_keeps_its_bounds_with_lagging_caches() {
    let world = World::start(Fake::new()).await;
    let fake = &world.fake;
    fake.put("deployments", deployment("web", 8, "one"));
    world.until("eight replicas", |f| is_rolled_out(f, "web")).await;
    fake.set_chaos(Chaos { lag_ms: 20, expire_one_in: 40 });
    let from = fake.log().len();
    for image in ["two", "three"] {
        set_image(fake, "web", image);
        world.until(image, |f| is_rolled_out(f, "web")).await;
    }
    // Rollouts that are overtaken by the next one.
    for image in ["four", "five", "six", "four", "seven"] {
        set_image(fake, "web", image);
        tokio::time::sleep(Duration::from_millis(rand::random::<u64>() % 60)).await;
    }
    world.until("the last one", |f| is_rolled_out(f, "web")).await;
    let mut pods: HashMap<String, Value> = HashMap::new();
    let mut sets: HashMap<String, i64> = HashMap::new();
    for (i, record) in fake.log().into_iter().enumerate() {
        let object = record.new.as_ref().or(record.old.as_ref()).expect("one side is set");
        let uid = text(&object["metadata"]["uid"]).to_owned();
        match (record.resource.as_str(), &record.new) {
            ("pods", Some(pod)) => _ = pods.insert(uid, pod.clone()),
            ("pods", None) => _ = pods.remove(&uid),
            ("replicasets", Some(set)) => _ = sets.insert(uid, set["spec"]["replicas"].as_i64().unwrap_or(0)),
            ("replicasets", None) => _ = sets.remove(&uid),
            _ => {}
        }
        if i >= from {
            let (ready, asked) = (pods.values().filter(|p| is_ready(p)).count(), sets.values().sum::<i64>());
            assert!(ready >= 7, "only {ready} ready at change {i}");
            assert!(asked <= 10, "{asked} asked for at change {i}");
        }
    }
    assert_eq!((created(fake, "two"), created(fake, "three")), (8, 8), "no pod was created twice");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_converge() {
    for round in 0..6u32 {
        let mut world = World::start(Fake::new()).await;
        world.fake.set_chaos(Chaos { lag_ms: 8, expire_one_in: 30 });
        world.fake.put("services", service("a"));
        world.fake.put("deployments", deployment("a", 3, "one"));
        world.fake.put("deployments", deployment("b", 2, "one"));
        for _ in 0..30 {
            let fake = &world.fake;
            let name = if rand::random() { "a" } else { "b" };
            match rand::random::<u32>() % 9 {
                0 | 1 => set_replicas(fake, name, (rand::random::<u32>() % 12) as i32),
                2 | 3 => set_image(fake, name, ["one", "two", "broken"][rand::random::<u32>() as usize % 3]),
                4 | 5 => remove_random(fake, "pods"),
                6 => remove_random(fake, "replicasets"),
                7 => fake.edit("deployments", "default", name, |d| {
                    let paused = d["spec"]["paused"] == true;
                    d["spec"]["paused"] = (!paused).into();
                }),
                // The controllers die and start anew.
                _ => world = World::start(world.stop().await).await,
            }
            tokio::time::sleep(Duration::from_millis(rand::random::<u64>() % 30)).await;
        }
        let fake = &world.fake;
        for name in ["a", "b"] {
            fake.edit("deployments", "default", name, |d| {
                d["spec"]["paused"] = false.into();
                d["spec"]["template"]["spec"]["containers"][0]["image"] = "one".into();
            });
        }
        world.until(&format!("round {round}"), |f| is_rolled_out(f, "a") && is_rolled_out(f, "b")).await;
        world
            .until("endpoints", |f| addresses(f, "a") == (pod_addresses(f, "a"), pod_addresses(f, "a")))
            .await;
        world.is_at_rest().await;
        world.stop().await;
    }
}

fn remove_random(fake: &Fake, plural: &str) {
    let all = fake.all(plural);
    if !all.is_empty() {
        let victim = &all[rand::random::<u32>() as usize % all.len()];
        let _ = fake.remove(plural, "default", text(&victim["metadata"]["name"]), &DeleteOptions::default());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_go_in_the_foreground_background_and_as_orphans() {
    let world = World::start(Fake::new()).await;
    let fake = &world.fake;
    for name in ["fg", "bg", "orphan"] {
        fake.put("deployments", deployment(name, 2, "one"));
    }
    world.until("all run", |f| ["fg", "bg", "orphan"].iter().all(|name| is_rolled_out(f, name))).await;
    let with = |p| DeleteOptions { propagation: Some(p), ..DeleteOptions::default() };
    fake.remove("deployments", "default", "fg", &with(Propagation::Foreground)).expect("it exists");
    fake.remove("deployments", "default", "bg", &with(Propagation::Background)).expect("it exists");
    fake.remove("deployments", "default", "orphan", &with(Propagation::Orphan)).expect("it exists");
    world.until("deployments gone", |f| f.all("deployments").is_empty()).await;
    world
        .until("only the orphans stay", |f| f.all("pods").len() == 2 && f.all("replicasets").len() == 1)
        .await;
    let order: Vec<String> = fake
        .log()
        .iter()
        .filter(|r| r.new.is_none())
        .filter_map(|r| {
            r.old
                .as_ref()
                .filter(|o| text(&o["metadata"]["labels"]["app"]) == "fg")
                .map(|_| r.resource.clone())
        })
        .collect();
    assert_eq!(order, ["pods", "pods", "replicasets", "deployments"], "the foreground goes from below");
    let set = &fake.all("replicasets")[0];
    assert!(set["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty), "{set}");
    // A new deployment with the same selector adopts what is left.
    fake.put("deployments", deployment("orphan", 2, "one"));
    world.until("adopted", |f| is_rolled_out(f, "orphan")).await;
    assert_eq!((fake.all("replicasets").len(), created(fake, "one")), (1, 6), "nothing new was needed");
    world.is_at_rest().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_goes_with_all_that_is_in_it() {
    let world = World::start(Fake::new()).await;
    let fake = &world.fake;
    fake.put("namespaces", json!({"metadata": {"name": "other"}}));
    world.until("its account", |f| f.find("serviceaccounts", "other", "default").is_some()).await;
    world.until("its CA", |f| f.find("configmaps", "other", "kube-root-ca.crt").is_some()).await;
    let mut d = deployment("web", 5, "one");
    d["metadata"]["namespace"] = "other".into();
    fake.put("deployments", d);
    world.until("five pods", |f| f.all("pods").iter().filter(|p| is_ready(p)).count() == 5).await;
    fake.remove("namespaces", "", "other", &DeleteOptions::default()).expect("it exists");
    world.until("gone", |f| f.find("namespaces", "", "other").is_none()).await;
    let left = ["pods", "replicasets", "deployments", "serviceaccounts", "configmaps"];
    for plural in left {
        assert!(fake.all(plural).iter().all(|o| o["metadata"]["namespace"] != "other"), "{plural}");
    }
    world.is_at_rest().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_waits_and_says_why() {
    let world = World::start(Fake::new()).await;
    let fake = &world.fake;
    let pod = |name: &str, cpu: &str| {
        json!({"metadata": {"name": name, "namespace": "default"}, "spec": {"containers": [
            {"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]}})
    };
    fake.put("pods", pod("large", "3"));
    world.until("the first runs", |f| f.find("pods", "default", "large").is_some_and(|p| is_ready(&p))).await;
    fake.put("pods", pod("second", "2"));
    let refused = |f: &Fake| f.find("pods", "default", "second").map(|p| condition(&p, "PodScheduled"));
    world.until("the second waits", |f| refused(f).as_deref() == Some("Unschedulable")).await;
    world.is_at_rest().await;
    let events = |f: &Fake, reason: &str| f.all("events").iter().filter(|e| e["reason"] == reason).count();
    world.until("it was said", |f| events(f, "FailedScheduling") == 1 && events(f, "Scheduled") == 1).await;
    fake.remove("pods", "default", "large", &DeleteOptions::default()).expect("it exists");
    world
        .until("the second runs", |f| f.find("pods", "default", "second").is_some_and(|p| is_ready(&p)))
        .await;

    fake.edit("nodes", "", "n", |n| n["spec"] = json!({"unschedulable": true}));
    tokio::time::sleep(Duration::from_millis(50)).await;
    fake.put("pods", pod("third", "1"));
    let waits = |f: &Fake| f.find("pods", "default", "third").map(|p| condition(&p, "PodScheduled"));
    world.until("a cordoned node takes none", |f| waits(f).as_deref() == Some("Unschedulable")).await;
    fake.edit("nodes", "", "n", |n| n["spec"] = json!({}));
    world.until("the third runs", |f| f.find("pods", "default", "third").is_some_and(|p| is_ready(&p))).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recreate_starts_nothing_before_the_last_old_pod_is_gone() {
    let world = World::start(Fake::new()).await;
    let fake = &world.fake;
    let mut d = deployment("web", 3, "one");
    d["spec"]["strategy"] = json!({"type": "Recreate"});
    fake.put("deployments", d);
    world.until("three replicas", |f| is_rolled_out(f, "web")).await;
    set_image(fake, "web", "two");
    world.until("the second revision", |f| is_rolled_out(f, "web")).await;
    let log = fake.log();
    let of = |image: &str, gone: bool| {
        let matches =
            |v: &Option<Value>| v.as_ref().is_some_and(|p| p["spec"]["containers"][0]["image"] == image);
        log.iter()
            .enumerate()
            .filter(move |(_, r)| {
                r.resource == "pods"
                    && if gone {
                        r.new.is_none() && matches(&r.old)
                    } else {
                        r.old.is_none() && matches(&r.new)
                    }
            })
            .map(|(i, _)| i)
            .collect::<Vec<_>>()
    };
    assert!(of("one", true).iter().max() < of("two", false).iter().min());
    world.is_at_rest().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replication_controllers_and_the_kubernetes_service() {
    let world = World::start(Fake::new()).await;
    let fake = &world.fake;
    fake.put("services", json!({"metadata": {"name": "kubernetes", "namespace": "default"}, "spec": {"clusterIP": "10.2.0.1"}}));
    world
        .until("where the API is", |f| {
            addresses(f, "kubernetes") == (vec!["10.0.0.1".into()], vec!["10.0.0.1".into()])
        })
        .await;
    fake.put("replicationcontrollers", json!({"metadata": {"name": "rc", "namespace": "default"}, "spec": {
        "replicas": 3, "selector": {"app": "rc"},
        "template": {"metadata": {"labels": {"app": "rc"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}));
    let ready = |f: &Fake| {
        f.find("replicationcontrollers", "default", "rc").map(|rc| rc["status"]["availableReplicas"].clone())
    };
    world.until("three replicas", |f| ready(f) == Some(3.into())).await;
    // A pod that no longer matches is released and replaced.
    let first = fake.all("pods")[0]["metadata"]["name"].as_str().expect("a name").to_owned();
    fake.edit("pods", "default", &first, |p| p["metadata"]["labels"]["app"] = "debug".into());
    world.until("a fourth pod", |f| f.all("pods").len() == 4).await;
    world
        .until("released", |f| {
            let pod = f.find("pods", "default", &first).unwrap_or_default();
            pod["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty)
        })
        .await;
    world.is_at_rest().await;
    assert_eq!(fake.all("pods").len(), 4);
    world.stop().await;
}
