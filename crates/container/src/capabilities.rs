//! Capability sets: the default of container engines, and what a container adds to it or drops.

use crate::Error;

/// Names by number, as in `linux/capability.h`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has unless it says otherwise; the set that Docker and containerd use.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// A set of capabilities; bit N is capability number N.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities(pub(crate) u64);

impl Capabilities {
    /// All that the kernel knows, including ones that came after this table.
    pub(crate) const ALL: Self = Self(u64::MAX);

    /// The default set, changed by what the container adds and drops. `ALL` in either list comes first, names after
    /// it, drops last, as Kubernetes has it: adding ALL and dropping one leaves all but one.
    pub(crate) fn of(add: &[String], drop: &[String]) -> Result<Self, Error> {
        let mut set = DEFAULT.iter().filter_map(|name| bit(name)).fold(0, |set, bit| set | bit);
        let all = |list: &[String]| list.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
        if all(add) {
            set = Self::ALL.0;
        }
        if all(drop) {
            set = 0;
        }
        let bits = |list: &[String]| -> Result<u64, Error> {
            let named = list.iter().filter(|name| !name.eq_ignore_ascii_case("ALL"));
            let unknown = |name: &String| Error::Invalid(format!("unknown capability {name:?}"));
            named.map(|name| bit(name).ok_or_else(|| unknown(name))).try_fold(0, |set, b| Ok(set | b?))
        };
        Ok(Self((set | bits(add)?) & !bits(drop)?))
    }

    /// True when the named capability is in the set.
    pub(crate) fn has(self, name: &str) -> bool {
        bit(name).is_some_and(|bit| self.0 & bit != 0)
    }
}

fn bit(name: &str) -> Option<u64> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    NAMES.iter().position(|known| *known == name).map(|number| 1 << number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(add: &[&str], drop: &[&str], has: &[&str], lacks: &[&str]) {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let set = Capabilities::of(&owned(add), &owned(drop)).unwrap();
        has.iter().for_each(|name| assert!(set.has(name), "{add:?} {drop:?} {name}"));
        lacks.iter().for_each(|name| assert!(!set.has(name), "{add:?} {drop:?} {name}"));
    }

    #[test]
    fn sets_are_composed() {
        check(&[], &[], &["CHOWN", "MKNOD"], &["SYS_ADMIN", "NET_ADMIN"]);
        check(&["NET_ADMIN"], &["CHOWN"], &["NET_ADMIN", "KILL"], &["CHOWN"]);
        check(&["CAP_SYS_TIME"], &["ALL"], &["SYS_TIME"], &["CHOWN", "KILL"]);
        check(&["ALL"], &["SYS_ADMIN"], &["BPF", "CHOWN"], &["SYS_ADMIN"]);
        assert!(Capabilities::of(&["FLYING".into()], &[]).is_err());
        // The kernel's own numbers.
        assert_eq!(
            (bit("SYS_ADMIN"), bit("MKNOD"), bit("BPF")),
            (Some(1 << 21), Some(1 << 27), Some(1 << 39))
        );
    }
}
