//! What can be known of a machine without starting one.

use super::driver::translate;
use super::spec::*;
use super::*;
use crate::qmp::QmpEvent;
use std::io::Write;

pub(crate) fn order(dir: &std::path::Path) -> MachineSpec {
    let empty = |name: &str| {
        std::fs::write(dir.join(name), [0; 64]).unwrap();
        File::open(dir.join(name)).unwrap()
    };
    MachineSpec {
        name: "test".to_owned(),
        accelerator: Accelerator::Tcg,
        cpu_model: None,
        vcpus: 1,
        memory_bytes: 128 << 20,
        memory: Memory::Own,
        boot: Boot::Kernel {
            image: empty("kernel"),
            initramfs: empty("initramfs"),
            parameters: vec!["a=b".into()],
        },
        channel: None,
        console: ConsoleSpec {
            log: dir.join("console.log"),
            log_limit_bytes: 1 << 20,
            socket: None,
            output: None,
        },
        disks: Vec::new(),
        nics: Vec::new(),
        page_reporting: true,
        directories: Vec::new(),
        on_reboot: OnReboot::Fail,
        translation_cache_bytes: None,
        isolation: Isolation::default(),
    }
}

fn disk(serial: &str) -> Disk {
    Disk {
        file: tempfile::tempfile().unwrap(),
        serial: serial.to_owned(),
        read_only: true,
        volatile: false,
        format: DiskFormat::Raw,
    }
}

#[test]
fn orders_are_checked() {
    type Change = fn(&mut MachineSpec);
    let table: Vec<(&str, Change, Option<&str>)> = vec![
        ("as it is", |_| {}, None),
        ("syntax in the name", |s| s.name = "a,b".into(), Some("name")),
        ("no CPU", |s| s.vcpus = 0, Some("CPUs")),
        ("too many CPUs", |s| s.vcpus = 65, Some("CPUs")),
        ("CPU with features", |s| s.cpu_model = Some("Nehalem,+aes,-vmx,kvm=off".into()), None),
        ("CPU with a path", |s| s.cpu_model = Some("a/b".into()), Some("CPU model")),
        ("odd memory", |s| s.memory_bytes = (128 << 20) + 1, Some("memory")),
        ("little memory", |s| s.memory_bytes = 1 << 20, Some("memory")),
        ("a disk", |s| s.disks.push(disk("abc")), None),
        ("a long serial", |s| s.disks.push(disk("012345678901234567890")), Some("serial")),
        ("syntax in a serial", |s| s.disks.push(disk("a,b")), Some("serial")),
        ("a serial twice", |s| s.disks.extend([disk("a"), disk("b"), disk("a")]), Some("two disks")),
        ("too many disks", |s| s.disks.extend((0..21).map(|n| disk(&n.to_string()))), Some("more than")),
        (
            "a line in a parameter",
            |s| {
                s.boot = Boot::Kernel {
                    image: tempfile::tempfile().unwrap(),
                    initramfs: tempfile::tempfile().unwrap(),
                    parameters: vec!["a\nb".into()],
                }
            },
            Some("parameter"),
        ),
        (
            "free pages of a template",
            |s| {
                s.memory = Memory::CopyOnWrite(tempfile::tempfile().unwrap());
                s.boot = Boot::Incoming;
            },
            Some("reported"),
        ),
        (
            "a boot in a template",
            |s| {
                s.memory = Memory::CopyOnWrite(tempfile::tempfile().unwrap());
                s.page_reporting = false;
            },
            Some("not started"),
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (name, change, expected) in table {
        let mut spec = order(dir.path());
        change(&mut spec);
        match (spec.check(), expected) {
            (Ok(()), None) => {}
            (Err(e), Some(part)) if e.to_string().contains(part) => {}
            (result, _) => panic!("{name}: {result:?}"),
        }
    }
}

#[test]
fn events_of_qemu() {
    let table = [
        ("STOP", json!({}), Some(Event::Stopped)),
        ("RESUME", Value::Null, Some(Event::Resumed)),
        ("SHUTDOWN", json!({"guest": true, "reason": "guest-shutdown"}), Some(Event::GuestShutdown)),
        ("SHUTDOWN", json!({"guest": true, "reason": "guest-reset"}), Some(Event::GuestPanicked)),
        ("SHUTDOWN", json!({}), Some(Event::InternalError("unknown reason".into()))),
        ("SHUTDOWN", json!([1]), Some(Event::InternalError("unknown reason".into()))),
        ("BLOCK_IO_ERROR", json!({}), None),
        ("", Value::Null, None),
    ];
    for (name, data, expected) in table {
        let event = QmpEvent { name: name.to_owned(), data };
        assert_eq!(translate(&event), expected, "{event:?}");
    }
}

#[tokio::test]
async fn a_program_that_is_no_qemu_is_reported_with_its_last_words() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("qemu");
    let mut file = File::create(&program).unwrap();
    file.write_all(b"#!/bin/sh\necho no such machine >&2\nexit 1\n").unwrap();
    drop(file);
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let version = crate::qmp::Version { major: 7, minor: 2, micro: 0 };
    let qemu = Qemu { program, version, qboot: None, tsc_khz: None };
    let error = Machine::spawn(&qemu, order(dir.path())).await.err().unwrap();
    assert!(error.to_string().contains("no such machine"), "{error}");
}
