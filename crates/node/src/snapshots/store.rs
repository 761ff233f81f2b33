//! Templates on the disk: written behind the pods' backs, read when the first pod wants one, evicted by a budget.

use super::{Entry, Hot, Templates};
use crate::supervisor::proto::VmSpec;
use crate::vm::text;
use cumulet_snapshot_format::{self as format, Compatibility, Description, Error, Key, Template, Writer};
use cumulet_vmm::machine::args::default_cpu;
use cumulet_vmm::{Accelerator, Qemu};
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// What a template is said to be made of.
pub(crate) struct Origin {
    pub(crate) namespace: String,
    /// The Deployment, ReplicaSet or pod.
    pub(crate) name: String,
    pub(crate) images: Vec<String>,
}

/// Why a template on the disk is not used; for people.
pub(crate) enum Unusable {
    /// It is damaged, gone, or made for another machine: another one has to be built.
    Ever(String),
    /// Something failed that may not the next time.
    Now(String),
}

impl Unusable {
    pub(crate) fn why(&self) -> &str {
        let (Self::Ever(why) | Self::Now(why)) = self;
        why
    }
}

/// What a machine of this node is made with, without what is a pod's own choice.
pub(crate) fn offer(qemu: &Qemu, kvm: bool, kernel: &str, initramfs: &Path) -> Compatibility {
    let accelerator = if kvm { Accelerator::Kvm } else { Accelerator::Tcg };
    let firmware = if qemu.qboot.is_some() { "qboot" } else { "seabios" };
    Compatibility {
        qemu: qemu.version.to_string(),
        machine: format!("q35 {firmware}"),
        accelerator: accelerator.name().to_owned(),
        cpu_model: if kvm { host_cpu() } else { default_cpu(accelerator).to_owned() },
        vcpus: 0,
        devices: Vec::new(),
        kernel: kernel.to_owned(),
        // Its name is a digest of what is in it.
        initramfs: initramfs.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        tsc_khz: qemu.tsc_khz.filter(|_| !kvm),
        arch: std::env::consts::ARCH.to_owned(),
    }
}

/// The processor that a guest sees with KVM: its model, and a digest of what it can do.
fn host_cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |name: &str| {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim())
    };
    let parts = ["vendor_id", "cpu family", "model", "stepping", "flags"].map(|name| (name, value(name)));
    let digest = Key::of(parts.iter().map(|(name, value)| (*name, value.as_bytes())));
    format!("{} ({})", value("model name"), digest.short())
}

/// What a machine offers, or needs once it is a template.
pub(crate) fn compatibility(vm: &VmSpec, kernel: &str) -> Compatibility {
    let disks = vm.images.iter().map(|image| format!("virtio-blk {}", image.serial));
    let fixed = ["virtio-serial", "virtio-rng"].map(str::to_owned).into_iter();
    let devices = fixed.chain(disks).chain(["virtio-net".to_owned()]).collect();
    Compatibility { vcpus: vm.vcpus, devices, ..offer(&vm.qemu, vm.kvm, kernel, &vm.initramfs) }
}

/// Leaves word of what this machine offers for commands that look at templates from outside.
///
/// # Errors
/// The file cannot be written, for people.
pub(crate) fn publish_offer(state_dir: &Path, offer: &Compatibility) -> Result<(), String> {
    let dir = state_dir.join(super::DIR);
    crate::dirs::private_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    offer.publish(&dir).map_err(|e| text(&e))
}

impl Templates {
    /// Takes note of a template that lies on the disk, or does not any more; whether it does. Blocks for a look at a
    /// directory.
    pub(crate) fn look(&self, entry: &Entry) -> bool {
        let there = self.dir.join(entry.key()).is_dir();
        if there {
            entry.found();
        } else if entry.is_stored() {
            entry.removed();
        }
        there
    }

