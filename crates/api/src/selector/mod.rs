//! Label and field selectors: their text forms, the `LabelSelector` object, and matching.
//!
//! Grammar, leniencies and error texts follow `k8s.io/apimachinery/pkg/labels` and `pkg/fields`.

mod field;
mod parse;

pub use field::{FieldSelector, FieldTerm};

use crate::names;
use serde_json::{Map, Value};
use std::fmt;

/// Why a text is not a selector; the message is Kubernetes'.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

/// How a requirement relates a key to its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `key in (a,b)`
    In,
    /// `key notin (a,b)`; an absent key satisfies it
    NotIn,
    /// `key=a`
    Equals,
    /// `key!=a`; an absent key satisfies it
    NotEquals,
    /// `key`
    Exists,
    /// `!key`
    DoesNotExist,
    /// `key>1`
    GreaterThan,
    /// `key<1`
    LessThan,
}

/// One of the conditions that a selector joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    key: String,
    operator: Operator,
    /// Sorted, without repetitions.
    values: Vec<String>,
}

/// A label selector: all requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Selector {
    /// Matches everything.
    pub const fn everything() -> Self {
        Self { requirements: Vec::new(), nothing: false }
    }

    /// Matches nothing.
    pub const fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Reads the text form, `a=b,c!=d,e in (x,y),!f,g`. An empty text matches everything.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = parse::requirements(text)?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// Reads a `LabelSelector` object (`matchLabels`, `matchExpressions`). An absent one (`null`) matches nothing,
    /// an empty one everything.
    pub fn from_label_selector(value: &Value) -> Result<Self, SelectorError> {
        let Some(object) = value.as_object() else {
            return Ok(Self::nothing());
        };
        let mut requirements = Vec::new();
        for (key, value) in object.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or("").to_owned();
            requirements.push(Requirement::new(key.clone(), Operator::Equals, vec![value])?);
        }
        for expression in object.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            requirements.push(Requirement::from_expression(expression)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// A selector by equality, as Services and ReplicationControllers have it; not validated. Empty maps match
    /// everything, so callers for whom an empty selector means "none" must look first.
    pub fn from_map(map: &Map<String, Value>) -> Self {
        Self::from_pairs(map.iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap_or(""))))
    }

    /// A selector by equality from key-value pairs; not validated.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut requirements: Vec<Requirement> = pairs
            .into_iter()
            .map(|(key, value)| Requirement {
                key: key.to_owned(),
                operator: Operator::Equals,
                values: vec![value.to_owned()],
            })
            .collect();
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements, nothing: false }
    }

    /// Whether labels, given as a look-up, match.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(get(&r.key)))
    }

    /// Whether labels, given as the JSON map of an object, match.
    pub fn matches_map(&self, labels: &Map<String, Value>) -> bool {
        self.matches(|key| labels.get(key).and_then(Value::as_str))
    }

    /// Whether labels, given as a typed map, match.
    pub fn matches_labels(&self, labels: &std::collections::BTreeMap<String, String>) -> bool {
        self.matches(|key| labels.get(key).map(String::as_str))
    }

    /// True when it matches everything.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// The requirements, ordered by key.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            write!(f, "{}{requirement}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl Requirement {
    /// A requirement, checked as Kubernetes checks it.
    pub fn new(key: String, operator: Operator, mut values: Vec<String>) -> Result<Self, SelectorError> {
        values.sort();
        values.dedup();
        let mut problems = Vec::new();
        let list = || Value::from(values.clone());
        let bad = names::qualified_name(&key);
        if !bad.is_empty() {
            problems.push(format!("key: Invalid value: {}: {}", quoted(&key), bad.join("; ")));
        }
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => problems.push(format!(
                "values: Invalid value: {}: for 'in', 'notin' operators, values set can't be empty",
                list()
            )),
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => problems.push(format!(
                "values: Invalid value: {}: values set must be empty for exists and does not exist",
                list()
            )),
            Operator::GreaterThan | Operator::LessThan => {
                for (i, value) in values.iter().enumerate().filter(|(_, v)| v.parse::<i64>().is_err()) {
                    problems.push(format!(
                        "values[{i}]: Invalid value: {}: for 'Gt', 'Lt' operators, the value must be an integer",
                        quoted(value)
                    ));
                }
            }
            _ => {}
        }
        for (i, value) in values.iter().enumerate() {
            let bad = names::label_value(value);
            if !bad.is_empty() {
                problems.push(format!(
                    "values[{i}][{key}]: Invalid value: {}: {}",
                    quoted(value),
                    bad.join("; ")
                ));
            }
        }
        match problems.as_slice() {
            [] => Ok(Self { key, operator, values }),
            [one] => Err(SelectorError(one.clone())),
            many => Err(SelectorError(format!("[{}]", many.join(", ")))),
        }
    }

    fn from_expression(expression: &Value) -> Result<Self, SelectorError> {
        let text = |field: &str| expression.get(field).and_then(Value::as_str).unwrap_or("");
        let operator = match text("operator") {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            other => {
                return Err(SelectorError(format!(
                    "{} is not a valid label selector operator",
                    quoted(other)
                )));
            }
        };
        let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
        let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
        Self::new(text("key").to_owned(), operator, values)
    }

    /// The label's key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The operator.
    pub fn operator(&self) -> Operator {
        self.operator
    }

    /// The values, sorted.
    pub fn values(&self) -> &[String] {
        &self.values
    }

    fn matches(&self, value: Option<&str>) -> bool {
        let listed = |v: &str| self.values.iter().any(|x| x == v);
        match (self.operator, value) {
            (Operator::In | Operator::Equals, v) => v.is_some_and(listed),
            (Operator::NotIn | Operator::NotEquals, v) => !v.is_some_and(listed),
            (Operator::Exists, v) => v.is_some(),
            (Operator::DoesNotExist, v) => v.is_none(),
            (Operator::GreaterThan | Operator::LessThan, v) => {
                let number = |s: &str| s.parse::<i64>().ok();
                match (v.and_then(number), self.values.first().and_then(|s| number(s))) {
                    (Some(have), Some(limit)) if self.operator == Operator::GreaterThan => have > limit,
                    (Some(have), Some(limit)) => have < limit,
                    _ => false,
                }
            }
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.values.join(",");
        match self.operator {
            Operator::In => write!(f, "{} in ({values})", self.key),
            Operator::NotIn => write!(f, "{} notin ({values})", self.key),
            Operator::Equals => write!(f, "{}={values}", self.key),
            Operator::NotEquals => write!(f, "{}!={values}", self.key),
            Operator::Exists => write!(f, "{}", self.key),
            Operator::DoesNotExist => write!(f, "!{}", self.key),
            Operator::GreaterThan => write!(f, "{}>{values}", self.key),
            Operator::LessThan => write!(f, "{}<{values}", self.key),
        }
    }
}

