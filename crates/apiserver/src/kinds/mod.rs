//! The kinds that the API server serves: one file each, with its row and its rules.
//!
//! A kind is a [`Row`] (names, columns, selectable fields) and a `Strategy` (defaults, what creation and updates keep
//! or reset, rules). Rules work on JSON values by dotted paths (`value`), collect field errors in Kubernetes' words
//! (`checks`), and never fail otherwise: what has the wrong type counts as not set, since types are the schema's
//! business. The order of errors is Kubernetes' where a client can see it.
//!
//! Absent on purpose: effects. What needs other objects is admission, what needs a pool is `alloc`.

pub(crate) mod checks;
mod configmap;
mod deployment;
mod endpoints;
mod endpointslice;
mod event;
mod lease;
pub(crate) mod lifecycle;
mod namespace;
mod node;
mod persistentvolume;
mod persistentvolumeclaim;
pub(crate) mod pod;
pub(crate) mod printing;
mod replicaset;
mod replicationcontroller;
mod runtimeclass;
mod secret;
pub(crate) mod service;
mod serviceaccount;
pub(crate) mod storageclass;
mod template;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod value;

use crate::row::{Row, View};

/// All rows, core group first.
pub(crate) fn rows() -> &'static [Row] {
    ROWS
}

/// Resources that show the objects of a row in another form.
pub(crate) fn views() -> &'static [View] {
    VIEWS
}

static VIEWS: &[View] = &[event::VIEW];

static ROWS: &[Row] = &[
    configmap::ROW,
    endpoints::ROW,
    event::ROW,
    namespace::ROW,
    node::ROW,
    persistentvolume::ROW,
    persistentvolumeclaim::ROW,
    pod::ROW,
    replicationcontroller::ROW,
    secret::ROW,
    serviceaccount::ROW,
    service::ROW,
    deployment::ROW,
    replicaset::ROW,
    lease::ROW,
    endpointslice::ROW,
    runtimeclass::ROW,
    storageclass::ROW,
];
