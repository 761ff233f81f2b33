//! `image build`: composes an image, and shows how it goes.

use super::sandbox::Sandbox;
use super::transfer;
use crate::args::ImageBuild;
use crate::{StateDir, block_on, table};
use anyhow::{Context, bail};
use cumulet_images::{BuildOptions, BuiltImage, Event, ImageStore, Reference, Step, Tools};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What describes an image, and the directory that may hold it beside manifests that `kubectl apply -f DIR` reads.
const DESCRIPTION: &str = "cumulet.yaml";
const IMAGE_DIR: &str = "image";
/// Between two drawings of the bar.
const REDRAW: Duration = Duration::from_millis(100);
/// Cells of the bar, and most characters of what is being done beside it.
const WIDTH: usize = 24;
const DOING: usize = 40;

pub(super) fn run(state: &StateDir, store: &ImageStore, task: &ImageBuild) -> anyhow::Result<()> {
    let start = Instant::now();
    let options = BuildOptions {
        tag: task.tag.clone(),
        no_cache: task.no_cache,
        refresh: task.refresh,
        disk: task.disk,
        ..BuildOptions::from_env()?
    };
    let sandbox = Sandbox::new(state.path());
    let bring = |name: &str| {
        bring(state, store, name).map_err(|error| format!("not present, and pulling it failed: {error:#}"))
    };
    let screen = Screen::new();
    let report = |event: Event<'_>| screen.show(event);
    let tools = Tools { sandbox: Some(&sandbox), bring: Some(&bring), report: &report };
    let built = store.compose(&directory(&task.dir), &options, &tools);
    screen.clear();
    let built = built?;
    summary(&built, start.elapsed());
    if let (Some(disk), Some(file)) = (&built.disk, &task.output) {
        write_disk(disk, file)?;
    }
    println!("{}", built.digest);
    Ok(())
}

/// Writes the disk to a file, which appears whole or not at all.
fn write_disk(disk: &Path, file: &Path) -> anyhow::Result<()> {
    let aside = file.with_extension("partial");
    let raw = file.extension().is_some_and(|e| e == "raw" || e == "img");
    let written = if raw {
        let convert = Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(disk).arg(&aside).output();
        convert.context("cannot start qemu-img: install the package qemu-utils").and_then(|output| {
            if output.status.success() {
                return Ok(());
            }
            bail!("qemu-img failed: {}", String::from_utf8_lossy(&output.stderr).trim())
        })
    } else {
        std::fs::copy(disk, &aside).map(drop).with_context(|| format!("cannot write {}", aside.display()))
    };
    let published = written.and_then(|()| {
        std::fs::rename(&aside, file).with_context(|| format!("cannot write {}", file.display()))
    });
    if published.is_err() {
        let _ = std::fs::remove_file(&aside);
    }
    published
}

fn directory(dir: &Path) -> PathBuf {
    let below = dir.join(IMAGE_DIR);
    let is_below = !dir.join(DESCRIPTION).exists() && below.join(DESCRIPTION).exists();
    if is_below { below } else { dir.to_path_buf() }
}

/// Pulls an image that another one is built on.
fn bring(state: &StateDir, store: &ImageStore, name: &str) -> anyhow::Result<()> {
    let name = Reference::parse(name)?;
    let (client, keyring) = transfer::client(state, store)?;
    let bar = super::bar::Bar::new(&format!("pulling {}", name.short()));
    block_on(async { Ok(client.pull(&name, &keyring, &bar).await.map(drop)?) })
}

fn summary(built: &BuiltImage, took: Duration) {
    let layers: usize = built.steps.iter().map(|step| step.layers).sum();
    let reused: usize = built.steps.iter().map(|step| step.reused.min(step.layers)).sum();
    eprintln!(
        "{} built in {:.2} s: {}, {} entries, {reused} of {layers} layers reused",
        built.reference.short(),
        took.as_secs_f64(),
        table::bytes(built.size_bytes),
        built.entries,
    );
}

/// Stderr: lines, and on a terminal a bar below them.
struct Screen {
    terminal: bool,
    state: Mutex<State>,
}

struct State {
    step: String,
    drawn: Option<Instant>,
}

impl Screen {
    fn new() -> Self {
        let state = Mutex::new(State { step: String::new(), drawn: None });
        Self { terminal: std::io::stderr().is_terminal(), state }
    }

    fn show(&self, event: Event<'_>) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match event {
            Event::Begin(step) => {
                state.step = step.to_owned();
                state.drawn = None;
                self.draw(&mut state, 0.0, "");
            }
            Event::Advance(done, doing) => self.draw(&mut state, done, doing),
            Event::Line(line) => self.line(&mut state, &format!("  | {line}")),
            Event::Note(note) => self.line(&mut state, note),
            Event::End(step) => self.line(&mut state, &done(step)),
        }
    }

    /// Puts a line above the bar.
    fn line(&self, state: &mut State, line: &str) {
        let erase = if self.terminal { "\r\u{1b}[K" } else { "" };
        // A terminal that is gone is no reason to stop the work.
        let _ = writeln!(std::io::stderr(), "{erase}{line}");
        state.drawn = None;
    }

    fn draw(&self, state: &mut State, done: f32, doing: &str) {
        if self.terminal && state.drawn.is_none_or(|at| at.elapsed() >= REDRAW) {
            state.drawn = Some(Instant::now());
            let _ = write!(std::io::stderr(), "\r\u{1b}[K{}", bar(&state.step, done, doing));
        }
    }

    fn clear(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\u{1b}[K");
        }
    }
}

fn bar(step: &str, done: f32, doing: &str) -> String {
    let filled = "=".repeat((done.clamp(0.0, 1.0) * WIDTH as f32) as usize);
    let doing: String = doing.chars().filter(|c| !c.is_control()).take(DOING).collect();
    format!("{step} [{filled:<WIDTH$}] {doing}")
}

fn done(step: &Step) -> String {
    let how = match (step.layers, step.reused) {
        (0, 0) => "changed nothing".to_owned(),
        (layers, reused) if reused >= layers => "reused".to_owned(),
        (_, 0) => format!("made in {:.2} s", step.took.as_secs_f64()),
        (layers, reused) => {
            format!("{} of {layers} layers made in {:.2} s", layers - reused, step.took.as_secs_f64())
        }
    };
    format!("{}: {how}, {}", step.name, table::bytes(step.size_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let check = |layers, reused, expected: &str| {
            let took = Duration::from_millis(1500);
            let step = Step { name: "files".to_owned(), layers, reused, size_bytes: 1000, took };
            assert_eq!(done(&step), expected);
        };
        check(1, 1, "files: reused, 1.0 kB");
        check(0, 1, "files: reused, 1.0 kB");
        check(2, 0, "files: made in 1.50 s, 1.0 kB");
        check(16, 15, "files: 1 of 16 layers made in 1.50 s, 1.0 kB");
        check(0, 0, "files: changed nothing, 1.0 kB");
        assert_eq!(bar("a", 0.5, "b\nc"), format!("a [{}{}] bc", "=".repeat(12), " ".repeat(12)));
    }
}
