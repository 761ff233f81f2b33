//! `image`: build, pull, push, load, save, list, describe and remove images.
//!
//! The store is shared with a running cloud and needs none: images can be brought before the first `up`.

mod bar;
mod build;
mod inspect;
pub mod sandbox;
mod transfer;

pub(crate) use bar::Bar;
pub(crate) use transfer::client;

use crate::args::{Format, Image as Task};
use crate::client::connect;
use crate::{StateDir, block_on, table};
use anyhow::{Context, bail};
use cumulet_images::{Digest, ImageStore, ImageSummary};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Digits of a digest that people see.
const SHORT_ID: usize = 12;

/// Runs one image command.
pub(crate) fn run(state: &StateDir, task: Task) -> anyhow::Result<()> {
    state.create()?;
    let store = ImageStore::open(&state.images())?;
    match task {
        Task::Build(options) => build::run(state, &store, &options),
        Task::Load { file } => load(&store, &file),
        Task::Save { image, file } => save(&store, &image, &file),
        Task::Ls(output) => list(&store, output.format),
        Task::Pull { images } => transfer::pull(state, &store, &images),
        Task::Push { image, target } => transfer::push(state, &store, &image, target.as_deref()),
        Task::Tag { image, name } => Ok(store.tag(&image, &name)?),
        Task::Inspect { images, format } => inspect::inspect(&store, &images, format),
        Task::History { image, output } => inspect::history(&store, &image, &output),
        Task::Search { term } => search(&store, &term),
        Task::Rm { images } => {
            for image in images {
                store.remove(&image)?;
                println!("{image} removed");
            }
            Ok(())
        }
        Task::Prune => prune(state, &store),
        Task::Verify => verify(&store),
    }
}

fn load(store: &ImageStore, file: &Path) -> anyhow::Result<()> {
    let loaded = if file == Path::new("-") {
        store.load_from("standard input", std::io::stdin())?
    } else {
        store.load(file)?
    };
    for image in loaded {
        if image.refs.is_empty() {
            println!("{}", image.digest);
        }
        image.refs.iter().for_each(|name| println!("{}", name.short()));
    }
    Ok(())
}

fn save(store: &ImageStore, image: &str, file: &Path) -> anyhow::Result<()> {
    if file == Path::new("-") {
        if std::io::stdout().is_terminal() {
            bail!("an image is not for a terminal: give a file, or redirect the output");
        }
        return Ok(store.save(image, std::io::stdout().lock())?);
    }
    // Written aside, so that a failed save leaves no half archive under the name.
    let aside = file.with_extension("partial");
    let result = (|| {
        let mut out = File::create(&aside).with_context(|| format!("cannot write {}", aside.display()))?;
        store.save(image, &mut out)?;
        out.flush()?;
        std::fs::rename(&aside, file).with_context(|| format!("cannot write {}", file.display()))
    })();
    if result.is_err() {
        let _ = std::fs::remove_file(&aside);
    }
    result
}

fn list(store: &ImageStore, format: Format) -> anyhow::Result<()> {
    let images = store.list()?;
    let names = |image: &ImageSummary| image.refs.iter().map(|r| r.short()).collect::<Vec<_>>();
    let object = |image: &ImageSummary| {
        json!({
            "names": names(image), "digest": image.digest.to_string(), "id": image.id.to_string(),
            "sizeBytes": image.size_bytes, "created": image.created,
        })
    };
    match format {
        Format::Json => {
            println!("{}", serde_json::to_string_pretty(&images.iter().map(object).collect::<Vec<Value>>())?);
        }
        Format::Yaml => {
            print!("{}", serde_saphyr::to_string(&images.iter().map(object).collect::<Vec<Value>>())?)
        }
        Format::Name => images.iter().flat_map(names).for_each(|name| println!("{name}")),
        Format::Table | Format::Wide => {
            let row = |image: &ImageSummary| {
                let names = names(image);
                let name = if names.is_empty() { "<none>".to_owned() } else { names.join(", ") };
                let id: String = image.id.hex().chars().take(SHORT_ID).collect();
                vec![name, id, table::bytes(image.size_bytes)]
            };
            table::print(&["NAME", "IMAGE ID", "SIZE"], &images.iter().map(row).collect::<Vec<_>>());
        }
    }
    Ok(())
}

