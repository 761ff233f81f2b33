//! Saving a machine and starting others from it.
//!
//! The guest's memory is a file of its own and is left out of QEMU's stream (`x-ignore-shared`), which so has only the
//! devices' state, some hundred kilobytes. A clone maps the memory copy-on-write: nothing is copied at its start, and
//! all clones share the pages that none of them has changed.
//!
//! A clone needs the same devices in the same order, the same CPU model, memory size, kind of firmware and version of
//! QEMU; QEMU checks some of that and refuses, the rest is the caller's to keep.

use super::Machine;
use super::driver::MigrationEnd;
use super::mapped;
use super::state::State;
use super::stream::without_memory;
use crate::Error;
use crate::error::system;
use crate::qmp::MigrationStatus;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek, pipe2};
use serde_json::{Value, json};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// Longest time for the devices' state in either direction.
const LIMIT: Duration = Duration::from_secs(30);
const PAGE: usize = 4096;
const CHUNK: usize = 1 << 20;

/// What a copy of a guest's memory has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryCopy {
    /// Size of the memory in bytes.
    pub size_bytes: u64,
    /// What was copied; the rest is zero and takes up no space.
    pub data_bytes: u64,
}

impl Machine {
    /// Writes the devices' state of a paused machine into `state`. The memory is not in it: it is in the file of
    /// [`super::spec::Memory::Shared`], or comes by [`Self::copy_memory`]; a clone's is taken out of what QEMU says. Afterwards the machine may go on
    /// ([`Self::resume`]).
    ///
    /// # Errors
    /// The machine is not paused, QEMU refused (a device that cannot be saved, such as a shared directory), or the
    /// file could not be written.
    pub async fn save(&self, state: File) -> Result<(), Error> {
        self.require("save", |s| matches!(s, State::Paused { .. }))?;
        self.prepare_migration().await?;
        if !self.shared.copy_on_write {
            return self.migrate("migrate", state).await;
        }
        let memory_bytes = self.shared.memory.metadata().map_err(system("look at the memory"))?.len();
        let (from, to) = pipe2(OFlag::O_CLOEXEC).map_err(system("make a pipe"))?;
        // Ends with the stream: QEMU has the only other end.
        let filter =
            tokio::task::spawn_blocking(move || without_memory(File::from(from), &state, memory_bytes));
        let migrated = self.migrate("migrate", to.into()).await;
        let filtered = filter.await.map_err(io::Error::other).flatten();
        match filtered {
            // What QEMU says of the pipe that broke is no reason.
            Err(error) if migrated.is_ok() || error.kind() == io::ErrorKind::InvalidData => {
                Err(Error::Refused { command: "migrate", reason: error.to_string() })
            }
            _ => migrated,
        }
    }

    /// Reads the devices' state into a machine that was spawned with [`super::spec::Boot::Incoming`]. Then
    /// [`Self::start`] lets it go on where the template was.
    ///
    /// # Errors
    /// The machine has started already, or the state does not fit it.
    pub async fn load(&self, state: File) -> Result<(), Error> {
        self.require("load", |s| matches!(s, State::Created))?;
        self.prepare_migration().await?;
        self.migrate("migrate-incoming", state).await
    }

    /// Copies the memory of a paused machine into an empty file, without pages that are zero. Blocks. What a clone has
    /// changed is in its process alone, and read from there.
    ///
    /// # Errors
    /// The machine is not paused, its process may not be read, or the file could not be written.
    pub fn copy_memory(&self, to: &File) -> Result<MemoryCopy, Error> {
        self.require("copy the memory of", |s| matches!(s, State::Paused { .. }))?;
        if self.shared.copy_on_write {
            copy_mapped(self.pid(), &self.shared.memory, to)
        } else {
            copy_sparse(&self.shared.memory, to)
        }
    }

    async fn prepare_migration(&self) -> Result<(), Error> {
        let on = |name: &str| json!({ "capability": name, "state": true });
        let arguments = json!({ "capabilities": [on("x-ignore-shared"), on("events")] });
        let _: Value = self.qmp().execute("migrate-set-capabilities", arguments).await?;
        Ok(())
    }

