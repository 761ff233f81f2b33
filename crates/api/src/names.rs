//! Rules for names, labels and keys, with the very texts of `k8s.io/apimachinery`.
//!
//! Every function returns the list of problems, empty when the value is good, so that a caller can turn each into a
//! field error. The regular expressions are only quoted in the texts; matching is done by hand over bytes.

const DNS1123_LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const DNS1123_LABEL_TEXT: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or \
     '-', and must start and end with an alphanumeric character";
const DNS1123_SUBDOMAIN: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const DNS1123_SUBDOMAIN_TEXT: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
     characters, '-' or '.', and must start and end with an alphanumeric character";
const DNS1035_LABEL: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const DNS1035_LABEL_TEXT: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start \
     with an alphabetic character, and end with an alphanumeric character";
const LABEL_KEY: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const LABEL_KEY_TEXT: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const LABEL_VALUE: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
const LABEL_VALUE_TEXT: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', \
     '_' or '.', and must start and end with an alphanumeric character";
const CONFIG_MAP_KEY: &str = "[-._a-zA-Z0-9]+";
const CONFIG_MAP_KEY_TEXT: &str =
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
const ENV_VAR: &str = "[-._a-zA-Z][-._a-zA-Z0-9]*";
const ENV_VAR_TEXT: &str = "a valid environment variable name must consist of alphabetic characters, digits, '_', \
     '-', or '.', and must not start with a digit";
const RELAXED_ENV_VAR_TEXT: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";
const C_IDENTIFIER: &str = "[A-Za-z_][A-Za-z0-9_]*";
const C_IDENTIFIER_TEXT: &str = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric \
     characters or '_'";
const PERCENT: &str = "[0-9]+%";
const PERCENT_TEXT: &str = "a valid percent string must be a numeric string followed by an ending '%'";
const HTTP_HEADER: &str = "[-A-Za-z0-9]+";
const HTTP_HEADER_TEXT: &str = "a valid HTTP header must consist of alphanumeric characters or '-'";

/// Longest DNS label, label value and name part of a label key, in bytes.
pub const LABEL_MAX: usize = 63;
/// Longest DNS subdomain, in bytes.
pub const SUBDOMAIN_MAX: usize = 253;

/// The text for a string that is longer than `max` bytes.
pub fn too_long(max: usize) -> String {
    format!("must be no more than {max} characters")
}

/// The text for a number outside of `low..=high`.
pub fn range(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

fn pattern(text: &str, pattern: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{text} (regex used for validation is '{pattern}')");
    }
    let quoted: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{text} (e.g. {}regex used for validation is '{pattern}')", quoted.join(" or "))
}

/// True when the bytes are not empty, all satisfy `inner`, and first and last satisfy `first` and `last`.
fn shaped(s: &str, first: fn(u8) -> bool, inner: fn(u8) -> bool, last: fn(u8) -> bool) -> bool {
    match s.as_bytes() {
        [] => false,
        [one] => first(*one),
        [head, middle @ .., tail] => first(*head) && last(*tail) && middle.iter().all(|b| inner(*b)),
    }
}

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn lower_alnum_dash(b: u8) -> bool {
    lower_alnum(b) || b == b'-'
}

fn alnum(b: u8) -> bool {
    b.is_ascii_alphanumeric()
}

fn label_inner(b: u8) -> bool {
    alnum(b) || matches!(b, b'-' | b'_' | b'.')
}

fn is_label(s: &str) -> bool {
    shaped(s, lower_alnum, lower_alnum_dash, lower_alnum)
}

fn is_subdomain(s: &str) -> bool {
    s.split('.').all(is_label)
}

/// Names of most objects: a DNS subdomain as RFC 1123 has it.
pub fn dns1123_subdomain(value: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if value.len() > SUBDOMAIN_MAX {
        problems.push(too_long(SUBDOMAIN_MAX));
    }
    if !is_subdomain(value) {
        problems.push(pattern(DNS1123_SUBDOMAIN_TEXT, DNS1123_SUBDOMAIN, &["example.com"]));
    }
    problems
}

