//! Compiles the default seccomp profile into a kernel filter.
//!
//! libseccomp only resolves names to numbers for the native and the 32-bit architecture; the filter itself is made
//! here, because building it through libseccomp took several milliseconds of every container start. The program
//! looks the number up by binary search over ranges with the same verdict:
//!
//! ```text
//!   architecture? ─┬─ native ─► search ─┬─► allow
//!                  ├─ 32-bit ─► search  ├─► conditions on arguments ─► allow | EPERM
//!                  └─ other ──► kill    └─► EPERM | ENOSYS
//! ```
//!
//! Absent on purpose: custom profiles (`Localhost`), which need a file format and come when somebody needs them.

mod profile;

use crate::Error;
use crate::capabilities::Capabilities;
use libseccomp::{ScmpArch, ScmpSyscall};
use profile::Condition;
use std::collections::BTreeMap;

/// One instruction of a filter, `struct sock_filter`.
pub(crate) type Instruction = libc::sock_filter;

/// What happens to one system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Allow,
    Errno(u32),
    /// Allowed under conditions.
    When(&'static [Condition]),
}

const DENY: Verdict = Verdict::Errno(libc::EPERM.cast_unsigned());

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER_OR_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const RETURN_ALLOW: u32 = 0x7fff_0000;
const RETURN_ERRNO: u32 = 0x0005_0000;
const RETURN_KILL: u32 = 0x8000_0000;

/// Offsets in `struct seccomp_data`.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

/// The architectures of this machine: token in `seccomp_data` and libseccomp's name. The native one comes first.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: [(u32, ScmpArch); 2] = [(0xc000_003e, ScmpArch::X8664), (0x4000_0003, ScmpArch::X86)];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: [(u32, ScmpArch); 2] = [(0xc000_00b7, ScmpArch::Aarch64), (0x4000_0028, ScmpArch::Arm)];

/// The filter of the default profile for a container with these capabilities.
pub(crate) fn compile(capabilities: Capabilities) -> Result<Vec<Instruction>, Error> {
    let mut code = vec![statement(LOAD, OFFSET_ARCHITECTURE)];
    for (token, architecture) in ARCHITECTURES {
        let mut part = vec![statement(LOAD, OFFSET_NUMBER)];
        search(&ranges(&verdicts(capabilities, architecture)), &mut part);
        let length = u32::try_from(part.len()).map_err(|_| too_long())?;
        code.extend([jump(JUMP_EQUAL, token, 1, 0), statement(JUMP, length)]);
        code.extend(part);
    }
    code.push(statement(RETURN, RETURN_KILL));
    // The kernel's BPF_MAXINSNS.
    if code.len() > 4096 { Err(too_long()) } else { Ok(code) }
}

fn too_long() -> Error {
    Error::Invalid("seccomp filter is too long".into())
}

/// Verdicts by system call number, on one architecture. Calls that it does not have are left out.
fn verdicts(capabilities: Capabilities, architecture: ScmpArch) -> BTreeMap<u32, Verdict> {
    let number = |name: &str| -> Option<u32> {
        // Calls of other architectures have negative pseudo numbers.
        u32::try_from(ScmpSyscall::from_name_by_arch(name, architecture).ok()?.as_raw_syscall()).ok()
    };
    let mut verdicts = BTreeMap::new();
    let mut set = |name: &str, verdict: Verdict| {
        if let Some(number) = number(name) {
            verdicts.insert(number, verdict);
        }
    };
    set("clone3", Verdict::Errno(libc::ENOSYS.cast_unsigned()));
    for (name, conditions) in profile::CONDITIONAL {
        set(name, Verdict::When(conditions));
    }
    for name in profile::ALWAYS.split_whitespace() {
        set(name, Verdict::Allow);
    }
    for (capability, names) in profile::WITH_CAPABILITY {
        if capabilities.has(capability) {
            names.split_whitespace().for_each(|name| set(name, Verdict::Allow));
        }
    }
    verdicts
}

/// The whole number space as ranges: first number and verdict of each, ascending, beginning with 0.
fn ranges(verdicts: &BTreeMap<u32, Verdict>) -> Vec<(u32, Verdict)> {
    let mut ranges: Vec<(u32, Verdict)> = vec![(0, DENY)];
    let mut push = |first: u32, verdict: Verdict| match ranges.last_mut() {
        Some(last) if last.1 == verdict => {}
        Some(last) if last.0 == first => last.1 = verdict,
        _ => ranges.push((first, verdict)),
    };
    let mut next = 0;
    for (&number, &verdict) in verdicts {
        if number > next {
            push(next, DENY);
        }
        push(number, verdict);
        next = number + 1;
    }
    push(next, DENY);
    ranges
}

/// Emits a binary search; the number is in the accumulator.
fn search(ranges: &[(u32, Verdict)], code: &mut Vec<Instruction>) {
    let [(_, verdict)] = ranges else {
        let (low, high) = ranges.split_at(ranges.len() / 2);
        let mut below = Vec::new();
        search(low, &mut below);
        // Conditional jumps reach 255 instructions; the unconditional one reaches everything.
        let length = u32::try_from(below.len()).unwrap_or(u32::MAX);
        code.extend([jump(JUMP_GREATER_OR_EQUAL, high[0].0, 0, 1), statement(JUMP, length)]);
        code.extend(below);
        return search(high, code);
    };
    match verdict {
        Verdict::Allow => code.push(statement(RETURN, RETURN_ALLOW)),
        Verdict::Errno(errno) => code.push(statement(RETURN, RETURN_ERRNO | errno)),
        Verdict::When(conditions) => {
            conditions.iter().for_each(|condition| emit(*condition, code));
            code.push(deny());
        }
    }
}

