//! How much a container in a machine can log: from a program's `write` in the guest through agent, channel and supervisor
//! into the log file, and how much of that the channel by itself would carry.
//!
//! The log's own time stamps are the clock. They begin after some warming up: in software emulation the first pass
//! through every piece of code is its translation.

use anyhow::{Context, bail};
use cumulet_e2e::Cloud;
use std::fs;
use std::path::{Path, PathBuf};

/// Length of a line in bytes, its end included; that of a request's line in a web server's log.
pub(super) const LINE: usize = 128;
/// Bytes of a file of lines that the program writes again and again.
const FILE: usize = LINE << 13;
/// How often: some seconds.
const TIMES: usize = 200;
/// What a line has before its content in the file: time, stream, tag.
const STAMP: usize = "2026-01-02T03:04:05.123456789Z stdout F ".len();

/// Runs a pod that only logs; bytes of its output per second.
pub(super) fn throughput(cloud: &Cloud, name: &str, class: Option<&str>) -> anyhow::Result<f64> {
    let script = format!(
        "cd /tmp; head -c {} /dev/zero | tr '\\0' x > l; echo >> l; for n in 1 2 3 4 5 6 7 8 9 10 11 12 13; do cat l l > k; \
         mv k l; done; set --; while [ $# -lt {TIMES} ]; do set -- \"$@\" l; done; exec cat \"$@\"",
        LINE - 1
    );
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "runtimeClassName": class, "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": "hello:1", "command": ["sh", "-c", script]}],
        },
    });
    cloud.kubectl_with(&["apply", "-f", "-"], &pod.to_string())?;
    let object = format!("pod/{name}");
    cloud.kubectl(&["wait", "--for=jsonpath={.status.phase}=Succeeded", &object, "--timeout=120s"])?;
    let uid = cloud.field(&object, ".metadata.uid")?;
    let rate = rate(&cloud.dir().join("logs").join(format!("default_{name}_{uid}")).join("main"))?;
    cloud.kubectl(&["delete", &object, "--now"])?;
    Ok(rate)
}

/// Content per second in the files that rotation has kept: the end of the output.
fn rate(dir: &Path) -> anyhow::Result<f64> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)?.filter_map(|e| Some(e.ok()?.path())).collect();
    // Rotated files have their time behind the name of the current one, which is the newest.
    files.sort_by_key(|path| (path.extension().is_some_and(|e| e == "log"), path.clone()));
    if files.len() < 3 {
        bail!("{} log files: less was logged than {}", files.len(), FILE * TIMES);
    }
    let (mut first, mut last, mut content) = (None, 0.0, 0);
    for file in files {
        let bytes = fs::read(&file)?;
        for line in bytes.split(|b| *b == b'\n').filter(|line| line.len() > STAMP) {
            last = seconds(line).with_context(|| format!("a line without a time in {}", file.display()))?;
            first.get_or_insert(last);
            content += line.len() - STAMP + 1;
        }
    }
    let took = last - first.context("nothing was logged")?;
    #[expect(clippy::cast_precision_loss, reason = "a count of bytes far below 2^52")]
    Ok(content as f64 / took)
}

/// Seconds of the day out of a time stamp.
fn seconds(line: &[u8]) -> Option<f64> {
    let time = std::str::from_utf8(line.get(11..29)?).ok()?;
    let mut parts = time.split(':').map(|part| part.parse::<f64>().ok());
    Some(parts.next()?? * 3600.0 + parts.next()?? * 60.0 + parts.next()??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_over_time() {
        let dir = tempfile::tempdir().unwrap();
        for (file, time) in
            [("0.log", "03"), ("0.log.20260102-000000.1", "01"), ("0.log.20260102-000000.2", "02")]
        {
            let line = format!("2026-01-02T00:00:{time}.500000000Z stdout F 123456789\n");
            fs::write(dir.path().join(file), line.repeat(10)).unwrap();
        }
        assert!((rate(dir.path()).unwrap() - 150.0).abs() < 1e-6);
    }
}
