//! `snapshot ls` and `snapshot inspect`.

use super::open;
use crate::args::Format;
use crate::table;
use cumulet_snapshot_format::{Compatibility, Key, Listed, Template, list as read_dir};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::path::Path;
use std::time::SystemTime;

const HEADINGS: [&str; 9] =
    ["KEY", "NAMESPACE", "MADE OF", "IMAGES", "MEMORY", "ON DISK", "CREATED", "LAST USED", "FITS"];

/// Lists templates and what is broken.
pub(super) fn list(dir: &Path, format: Format) -> anyhow::Result<()> {
    let here = Compatibility::published(dir)?;
    let listed = read_dir(dir)?;
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&objects(&listed, here.as_ref())?)?),
        Format::Yaml => print!("{}", serde_saphyr::to_string(&objects(&listed, here.as_ref())?)?),
        Format::Name => listed.iter().for_each(|one| println!("{}", key(one))),
        Format::Table | Format::Wide => {
            let wide = format == Format::Wide;
            let rows: anyhow::Result<Vec<_>> =
                listed.iter().map(|one| row(one, here.as_ref(), wide)).collect();
            table::print(&HEADINGS, &rows?);
        }
    }
    Ok(())
}

/// Describes templates: always data, as JSON unless asked for YAML.
pub(super) fn inspect(dir: &Path, keys: &[String], format: Option<Format>) -> anyhow::Result<()> {
    let here = Compatibility::published(dir)?;
    let found: Vec<Value> = keys
        .iter()
        .map(|text| {
            let template = open(dir, text)?;
            let mut object = object(&template, here.as_ref())?;
            // What the list leaves out: what it needs, and the node's own notes.
            object["compatibility"] = serde_json::to_value(&template.header().compatibility)?;
            object["guest"] = template.header().guest.clone();
            object["stateBytes"] = json!(template.header().state_bytes);
            object["path"] = json!(template.path());
            Ok(object)
        })
        .collect::<anyhow::Result<_>>()?;
    match format {
        Some(Format::Yaml) => print!("{}", serde_saphyr::to_string(&found)?),
        _ => println!("{}", serde_json::to_string_pretty(&found)?),
    }
    Ok(())
}

fn key(listed: &Listed) -> Key {
    listed.as_ref().map_or_else(|(key, _)| *key, |template| template.header().key)
}

/// Whether a template fits, in one word or with the reasons. `None` when nobody has said what this machine offers.
pub(super) fn fits(template: &Template, here: Option<&Compatibility>) -> Option<Result<(), String>> {
    let needs = &template.header().compatibility;
    here.map(|here| needs.fits_machine(here).map_err(|mismatch| mismatch.to_string()))
}

fn objects(listed: &[Listed], here: Option<&Compatibility>) -> anyhow::Result<Vec<Value>> {
    let one = |listed: &Listed| match listed {
        Ok(template) => object(template, here),
        Err((key, error)) => Ok(json!({ "key": key, "error": error.to_string() })),
    };
    listed.iter().map(one).collect()
}

pub(super) fn object(template: &Template, here: Option<&Compatibility>) -> anyhow::Result<Value> {
    let (header, usage) = (template.header(), template.usage()?);
    let fits = fits(template, here);
    let mut object = json!({
        "key": header.key,
        "namespace": header.namespace,
        "name": header.name,
        "images": header.images,
        "memoryBytes": header.memory_bytes,
        "nonzeroBytes": header.pages.nonzero_bytes,
        "diskBytes": usage.disk_bytes,
        "created": created(template).to_string(),
        "lastUsed": Timestamp::try_from(usage.last_used)?.to_string(),
        "fits": fits.as_ref().map(Result::is_ok),
    });
    if let Some(Err(reason)) = fits {
        object["reason"] = json!(reason);
    }
    Ok(object)
}

fn row(listed: &Listed, here: Option<&Compatibility>, wide: bool) -> anyhow::Result<Vec<String>> {
    let template = match listed {
        Ok(template) => template,
        Err((key, error)) => {
            let mut cells = vec![shown(key, wide)];
            cells.resize(HEADINGS.len() - 1, "-".to_owned());
            cells.push(format!("broken: {error}"));
            return Ok(cells);
        }
    };
    let (header, usage, now) = (template.header(), template.usage()?, SystemTime::now());
    let images: Vec<String> = header.images.iter().map(|image| image_name(image, wide)).collect();
    let fits = match fits(template, here) {
        None => "unknown".to_owned(),
        Some(Ok(())) => "yes".to_owned(),
        Some(Err(reason)) => format!("no: {reason}"),
    };
    Ok(vec![
        shown(&header.key, wide),
        header.namespace.clone(),
        header.name.clone(),
        images.join(", "),
        table::bytes(header.memory_bytes),
        table::bytes(usage.disk_bytes),
        age(now, created(template).into()),
        age(now, usage.last_used),
        fits,
    ])
}

fn shown(key: &Key, wide: bool) -> String {
    if wide { key.to_string() } else { key.short() }
}

/// The last part of an image's name, which tells it apart from others; all of it in wide output.
fn image_name(image: &str, wide: bool) -> String {
    match (wide, image.split_once('@'), image.rsplit_once('/')) {
        (true, ..) => image.to_owned(),
        (false, Some((name, _)), _) => image_name(name, false),
        (false, None, Some((_, name))) => name.to_owned(),
        (false, None, None) => image.to_owned(),
    }
}

fn created(template: &Template) -> Timestamp {
    let us = i64::try_from(template.header().created_us).unwrap_or(i64::MAX);
    Timestamp::from_microsecond(us).unwrap_or(Timestamp::MAX)
}

/// How long ago something was, as kubectl says it.
pub(super) fn age(now: SystemTime, then: SystemTime) -> String {
    let seconds = now.duration_since(then).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
