//! Tests of cgroups on this machine.

use super::*;

fn check_parse(mountinfo: &str, expected: Option<Hierarchies>) {
    assert_eq!(Hierarchies::parse(mountinfo), expected, "{mountinfo}");
}

#[test]
fn mountinfo_is_understood() {
    let v2 = "25 1 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    check_parse(v2, Some(Hierarchies::Unified { root: "/sys/fs/cgroup".into() }));
    let hybrid = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                  33 31 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                  41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    let both = vec!["cpu".to_owned(), "cpuacct".to_owned()];
    let mounts = vec![(both, PathBuf::from("/sys/fs/cgroup/cpu,cpuacct"))];
    check_parse(hybrid, Some(Hierarchies::Legacy { mounts }));
    check_parse("30 1 0:1 / / rw - ext4 /dev/vda rw\n", None);
    check_parse("garbage", None);
}

#[test]
fn names_are_confined() {
    for bad in ["", "/", "a", "/a//b", "/a/../b", "/./a", "/a/", "/a\nb"] {
        assert!(Cgroup::new(bad).is_err(), "{bad:?}");
    }
    assert_eq!(Cgroup::new("/a/pod1").unwrap().child("c").unwrap().name(), "/a/pod1/c");
    assert!(Cgroup::new("/a").unwrap().child("../b").is_err());
}

#[test]
fn shares_become_weights() {
    for (shares, weight) in [(0, 1), (2, 1), (1024, 39), (262_144, 10_000), (u64::MAX, 10_000)] {
        assert_eq!(v2::weight(shares), weight, "{shares}");
    }
}

#[test]
fn processes_are_killed_and_groups_removed() {
    let name = format!("/cumulet-test-{}/pod/c", std::process::id());
    let cgroup = Cgroup::new(&name).unwrap();
    cgroup.create().unwrap();
    cgroup.create().unwrap();
    let resources = Resources {
        memory_limit_bytes: Some(64 << 20),
        cpu_shares: Some(512),
        cpu_quota_us: Some(50_000),
        pids_limit: Some(50),
        oom_score_adj: None,
    };
    cgroup.limit(&resources).unwrap();
    cgroup.restrict_devices().unwrap();
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    cgroup.add(child.id().cast_signed()).unwrap();
    assert_eq!(cgroup.processes(), [child.id().cast_signed()]);
    assert_eq!(cgroup.usage().pids, 1);
    assert_eq!(cgroup.oom_kills(), 0);
    let waiter = std::thread::spawn(move || child.wait().unwrap());
    let parent = format!("/cumulet-test-{}", std::process::id());
    kill_and_remove(&parent).unwrap();
    assert!(!waiter.join().unwrap().success());
    for root in Hierarchies::get().unwrap().roots() {
        assert!(!root.join(parent.trim_start_matches('/')).exists());
    }
    kill_and_remove(&parent).unwrap();
}

/// The version 2 device filter can be tried on a hybrid machine too: it needs no controller.
#[test]
fn device_filter_denies_what_is_not_listed() {
    let root = match Hierarchies::get().unwrap() {
        Hierarchies::Unified { root } => root.clone(),
        Hierarchies::Legacy { .. } => PathBuf::from("/sys/fs/cgroup/unified"),
    };
    if !root.join("cgroup.procs").exists() {
        return;
    }
    let dir = root.join(format!("cumulet-test-devices-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    devices::restrict_v2(&dir).unwrap();
    let script = format!(
        "echo $$ > {}/cgroup.procs; : < /dev/null && echo null; \
         mknod /tmp/cumulet-test-mem-$$ c 1 1 && echo mknod; : < /tmp/cumulet-test-mem-$$ && echo mem; \
         rm -f /tmp/cumulet-test-mem-$$",
        dir.display()
    );
    let output = std::process::Command::new("sh").arg("-c").arg(script).output().unwrap();
    fs::remove_dir(&dir).unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "null\nmknod\n", "{output:?}");
}
