//! The part of QMP's vocabulary that we use.

use super::QmpEvent;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Patch number.
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Greeting {
    #[serde(rename = "QMP")]
    qmp: GreetingBody,
}

#[derive(Debug, Deserialize)]
struct GreetingBody {
    version: GreetingVersion,
}

#[derive(Debug, Deserialize)]
struct GreetingVersion {
    qemu: Version,
}

impl Greeting {
    pub(super) fn version(&self) -> Version {
        self.qmp.version.qemu
    }
}

/// What QEMU sends after its greeting.
#[derive(Debug, PartialEq)]
pub(super) enum Incoming {
    Answer { id: Option<u64>, result: Result<Value, String> },
    Event(QmpEvent),
}

#[derive(Debug, Deserialize)]
struct Raw {
    id: Option<u64>,
    // `null` would be an answer too, so absent and null are told apart.
    #[serde(rename = "return", default, deserialize_with = "present")]
    value: Option<Value>,
    error: Option<RawError>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

#[derive(Debug, Deserialize)]
struct RawError {
    desc: String,
}

impl Incoming {
    pub(super) fn parse(line: &[u8]) -> Result<Self, String> {
        let raw: Raw = parse(line)?;
        match (raw.event, raw.value, raw.error) {
            (Some(name), None, None) => Ok(Self::Event(QmpEvent { name, data: raw.data })),
            (None, Some(value), None) => Ok(Self::Answer { id: raw.id, result: Ok(value) }),
            (None, None, Some(error)) => Ok(Self::Answer { id: raw.id, result: Err(error.desc) }),
            _ => Err("neither an answer nor an event".to_owned()),
        }
    }
}

/// Parses a line. What is wrong is said without the line: it may be long, and it comes from QEMU.
pub(super) fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    serde_json::from_slice(line).map_err(|e| format!("not QMP: {e}"))
}

/// Answer to `query-status`.
#[derive(Debug, Clone, Deserialize)]
pub struct RunStatus {
    /// Whether the CPUs run.
    pub running: bool,
    /// QEMU's name of the state.
    pub status: String,
}

/// Answer to `query-balloon`.
#[derive(Debug, Clone, Deserialize)]
pub struct Balloon {
    /// Memory that the guest has, in bytes.
    pub actual: u64,
}

/// Answer to `query-migrate`, as far as we look.
#[derive(Debug, Clone, Deserialize)]
pub struct MigrationStatus {
    /// `setup`, `active`, `completed`, `failed` …; absent before the first.
    pub status: Option<String>,
    /// Why it failed.
    #[serde(rename = "error-desc")]
    pub error: Option<String>,
}

/// An element of the answer to `query-blockstats`.
#[derive(Debug, Clone, Deserialize)]
pub struct BlockStats {
    /// The device's path in QEMU's tree, which ends in our name for it.
    #[serde(default)]
    pub qdev: String,
    /// The counters.
    pub stats: BlockCounters,
}

/// Counters of a block device since the start.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct BlockCounters {
    /// Bytes read.
    pub rd_bytes: u64,
    /// Bytes written.
    pub wr_bytes: u64,
    /// Read operations.
    pub rd_operations: u64,
    /// Write operations.
    pub wr_operations: u64,
}
