//! `image inspect` and `image history`.

use crate::args::{Format, Output};
use crate::table;
use cumulet_images::{ImageStore, Inspection};
use serde_json::{Value, json};

/// Longest command that the table of a history shows, in characters.
const COMMAND_WIDTH: usize = 60;

/// Describes images: always data, as JSON unless asked for YAML.
pub(super) fn inspect(store: &ImageStore, images: &[String], output: Option<Format>) -> anyhow::Result<()> {
    let found: Vec<Value> =
        images.iter().map(|image| Ok(object(&store.inspect(image)?))).collect::<anyhow::Result<_>>()?;
    match output {
        Some(Format::Yaml) => print!("{}", serde_saphyr::to_string(&found)?),
        _ => println!("{}", serde_json::to_string_pretty(&found)?),
    }
    Ok(())
}

fn object(image: &Inspection) -> Value {
    let layers = image.layers.iter().map(|layer| {
        json!({
            "digest": layer.digest.to_string(),
            "diffID": layer.diff_id.as_ref().map(ToString::to_string),
            "mediaType": layer.media_type,
            "sizeBytes": layer.size_bytes,
            "unpacked": layer.unpacked,
        })
    });
    json!({
        "names": image.refs.iter().map(|name| name.short()).collect::<Vec<_>>(),
        "digest": image.digest.to_string(),
        "id": image.id.to_string(),
        "mediaType": image.media_type,
        "sizeBytes": image.size_bytes,
        "layers": layers.collect::<Vec<_>>(),
        "config": image.config,
    })
}

/// Shows how an image came to be, newest step first.
pub(super) fn history(store: &ImageStore, image: &str, output: &Output) -> anyhow::Result<()> {
    let image = store.inspect(image)?;
    let mut layers = image.layers.iter();
    let mut steps: Vec<(Option<String>, String, Option<u64>)> = Vec::new();
    for step in &image.history {
        let size = if step.empty_layer { Some(0) } else { layers.next().map(|layer| layer.size_bytes) };
        let words = if step.created_by.is_empty() { &step.comment } else { &step.created_by };
        steps.push((step.created.clone(), words.clone(), size));
    }
    // Tools that write no history still make layers.
    steps.extend(layers.map(|layer| (None, String::new(), Some(layer.size_bytes))));
    steps.reverse();
    let objects = || {
        steps
            .iter()
            .map(|(created, by, size)| json!({"created": created, "createdBy": by, "sizeBytes": size}))
    };
    match output.format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&objects().collect::<Vec<Value>>())?),
        Format::Yaml => print!("{}", serde_saphyr::to_string(&objects().collect::<Vec<Value>>())?),
        Format::Table | Format::Wide | Format::Name => {
            let wide = output.format == Format::Wide;
            let row = |(created, by, size): &(Option<String>, String, Option<u64>)| {
                let by = if wide { by.clone() } else { shorten(by) };
                vec![created.clone().unwrap_or_default(), size.map_or_else(String::new, table::bytes), by]
            };
            table::print(&["CREATED", "SIZE", "CREATED BY"], &steps.iter().map(row).collect::<Vec<_>>());
        }
    }
    Ok(())
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(COMMAND_WIDTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