    /// Reads a template, verifying it. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`Unusable`].
    pub(crate) fn load(&self, entry: &Entry, here: &Compatibility) -> Result<Arc<Hot>, Unusable> {
        let said = |error: Error| match error {
            Error::NotFound { .. } => Unusable::Ever(text(&error)),
            error if error.is_damage() => Unusable::Ever(text(&error)),
            error => Unusable::Now(text(&error)),
        };
        let key = self.key(entry).map_err(Unusable::Now)?;
        let template = Template::open(&self.dir, &key).map_err(said)?;
        let header = template.header();
        header.compatibility.fits(here).map_err(|e| Unusable::Ever(e.to_string()))?;
        let notes = serde_json::from_value(header.guest.clone());
        let notes = notes.map_err(|e| Unusable::Ever(format!("its notes: {e}")))?;
        let state = self.put_state(entry.key(), &template.state().map_err(said)?);
        let state = state.map_err(|e| Unusable::Now(format!("the state: {e}")))?;
        let memory = cumulet_vmm::template_memory(0).map_err(|e| Unusable::Now(text(&e)))?;
        let data_bytes = template.load_memory(&memory).map_err(said)?;
        cumulet_vmm::seal_memory(&memory).map_err(|e| Unusable::Now(text(&e)))?;
        Ok(Arc::new(Hot { memory, state, notes, data_bytes }))
    }

    /// Writes a template, in the place of one that is there. Blocks for as long as that takes.
    ///
    /// # Errors
    /// The disk is full, or refuses; nothing new is left, and nothing old is lost.
    pub(crate) fn store(
        &self,
        entry: &Entry,
        hot: &Hot,
        origin: Origin,
        compatibility: Compatibility,
    ) -> Result<(), String> {
        let key = self.key(entry)?;
        let guest = serde_json::to_value(&hot.notes).map_err(|e| e.to_string())?;
        let created = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let description = Description {
            created_us: u64::try_from(created.as_micros()).unwrap_or(u64::MAX),
            namespace: origin.namespace,
            name: origin.name,
            images: origin.images,
            compatibility,
            guest,
        };
        let state = fs::read(&hot.state).map_err(|e| format!("{}: {e}", hot.state.display()))?;
        let said = |error: Error| text(&error);
        let mut writer = Writer::create(&self.dir, key).map_err(said)?;
        writer.memory_from(&hot.memory).map_err(said)?;
        writer.state(&state).map_err(said)?;
        writer.replace(description).map_err(said)?;
        entry.stored();
        self.evict(&key)
    }

    /// Keeps to the budget, never at the cost of the template that has just come.
    fn evict(&self, newest: &Key) -> Result<(), String> {
        let listed = format::list(&self.dir).map_err(|e| text(&e))?;
        let usage: Vec<_> = listed.iter().flatten().filter_map(|template| template.usage().ok()).collect();
        for key in format::evict(&usage, self.budget_bytes).iter().filter(|key| *key != newest) {
            match format::remove(&self.dir, key) {
                Ok(()) => {
                    tracing::info!(template = key.short(), "evicted: the budget of snapshots is used up")
                }
                Err(error) => tracing::warn!(template = key.short(), error = text(&error), "not evicted"),
            }
        }
        Ok(())
    }

    /// Removes what lies under the entry's key, whatever it is. Blocks.
    pub(crate) fn discard(&self, entry: &Entry) {
        let Ok(key) = self.key(entry) else { return };
        match format::remove(&self.dir, &key) {
            Ok(()) | Err(Error::NotFound { .. }) => {}
            Err(error) => tracing::warn!(template = entry.short(), error = text(&error), "not removed"),
        }
    }

    /// Notes that the template is in use. Blocks.
    pub(crate) fn touch(&self, entry: &Entry) {
        let template = self.key(entry).ok().and_then(|key| Template::open(&self.dir, &key).ok());
        if let Some(Err(error)) = template.map(|template| template.touch(SystemTime::now())) {
            tracing::debug!(template = entry.short(), error = text(&error), "not touched");
        }
    }

    /// A copy of the devices' state for a template in use.
    pub(crate) fn put_state(&self, key: &str, state: &[u8]) -> std::io::Result<PathBuf> {
        let path = self.state_path(key)?;
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(state))?;
        Ok(path)
    }

    fn key(&self, entry: &Entry) -> Result<Key, String> {
        entry.key().parse().map_err(|e: cumulet_snapshot_format::KeyError| e.to_string())
    }
}
