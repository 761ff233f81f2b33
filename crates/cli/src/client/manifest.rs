//! Objects in files: YAML with several documents, or JSON, or a List of objects; directories; standard input.

use anyhow::{Context, bail};
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Largest manifest file, in bytes: more than the API takes as one object.
const MAX_BYTES: u64 = 16 << 20;

/// The objects of all files, in order.
pub(super) fn read_all(files: &[PathBuf]) -> anyhow::Result<Vec<Value>> {
    let mut objects = Vec::new();
    for file in files {
        for (name, text) in texts(file)? {
            objects.extend(parse(&text).with_context(|| name)?);
        }
    }
    if objects.is_empty() {
        bail!(
            "no objects in {}",
            files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(objects)
}

fn texts(file: &Path) -> anyhow::Result<Vec<(String, String)>> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().take(MAX_BYTES).read_to_string(&mut text).context("standard input")?;
        return Ok(vec![("standard input".to_owned(), text)]);
    }
    let mut paths = vec![file.to_path_buf()];
    if file.is_dir() {
        let entries = fs::read_dir(file).with_context(|| file.display().to_string())?;
        paths = entries.filter_map(Result::ok).map(|e| e.path()).filter(|p| is_manifest(p)).collect();
        paths.sort();
    }
    let read = |path: PathBuf| {
        let name = path.display().to_string();
        if fs::metadata(&path).with_context(|| name.clone())?.len() > MAX_BYTES {
            bail!("{name} is larger than {MAX_BYTES} bytes");
        }
        let text = fs::read_to_string(&path).with_context(|| name.clone())?;
        Ok((name, text))
    };
    paths.into_iter().map(read).collect()
}

/// The endings that kubectl reads in a directory. `cumulet.yaml` describes an image, not an object.
fn is_manifest(path: &Path) -> bool {
    let ending = path.extension().and_then(|e| e.to_str());
    matches!(ending, Some("yaml" | "yml" | "json"))
        && path.file_name().is_none_or(|name| name != "cumulet.yaml")
}

fn parse(text: &str) -> anyhow::Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    let mut objects = Vec::new();
    for document in documents {
        match document {
            Value::Null => {}
            Value::Object(ref map) if map.get("kind").is_some_and(|k| k == "List") => {
                objects.extend(document["items"].as_array().into_iter().flatten().cloned());
            }
            Value::Object(ref map) if map.contains_key("kind") && map.contains_key("apiVersion") => {
                objects.push(document);
            }
            other => {
                let start: String = other.to_string().chars().take(60).collect();
                bail!("not an object with apiVersion and kind: {start}")
            }
        }
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_lists_and_mistakes() {
        let two = "apiVersion: v1\nkind: A\n---\n---\n{\"apiVersion\": \"v1\", \"kind\": \"B\"}\n";
        let kinds = |text| {
            parse(text).unwrap().iter().map(|o| o["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(kinds(two), ["A", "B"]);
        assert_eq!(kinds("apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: C}]"), ["C"]);
        assert!(parse("a: 1").unwrap_err().to_string().contains("apiVersion"));
        assert!(parse("a: [").is_err());
    }
}
