//! The resources that are served: an index over the rows.
//!
//! Built once at the start and never changed while serving; looking up a path allocates nothing.

use crate::row::Row;
use cumulet_api::schema::{Type, schema};
use cumulet_cluster::ResourceId;
use cumulet_store::ResourceTag;

/// One served resource. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Resource {
    /// Its declaration.
    pub(crate) row: &'static Row,
    /// The type of its objects.
    pub(crate) ty: &'static Type,
    /// Where its objects are in the store.
    pub(crate) tag: ResourceTag,
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

    /// True for the resource of this group and plural name.
    pub(crate) fn is(&self, group: &str, plural: &str) -> bool {
        self.row.group == group && self.row.plural == plural
    }
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
    pub(crate) fn new(rows: &'static [Row]) -> Self {
        let mut versions: Vec<GroupVersion> = Vec::new();
        for row in rows {
            let place = if row.group.is_empty() {
                row.plural.to_owned()
            } else {
                format!("{}/{}", row.group, row.plural)
            };
            // A row without a type could not be decoded; a test holds that there is none.
            let Some(ty) = schema().kind(row.group, row.version, row.kind) else { continue };
            let resource = Resource { row, ty, tag: ResourceTag::new(&place) };
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

    /// The resource that a component names.
    pub(crate) fn by_id(&self, id: &ResourceId) -> Option<&Resource> {
        self.find(&id.group, &id.version, &id.plural)
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
        let registry = Registry::new(crate::kinds::rows());
        assert_eq!(registry.resources().count(), crate::kinds::rows().len());
        assert!(registry.find("apps", "v1", "deployments").is_some());
        assert!(registry.find("", "v1", "deployments").is_none());
        assert_eq!(registry.versions()[0].group, "");
    }
}
