//! The API for components of the same process: the verbs without HTTP.
//!
//! Same defaulting, validation and admission as over HTTPS. Unknown fields are dropped, as with `fieldValidation`
//! `Ignore`: the callers are typed.

use crate::auth::Identity;
use crate::codec::decode::{self, Strictness};
use crate::core::{Call, Core};
use crate::registry::Resource;
use crate::subresources::scale;
use crate::verbs::list::Page;
use crate::verbs::patch::Patch;
use crate::verbs::select::Filter;
use crate::verbs::update::Part;
use crate::verbs::watch::{Told, WatchOptions};
use bytes::Bytes;
use cumulet_api::{Status, schema};
use cumulet_cluster::access::ResourceInfo;
use cumulet_cluster::{
    BoxFuture, BoxStream, Cluster, DeleteOptions, List, ListOptions, ObjectRef, PatchKind, ResourceId,
    WatchItem,
};
use futures_util::stream;
use serde_json::Value;
use std::sync::Arc;

/// The API as one component sees it.
pub(crate) struct InProcess {
    pub(crate) core: Arc<Core>,
    pub(crate) user: Identity,
}

impl InProcess {
    fn resource(&self, id: &ResourceId) -> Result<&Resource, Status> {
        self.core.registry.by_id(id).ok_or_else(crate::handlers::not_found)
    }

    fn call<'a>(
        &'a self,
        resource: &'a ResourceId,
        namespace: Option<&'a str>,
        name: &'a str,
    ) -> Result<Call<'a>, Status> {
        let resource = self.resource(resource)?;
        let namespace = namespace.filter(|namespace| !namespace.is_empty());
        Ok(Call { resource, namespace, name, user: &self.user, dry_run: false })
    }

    fn at<'a>(&'a self, at: &'a ObjectRef) -> Result<Call<'a>, Status> {
        self.call(&at.resource, at.namespace.as_deref(), &at.name)
    }

    fn filter(call: &Call<'_>, options: &ListOptions) -> Result<Filter, Status> {
        Filter::new(
            call.resource,
            call.namespace,
            options.label_selector.as_deref(),
            options.field_selector.as_deref(),
        )
    }
}

fn unknown_subresource(name: &str) -> Status {
    Status::bad_request(format!("no such subresource here: {name}"))
}

fn part(subresource: Option<&str>) -> Result<Part, Status> {
    match subresource {
        None => Ok(Part::Main),
        Some("status") => Ok(Part::Status),
        Some(other) => Err(unknown_subresource(other)),
    }
}

fn text(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}

impl Cluster for InProcess {
    fn get<'a>(&'a self, at: &'a ObjectRef) -> BoxFuture<'a, Result<Bytes, Status>> {
        Box::pin(async move { Ok(self.core.get(&self.at(at)?)?.body.clone()) })
    }

    fn list<'a>(
        &'a self,
        resource: &'a ResourceId,
        options: &'a ListOptions,
    ) -> BoxFuture<'a, Result<List, Status>> {
        Box::pin(async move {
            let call = self.call(resource, options.namespace.as_deref(), "")?;
            let listed = self.core.list(&call, &Self::filter(&call, options)?, &Page::default())?;
            let items = listed.items.iter().map(|record| record.body.clone()).collect();
            Ok(List { items, revision: listed.revision })
        })
    }

    fn watch<'a>(
        &'a self,
        resource: &'a ResourceId,
        options: &'a ListOptions,
        from: u64,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<WatchItem, Status>>, Status>> {
        Box::pin(async move {
            let call = self.call(resource, options.namespace.as_deref(), "")?;
            let filter = Self::filter(&call, options)?;
            let options =
                WatchOptions { version: Some(from.to_string()), bookmarks: true, ..WatchOptions::default() };
            let feed = self.core.watch(&call, filter, &options)?;
            let items = stream::unfold(Some(feed), |feed| async move {
                let mut feed = feed?;
                match feed.next().await? {
                    Ok(Told::Item(item)) => Some((Ok(item), Some(feed))),
                    Ok(Told::InitialEnd(revision)) => Some((Ok(WatchItem::Bookmark(revision)), Some(feed))),
                    Err(status) => Some((Err(status), None)),
                }
            });
            Ok(Box::pin(items) as BoxStream<'static, _>)
        })
    }

    fn create<'a>(
        &'a self,
        resource: &'a ResourceId,
        namespace: Option<&'a str>,
        object: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Status>> {
        Box::pin(async move {
            let call = self.call(resource, namespace, "")?;
            let object = decode::trusted(call.resource, &object)?;
            self.core.create(&call, object).await
        })
    }

    fn create_sub<'a>(
        &'a self,
        at: &'a ObjectRef,
        subresource: &'a str,
        object: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Status>> {
        Box::pin(async move {
            let call = self.at(at)?;
            match subresource {
                "binding" if call.resource.is("", "pods") => {
                    let binding: Value =
                        serde_json::from_slice(&object).map_err(|e| Status::bad_request(e.to_string()))?;
                    self.core.bind(&call, &binding).await?;
                    Ok(object)
                }
                other => Err(unknown_subresource(other)),
            }
        })
    }

    fn update<'a>(
        &'a self,
        at: &'a ObjectRef,
        subresource: Option<&'a str>,
        object: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Status>> {
        Box::pin(async move {
            let call = self.at(at)?;
            match subresource {
                Some("scale") => {
                    let scale = scale::decode_scale(&object)?;
                    self.core.write_scale(&call, |_| Ok(scale.clone())).await.map(|scale| text(&scale))
                }
                Some("finalize") if call.resource.is("", "namespaces") => {
                    let object = decode::trusted(call.resource, &object)?;
                    self.core.finalize(&call, &object).await
                }
                other => {
                    let object = decode::trusted(call.resource, &object)?;
                    self.core.replace(&call, part(other)?, &object).await
                }
            }
        })
    }

    fn patch<'a>(
        &'a self,
        at: &'a ObjectRef,
        subresource: Option<&'a str>,
        kind: PatchKind,
        patch: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Status>> {
        Box::pin(async move {
            let call = self.at(at)?;
            let patch = Patch::parse(kind, &patch)?;
            if subresource == Some("scale") {
                let ty = schema::schema().kind("autoscaling", "v1", "Scale");
                let ty = ty.ok_or_else(crate::handlers::not_found)?;
                let scale = self.core.write_scale(&call, |scale| patch.apply(ty, scale)).await?;
                return Ok(text(&scale));
            }
            let (stored, _) =
                self.core.patch(&call, call.resource, part(subresource)?, &patch, Strictness::Ignore).await?;
            Ok(stored)
        })
    }

    fn delete<'a>(
        &'a self,
        at: &'a ObjectRef,
        options: &'a DeleteOptions,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move { self.core.delete(&self.at(at)?, options).await.map(drop) })
    }

    fn resources(&self) -> Vec<ResourceInfo> {
        let info = |resource: &Resource| {
            let row = resource.row;
            let id = ResourceId::new(row.group, row.version, row.plural);
            ResourceInfo { id, kind: row.kind.to_owned(), namespaced: row.namespaced }
        };
        let stored = self.core.registry.resources().filter(|resource| resource.view.is_none());
        stored.map(info).collect()
    }
}
