//! From a pod's [`VmDisk`] to a running machine, what its console says, and what its end means.

use crate::supervisor::files::{CONSOLE_LOG, CONSOLE_SOCKET, DISK, MACHINE};
use crate::supervisor::guest::boot::{self as guest, CONSOLE_LOG_BYTES};
use crate::supervisor::proto::{PodNetwork, VmDisk, VmSpec};
use crate::supervisor::record::Record;
use crate::vm::{TRANSLATION_CACHE_BYTES, text};
use cumulet_container::cgroup::Cgroup;
use cumulet_vmm::{
    Accelerator, Boot, ConsoleSpec, Disk, DiskFormat, DiskImage, Machine, MachineSpec, Memory, OnReboot,
    State,
};
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::path::Path;
use tokio::sync::mpsc;

/// Serial numbers of the disks.
const ROOT_SERIAL: &str = "root";
const SEED_SERIAL: &str = "seed";

/// Starts the machine. `copied` says whether its disk is there already, and is set when it is.
pub(super) async fn start(
    record: &Record,
    (vm, disk): (&VmSpec, &VmDisk),
    network: &PodNetwork,
    copied: &Cell<bool>,
    console: mpsc::Sender<Vec<u8>>,
) -> Result<Machine, String> {
    let runtime = record.dir.join(MACHINE);
    guest::make_private(&runtime)?;
    let own = own_disk(disk, &runtime.join(DISK), copied.get())?;
    copied.set(true);
    let seed = File::open(&disk.seed).map_err(|e| format!("{}: {e}", disk.seed.display()))?;
    let seed = Disk {
        file: seed,
        serial: SEED_SERIAL.to_owned(),
        read_only: true,
        volatile: false,
        format: DiskFormat::Raw,
    };
    let spec = MachineSpec {
        name: guest::machine_name(&record.sandbox()),
        accelerator: if vm.kvm { Accelerator::Kvm } else { Accelerator::Tcg },
        cpu_model: None,
        vcpus: vm.vcpus,
        memory_bytes: vm.memory_bytes,
        memory: Memory::Own,
        boot: Boot::Firmware,
        channel: None,
        console: ConsoleSpec {
            log: record.dir.join(CONSOLE_LOG),
            log_limit_bytes: CONSOLE_LOG_BYTES,
            socket: Some(runtime.join(CONSOLE_SOCKET)),
            output: Some(console),
        },
        disks: vec![own, seed],
        nics: vec![guest::nic(vm, network)?],
        directories: Vec::new(),
        page_reporting: true,
        on_reboot: OnReboot::Reset,
        translation_cache_bytes: Some(TRANSLATION_CACHE_BYTES),
        isolation: guest::isolation(record, vm)?,
    };
    let machine = Machine::spawn(&vm.qemu, spec).await.map_err(|e| text(&e))?;
    machine.start().await.map_err(|e| text(&e))?;
    Ok(machine)
}

/// The machine's copy of the disk. It ends with the sandbox, so nothing of it has to reach the host's disk.
fn own_disk(disk: &VmDisk, path: &Path, made: bool) -> Result<Disk, String> {
    let image = DiskImage::open(&disk.image).map_err(|e| text(&e))?;
    let own = if made {
        image.reopen(path, ROOT_SERIAL)
    } else {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(format!("{}: {e}", path.display())),
            _ => image.overlay(path, disk.min_bytes, ROOT_SERIAL),
        }
    };
    Ok(Disk { volatile: true, ..own.map_err(|e| text(&e))? })
}

/// How often the kernel has killed for want of memory in the pod's cgroup, and in the machine's own.
pub(super) fn out_of_memory(record: &Record) -> u64 {
    let Ok(pod) = Cgroup::new(&record.sandbox().cgroup) else { return 0 };
    pod.oom_kills() + pod.child(MACHINE).map_or(0, |own| own.oom_kills())
}

/// Exit code, signal, reason and message of a machine that has ended.
pub(super) fn how_it_ended(state: &State, killed: bool, memory: bool) -> (i32, i32, &'static str, String) {
    match state {
        _ if killed => (137, 9, "Error", String::new()),
        State::Failed(_) if memory => {
            (137, 9, "OOMKilled", "the machine needed more memory than its pod has on the host".to_owned())
        }
        State::Failed(failure) => (137, 9, crate::supervisor::guest::MACHINE_FAILED, failure.to_string()),
        _ => (0, 0, "Completed", String::new()),
    }
}

/// Makes lines of a terminal lines of a log: without the carriage returns before their ends.
#[derive(Default)]
pub(super) struct Lines {
    /// The last chunk ended with a carriage return, which was kept back.
    returned: bool,
}

impl Lines {
    pub(super) fn clean(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 1);
        for byte in bytes {
            if std::mem::take(&mut self.returned) && byte != b'\n' && byte != b'\r' {
                out.push(b'\r');
            }
            match byte {
                b'\r' => self.returned = true,
                other => out.push(other),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cumulet_vmm::Failure;

    #[test]
    fn ends() {
        let check = |state, killed, memory, expected| {
            let (code, signal, reason, _) = how_it_ended(&state, killed, memory);
            assert_eq!((code, signal, reason), expected, "{state:?}");
        };
        check(State::Gone, false, false, (0, 0, "Completed"));
        check(State::Gone, true, false, (137, 9, "Error"));
        let died = State::Failed(Failure::ProcessEnded { code: None, signal: Some(9) });
        check(died.clone(), false, false, (137, 9, "MachineFailed"));
        check(died, false, true, (137, 9, "OOMKilled"));
    }

    #[test]
    fn lines_of_a_terminal() {
        let check = |chunks: &[&str], expected: &str| {
            let mut lines = Lines::default();
            let cleaned: Vec<u8> = chunks.iter().flat_map(|c| lines.clean(c.as_bytes().to_vec())).collect();
            assert_eq!(String::from_utf8_lossy(&cleaned), expected);
        };
        check(&["a\r\nb\n"], "a\nb\n");
        check(&["a\r", "\nb"], "a\nb");
        check(&["50%\r", "100%\r\r\n"], "50%\r100%\n");
    }
}
