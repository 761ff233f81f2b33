//! Watches over HTTPS and in process.

mod common;

use common::TestServer;
use cumulet_cluster::{ListOptions, ResourceId, WatchItem};
use futures_util::StreamExt;
use serde_json::{Value, json};

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";

fn labelled(name: &str, color: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"color": color}}})
}

#[tokio::test]
async fn events_come_in_order_and_selectors_turn_changes_into_entries_and_exits() {
    let server = TestServer::start().await;
    let mut client = server.client().await;
    client.post(CONFIGMAPS, &labelled("old", "red")).await;
    let revision =
        client.get(CONFIGMAPS).await.json()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let path = format!("{CONFIGMAPS}?watch=1&labelSelector=color%3Dred&resourceVersion=");
    let mut from_now = server.client().await.watch(&format!("{path}{revision}"), &[]).await;
    let mut from_state = server.client().await.watch(&path, &[]).await;
    assert_eq!(from_state.brief().await, "ADDED old");

    client.post(CONFIGMAPS, &labelled("new", "blue")).await;
    client.patch(&format!("{CONFIGMAPS}/new"), &json!({"metadata": {"labels": {"color": "red"}}})).await;
    client.patch(&format!("{CONFIGMAPS}/new"), &json!({"data": {"a": "b"}})).await;
    let blue = client
        .patch(&format!("{CONFIGMAPS}/new"), &json!({"metadata": {"labels": {"color": "blue"}}}))
        .await
        .json();
    client.delete(&format!("{CONFIGMAPS}/old")).await;
    for watch in [&mut from_now, &mut from_state] {
        assert_eq!(watch.brief().await, "ADDED new");
        assert_eq!(watch.brief().await, "MODIFIED new");
        let exit = watch.next().await.unwrap();
        assert_eq!(
            (&exit["type"], &exit["object"]["metadata"]["labels"]["color"]),
            (&json!("DELETED"), &json!("red"))
        );
        assert_eq!(exit["object"]["metadata"]["resourceVersion"], blue["metadata"]["resourceVersion"]);
        assert_eq!(watch.brief().await, "DELETED old");
    }
    // Shutting down ends the watches in good order.
    let stopping = tokio::spawn(server.stop());
    assert_eq!(from_now.brief().await, "END");
    assert_eq!(from_state.brief().await, "END");
    stopping.await.unwrap();
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let server = TestServer::start().await;
    let mut client = server.client().await;
    client.post(CONFIGMAPS, &labelled("a", "red")).await;
    let path = format!(
        "{CONFIGMAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1"
    );
    let mut watch = server.client().await.watch(&path, &[]).await;
    assert_eq!(watch.brief().await, "ADDED a");
    let bookmark = watch.next().await.unwrap();
    assert_eq!((&bookmark["type"], &bookmark["object"]["kind"]), (&json!("BOOKMARK"), &json!("ConfigMap")));
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(watch.brief().await, "END");
    let refused = client.get(&format!("{CONFIGMAPS}?watch=1&sendInitialEvents=true")).await;
    assert_eq!((refused.code.as_u16(), &refused.json()["reason"]), (422, &json!("Invalid")));
    server.stop().await;
}

#[tokio::test]
async fn tables_define_their_columns_once() {
    let server = TestServer::start().await;
    let mut client = server.client().await;
    client.post(CONFIGMAPS, &labelled("a", "red")).await;
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let mut watch = server.client().await.watch(&format!("{CONFIGMAPS}?watch=1"), &table).await;
    let first = watch.next().await.unwrap();
    assert_eq!(
        (&first["object"]["kind"], &first["object"]["rows"][0]["cells"][0]),
        (&json!("Table"), &json!("a"))
    );
    assert!(first["object"]["columnDefinitions"].is_array());
    client.patch(&format!("{CONFIGMAPS}/a"), &json!({"data": {"a": "b"}})).await;
    let second = watch.next().await.unwrap();
    assert_eq!((&second["type"], &second["object"]["columnDefinitions"]), (&json!("MODIFIED"), &Value::Null));
    server.stop().await;
}

#[tokio::test]
async fn components_watch_without_http() {
    let server = TestServer::start().await;
    let cluster = server.api.cluster("test");
    let resource = ResourceId::new("", "v1", "configmaps");
    let options = ListOptions { namespace: Some("default".into()), ..ListOptions::default() };
    let list = cluster.list(&resource, &options).await.unwrap();
    let mut events = cluster.watch(&resource, &options, list.revision).await.unwrap();
    let object = labelled("a", "red").to_string();
    let stored = cluster.create(&resource, Some("default"), object.into()).await.unwrap();
    match events.next().await.unwrap().unwrap() {
        WatchItem::Added(told) => assert_eq!(told, stored),
        other => panic!("{other:?}"),
    }
    assert!(cluster.watch(&resource, &options, 1 << 40).await.is_err());
    server.stop().await;
}
