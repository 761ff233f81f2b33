//! What a probe wrote: see `tests/e2e/probe/probe.rs`.

use anyhow::Context;
use serde_json::Value;
use std::fmt;

/// Iterations between two ticks.
const TICK: u64 = 16;
/// Records that are looked at after a change.
const AFTER: usize = 3;

/// One iteration of a probe.
#[derive(Clone, Debug)]
pub(super) struct Record {
    values: Value,
    /// When the host had it, in microseconds since the epoch.
    pub(super) logged_us: i64,
}

impl Record {
    /// A value; empty when there is none.
    pub(super) fn get(&self, name: &str) -> &str {
        self.values.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn number(&self, name: &str) -> i64 {
        self.get(name).parse().unwrap_or_default()
    }

    /// The generation at its beginning, of a clone.
    pub(super) fn generation(&self) -> Option<u64> {
        self.get("generation").parse().ok().filter(|number| *number > 0)
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.values.fmt(f)
    }
}

/// The output of a probe.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) ticks: Vec<u64>,
    /// In their order, each once.
    pub(super) records: Vec<Record>,
}

impl Log {
    /// Of `kubectl logs --timestamps`.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut log = Self { ticks: Vec::new(), records: Vec::new() };
        for line in text.lines() {
            let (at, line) = line.split_once(' ').with_context(|| format!("no time: {line:?}"))?;
            let values: Value = serde_json::from_str(line).with_context(|| format!("torn: {line:?}"))?;
            if let Some(tick) = values.get("tick").and_then(Value::as_u64) {
                log.ticks.push(tick);
                continue;
            }
            let at: jiff::Timestamp = at.parse().with_context(|| format!("no time: {at:?}"))?;
            let record = Record { values, logged_us: at.as_microsecond() };
            // What is after one change may be before another.
            if log.records.last().is_none_or(|last| last.number("seq") < record.number("seq")) {
                log.records.push(record);
            }
        }
        Ok(log)
    }

    /// The records that lie wholly after the thaw: the first that began with the new generation, and the following.
    pub(super) fn after_thaw(&self) -> Option<Vec<Record>> {
        let first = self.records.iter().position(|record| record.generation().is_some())?;
        Some(self.records[first..].to_vec())
    }

    /// Enough was written to judge.
    pub(super) fn is_complete(&self) -> bool {
        let after = self.after_thaw().unwrap_or_default();
        after.len() > AFTER
            && !self.ticks.is_empty()
            && after.iter().any(|r| r.get("tcp").starts_with("alive"))
    }

    /// No line is missing and none is there twice.
    pub(super) fn is_gapless(&self) -> bool {
        self.ticks.windows(2).all(|pair| pair[1] == pair[0] + TICK)
    }
}
