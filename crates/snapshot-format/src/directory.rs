//! A directory of templates: what is in it, what of it is to go, and what dead writers left.

use crate::{Error, Key, Template};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What a template takes up, and since when nobody needed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The template.
    pub key: Key,
    /// What its files take up, without holes, in bytes.
    pub disk_bytes: u64,
    /// When it was last used, or made.
    pub last_used: SystemTime,
}

/// What lies under a key: a template, or why it is none.
pub type Listed = Result<Template, (Key, Error)>;

/// All templates, in the order of their keys, and what lies under a key without being one. A directory that is not
/// there has none.
///
/// # Errors
/// The directory cannot be read.
pub fn list(dir: &Path) -> Result<Vec<Listed>, Error> {
    let mut keys: Vec<Key> = names(dir)?.iter().filter_map(|name| name.parse().ok()).collect();
    keys.sort_unstable();
    let open = |key| match Template::open(dir, &key) {
        // Removed since the directory was read.
        Err(Error::NotFound { .. }) => None,
        other => Some(other.map_err(|error| (key, error))),
    };
    Ok(keys.into_iter().filter_map(open).collect())
}

/// Removes what lies under a key, be it whole or not: from one moment to the next it is gone.
///
/// # Errors
/// There is nothing, or the file system refuses.
pub fn remove(dir: &Path, key: &Key) -> Result<(), Error> {
    let path = dir.join(key.to_string());
    let removed = dir.join(aside(key, "removed"));
    fs::rename(&path, &removed).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Error::NotFound { key: *key, dir: dir.to_owned() },
        _ => Error::io("remove", &path)(error),
    })?;
    delete(&removed)
}

/// Removes what writers and removers left that are gone. How many there were.
///
/// # Errors
/// The file system refuses.
pub fn clean(dir: &Path) -> Result<usize, Error> {
    let mut cleaned = 0;
    for name in names(dir)? {
        let Some(rest) = name.strip_prefix('.') else { continue };
        let path = dir.join(&name);
        let mut words = rest.split('.');
        if words.next().is_none_or(|key| key.parse::<Key>().is_err()) {
            continue;
        }
        match words.next_back() {
            Some("removed") => delete(&path)?,
            Some("partial") => match lock_dead(&path)? {
                // Held until nothing is left: a writer that waits for the lock finds that its directory is gone.
                Some(_lock) => delete(&path)?,
                None => continue,
            },
            _ => continue,
        }
        cleaned += 1;
    }
    Ok(cleaned)
}

/// The templates that have to go so that the others take up no more than a budget: those not used for the longest time.
pub fn evict(templates: &[Usage], budget_bytes: u64) -> Vec<Key> {
    let mut by_age: Vec<&Usage> = templates.iter().collect();
    by_age.sort_unstable_by_key(|one| (one.last_used, one.key));
    let mut total = templates.iter().fold(0u64, |sum, one| sum.saturating_add(one.disk_bytes));
    let mut gone = Vec::new();
    for one in by_age {
        if total <= budget_bytes {
            break;
        }
        total -= one.disk_bytes;
        gone.push(one.key);
    }
    gone
}

/// A name for what is not, or no longer, a template.
pub(crate) fn aside(key: &Key, what: &str) -> PathBuf {
    // The standard library's hashers are seeded with randomness; names need no more than to be new.
    let random = RandomState::new().build_hasher().finish();
    PathBuf::from(format!(".{key}.{random:016x}.{what}"))
}

/// Takes the lock of a directory that was being written; `None` when its writer lives, or has just finished.
fn lock_dead(path: &Path) -> Result<Option<Flock<File>>, Error> {
    let folder = match File::open(path) {
        Ok(folder) => folder,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(Error::io("lock", path)(error)),
    }
}

fn delete(path: &Path) -> Result<(), Error> {
    let result = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("read", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("read", dir))?;
        // What is no text is not ours.
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_oldest_go_first() {
        let usage = |n: u8, used: u64, disk_bytes| Usage {
            key: Key([n; 32]),
            disk_bytes,
            last_used: SystemTime::UNIX_EPOCH + Duration::from_secs(used),
        };
        let all = [usage(1, 30, 100), usage(2, 10, 50), usage(3, 20, 10)];
        let check = |budget, gone: &[u8]| {
            let expected: Vec<Key> = gone.iter().map(|n| Key([*n; 32])).collect();
            assert_eq!(evict(&all, budget), expected, "budget {budget}");
        };
        check(160, &[]);
        check(159, &[2]);
        check(110, &[2]);
        check(109, &[2, 3]);
        check(99, &[2, 3, 1]);
        check(0, &[2, 3, 1]);
    }
}
