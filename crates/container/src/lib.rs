//! Containers: OCI runtime spec, libcontainer, overlay root filesystems, cgroups.

pub mod spec;

pub use spec::ContainerSpec;
