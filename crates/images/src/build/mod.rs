//! Composing an image from a directory with a `cumulet.yaml`: a base, packages, other images, commands, files, and how
//! to run them.
//!
//! ```text
//!   description ─► base ─► packages ─► require ─► build ─► files ─► configuration ─► manifest ─► name
//!                    └────────┴──── each: layers from the record, or made anew ────┘
//! ```
//!
//! Reproducible: the same inputs give the same digest, wherever and whenever they are built. Entries are sorted and
//! dated by `SOURCE_DATE_EPOCH` or 1970; own files belong to root, with mode 0755 for directories and programs, 0644
//! for others. Only files below the directory can get into the image.
//!
//! Absent on purpose: mounts, forks of this process, and the network. Programs run in a [`BuildSandbox`] that the caller
//! brings, packages come through the machine's apt, other images through the caller's [`Tools::bring`]. What a step
//! made is in the store as soon as it is done: a build that fails later, or is killed, goes on from there.

mod context;
mod debian;
mod description;
mod disk;
mod groups;
mod ignore;
mod layer;
mod progress;
mod record;
mod sandbox;
mod steps;
mod tree;

pub use progress::{Event, Report, Step};
pub use sandbox::{BuildSandbox, Outcome, SandboxError, SandboxJob};

use crate::error::io;
use crate::oci::{self, Descriptor, Manifest};
use crate::staging::WorkDir;
use crate::{Digest, ImageError, ImageStore, Reference};
use debian::strip::Keep;
use description::{DESCRIPTION, Description};
use record::Record;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use steps::{Builder, Stack};

/// How to build.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// Date of everything in the image, in seconds since the epoch.
    pub source_date_epoch: i64,
    /// Another tag than the description's version, or another name altogether.
    pub tag: Option<String>,
    /// Make every layer anew, whatever is known.
    pub no_cache: bool,
    /// Fetch the index of Debian's packages even if it is younger than a day.
    pub refresh: bool,
    /// Make the disk of a virtual machine of it, in an image that holds nothing else.
    pub disk: bool,
    /// Where indexes and packages are kept; in the store when `None`. May be shared by stores.
    pub apt_cache: Option<PathBuf>,
}

impl BuildOptions {
    /// Takes the date from the environment's `SOURCE_DATE_EPOCH`, and the place of packages from
    /// `CUMULET_APT_CACHE`, if they are set.
    ///
    /// # Errors
    /// When the date is set to something that is no number of seconds.
    pub fn from_env() -> Result<Self, ImageError> {
        let source_date_epoch = match std::env::var("SOURCE_DATE_EPOCH") {
            Err(_) => 0,
            Ok(text) => {
                text.trim().parse().ok().filter(|seconds| *seconds >= 0).ok_or_else(|| ImageError::Io {
                    what: format!("SOURCE_DATE_EPOCH is \"{text}\""),
                    source: std::io::Error::other("it must be a number of seconds since 1970"),
                })?
            }
        };
        let apt_cache =
            std::env::var_os("CUMULET_APT_CACHE").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        Ok(Self { source_date_epoch, apt_cache, ..Self::default() })
    }
}

/// What a build can do beyond files: all of it is the caller's.
pub struct Tools<'a> {
    /// Runs programs; without one, an image with packages or commands cannot be built.
    pub sandbox: Option<&'a dyn BuildSandbox>,
    /// Brings an image that is not in the store (a pull), or says why not.
    #[expect(clippy::type_complexity, reason = "a function, spelt out once")]
    pub bring: Option<&'a (dyn Fn(&str) -> Result<(), String> + Sync)>,
    /// Is told how the build goes.
    pub report: Report<'a>,
}

impl Default for Tools<'_> {
    fn default() -> Self {
        Self { sandbox: None, bring: None, report: &|_| {} }
    }
}

/// A finished build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltImage {
    /// The image's name.
    pub reference: Reference,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Size of manifest, configuration and layers as stored.
    pub size_bytes: u64,
    /// How many files, directories and links the image has of its own directory.
    pub entries: usize,
    /// What was done, in order.
    pub steps: Vec<Step>,
    /// The disk, when one was built: a qcow2 file of the store, not to be changed.
    pub disk: Option<PathBuf>,
}

