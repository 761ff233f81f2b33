//! List: a consistent view at one revision, whole or page by page.
//!
//! A continue token names the revision of the first page and the last object seen; later pages show the objects as
//! they were at that revision, and are refused with 410 once the history does not reach back that far.

use crate::core::{Call, Core};
use crate::verbs::select::Filter;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cumulet_api::field::FieldError;
use cumulet_api::status::{Cause, Details};
use cumulet_api::{Status, StatusReason};
use cumulet_store::{HistoryError, Key, Range, Record, Snapshot};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Objects looked at in one go while a page is being filled.
const SCAN: usize = 1000;

/// Which state a list shows and how much of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Page {
    /// `resourceVersion`, as sent.
    pub(crate) version: Option<String>,
    /// `resourceVersionMatch`, as sent.
    pub(crate) version_match: Option<String>,
    /// Most objects of a page; all when 0.
    pub(crate) limit: usize,
    /// The token of the page before.
    pub(crate) after: Option<String>,
}

/// A page of a list.
pub(crate) struct Listed {
    pub(crate) items: Vec<Arc<Record>>,
    pub(crate) revision: u64,
    /// The token for the next page.
    pub(crate) next: Option<String>,
    /// How many objects come on later pages. Known, as in Kubernetes, only when no selector leaves any out.
    pub(crate) remaining: Option<usize>,
}

#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    rv: u64,
    #[serde(default)]
    ns: String,
    start: String,
}

const TOKEN_VERSION: &str = "meta.k8s.io/v1";

/// Which revision a list is to show.
#[derive(Debug, PartialEq)]
enum At {
    Now,
    Exactly(u64),
}

impl Core {
    /// Lists the objects that match.
    pub(crate) fn list(&self, call: &Call<'_>, filter: &Filter, page: &Page) -> Result<Listed, Status> {
        let token = page.after.as_deref().map(read_token).transpose()?;
        let at = match &token {
            Some(_) if page.version_match.is_some() => {
                return Err(invalid(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden when continue is provided",
                ));
            }
            Some(_) if page.version.as_deref().is_some_and(|v| v != "0") => {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            Some(token) => At::Exactly(token.rv),
            None => self.which(page)?,
        };
        if token.is_none() && at == At::Now && page.limit == 0 {
            return Ok(self.list_whole(call, filter));
        }
        self.list_page(call, filter, page.limit, &at, token)
    }

    /// Everything as it is now, through an index where there is one.
    fn list_whole(&self, call: &Call<'_>, filter: &Filter) -> Listed {
        let tag = &call.resource.tag;
        let mut found = match (filter.name(), filter.namespace(), filter.node(call.resource)) {
            // The revision is read first: the object is then at least as new.
            (Some(name), Some(namespace), _) => {
                let revision = self.store.revision();
                let items = self.store.get(&Key::new(tag, namespace, name)).into_iter().collect();
                Snapshot { items, revision, more: false }
            }
            (_, _, Some(node)) => self.store.by_index(Filter::node_index(), node, Some(tag)),
            (_, namespace, _) => self.store.list(tag, &Range { namespace, ..Range::default() }),
        };
        if !filter.is_everything() || filter.namespace().is_some() {
            found.items.retain(|record| filter.matches(record));
        }
        Listed { items: found.items, revision: found.revision, next: None, remaining: None }
    }

    fn list_page(
        &self,
        call: &Call<'_>,
        filter: &Filter,
        limit: usize,
        at: &At,
        token: Option<Token>,
    ) -> Result<Listed, Status> {
        let continued = token.is_some();
        let mut after: Option<(String, String)> = token.map(|t| (t.ns, t.start));
        let mut items: Vec<Arc<Record>> = Vec::new();
        let mut revision = match at {
            At::Exactly(revision) => Some(*revision),
            At::Now => None,
        };
        let scan = if filter.is_everything() { limit } else { SCAN };
        loop {
            let range = Range {
                namespace: filter.namespace(),
                after: after.as_ref().map(|(ns, name)| (ns.as_str(), name.as_str())),
                limit: scan,
            };
            let found = match revision {
                Some(revision) => self
                    .store
                    .list_at(&call.resource.tag, revision, &range)
                    .map_err(|error| history(error, continued))?,
                None => self.store.list(&call.resource.tag, &range),
            };
            let at_revision = *revision.insert(found.revision);
            let last_of_scan =
                found.items.last().map(|r| (r.key.namespace.to_string(), r.key.name.to_string()));
            let mut left = found.items.into_iter().filter(|record| filter.matches(record));
            while limit == 0 || items.len() < limit {
                match left.next() {
                    Some(record) => items.push(record),
                    None => break,
                }
            }
            let page_full = limit != 0 && items.len() == limit;
            if page_full && (found.more || left.next().is_some()) {
                let last = items.last().map(|last| &last.key);
                let remaining =
                    if filter.is_everything() { self.count_after(call, at_revision, last) } else { None };
                let next = last.map(|last| write_token(last, at_revision));
                return Ok(Listed { items, revision: at_revision, next, remaining });
            }
            if !found.more {
                return Ok(Listed { items, revision: at_revision, next: None, remaining: None });
            }
            after = last_of_scan;
        }
    }

    /// How many objects the list has behind `last`; `None` when the history ended meanwhile.
    fn count_after(&self, call: &Call<'_>, revision: u64, last: Option<&Key>) -> Option<usize> {
        let after = last.map(|key| (&*key.namespace, &*key.name));
        let range = Range { namespace: call.namespace, after, limit: 0 };
        Some(self.store.list_at(&call.resource.tag, revision, &range).ok()?.items.len())
    }

    /// Reads `resourceVersion` and `resourceVersionMatch`.
    fn which(&self, page: &Page) -> Result<At, Status> {
        let version = page.version.as_deref().map(parse_version).transpose()?;
        let now = self.store.revision();
        match (page.version_match.as_deref(), version) {
            (Some(_), None) => Err(invalid(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            )),
            (Some("Exact"), Some(0)) => Err(invalid(
                "resourceVersionMatch",
                "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
            )),
            (_, Some(version)) if version > now => Err(too_large(version, now)),
            (Some("Exact"), Some(version)) => Ok(At::Exactly(version)),
            // Without a match rule, a page of a named revision is of exactly that revision.
            (None, Some(version)) if version != 0 && page.limit != 0 => Ok(At::Exactly(version)),
            (None | Some("NotOlderThan"), _) => Ok(At::Now),
            (Some(other), _) => {
                let error =
                    FieldError::not_supported("resourceVersionMatch", other, &["Exact", "NotOlderThan", ""]);
                Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[error]))
            }
        }
    }
}