/// Names of namespaces, containers and volumes: a DNS label as RFC 1123 has it.
pub fn dns1123_label(value: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if value.len() > LABEL_MAX {
        problems.push(too_long(LABEL_MAX));
    }
    if !is_label(value) {
        problems.push(if is_subdomain(value) {
            "must not contain dots".to_owned()
        } else {
            pattern(DNS1123_LABEL_TEXT, DNS1123_LABEL, &["my-name", "123-abc"])
        });
    }
    problems
}

/// Names of services: a DNS label as RFC 1035 has it.
pub fn dns1035_label(value: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if value.len() > LABEL_MAX {
        problems.push(too_long(LABEL_MAX));
    }
    if !shaped(value, |b| b.is_ascii_lowercase(), lower_alnum_dash, lower_alnum) {
        problems.push(pattern(DNS1035_LABEL_TEXT, DNS1035_LABEL, &["my-name", "abc-123"]));
    }
    problems
}

/// Keys of labels and annotations: an optional DNS subdomain and a slash, then a name.
pub fn qualified_name(value: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let parts: Vec<&str> = value.split('/').collect();
    let examples = &["MyName", "my.name", "123-abc"];
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                problems.push("prefix part must be non-empty".to_owned());
            } else {
                problems.extend(dns1123_subdomain(prefix).into_iter().map(|p| format!("prefix part {p}")));
            }
            name
        }
        _ => {
            return vec![format!(
                "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                pattern(LABEL_KEY_TEXT, LABEL_KEY, examples)
            )];
        }
    };
    if name.is_empty() {
        problems.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        problems.push(format!("name part {}", too_long(LABEL_MAX)));
    }
    if !shaped(name, alnum, label_inner, alnum) {
        problems.push(format!("name part {}", pattern(LABEL_KEY_TEXT, LABEL_KEY, examples)));
    }
    problems
}

/// Values of labels.
pub fn label_value(value: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if value.len() > LABEL_MAX {
        problems.push(too_long(LABEL_MAX));
    }
    if !value.is_empty() && !shaped(value, alnum, label_inner, alnum) {
        problems.push(pattern(LABEL_VALUE_TEXT, LABEL_VALUE, &["MyValue", "my_value", "12345"]));
    }
    problems
}

