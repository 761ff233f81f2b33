//! `snapshot prune`: what cannot be used goes, and what is asked for.

use crate::args::SnapshotPrune;
use crate::table;
use anyhow::{Context, bail};
use cumulet_api::Quantity;
use cumulet_snapshot_format::{Error, Key, Usage, clean, evict, list as read_dir, remove};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Removes templates, and says which and how much that frees.
pub(super) fn prune(dir: &Path, options: &SnapshotPrune) -> anyhow::Result<()> {
    let older_than = options.older_than.as_deref().map(duration).transpose()?;
    let budget = options.budget.as_deref().map(size).transpose()?;
    let leftovers = clean(dir)?;
    let (mut good, mut gone): (Vec<Usage>, Vec<(Key, u64)>) = (Vec::new(), Vec::new());
    for one in read_dir(dir)? {
        match one {
            Ok(template) => good.push(template.usage()?),
            Err((key, error)) if error.is_damage() => gone.push((key, 0)),
            Err((_, error)) => eprintln!("cumulet: left as it is: {:#}", anyhow::Error::from(error)),
        }
    }
    for key in chosen(&good, options.all, older_than, budget, SystemTime::now()) {
        let bytes = good.iter().find(|usage| usage.key == key).map_or(0, |usage| usage.disk_bytes);
        gone.push((key, bytes));
    }
    let mut freed = 0;
    for (key, bytes) in &gone {
        match remove(dir, key) {
            Ok(()) => println!("{key} removed"),
            // Somebody else was quicker.
            Err(Error::NotFound { .. }) => continue,
            Err(error) => return Err(error.into()),
        }
        freed += bytes;
    }
    let what = match leftovers {
        0 => String::new(),
        n => format!(", and what {n} writers left that had broken off"),
    };
    println!("{} templates removed{what}; {} freed", gone.len(), table::bytes(freed));
    Ok(())
}

/// The usable templates that are to go.
fn chosen(
    good: &[Usage],
    all: bool,
    older_than: Option<Duration>,
    budget: Option<u64>,
    now: SystemTime,
) -> Vec<Key> {
    let old = |usage: &&Usage| {
        let unused = now.duration_since(usage.last_used).unwrap_or_default();
        all || older_than.is_some_and(|limit| unused > limit)
    };
    let (old, rest): (Vec<&Usage>, Vec<&Usage>) = good.iter().partition(old);
    let rest: Vec<Usage> = rest.into_iter().copied().collect();
    let mut keys: Vec<Key> = old.into_iter().map(|usage| usage.key).collect();
    keys.extend(budget.map(|budget| evict(&rest, budget)).unwrap_or_default());
    keys
}

/// A duration such as `30s`, `90m`, `12h` or `7d`.
fn duration(text: &str) -> anyhow::Result<Duration> {
    let parsed = text.char_indices().last().and_then(|(at, unit)| {
        let seconds: u64 = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return None,
        };
        text[..at].parse::<u64>().ok()?.checked_mul(seconds)
    });
    parsed
        .map(Duration::from_secs)
        .with_context(|| format!("{text:?} is no duration: write a number and s, m, h or d, such as 12h"))
}

/// A size such as `500M` or `10Gi`.
fn size(text: &str) -> anyhow::Result<u64> {
    let quantity = Quantity::parse(text)
        .with_context(|| format!("{text:?} is no size: write a number and a unit, such as 10Gi"))?;
    match u64::try_from(quantity.units()) {
        Ok(bytes) => Ok(bytes),
        Err(_) => bail!("{text:?} is negative: a budget of 0 removes all templates"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes() {
        for (text, seconds) in
            [("0s", Some(0)), ("90m", Some(5400)), ("12h", Some(43_200)), ("7d", Some(604_800)), ("7", None)]
        {
            assert_eq!(duration(text).ok().map(|d| d.as_secs()), seconds, "{text}");
        }
        for text in ["", "d", "-1d", "1w", "1.5h", "99999999999999999999d", "9999999999999999999d", "é"] {
            assert!(duration(text).is_err(), "{text}");
        }
        for (text, bytes) in
            [("0", Some(0)), ("10Gi", Some(10 << 30)), ("500M", Some(500_000_000)), ("-1", None)]
        {
            assert_eq!(size(text).ok(), bytes, "{text}");
        }
        assert!(size("much").is_err());
    }

    #[test]
    fn what_goes() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let usage = |n: u8, unused: u64| Usage {
            key: Key([n; 32]),
            disk_bytes: 100,
            last_used: now - Duration::from_secs(unused),
        };
        let good = [usage(1, 500), usage(2, 50), usage(3, 5)];
        let check = |all, older: Option<u64>, budget, keys: &[u8]| {
            let found = chosen(&good, all, older.map(Duration::from_secs), budget, now);
            assert_eq!(found, keys.iter().map(|n| Key([*n; 32])).collect::<Vec<_>>());
        };
        check(false, None, None, &[]);
        check(true, None, None, &[1, 2, 3]);
        check(false, Some(50), None, &[1]);
        check(false, Some(49), None, &[1, 2]);
        check(false, None, Some(250), &[1]);
        check(false, None, Some(0), &[1, 2, 3]);
        check(false, Some(100), Some(150), &[1, 2]);
    }
}
