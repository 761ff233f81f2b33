//! `pods/NAME/eviction`: a graceful deletion. There are no disruption budgets that could forbid it yet.

use crate::handlers::object::read_delete_options;
use crate::handlers::{Answer, Ask, body_value, success};
use crate::route::Target;
use cumulet_api::{Status, meta};
use cumulet_cluster::DeleteOptions;
use http::StatusCode;
use hyper::body::Incoming;

pub(super) async fn answer(ask: &Ask<'_>, target: &Target<'_>, body: Incoming) -> Answer {
    let mut call = ask.call(target)?;
    let form = ask.plain_form()?;
    let eviction = body_value(ask, body, ("policy", "v1", "Eviction")).await?;
    let eviction = eviction.ok_or_else(|| Status::bad_request("an Eviction is required"))?;
    let name = meta::name(&eviction);
    if !name.is_empty() && name != call.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let (options, dry_run) = match eviction.get("deleteOptions") {
        Some(options) => read_delete_options(options)?,
        None => (DeleteOptions::default(), false),
    };
    call.dry_run |= dry_run;
    ask.core().delete(&call, &options).await?;
    success(&form, StatusCode::CREATED)
}
