//! The API over HTTPS, driven by a plain client: verbs, errors, selectors, paging, deletion.

mod common;

use bytes::Bytes;
use common::{Client, Reply, TestServer};
use http::Method;
use serde_json::{Value, json};

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn configmap(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}})
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

#[track_caller]
fn check(reply: &Reply, code: u16, reason: &str, message: &str) {
    let status = reply.json();
    assert_eq!((reply.code.as_u16(), status["code"].as_u64()), (code, Some(u64::from(code))), "{status}");
    assert_eq!(
        (status["kind"].as_str(), status["reason"].as_str()),
        (Some("Status"), Some(reason)),
        "{status}"
    );
    assert!(status["message"].as_str().is_some_and(|m| m.contains(message)), "{status}\nwanted: {message}");
}

async fn start() -> (TestServer, Client) {
    let server = TestServer::start().await;
    let client = server.client().await;
    (server, client)
}

#[tokio::test]
async fn one_object_through_its_life() {
    let (server, mut client) = start().await;
    let created = client.post(CONFIGMAPS, &configmap("a")).await;
    assert_eq!(created.code, 201);
    let created = created.json();
    for field in ["uid", "creationTimestamp", "resourceVersion"] {
        assert!(created["metadata"][field].is_string(), "{created}");
    }
    assert_eq!(created["metadata"]["namespace"], "default");
    let path = format!("{CONFIGMAPS}/a");
    assert_eq!(client.get(&path).await.json(), created);

    let mut changed = created.clone();
    changed["data"]["a"] = "c".into();
    let updated = client.put(&path, &changed).await.json();
    assert_ne!(updated["metadata"]["resourceVersion"], created["metadata"]["resourceVersion"]);
    assert_eq!(updated["metadata"]["uid"], created["metadata"]["uid"]);
    // Nothing changes: neither a replacement by itself nor a patch without effect gets a new revision.
    assert_eq!(client.put(&path, &updated).await.json(), updated);
    assert_eq!(client.patch(&path, &json!({"data": {"a": "c"}})).await.json(), updated);
    check(&client.put(&path, &created).await, 409, "Conflict", "the object has been modified");

    let deleted = client.delete(&path).await.json();
    assert_eq!(
        (deleted["status"].as_str(), &deleted["details"]["uid"]),
        (Some("Success"), &created["metadata"]["uid"])
    );
    check(&client.get(&path).await, 404, "NotFound", "configmaps \"a\" not found");
    server.stop().await;
}

#[tokio::test]
async fn objects_survive_a_restart() {
    let (server, mut client) = start().await;
    let created = client.post(CONFIGMAPS, &configmap("a")).await.json();
    let again = TestServer::start_in(server.stop().await).await;
    let mut client = again.client().await;
    assert_eq!(client.get(&format!("{CONFIGMAPS}/a")).await.json(), created);
    again.stop().await;
}

