//! Which device nodes a container may use.
//!
//! Version 1 has files for it. Version 2 wants a BPF program attached to the group; it is small enough to be written
//! here instruction by instruction: for each rule, compare type, major and minor with the kernel's context and allow,
//! else deny. Creating nodes (mknod) is allowed for all, using them is not: that is what `CAP_MKNOD` in the default
//! set relies on.

use super::{Result, io_error, write};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// Character devices that every container may use: (major, minor), all minors when `None`.
const ALLOWED: [(u32, Option<u32>); 10] = [
    (1, Some(3)),    // null
    (1, Some(5)),    // zero
    (1, Some(7)),    // full
    (1, Some(8)),    // random
    (1, Some(9)),    // urandom
    (5, Some(0)),    // tty
    (5, Some(1)),    // console
    (5, Some(2)),    // ptmx
    (136, None),     // pts
    (10, Some(200)), // net/tun; useless without CAP_NET_ADMIN, expected by VPN clients that add it
];

pub(super) fn restrict_v1(dir: &Path) -> Result<()> {
    write(&dir.join("devices.deny"), "a")?;
    let allow = dir.join("devices.allow");
    write(&allow, "c *:* m")?;
    write(&allow, "b *:* m")?;
    for (major, minor) in ALLOWED {
        let minor = minor.map_or("*".into(), |m| m.to_string());
        write(&allow, &format!("c {major}:{minor} rwm"))?;
    }
    Ok(())
}

pub(super) fn restrict_v2(dir: &Path) -> Result<()> {
    let attach = || -> io::Result<()> {
        let group = File::open(dir)?;
        let program = load(&program())?;
        attach(&group, &program)
    };
    attach().map_err(io_error("restrict devices of", dir))
}

/// One instruction of the kernel's BPF machine.
#[derive(Clone, Copy)]
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE_REGISTER: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const MOVE: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const AND: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const JUMP_NOT_EQUAL: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

const TYPE_CHARACTER: i32 = 2; // BPF_DEVCG_DEV_CHAR
const ACCESS_MKNOD: i32 = 1; // BPF_DEVCG_ACC_MKNOD

fn op(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: source << 4 | destination, offset, immediate }
}

/// The filter. r1 points at `{ u32 access_type; u32 major; u32 minor }`, where the low half of the first word is the
/// device's type and its high half the kind of access.
fn program() -> Vec<Instruction> {
    let mut code = vec![
        op(LOAD_WORD, 2, 1, 0, 0),
        op(MOVE_REGISTER, 3, 2, 0, 0),
        op(AND, 2, 0, 0, 0xffff),
        op(SHIFT_RIGHT, 3, 0, 0, 16),
        op(LOAD_WORD, 4, 1, 4, 0),
        op(LOAD_WORD, 5, 1, 8, 0),
        op(JUMP_NOT_EQUAL, 3, 0, 2, ACCESS_MKNOD),
        op(MOVE, 0, 0, 0, 1),
        op(EXIT, 0, 0, 0, 0),
        op(JUMP_NOT_EQUAL, 2, 0, 0, TYPE_CHARACTER), // its offset is set below
    ];
    let type_check = code.len() - 1;
    for (major, minor) in ALLOWED {
        code.push(op(JUMP_NOT_EQUAL, 4, 0, if minor.is_some() { 3 } else { 2 }, major.cast_signed()));
        if let Some(minor) = minor {
            code.push(op(JUMP_NOT_EQUAL, 5, 0, 2, minor.cast_signed()));
        }
        code.extend([op(MOVE, 0, 0, 0, 1), op(EXIT, 0, 0, 0, 0)]);
    }
    // The program is some dozens of instructions long, so the distance fits.
    code[type_check].offset = i16::try_from(code.len() - type_check - 1).unwrap_or(0);
    code.extend([op(MOVE, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    code
}

const COMMAND_LOAD: libc::c_int = 5; // BPF_PROG_LOAD
const COMMAND_ATTACH: libc::c_int = 8; // BPF_PROG_ATTACH
const PROGRAM_CGROUP_DEVICE: u32 = 15; // BPF_PROG_TYPE_CGROUP_DEVICE
const ATTACH_CGROUP_DEVICE: u32 = 6; // BPF_CGROUP_DEVICE
const ALLOW_MULTI: u32 = 2; // BPF_F_ALLOW_MULTI

/// The head of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
struct LoadArguments {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

/// The head of `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C)]
struct AttachArguments {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let arguments = LoadArguments {
        program_type: PROGRAM_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads `size_of` bytes of the arguments, and the program and licence they point at, which all
    // live until the call returns. JUSTIFICATION: libc has no wrapper for bpf(2).
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, COMMAND_LOAD, &raw const arguments, size_of::<LoadArguments>())
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us. JUSTIFICATION: it comes out of a raw system call.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) })
}

fn attach(group: &File, program: &OwnedFd) -> io::Result<()> {
    let arguments = AttachArguments {
        target: group.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        attach_type: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the kernel reads `size_of` bytes of the arguments. JUSTIFICATION: libc has no wrapper for bpf(2).
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, COMMAND_ATTACH, &raw const arguments, size_of::<AttachArguments>())
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
