//! What a template needs of the machine that a clone runs on.
//!
//! QEMU itself refuses only a part of what would go wrong, and says so in its own words. A clone on another kind of CPU
//! may start and fail at its first instruction that is not there; so everything that was seen by the guest is compared
//! before.

use crate::files::{private_file, read_capped, sync_dir};
use crate::{Error, MAX_HEADER_BYTES};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::Write;
use std::path::Path;

/// Where the node says what its machine offers.
const FILE: &str = "compatibility.json";
/// How far a time stamp counter may be off: what KVM tolerates without scaling, in parts of a million.
const TSC_TOLERANCE_PPM: u64 = 250;

/// What the guest saw of its machine, or what a machine offers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Compatibility {
    /// Version of QEMU.
    pub qemu: String,
    /// QEMU's machine, with its version.
    pub machine: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// QEMU's CPU model; with KVM and the host's model also what makes the host's CPU.
    pub cpu_model: String,
    /// Number of virtual CPUs.
    pub vcpus: u32,
    /// Devices in their order.
    pub devices: Vec<String>,
    /// The guest's kernel: version or digest.
    pub kernel: String,
    /// The guest's initramfs: digest.
    pub initramfs: String,
    /// Rate of the time stamp counter in kHz, when the guest was told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tsc_khz: Option<u32>,
    /// Architecture, as the compiler calls it.
    pub arch: String,
}

/// One thing that a template needs and a machine does not offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What it is.
    pub what: &'static str,
    /// What the template was made with.
    pub template: String,
    /// What this machine has.
    pub here: String,
}

/// Why a template cannot be used on a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Mismatch {
    /// All differences, never empty; the gravest first.
    pub differences: Vec<Difference>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, one) in self.differences.iter().enumerate() {
            let separator = if n == 0 { "" } else { "; " };
            write!(f, "{separator}made with {} {}, here it is {}", one.what, one.template, one.here)?;
        }
        Ok(())
    }
}

impl Compatibility {
    /// Whether a template that needs this can be used where that is offered.
    ///
    /// # Errors
    /// All differences, in words.
    pub fn fits(&self, here: &Self) -> Result<(), Mismatch> {
        let texts = [
            ("architecture", &self.arch, &here.arch),
            ("accelerator", &self.accelerator, &here.accelerator),
            ("CPU model", &self.cpu_model, &here.cpu_model),
            ("QEMU", &self.qemu, &here.qemu),
            ("machine type", &self.machine, &here.machine),
            ("guest kernel", &self.kernel, &here.kernel),
            ("initramfs", &self.initramfs, &here.initramfs),
        ];
        let mut differences: Vec<Difference> = texts
            .into_iter()
            .filter(|(_, template, here)| template != here)
            .map(|(what, template, here)| difference(what, word(template), word(here)))
            .collect();
        if self.vcpus != here.vcpus {
            differences.push(difference("virtual CPUs", self.vcpus.to_string(), here.vcpus.to_string()));
        }
        if !same_rate(self.tsc_khz, here.tsc_khz) {
            differences.push(difference("clock rate", rate(self.tsc_khz), rate(here.tsc_khz)));
        }
        if let Some(at) = first_difference(&self.devices, &here.devices) {
            differences.push(difference("devices", device(&self.devices, at), device(&here.devices, at)));
        }
        if differences.is_empty() { Ok(()) } else { Err(Mismatch { differences }) }
    }

    /// Compares what belongs to the machine, not to the pod: number of CPUs and devices are a pod's own wish, and any
    /// machine can give them.
    ///
    /// # Errors
    /// All differences, in words.
    pub fn fits_machine(&self, here: &Self) -> Result<(), Mismatch> {
        self.fits(&Self { vcpus: self.vcpus, devices: self.devices.clone(), ..here.clone() })
    }

    /// Writes what this machine offers into a directory of templates, for commands that look at it from outside.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn publish(&self, dir: &Path) -> Result<(), Error> {
        let aside = dir.join(format!(".{FILE}.{}", std::process::id()));
        let path = dir.join(FILE);
        let _ = std::fs::remove_file(&aside);
        let mut file = private_file(&aside)?;
        let text =
            serde_json::to_vec_pretty(self).map_err(|source| Error::Json { path: path.clone(), source })?;
        file.write_all(&text).map_err(Error::io("write", &aside))?;
        file.sync_all().map_err(Error::io("flush", &aside))?;
        std::fs::rename(&aside, &path).map_err(Error::io("name", &path))?;
        sync_dir(dir)
    }

    /// What the machine of a directory of templates offers; `None` when nothing has said so yet.
    ///
    /// # Errors
    /// The file cannot be read, or says something else.
    pub fn published(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(FILE);
        let Some(text) = read_capped(&path, MAX_HEADER_BYTES)? else { return Ok(None) };
        serde_json::from_slice(&text).map(Some).map_err(|source| Error::Json { path, source })
    }
}

