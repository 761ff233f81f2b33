//! Logs, exec and attach with the real kubectl, on pods whose streams this file plays: a process that echoes its
//! input and ends with the code that its command names.

mod common;

use bytes::Bytes;
use common::{TestServer, kubectl};
use cumulet_api::Status;
use cumulet_cluster::streams::{ContainerRef, ExecOptions, Exit, Input, LogOptions, Output, PodRef, Session};
use cumulet_cluster::{BoxFuture, BoxStream, PodStreams};
use futures_util::{StreamExt, stream};
use serde_json::json;
use std::process::Command;
use std::sync::Arc;
use tokio::sync::mpsc;

struct Echo;

impl PodStreams for Echo {
    fn logs(
        &self,
        of: ContainerRef,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, std::io::Result<Bytes>>, Status>> {
        let text = format!("{}/{} tail={:?}\n", of.pod, of.container, options.tail_lines);
        let lines = vec![Ok(Bytes::from(text)), Ok(Bytes::from("end\n"))];
        Box::pin(async { Ok(stream::iter(lines).boxed()) })
    }

    fn exec(&self, of: ContainerRef, options: ExecOptions) -> BoxFuture<'_, Result<Session, Status>> {
        Box::pin(async move {
            let (input, mut from_client) = mpsc::channel(4);
            let (to_client, output) = mpsc::channel(4);
            tokio::spawn(async move {
                let head = format!("{} {}\n", of.container, options.command.join(" "));
                let _ = to_client.send(Output::Stdout(head.into())).await;
                let _ = to_client.send(Output::Stderr("warned\n".into())).await;
                let mut open = options.stdin;
                while open {
                    open = match from_client.recv().await {
                        Some(Input::Stdin(bytes)) => to_client.send(Output::Stdout(bytes)).await.is_ok(),
                        Some(Input::Resize { .. }) => true,
                        Some(Input::CloseStdin) | None => false,
                    };
                }
                let code = options.command.last().and_then(|c| c.parse().ok()).unwrap_or(0);
                let _ = to_client.send(Output::Exit(Exit::Code(code))).await;
            });
            Ok(Session { input, output })
        })
    }

    fn checkpoint(&self, of: PodRef, name: String) -> BoxFuture<'_, Result<String, Status>> {
        Box::pin(async move { Ok(format!("{}/{} as {name}", of.namespace, of.pod)) })
    }

    fn attach(&self, of: ContainerRef, mut options: ExecOptions) -> BoxFuture<'_, Result<Session, Status>> {
        options.command = vec!["attached".into()];
        self.exec(of, options)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_with_kubectl() {
    if Command::new("kubectl").arg("version").arg("--client").output().is_err() {
        eprintln!("no kubectl on this machine");
        return;
    }
    let server = TestServer::start().await;
    server.write_kubeconfig();
    server.api.set_streams(Arc::new(Echo));
    let mut client = server.client().await;
    let pods = "/api/v1/namespaces/default/pods";
    for (name, state) in
        [("p", json!({"running": {}})), ("w", json!({"waiting": {"reason": "ContainerCreating"}}))]
    {
        let pod = json!({
            "metadata": {"name": name},
            "spec": {"nodeName": "n", "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]},
        });
        assert_eq!(client.post(pods, &pod).await.code, 201);
        let statuses: Vec<_> = ["a", "b"]
            .iter()
            .map(|c| json!({"name": c, "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": state}))
            .collect();
        let status = json!({"status": {"phase": "Running", "containerStatuses": statuses}});
        assert_eq!(client.patch(&format!("{pods}/{name}/status"), &status).await.code, 200);
    }
    let not_upgraded = client.get(&format!("{pods}/p/exec?command=x&stdout=1")).await;
    assert_eq!(
        (not_upgraded.code.as_u16(), not_upgraded.json()["message"].as_str()),
        (400, Some("Upgrade request required"))
    );

    let state = server.dir.path().to_owned();
    let run = move || {
        let ok = |arguments: &[&str], input: &str, want: &str| {
            let out = kubectl(&state, arguments, input).unwrap_or_else(|e| panic!("{arguments:?}: {e}"));
            assert_eq!(out, want, "{arguments:?}");
        };
        let fails = |arguments: &[&str], want: &str| {
            let err = kubectl(&state, arguments, "").expect_err("should fail");
            assert!(err.contains(want), "{arguments:?}: {err}\nwanted: {want}");
        };
        ok(&["logs", "p", "-c", "b", "--tail=3"], "", "p/b tail=Some(3)\nend\n");
        ok(&["logs", "-f", "p", "-c", "a"], "", "p/a tail=None\nend\n");
        fails(&["logs", "p", "-c", "x"], "container x is not valid for pod p");
        fails(
            &["logs", "w", "-c", "a"],
            "container \"a\" in pod \"w\" is waiting to start: ContainerCreating",
        );
        fails(&["logs", "p", "-c", "a", "-p"], "previous terminated container \"a\" in pod \"p\" not found");
        ok(&["exec", "p", "-c", "b", "--", "echo", "hi"], "", "b echo hi\n");
        ok(&["exec", "-i", "p", "-c", "a", "--", "cat"], "typed\n", "a cat\ntyped\n");
        fails(&["exec", "p", "-c", "a", "--", "exit", "3"], "command terminated with exit code 3");
        fails(&["exec", "none", "--", "x"], "pods \"none\" not found");
        ok(&["attach", "-i", "p", "-c", "a"], "typed\n", "a attached\ntyped\n");
    };
    // kubectl blocks; the server needs its threads.
    tokio::task::spawn_blocking(run).await.unwrap();
    server.stop().await;
}
