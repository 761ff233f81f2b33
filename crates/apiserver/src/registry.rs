//! The resources that are served: an index over the rows.
//!
//! Built once at the start and never changed while serving; looking up a path allocates nothing.

use crate::row::{Row, View};
use cumulet_api::schema::{Type, schema};
use cumulet_cluster::ResourceId;
use cumulet_store::ResourceTag;
use serde_json::Value;
use std::borrow::Cow;

/// One served resource. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Resource {
    /// Its declaration.
    pub(crate) row: &'static Row,
    /// The type of its objects.
    pub(crate) ty: &'static Type,
    /// Where its objects are in the store.
    pub(crate) tag: ResourceTag,
    /// Set when its objects are stored in the form of another resource.
    pub(crate) view: Option<&'static View>,
}

impl Resource {
    /// `apps/v1`, or only `v1` in the core group.
    pub(crate) fn api_version(&self) -> String {
        api_version(self.row.group, self.row.version)
    }

    /// `apps/v1, Kind=Deployment`, or `/v1, Kind=Pod` in the core group, as Go prints it.
    pub(crate) fn api_version_kind(&self) -> String {
        format!("{}/{}, Kind={}", self.row.group, self.row.version, self.row.kind)
    }

    /// A stored object in the form in which this resource serves it.
    pub(crate) fn served<'a>(&self, object: &'a Value) -> Cow<'a, Value> {
        let Some(view) = self.view else { return Cow::Borrowed(object) };
        let name = |stored: &str| view.names.iter().find(|pair| pair.0 == stored).map(|pair| pair.1);
        Cow::Owned(renamed(object, &self.api_version(), name))
    }

    /// An object of this resource in the form in which it is stored.
    pub(crate) fn stored(&self, object: Value) -> Value {
        let Some(view) = self.view else { return object };
        let (group, version, _) = view.of;
        renamed(&object, &api_version(group, version), |served| stored_name(view, served))
    }

    /// The path in the stored form of a field of this resource.
    pub(crate) fn stored_path(&self, path: &str) -> String {
        let first = path.split('.').next().unwrap_or(path);
        match self.view.and_then(|view| stored_name(view, first)) {
            Some(name) => format!("{name}{}", &path[first.len()..]),
            None => path.to_owned(),
        }
    }

    /// True for the resource of this group and plural name.
    pub(crate) fn is(&self, group: &str, plural: &str) -> bool {
        self.row.group == group && self.row.plural == plural
    }
}

/// The stored name of a served field, where it is another one.
fn stored_name(view: &View, served: &str) -> Option<&'static str> {
    view.names.iter().find(|pair| pair.1 == served).map(|pair| pair.0)
}

/// The object with other names for its top-level fields, in another version.
fn renamed(object: &Value, version: &str, name: impl Fn(&str) -> Option<&'static str>) -> Value {
    let fields = object.as_object().into_iter().flatten();
    let mut new: Value = fields.map(|(k, v)| (name(k).unwrap_or(k).to_owned(), v.clone())).collect();
    new["apiVersion"] = version.into();
    new
}

/// `apps/v1`, or only `v1` in the core group.
pub(crate) fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// The resources of one version of one group.
pub(crate) struct GroupVersion {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    /// Ordered by plural name.
    pub(crate) resources: Vec<Resource>,
}

/// All resources.
pub(crate) struct Registry {
    /// Core first, then in the order in which the rows name the groups.
    versions: Vec<GroupVersion>,
}