impl ImageStore {
    /// Builds the image that `dir/cumulet.yaml` describes and gives it its name, without running programs.
    ///
    /// # Errors
    /// A mistake in the description (with line and column), a file that is missing or not allowed, a base that is
    /// not present, something that needs programs to run, or a store that cannot be written.
    pub fn build(&self, dir: &Path, options: &BuildOptions) -> Result<BuiltImage, ImageError> {
        self.compose(dir, options, &Tools::default())
    }

    /// Builds the image that `dir/cumulet.yaml` describes and gives it its name.
    ///
    /// # Errors
    /// As [`ImageStore::build`]; also packages that do not exist or cannot be had, and commands that fail.
    pub fn compose(
        &self,
        dir: &Path,
        options: &BuildOptions,
        tools: &Tools<'_>,
    ) -> Result<BuiltImage, ImageError> {
        let path = dir.join(DESCRIPTION);
        let description = Description::read(&path)?;
        let reference = description.reference(&path, options.tag.as_deref())?;
        // Layers that steps find or make stay until the image has its name.
        let _content = self.hold_content()?;
        let record = Record::open(self, options.no_cache);
        let builder = Builder {
            store: self,
            dir: dir.canonicalize().map_err(io("open", dir))?,
            path,
            options,
            tools,
            record,
            work: WorkDir::make(self)?,
            keep: Keep { docs: description.docs, locales: description.locales },
        };
        let (mut stack, mut steps, entries) = builder.run(&description)?;
        description.configure(&mut stack.config.config);
        let mut disk = None;
        if options.disk {
            let name = reference.repository().rsplit('/').next().unwrap_or("disk").to_owned();
            let made = builder.step(&mut steps, "disk", || builder.disk(&stack, &description, &name))?;
            disk = made.first().map(|layer| disk::in_layer(&self.layer(&layer.diff_id), &name));
            let labels = stack.config.config.labels.take();
            stack = Stack::empty();
            stack.config.config.labels = labels;
            stack.extend(made, "disk");
        }
        let (digest, size_bytes) = self.name_image(&builder, stack, &reference)?;
        builder.record.tidy();
        Ok(BuiltImage { reference, digest, size_bytes, entries, steps, disk })
    }

    /// Writes configuration and manifest, and gives the image its name.
    fn name_image(
        &self,
        builder: &Builder<'_>,
        mut stack: Stack,
        reference: &Reference,
    ) -> Result<(Digest, u64), ImageError> {
        let date = jiff::Timestamp::from_second(builder.options.source_date_epoch);
        stack.config.created = date.ok().map(|time| time.to_string());
        let config = oci::encode(&stack.config)?;
        let described = Descriptor::new(oci::MEDIA_CONFIG, Digest::of(&config), config.len() as u64);
        let fresh = builder.work.fresh();
        fs::write(&fresh, &config)
            .and_then(|()| fs::File::open(&fresh)?.sync_all())
            .map_err(io("write", &fresh))?;
        self.publish_blob(&fresh, &described.digest)?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: oci::MEDIA_MANIFEST.to_owned(),
            config: described,
            layers: stack.layers.into_iter().map(|layer| layer.blob).collect(),
        };
        let bytes = oci::encode(&manifest)?;
        let digest = Digest::of(&bytes);
        self.publish_image(&[(&digest, &bytes)], Some(reference))?;
        let size = manifest.layers.iter().map(|layer| layer.size).sum::<u64>() + manifest.config.size;
        Ok((digest, size))
    }
}

/// Sets `NAME=value`, in the place of an older value if there is one.
fn set_env(env: &mut Vec<String>, name: &str, value: &str) {
    let prefix = format!("{name}=");
    let entry = format!("{prefix}{value}");
    match env.iter_mut().find(|entry| entry.starts_with(&prefix)) {
        Some(old) => *old = entry,
        None => env.push(entry),
    }
}

/// A set in Docker's spelling: keys with empty objects.
fn set_of(keys: impl Iterator<Item = String>) -> BTreeMap<String, serde_json::Value> {
    keys.map(|key| (key, serde_json::json!({}))).collect()
}
