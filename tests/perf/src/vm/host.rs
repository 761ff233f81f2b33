//! What a pod's machine is on the host: its processes, their memory, and when they began.

use anyhow::Context;
use cumulet_e2e::Cloud;
use std::fs;

/// The processes of one machine.
#[derive(Clone, Copy)]
pub(crate) struct Processes {
    pub(crate) supervisor: i32,
    pub(crate) qemu: i32,
}

/// Finds the processes of a pod's machine.
pub(crate) fn processes(cloud: &Cloud, pod: &str) -> anyhow::Result<Processes> {
    let uid = cloud.field(&format!("pod/{pod}"), ".metadata.uid")?;
    let file = cloud.dir().join("pods").join(uid).join("supervisor.pid");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let supervisor = text.split_whitespace().next().and_then(|w| w.parse().ok());
    let supervisor = supervisor.with_context(|| format!("{text:?} is no process id"))?;
    let parent = format!("PPid:\t{supervisor}\n");
    let is_qemu = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.starts_with("Name:\tqemu") && status.contains(&parent)
    };
    let pids = fs::read_dir("/proc")?.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    let qemu = pids.into_iter().find(is_qemu).with_context(|| format!("pod {pod} has no QEMU"))?;
    Ok(Processes { supervisor, qemu })
}

/// The words of a process's command line.
pub(crate) fn command_line(pid: i32) -> anyhow::Result<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline"))?;
    let words = bytes.split(|b| *b == 0).filter(|w| !w.is_empty());
    Ok(words.map(|w| String::from_utf8_lossy(w).into_owned()).collect())
}

/// Proportional memory of a process in bytes, by what it is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// The guest's own.
    pub(crate) guest: u64,
    /// Translated code, in software emulation: the one kind of memory that is written and executed.
    pub(crate) translated: u64,
    /// Programs and libraries, and other files.
    pub(crate) files: u64,
    /// Everything else: heaps and stacks.
    pub(crate) anonymous: u64,
}

impl Memory {
    pub(crate) fn read(pid: i32) -> anyhow::Result<Self> {
        Ok(Self::parse(&fs::read_to_string(format!("/proc/{pid}/smaps"))?))
    }

    /// What the host pays beside the guest's memory and the translated code.
    pub(crate) fn overhead(&self) -> u64 {
        self.files + self.anonymous
    }

    fn parse(smaps: &str) -> Self {
        enum Of {
            Guest,
            Translated,
            File,
            Anonymous,
        }
        let mut memory = Self::default();
        let mut of = Of::Anonymous;
        for line in smaps.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["Pss:", kib, _] => {
                    let field = match of {
                        Of::Guest => &mut memory.guest,
                        Of::Translated => &mut memory.translated,
                        Of::File => &mut memory.files,
                        Of::Anonymous => &mut memory.anonymous,
                    };
                    *field += kib.parse::<u64>().unwrap_or_default() << 10;
                }
                [range, mode, _, _, inode, ref name @ ..] if range.contains('-') && mode.len() == 4 => {
                    of = match (name.first(), inode) {
                        (Some(name), _) if name.starts_with("/memfd:guest-memory") => Of::Guest,
                        (None, "0") if mode == "rwxp" => Of::Translated,
                        (_, "0") => Of::Anonymous,
                        _ => Of::File,
                    };
                }
                _ => {}
            }
        }
        memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_sorted() {
        let smaps = "7f00-7f10 rw-s 00000000 00:01 77 /memfd:guest-memory (deleted)\nSize: 9 kB\nPss: 100 kB\nPss_Dirty: 7 kB\n\
                     7f10-7f20 rwxp 00000000 00:00 0 \nPss: 50 kB\n\
                     7f20-7f30 rw-p 00000000 00:00 0 [heap]\nPss: 5 kB\nVmFlags: rd wr\n\
                     7f30-7f40 rw-p 00000000 00:00 0\nPss: 2 kB\n\
                     7f40-7f50 r-xp 00000000 08:01 9 /usr/bin/qemu-system-x86_64\nPss: 30 kB\n";
        let memory = Memory::parse(smaps);
        let expected = Memory { guest: 100 << 10, translated: 50 << 10, files: 30 << 10, anonymous: 7 << 10 };
        assert_eq!(memory, expected);
        assert_eq!(memory.overhead(), 37 << 10);
    }
}
