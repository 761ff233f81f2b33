//! `logs`.

use super::{explain, get};
use futures_util::AsyncReadExt;
use http::Request;
use kube::Client;
use std::io::Write;

/// Which lines.
pub(super) struct Query {
    pub(super) container: Option<String>,
    pub(super) follow: bool,
    pub(super) previous: bool,
    pub(super) tail: Option<u64>,
}

/// Copies the log of a container to stdout until it ends.
pub(super) async fn run(client: &Client, namespace: &str, pod: &str, query: &Query) -> anyhow::Result<()> {
    let mut path = format!("/api/v1/namespaces/{}/pods/{}/log?", get::query(namespace), get::query(pod));
    path.push_str(&format!("follow={}&previous={}", query.follow, query.previous));
    if let Some(container) = &query.container {
        path.push_str(&format!("&container={}", get::query(container)));
    }
    if let Some(tail) = query.tail {
        path.push_str(&format!("&tailLines={tail}"));
    }
    let request = Request::get(path).body(Vec::new())?;
    let mut stream = std::pin::pin!(client.request_stream(request).await.map_err(explain)?);
    let mut chunk = vec![0; 64 << 10];
    let mut out = std::io::stdout().lock();
    loop {
        let n = stream.read(&mut chunk).await?;
        if n == 0 {
            return Ok(());
        }
        out.write_all(&chunk[..n])?;
        out.flush()?;
    }
}
