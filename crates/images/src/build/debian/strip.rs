//! What an image does not need of what packages install, and what would differ between two runs.
//!
//! Gone: documentation (but licences stay), manuals and locales unless asked for; caches, logs, locks, backups and
//! whatever the installation itself left. Directories that manuals are linked into stay, because maintainer scripts
//! of other packages expect them.

use crate::build::layer::{Content, Members};
use std::io::Read;

/// What is kept on request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::build) struct Keep {
    pub(in crate::build) docs: bool,
    pub(in crate::build) locales: bool,
}

/// Below these, documentation that goes unless it is asked for.
const DOCS: [&str; 8] = [
    "usr/share/doc/",
    "usr/share/man/",
    "usr/share/info/",
    "usr/share/groff/",
    "usr/share/gtk-doc/",
    "usr/share/help/",
    "usr/share/lintian/",
    "usr/share/doc-base/",
];
const LOCALES: [&str; 1] = ["usr/share/locale/"];

/// Below these, everything that is no directory goes.
const FILES_BELOW: [&str; 6] = ["var/log/", "run/", "tmp/", "var/tmp/", "var/lib/apt/", "var/cache/apt/"];

/// Below these, everything goes.
const ALL_BELOW: [&str; 9] = [
    "dev/",
    "proc/",
    "sys/",
    "run/packages",
    "run/cumulet",
    "var/lib/apt/lists/",
    "var/cache/apt/archives/",
    "var/cache/man/",
    "var/cache/fontconfig/",
];

/// Files that go: locks, backups, caches that are made again, identities.
const FILES: [&str; 18] = [
    "usr/sbin/policy-rc.d",
    "var/cache/ldconfig/aux-cache",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/passwords.dat-old",
    "var/cache/debconf/templates.dat-old",
    "var/lib/dpkg/available-old",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/statoverride-old",
    "var/lib/dpkg/status-old",
    "var/lib/dpkg/lock",
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/triggers/Lock",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/catalog/database",
    "var/lib/systemd/random-seed",
    "etc/machine-id",
    "etc/.pwd.lock",
    "etc/hostname",
];

/// Backups of account files.
const ACCOUNTS: [&str; 6] =
    ["etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-"];

/// Larger files are not rewritten, in bytes.
const MAX_REWRITTEN: u64 = 4 << 20;

/// Removes what is not needed, and makes the rest the same whenever it was installed. `whole` tells a complete tree
/// from the changes to one.
pub(in crate::build) fn strip(
    members: &mut Members,
    keep: Keep,
    epoch: i64,
    whole: bool,
) -> std::io::Result<()> {
    members.retain(|place, member| {
        let Ok(name) = std::str::from_utf8(place) else { return true };
        if !whole && matches!(name, "dev" | "proc" | "sys") {
            return false;
        }
        is_kept(name, member.content == Content::Directory, keep)
    });
    remove_empty(members, keep);
    rewrite(members, "etc/shadow", |bytes| {
        Some(without_dates(&String::from_utf8(bytes).ok()?, epoch).into_bytes())
    })?;
    rewrite(members, "etc/ssl/certs/java/cacerts", |bytes| super::keystore::dated(&bytes, epoch))
}

/// Replaces the content of a small file, unless `change` does not know it.
fn rewrite(
    members: &mut Members,
    place: &str,
    change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>,
) -> std::io::Result<()> {
    if let Some(member) = members.get_mut(place.as_bytes())
        && let Content::File(path) = &member.content
    {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_REWRITTEN).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < MAX_REWRITTEN
            && let Some(changed) = change(bytes)
        {
            member.content = Content::Bytes(changed);
        }
    }
    Ok(())
}

