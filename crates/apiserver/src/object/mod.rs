//! What is the same for objects of every kind: metadata rules, and how an object is put into the store.

pub(crate) mod body;
pub(crate) mod rules;