/// 422 about a list option that may not be given.
pub(crate) fn invalid(field: &str, why: &str) -> Status {
    Status::invalid("meta.k8s.io", "ListOptions", "", &[FieldError::forbidden(field, why)])
}

/// Reads a resourceVersion.
pub(crate) fn parse_version(text: &str) -> Result<u64, Status> {
    text.parse().map_err(|_| {
        Status::bad_request(format!(
            "Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}

/// 504: the revision has not happened yet.
pub(crate) fn too_large(asked: u64, current: u64) -> Status {
    let mut status = Status::new(
        StatusReason::Timeout,
        format!("Too large resource version: {asked}, current: {current}"),
    );
    let cause = Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        field: String::new(),
    };
    status.details =
        Some(Box::new(Details { causes: vec![cause], retry_after_seconds: 1, ..Details::default() }));
    status
}

fn history(error: HistoryError, continued: bool) -> Status {
    match error {
        HistoryError::Future { asked, current } => too_large(asked, current),
        HistoryError::Compacted { .. } if continued => Status::expired(
            "The provided continue parameter is too old to display a consistent list result. You must start a new \
             list without the continue parameter.",
        ),
        HistoryError::Compacted { .. } => {
            Status::expired("The resourceVersion for the provided list is too old.")
        }
    }
}

fn write_token(last: &Key, revision: u64) -> String {
    let token = Token {
        v: TOKEN_VERSION.into(),
        rv: revision,
        ns: last.namespace.to_string(),
        start: last.name.to_string(),
    };
    // Strings and numbers always encode.
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
}

fn read_token(text: &str) -> Result<Token, Status> {
    let token =
        URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| serde_json::from_slice::<Token>(&bytes).ok());
    match token {
        Some(token) if token.v == TOKEN_VERSION => Ok(token),
        _ => Err(Status::bad_request("continue key is not valid")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cumulet_store::ResourceTag;

    #[test]
    fn tokens() {
        let key = Key::new(&ResourceTag::new("pods"), "n", "a");
        let token = read_token(&write_token(&key, 7)).unwrap();
        assert_eq!((token.rv, token.ns.as_str(), token.start.as_str()), (7, "n", "a"));
        for bad in ["", "x", "e30"] {
            assert_eq!(read_token(bad).err().map(|s| s.code), Some(400), "{bad:?}");
        }
    }
}
