//! The command line of QEMU, made from an order.
//!
//! Every word comes from here or was checked by [`MachineSpec::check`]; disks are given as JSON, so that no comma can
//! become syntax. Descriptors keep their numbers: they are open in the child and nowhere named otherwise.
//!
//! The machine is `q35` with devices on PCI. `microvm` was measured and dropped: in emulation (QEMU 7.2, Linux 6.1)
//! the kernel finds no clock to calibrate its timers by and hangs, with ACPI or without. What makes starts quick is
//! the uncompressed kernel with its PVH entry and the `qboot` firmware, and both work with q35.

use super::preload::preload;
use super::spec::{Accelerator, Boot, Disk, DiskFormat, MachineSpec, Memory, Nic, OnReboot, SharedDirectory};
use crate::{Error, Qemu};
use serde_json::json;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

/// The cheapest model in emulation (no AVX, which is slow to emulate) that current distributions' x86-64-v2 builds
/// start on.
const TCG_CPU: &str = "Nehalem";

/// What QEMU is started with.
#[derive(Debug)]
pub(super) struct CommandLine {
    pub(super) arguments: Vec<String>,
    /// Open in QEMU under the numbers that the arguments name.
    pub(super) descriptors: Vec<OwnedFd>,
    /// The guest's memory, when it is a file or ours.
    pub(super) memory: File,
    /// Whether the firmware looks for something to start on the disks.
    from_disk: bool,
}

/// QEMU's ends of our connections to it.
pub(super) struct Ends {
    pub(super) control: OwnedFd,
    pub(super) console: OwnedFd,
}

/// Parameters that every directly started kernel gets, before the caller's.
///
/// `panic=-1 reboot=t`: a panic ends the machine at once (QEMU takes the reset for the end).
/// `cryptomgr.notests`: half a second of self-tests in emulation.
/// Emulation only: `mitigations=off`, since page table isolation and retpolines protect a processor that is not there
/// (what a guest could do to the host's is QEMU's and the host's to prevent); the rate of the time stamp counter, which
/// the kernel would measure wrongly on a busy host, and `tsc=reliable`, since there a watchdog takes it for broken.
pub fn kernel_parameters(accelerator: Accelerator, qemu: &Qemu) -> Vec<String> {
    let mut parameters: Vec<String> = [
        "console=ttyS0",
        "quiet",
        "panic=-1",
        "reboot=t",
        "cryptomgr.notests",
        "i8042.noaux",
        "i8042.nokbd",
        "random.trust_cpu=on",
    ]
    .map(str::to_owned)
    .to_vec();
    if accelerator == Accelerator::Tcg {
        parameters.push("mitigations=off".to_owned());
        if let Some(khz) = qemu.tsc_khz {
            parameters.extend([format!("tsc_early_khz={khz}"), "tsc=reliable".to_owned()]);
        }
    }
    parameters
}

impl CommandLine {
    /// Translates a checked order. The memory is made or grown here.
    pub(super) fn new(spec: &mut MachineSpec, ends: Ends, qemu: &Qemu) -> Result<Self, Error> {
        let memory = open_memory(spec)?;
        let from_disk = matches!(spec.boot, Boot::Firmware);
        let mut line = Self { arguments: Vec::new(), descriptors: Vec::new(), memory, from_disk };
        line.base(spec);
        line.memory(spec, qemu)?;
        line.boot(spec, qemu)?;
        line.controls(spec, ends);
        for (n, disk) in std::mem::take(&mut spec.disks).into_iter().enumerate() {
            line.disk(n, disk)?;
        }
        for (n, nic) in std::mem::take(&mut spec.nics).into_iter().enumerate() {
            line.nic(n, nic);
        }
        for (n, directory) in std::mem::take(&mut spec.directories).into_iter().enumerate() {
            line.directory(n, directory);
        }
        Ok(line)
    }

    fn add(&mut self, option: &str, value: impl Into<String>) {
        self.arguments.extend([option.to_owned(), value.into()]);
    }

    fn flag(&mut self, option: &str) {
        self.arguments.push(option.to_owned());
    }

    /// Passes a descriptor; its number.
    fn pass(&mut self, descriptor: impl Into<OwnedFd>) -> i32 {
        let descriptor = descriptor.into();
        let number = descriptor.as_raw_fd();
        self.descriptors.push(descriptor);
        number
    }

    /// Passes a descriptor to QEMU's own table; the path under which QEMU opens it.
    fn fdset(&mut self, descriptor: impl Into<OwnedFd>) -> String {
        let number = self.pass(descriptor);
        self.add("-add-fd", format!("fd={number},set={number}"));
        format!("/dev/fdset/{number}")
    }

