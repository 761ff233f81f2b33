//! The steps of a build: each puts layers on a stack, from the record where its inputs are known.

use super::context::{Gathered, Gathering};
use super::debian::{self, strip::Keep};
use super::description::{Description, Place, Word};
use super::layer::{self, Content, Member, Members, Packing};
use super::progress::{Event, Report, Step};
use super::record::{Key, KeyMaker, Layer, Record};
use super::sandbox::{BuildSandbox, SandboxJob};
use super::tree::Tree;
use super::{BuildOptions, Tools, groups, ignore, set_env};
use crate::error::io;
use crate::oci::{ConfigFile, Platform, RootFs, RunConfig};
use crate::staging::WorkDir;
use crate::{Digest, ImageError, ImageStore};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Where programs are found when an image does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where commands of a build see the image's directory, and begin.
const SOURCES_AT: &str = "/src";
/// How names are looked up on this machine, for commands that may use the network.
const RESOLVER: &str = "/etc/resolv.conf";
/// Most layers of files that are written at a time.
const WRITERS: usize = 4;

/// What the image is made of so far.
pub(super) struct Stack {
    pub(super) layers: Vec<Layer>,
    pub(super) config: ConfigFile,
}

impl Stack {
    pub(super) fn empty() -> Self {
        let rootfs = RootFs { kind: "layers".to_owned(), diff_ids: Vec::new() };
        let (platform, config) = (Platform::here(), RunConfig::default());
        Self {
            layers: Vec::new(),
            config: ConfigFile { created: None, platform, config, rootfs, history: None },
        }
    }

    /// Puts layers on top; `by` says to people what made them.
    pub(super) fn extend(&mut self, layers: Vec<Layer>, by: &str) {
        let mut told = match self.config.history.take() {
            Some(serde_json::Value::Array(told)) => told,
            // Layers of tools that write no history.
            _ => vec![serde_json::json!({}); self.layers.len()],
        };
        told.extend(layers.iter().map(|_| serde_json::json!({"created_by": format!("cumulet: {by}")})));
        self.config.history = Some(told.into());
        self.config.rootfs.diff_ids.extend(layers.iter().map(|layer| layer.diff_id.clone()));
        self.layers.extend(layers);
    }

    fn has(&self, layer: &Layer) -> bool {
        self.config.rootfs.diff_ids.contains(&layer.diff_id)
    }

    /// Digests of the uncompressed layers.
    pub(super) fn diff_ids(&self) -> Vec<String> {
        self.config.rootfs.diff_ids.iter().map(Digest::to_string).collect()
    }

    /// Unpacked layers, lowest first.
    pub(super) fn dirs(&self, store: &ImageStore) -> Vec<PathBuf> {
        self.config.rootfs.diff_ids.iter().map(|diff_id| store.layer(diff_id)).collect()
    }
}

/// One run of a build.
pub(super) struct Builder<'a> {
    pub(super) store: &'a ImageStore,
    pub(super) dir: PathBuf,
    /// The description.
    pub(super) path: PathBuf,
    pub(super) options: &'a BuildOptions,
    pub(super) tools: &'a Tools<'a>,
    pub(super) record: Record<'a>,
    pub(super) work: WorkDir,
    pub(super) keep: Keep,
}

