//! Cells of the tables that `kubectl get` prints: ages, lists, selectors, and the columns that kinds share.

use super::value::{at, items, map, text, texts};
use crate::row::Column;
use jiff::Timestamp;
use serde_json::Value;

/// The first column of most kinds.
pub(crate) const NAME: Column =
    Column { name: "Name", kind: "string", format: "name", priority: 0, description: "Name of the object." };
/// The age of an object.
pub(crate) const AGE: Column = column("Age", "Time since the object was created.");
/// Wide: container names of a template.
pub(crate) const CONTAINERS: Column = wide("Containers", "Names of the containers in the template.");
/// Wide: container images of a template.
pub(crate) const IMAGES: Column = wide("Images", "Images of the containers in the template.");
/// Wide: label selector.
pub(crate) const SELECTOR: Column = wide("Selector", "Labels of the pods that belong to the object.");

/// A text column that is always shown.
pub(crate) const fn column(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", format: "", priority: 0, description }
}

/// A text column of `-o wide`.
pub(crate) const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", format: "", priority: 1, description }
}

/// A number column that is always shown.
pub(crate) const fn count(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "integer", format: "", priority: 0, description }
}

/// `metadata.name`
pub(crate) fn name(object: &Value) -> Value {
    text(object, "metadata.name").into()
}

/// The age of the object.
pub(crate) fn age(object: &Value, now: Timestamp) -> Value {
    since(text(object, "metadata.creationTimestamp"), now).into()
}

/// The number at `path`, 0 when not set.
pub(crate) fn number(object: &Value, path: &str) -> Value {
    super::value::int(object, path).unwrap_or(0).into()
}

/// The text at `path`.
pub(crate) fn string(object: &Value, path: &str) -> Value {
    text(object, path).into()
}

/// The text at `path`, or `otherwise` when it is empty.
pub(crate) fn string_or(object: &Value, path: &str, otherwise: &str) -> Value {
    or(text(object, path), otherwise).into()
}

/// `value`, or `otherwise` when it is empty.
pub(crate) fn or<'a>(value: &'a str, otherwise: &'a str) -> &'a str {
    if value.is_empty() { otherwise } else { value }
}

/// Time since a timestamp in text form.
pub(crate) fn since(timestamp: &str, now: Timestamp) -> String {
    match cumulet_api::meta::parse_time(timestamp) {
        Some(then) => human_duration(now.as_millisecond() - then.as_millisecond()),
        None => "<unknown>".to_owned(),
    }
}

/// A span of time as Kubernetes tells it to people: two units at most, fewer as it grows.
pub(crate) fn human_duration(ms: i64) -> String {
    const YEAR_DAYS: i64 = 365;
    let seconds = ms / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let pair = |big: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    match () {
        () if seconds < -1 => "<invalid>".to_owned(),
        () if seconds < 0 => "0s".to_owned(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => pair(days, "d", hours % 24, "h"),
        () if days < 2 * YEAR_DAYS => format!("{days}d"),
        () if days < 8 * YEAR_DAYS => pair(days / YEAR_DAYS, "y", days % YEAR_DAYS, "d"),
        () => format!("{}y", days / YEAR_DAYS),
    }
}

/// The names and the images of the containers at `path`, each joined by commas.
pub(crate) fn containers(object: &Value, path: &str) -> (Value, Value) {
    let joined = |field: &str| {
        let all: Vec<&str> = items(object, path).iter().map(|c| text(c, field)).collect();
        Value::from(all.join(","))
    };
    (joined("name"), joined("image"))
}

/// A map of labels as `a=b,c=d`; `<none>` when empty.
pub(crate) fn labels(object: &Value, path: &str) -> Value {
    let all: Vec<String> = texts(object, path).into_iter().map(|(k, v)| format!("{k}={v}")).collect();
    or(&all.join(","), "<none>").into()
}

/// A `LabelSelector` as kubectl's `-l` would take it; empty when it selects nothing in particular.
pub(crate) fn label_selector(object: &Value, path: &str) -> String {
    let Some(selector) = at(object, path) else { return String::new() };
    let mut terms: Vec<(&str, String)> =
        texts(selector, "matchLabels").into_iter().map(|(k, v)| (k, format!("{k}={v}"))).collect();
    for expression in items(selector, "matchExpressions") {
        let key = text(expression, "key");
        let mut values: Vec<&str> = items(expression, "values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let term = match text(expression, "operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        };
        terms.push((key, term));
    }
    terms.sort_by(|a, b| a.0.cmp(b.0));
    terms.into_iter().map(|(_, term)| term).collect::<Vec<_>>().join(",")
}

/// The first three of `all`, and how many more there are.
pub(crate) fn list_with_more(all: &[String], none: &str) -> Value {
    const SHOWN: usize = 3;
    let head = all[..all.len().min(SHOWN)].join(",");
    if all.len() > SHOWN {
        return format!("{head} + {} more...", all.len() - SHOWN).into();
    }
    or(&head, none).into()
}

/// The number of entries of the maps at `paths`.
pub(crate) fn entries(object: &Value, paths: &[&str]) -> Value {
    paths.iter().map(|path| map(object, path).map_or(0, serde_json::Map::len)).sum::<usize>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn durations_read_as_in_kubernetes() {
        const MINUTE: i64 = 60;
        const HOUR: i64 = 3600;
        const DAY: i64 = 24 * HOUR;
        for (seconds, expected) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (1, "1s"),
            (119, "119s"),
            (120, "2m"),
            (121, "2m1s"),
            (10 * MINUTE - 1, "9m59s"),
            (10 * MINUTE, "10m"),
            (3 * HOUR - 1, "179m"),
            (3 * HOUR, "3h"),
            (3 * HOUR + 5 * MINUTE, "3h5m"),
            (8 * HOUR, "8h"),
            (2 * DAY - 1, "47h"),
            (2 * DAY, "2d"),
            (2 * DAY + HOUR, "2d1h"),
            (8 * DAY, "8d"),
            (2 * 365 * DAY - 1, "729d"),
            (2 * 365 * DAY, "2y"),
            (2 * 365 * DAY + 3 * DAY, "2y3d"),
            (8 * 365 * DAY, "8y"),
        ] {
            assert_eq!(human_duration(seconds * 1000), expected, "{seconds}");
        }
    }

    #[test]
    fn selectors_print_like_kubectl_arguments() {
        let v = json!({"s": {"matchLabels": {"b": "1"}, "matchExpressions": [
            {"key": "a", "operator": "In", "values": ["y", "x"]}, {"key": "c", "operator": "DoesNotExist"}]}});
        assert_eq!(label_selector(&v, "s"), "a in (x,y),b=1,!c");
        assert_eq!(label_selector(&v, "nothing"), "");
        assert_eq!(labels(&json!({"m": {"k": "v", "a": "b"}}), "m"), "a=b,k=v");
        assert_eq!(labels(&json!({}), "m"), "<none>");
    }

    #[test]
    fn long_lists_are_cut() {
        let all: Vec<String> = (1..=5).map(|n| n.to_string()).collect();
        assert_eq!(list_with_more(&all, "<none>"), "1,2,3 + 2 more...");
        assert_eq!(list_with_more(&all[..3], "<none>"), "1,2,3");
        assert_eq!(list_with_more(&[], "<none>"), "<none>");
    }
}
