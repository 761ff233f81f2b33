//! Node agent: pod runner, supervisor, volumes, probes, logs, services.

pub mod supervisor;
