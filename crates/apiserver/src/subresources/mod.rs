//! Subresources other than `status`, each in its own file.

pub(crate) mod binding;
pub(crate) mod checkpoint;
mod eviction;
pub(crate) mod exec;
mod log;
mod pod;
pub(crate) mod scale;
mod session;

use crate::codec::{decode, encode};
use crate::handlers::{Answer, Ask, not_allowed, not_found};
use crate::route::Target;
use http::{Method, StatusCode};
use hyper::body::Incoming;

/// A subresource that a kind has besides `status` and `scale`, for discovery.
pub(crate) struct Subresource {
    /// Group and plural name of the resource.
    pub(crate) of: (&'static str, &'static str),
    pub(crate) name: &'static str,
    /// Group, version and kind of its body, where it has one of its own.
    pub(crate) kind: Option<(&'static str, &'static str, &'static str)>,
    pub(crate) verbs: &'static [&'static str],
}

/// All of them.
pub(crate) const SUBRESOURCES: &[Subresource] = &[
    Subresource { of: ("", "namespaces"), name: "finalize", kind: None, verbs: &["update"] },
    Subresource {
        of: ("", "pods"),
        name: "attach",
        kind: Some(("", "v1", "PodAttachOptions")),
        verbs: &["create", "get"],
    },
    Subresource { of: ("", "pods"), name: "binding", kind: Some(("", "v1", "Binding")), verbs: &["create"] },
    Subresource {
        of: ("", "pods"),
        name: "eviction",
        kind: Some(("policy", "v1", "Eviction")),
        verbs: &["create"],
    },
    Subresource {
        of: ("", "pods"),
        name: "exec",
        kind: Some(("", "v1", "PodExecOptions")),
        verbs: &["create", "get"],
    },
    Subresource { of: ("", "pods"), name: "log", kind: None, verbs: &["get"] },
];

/// Answers a request to a subresource; exec and attach have been dealt with before.
pub(crate) async fn answer(ask: &Ask<'_>, target: &Target<'_>, subresource: &str, body: Incoming) -> Answer {
    let row = target.resource.row;
    let post = ask.parts.method == Method::POST;
    match ((row.group, row.plural), subresource) {
        (_, "scale") if row.scale.is_some() => scale::answer(ask, target, body).await,
        (("", "namespaces"), "finalize") if ask.parts.method == Method::PUT => {
            let call = ask.call(target)?;
            let form = ask.form()?;
            let bytes = decode::read(&ask.parts.headers, body).await?;
            let decoded =
                decode::object(target.resource, &ask.parts.headers, &bytes, decode::Strictness::Ignore)?;
            let stored = ask.core().finalize(&call, &decoded.object).await?;
            encode::object(&form, StatusCode::OK, target.resource, stored)
        }
        (("", "pods"), "log") if ask.parts.method == Method::GET => log::answer(ask, target).await,
        (("", "pods"), "binding") if post => binding::answer(ask, target, body).await,
        (("", "pods"), "eviction") if post => eviction::answer(ask, target, body).await,
        (("", "namespaces"), "finalize") | (("", "pods"), "log" | "binding" | "eviction") => {
            Err(not_allowed())
        }
        _ => Err(not_found()),
    }
}
