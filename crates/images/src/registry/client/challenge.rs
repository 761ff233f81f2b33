//! `WWW-Authenticate`: what a registry asks for, as RFC 9110 writes it.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// Longest header that is read, in bytes.
const MAX_HEADER: usize = 8 * 1024;

/// One way to authenticate that the registry offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token from somewhere.
    Bearer {
        /// Where tokens are to be had.
        realm: String,
        /// What the registry is called there.
        service: Option<String>,
        /// What the token has to be for.
        scope: Option<String>,
    },
}

/// All ways that an answer offers and that are known here.
pub(super) fn offered(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(parse).collect()
}

/// Reads one header. What is malformed is left out.
pub(crate) fn parse(text: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    if text.len() > MAX_HEADER {
        return found;
    }
    let mut rest = text;
    let mut open: Option<(String, Vec<(String, String)>)> = None;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = token(rest);
        if word.is_empty() {
            break;
        }
        let spaced = after.trim_start_matches([' ', '\t']);
        match (spaced.strip_prefix('='), &mut open) {
            (Some(value), Some((_, parameters))) => {
                let Some((value, after)) = parameter(value.trim_start_matches([' ', '\t'])) else { break };
                parameters.push((word.to_ascii_lowercase(), value));
                rest = after;
            }
            (Some(_), None) => break,
            (None, _) => {
                found.extend(open.take().and_then(challenge));
                open = Some((word.to_ascii_lowercase(), Vec::new()));
                rest = after;
            }
        }
    }
    found.extend(open.and_then(challenge));
    found
}

fn challenge((scheme, parameters): (String, Vec<(String, String)>)) -> Option<Challenge> {
    let mut named = parameters.into_iter();
    match scheme.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => {
            let (mut realm, mut service, mut scope) = (None, None, None);
            for (name, value) in &mut named {
                match name.as_str() {
                    "realm" => realm = Some(value),
                    "service" => service = Some(value),
                    "scope" => scope = Some(value),
                    _ => {}
                }
            }
            Some(Challenge::Bearer { realm: realm?, service, scope })
        }
        _ => None,
    }
}

/// A word, and what follows it.
fn token(text: &str) -> (&str, &str) {
    let end = text.bytes().position(|b| !(b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(&b)));
    text.split_at(end.unwrap_or(text.len()))
}

/// A value, quoted or not, and what follows it.
fn parameter(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (word, after) = token(text);
        return Some((word.to_owned(), after));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[test]
    fn headers() {
        let table = [
            ("Basic realm=\"x\"", vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",scope=\"repository:a/b:pull,push\"",
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:a/b:pull,push"),
                )],
            ),
            (
                "Negotiate, Basic realm=\"a, b\", charset=\"UTF-8\", BEARER  Realm = \"https://x/\\\"y\" , error=invalid",
                vec![Challenge::Basic, bearer("https://x/\"y", None, None)],
            ),
            ("Bearer service=\"x\"", vec![]),
            ("Bearer realm=\"unfinished", vec![]),
            ("realm=\"x\"", vec![]),
            ("", vec![]),
            ("\"", vec![]),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), expected, "{text}");
        }
        assert_eq!(parse(&format!("Basic realm=\"{}\"", "x".repeat(MAX_HEADER))), []);
    }

    proptest::proptest! {
        #[test]
        fn anything(text in "\\PC{0,80}", quoted in "[a-z=\",\\\\ ]{0,60}") {
            parse(&text);
            parse(&quoted);
        }
    }
}
