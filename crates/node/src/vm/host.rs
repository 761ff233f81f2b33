//! What this machine has for virtual machines: found when the first one is wanted, and again as long as something is
//! missing.

use crate::config::NodeConfig;
use crate::images::ResolvedImage;
use crate::snapshots;
use crate::supervisor::proto::VmImage;
use crate::vm::kernels::{self, Kernels};
use cumulet_guest_proto::host::HostLink;
use cumulet_snapshot_format::Compatibility;
use cumulet_vmm::kvm::{self, Probe};
use cumulet_vmm::{Kernel, Qemu, initramfs, rootfs};
use k8s_openapi::api::core::v1::Pod;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::OnceCell;

/// The agent's program, from the directory of this program.
const GUEST: &str = "vm/cumulet-guest";
/// Variable that says where it is.
const GUEST_VARIABLE: &str = "CUMULET_GUEST";
/// Variable that says where the kernel's package is, as a file or unpacked.
const KERNEL_VARIABLE: &str = "CUMULET_KERNEL";
/// Where it is otherwise, from the directory of this program.
const KERNEL: &str = "vm/kernel";
/// First user id of virtual machine monitors: a range that neither people, systemd nor user namespaces are given.
const FIRST_USER: u32 = 0x7000_0000;
/// The group of a monitor that needs none.
const NO_GROUP: u32 = 65534;

/// QEMU and what it boots.
#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) qemu: Qemu,
    pub(crate) kernel: PathBuf,
    /// The kernel's release and the beginning of its digest.
    pub(crate) kernel_name: String,
    pub(crate) initramfs: PathBuf,
    /// Why the processor's virtualization is not used; `None` when it is.
    pub(crate) emulation: Option<String>,
    rootfs: PathBuf,
}

/// The host of this node, found when it is first asked for.
pub(crate) struct Hosts {
    state_dir: PathBuf,
    guest: PathBuf,
    /// Where a kernel can be installed from.
    source: PathBuf,
    /// It is the one that was asked for, whatever was installed before.
    chosen: bool,
    /// Those that pods choose.
    kernels: Kernels,
    found: OnceCell<Arc<Host>>,
}

impl Hosts {
    pub(crate) fn new(config: &NodeConfig) -> Self {
        let beside = config.exe.parent().unwrap_or(Path::new("/"));
        let path =
            |variable, name| std::env::var_os(variable).map_or_else(|| beside.join(name), PathBuf::from);
        let guest = path(GUEST_VARIABLE, GUEST);
        Self {
            state_dir: config.state_dir.clone(),
            kernels: Kernels::new(&config.state_dir, guest.clone()),
            guest,
            source: config.vm_kernel.clone().unwrap_or_else(|| path(KERNEL_VARIABLE, KERNEL)),
            chosen: config.vm_kernel.is_some(),
            found: OnceCell::new(),
        }
    }

    /// What virtual machines are made with. Takes up to some seconds the first time.
    ///
    /// # Errors
    /// A message that says what is missing and what to do.
    pub(crate) async fn get(&self) -> Result<Arc<Host>, String> {
        self.found.get_or_try_init(|| self.find()).await.cloned()
    }

    /// The same for a pod, which may ask for a kernel of its own.
    ///
    /// # Errors
    /// Those of [`Self::get`], and a kernel that is not there.
    pub(crate) async fn for_pod(&self, pod: &Pod) -> Result<Arc<Host>, String> {
        let host = self.get().await?;
        let Some(name) = kernels::wanted(pod)? else { return Ok(host) };
        let kernel = self.kernels.get(name).await?;
        let (kernel, kernel_name, initramfs) = (kernel.image, kernel.name, kernel.initramfs);
        Ok(Arc::new(Host { kernel, kernel_name, initramfs, ..(*host).clone() }))
    }

    async fn find(&self) -> Result<Arc<Host>, String> {
        let (state_dir, guest, source) = (self.state_dir.clone(), self.guest.clone(), self.source.clone());
        let chosen = self.chosen;
        let found = tokio::task::spawn_blocking(move || {
            let kernel_dir = state_dir.join("kernel");
            if !guest.is_file() {
                return Err(format!(
                    "virtual machines need the program {GUEST} where cumulet is: {} is not there (or name it in \
                     {GUEST_VARIABLE})",
                    guest.display()
                ));
            }
            let qemu = Qemu::find().map_err(|e| text(&e))?;
            let kernel = match Kernel::open(&kernel_dir) {
                Ok(kernel) if !chosen => kernel,
                _ if source.exists() => Kernel::install(&source, &kernel_dir).map_err(|e| text(&e))?,
                Ok(_) => return Err(format!("there is no kernel at {}", source.display())),
                Err(error) => return Err(text(&error)),
            };
            let initramfs = initramfs::build(&kernel, &guest, &kernel_dir).map_err(|e| text(&e))?;
            Ok((qemu, kernel, initramfs))
        });
        let (qemu, kernel, initramfs) = found.await.unwrap_or_else(|e| Err(e.to_string()))?;
        let mut link = HostLink::new();
        link.begin(1, GUEST);
        let greeting = link.take_output();
        let probe = Probe {
            qemu: &qemu,
            kernel: &kernel,
            initramfs: &initramfs,
            dir: Path::new(kvm::VERDICTS),
            user: Some((FIRST_USER, group(true))),
            greeting: &greeting,
            limit: kvm::DEFAULT_LIMIT,
        };
        // Without a verdict the slower way is the one that works.
        let emulation = match probe.run().await {
            Ok(verdict) => (!verdict.usable).then(|| verdict.reason.lines().collect::<Vec<_>>().join("; ")),
            Err(error) => Some(text(&error)),
        };
        let found = Host {
            qemu,
            kernel: kernel.image(),
            kernel_name: kernels::name(&kernel),
            initramfs,
            emulation,
            rootfs: self.state_dir.join("rootfs"),
        };
        // For the commands that look at snapshots; they say that they do not know when it is missing.
        if let Err(error) = snapshots::publish_offer(&self.state_dir, &found.offer()) {
            tracing::warn!(error, "what this machine offers to snapshots is not written down");
        }
        Ok(Arc::new(found))
    }
}

impl Host {
    /// What this machine offers to snapshots.
    pub(crate) fn offer(&self) -> Compatibility {
        snapshots::offer(&self.qemu, self.emulation.is_none(), &self.kernel_name, &self.initramfs)
    }

    /// The user and group of the monitor of the pod with this address: one of its own, so that monitors cannot touch
    /// each other.
    pub(crate) fn user(&self, address: std::net::Ipv4Addr) -> (u32, u32) {
        (user(address), group(self.emulation.is_none()))
    }

    /// The image as a disk; made when it is wanted for the first time, which takes as long as reading it. Blocks.
    pub(crate) fn disk(&self, image: &ResolvedImage) -> Result<VmImage, String> {
        let path = rootfs::build(&self.rootfs, &image.id, &image.layers).map_err(|e| text(&e))?;
        Ok(VmImage { serial: rootfs::serial(&image.id), path })
    }
}

/// The user of the monitor of the machine with this address.
pub(crate) fn user(address: std::net::Ipv4Addr) -> u32 {
    FIRST_USER + (u32::from(address) & 0x00ff_ffff)
}

/// The group that may use KVM.
fn group(kvm: bool) -> u32 {
    fs::metadata(kvm::DEVICE).ok().filter(|_| kvm).map_or(NO_GROUP, |meta| meta.gid())
}

/// An error and its causes in one line.
pub(crate) fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
