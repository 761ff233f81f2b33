//! Node agent: pod runner, supervisor, volumes, probes, logs, services.
