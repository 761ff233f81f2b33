//! The table of pods.

use super::status_text::summary;
use crate::kinds::printing::{NAME, age, column, name, or, string_or, wide};
use crate::kinds::value::{items, text};
use crate::row::Column;
use jiff::Timestamp;
use serde_json::Value;

pub(crate) static COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "The aggregate readiness state of this pod for accepting traffic."),
    column("Status", "The aggregate status of the containers in this pod."),
    column("Restarts", "How often the containers of this pod were restarted, and when the last time was."),
    crate::kinds::printing::AGE,
    wide("IP", "Address of the pod."),
    wide("Node", "Name of the node on which the pod runs."),
    wide("Nominated Node", "Node that the pod waits for."),
    wide("Readiness Gates", "How many of the extra conditions for readiness hold."),
];

pub(crate) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summary(pod);
    let ip = match items(pod, "status.podIPs") {
        [first, ..] => text(first, "ip"),
        [] => text(pod, "status.podIP"),
    };
    vec![
        name(pod),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.as_str().into(),
        summary.restarts(now).into(),
        age(pod, now),
        or(ip, "<none>").into(),
        string_or(pod, "spec.nodeName", "<none>"),
        string_or(pod, "status.nominatedNodeName", "<none>"),
        readiness_gates(pod).into(),
    ]
}

fn readiness_gates(pod: &Value) -> String {
    let gates = items(pod, "spec.readinessGates");
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let conditions = items(pod, "status.conditions");
    let holds = |gate: &&Value| {
        conditions
            .iter()
            .find(|c| text(c, "type") == text(gate, "conditionType"))
            .is_some_and(|c| text(c, "status") == "True")
    };
    format!("{}/{}", gates.iter().filter(holds).count(), gates.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> Timestamp {
        "2026-01-01T00:10:00Z".parse().unwrap()
    }

    /// READY, STATUS, RESTARTS of a pod with containers `a`, `b` and init containers `i`, `s` (a sidecar).
    fn check(status: Value, deleted: bool, expected: [&str; 3]) {
        let mut pod = json!({
            "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}],
                     "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]},
            "status": status,
        });
        if deleted {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:09:00Z");
        }
        let cells = cells(&pod, now());
        assert_eq!(cells[1..4], expected.map(Value::from), "{pod}");
        assert_eq!(cells[4], "10m");
    }

    fn terminated(code: i64, reason: &str, signal: i64) -> Value {
        json!({"terminated": {"exitCode": code, "reason": reason, "signal": signal}})
    }

    #[test]
    fn init_containers_have_their_words() {
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        let check_init = |state: Value, word: &str| {
            let status =
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": state}]});
            check(status, false, ["0/3", word, "0"]);
        };
        check_init(waiting("PodInitializing"), "Init:0/2");
        check_init(json!({"running": {}}), "Init:0/2");
        check_init(waiting("CrashLoopBackOff"), "Init:CrashLoopBackOff");
        check_init(terminated(1, "Error", 0), "Init:Error");
        check_init(terminated(2, "", 0), "Init:ExitCode:2");
        check_init(terminated(137, "", 9), "Init:Signal:9");
        let second = json!({"phase": "Pending", "initContainerStatuses": [
            {"name": "i", "state": terminated(0, "Completed", 0), "restartCount": 2,
             "lastState": {"terminated": {"finishedAt": "2026-01-01T00:09:50Z"}}},
            {"name": "s", "state": {"waiting": {}}}]});
        check(second, false, ["0/3", "Init:1/2", "2 (10s ago)"]);
    }

    #[test]
    fn containers_have_their_words() {
        let base = |a: Value, b: Value| {
            json!({"phase": "Running",
                "conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "False"}],
                "initContainerStatuses": [
                    {"name": "i", "state": terminated(0, "Completed", 0), "restartCount": 5},
                    {"name": "s", "started": true, "ready": true, "state": {"running": {}}, "restartCount": 1}],
                "containerStatuses": [a, b]})
        };
        let up = json!({"name": "b", "ready": true, "state": {"running": {}}});
        check(base(up.clone(), up.clone()), false, ["3/3", "Running", "1"]);
        check(base(up.clone(), up.clone()), true, ["3/3", "Terminating", "1"]);
        let crash = json!({"name": "a", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 2,
            "lastState": {"terminated": {"finishedAt": "2026-01-01T00:05:00Z"}}});
        check(base(crash, up.clone()), false, ["2/3", "CrashLoopBackOff", "3 (5m ago)"]);
        let done = json!({"name": "a", "state": terminated(0, "Completed", 0)});
        check(base(done.clone(), up), false, ["2/3", "NotReady", "1"]);
        check(base(done.clone(), done), false, ["1/3", "Completed", "1"]);
        let killed = |code, signal| json!({"name": "a", "state": terminated(code, "", signal)});
        check(base(killed(1, 0), killed(1, 0)), false, ["1/3", "ExitCode:1", "1"]);
        check(base(killed(137, 9), killed(1, 0)), false, ["1/3", "Signal:9", "1"]);
    }

    #[test]
    fn the_pod_itself_has_words_too() {
        check(json!({"phase": "Pending"}), false, ["0/3", "Pending", "0"]);
        check(json!({"phase": "Failed", "reason": "Evicted"}), false, ["0/3", "Evicted", "0"]);
        check(json!({"phase": "Failed"}), true, ["0/3", "Failed", "0"]);
        check(json!({"phase": "Running", "reason": "NodeLost"}), true, ["0/3", "Unknown", "0"]);
        let gated = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]});
        check(gated, false, ["0/3", "SchedulingGated", "0"]);
    }

    #[test]
    fn wide_cells() {
        let pod = json!({
            "spec": {"nodeName": "n", "readinessGates": [{"conditionType": "x/y"}, {"conditionType": "x/z"}]},
            "status": {"podIPs": [{"ip": "10.0.0.1"}], "conditions": [{"type": "x/y", "status": "True"}]}});
        let wide = |pod: &Value| cells(pod, now())[5..].to_vec();
        assert_eq!(wide(&pod), ["10.0.0.1", "n", "<none>", "1/2"]);
        assert_eq!(wide(&json!({})), ["<none>"; 4]);
    }
}