fn deny() -> Instruction {
    statement(RETURN, RETURN_ERRNO | libc::EPERM.cast_unsigned())
}

/// Emits one condition: returns "allow" when it holds, goes on after it when not.
fn emit(condition: Condition, code: &mut Vec<Instruction>) {
    let halves = |value: u64| ((value >> 32) as u32, (value & 0xffff_ffff) as u32);
    let load = |argument: u8, high: bool| {
        // Little endian: the low half comes first.
        statement(LOAD, OFFSET_ARGUMENTS + 8 * u32::from(argument) + if high { 4 } else { 0 })
    };
    match condition {
        Condition::Equal { argument, value } => {
            let (high, low) = halves(value);
            code.extend([load(argument, true), jump(JUMP_EQUAL, high, 0, 3)]);
            code.extend([load(argument, false), jump(JUMP_EQUAL, low, 0, 1)]);
        }
        Condition::NotEqual { argument, value } => {
            let (high, low) = halves(value);
            code.extend([load(argument, true), jump(JUMP_EQUAL, high, 0, 2)]);
            code.extend([load(argument, false), jump(JUMP_EQUAL, low, 1, 0)]);
        }
        Condition::NoneOf { argument, mask } => {
            let (high, low) = halves(mask);
            code.extend([load(argument, true), statement(AND, high), jump(JUMP_EQUAL, 0, 0, 4)]);
            code.extend([load(argument, false), statement(AND, low), jump(JUMP_EQUAL, 0, 0, 1)]);
        }
    }
    code.push(statement(RETURN, RETURN_ALLOW));
}

fn statement(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// Puts the filter on the calling thread and all that it starts. Needs `CAP_SYS_ADMIN` or `no_new_privs`. Makes one
/// system call and allocates nothing.
pub(crate) fn install(filter: &[Instruction]) -> std::io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap_or(u16::MAX),
        filter: filter.as_ptr().cast_mut(),
    };
    const SET_MODE_FILTER: libc::c_uint = 1; // SECCOMP_SET_MODE_FILTER
    // SAFETY: the kernel reads `len` instructions, which live in `filter`; it does not write to them.
    // JUSTIFICATION: libc has no wrapper for seccomp(2).
    let done = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, 0, &raw const program) };
    if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel would.
    fn run(filter: &[Instruction], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(number.to_le_bytes());
        data.extend(architecture.to_le_bytes());
        data.extend(0_u64.to_le_bytes());
        arguments.iter().for_each(|a| data.extend(a.to_le_bytes()));
        let (mut at, mut accumulator) = (0_usize, 0_u32);
        loop {
            let i = &filter[at];
            at += 1;
            let branch = |holds: bool| usize::from(if holds { i.jt } else { i.jf });
            match i.code {
                LOAD => {
                    let k = i.k as usize;
                    accumulator = u32::from_le_bytes(data[k..k + 4].try_into().unwrap());
                }
                AND => accumulator &= i.k,
                JUMP => at += i.k as usize,
                JUMP_EQUAL => at += branch(accumulator == i.k),
                JUMP_GREATER_OR_EQUAL => at += branch(accumulator >= i.k),
                RETURN => return i.k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn verdict(capabilities: Capabilities, name: &str, argument: u64) -> u32 {
        let (token, architecture) = ARCHITECTURES[0];
        let number = ScmpSyscall::from_name_by_arch(name, architecture).unwrap().as_raw_syscall();
        let filter = compile(capabilities).unwrap();
        run(&filter, token, number.cast_unsigned(), [argument, 0, 0, 0, 0, 0])
    }

    #[test]
    fn default_profile_means_what_it_says() {
        let usual = Capabilities::of(&[], &[]).unwrap();
        let eperm = RETURN_ERRNO | libc::EPERM.cast_unsigned();
        let enosys = RETURN_ERRNO | libc::ENOSYS.cast_unsigned();
        for (name, argument, expected) in [
            ("read", 0, RETURN_ALLOW),
            ("chroot", 0, RETURN_ALLOW),
            ("mount", 0, eperm),
            ("kexec_load", 0, eperm),
            ("add_key", 0, eperm),
            ("io_uring_setup", 0, eperm),
            ("clone", 17, RETURN_ALLOW),
            ("clone", 0x1000_0000, eperm),
            ("clone3", 0, enosys),
            ("socket", 2, RETURN_ALLOW),
            ("socket", 40, eperm),
            ("socket", 1 << 32 | 40, RETURN_ALLOW),
            ("personality", 0, RETURN_ALLOW),
            ("personality", 0x40_000, eperm),
        ] {
            assert_eq!(verdict(usual, name, argument), expected, "{name}({argument:#x})");
        }
        let all = Capabilities::ALL;
        for name in ["mount", "clone3", "bpf", "reboot"] {
            assert_eq!(verdict(all, name, 0x1000_0000), RETURN_ALLOW, "{name}");
        }
    }

    #[test]
    fn every_number_gets_its_own_verdict() {
        let set = Capabilities::of(&[], &[]).unwrap();
        let filter = compile(set).unwrap();
        for (token, architecture) in ARCHITECTURES {
            let table = verdicts(set, architecture);
            for number in (0..1000).chain([0x4000_0000, u32::MAX]) {
                let got = run(&filter, token, number, [0; 6]);
                let allowed = !matches!(table.get(&number), None | Some(Verdict::Errno(_)));
                assert_eq!(got == RETURN_ALLOW, allowed, "{architecture:?} {number}");
            }
        }
        assert_eq!(run(&filter, 0x1234, 0, [0; 6]), RETURN_KILL);
    }
}
