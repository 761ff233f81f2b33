//! From a request to an answer: routing, authentication, and the choice of the verb.

mod collection;
pub(crate) mod object;
pub(crate) mod watch;

use crate::ApiServer;
use crate::auth::{self, Identity};
use crate::codec::negotiate::{self, Accepted};
use crate::codec::table::Include;
use crate::codec::{decode, encode};
use crate::core::{Call, Core};
use crate::query::Query;
use crate::route::{Route, Target, route};
use crate::server::Connection;
use crate::{discovery, health, openapi, subresources};
use axum::body::Body;
use cumulet_api::{Status, StatusReason};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use std::sync::Arc;

/// What every handler gets: the request but its body, and what is known about it.
pub(crate) struct Ask<'a> {
    pub(crate) server: &'a Arc<ApiServer>,
    pub(crate) connection: &'a Connection,
    pub(crate) parts: &'a Parts,
    pub(crate) query: &'a Query<'a>,
    pub(crate) user: &'a Identity,
}

pub(crate) type Answer = Result<Response<Body>, Status>;

impl<'a> Ask<'a> {
    pub(crate) fn core(&self) -> &'a Arc<Core> {
        &self.server.core
    }

    /// The call of a verb on this target, in the form in which its objects are stored.
    pub(crate) fn call<'t>(&'t self, target: &'t Target<'_>) -> Result<Call<'t>, Status> {
        Ok(Call {
            resource: self.core().registry.stored(target.resource),
            namespace: target.namespace.as_deref(),
            name: target.name.as_deref().unwrap_or(""),
            user: self.user,
            dry_run: self.query.dry_run()?,
        })
    }

    /// The form of the answer when it is an object or a list of objects.
    pub(crate) fn form(&self) -> Result<encode::Form<'a>, Status> {
        let accepted = negotiate::negotiate(&self.parts.headers, negotiate::objects)?;
        self.form_of(accepted)
    }

    /// The form of the answer when it is anything else.
    pub(crate) fn plain_form(&self) -> Result<encode::Form<'a>, Status> {
        let accepted = negotiate::negotiate(&self.parts.headers, negotiate::plain)?;
        self.form_of(accepted)
    }

    fn form_of(&self, accepted: Accepted) -> Result<encode::Form<'a>, Status> {
        Ok(encode::Form {
            accepted,
            include: Include::read(self.query.get("includeObject"))?,
            headers: &self.parts.headers,
            local: self.connection.local,
        })
    }
}

/// Answers a request. Never fails: failures are answers, too.
pub(crate) async fn handle(
    server: &Arc<ApiServer>,
    connection: &Connection,
    request: Request<Incoming>,
) -> Response<Body> {
    let (mut parts, body) = request.into_parts();
    match answer(server, connection, &mut parts, body).await {
        Ok(response) => response,
        Err(status) => encode::failure(&status),
    }
}

async fn answer(
    server: &Arc<ApiServer>,
    connection: &Connection,
    parts: &mut Parts,
    body: Incoming,
) -> Answer {
    // Cheap: a URI shares its bytes. It frees `parts` for the upgrade of exec, which takes it by `&mut`.
    let uri = parts.uri.clone();
    let query = Query::parse(uri.query());
    let route = route(&server.core.registry, uri.path());
    // These tell nothing about the cloud's objects and are open to everybody, as in Kubernetes.
    match route {
        Route::Version => return open(parts, || Ok(discovery::version())),
        Route::Health(check, name) => return open(parts, || Ok(health::answer(server, check, name, &query))),
        _ => {}
    }
    let identity = auth::authenticate(connection.identity.as_ref())?;
    if let Route::Resource(target) = &route
        && let (Some(_), Some("exec" | "attach")) = (&target.name, target.subresource)
    {
        return Box::pin(subresources::exec::answer(server, connection, &identity, target, &query, parts))
            .await;
    }
    let ask = Ask { server, connection, parts, query: &query, user: &identity };
    match &route {
        Route::Resource(target) => resource(&ask, target, body).await,
        Route::Bindings(namespace) => Box::pin(subresources::binding::bindings(&ask, namespace, body)).await,
        Route::Checkpoint { node, namespace, pod } => {
            Box::pin(subresources::checkpoint::answer(&ask, node, namespace, pod)).await
        }
        Route::Unknown => Err(not_found()),
        other => get_only(parts, || roots(&ask, other)),
    }
}