#[tokio::test]
async fn errors_are_worded_as_in_kubernetes() {
    let (server, mut client) = start().await;
    client.post(CONFIGMAPS, &configmap("a")).await;
    check(
        &client.post(CONFIGMAPS, &configmap("a")).await,
        409,
        "AlreadyExists",
        "configmaps \"a\" already exists",
    );
    check(
        &client.post(CONFIGMAPS, &configmap("A_b")).await,
        422,
        "Invalid",
        "ConfigMap \"A_b\" is invalid: metadata.name: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain",
    );
    check(
        &client.post(CONFIGMAPS, &json!({})).await,
        422,
        "Invalid",
        "metadata.name: Required value: name or generateName is required",
    );
    check(
        &client.post("/api/v1/namespaces/no/configmaps", &configmap("a")).await,
        404,
        "NotFound",
        "namespaces \"no\" not found",
    );
    let mut elsewhere = configmap("b");
    elsewhere["metadata"]["namespace"] = "kube-system".into();
    check(
        &client.post(CONFIGMAPS, &elsewhere).await,
        400,
        "BadRequest",
        "the namespace of the provided object does not match the namespace sent on the request",
    );
    let mut wrong = configmap("b");
    wrong["data"]["a"] = 1.into();
    check(
        &client.post(CONFIGMAPS, &wrong).await,
        400,
        "BadRequest",
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct \
         field ConfigMap.data of type string",
    );
    check(
        &client.put(&format!("{CONFIGMAPS}/a"), &configmap("b")).await,
        400,
        "BadRequest",
        "does not match the name on the URL (a)",
    );
    check(
        &client.put(&format!("{CONFIGMAPS}/b"), &configmap("b")).await,
        404,
        "NotFound",
        "configmaps \"b\" not found",
    );
    check(
        &client.send(Method::POST, CONFIGMAPS, &[("content-type", "text/plain")], "x").await,
        415,
        "UnsupportedMediaType",
        "accepted media types include: application/json",
    );
    check(
        &client.post(&format!("{CONFIGMAPS}/a"), &json!({})).await,
        405,
        "MethodNotAllowed",
        "does not allow this method",
    );
    check(&client.get("/api/v1/unknowns").await, 404, "NotFound", "could not find the requested resource");
    let jobs = "/apis/batch/v1/namespaces/default/jobs";
    check(&client.post(jobs, &json!({})).await, 404, "NotFound", "could not find the requested resource");
    check(
        &client.send(Method::GET, CONFIGMAPS, &[("accept", "text/html")], "").await,
        406,
        "NotAcceptable",
        "only the following media types are accepted",
    );
    check(
        &client
            .send(Method::POST, CONFIGMAPS, &[("content-type", "application/json")], vec![b' '; 4 << 20])
            .await,
        413,
        "RequestEntityTooLarge",
        "limit is 3145728",
    );
    let mut client = server.client().await;
    check(
        &client.get(&format!("{CONFIGMAPS}?fieldSelector=data.a=b")).await,
        400,
        "BadRequest",
        "\"data.a\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
    );
    check(
        &client.get("/api/v1/pods?fieldSelector=spec.nope%3Db").await,
        400,
        "BadRequest",
        "field label not supported: spec.nope",
    );
    check(&client.get(&format!("{CONFIGMAPS}?labelSelector=a%20in%20b")).await, 400, "BadRequest", "");
    check(&client.get(&format!("{CONFIGMAPS}?resourceVersion=x")).await, 400, "BadRequest", "x");
    check(
        &client.get(&format!("{CONFIGMAPS}?resourceVersion=99999999")).await,
        504,
        "Timeout",
        "Too large resource version: 99999999",
    );
    check(
        &client.get(&format!("{CONFIGMAPS}?watch=1&resourceVersion=99999999")).await,
        504,
        "Timeout",
        "Too large resource version",
    );
    check(
        &client.delete("/api/v1/namespaces/default").await,
        403,
        "Forbidden",
        "namespaces \"default\" is forbidden: this namespace may not be deleted",
    );
    let apply = [("content-type", "application/apply-patch+yaml")];
    let reply = client.send(Method::PATCH, &format!("{CONFIGMAPS}/a?fieldManager=x"), &apply, "{}").await;
    check(&reply, 415, "UnsupportedMediaType", "server-side apply");
    server.stop().await;
}

#[tokio::test]
async fn who_may_in() {
    let server = TestServer::start().await;
    let mut nobody = server.anonymous().await;
    check(&nobody.get("/api").await, 401, "Unauthorized", "Unauthorized");
    check(&nobody.get(CONFIGMAPS).await, 401, "Unauthorized", "Unauthorized");
    for open in ["/healthz", "/livez", "/readyz", "/version", "/readyz/ping"] {
        assert_eq!(nobody.get(open).await.code, 200, "{open}");
    }
    let verbose = nobody.get("/readyz?verbose").await;
    assert_eq!(verbose.body, "[+]ping ok\nreadyz check passed\n");
    server.api.set_ready_checks(vec![cumulet_apiserver::ReadyCheck::new("dns", || Err("not yet".into()))]);
    let failing = nobody.get("/readyz").await;
    assert_eq!(
        (failing.code.as_u16(), &failing.body[..]),
        (500, &b"[+]ping ok\n[-]dns failed: not yet\nreadyz check failed\n"[..])
    );
    assert_eq!(nobody.get("/healthz").await.code, 200);
    server.stop().await;
}

#[tokio::test]
async fn unknown_fields() {
    let (server, mut client) = start().await;
    let mut object = configmap("a");
    object["foo"] = 1.into();
    let warned = client.post(CONFIGMAPS, &object).await;
    assert_eq!((warned.code.as_u16(), warned.warnings()), (201, vec!["299 - \"unknown field \\\"foo\\\"\""]));
    assert!(warned.json().get("foo").is_none());
    object["metadata"]["name"] = "b".into();
    let strict = client.post(&format!("{CONFIGMAPS}?fieldValidation=Strict"), &object).await;
    check(&strict, 400, "BadRequest", "strict decoding error: unknown field \"foo\"");
    let ignored = client.post(&format!("{CONFIGMAPS}?fieldValidation=Ignore"), &object).await;
    assert_eq!((ignored.code.as_u16(), ignored.warnings().len()), (201, 0));
    server.stop().await;
}

