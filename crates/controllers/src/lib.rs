//! Kubernetes controllers: one driver, one file each.
