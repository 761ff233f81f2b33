//! A resource is one declarative row; the generic handlers do everything else.
//!
//! What is absent on purpose: there is no handler per resource. A kind that needs something of its own says so in
//! its [`Strategy`], whose functions are pure; effects outside the object (allocated addresses) are an
//! [`Allocation`].

use cumulet_api::field::FieldError;
use serde_json::Value;

/// One column of the table that `kubectl get` prints.
pub struct Column {
    /// Heading, as Kubernetes spells it.
    pub name: &'static str,
    /// OpenAPI type: `string`, `integer`, `date`, `boolean`.
    pub kind: &'static str,
    /// OpenAPI format: `name` for the first column of most kinds, else empty.
    pub format: &'static str,
    /// 0 for columns always shown, 1 for those of `-o wide`.
    pub priority: u8,
    /// What the column means.
    pub description: &'static str,
}

/// Which `scale` subresource a kind has: JSON pointers into the object.
pub struct Scale {
    /// Where the wanted number of replicas is.
    pub spec_replicas: &'static str,
    /// Where the present number of replicas is.
    pub status_replicas: &'static str,
    /// Where the label selector is (a LabelSelector or a plain map).
    pub selector: &'static str,
}

/// One resource of the API.
pub struct Row {
    /// API group, empty for core.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Kind, which is also the name of the type in the schema table.
    pub kind: &'static str,
    /// Plural name, lower case.
    pub plural: &'static str,
    /// Singular name, lower case.
    pub singular: &'static str,
    /// Short names that kubectl accepts.
    pub short_names: &'static [&'static str],
    /// Categories such as `all`.
    pub categories: &'static [&'static str],
    /// True when the objects live in namespaces.
    pub namespaced: bool,
    /// True when `status` is a subresource: the main resource never changes it, and the reverse.
    pub status: bool,
    /// The `scale` subresource, if any.
    pub scale: Option<Scale>,
    /// Fields that a field selector may name besides `metadata.name` and `metadata.namespace`, as dotted paths.
    pub selectable_fields: &'static [&'static str],
    /// Columns of the printed table.
    pub columns: &'static [Column],
    /// The cells of one object, in the order of `columns`.
    pub cells: fn(object: &Value, now: jiff::Timestamp) -> Vec<Value>,
    /// The rules of the kind.
    pub strategy: &'static dyn Strategy,
}

/// A resource that shows the objects of another row under other names: one storage, two forms.
///
/// Verbs know only the stored form. Bodies are put into it when they have been decoded, and answers into the served
/// form when they are encoded; a patch is applied to the served form.
pub struct View {
    /// How it is served. Columns, cells and strategy are those of the row that it shows, and see the stored form.
    pub row: Row,
    /// Group, version and plural of the row that it shows.
    pub of: (&'static str, &'static str, &'static str),
    /// The top-level fields that have another name: as stored, as served.
    pub names: &'static [(&'static str, &'static str)],
    /// Rules for a new object, in its stored form, beyond those of the row that it shows.
    pub validate_create: fn(object: &Value) -> Vec<FieldError>,
}

/// What a kind adds to the generic life of an object. All functions are pure.
pub trait Strategy: Sync {
    /// Sets the defaults that Kubernetes sets. Called on create, on update and on what is read back from old disks.
    fn default(&self, _object: &mut Value) {}

    /// Prepares a new object after defaulting: drops what a client may not set (status), sets initial status and
    /// `metadata.generation`.
    fn prepare_create(&self, _object: &mut Value) {}

    /// Prepares an update of the main resource: keeps what only the server or the status subresource may change,
    /// and bumps `metadata.generation` when the spec changed.
    fn prepare_update(&self, _old: &Value, _new: &mut Value) {}

    /// Prepares an update through `status`: everything but status (and metadata that status may touch) is kept.
    fn prepare_status_update(&self, _old: &Value, _new: &mut Value) {}

    /// Rules for a complete object. Metadata rules common to all kinds are checked elsewhere.
    fn validate(&self, _object: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// Rules for a change, beyond `validate` of the new object: immutable fields.
    fn validate_update(&self, _old: &Value, _new: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// Rules for a change of the status.
    fn validate_status_update(&self, _old: &Value, _new: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// Warnings for the client (`Warning` headers), such as for deprecated fields.
    fn warnings(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    /// What a field selector compares for one of the row's `selectable_fields`, where that is not simply the text at
    /// the dotted path (empty when absent): a boolean that is `false` when absent, a renamed field.
    fn selectable(&self, _object: &Value, _field: &str) -> Option<String> {
        None
    }

    /// The rule for `metadata.name`; the DNS-1123 subdomain for most kinds, a DNS-1123 label for a few.
    fn validate_name(&self, name: &str) -> Vec<String> {
        cumulet_api::names::dns1123_subdomain(name)
    }

    /// The grace period of a deletion, in seconds, when the client asks for `wanted`; 0 deletes at once. Only pods
    /// have one.
    fn grace_period_seconds(&self, _object: &Value, _wanted: Option<i64>) -> i64 {
        0
    }

    /// Addresses and ports that the object holds in an allocator shared by all objects of the kind.
    fn allocation(&self) -> Allocation {
        Allocation::None
    }

    /// How dependents are treated when the client does not say: `Background` for all kinds in use today but
    /// ReplicationControllers, which orphan.
    fn default_propagation(&self) -> cumulet_cluster::Propagation {
        cumulet_cluster::Propagation::Background
    }
}

/// What a kind draws from a shared pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Nothing.
    None,
    /// Service addresses and node ports.
    Service,
}
