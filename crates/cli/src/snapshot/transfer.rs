//! `snapshot push` and `snapshot pull`: templates as OCI artifacts.
//!
//! | what | media type |
//! |---|---|
//! | the artifact | [`ARTIFACT`] |
//! | configuration: the header, and the digests of memory and state | [`CONFIG`] |
//! | layer: the devices' state | [`STATE`] |
//! | layer: a part of the memory, at the address in its annotation [`OFFSET`] | [`MEMORY`] |
//!
//! Layers are compressed with zstd. Parts are found by their digest, so one that has not changed is sent once.

use super::list::fits;
use super::open;
use crate::image::{Bar, client};
use crate::{StateDir, block_on, table};
use anyhow::{Context, bail};
use cumulet_images::{Artifact, ArtifactLayer, Client, Digest, ImageError, ImageStore, Keyring, Reference};
use cumulet_snapshot_format::{Compatibility, Config, MAX_STATE_BYTES, Packed, Template, Unpacker};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

const ARTIFACT: &str = "application/vnd.cumulet.snapshot.v1";
const CONFIG: &str = "application/vnd.cumulet.snapshot.config.v1+json";
const STATE: &str = "application/vnd.cumulet.snapshot.state.v1+zstd";
const MEMORY: &str = "application/vnd.cumulet.snapshot.memory.v1+zstd";
const OFFSET: &str = "dev.cumulet.snapshot.offset";
/// The name that keeps a template in the store while it is pushed; nobody can pull from there.
const PUSHING: &str = "localhost/cumulet-snapshot-push";

/// What a layer is.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    /// The devices' state.
    State,
    /// A part of the memory, from this byte on.
    Memory(u64),
}

/// Sends a template to the registry in a name.
pub(super) fn push(state: &StateDir, key: &str, name: &str) -> anyhow::Result<()> {
    let template = open(&state.snapshots(), key)?;
    let name = Reference::parse(name)?;
    if name.digest().is_some() {
        bail!("{} has a digest: a template is pushed to a tag, and gets its digest there", name.short());
    }
    let store = ImageStore::open(&state.images())?;
    let (client, keyring) = client(state, &store)?;
    let start = Instant::now();
    let sent = send(&store, &client, &keyring, &template, &name)?;
    eprintln!(
        "{} pushed to {} in {:.2} s: {} of {} parts sent, {}",
        template.header().key.short(),
        name.short(),
        start.elapsed().as_secs_f64(),
        sent.blobs - sent.blobs_reused,
        sent.blobs,
        table::bytes(sent.bytes_sent),
    );
    println!("{}", sent.digest);
    Ok(())
}

/// Puts a template into the store, pushes it from there, and forgets its name there.
fn send(
    store: &ImageStore,
    client: &Client,
    keyring: &Keyring,
    template: &Template,
    name: &Reference,
) -> anyhow::Result<cumulet_images::Pushed> {
    let own = Reference::parse(&format!("{PUSHING}:{}", template.header().key))?;
    let digest = into_store(store, &template.pack()?, &own)?;
    let bar = Bar::new(&format!("pushing {}", name.short()));
    let pushed = block_on(async { Ok(client.push(digest.as_str(), name, keyring, &bar).await?) });
    bar.finish();
    match store.remove(&own.to_string()) {
        // Somebody else pushed the same and was quicker.
        Ok(_) | Err(ImageError::NotFound { .. }) => pushed,
        Err(error) => pushed.and(Err(error.into())),
    }
}

fn into_store(store: &ImageStore, packed: &Packed<'_>, name: &Reference) -> anyhow::Result<Digest> {
    let mut artifact = store.new_artifact()?;
    artifact.layer(STATE, BTreeMap::new(), &mut &packed.state()?[..])?;
    for offset in packed.parts() {
        let at = BTreeMap::from([(OFFSET.to_owned(), offset.to_string())]);
        artifact.layer(MEMORY, at, &mut packed.part(offset)?)?;
    }
    let config = serde_json::to_vec(&packed.config()).context("the header cannot be written")?;
    Ok(artifact.finish(ARTIFACT, (CONFIG, &config), name)?)
}

/// Fetches a template and says whether it fits.
pub(super) fn pull(state: &StateDir, name: &str) -> anyhow::Result<()> {
    let name = Reference::parse(name)?;
    state.create()?;
    let store = ImageStore::open(&state.images())?;
    let (client, keyring) = client(state, &store)?;
    let (start, dir) = (Instant::now(), state.snapshots());
    let bar = Bar::new(&format!("pulling {}", name.short()));
    let accept = |config: &[u8], layers: &[ArtifactLayer]| {
        plan(config, layers).map(|_| ()).map_err(|error| error.to_string())
    };
    let artifact =
        block_on(async { Ok(client.pull_artifact(&name, ARTIFACT, &accept, &keyring, &bar).await?) })?;
    bar.finish();
    let template = out_of_store(&store, &artifact, &dir)?;
    let header = template.header();
    eprintln!(
        "{} pulled in {:.2} s: {} fetched; it is of {}/{}",
        name.short(),
        start.elapsed().as_secs_f64(),
        table::bytes(artifact.bytes_fetched),
        header.namespace,
        header.name,
    );
    match fits(&template, Compatibility::published(&dir)?.as_ref()) {
        Some(Ok(())) => {}
        Some(Err(reason)) => eprintln!("it does not fit this machine and stays unused: {reason}"),
        None => eprintln!("whether it fits this machine is known once `cumulet up` has run here"),
    }
    println!("{}", header.key);
    Ok(())
}

fn out_of_store(store: &ImageStore, artifact: &Artifact, dir: &Path) -> anyhow::Result<Template> {
    let (config, pieces) = plan(&artifact.config, &artifact.layers)?;
    let mut unpacker = Unpacker::begin(dir, config)?;
    for (layer, piece) in artifact.layers.iter().zip(pieces) {
        let file = store.open_layer(layer)?;
        match piece {
            Piece::State => unpacker.state(file),
            Piece::Memory(offset) => unpacker.part(offset, file),
        }
        .with_context(|| format!("layer {}", layer.digest))?;
    }
    Ok(unpacker.finish()?)
}

/// What each layer of an artifact is, when it can be a template.
fn plan(config: &[u8], layers: &[ArtifactLayer]) -> anyhow::Result<(Config, Vec<Piece>)> {
    let config = Config::parse(config)?;
    let mut pieces = Vec::new();
    let mut from = 0;
    for layer in layers {
        let (piece, bytes) = match layer.media_type.as_str() {
            STATE if pieces.is_empty() => (Piece::State, MAX_STATE_BYTES as u64),
            MEMORY if !pieces.is_empty() => {
                let offset = layer.annotations.get(OFFSET).and_then(|text| text.parse().ok());
                let offset = offset
                    .with_context(|| format!("layer {} does not say where it belongs", layer.digest))?;
                config.check_part(offset)?;
                if offset < from {
                    bail!("the parts of its memory are not in their order");
                }
                from = offset + config.part_bytes;
                (Piece::Memory(offset), config.part_bytes)
            }
            other => {
                bail!("its layer {} is \"{other}\": the state comes first, then memory", pieces.len() + 1)
            }
        };
        // What cannot be compressed becomes a little larger.
        let most = bytes + bytes / 16 + 4096;
        if layer.size_bytes > most {
            bail!("layer {} has {} bytes, at most {most} are possible", layer.digest, layer.size_bytes);
        }
        pieces.push(piece);
    }
    match pieces.is_empty() {
        true => bail!("it has no layers"),
        false => Ok((config, pieces)),
    }
}

#[cfg(test)]
mod tests;