    async fn migrate(&self, command: &'static str, state: File) -> Result<(), Error> {
        let mut end = self.shared.migration.clone();
        end.mark_unchanged();
        self.qmp().give_descriptor("state", state.into()).await?;
        let _: Value = self.qmp().execute(command, json!({ "uri": "fd:state" })).await?;
        let finished = tokio::time::timeout(LIMIT, end.changed())
            .await
            .map_err(|_| Error::Deadline { what: command, limit_ms: LIMIT.as_millis() })?;
        // A state that does not fit makes an incoming QEMU end: its last words say why.
        let broken = || Error::Refused { command, reason: self.last_words().trim().to_owned() };
        finished.map_err(|_| broken())?;
        let result = *end.borrow();
        match result {
            MigrationEnd::Completed => Ok(()),
            MigrationEnd::None | MigrationEnd::Failed => {
                let status: Result<MigrationStatus, Error> =
                    self.qmp().execute("query-migrate", Value::Null).await;
                match status {
                    Ok(MigrationStatus { error: Some(reason), .. }) => {
                        Err(Error::Refused { command, reason })
                    }
                    _ => Err(broken()),
                }
            }
        }
    }
}

/// A copy of a template's memory that nobody can change any more, for [`super::spec::Memory::CopyOnWrite`].
///
/// QEMU before 8.2 opens the memory for writing even where it maps it copy-on-write. With a file, a clone's QEMU that a
/// guest has taken over could so change what all other clones start from; this memory refuses, and any user may open it
/// through a descriptor. It stays as long as somebody holds a descriptor, and cannot be evicted while it is held.
///
/// # Errors
/// There is not enough memory, or the file cannot be read.
pub fn sealed_memory(from: &File) -> Result<(File, MemoryCopy), Error> {
    let memory = template_memory(0)?;
    let copy = copy_sparse(from, &memory)?;
    seal(&memory)?;
    Ok((memory, copy))
}

/// Memory that can be a machine's ([`super::spec::Memory::Shared`]) and then, sealed, a template's.
///
/// # Errors
/// The system's refusal.
pub fn template_memory(size_bytes: u64) -> Result<File, Error> {
    let memory = memfd_create(c"template-memory", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
        .map_err(system("make the template's memory"))?;
    let memory = File::from(memory);
    memory.set_len(size_bytes).map_err(system("size the template's memory"))?;
    Ok(memory)
}

/// Makes that memory what it is for good: nobody can write it any more. Pages of zeroes are given back first. Blocks for
/// as long as reading the memory takes; how many bytes are left.
///
/// # Errors
/// Somebody still has it mapped for writing.
pub fn seal_memory(memory: &File) -> Result<MemoryCopy, Error> {
    let size = memory.metadata().map_err(system("look at the memory"))?.len();
    let mut left = MemoryCopy { size_bytes: size, data_bytes: 0 };
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while let Some((start, end)) = next_data(memory, at, size)? {
        at = start;
        while at < end {
            let length = CHUNK.min(usize::try_from(end - at).unwrap_or(CHUNK));
            let chunk = &mut buffer[..length];
            memory.read_exact_at(chunk, at).map_err(system("read the memory"))?;
            left.data_bytes += punch_zeroes(memory, chunk, at)?;
            at += length as u64;
        }
    }
    seal(memory)?;
    Ok(left)
}

/// Makes holes where a chunk has pages of zeroes; how many bytes have others.
fn punch_zeroes(memory: &File, chunk: &[u8], at: u64) -> Result<u64, Error> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let mut run = 0;
    let mut zeroes = 0;
    let pages: Vec<bool> = chunk.chunks(PAGE).map(is_zero).collect();
    for (n, zero) in pages.iter().copied().chain([false]).enumerate() {
        if zero {
            run += PAGE;
            continue;
        }
        if run > 0 {
            let start = at + (n * PAGE - run) as u64;
            let (start, length) = (start.cast_signed(), (run as u64).cast_signed());
            fallocate(memory, flags, start, length).map_err(system("give pages back"))?;
            zeroes += run;
        }
        run = 0;
    }
    Ok(chunk.len().saturating_sub(zeroes) as u64)
}

