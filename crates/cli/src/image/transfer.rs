//! `image pull` and `image push`: the registry client, with progress for people.

use super::bar::Bar;
use crate::{StateDir, block_on, table};
use anyhow::Context;
use cumulet_images::{Client, ClientOptions, ImageStore, Keyring, Reference, RegistriesConfig};
use std::time::Instant;

/// A client as the configuration of registries says, and the credentials of `docker login`.
pub(crate) fn client(state: &StateDir, store: &ImageStore) -> anyhow::Result<(Client, Keyring)> {
    let registries = RegistriesConfig::load(&state.registries())?;
    let client = Client::new(store.clone(), ClientOptions { registries, ..ClientOptions::default() })?;
    Ok((client, Keyring::of_user()?))
}

pub(super) fn pull(state: &StateDir, store: &ImageStore, images: &[String]) -> anyhow::Result<()> {
    let (client, keyring) = client(state, store)?;
    block_on(async {
        for image in images {
            let name = Reference::parse(image)?;
            let (start, bar) = (Instant::now(), Bar::new(&format!("pulling {}", name.short())));
            let pulled = client.pull(&name, &keyring, &bar).await?;
            bar.finish();
            eprintln!(
                "{} pulled in {:.2} s: {} fetched",
                name.short(),
                start.elapsed().as_secs_f64(),
                table::bytes(pulled.bytes_fetched),
            );
            println!("{}", pulled.digest);
        }
        Ok(())
    })
}

pub(super) fn push(
    state: &StateDir,
    store: &ImageStore,
    image: &str,
    target: Option<&str>,
) -> anyhow::Result<()> {
    let (client, keyring) = client(state, store)?;
    let name = Reference::parse(target.unwrap_or(image))
        .with_context(|| "give the name to push to as a second argument")?;
    block_on(async {
        let (start, bar) = (Instant::now(), Bar::new(&format!("pushing {}", name.short())));
        let pushed = client.push(image, &name, &keyring, &bar).await?;
        bar.finish();
        eprintln!(
            "{} pushed in {:.2} s: {} sent",
            name.short(),
            start.elapsed().as_secs_f64(),
            table::bytes(pushed.bytes_sent),
        );
        println!("{}", pushed.digest);
        Ok(())
    })
}
