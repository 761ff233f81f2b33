//! The generic verbs over the rows. They work on decoded objects and know nothing of HTTP.

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod list;
pub(crate) mod namespace;
pub(crate) mod patch;
pub(crate) mod select;
pub(crate) mod update;
pub(crate) mod watch;