impl Registry {
    pub(crate) fn new(rows: &'static [Row], views: &'static [View]) -> Self {
        let mut versions: Vec<GroupVersion> = Vec::new();
        let rows = rows.iter().map(|row| (row, None, (row.group, row.plural)));
        let views = views.iter().map(|view| (&view.row, Some(view), (view.of.0, view.of.2)));
        for (row, view, (group, plural)) in rows.chain(views) {
            let place = if group.is_empty() { plural.to_owned() } else { format!("{group}/{plural}") };
            // A row without a type could not be decoded; a test holds that there is none.
            let Some(ty) = schema().kind(row.group, row.version, row.kind) else { continue };
            let resource = Resource { row, ty, tag: ResourceTag::new(&place), view };
            match versions.iter_mut().find(|v| v.group == row.group && v.version == row.version) {
                Some(found) => found.resources.push(resource),
                None => versions.push(GroupVersion {
                    group: row.group,
                    version: row.version,
                    resources: vec![resource],
                }),
            }
        }
        versions.sort_by_key(|v| !v.group.is_empty());
        for version in &mut versions {
            version.resources.sort_by_key(|r| r.row.plural);
        }
        Self { versions }
    }

    /// All versions of all groups, core first.
    pub(crate) fn versions(&self) -> &[GroupVersion] {
        &self.versions
    }

    /// The named groups (without core), each with its first version.
    pub(crate) fn groups(&self) -> Vec<&'static str> {
        let mut groups: Vec<&'static str> = Vec::new();
        for version in &self.versions {
            if !version.group.is_empty() && !groups.contains(&version.group) {
                groups.push(version.group);
            }
        }
        groups
    }

    pub(crate) fn version(&self, group: &str, version: &str) -> Option<&GroupVersion> {
        self.versions.iter().find(|v| v.group == group && v.version == version)
    }

    /// The resource at this place of the URL space.
    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Resource> {
        let resources = &self.version(group, version)?.resources;
        resources.binary_search_by(|r| r.row.plural.cmp(plural)).ok().map(|at| &resources[at])
    }

    /// The resource that a component names. Components use the stored form of every object.
    pub(crate) fn by_id(&self, id: &ResourceId) -> Option<&Resource> {
        self.find(&id.group, &id.version, &id.plural).filter(|resource| resource.view.is_none())
    }

    /// The resource in whose form the objects of `resource` are stored: itself unless it is a view.
    pub(crate) fn stored<'a>(&'a self, resource: &'a Resource) -> &'a Resource {
        let of = resource.view.and_then(|view| self.find(view.of.0, view.of.1, view.of.2));
        of.unwrap_or(resource)
    }

    pub(crate) fn resources(&self) -> impl Iterator<Item = &Resource> {
        self.versions.iter().flat_map(|v| &v.resources)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_served() {
        let (rows, views) = (crate::kinds::rows(), crate::kinds::views());
        let registry = Registry::new(rows, views);
        assert_eq!(registry.resources().count(), rows.len() + views.len());
        assert!(registry.find("apps", "v1", "deployments").is_some());
        assert!(registry.find("", "v1", "deployments").is_none());
        assert_eq!(registry.versions()[0].group, "");
    }

    #[test]
    fn views_rename_and_share_the_storage() {
        let registry = Registry::new(crate::kinds::rows(), crate::kinds::views());
        for view in registry.resources().filter(|resource| resource.view.is_some()) {
            let of = registry.stored(view);
            assert!(of.view.is_none() && of.tag == view.tag && of.row.plural == view.row.plural);
            let names = view.view.unwrap().names;
            let object: Value =
                names.iter().map(|(stored, _)| ((*stored).to_owned(), Value::from(*stored))).collect();
            let served = view.served(&object).into_owned();
            for (stored, name) in names {
                assert_eq!(served[*name], *stored);
                assert_eq!(view.stored_path(&format!("{name}.a.b")), format!("{stored}.a.b"));
            }
            assert_eq!(served["apiVersion"], view.api_version());
            let mut back = view.stored(served);
            assert_eq!(back["apiVersion"], of.api_version());
            back.as_object_mut().unwrap().remove("apiVersion");
            assert_eq!(back, object);
            assert_eq!(view.stored_path("metadata.name"), "metadata.name");
        }
    }
}