fn seal(memory: &File) -> Result<(), Error> {
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(memory, FcntlArg::F_ADD_SEALS(seals)).map_err(system("seal the template's memory"))?;
    Ok(())
}

/// Copies what is in a file, leaving holes where there are holes or zeroes.
fn copy_sparse(from: &File, to: &File) -> Result<MemoryCopy, Error> {
    let size = from.metadata().map_err(system("look at the memory"))?.len();
    to.set_len(size).map_err(system("size the memory's file"))?;
    let mut copy = MemoryCopy { size_bytes: size, data_bytes: 0 };
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while let Some((start, end)) = next_data(from, at, size)? {
        at = start;
        while at < end {
            let length = CHUNK.min(usize::try_from(end - at).unwrap_or(CHUNK));
            let chunk = &mut buffer[..length];
            from.read_exact_at(chunk, at).map_err(system("read the memory"))?;
            copy.data_bytes += write_pages(to, chunk, at)?;
            at += length as u64;
        }
    }
    Ok(copy)
}

/// Copies what a process has made of a file, without pages of zeroes.
fn copy_mapped(pid: u32, of: &File, to: &File) -> Result<MemoryCopy, Error> {
    let size = of.metadata().map_err(system("look at the memory"))?.len();
    to.set_len(size).map_err(system("size the memory's file"))?;
    let mut copy = MemoryCopy { size_bytes: size, data_bytes: 0 };
    let (memory, mappings) = mapped::of(pid, of)?;
    let mut buffer = vec![0; CHUNK];
    let mut found = 0;
    for mapping in mappings.iter().filter(|m| m.offset.saturating_add(m.length) <= size) {
        for at in (0..mapping.length).step_by(CHUNK) {
            let chunk = &mut buffer[..CHUNK.min(usize::try_from(mapping.length - at).unwrap_or(CHUNK))];
            memory.read_exact_at(chunk, mapping.address + at).map_err(system("read the machine's memory"))?;
            copy.data_bytes += write_pages(to, chunk, mapping.offset + at)?;
        }
        found += mapping.length;
    }
    if found == size {
        Ok(copy)
    } else {
        let reason = format!("{found} of {size} bytes of its memory are mapped");
        Err(Error::Refused { command: "copy the memory", reason })
    }
}

/// The next range of a file that is not a hole.
fn next_data(file: &File, from: u64, size: u64) -> Result<Option<(u64, u64)>, Error> {
    let seek = |at: u64, whence| {
        let at = i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
        lseek(file, at, whence).map(|found| u64::try_from(found).unwrap_or_default())
    };
    if from >= size {
        return Ok(None);
    }
    let start = match seek(from, Whence::SeekData) {
        Ok(start) => start,
        // Nothing but a hole up to the end.
        Err(Errno::ENXIO) => return Ok(None),
        Err(error) => return Err(system("look for data in the memory")(error)),
    };
    let end = seek(start, Whence::SeekHole).map_err(system("look for holes in the memory"))?;
    Ok(Some((start, end.min(size))))
}