/// A place that everybody may read.
fn open(parts: &Parts, answer: impl FnOnce() -> Answer) -> Answer {
    get_only(parts, answer)
}

fn get_only(parts: &Parts, answer: impl FnOnce() -> Answer) -> Answer {
    if parts.method == Method::GET || parts.method == Method::HEAD { answer() } else { Err(not_allowed()) }
}

fn roots(ask: &Ask<'_>, route: &Route<'_>) -> Answer {
    let registry = &ask.core().registry;
    match route {
        Route::Root => Ok(discovery::paths(registry)),
        Route::Metrics => {
            let source = ask.server.metrics.load();
            source.as_ref().map(|source| encode::metrics(source())).ok_or_else(not_found)
        }
        Route::CoreVersions => discovery::core(registry, &ask.parts.headers, ask.server.config.listen),
        Route::Groups => discovery::groups(registry, &ask.parts.headers),
        Route::Group(group) => discovery::group(registry, group).ok_or_else(not_found),
        Route::GroupVersion(group, version) => {
            discovery::group_version(registry, group, version).ok_or_else(not_found)
        }
        Route::OpenApiV3(rest) => openapi::v3(&ask.server.openapi, registry, rest, ask),
        Route::OpenApiV2 => Err(Status::new(
            StatusReason::NotAcceptable,
            "OpenAPI v2 is not served; the v3 documents are at /openapi/v3",
        )),
        _ => Err(not_found()),
    }
}

async fn resource(ask: &Ask<'_>, target: &Target<'_>, body: Incoming) -> Answer {
    if let (Some(_), Some(subresource)) = (&target.name, target.subresource)
        && subresource != "status"
    {
        return Box::pin(subresources::answer(ask, target, subresource, body)).await;
    }
    if target.subresource.is_some() && !target.resource.row.status {
        return Err(not_found());
    }
    let method = &ask.parts.method;
    match (method, target.name.is_some()) {
        (&Method::GET, true) if ask.query.flag("watch") => collection::list_or_watch(ask, target),
        (&Method::GET, true) => object::get(ask, target),
        (&Method::GET, false) => collection::list_or_watch(ask, target),
        (&Method::POST, false) => Box::pin(object::create(ask, target, body)).await,
        (&Method::PUT, true) => Box::pin(object::update(ask, target, body)).await,
        (&Method::PATCH, true) => Box::pin(object::patch(ask, target, body)).await,
        (&Method::DELETE, true) if target.subresource.is_none() => {
            Box::pin(object::delete(ask, target, body)).await
        }
        (&Method::DELETE, false) => Box::pin(collection::delete(ask, target, body)).await,
        _ => Err(not_allowed()),
    }
}

/// 404 for what is no place of the API.
pub(crate) fn not_found() -> Status {
    let mut status = Status::new(StatusReason::NotFound, "the server could not find the requested resource");
    status.details = Some(Box::default());
    status
}

/// 405.
pub(crate) fn not_allowed() -> Status {
    let message = "the server does not allow this method on the requested resource";
    Status { details: Some(Box::default()), ..Status::new(StatusReason::MethodNotAllowed, message) }
}

/// Adds `Warning` headers.
pub(crate) fn warn(mut response: Response<Body>, warnings: &[String]) -> Response<Body> {
    for warning in warnings {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = format!("299 - \"{quoted}\"").parse() {
            response.headers_mut().append(http::header::WARNING, value);
        }
    }
    response
}

/// `Status` of a success without an object.
pub(crate) fn success(form: &encode::Form<'_>, code: StatusCode) -> Answer {
    let value = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code.as_u16(),
    });
    encode::value(form, code, &value)
}

/// Reads a body that is no object of a row; `None` when it is empty.
pub(crate) async fn body_value(
    ask: &Ask<'_>,
    body: Incoming,
    (group, version, kind): (&str, &str, &str),
) -> Result<Option<serde_json::Value>, Status> {
    let bytes = decode::read(&ask.parts.headers, body).await?;
    if bytes.is_empty() {
        return Ok(None);
    }
    decode::plain(&ask.parts.headers, &bytes, group, version, kind).map(Some)
}
