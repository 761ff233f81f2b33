//! A watch as an HTTP answer: one JSON document per line, sent at once.

use crate::codec::encode::{Form, reply};
use crate::codec::negotiate::Shape;
use crate::codec::table::{Include, Writer, partial};
use crate::core::Call;
use crate::handlers::{Answer, Ask};
use crate::registry::Resource;
use crate::verbs::select::Filter;
use crate::verbs::watch::{Feed, Told, WatchOptions};
use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use cumulet_api::{Status, StatusReason, meta};
use cumulet_cluster::WatchItem;
use http::{HeaderValue, StatusCode};
use rand::RngExt;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a watch without a timeout lasts, at least, in seconds; at most twice that. Ends are spread so that not
/// all clients come back at once.
const LEAST_SECONDS: u64 = 1800;

/// Begins a watch and answers with its events.
pub(super) fn answer(
    ask: &Ask<'_>,
    resource: &Resource,
    call: &Call<'_>,
    filter: Filter,
    form: &Form<'_>,
) -> Answer {
    let query = ask.query;
    let seconds = match query.number::<u64>("timeoutSeconds")? {
        None | Some(0) => rand::rng().random_range(LEAST_SECONDS..2 * LEAST_SECONDS),
        Some(seconds) => seconds,
    };
    let options = WatchOptions {
        version: query.get("resourceVersion").map(str::to_owned),
        version_match: query.get("resourceVersionMatch").map(str::to_owned),
        send_initial_events: query.optional_flag("sendInitialEvents"),
        bookmarks: query.flag("allowWatchBookmarks"),
        deadline: Instant::now().checked_add(Duration::from_secs(seconds)),
    };
    let writer = EventWriter {
        resource: resource.clone(),
        api_version: resource.api_version(),
        shape: form.accepted.shape,
        include: form.include,
        columns: true,
    };
    let feed = ask.core().watch(call, filter, &options)?;
    let state = Some((feed, writer, ask.connection.shutdown.clone()));
    let body = Body::from_stream(futures_util::stream::unfold(state, step));
    let mut response = reply(StatusCode::OK, HeaderValue::from_static("application/json"), body);
    if form.accepted.shape == Shape::Table {
        let kind = HeaderValue::from_static("application/json;as=Table;g=meta.k8s.io;v=v1");
        response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    }
    Ok(response)
}

type State = Option<(Feed, EventWriter, CancellationToken)>;

async fn step(state: State) -> Option<(Result<Bytes, Infallible>, State)> {
    let (mut feed, mut writer, shutdown) = state?;
    let told = tokio::select! {
        // Dropping `next` loses no event: it can be called again.
        told = feed.next() => told?,
        () = shutdown.cancelled() => return None,
    };
    Some(match told {
        Ok(told) => {
            let line = writer.write(&told);
            (Ok(line), Some((feed, writer, shutdown)))
        }
        Err(status) => (Ok(line("ERROR", status.to_json().to_string().as_bytes())), None),
    })
}

/// Writes events in the form that the client accepts.
struct EventWriter {
    resource: Resource,
    api_version: String,
    shape: Shape,
    include: Include,
    /// The next table has to define its columns.
    columns: bool,
}

impl EventWriter {
    fn write(&mut self, told: &Told) -> Bytes {
        match told {
            Told::Item(WatchItem::Added(object)) => self.object("ADDED", object),
            Told::Item(WatchItem::Modified(object)) => self.object("MODIFIED", object),
            Told::Item(WatchItem::Deleted(object)) => self.object("DELETED", object),
            Told::Item(WatchItem::Bookmark(revision)) => self.bookmark(*revision, false),
            Told::InitialEnd(revision) => self.bookmark(*revision, true),
        }
    }

    fn object(&mut self, kind: &str, object: &Bytes) -> Bytes {
        if self.shape == Shape::Objects && self.resource.view.is_none() {
            return line(kind, object);
        }
        let Ok(value) = serde_json::from_slice::<Value>(object) else {
            let status = Status::new(StatusReason::InternalError, "stored object does not decode");
            return line("ERROR", status.to_json().to_string().as_bytes());
        };
        self.value(kind, &value)
    }

    fn value(&mut self, kind: &str, value: &Value) -> Bytes {
        match self.shape {
            Shape::Table => {
                let metadata = json!({"resourceVersion": meta::resource_version(value)});
                let mut table = Writer::new(&self.resource, self.include, &metadata, self.columns);
                self.columns = false;
                table.push(value);
                line(kind, &table.finish())
            }
            Shape::Metadata => line(kind, partial(value).to_string().as_bytes()),
            Shape::Objects | Shape::Discovery => {
                line(kind, self.resource.served(value).to_string().as_bytes())
            }
        }
    }

    /// Only the revision, in an object of the watched kind.
    fn bookmark(&mut self, revision: u64, initial_end: bool) -> Bytes {
        let mut object = json!({
            "kind": self.resource.row.kind, "apiVersion": self.api_version,
            "metadata": {"resourceVersion": revision.to_string()},
        });
        if initial_end {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        match self.shape {
            // A table without rows carries the revision.
            Shape::Table if !initial_end => {
                let metadata = json!({"resourceVersion": revision.to_string()});
                let table = Writer::new(&self.resource, self.include, &metadata, self.columns);
                self.columns = false;
                line("BOOKMARK", &table.finish())
            }
            _ => self.value("BOOKMARK", &object),
        }
    }
}

fn line(kind: &str, object: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(object.len() + 40);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
    out.freeze()
}
