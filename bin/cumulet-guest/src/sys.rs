//! System calls that neither std nor nix has in a safe form. All `unsafe` of the agent is here.
//!
//! JUSTIFICATION for every block: the kernel interface has no safe wrapper among our dependencies, and the agent cannot
//! do its work without it. Each function is complete in itself: it takes and gives owned or borrowed values only.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The two sides of [`fork`].
pub(crate) enum Fork {
    /// The new process, and a descriptor of it.
    Parent(i32, OwnedFd),
    /// Here.
    Child,
}

/// Makes a process with namespaces of its own (`CLONE_NEW…` flags), born in the cgroup of that directory.
///
/// The process has one thread (this is asserted by construction: nothing in this program starts another), so the child
/// may do whatever its parent may.
pub(crate) fn fork(namespaces: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: RawFd = -1;
    // SAFETY: all zero is a valid clone_args. JUSTIFICATION: see above.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = libc::CLONE_PIDFD as u64 | namespaces as u64;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and a stack this is fork(2): the child has a copy of everything, and with a single
    // thread no lock can be held by another one. `args` is as large as told. JUSTIFICATION: fork(2) has no flags.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) })?;
    if pid == 0 {
        return Ok(Fork::Child);
    }
    // SAFETY: the kernel has just made this descriptor for us. JUSTIFICATION: see above.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Fork::Parent(pid as i32, pidfd))
}

/// Ends the process at once: neither destructors nor buffers, which are copies of the parent's.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit does not return and touches no memory. JUSTIFICATION: std's exit runs handlers.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor from `first` on.
pub(crate) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: called only in a child that uses none of them any more. JUSTIFICATION: see above.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// Puts `fd` in the place of descriptor `number` (0, 1 or 2), inherited by programs.
pub(crate) fn set_standard(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == number {
        // SAFETY: clears close-on-exec of an open descriptor. JUSTIFICATION: see above.
        return check(unsafe { libc::fcntl(number, libc::F_SETFD, 0) }.into()).map(drop);
    }
    // SAFETY: the standard descriptors belong to nobody in a child before execve. JUSTIFICATION: see above.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) }.into()).map(drop)
}

/// Loads a kernel module; the kernel decompresses it when `compressed`.
pub(crate) fn load_module(file: &File, parameters: &CStr, compressed: bool) -> io::Result<()> {
    const MODULE_INIT_COMPRESSED_FILE: libc::c_long = 4;
    let flags = if compressed { MODULE_INIT_COMPRESSED_FILE } else { 0 };
    // SAFETY: the string ends with NUL and lives during the call. JUSTIFICATION: see above.
    check(unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), flags) })
        .map(drop)
}

/// Sets or clears attributes (`MOUNT_ATTR_…`) of the mount whose root `mount` is, and of those below it.
pub(crate) fn set_mount_attributes(mount: BorrowedFd<'_>, set: u64, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: an empty string, and a structure of the told size, both alive during the call. JUSTIFICATION: see above.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    check(result).map(drop)
}

/// Moves the wall clock by so many microseconds, at once.
pub(crate) fn shift_clock(us: i64) -> io::Result<()> {
    // SAFETY: all zero is a valid timex. JUSTIFICATION: see above.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    // Without ADJ_NANO the fraction is in microseconds.
    change.modes = libc::ADJ_SETOFFSET;
    change.time = libc::timeval { tv_sec: us.div_euclid(1_000_000), tv_usec: us.rem_euclid(1_000_000) };
    // SAFETY: `change` outlives the call. JUSTIFICATION: see above.
    check(unsafe { libc::clock_adjtime(libc::CLOCK_REALTIME, &raw mut change) }.into()).map(drop)
}

