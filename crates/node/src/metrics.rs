//! What `/metrics` tells of this node: how pods of class `vm-snapshot` start, and in what time.

use crate::supervisor::proto::Restored;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::time::Duration;

/// One label and its value.
type Label = [(&'static str, &'static str); 1];
type Histograms = Family<Label, Histogram, fn() -> Histogram>;

/// How a pod that asked for a snapshot has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// A standby became it.
    Standby,
    /// It was restored for it.
    Restored,
    /// It booted, and becomes the snapshot.
    Built,
    /// It booted without one.
    Booted,
}

impl Start {
    fn label(self) -> Label {
        let text = match self {
            Self::Standby => "standby",
            Self::Restored => "restored",
            Self::Built => "built",
            Self::Booted => "booted",
        };
        [("start", text)]
    }
}

/// The node's counters.
pub(crate) struct Metrics {
    registry: Registry,
    starts: Family<Label, Counter>,
    start_seconds: Histograms,
    phase_seconds: Histograms,
    builds: Family<Label, Counter>,
    build_seconds: Histogram,
    pause_seconds: Histogram,
    standbys: Gauge,
    templates: Gauge,
}

/// From a millisecond to eight seconds.
fn short() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 14))
}

/// From half a second to more than an hour.
fn long() -> Histogram {
    Histogram::new(exponential_buckets(0.5, 2.0, 14))
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("cumulet_snapshot");
        let mut all = Self {
            registry: Registry::default(),
            starts: Family::default(),
            start_seconds: Family::new_with_constructor(short),
            phase_seconds: Family::new_with_constructor(short),
            builds: Family::default(),
            build_seconds: long(),
            pause_seconds: short(),
            standbys: Gauge::default(),
            templates: Gauge::default(),
        };
        registry.register("starts", "Pods of class vm-snapshot, by how they started", all.starts.clone());
        registry.register_with_unit(
            "start",
            "From the order to start the pod's sandbox until its containers went on",
            Unit::Seconds,
            all.start_seconds.clone(),
        );
        registry.register_with_unit(
            "phase",
            "Phases of a start from a snapshot",
            Unit::Seconds,
            all.phase_seconds.clone(),
        );
        registry.register(
            "builds",
            "Snapshots that were to be built, by what came of it",
            all.builds.clone(),
        );
        registry.register_with_unit(
            "build",
            "From the boot of a pod until it was the snapshot",
            Unit::Seconds,
            all.build_seconds.clone(),
        );
        registry.register_with_unit(
            "pause",
            "How long a pod stood still while it was saved",
            Unit::Seconds,
            all.pause_seconds.clone(),
        );
        registry.register("standbys", "Clones that wait for a pod", all.standbys.clone());
        registry.register(
            "in_memory",
            "Snapshots that pods can be started from at once",
            all.templates.clone(),
        );
        all.registry = registry;
        all
    }

    /// A pod starts in this way.
    pub(crate) fn started(&self, start: Start) {
        self.starts.get_or_create(&start.label()).inc();
    }

    /// A clone has become its pod, after this time.
    pub(crate) fn restored(&self, start: Start, took: Duration, restored: &Restored) {
        self.started(start);
        self.start_seconds.get_or_create(&start.label()).observe(took.as_secs_f64());
        let phases = [
            ("spawn", restored.spawn_us),
            ("load", restored.load_us),
            ("greeting", restored.greet_us),
            ("identity", restored.identity_us),
        ];
        // A standby went through the others before there was a pod.
        for (phase, us) in phases.into_iter().filter(|(phase, _)| !restored.standby || *phase == "identity") {
            self.phase_seconds.get_or_create(&[("phase", phase)]).observe(seconds(us));
        }
    }

    /// A pod has become a snapshot, after this time and a pause of so many microseconds.
    pub(crate) fn built(&self, took: Duration, pause_us: u64) {
        self.builds.get_or_create(&[("result", "built")]).inc();
        self.build_seconds.observe(took.as_secs_f64());
        self.pause_seconds.observe(seconds(pause_us));
    }

    /// A pod has not become a snapshot.
    pub(crate) fn not_built(&self) {
        self.builds.get_or_create(&[("result", "failed")]).inc();
    }

    /// Everything in the text format of OpenMetrics, with these many standbys and templates.
    pub(crate) fn encode(&self, standbys: usize, templates: usize) -> String {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.standbys.set(count(standbys));
        self.templates.set(count(templates));
        let mut out = String::new();
        // Writing into a string cannot fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

#[expect(clippy::cast_precision_loss, reason = "a time in seconds needs no more digits than a float has")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_counted_by_their_kind() {
        let metrics = Metrics::new();
        metrics.started(Start::Booted);
        let restored = Restored { spawn_us: 70_000, identity_us: 40_000, ..Restored::default() };
        metrics.restored(Start::Restored, Duration::from_millis(300), &restored);
        let restored = Restored { standby: true, ..restored };
        metrics.restored(Start::Standby, Duration::from_millis(100), &restored);
        metrics.built(Duration::from_secs(9), 12_000);
        let text = metrics.encode(2, 1);
        for line in [
            "cumulet_snapshot_starts_total{start=\"booted\"} 1",
            "cumulet_snapshot_starts_total{start=\"standby\"} 1",
            "cumulet_snapshot_start_seconds_count{start=\"restored\"} 1",
            "cumulet_snapshot_phase_seconds_sum{phase=\"spawn\"} 0.07",
            "cumulet_snapshot_phase_seconds_count{phase=\"identity\"} 2",
            "cumulet_snapshot_builds_total{result=\"built\"} 1",
            "cumulet_snapshot_standbys 2",
            "# EOF",
        ] {
            assert!(text.contains(line), "no {line} in\n{text}");
        }
    }
}