fn quoted(text: &str) -> Value {
    Value::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn map(labels: &Value) -> &Map<String, Value> {
        labels.as_object().expect("a map")
    }

    #[test]
    fn matching() {
        let labels = json!({"app": "web", "tier": "front", "n": "5", "empty": ""});
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app=db", false),
            ("app!=db", true),
            ("missing!=x", true),
            ("app in (db, web)", true),
            ("app notin (db)", true),
            ("missing notin (a)", true),
            ("missing in (a)", false),
            ("app", true),
            ("!app", false),
            ("!missing", true),
            ("n>4", true),
            ("n<5", false),
            ("app>1", false),
            ("app=web,tier=front", true),
            ("app=web,tier=back", false),
            ("empty=", true),
            ("empty in ()", true),
            ("empty in (,x)", true),
            (" app = web , tier ", true),
            ("in in (in)", false),
        ] {
            let parsed = Selector::parse(selector).unwrap_or_else(|e| panic!("{selector}: {e}"));
            assert_eq!(parsed.matches_map(map(&labels)), expected, "{selector}");
        }
    }

    #[test]
    fn refused() {
        for (selector, message) in [
            (",", "found ',', expected: !, identifier, or 'end of string'"),
            ("a,", "found '', expected: identifier after ','"),
            ("a in", "unable to parse requirement: found '' expected: '('"),
            ("a in x", "unable to parse requirement: found 'x' expected: '('"),
            ("a x", "unable to parse requirement: found 'x', expected: in, notin, =, ==, !=, gt, lt"),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
            (
                "a=b/c",
                "unable to parse requirement: values[0][a]: Invalid value: \"b/c\": a valid label must be an empty \
                 string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                 alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
                 '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ),
            (
                "a>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ] {
            assert_eq!(
                Selector::parse(selector).map(|s| s.to_string()),
                Err(SelectorError(message.into())),
                "{selector}"
            );
        }
        assert!(Selector::parse("-a=b").is_err());
        assert!(Selector::parse("a!b").is_err());
        assert!(Selector::parse("a in (b").is_err());
    }

    #[test]
    fn objects() {
        let labels = json!({"app": "web"});
        for (object, expected) in [
            (json!(null), false),
            (json!({}), true),
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchLabels": {"app": "web", "x": "y"}}), false),
            (json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]}), true),
            (json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}), false),
            (json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]}), true),
            (json!({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}), false),
        ] {
            let selector = Selector::from_label_selector(&object).unwrap_or_else(|e| panic!("{object}: {e}"));
            assert_eq!(selector.matches_map(map(&labels)), expected, "{object}");
        }
        let bad = json!({"matchExpressions": [{"key": "app", "operator": "Is"}]});
        let error = Selector::from_label_selector(&bad).expect_err("bad operator");
        assert_eq!(error.0, "\"Is\" is not a valid label selector operator");
    }

    proptest! {
        #[test]
        fn printing_and_parsing_agree(text in "[!]?[ab](=|!=| in | notin )[(]?[ab]?,?[ab]?[)]?(,c|,!d|)") {
            if let Ok(selector) = Selector::parse(&text) {
                prop_assert_eq!(Selector::parse(&selector.to_string()), Ok(selector));
            }
        }

        #[test]
        fn any_text_is_answered(text in "\\PC{0,40}") {
            let _ = Selector::parse(&text);
            let _ = FieldSelector::parse(&text);
        }
    }
}
