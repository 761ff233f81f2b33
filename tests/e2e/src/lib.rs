//! End-to-end tests: a real cloud, kubectl and client libraries.
