//! `.cumuletignore`: which files of the directory stay out of the image.
//!
//! One pattern per line, as in a simple `.gitignore`: `#` begins a comment, `!` takes back, a trailing `/` means
//! directories only, a `/` elsewhere ties the pattern to the top, `*` and `?` stop at slashes, `**` does not. The
//! last pattern that fits decides. What is below an ignored directory is ignored too and cannot be taken back.
//! Character classes are not supported.

use crate::ImageError;
use crate::error::io;
use std::path::Path;

pub(super) const FILE: &str = ".cumuletignore";

struct Rule {
    pattern: Vec<u8>,
    take_back: bool,
    only_dirs: bool,
}

/// The patterns of a directory; none when it has no such file.
pub(super) struct Rules(Vec<Rule>);

impl Rules {
    pub(super) fn read(dir: &Path) -> Result<Self, ImageError> {
        let path = dir.join(FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self(Vec::new())),
            Err(error) => Err(io("read", &path)(error)),
        }
    }

    fn parse(text: &str) -> Self {
        let rule = |line: &str| {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                return None;
            }
            let (take_back, line) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest));
            let (only_dirs, line) = line.strip_suffix('/').map_or((false, line), |rest| (true, rest));
            let tied = line.contains('/');
            let line = line.strip_prefix('/').unwrap_or(line);
            let pattern = if tied { line.to_owned() } else { format!("**/{line}") };
            Some(Rule { pattern: pattern.into_bytes(), take_back, only_dirs })
        };
        Self(text.lines().filter_map(rule).collect())
    }

    /// True when the file at this path, relative to the directory, is to stay out.
    pub(super) fn ignores(&self, path: &[u8], is_dir: bool) -> bool {
        let fits = |rule: &&Rule| (is_dir || !rule.only_dirs) && fits(&rule.pattern, path);
        self.0.iter().rev().find(fits).is_some_and(|rule| !rule.take_back)
    }
}

fn fits(pattern: &[u8], path: &[u8]) -> bool {
    match (pattern, path) {
        ([], _) => path.is_empty(),
        // Any number of whole directories, none included.
        ([b'*', b'*', b'/', rest @ ..], _) => {
            let below =
                path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(i, _)| &path[i + 1..]);
            fits(rest, path) || below.into_iter().any(|path| fits(rest, path))
        }
        ([b'*', b'*', rest @ ..], _) => (0..=path.len()).any(|i| fits(rest, &path[i..])),
        ([b'*', rest @ ..], _) => {
            let end = path.iter().position(|byte| *byte == b'/').unwrap_or(path.len());
            (0..=end).any(|i| fits(rest, &path[i..]))
        }
        ([b'?', rest @ ..], [byte, path @ ..]) => *byte != b'/' && fits(rest, path),
        ([literal, rest @ ..], [byte, path @ ..]) => literal == byte && fits(rest, path),
        ([_, ..], []) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let check = |rules: &str, path: &str, ignored: bool| {
            let (path, is_dir) = path.strip_suffix('/').map_or((path, false), |path| (path, true));
            assert_eq!(Rules::parse(rules).ignores(path.as_bytes(), is_dir), ignored, "{rules:?} {path:?}");
        };
        check("*.o", "a.o", true);
        check("*.o", "deep/er/a.o", true);
        check("*.o", "a.os", false);
        check("/a.o", "a.o", true);
        check("/a.o", "deep/a.o", false);
        check("deep/*.o", "deep/a.o", true);
        check("deep/*.o", "deep/er/a.o", false);
        check("deep/**", "deep/er/a.o", true);
        check("deep/**/a.o", "deep/a.o", true);
        check("deep/**/a.o", "deep/e/r/a.o", true);
        check("target/", "target/", true);
        check("target/", "x/target/", true);
        check("target/", "target", false);
        check("?.txt", "a.txt", true);
        check("?.txt", "ab.txt", false);
        check("*\n!keep", "keep", false);
        check("*\n!keep", "other", true);
        check("# *\n\n  \n", "a", false);
    }
}
