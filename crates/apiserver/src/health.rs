//! `/healthz`, `/livez` and `/readyz`, whole or check by check.

use crate::ApiServer;
use crate::codec::encode;
use crate::query::Query;
use axum::body::Body;
use http::{Response, StatusCode};
use std::fmt::Write;

type Check = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// A named condition of readiness; the error says what is missing.
pub struct ReadyCheck {
    name: String,
    check: Check,
}

impl ReadyCheck {
    /// A check. It is called for every request and must not block.
    pub fn new(
        name: impl Into<String>,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), check: Box::new(check) }
    }
}

/// Answers a health request: 200 with `ok`, or 500 with the checks and what they say.
pub(crate) fn answer(
    server: &ApiServer,
    endpoint: &str,
    name: Option<&str>,
    query: &Query<'_>,
) -> Response<Body> {
    let checks = server.ready_checks.load();
    let checks = if endpoint == "readyz" { checks.as_slice() } else { &[] };
    let ping = std::iter::once(("ping", Ok(())));
    let mut all = ping.chain(checks.iter().map(|check| (check.name.as_str(), (check.check)())));
    if let Some(name) = name {
        return match all.find(|(known, _)| *known == name) {
            Some((_, Ok(()))) => encode::text(StatusCode::OK, "ok"),
            Some((_, Err(why))) => encode::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
            None => encode::text(StatusCode::NOT_FOUND, "404 page not found\n"),
        };
    }
    let mut text = String::new();
    let mut failed = false;
    let excluded: Vec<&str> = query.all("exclude").collect();
    for (name, result) in all {
        // Writing into a string cannot fail.
        let _ = match result {
            _ if excluded.contains(&name) => writeln!(text, "[+]{name} excluded: ok"),
            Ok(()) => writeln!(text, "[+]{name} ok"),
            Err(why) => {
                failed = true;
                writeln!(text, "[-]{name} failed: {why}")
            }
        };
    }
    if failed {
        return encode::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{text}{endpoint} check failed\n"));
    }
    if query.optional_flag("verbose").is_some() {
        return encode::text(StatusCode::OK, format!("{text}{endpoint} check passed\n"));
    }
    encode::text(StatusCode::OK, "ok")
}
