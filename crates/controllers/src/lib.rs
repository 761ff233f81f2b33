//! Kubernetes controllers: one driver, one file each.
mod context;
mod deployment;
mod driver;
mod expectations;
mod informers;
mod meta;
mod pods;
mod queue;
mod replicas;
mod replicaset;
mod replicationcontroller;
mod scheduler;