#[tokio::test]
async fn generated_names_and_dry_runs() {
    let (server, mut client) = start().await;
    let object = json!({"metadata": {"generateName": "x-"}});
    let first = client.post(CONFIGMAPS, &object).await.json();
    let second = client.post(CONFIGMAPS, &object).await.json();
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_owned();
    assert!(name(&first).starts_with("x-") && name(&first).len() == 7 && name(&first) != name(&second));

    let before = client.get(CONFIGMAPS).await.json()["metadata"]["resourceVersion"].clone();
    assert_eq!(client.post(&format!("{CONFIGMAPS}?dryRun=All"), &configmap("dry")).await.code, 201);
    assert_eq!(client.get(&format!("{CONFIGMAPS}/dry")).await.code, 404);
    let path = format!("{CONFIGMAPS}/{}?dryRun=All", name(&first));
    assert_eq!(client.patch(&path, &json!({"data": {"k": "v"}})).await.json()["data"]["k"], "v");
    assert_eq!(client.delete(&path).await.code, 200);
    assert_eq!(client.get(CONFIGMAPS).await.json()["metadata"]["resourceVersion"], before);

    // A dry run of a Service leaves no address behind: the same one is there for the next.
    let services = "/api/v1/namespaces/default/services";
    let service =
        json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.97.0.77", "ports": [{"port": 80}]}});
    for _ in 0..2 {
        assert_eq!(client.post(&format!("{services}?dryRun=All"), &service).await.code, 201);
    }
    assert_eq!(client.post(services, &service).await.code, 201);
    let mut other = service.clone();
    other["metadata"]["name"] = "t".into();
    check(&client.post(services, &other).await, 422, "Invalid", "provided IP is already allocated");
    client.delete(&format!("{services}/s")).await;
    assert_eq!(client.post(services, &other).await.code, 201);
    server.stop().await;
}

#[tokio::test]
async fn selectors_and_pages() {
    let (server, mut client) = start().await;
    for n in 0..25 {
        let mut object = configmap(&format!("c{n:02}"));
        object["metadata"]["labels"] = json!({"parity": if n % 2 == 0 { "even" } else { "odd" }});
        assert_eq!(client.post(CONFIGMAPS, &object).await.code, 201);
    }
    let names = |list: &Value| -> Vec<String> {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["metadata"]["name"].as_str().unwrap().into())
            .collect()
    };
    for (query, want) in [
        ("", 25),
        ("?labelSelector=parity%3Deven", 13),
        ("?labelSelector=parity!%3Deven,parity", 12),
        ("?labelSelector=parity+in+(odd)", 12),
        ("?fieldSelector=metadata.name%3Dc03", 1),
        ("?fieldSelector=metadata.name!%3Dc03", 24),
        ("?fieldSelector=metadata.name%3Dc03&labelSelector=parity%3Deven", 0),
    ] {
        let list = client.get(&format!("{CONFIGMAPS}{query}")).await.json();
        assert_eq!((list["kind"].as_str(), names(&list).len()), (Some("ConfigMapList"), want), "{query}");
    }

    // All pages show the revision of the first, whatever happens in between.
    let mut found = Vec::new();
    let mut token = String::new();
    let mut revision = None;
    loop {
        let page = client
            .get(&format!("{CONFIGMAPS}?limit=4&labelSelector=parity%3Dodd&continue={token}"))
            .await
            .json();
        assert_eq!(
            revision.get_or_insert(page["metadata"]["resourceVersion"].clone()),
            &page["metadata"]["resourceVersion"]
        );
        found.extend(names(&page));
        match page["metadata"]["continue"].as_str() {
            Some(next) => token = next.to_owned(),
            None => break,
        }
        client.delete(&format!("{CONFIGMAPS}/c23")).await;
        client.post(CONFIGMAPS, &configmap(&format!("b{}", found.len()))).await;
    }
    let want: Vec<String> = (0..25).filter(|n| n % 2 == 1).map(|n| format!("c{n:02}")).collect();
    assert_eq!(found, want);

    // How many are left is known only when no selector leaves any out.
    let page = client.get(&format!("{CONFIGMAPS}?limit=4")).await.json();
    let left = page["metadata"]["remainingItemCount"].as_u64().unwrap();
    let rest = client
        .get(&format!("{CONFIGMAPS}?limit=500&continue={}", page["metadata"]["continue"].as_str().unwrap()))
        .await
        .json();
    assert_eq!(names(&rest).len() as u64, left);
    assert!(rest["metadata"].get("remainingItemCount").is_none());
    let page = client.get(&format!("{CONFIGMAPS}?limit=4&labelSelector=parity")).await.json();
    assert!(page["metadata"]["continue"].is_string());
    assert!(page["metadata"].get("remainingItemCount").is_none());

    let revision = revision.unwrap();
    let exact =
        format!("{CONFIGMAPS}?resourceVersion={}&resourceVersionMatch=Exact", revision.as_str().unwrap());
    assert_eq!(names(&client.get(&exact).await.json()).len(), 25);
    check(
        &client.get(&format!("{CONFIGMAPS}?continue=x")).await,
        400,
        "BadRequest",
        "continue key is not valid",
    );

    let deleted = client.delete(&format!("{CONFIGMAPS}?labelSelector=parity")).await.json();
    assert_eq!(deleted["items"].as_array().unwrap().len(), 24);
    assert!(names(&client.get(CONFIGMAPS).await.json()).iter().all(|n| n.starts_with('b')));
    server.stop().await;
}

