//! `snapshot`: templates that virtual machines start from.
//!
//! Everything works on the directory of templates alone, beside a running cloud or without one: a template appears and
//! goes in one step, what is being written is locked, and machines that started from a template hold its memory themselves.

mod list;
mod prune;
mod transfer;

use crate::StateDir;
use crate::args::Snapshot as Task;
use anyhow::{Context, bail};
use cumulet_snapshot_format::{Key, Template, list as read_dir, remove};
use std::path::Path;
use std::time::Instant;

/// Most keys that an error lists.
const SHOWN: usize = 5;

/// Runs one command on templates.
pub(crate) fn run(state: &StateDir, task: Task) -> anyhow::Result<()> {
    let dir = state.snapshots();
    match task {
        Task::Ls(output) => list::list(&dir, output.format),
        Task::Inspect { keys, format } => list::inspect(&dir, &keys, format),
        Task::Rm { keys } => rm(&dir, &keys),
        Task::Prune(options) => prune::prune(&dir, &options),
        Task::Verify { keys } => verify(&dir, &keys),
        Task::Push { key, name } => transfer::push(state, &key, &name),
        Task::Pull { name } => transfer::pull(state, &name),
    }
}

/// The key that a person means: all of its digits, or so many that no other begins with them.
fn find(dir: &Path, text: &str) -> anyhow::Result<Key> {
    let all = keys(dir)?;
    let matches: Vec<&Key> = all.iter().filter(|key| key.to_string().starts_with(text)).collect();
    match matches.as_slice() {
        _ if text.is_empty() => bail!("a template is named by the first digits of its key"),
        [one] => Ok(**one),
        [] if all.is_empty() => {
            bail!("there is no template {text:?}: there are none at all in {}", dir.display())
        }
        [] => bail!("there is no template {text:?}: `cumulet snapshot ls` lists those there are"),
        many => {
            let some: Vec<String> = many.iter().take(SHOWN).map(|key| key.short()).collect();
            let more = if many.len() > SHOWN { ", …" } else { "" };
            bail!(
                "{text:?} is the beginning of {} keys: {}{more}; give more digits",
                many.len(),
                some.join(", ")
            )
        }
    }
}

/// All keys, also of what is broken.
fn keys(dir: &Path) -> anyhow::Result<Vec<Key>> {
    let key = |one: Result<Template, (Key, _)>| one.map_or_else(|(key, _)| key, |found| found.header().key);
    Ok(read_dir(dir)?.into_iter().map(key).collect())
}

fn rm(dir: &Path, texts: &[String]) -> anyhow::Result<()> {
    // All names are understood before anything is removed.
    let keys: Vec<Key> = texts.iter().map(|text| find(dir, text)).collect::<anyhow::Result<_>>()?;
    for key in keys {
        remove(dir, &key)?;
        println!("{key} removed");
    }
    Ok(())
}

fn verify(dir: &Path, texts: &[String]) -> anyhow::Result<()> {
    let keys = match texts {
        [] => keys(dir)?,
        texts => texts.iter().map(|text| find(dir, text)).collect::<anyhow::Result<_>>()?,
    };
    let mut bad = 0;
    for key in &keys {
        let start = Instant::now();
        match Template::open(dir, key).and_then(|template| template.verify()) {
            Ok(()) => println!("{} is whole ({:.2} s)", key.short(), start.elapsed().as_secs_f64()),
            Err(error) => {
                bad += 1;
                println!("{}: {:#}", key.short(), anyhow::Error::from(error));
            }
        }
    }
    match bad {
        0 => Ok(()),
        bad => bail!(
            "{bad} of {} templates cannot be used: remove them with `cumulet snapshot prune`",
            keys.len()
        ),
    }
}

/// Opens a template that a person names.
fn open(dir: &Path, text: &str) -> anyhow::Result<Template> {
    let key = find(dir, text)?;
    Template::open(dir, &key).with_context(|| format!("template {}", key.short()))
}

#[cfg(test)]
mod tests;
