//! Durable revisioned objects with group commit and watch.
