//! The endpoint: OCI Distribution v1.1 over the content store.
//!
//! ```text
//!   request ─► route ─┬─► blobs ──► sessions (upload: the pure core) ──► sink ──► store
//!                     ├─► manifests ──► names in the store
//!                     └─► listing
//! ```
//!
//! A repository `me/app` is the store's `HOST/me/app`, where `HOST` is what the endpoint is told it is called: a pod
//! that names `HOST/me/app:1` runs what was pushed as `me/app:1`. Nothing is copied. Layers are unpacked right after
//! the push, and by whoever needs them first.
//!
//! Absent on purpose: TLS and listening (the program's business), permissions for single repositories, Docker's first
//! schema, digests other than SHA-256. Without users everybody who can connect may do everything, so a request that a
//! browser sends for some web page is refused.

mod blobs;
mod listing;
mod manifests;
mod reply;
mod route;
mod sessions;
pub(crate) mod upload;
pub(crate) mod users;

use crate::refs::Refs;
use crate::{Digest, ImageError, ImageStore, Reference};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::routing::any;
use http::header::{HOST, ORIGIN};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use reply::{API_VERSION, Answer, Code, Refusal, blocking, empty};
use route::Route;
use sessions::Sessions;
use std::sync::Arc;
use std::time::Duration;
use upload::UploadLimits;
use users::Users;

/// How an endpoint is to be.
#[derive(Clone, Debug, Default)]
pub struct EndpointOptions {
    /// What it is called in image names, such as `127.0.0.1:5000`. What is pushed gets a name with each of them; the
    /// first one counts for everything else.
    pub names: Vec<String>,
    /// Who may use it; everybody when empty.
    pub users: Users,
    /// Caps of uploads.
    pub uploads: UploadLimits,
}

/// A registry over an image store.
pub struct Endpoint {
    store: ImageStore,
    names: Vec<String>,
    users: Users,
    stall: Duration,
    sessions: Sessions,
}

impl Endpoint {
    /// Makes the endpoint of a store.
    ///
    /// # Errors
    /// When a name is not one that an image's name can begin with, or the store cannot be written.
    pub fn new(store: ImageStore, options: EndpointOptions) -> Result<Arc<Self>, ImageError> {
        let EndpointOptions { names, users, uploads } = options;
        let bad = |name: &str| ImageError::BadReference {
            text: name.to_owned(),
            reason: "a registry is a host name with a dot or a port, or \"localhost\"",
        };
        if names.is_empty() {
            return Err(bad(""));
        }
        for name in &names {
            match Reference::parse(&format!("{name}/a")) {
                Ok(parsed) if parsed.registry() == name && name.as_str() != "docker.io" => {}
                _ => return Err(bad(name)),
            }
        }
        let stall = uploads.stall;
        let sessions = Sessions::new(store.clone(), uploads)?;
        Ok(Arc::new(Self { store, names, users, stall, sessions }))
    }