impl Builder<'_> {
    pub(super) fn report(&self) -> Report<'_> {
        self.tools.report
    }

    pub(super) fn say(&self, event: Event<'_>) {
        (self.tools.report)(event);
    }

    pub(super) fn wrong(&self, at: Place, message: String) -> ImageError {
        ImageError::Build { path: self.path.clone(), at, message }
    }

    pub(super) fn sandbox(&self, at: Place) -> Result<&dyn BuildSandbox, ImageError> {
        self.tools.sandbox.ok_or_else(|| {
            self.wrong(at, "programs have to run for this, and there is no sandbox to run them in".to_owned())
        })
    }

    /// Writes a layer and makes it part of the store, unpacked.
    pub(super) fn publish(
        &self,
        label: &str,
        members: &Members,
        packing: Packing,
    ) -> Result<Layer, ImageError> {
        let path = self.work.fresh();
        let packed = layer::write(&path, members, self.options.source_date_epoch, packing)?;
        self.store.publish_blob(&path, &packed.blob.digest)?;
        self.store.unpack_layer(label, &packed.blob.digest, &packed.diff_id)?;
        Ok(Layer { blob: packed.blob, diff_id: packed.diff_id })
    }

    /// Does a step that gives layers; `work` tells the layers and how many were there already.
    pub(super) fn step(
        &self,
        steps: &mut Vec<Step>,
        name: &str,
        work: impl FnOnce() -> Result<(Vec<Layer>, usize), ImageError>,
    ) -> Result<Vec<Layer>, ImageError> {
        self.say(Event::Begin(name));
        let start = Instant::now();
        let (layers, reused) = work()?;
        let step = Step {
            name: name.to_owned(),
            layers: layers.len(),
            reused,
            size_bytes: layers.iter().map(|layer| layer.blob.size).sum(),
            took: start.elapsed(),
        };
        self.say(Event::End(&step));
        steps.push(step);
        Ok(layers)
    }

    /// All steps, in the order in which an edit touches the least.
    pub(super) fn run(&self, description: &Description) -> Result<(Stack, Vec<Step>, usize), ImageError> {
        let mut steps = Vec::new();
        let ignored = ignore::Rules::read(&self.dir)?;
        // Mistakes in what is named here are told before anything takes time.
        let files = self.gather("files", &description.files.0, &ignored)?;
        let entries = files.members.len();
        let mut stack = self.base(description, &mut steps)?;
        self.packages(&mut stack, "packages", &description.packages(), &mut steps)?;
        if self.options.disk {
            self.packages(&mut stack, "disk.packages", &description.disk_packages(), &mut steps)?;
        }
        for word in description.required() {
            self.require(&mut stack, &word, &mut steps)?;
        }
        let commands = description.commands();
        if !commands.is_empty() {
            self.build(&mut stack, description, &commands, &ignored, &mut steps)?;
        }
        if !files.members.is_empty() {
            let added = self.step(&mut steps, "files", || self.files(&files))?;
            // An image of nothing but files looks as it always did.
            let plain = stack.layers.is_empty();
            stack.extend(added, "files");
            stack.config.history = stack.config.history.filter(|_| !plain);
        }
        Ok((stack, steps, entries))
    }

    fn gather(
        &self,
        key: &str,
        entries: &[super::description::Entry],
        ignored: &ignore::Rules,
    ) -> Result<Gathered, ImageError> {
        let mut gathering = Gathering::new(&self.dir, &self.path, key, ignored);
        entries.iter().try_for_each(|entry| gathering.add(entry))?;
        Ok(gathering.finish())
    }

    /// What the image starts from.
    fn base(&self, description: &Description, steps: &mut Vec<Step>) -> Result<Stack, ImageError> {
        let word = description.base();
        if word.text == "scratch" {
            return Ok(Stack::empty());
        }
        let name = format!("base {}", word.text);
        if let Some(suite) = debian::suite_of(&word.text) {
            self.sandbox(word.at)?;
            let layers = self.step(steps, &name, || {
                let (layer, known) = self.debian_base(suite, &word)?;
                Ok((self.ready(vec![layer])?, usize::from(known)))
            })?;
            let mut stack = Stack::empty();
            stack.extend(layers, &name);
            stack.config.config.env = Some(vec![format!("PATH={PATH}")]);
            stack.config.config.cmd = Some(vec!["bash".to_owned()]);
            return Ok(stack);
        }
        let mut config = None;
        let layers = self.step(steps, &name, || {
            let (layers, found) = self.image("base", &word)?;
            config = Some(found);
            let count = layers.len();
            Ok((layers, count))
        })?;
        let config = config.ok_or_else(|| self.wrong(word.at, "base: nothing found".to_owned()))?;
        Ok(Stack { layers, config })
    }

    /// Layers and configuration of an image, unpacked. One that is not present is brought, if somebody can.
    fn image(&self, key: &str, word: &Word) -> Result<(Vec<Layer>, ConfigFile), ImageError> {
        let wrong = |error: &dyn std::fmt::Display| self.wrong(word.at, format!("{key}: {error}"));
        let found = match (self.store.find(&word.text), self.tools.bring) {
            (Err(ImageError::NotFound { .. }), Some(bring)) => {
                bring(&word.text).map_err(|error| wrong(&error))?;
                self.store.find(&word.text)
            }
            (found, _) => found,
        };
        let found = found.map_err(|error| wrong(&error))?;
        let (manifest, config) = self.store.documents(&found)?;
        self.store.unpack_missing(&word.text, &manifest, &config)?;
        let layer =
            |(blob, diff_id): (crate::oci::Descriptor, &Digest)| Layer { blob, diff_id: diff_id.clone() };
        Ok((manifest.layers.into_iter().zip(&config.rootfs.diff_ids).map(layer).collect(), config))
    }

    /// Puts another image's layers on top, and its environment where nothing else is said.
    fn require(&self, stack: &mut Stack, word: &Word, steps: &mut Vec<Step>) -> Result<(), ImageError> {
        let mut env = Vec::new();
        let layers = self.step(steps, &format!("require {}", word.text), || {
            let (layers, config) = self.image("require", word)?;
            env = config.config.env.unwrap_or_default();
            let count = layers.len();
            Ok((layers, count))
        })?;
        // What both are built on stays where it is, or it would hide what came on top of it.
        let new = layers.into_iter().filter(|layer| !stack.has(layer)).collect();
        stack.extend(new, &format!("require {}", word.text));
        let own = stack.config.config.env.get_or_insert_default();
        for (name, value) in env.iter().filter_map(|entry| entry.split_once('=')) {
            if !own.iter().any(|entry| entry.split('=').next() == Some(name)) {
                set_env(own, name, value);
            }
        }
        Ok(())
    }

    /// Puts packages on top.
    fn packages(
        &self,
        stack: &mut Stack,
        key: &str,
        words: &[Word],
        steps: &mut Vec<Step>,
    ) -> Result<(), ImageError> {
        let Some(first) = words.first() else { return Ok(()) };
        // Whoever brings no sandbox wants no other program to run either.
        self.sandbox(first.at)?;
        let added = self.step(steps, &format!("{key} ({})", words.len()), || {
            let (layer, known) = match stack.layers.is_empty() {
                true => self.debian_unpacked(key, words)?,
                false => self.debian_packages(key, stack, words)?,
            };
            Ok((self.ready(vec![layer])?, usize::from(known)))
        })?;
        let names: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
        stack.extend(added, &format!("{key} {}", names.join(" ")));
        Ok(())
    }

    /// Runs the commands, each on the layers before it.
    fn build(
        &self,
        stack: &mut Stack,
        description: &Description,
        commands: &[Word],
        ignored: &ignore::Rules,
        steps: &mut Vec<Step>,
    ) -> Result<(), ImageError> {
        let sources = self.gather("sources", &description.sources(), ignored)?;
        let digests = self.digests(&sources, "sources")?;
        let sources_key = members_key(KeyMaker::new("sources"), &sources.members, &digests).finish();
        let mut run = RunConfig { env: stack.config.config.env.clone(), ..RunConfig::default() };
        description.configure(&mut run);
        let mut env = run.env.unwrap_or_default();
        for (name, value) in [("PATH", PATH), ("HOME", "/root"), ("LC_ALL", "C.UTF-8"), ("TZ", "UTC")] {
            if !env.iter().any(|entry| entry.split('=').next() == Some(name)) {
                set_env(&mut env, name, value);
            }
        }
        set_env(&mut env, "SOURCE_DATE_EPOCH", &self.options.source_date_epoch.to_string());
        let mut unpacked = None;
        // What the commands see; of this, only what they make gets into the image.
        let mut bench = Stack { layers: stack.layers.clone(), config: stack.config.clone() };
        self.packages(&mut bench, "build_packages", &description.build_packages(), steps)?;
        for word in commands {
            let key = KeyMaker::new("build")
                .with_all(bench.diff_ids())
                .with(&word.text)
                .with_all(&env)
                .with([u8::from(description.network)])
                .with(sources_key.text())
                .finish();
            let added = self.step(steps, &format!("build {}", first_line(&word.text)), || {
                if let Some(known) = self.record.layers(&key) {
                    let count = known.len();
                    return Ok((self.ready(known)?, count.max(1)));
                }
                let dir = match &unpacked {
                    Some(dir) => dir,
                    None => unpacked.insert(self.unpack_sources(&sources)?),
                };
                let layers = self.command(&bench, word, &env, description.network, dir)?;
                self.record.put(&key, &layers);
                Ok((layers, 0))
            })?;
            bench.extend(added.clone(), &word.text);
            stack.extend(added, &format!("build {}", word.text));
        }
        Ok(())
    }

    /// Runs one command and makes a layer of what it changed, if it changed anything.
    fn command(
        &self,
        stack: &Stack,
        word: &Word,
        env: &[String],
        network: bool,
        sources: &Path,
    ) -> Result<Vec<Layer>, ImageError> {
        let writable = self.work.fresh();
        fs::create_dir(&writable).map_err(io("make", &writable))?;
        let mut layers = stack.dirs(self.store);
        layers.push(sources.to_owned());
        let shown = match network && Path::new(RESOLVER).exists() {
            true => vec![(PathBuf::from(RESOLVER), RESOLVER.to_owned())],
            false => Vec::new(),
        };
        let output = |line: &str| self.say(Event::Line(line));
        let job = SandboxJob {
            layers,
            writable: writable.clone(),
            args: ["/bin/sh", "-e", "-c", &word.text].map(str::to_owned).to_vec(),
            env: env.to_vec(),
            cwd: SOURCES_AT.to_owned(),
            network,
            shown,
            output: &output,
        };
        let command = first_line(&word.text);
        let outcome = self
            .sandbox(word.at)?
            .run(&job)
            .map_err(|error| self.wrong(word.at, format!("build: `{command}` could not be run: {error}")))?;
        if outcome.exit_code != 0 {
            let message = format!("build: `{command}` failed with exit code {}", outcome.exit_code);
            return Err(self.wrong(word.at, message));
        }
        let mut members = Tree::read(&writable.join("upper"))?.finish();
        members.retain(|place, member| is_result(place, member));
        let layers = match members.is_empty() {
            true => Vec::new(),
            false => vec![self.publish("build", &members, Packing::Plain)?],
        };
        let _ = fs::remove_dir_all(&writable);
        Ok(layers)
    }

    /// Puts the sources into a directory of their own, as a layer for the commands.
    fn unpack_sources(&self, sources: &Gathered) -> Result<PathBuf, ImageError> {
        let root = self.work.fresh();
        fs::create_dir(&root).map_err(io("make", &root))?;
        let date = u64::try_from(self.options.source_date_epoch).unwrap_or(0);
        let date = SystemTime::UNIX_EPOCH + Duration::from_secs(date);
        let place = |path: &Path, member: &Member| -> std::io::Result<()> {
            match &member.content {
                Content::Directory => fs::create_dir_all(path)?,
                Content::Symlink(target) => return symlink(target, path),
                Content::File(source) => {
                    fs::copy(source, path)?;
                    fs::File::options().write(true).open(path)?.set_modified(date)?;
                }
                // Sources have nothing else.
                _ => return Ok(()),
            }
            fs::set_permissions(path, fs::Permissions::from_mode(member.mode))
        };
        let top = root.join(&SOURCES_AT[1..]);
        fs::create_dir(&top).map_err(io("make", &top))?;
        for dir in [&root, &top] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).map_err(io("make", dir))?;
        }
        for (name, member) in &sources.members {
            use std::os::unix::ffi::OsStrExt;
            let path = root.join(std::ffi::OsStr::from_bytes(name));
            place(&path, member).map_err(io("copy", &path))?;
        }
        Ok(root)
    }

    /// Layers from the record, unpacked if a prune removed that.
    pub(super) fn ready(&self, layers: Vec<Layer>) -> Result<Vec<Layer>, ImageError> {
        for layer in &layers {
            self.store.unpack_layer("known layer", &layer.blob.digest, &layer.diff_id)?;
        }
        Ok(layers)
    }

    fn digests(&self, gathered: &Gathered, purpose: &str) -> Result<BTreeMap<PathBuf, Digest>, ImageError> {
        let files: Vec<_> = gathered.files.values().collect();
        self.record.digests(&self.dir.join(format!("//{purpose}")), &files)
    }

    /// The layers of the image's own files, those that changed written by several threads.
    fn files(&self, gathered: &Gathered) -> Result<(Vec<Layer>, usize), ImageError> {
        let digests = self.digests(gathered, "files")?;
        let groups = groups::divide(gathered);
        let keys: Vec<Key> = groups
            .iter()
            .map(|members| {
                let maker = KeyMaker::new("files").with(self.options.source_date_epoch.to_le_bytes());
                members_key(maker, members, &digests).finish()
            })
            .collect();
        let known: Vec<Option<Layer>> =
            keys.iter().map(|key| self.record.layers(key).and_then(|mut layers| layers.pop())).collect();
        let reused = known.iter().flatten().count();
        let open: Vec<usize> = (0..groups.len()).filter(|i| known[*i].is_none()).collect();
        let (next, results) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
        let work = || {
            while let Some(i) = open.get(next.fetch_add(1, Ordering::Relaxed)) {
                let result = self.write_files(&groups[*i], &keys[*i], gathered);
                let mut results = results.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                results.insert(*i, result);
                self.say(Event::Advance(results.len() as f32 / open.len() as f32, "writing layers"));
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        match open.len() {
            0 | 1 => work(),
            many => std::thread::scope(|scope| {
                (0..many.min(cores).min(WRITERS)).for_each(|_| drop(scope.spawn(work)));
            }),
        }
        let mut written = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut layers = Vec::new();
        for (i, known) in known.into_iter().enumerate() {
            match (known, written.remove(&i)) {
                (Some(layer), _) => layers.extend(self.ready(vec![layer])?),
                (None, Some(result)) => layers.push(result?),
                (None, None) => return Err(self.wrong(None, "files: a layer was not written".to_owned())),
            }
        }
        Ok((layers, reused))
    }

    fn write_files(&self, members: &Members, key: &Key, gathered: &Gathered) -> Result<Layer, ImageError> {
        let layer = self.publish("files", members, Packing::Plain)?;
        // The key says what the files were when they were looked at.
        for place in members.keys() {
            let Some(found) = gathered.files.get(place) else { continue };
            let now = fs::symlink_metadata(&found.path).map_err(io("read", &found.path))?;
            if !found.unchanged(&now) {
                let message = format!("files: {} changed while it was read", found.path.display());
                return Err(self.wrong(None, message));
            }
        }
        self.record.put(key, &[&layer]);
        Ok(layer)
    }
}

/// Everything that a layer of these members depends on.
fn members_key(maker: KeyMaker, members: &Members, digests: &BTreeMap<PathBuf, Digest>) -> KeyMaker {
    members.iter().fold(maker, |maker, (place, member)| {
        let maker = maker.with(place).with(member.mode.to_le_bytes());
        match &member.content {
            Content::Directory => maker.with("directory"),
            Content::Symlink(target) => maker.with("link").with(target.as_os_str().as_encoded_bytes()),
            Content::File(path) => maker.with("file").with(digests.get(path).map_or("", Digest::as_str)),
            other => maker.with(format!("{other:?}")),
        }
    })
}

/// Whether a command's change belongs into the image: not its sources, and not what the sandbox put there.
fn is_result(place: &[u8], member: &Member) -> bool {
    let top = place.split(|byte| *byte == b'/').next().unwrap_or_default();
    let mount_point = place == &RESOLVER.as_bytes()[1..] && is_empty(member);
    !matches!(top, b"src" | b"dev" | b"proc" | b"sys") && !mount_point
}

fn is_empty(member: &Member) -> bool {
    match &member.content {
        Content::File(path) => fs::metadata(path).is_ok_and(|metadata| metadata.len() == 0),
        _ => false,
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
