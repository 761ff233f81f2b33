//! Who a container runs as: names and numbers looked up in the container's own `/etc/passwd` and `/etc/group`.

use super::rootfs::Tree;
use crate::error::{Doing, Error};
use cumulet_guest_proto::spec::Process;

/// Largest account file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A resolved user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups, without duplicates, the primary one first.
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

pub(super) fn resolve(root: &Tree, process: &Process) -> Result<User, Error> {
    let read = |path: &str| {
        root.read(path, MAX_FILE_BYTES)
            .map(Option::unwrap_or_default)
            .doing(|| format!("read the container's {path}"))
    };
    let user = look_up(process, &read("/etc/passwd")?, &read("/etc/group")?)?;
    if process.must_not_be_root && user.uid == 0 {
        return Err(Error::Invalid("container has runAsNonRoot and image will run as root".to_owned()));
    }
    Ok(user)
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, uid, gid) = (fields.next()?, fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Account { name, uid, gid, home: fields.nth(1).unwrap_or("/") })
    })
}

/// Name, number and members of each group.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        Some((fields.next()?, fields.nth(1)?.parse().ok()?, fields.next().unwrap_or("")))
    })
}

fn look_up(wanted: &Process, passwd: &str, group: &str) -> Result<User, Error> {
    let missing = |kind: &str, name: &str, file: &str| {
        Err(Error::Invalid(format!("unable to find {kind} {name}: no matching entries in {file} file")))
    };
    let (user, group_part) = match wanted.user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted.user.as_str(), None),
    };
    let number: Option<u32> = if user.is_empty() { Some(0) } else { user.parse().ok() };
    let account = match number {
        Some(uid) => accounts(passwd).find(|a| a.uid == uid),
        None => accounts(passwd).find(|a| a.name == user),
    };
    let Some(uid) = number.or(account.as_ref().map(|a| a.uid)) else {
        return missing("user", user, "passwd");
    };
    let named = match group_part.filter(|g| !g.is_empty()) {
        None => None,
        Some(name) => match name.parse().ok().or_else(|| groups(group).find(|g| g.0 == name).map(|g| g.1)) {
            Some(gid) => Some(gid),
            None => return missing("group", name, "group"),
        },
    };
    let gid = wanted.run_as_group.or(named).or(account.as_ref().map(|a| a.gid)).unwrap_or(0);
    let mut all = vec![gid];
    // An explicit group in the image's user stands alone; else the user's memberships count.
    if named.is_none()
        && let Some(account) = &account
    {
        all.extend(groups(group).filter(|g| g.2.split(',').any(|m| m == account.name)).map(|g| g.1));
    }
    all.extend(&wanted.additional_gids);
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|g| seen.insert(*g));
    let home = account.map_or("/", |a| if a.home.is_empty() { "/" } else { a.home }).to_owned();
    Ok(User { uid, gid, groups: all, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/var/www:/sbin/nologin\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\naudio:x:29:web,root\nbad:x:y:\n";

    fn check(user: &str, group: Option<u32>, additional: &[u32], expected: Option<(u32, u32, &[u32], &str)>) {
        let wanted = Process {
            user: user.to_owned(),
            run_as_group: group,
            additional_gids: additional.to_vec(),
            ..Process::default()
        };
        let got = look_up(&wanted, PASSWD, GROUP).ok();
        let expected = expected.map(|(uid, gid, groups, home)| User {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.into(),
        });
        assert_eq!(got, expected, "{user}");
    }

    #[test]
    fn users_and_groups_are_found() {
        check("", None, &[], Some((0, 0, &[0, 29], "/root")));
        check("web", None, &[], Some((33, 34, &[34, 29], "/var/www")));
        check("33", None, &[7, 29], Some((33, 34, &[34, 29, 7], "/var/www")));
        check("1000", None, &[], Some((1000, 0, &[0], "/")));
        check("1000:2000", None, &[5], Some((1000, 2000, &[2000, 5], "/")));
        check("web:audio", None, &[], Some((33, 29, &[29], "/var/www")));
        check("web", Some(9), &[], Some((33, 9, &[9, 29], "/var/www")));
        check("nobody", None, &[], None);
        check("web:nogroup", None, &[], None);
    }
}
