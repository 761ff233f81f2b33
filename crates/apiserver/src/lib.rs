//! The Kubernetes API over HTTPS: one generic registry of resources.
