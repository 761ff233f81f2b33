//! Object vocabulary of the Kubernetes API: Status errors, field errors, schema, quantities, selectors, names,
//! and the wire encodings of objects.
//!
//! Pure data and functions: no I/O, no tokio, no clock. Everything that both sides of an API call must agree on
//! lives here; everything that needs a store or a process lives above.

pub mod field;
pub mod intstr;
pub mod json;
pub mod meta;
pub mod names;
pub mod openapi;
pub mod protobuf;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod status;
pub mod storage;

pub use k8s_openapi;
pub use quantity::Quantity;
pub use selector::{FieldSelector, Selector};
pub use status::{Status, StatusReason};