    fn base(&mut self, spec: &MachineSpec) {
        self.add("-name", format!("{},debug-threads=off", spec.name));
        for flag in ["-nodefaults", "-no-user-config", "-S"] {
            self.flag(flag);
        }
        self.add("-display", "none");
        self.add(
            "-machine",
            "q35,usb=off,sata=off,smbus=off,vmport=off,dump-guest-core=off,memory-backend=ram",
        );
        self.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        match spec.accelerator {
            Accelerator::Kvm => self.add("-accel", "kvm"),
            Accelerator::Tcg => {
                let size = spec.translation_cache_bytes.map(|b| format!(",tb-size={}", (b >> 20).max(1)));
                self.add("-accel", format!("tcg,thread=multi{}", size.unwrap_or_default()));
            }
        }
        let model = spec.cpu_model.clone().unwrap_or_else(|| default_cpu(spec.accelerator).to_owned());
        self.add("-cpu", model);
        self.add("-smp", format!("cpus={}", spec.vcpus));
        self.add("-rtc", "base=utc,clock=host");
        let reboot = if spec.on_reboot == OnReboot::Fail { "shutdown" } else { "reset" };
        self.add("-action", format!("reboot={reboot},shutdown=poweroff,panic=shutdown"));
    }

    fn memory(&mut self, spec: &MachineSpec, qemu: &Qemu) -> Result<(), Error> {
        let memory = self.memory.try_clone().map_err(crate::error::system("duplicate a descriptor"))?;
        let number = self.pass(memory);
        // QEMU opens the file again, by a path that only means its own descriptor.
        let sharing = match spec.memory {
            Memory::CopyOnWrite(_) if qemu.can_map_read_only() => "share=off,readonly=on,rom=off",
            Memory::CopyOnWrite(_) => "share=off",
            Memory::Own | Memory::Shared(_) => "share=on",
        };
        let size = spec.memory_bytes;
        self.add("-m", format!("size={size}B"));
        self.add(
            "-object",
            format!("memory-backend-file,id=ram,size={size},mem-path=/proc/self/fd/{number},{sharing}"),
        );
        Ok(())
    }

    fn boot(&mut self, spec: &mut MachineSpec, qemu: &Qemu) -> Result<(), Error> {
        // The firmware's memory is part of a snapshot: a clone has the same as its template.
        let quick_firmware = |line: &mut Self| {
            if let Some(rom) = &qemu.qboot {
                line.add("-bios", rom.to_string_lossy());
            }
        };
        match std::mem::replace(&mut spec.boot, Boot::Firmware) {
            Boot::Kernel { image, initramfs, parameters } => {
                quick_firmware(self);
                let preloaded = match spec.on_reboot {
                    OnReboot::Fail => preload(&image, &self.memory, spec.memory_bytes)?,
                    OnReboot::Reset => None,
                };
                let image = preloaded.unwrap_or(image);
                let image = self.pass(image);
                let initramfs = self.pass(initramfs);
                self.add("-kernel", format!("/proc/self/fd/{image}"));
                self.add("-initrd", format!("/proc/self/fd/{initramfs}"));
                let mut all = kernel_parameters(spec.accelerator, qemu);
                all.extend(parameters);
                self.add("-append", all.join(" "));
            }
            Boot::Firmware => {
                if spec.disks.is_empty() {
                    return Err(Error::Spec("nothing to start from: no kernel and no disk".to_owned()));
                }
            }
            Boot::Incoming => {
                quick_firmware(self);
                self.add("-incoming", "defer");
            }
        }
        Ok(())
    }

    fn controls(&mut self, spec: &mut MachineSpec, ends: Ends) {
        let control = self.pass(ends.control);
        self.add("-chardev", format!("socket,id=control,fd={control}"));
        self.add("-mon", "chardev=control,mode=control");
        let console = self.pass(ends.console);
        self.add("-chardev", format!("socket,id=console,fd={console}"));
        self.add("-device", "isa-serial,chardev=console");
        if let Some(channel) = spec.channel.take() {
            let channel = self.pass(channel);
            self.add("-device", "virtio-serial-pci,id=serial,max_ports=2,disable-legacy=on");
            self.add("-chardev", format!("socket,id=channel,fd={channel}"));
            self.add("-device", "virtserialport,bus=serial.0,chardev=channel,name=cumulet.0");
        }
        self.add("-object", "rng-builtin,id=rng");
        self.add("-device", "virtio-rng-pci,rng=rng,disable-legacy=on");
        if spec.page_reporting {
            self.add("-device", "virtio-balloon-pci,id=balloon,free-page-reporting=on,disable-legacy=on");
        }
    }

