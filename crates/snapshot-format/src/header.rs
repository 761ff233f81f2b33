//! A template's header: what it was made of, for whom, and what it needs.

use crate::{Compatibility, Key};
use serde::{Deserialize, Serialize};

/// What its maker says of a template. All of it together is limited by [`crate::MAX_HEADER_BYTES`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Description {
    /// When it was made, in microseconds since 1970.
    pub created_us: u64,
    /// The namespace that it never leaves.
    pub namespace: String,
    /// Of what it was made: the name of a Deployment or a pod.
    pub name: String,
    /// Images of its containers.
    pub images: Vec<String>,
    /// What it needs of a machine.
    pub compatibility: Compatibility,
    /// The node's own notes on the containers inside; opaque here.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub guest: serde_json::Value,
}

/// How much of a memory there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pages {
    /// Pages that are not zero, in bytes.
    pub nonzero_bytes: u64,
}

/// Everything known of a template without reading it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// The template's key.
    pub key: Key,
    /// Size of the guest's memory in bytes.
    pub memory_bytes: u64,
    /// Size of the devices' state in bytes.
    pub state_bytes: u64,
    /// What of the memory is not zero.
    pub pages: Pages,
    /// What its maker said.
    #[serde(flatten)]
    pub description: Description,
}

impl std::ops::Deref for Header {
    type Target = Description;

    fn deref(&self) -> &Description {
        &self.description
    }
}