    /// The service, to be bound to a listener. Call it within the runtime: a task forgets uploads that nobody goes on
    /// with, for as long as the endpoint lives.
    pub fn router(self: &Arc<Self>) -> Router {
        let (weak, period) = (Arc::downgrade(self), self.sessions.period());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(period).await;
                let Some(endpoint) = weak.upgrade() else { return };
                // A failure is a panic, which the next round survives.
                let _ = tokio::task::spawn_blocking(move || endpoint.sessions.sweep()).await;
            }
        });
        Router::new()
            .route("/v2", any(handle))
            .route("/v2/", any(handle))
            .route("/v2/{*rest}", any(handle))
            .with_state(Arc::clone(self))
    }

    /// What the endpoint is called.
    pub fn host(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// The store's name of a repository.
    fn repository(&self, name: &str) -> String {
        format!("{}/{name}", self.host())
    }

    fn full_name(&self, name: &str, tag: &str) -> String {
        format!("{}/{name}:{tag}", self.host())
    }

    fn full_names(&self, name: &str, tag: &str) -> Result<Vec<Reference>, ImageError> {
        self.names.iter().map(|host| Reference::parse(&format!("{host}/{name}:{tag}"))).collect()
    }

    /// Tags of a repository and what they stand for.
    fn tags<'a>(&self, refs: &'a Refs, name: &str) -> impl Iterator<Item = (&'a str, &'a Digest)> + use<'a> {
        let prefix = format!("{}:", self.repository(name));
        let from = refs.refs.range(prefix.clone()..);
        from.map_while(move |(full, digest)| Some((full.strip_prefix(&prefix)?, digest)))
    }

    /// Unpacks what was pushed, if this machine can run it. Failures come up again when somebody wants to run it.
    fn prepare(&self, digest: &Digest) {
        let Ok((manifest, config)) = self.store.documents(digest) else { return };
        if config.platform.fits()
            && let Err(error) = self.store.unpack_missing(&digest.to_string(), &manifest, &config)
        {
            tracing::warn!(%digest, %error, "a pushed image cannot be unpacked");
        }
    }

    /// Keeps out what a browser sends on behalf of a web page, which reaches loopback as its user does.
    fn check_origin(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let denied = |what| Err(Refusal::new(Code::Denied, what));
        if headers.contains_key(ORIGIN) {
            return denied("requests of web pages are not answered");
        }
        let Some(host) = headers.get(HOST).and_then(|value| value.to_str().ok()) else { return Ok(()) };
        let bare = host.rsplit_once(':').map_or(host, |(bare, _)| bare);
        let address = bare.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>().is_ok();
        // With users, the password keeps strangers out, and the endpoint may be reached under any name.
        match address
            || bare == "localhost"
            || !self.users.is_empty()
            || self.names.iter().any(|name| name == host)
        {
            true => Ok(()),
            false => denied("this registry has another name"),
        }
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("names", &self.names).finish_non_exhaustive()
    }
}

/// Reads a path: what is accepted names a repository and a tag as the store does.
pub(crate) fn fuzz_route(path: &str) {
    const HOST: &str = "127.0.0.1:5000";
    let name = match Route::parse(path, HOST) {
        Err(_) | Ok(Route::Base | Route::Catalog) => return,
        Ok(Route::Manifest { name, target: route::Target::Tag(tag) }) => format!("{name}:{tag}"),
        Ok(
            Route::Tags { name }
            | Route::Referrers { name, .. }
            | Route::Manifest { name, .. }
            | Route::Blob { name, .. }
            | Route::Uploads { name }
            | Route::Upload { name, .. },
        ) => format!("{name}:latest"),
    };
    let read = Reference::parse(&format!("{HOST}/{name}")).expect("a name that the store knows");
    assert_eq!(read.to_string(), format!("{HOST}/{name}"), "{path:?}");
}

async fn handle(State(endpoint): State<Arc<Endpoint>>, request: Request) -> Response<Body> {
    let mut response = answer(endpoint, request).await.unwrap_or_else(Refusal::into_response);
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    response
}

async fn answer(endpoint: Arc<Endpoint>, request: Request) -> Answer {
    endpoint.check_origin(request.headers())?;
    endpoint.users.check(request.headers())?;
    let route = Route::parse(request.uri().path(), endpoint.host())?;
    let reads = matches!(*request.method(), http::Method::GET | http::Method::HEAD);
    let uri = request.uri().clone();
    match route {
        Route::Manifest { name, target } => manifests::manifest(endpoint, request, name, target).await,
        Route::Blob { digest, .. } => blobs::blob(endpoint, request, digest).await,
        Route::Uploads { name } => blobs::begin(endpoint, request, name).await,
        Route::Upload { name, id } => blobs::upload(endpoint, request, name, id).await,
        _ if !reads => Err(blobs::unsupported(request.method())),
        Route::Base => Ok(empty(StatusCode::OK)),
        Route::Catalog => blocking(move || listing::catalog(&endpoint, &uri)).await,
        Route::Tags { name } => blocking(move || listing::tags(&endpoint, &uri, &name)).await,
        Route::Referrers { name, digest } => {
            blocking(move || listing::referrers(&endpoint, &uri, &name, &digest)).await
        }
    }
}