/// The monotonic clock.
pub(crate) fn monotonic() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` outlives the call, which cannot fail for this clock. JUSTIFICATION: see above.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Gives `random` (/dev/random) new entropy that counts, and makes the generator take a new key from it at once.
pub(crate) fn reseed(random: &File, entropy: &[u8]) -> io::Result<()> {
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    let mut bytes = entropy.to_vec();
    bytes.truncate(4096);
    let length = bytes.len() as i32;
    // struct rand_pool_info: entropy in bits, size in bytes, data.
    let mut request = [(length * 8).to_ne_bytes(), length.to_ne_bytes()].concat();
    request.extend_from_slice(&bytes);
    // SAFETY: the structure says its own length, which is right. JUSTIFICATION: see above.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, request.as_ptr()) }.into())?;
    // SAFETY: takes no argument. JUSTIFICATION: see above.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) }.into()).map(drop)
}

/// Unlocks the other side of a terminal and opens it.
pub(crate) fn open_terminal(master: &File) -> io::Result<File> {
    let unlocked: libc::c_int = 0;
    // SAFETY: reads one int. JUSTIFICATION: see above.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) }.into())?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: takes flags and gives a new descriptor. JUSTIFICATION: see above.
    let fd = check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) }.into())?;
    // SAFETY: the kernel has just made this descriptor for us. JUSTIFICATION: see above.
    Ok(unsafe { File::from_raw_fd(fd as RawFd) })
}

/// Number of a terminal: its name is `/dev/pts/<number>`.
pub(crate) fn terminal_number(master: &File) -> io::Result<u32> {
    let mut number: libc::c_uint = 0;
    // SAFETY: writes one unsigned int. JUSTIFICATION: see above.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number) }.into())?;
    Ok(number)
}

/// Makes a terminal the controlling one of this session.
pub(crate) fn control_terminal(terminal: &File) -> io::Result<()> {
    // SAFETY: takes a plain number. JUSTIFICATION: see above.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }.into()).map(drop)
}

/// Sets the size of a terminal.
pub(crate) fn resize_terminal(terminal: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: reads one winsize. JUSTIFICATION: see above.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into()).map(drop)
}

/// Signals to their defaults and unblocked: what a program expects.
pub(crate) fn reset_signals() -> io::Result<()> {
    use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
    for number in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: SigDfl installs no handler. JUSTIFICATION: see above.
        unsafe { signal(number, SigHandler::SigDfl)? };
    }
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
}

/// Supplementary groups, group and user of this process, for good.
pub(crate) fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer and the length describe one slice. JUSTIFICATION: nix's function takes its own type and
    // would copy; the rest stands beside it for the order.
    check(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) }.into())?;
    // SAFETY: plain numbers. JUSTIFICATION: as above.
    check(unsafe { libc::setresgid(gid, gid, gid) }.into())?;
    // SAFETY: plain numbers. JUSTIFICATION: as above.
    check(unsafe { libc::setresuid(uid, uid, uid) }.into()).map(drop)
}

/// Version 3 of the capability structures: two words of 32 bits.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct CapabilityWord {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Reduces the bounding set to `set` (bit N is capability N). Has to happen while the process is still root.
pub(crate) fn bound_capabilities(set: u64) -> io::Result<u64> {
    let mut known = 0;
    for number in 0..64_u64 {
        // SAFETY: takes plain numbers. JUSTIFICATION: see above.
        let present = unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) };
        if present < 0 {
            break;
        }
        if set & 1 << number != 0 {
            known |= u64::from(present == 1) << number;
        } else if present == 1 {
            // SAFETY: as above. JUSTIFICATION: see above.
            check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) }.into())?;
        }
    }
    Ok(known)
}

/// Sets the process's own capabilities: effective and permitted, none inheritable or ambient.
pub(crate) fn set_capabilities(set: u64) -> io::Result<()> {
    // SAFETY: takes plain numbers. JUSTIFICATION: see above.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) }.into())?;
    let word = |bits: u64| {
        let bits = (bits & 0xffff_ffff) as u32;
        CapabilityWord { effective: bits, permitted: bits, inheritable: 0 }
    };
    let header = CapabilityHeader { version: 0x2008_0522, pid: 0 };
    let words = [word(set), word(set >> 32)];
    // SAFETY: the kernel reads one header and, for this version, two words. JUSTIFICATION: see above.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, words.as_ptr()) }).map(drop)
}

/// Installs a seccomp program, given as an array of `struct sock_filter`.
pub(crate) fn install_seccomp(program: &[u8]) -> io::Result<()> {
    const INSTRUCTION_BYTES: usize = 8;
    if !program.len().is_multiple_of(INSTRUCTION_BYTES) || program.len() > 4096 * INSTRUCTION_BYTES {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let instruction = |b: &[u8]| libc::sock_filter {
        code: u16::from_ne_bytes([b[0], b[1]]),
        jt: b[2],
        jf: b[3],
        k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
    };
    let mut filter: Vec<_> = program.chunks_exact(INSTRUCTION_BYTES).map(instruction).collect();
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the pointer and the length describe `filter`, which the kernel copies and checks. JUSTIFICATION: see above.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) })
        .map(drop)
}

/// Sets a resource limit by its number.
pub(crate) fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    let none = std::ptr::null_mut();
    // SAFETY: reads one structure and writes none. JUSTIFICATION: nix's enum lacks some of the limits.
    check(unsafe { libc::prlimit64(0, resource as _, &raw const limit, none) }.into()).map(drop)
}

/// Replaces this process; returns only what went wrong.
pub(crate) fn exec(path: &str, args: &[String], env: &[String]) -> io::Error {
    let all =
        |list: &[String]| list.iter().map(|text| CString::new(text.as_str())).collect::<Result<Vec<_>, _>>();
    let (Ok(path), Ok(args), Ok(env)) = (CString::new(path), all(args), all(env)) else {
        return io::Error::from_raw_os_error(libc::EINVAL);
    };
    match nix::unistd::execve(&path, &args, &env) {
        Ok(never) => match never {},
        Err(errno) => errno.into(),
    }
}

/// Writes back what is not on its disk yet.
pub(crate) fn sync_disks() {
    nix::unistd::sync();
}

/// Takes so many bytes of memory and gives them back: the kernel clears pages when it hands them out, so what was free is
/// zero afterwards.
pub(crate) fn clear_free_memory(bytes: usize) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    // SAFETY: the mapping is new, nobody knows its address, and it is unmapped with its own length.
    // JUSTIFICATION: only a mapping that is filled at once makes the kernel clear pages without this process's touching
    // each of them.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        if at == libc::MAP_FAILED || libc::munmap(at, bytes) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A descriptor for the kernel's own copy of `fd`'s open file.
pub(crate) fn duplicate(fd: &impl AsFd) -> io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}

/// Lets the kernel reap this process's children.
pub(crate) fn forget_children() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: SigIgn installs no handler. JUSTIFICATION: see above.
    let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) };
}

/// Powers the machine off, or resets it.
pub(crate) fn reboot(power_off: bool) -> io::Error {
    let command = if power_off { libc::LINUX_REBOOT_CMD_POWER_OFF } else { libc::LINUX_REBOOT_CMD_RESTART };
    // SAFETY: takes a plain number. JUSTIFICATION: see above.
    unsafe { libc::reboot(command) };
    io::Error::last_os_error()
}