/// Writes the pages of a chunk that are not zero, runs of them at once; how many bytes.
fn write_pages(to: &File, chunk: &[u8], at: u64) -> Result<u64, Error> {
    let mut written = 0;
    let mut run: Option<usize> = None;
    let pages = chunk.len().div_ceil(PAGE);
    for page in 0..=pages {
        let begin = page * PAGE;
        let zero = page == pages || is_zero(&chunk[begin..chunk.len().min(begin + PAGE)]);
        match (run, zero) {
            (None, false) => run = Some(begin),
            (Some(start), true) => {
                let data = &chunk[start..chunk.len().min(begin)];
                to.write_all_at(data, at + start as u64).map_err(system("write the memory's file"))?;
                written += data.len() as u64;
                run = None;
            }
            _ => {}
        }
    }
    Ok(written)
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|w| u128::from_ne_bytes(*w) == 0) && rest.iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::libc;
    use std::os::fd::AsRawFd;

    #[test]
    #[expect(unsafe_code, reason = "a mapping of a file is what is tested")]
    fn what_a_process_has_changed_is_copied() {
        let file = template_memory(4 * PAGE as u64).unwrap();
        file.write_all_at(b"of the file", 0).unwrap();
        file.write_all_at(b"of the file, too", 2 * PAGE as u64).unwrap();
        let (size, mode) = (4 * PAGE, libc::PROT_READ | libc::PROT_WRITE);
        let copy = tempfile::tempfile().unwrap();
        // SAFETY: a new mapping, of which nobody else knows; it is unmapped once. JUSTIFICATION: see above.
        unsafe {
            let at = libc::mmap(std::ptr::null_mut(), size, mode, libc::MAP_PRIVATE, file.as_raw_fd(), 0);
            assert_ne!(at, libc::MAP_FAILED);
            at.cast::<u8>().add(PAGE).write(7);
            at.cast::<u8>().add(2 * PAGE).write_bytes(0, PAGE);
            let copied = copy_mapped(std::process::id(), &file, &copy).unwrap();
            assert_eq!(libc::munmap(at, size), 0);
            assert_eq!(copied, MemoryCopy { size_bytes: size as u64, data_bytes: 2 * PAGE as u64 });
        }
        let mut all = vec![1; 4 * PAGE];
        copy.read_exact_at(&mut all, 0).unwrap();
        assert!(all.starts_with(b"of the file\0") && all[PAGE] == 7 && is_zero(&all[PAGE + 1..]));
        assert!(copy_mapped(std::process::id(), &file, &tempfile::tempfile().unwrap()).is_err());
    }
    use proptest::prelude::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn sealed_memory_cannot_be_changed() {
        let from = tempfile::tempfile().unwrap();
        from.set_len(1 << 20).unwrap();
        from.write_all_at(b"template", 8192).unwrap();
        let (memory, copy) = sealed_memory(&from).unwrap();
        assert_eq!(copy, MemoryCopy { size_bytes: 1 << 20, data_bytes: PAGE as u64 });
        assert!(memory.write_all_at(b"x", 0).is_err() && memory.set_len(0).is_err());
        let punch = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
            | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
        assert!(nix::fcntl::fallocate(&memory, punch, 8192, 4096).is_err());
        let mut text = [0; 8];
        memory.read_exact_at(&mut text, 8192).unwrap();
        assert_eq!(&text, b"template");
    }

    #[test]
    fn sealed_in_place() {
        let memory = template_memory(1 << 20).unwrap();
        memory.write_all_at(&[0; 65536], 0).unwrap();
        memory.write_all_at(b"template", 8192).unwrap();
        let left = seal_memory(&memory).unwrap();
        assert_eq!(left, MemoryCopy { size_bytes: 1 << 20, data_bytes: PAGE as u64 });
        assert_eq!(memory.metadata().unwrap().blocks() * 512, PAGE as u64);
        assert!(memory.write_all_at(b"x", 0).is_err());
        let mut text = [0; 8];
        memory.read_exact_at(&mut text, 8192).unwrap();
        assert_eq!(&text, b"template");
    }

    proptest! {
        #[test]
        fn copies_are_equal_and_no_larger(
            pages in proptest::collection::vec(0u8..4, 1..600),
            tail in 0usize..PAGE,
        ) {
            let from = tempfile::tempfile().unwrap();
            let size = pages.len() * PAGE + tail;
            from.set_len(size as u64).unwrap();
            for (n, kind) in pages.iter().enumerate() {
                match kind {
                    1 => from.write_all_at(&[0; PAGE], (n * PAGE) as u64).unwrap(),
                    2 => from.write_all_at(&[7], (n * PAGE + PAGE - 1) as u64).unwrap(),
                    _ => {}
                }
            }
            let to = tempfile::tempfile().unwrap();
            let copy = copy_sparse(&from, &to).unwrap();
            let mut contents = [vec![1; size], vec![2; size]];
            from.read_exact_at(&mut contents[0], 0).unwrap();
            to.read_exact_at(&mut contents[1], 0).unwrap();
            prop_assert!(contents[0] == contents[1]);
            let used = pages.iter().filter(|kind| **kind == 2).count() * PAGE;
            prop_assert_eq!(copy, MemoryCopy { size_bytes: size as u64, data_bytes: used as u64 });
            prop_assert!(to.metadata().unwrap().blocks() * 512 <= used as u64 + 65536);
        }
    }
}