fn is_kept(name: &str, directory: bool, keep: Keep) -> bool {
    let below = |list: &[&str]| list.iter().any(|prefix| name.starts_with(prefix));
    if below(&ALL_BELOW) || FILES.contains(&name) || ACCOUNTS.contains(&name) {
        return false;
    }
    if directory {
        return true;
    }
    if below(&FILES_BELOW) {
        return false;
    }
    let licence = name.ends_with("/copyright");
    let alias = name.ends_with("/locale.alias");
    let doc = !keep.docs && below(&DOCS) && !licence;
    let locale = !keep.locales && below(&LOCALES) && !alias;
    !doc && !locale
}

/// Removes directories that hold nothing any more, where something was removed.
fn remove_empty(members: &mut Members, keep: Keep) {
    let dirs: Vec<Vec<u8>> = members
        .iter()
        .filter(|(_, member)| member.content == Content::Directory)
        .map(|(place, _)| place.clone())
        .rev()
        .collect();
    for place in dirs {
        let Ok(name) = std::str::from_utf8(&place) else { continue };
        let below = |list: &[&str]| list.iter().any(|prefix| name.starts_with(prefix));
        let manual = name.strip_prefix("usr/share/man/man").is_some_and(|rest| !rest.contains('/'));
        let stripped = (!keep.docs && below(&DOCS)) || (!keep.locales && below(&LOCALES));
        if manual || !stripped {
            continue;
        }
        let inside = [&place[..], b"/"].concat();
        if !members.range(inside.clone()..).next().is_some_and(|(next, _)| next.starts_with(&inside)) {
            members.remove(&place);
        }
    }
}

/// Sets the date of the last change of passwords, which is the day of the installation. A day of zero would ask for a
/// new password, so no day is given then.
fn without_dates(shadow: &str, epoch: i64) -> String {
    let day = epoch / 86400;
    let day = if day > 0 { day.to_string() } else { String::new() };
    let line = |line: &str| {
        let mut fields: Vec<&str> = line.split(':').collect();
        if let Some(date) = fields.get_mut(2).filter(|date| !date.is_empty()) {
            *date = &day;
        }
        fields.join(":") + "\n"
    };
    shadow.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::layer::Member;

    #[test]
    fn only_what_is_needed_stays() {
        let check = |name: &str, keep: Keep, expected: bool| {
            let (name, directory) = name.strip_suffix('/').map_or((name, false), |name| (name, true));
            let content = if directory { Content::Directory } else { Content::Bytes(Vec::new()) };
            let mut members = Members::from([(name.as_bytes().to_vec(), Member::of_root(content, 0o644))]);
            strip(&mut members, keep, 0, true).expect("strip");
            assert_eq!(!members.is_empty(), expected, "{name} {keep:?}");
        };
        let (none, all) = (Keep::default(), Keep { docs: true, locales: true });
        for (name, kept, kept_on_request) in [
            ("usr/bin/ls", true, true),
            ("usr/share/doc/a/README", false, true),
            ("usr/share/doc/a/copyright", true, true),
            ("usr/share/doc/a/", false, true),
            ("usr/share/man/man1/", true, true),
            ("usr/share/man/man1/ls.1.gz", false, true),
            ("usr/share/man/de/man1/", false, true),
            ("usr/share/locale/de/LC_MESSAGES/a.mo", false, true),
            ("usr/lib/locale/C.utf8/LC_CTYPE", true, true),
            ("var/log/dpkg.log", false, false),
            ("var/log/nginx/", true, true),
            ("var/cache/apt/archives/a.deb", false, false),
            ("run/postgresql/", true, true),
            ("run/x.pid", false, false),
            ("etc/machine-id", false, false),
            ("etc/passwd", true, true),
            ("etc/passwd-", false, false),
        ] {
            check(name, none, kept);
            check(name, all, kept_on_request);
        }
    }

    #[test]
    fn password_dates_are_the_image_s() {
        assert_eq!(without_dates("root:*:20000:0:99999:7:::\nx\n", 0), "root:*::0:99999:7:::\nx\n");
        assert_eq!(without_dates("root:*:20000:0:::\n", 864_000), "root:*:10:0:::\n");
    }
}