    fn disk(&mut self, n: usize, disk: Disk) -> Result<(), Error> {
        let node = format!("disk{n}");
        let file = format!("disk{n}-file");
        let block = |line: &mut Self, value: serde_json::Value| line.add("-blockdev", value.to_string());
        let open = |name: &str, path: String, read_only: bool| {
            json!({
                "driver": "file", "node-name": name, "filename": path, "read-only": read_only,
                "auto-read-only": false, "locking": "off", "discard": "unmap",
                "cache": { "direct": false, "no-flush": disk.volatile },
            })
        };
        if let DiskFormat::Qcow2 { backing } = &disk.format {
            super::qcow2::check(&disk.file)?;
            if let Some(backing) = backing.as_ref().filter(|b| b.qcow2) {
                super::qcow2::check(&backing.file)?;
            }
        }
        let path = self.fdset(disk.file);
        match disk.format {
            DiskFormat::Raw => {
                block(self, open(&node, path, disk.read_only));
            }
            DiskFormat::Qcow2 { backing } => {
                block(self, open(&file, path, disk.read_only));
                let mut below = json!(null);
                if let Some(backing) = backing {
                    let (name, base) = (format!("disk{n}-backing-file"), format!("disk{n}-backing"));
                    let path = self.fdset(backing.file);
                    block(self, open(&name, path, true));
                    if backing.qcow2 {
                        block(
                            self,
                            json!({
                                "driver": "qcow2", "node-name": base, "file": name, "backing": null, "read-only": true,
                            }),
                        );
                        below = json!(base);
                    } else {
                        below = json!(name);
                    }
                }
                block(
                    self,
                    json!({
                        "driver": "qcow2", "node-name": node, "file": file, "backing": below,
                        "read-only": disk.read_only, "discard": "unmap",
                        "cache": { "direct": false, "no-flush": disk.volatile },
                    }),
                );
            }
        }
        let order = if self.from_disk { format!(",bootindex={}", n + 1) } else { String::new() };
        // An error of the host's disk is the guest's to see: a machine that stops on it would stop for ever.
        self.add(
            "-device",
            format!(
                "virtio-blk-pci,id=blk{n},drive={node},serial={},werror=report,rerror=report,disable-legacy=on{order}",
                disk.serial
            ),
        );
        Ok(())
    }

    fn nic(&mut self, n: usize, nic: Nic) {
        let tap = self.pass(nic.tap);
        let mac = nic.mac.map(|b| format!("{b:02x}")).join(":");
        self.add("-netdev", format!("tap,id=net{n},fd={tap}"));
        self.add(
            "-device",
            format!(
                "virtio-net-pci,id=nic{n},netdev=net{n},mac={mac},host_mtu={},romfile=,disable-legacy=on",
                nic.mtu
            ),
        );
    }

    fn directory(&mut self, n: usize, directory: SharedDirectory) {
        let socket = self.pass(directory.socket);
        self.add("-chardev", format!("socket,id=fs{n},fd={socket}"));
        self.add("-device", format!("vhost-user-fs-pci,chardev=fs{n},tag={}", directory.tag));
    }
}

/// The CPU model when the order names none.
#[must_use]
pub fn default_cpu(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Tcg => TCG_CPU,
        Accelerator::Kvm => "host",
    }
}

/// The file behind the guest's memory.
fn open_memory(spec: &mut MachineSpec) -> Result<File, Error> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let duplicate = |file: &File| file.try_clone().map_err(crate::error::system("duplicate a descriptor"));
    match &spec.memory {
        Memory::Own => {
            let memory = memfd_create(c"guest-memory", MFdFlags::MFD_CLOEXEC)
                .map_err(crate::error::system("make the guest's memory"))?;
            let memory = File::from(memory);
            memory.set_len(spec.memory_bytes).map_err(crate::error::system("size the guest's memory"))?;
            Ok(memory)
        }
        Memory::Shared(file) => {
            file.set_len(spec.memory_bytes).map_err(crate::error::system("size the guest's memory"))?;
            duplicate(file)
        }
        Memory::CopyOnWrite(file) => {
            let size = file.metadata().map_err(crate::error::system("look at the guest's memory"))?.len();
            if size != spec.memory_bytes {
                return Err(Error::Spec(format!("a memory of {size} bytes for {}", spec.memory_bytes)));
            }
            duplicate(file)
        }
    }
}
