//! Requests about a collection: list, watch, delete all that match.

use crate::codec::encode;
use crate::core::Call;
use crate::handlers::object::delete_options;
use crate::handlers::{Answer, Ask, watch};
use crate::route::Target;
use crate::verbs::list::{Listed, Page};
use crate::verbs::select::Filter;
use cumulet_api::Status;
use hyper::body::Incoming;

pub(super) fn list_or_watch(ask: &Ask<'_>, target: &Target<'_>) -> Answer {
    let call = ask.call(target)?;
    let form = ask.form()?;
    let filter = filter(ask, target, &call)?;
    if ask.query.flag("watch") {
        return watch::answer(ask, target.resource, &call, filter, &form);
    }
    let listed = ask.core().list(&call, &filter, &page(ask)?)?;
    encode::list(&form, target.resource, &listed)
}

fn filter(ask: &Ask<'_>, target: &Target<'_>, call: &Call<'_>) -> Result<Filter, Status> {
    let labels = ask.query.get("labelSelector");
    let fields = ask.query.get("fieldSelector");
    // A watch on one object is a watch on the collection, narrowed to its name.
    let narrowed = target.name.as_deref().map(|name| match fields {
        Some(fields) => format!("{fields},metadata.name={name}"),
        None => format!("metadata.name={name}"),
    });
    Filter::new(target.resource, call.namespace, labels, narrowed.as_deref().or(fields))
}

fn page(ask: &Ask<'_>) -> Result<Page, Status> {
    let query = ask.query;
    Ok(Page {
        version: query.get("resourceVersion").map(str::to_owned),
        version_match: query.get("resourceVersionMatch").map(str::to_owned),
        limit: query.number("limit")?.unwrap_or(0),
        after: query.get("continue").map(str::to_owned),
    })
}

/// Deletes what matches and answers with the list of it.
pub(super) async fn delete(ask: &Ask<'_>, target: &Target<'_>, body: Incoming) -> Answer {
    let mut call = ask.call(target)?;
    if target.resource.row.namespaced && call.namespace.is_none() {
        return Err(crate::handlers::not_allowed());
    }
    let form = ask.form()?;
    let filter = filter(ask, target, &call)?;
    let page = page(ask)?;
    let (options, dry_run) = delete_options(ask, body).await?;
    call.dry_run |= dry_run;
    let listed = ask.core().list(&call, &filter, &page)?;
    let mut items = Vec::with_capacity(listed.items.len());
    for record in listed.items {
        let one = Call { name: &record.key.name, ..call.clone() };
        match ask.core().delete(&one, &options).await {
            Ok(_) => items.push(record),
            // Somebody else was faster.
            Err(status) if status.is_not_found() => {}
            Err(status) => return Err(status),
        }
    }
    encode::list(&form, target.resource, &Listed { items, ..listed })
}