fn difference(what: &'static str, template: String, here: String) -> Difference {
    Difference { what, template, here }
}

fn word(text: &str) -> String {
    if text.is_empty() { "(none)".to_owned() } else { text.to_owned() }
}

fn same_rate(template: Option<u32>, here: Option<u32>) -> bool {
    match (template, here) {
        (None, None) => true,
        (Some(a), Some(b)) => u64::from(a.abs_diff(b)) * 1_000_000 <= u64::from(a) * TSC_TOLERANCE_PPM,
        _ => false,
    }
}

fn rate(khz: Option<u32>) -> String {
    khz.map_or_else(|| "(not told)".to_owned(), |khz| format!("{khz} kHz"))
}

fn first_difference(a: &[String], b: &[String]) -> Option<usize> {
    (0..a.len().max(b.len())).find(|at| a.get(*at) != b.get(*at))
}

fn device(devices: &[String], at: usize) -> String {
    format!("#{} {}", at + 1, devices.get(at).map_or("(none)", String::as_str))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Compatibility {
        Compatibility {
            qemu: "8.2.1".to_owned(),
            machine: "pc-q35-8.2".to_owned(),
            accelerator: "tcg".to_owned(),
            cpu_model: "max".to_owned(),
            vcpus: 1,
            devices: vec!["virtio-blk-pci".to_owned(), "virtio-net-pci".to_owned()],
            kernel: "6.1.0-31-cloud-amd64".to_owned(),
            initramfs: "sha256:1234".to_owned(),
            tsc_khz: Some(2_500_000),
            arch: "x86_64".to_owned(),
        }
    }

    #[test]
    fn every_difference_is_named() {
        let check = |change: fn(&mut Compatibility), words: &str| {
            let mut here = sample();
            change(&mut here);
            let said = sample().fits(&here).err().map(|e| e.to_string()).unwrap_or_default();
            assert_eq!(said, words);
        };
        check(|_| {}, "");
        check(|c| c.qemu = "7.2.0".to_owned(), "made with QEMU 8.2.1, here it is 7.2.0");
        check(|c| c.machine = "pc".to_owned(), "made with machine type pc-q35-8.2, here it is pc");
        check(|c| c.accelerator = "kvm".to_owned(), "made with accelerator tcg, here it is kvm");
        check(|c| c.cpu_model = String::new(), "made with CPU model max, here it is (none)");
        check(|c| c.vcpus = 4, "made with virtual CPUs 1, here it is 4");
        check(|c| c.kernel = "6.2".to_owned(), "made with guest kernel 6.1.0-31-cloud-amd64, here it is 6.2");
        check(|c| c.initramfs = "x".to_owned(), "made with initramfs sha256:1234, here it is x");
        check(|c| c.tsc_khz = Some(2_500_600), "");
        check(|c| c.tsc_khz = Some(2_501_000), "made with clock rate 2500000 kHz, here it is 2501000 kHz");
        check(|c| c.tsc_khz = None, "made with clock rate 2500000 kHz, here it is (not told)");
        check(|c| c.devices.swap(0, 1), "made with devices #1 virtio-blk-pci, here it is #1 virtio-net-pci");
        check(|c| c.devices.truncate(1), "made with devices #2 virtio-net-pci, here it is #2 (none)");
        check(
            |c| {
                c.qemu = "9".to_owned();
                c.arch = "aarch64".to_owned();
            },
            "made with architecture x86_64, here it is aarch64; made with QEMU 8.2.1, here it is 9",
        );
    }

    #[test]
    fn a_machine_gives_any_devices() {
        let here = Compatibility { vcpus: 0, devices: Vec::new(), ..sample() };
        assert!(sample().fits(&here).is_err());
        sample().fits_machine(&here).unwrap();
        sample().fits_machine(&Compatibility { qemu: "9".to_owned(), ..here }).unwrap_err();
    }

    #[test]
    fn published_and_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Compatibility::published(dir.path()).unwrap(), None);
        for vcpus in [1, 2] {
            let offered = Compatibility { vcpus, ..sample() };
            offered.publish(dir.path()).unwrap();
            assert_eq!(Compatibility::published(dir.path()).unwrap(), Some(offered));
        }
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(Compatibility::published(dir.path()).unwrap_err().to_string().contains(FILE));
    }
}