/// Names that are only one segment of a URL path (RBAC roles, for example).
pub fn path_segment_name(value: &str) -> Vec<String> {
    if value == "." || value == ".." {
        return vec![format!("may not be '{value}'")];
    }
    ["/", "%"].iter().filter(|c| value.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// Names of container and service ports.
pub fn port_name(value: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if value.len() > 15 {
        problems.push(too_long(15));
    }
    if value.is_empty() || !value.bytes().all(lower_alnum_dash) {
        problems.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !value.bytes().any(|b| b.is_ascii_lowercase()) {
        problems.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        problems.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        problems.push("must not begin or end with a hyphen".to_owned());
    }
    problems
}

/// Port numbers.
pub fn port_number(value: i64) -> Vec<String> {
    if (1..=65535).contains(&value) { Vec::new() } else { vec![range(1, 65535)] }
}

/// Keys of ConfigMaps and Secrets.
pub fn config_map_key(value: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if value.len() > SUBDOMAIN_MAX {
        problems.push(too_long(SUBDOMAIN_MAX));
    }
    if value.is_empty() || !value.bytes().all(label_inner) {
        problems.push(pattern(CONFIG_MAP_KEY_TEXT, CONFIG_MAP_KEY, &["key.name", "KEY_NAME", "key-name"]));
    }
    problems.extend(no_parent_directory(value));
    problems
}

/// Names of environment variables, as older versions demand (still so for `envFrom` prefixes).
pub fn env_var_name(value: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if value.is_empty() || value.as_bytes()[0].is_ascii_digit() || !value.bytes().all(label_inner) {
        problems.push(pattern(ENV_VAR_TEXT, ENV_VAR, &["my.env-name", "MY_ENV.NAME", "MyEnvName1"]));
    }
    problems.extend(no_parent_directory(value));
    problems
}

/// Names of environment variables: printable ASCII without `=`.
pub fn relaxed_env_var_name(value: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if value.is_empty() {
        problems.push("environment variable name must be non-empty".to_owned());
    }
    if !value.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        problems.push(RELAXED_ENV_VAR_TEXT.to_owned());
    }
    problems
}

/// C identifiers.
pub fn c_identifier(value: &str) -> Vec<String> {
    let start = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if shaped(value, start, inner, inner) {
        return Vec::new();
    }
    vec![pattern(C_IDENTIFIER_TEXT, C_IDENTIFIER, &["my_name", "MY_NAME", "MyName"])]
}

/// Percentages such as `25%`.
pub fn percent(value: &str) -> Vec<String> {
    match value.strip_suffix('%') {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => Vec::new(),
        _ => vec![pattern(PERCENT_TEXT, PERCENT, &["1%", "93%"])],
    }
}

/// Names of HTTP headers in probes.
pub fn http_header_name(value: &str) -> Vec<String> {
    if !value.is_empty() && value.bytes().all(|b| alnum(b) || b == b'-') {
        return Vec::new();
    }
    vec![pattern(HTTP_HEADER_TEXT, HTTP_HEADER, &["X-Header-Name"])]
}

fn no_parent_directory(value: &str) -> Option<String> {
    match value {
        "." => Some("must not be '.'".to_owned()),
        ".." => Some("must not be '..'".to_owned()),
        v if v.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: fn(&str) -> Vec<String>, good: &[&str], bad: &[&str]) {
        for value in good {
            assert_eq!(rule(value), Vec::<String>::new(), "{value:?} should be good");
        }
        for value in bad {
            assert!(!rule(value).is_empty(), "{value:?} should be bad");
        }
    }

    #[test]
    fn shapes() {
        let long = "a".repeat(64);
        let label = ["a", "0", "a-b", "a--b9"];
        check(dns1123_label, &label, &["", "A", "-a", "a-", "a.b", "a_b", " a", "ä", &long]);
        check(dns1035_label, &["a", "a-9"], &["", "9a", "a-", "a.b", &long]);
        check(
            dns1123_subdomain,
            &["a", "a.b", "0.1"],
            &["", ".", "a.", ".a", "a..b", "a.B", &"a".repeat(254)],
        );
        check(
            qualified_name,
            &["a", "A.b_c-9", "example.com/a", "1.2.3.4/5"],
            &["", "a/", "/a", "a/b/c", "Nothing_Uppercase/x", "-a", "x/-a", &long],
        );
        check(label_value, &["", "a", "A.b_9"], &["-", "a ", "a/b", ".a", &long]);
        check(path_segment_name, &["", "a:b"], &[".", "..", "a/b", "a%b"]);
        check(port_name, &["http", "h2"], &["", "80", "a--b", "-a", "a-", "A", "aaaaaaaaaaaaaaaa"]);
        check(config_map_key, &["a", "..a".trim_start_matches("..")], &["", ".", "..", "..a", "a/b"]);
        check(env_var_name, &["A", "_a.b"], &["", "1A", "a b", ".."]);
        check(relaxed_env_var_name, &["1 A"], &["", "a=b", "ä"]);
        check(percent, &["0%", "100%"], &["", "%", "1", "-1%"]);
        check(c_identifier, &["_", "a1"], &["", "1", "a-b"]);
        check(http_header_name, &["X-A"], &["", "a b"]);
    }

    #[test]
    fn texts() {
        assert_eq!(
            dns1123_label("A"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
              and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        assert_eq!(
            dns1123_subdomain("a_b"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
              start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert_eq!(label_value(&"x".repeat(64)), ["must be no more than 63 characters"]);
    }
}