#[tokio::test]
async fn finalizers_hold_and_propagation_marks() {
    let (server, mut client) = start().await;
    let mut object = configmap("held");
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    client.post(CONFIGMAPS, &object).await;
    let path = format!("{CONFIGMAPS}/held");
    let marked = client.delete(&path).await.json();
    assert!(marked["metadata"]["deletionTimestamp"].is_string(), "{marked}");
    check(
        &client
            .patch(&path, &json!({"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}}))
            .await,
        422,
        "Invalid",
        "no new finalizers can be added if the object is being deleted",
    );
    check(
        &client.post(CONFIGMAPS, &object).await,
        409,
        "AlreadyExists",
        "object is being deleted: configmaps \"held\"",
    );
    assert_eq!(client.patch(&path, &json!({"metadata": {"finalizers": null}})).await.code, 200);
    assert_eq!(client.get(&path).await.code, 404);

    client.post(CONFIGMAPS, &configmap("owner")).await;
    let path = format!("{CONFIGMAPS}/owner");
    let options = json!({"propagationPolicy": "Foreground", "preconditions": {"uid": "other"}}).to_string();
    let kind = [("content-type", "application/json")];
    check(
        &client.send(Method::DELETE, &path, &kind, options).await,
        409,
        "Conflict",
        "Precondition failed: UID in precondition: other",
    );
    let options = json!({"propagationPolicy": "Foreground"}).to_string();
    let marked = client.send(Method::DELETE, &path, &kind, options).await.json();
    assert_eq!(marked["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    server.stop().await;
}

#[tokio::test]
async fn pods_are_bound_once_and_die_gracefully() {
    let (server, mut client) = start().await;
    assert_eq!(client.post(PODS, &pod("p")).await.code, 201);
    let path = format!("{PODS}/p");
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let bound = client.post(&format!("{path}/binding"), &binding).await;
    assert_eq!((bound.code.as_u16(), bound.json()["status"].as_str()), (201, Some("Success")));
    check(
        &client.post(&format!("{path}/binding"), &binding).await,
        409,
        "Conflict",
        "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n\"",
    );
    let object = client.get(&path).await.json();
    assert_eq!(
        (&object["spec"]["nodeName"], &object["status"]["conditions"][0]["type"]),
        (&json!("n"), &json!("PodScheduled"))
    );
    assert_eq!(
        client.get(&format!("{PODS}?fieldSelector=spec.nodeName%3Dn")).await.json()["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );

    // Status and spec do not leak into each other.
    let mut both = object.clone();
    both["status"]["phase"] = "Running".into();
    both["spec"]["containers"][0]["image"] = "other".into();
    let after = client.put(&format!("{path}/status"), &both).await.json();
    assert_eq!(
        (&after["status"]["phase"], &after["spec"]["containers"][0]["image"]),
        (&json!("Running"), &json!("i"))
    );
    both["metadata"]["resourceVersion"] = after["metadata"]["resourceVersion"].clone();
    both["status"]["phase"] = "Failed".into();
    let after = client.put(&path, &both).await.json();
    assert_eq!(
        (&after["status"]["phase"], &after["spec"]["containers"][0]["image"]),
        (&json!("Running"), &json!("other"))
    );

    let marked = client.delete(&path).await.json();
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    let eviction = json!({"metadata": {"name": "p"}, "deleteOptions": {"gracePeriodSeconds": 0}});
    assert_eq!(client.post(&format!("{path}/eviction"), &eviction).await.code, 201);
    assert_eq!(client.get(&path).await.code, 404);
    check(
        &client.get(&format!("{path}/exec?command=x&stdout=1")).await,
        404,
        "NotFound",
        "pods \"p\" not found",
    );
    server.stop().await;
}

#[tokio::test]
async fn namespaces_end_when_they_are_empty() {
    let (server, mut client) = start().await;
    client.post("/api/v1/namespaces", &json!({"metadata": {"name": "n"}})).await;
    let place = "/api/v1/namespaces/n/configmaps";
    assert_eq!(client.post(place, &configmap("a")).await.code, 201);
    let marked = client.delete("/api/v1/namespaces/n").await.json();
    assert_eq!(
        (&marked["status"]["phase"], &marked["spec"]["finalizers"]),
        (&json!("Terminating"), &json!(["kubernetes"]))
    );
    let refused = client.post(place, &configmap("b")).await;
    check(
        &refused,
        403,
        "Forbidden",
        "configmaps \"b\" is forbidden: unable to create new content in namespace n because it is being terminated",
    );
    assert_eq!(refused.json()["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let mut empty = client.get("/api/v1/namespaces/n").await.json();
    empty["spec"] = json!({});
    assert_eq!(client.put("/api/v1/namespaces/n/finalize", &empty).await.code, 200);
    assert_eq!(client.get("/api/v1/namespaces/n").await.code, 404);
    server.stop().await;
}

#[tokio::test]
async fn scale_is_a_view() {
    let (server, mut client) = start().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let template =
        json!({"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let object = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"app": "d"}}, "template": template}});
    assert_eq!(client.post(deployments, &object).await.code, 201);
    let path = format!("{deployments}/d/scale");
    let scale = client.get(&path).await.json();
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(1)));
    assert_eq!(client.patch(&path, &json!({"spec": {"replicas": 4}})).await.json()["spec"]["replicas"], 4);
    check(&client.put(&path, &scale).await, 409, "Conflict", "the object has been modified");
    check(
        &client.patch(&path, &json!({"spec": {"replicas": -1}})).await,
        422,
        "Invalid",
        "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
    );
    let deployment = client.get(&format!("{deployments}/d")).await.json();
    assert_eq!(
        (&deployment["spec"]["replicas"], &deployment["metadata"]["generation"]),
        (&json!(4), &json!(2))
    );
    server.stop().await;
}

#[tokio::test]
async fn forms_of_answers() {
    let (server, mut client) = start().await;
    client.post(CONFIGMAPS, &configmap("a")).await;
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let list = client.send(Method::GET, CONFIGMAPS, &table, "").await.json();
    assert_eq!((&list["kind"], &list["rows"][0]["cells"][0]), (&json!("Table"), &json!("a")));
    assert_eq!(list["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let metadata = [("accept", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1")];
    let object = client.send(Method::GET, &format!("{CONFIGMAPS}/a"), &metadata, "").await.json();
    assert_eq!((&object["kind"], object.get("data")), (&json!("PartialObjectMetadata"), None));
    let yaml =
        client.send(Method::GET, &format!("{CONFIGMAPS}/a"), &[("accept", "application/yaml")], "").await;
    assert!(String::from_utf8_lossy(&yaml.body).contains("kind: ConfigMap"), "{:?}", yaml.body);
    let body = "metadata:\n  name: yaml\ndata: {k: v}\n";
    let posted = client.send(Method::POST, CONFIGMAPS, &[("content-type", "application/yaml")], body).await;
    assert_eq!(posted.json()["data"]["k"], "v");

    let aggregated =
        [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json")];
    for path in ["/api", "/apis"] {
        let reply = client.send(Method::GET, path, &aggregated, "").await;
        assert_eq!(reply.json()["kind"], "APIGroupDiscoveryList");
        assert!(reply.headers["content-type"].to_str().unwrap().contains("as=APIGroupDiscoveryList"));
    }
    let index = client.get("/openapi/v3").await.json();
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    let document = client.get(&url).await;
    assert!(document.json()["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"].is_object());
    let tag = document.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(client.send(Method::GET, &url, &[("if-none-match", &tag)], Bytes::new()).await.code, 304);
    server.stop().await;
}

#[tokio::test]
async fn concurrent_patches_all_count() {
    let (server, mut client) = start().await;
    client.post(CONFIGMAPS, &configmap("a")).await;
    let path = format!("{CONFIGMAPS}/a");
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let mut client = server.client().await;
        let path = path.clone();
        tasks.spawn(async move {
            for n in 0..10 {
                let key = format!("w{writer}-{n}");
                let reply = client.patch(&path, &json!({"data": {key: "x"}})).await;
                assert_eq!(reply.code, 200, "{:?}", reply.body);
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(client.get(&path).await.json()["data"].as_object().unwrap().len(), 81);
    server.stop().await;
}

#[tokio::test]
async fn events_have_two_forms() {
    const OLD: &str = "/api/v1/namespaces/default/events";
    const NEW: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
    let (server, mut client) = start().await;
    let old = json!({
        "metadata": {"name": "old", "namespace": "default"}, "message": "said", "count": 3, "type": "Normal",
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "source": {"component": "kubelet"}});
    assert_eq!(client.post(OLD, &old).await.code, 201);
    let shown = client.get(&format!("{NEW}/old")).await.json();
    assert_eq!((&shown["apiVersion"], &shown["note"]), (&json!("events.k8s.io/v1"), &json!("said")));
    assert_eq!((&shown["regarding"]["name"], &shown["deprecatedCount"]), (&json!("p"), &json!(3)));
    assert!(shown.get("message").is_none() && shown.get("involvedObject").is_none());

    let mut new = json!({
        "metadata": {"name": "new", "namespace": "default"}, "eventTime": "2026-01-01T00:00:00.000001Z",
        "reportingController": "example.com/c", "reportingInstance": "i", "action": "Acted", "reason": "Because",
        "type": "Normal", "note": "n", "regarding": {"kind": "Pod", "name": "q", "namespace": "default"}});
    let created = client.post(NEW, &new).await;
    assert_eq!(created.code, 201);
    assert_eq!((&created.json()["kind"], &created.json()["note"]), (&json!("Event"), &json!("n")));
    assert_eq!(client.get(&format!("{OLD}/new")).await.json()["message"], "n");
    new["eventTime"] = Value::Null;
    check(&client.post(NEW, &new).await, 422, "Invalid", "eventTime: Required value");

    // A patch speaks the language of its place; what it leaves alone stays.
    let patched = client.patch(&format!("{NEW}/new"), &json!({"note": "m"})).await.json();
    assert_eq!((&patched["note"], &patched["regarding"]["name"]), (&json!("m"), &json!("q")));
    let stored = client.get(&format!("{OLD}/new")).await.json();
    assert_eq!((&stored["message"], &stored["apiVersion"]), (&json!("m"), &json!("v1")));
    assert_eq!(client.put(&format!("{NEW}/new"), &patched).await.json(), patched);

    let list = client.get(&format!("{NEW}?fieldSelector=regarding.name%3Dq,reason%3DBecause")).await.json();
    assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("EventList"), &json!("events.k8s.io/v1")));
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(list["items"][0], patched);
    let refused = client.get(&format!("{NEW}?fieldSelector=involvedObject.name%3Dq")).await;
    check(&refused, 400, "BadRequest", "field label not supported: involvedObject.name");
    let watched =
        client.get(&format!("{NEW}?watch=1&timeoutSeconds=1&fieldSelector=regarding.name%3Dq")).await;
    let line: Value = serde_json::from_slice(watched.body.split(|b| *b == b'\n').next().unwrap()).unwrap();
    assert_eq!((&line["type"], &line["object"]), (&json!("ADDED"), &patched));
    let group = client.get("/apis/events.k8s.io/v1").await.json();
    assert_eq!(group["resources"][0]["name"], "events");
    assert_eq!(client.delete(&format!("{NEW}/new")).await.code, 200);
    assert_eq!(client.get(&format!("{OLD}/new")).await.code, 404);
    server.stop().await;
}