/// Names in the store that contain a text.
fn search(store: &ImageStore, term: &str) -> anyhow::Result<()> {
    let images = store.list()?;
    let mut found: Vec<Vec<String>> = Vec::new();
    for image in &images {
        let names = image.refs.iter().map(|name| name.short()).filter(|name| name.contains(term));
        found.extend(names.map(|name| vec![name, table::bytes(image.size_bytes)]));
    }
    found.sort();
    table::print(&["NAME", "SIZE"], &found);
    Ok(())
}

fn prune(state: &StateDir, store: &ImageStore) -> anyhow::Result<()> {
    let in_use = match state.running()? {
        Some(_) => block_on(images_of_pods(state))?,
        // Pods can run without the main process, and only it could say which images they use.
        None if state.path().join("pods").read_dir().is_ok_and(|mut pods| pods.next().is_some()) => {
            bail!(
                "pods run but the cloud does not: start it with `cumulet up --detach`, so that their images are known"
            )
        }
        None => Vec::new(),
    };
    let pruned = store.prune(&in_use)?;
    let freed = pruned.freed_bytes + prune_disks(&state.rootfs(), store)?;
    println!("{} images removed, {} freed", pruned.images.len(), table::bytes(freed));
    Ok(())
}

/// Removes the disks that virtual machines were given of images which are gone, and gives their size in bytes. A
/// machine that still runs has its disk open.
fn prune_disks(dir: &Path, store: &ImageStore) -> anyhow::Result<u64> {
    let kept: BTreeSet<String> =
        store.list()?.iter().map(|image| format!("{}.erofs", image.digest.hex())).collect();
    let mut freed = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".erofs") && !kept.contains(&name) {
            freed += entry.metadata().map_or(0, |metadata| metadata.blocks() * 512);
            fs::remove_file(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(freed)
}

/// Digests of the images that containers of existing pods were made from.
async fn images_of_pods(state: &StateDir) -> anyhow::Result<Vec<Digest>> {
    let pods = Api::<Pod>::all(connect(state).await?).list(&ListParams::default()).await?;
    let statuses = pods.iter().filter_map(|pod| pod.status.as_ref());
    let ids = statuses.flat_map(|s| s.init_container_statuses.iter().chain(&s.container_statuses).flatten());
    let ids: BTreeSet<&str> =
        ids.map(|status| status.image_id.as_str()).filter(|id| !id.is_empty()).collect();
    ids.into_iter()
        .map(|id| {
            Digest::parse(id).with_context(|| format!("a pod has the image id {id:?}, which is no digest"))
        })
        .collect()
}

fn verify(store: &ImageStore) -> anyhow::Result<()> {
    let problems = store.verify()?;
    if problems.is_empty() {
        println!("every blob and layer is what its digest says");
        return Ok(());
    }
    problems.iter().for_each(|problem| println!("{problem}"));
    bail!("{} problems: remove the images concerned and load them again", problems.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_of_images_that_are_gone_go() {
        let dir = std::env::temp_dir().join(format!("cumulet-disks-{}", std::process::id()));
        let store = ImageStore::open(&dir.join("images")).expect("store");
        assert_eq!(prune_disks(&dir.join("rootfs"), &store).expect("no directory"), 0);
        fs::create_dir_all(dir.join("rootfs")).expect("directory");
        let (gone, other) = (dir.join("rootfs/0123.erofs"), dir.join("rootfs/0123.lock"));
        fs::write(&gone, [0; 10_000]).expect("write");
        fs::write(&other, "").expect("write");
        assert!(prune_disks(&dir.join("rootfs"), &store).expect("prune") >= 10_000);
        assert!(!gone.exists() && other.exists());
        fs::remove_dir_all(&dir).expect("remove");
    }
}
