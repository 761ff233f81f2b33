//! Dividing many files into few layers, so that a change costs a small part of them.
//!
//! The division depends on paths and sizes alone, never on what was built before, or the same files would not give the
//! same image. Small trees are one layer. Of larger ones, every big file is a layer of its own, and the rest is spread
//! by a hash of its directory (of the file, where a directory alone is too big): files of one directory tend to
//! change together.

use super::context::Gathered;
use super::layer::{Content, Members};
use crate::Digest;
use std::collections::{BTreeMap, BTreeSet};

/// Up to this size a tree is one layer, in bytes.
const ONE_LAYER: u64 = 32 << 20;
/// About the size that a layer of a divided tree should have, in bytes.
const WANTED: u64 = 16 << 20;
/// Most layers that small files are spread over; as many big ones can come on top.
const MAX_GROUPS: u64 = 16;
/// No smaller file is a layer of its own, in bytes.
const BIG: u64 = 8 << 20;

/// Divides what was gathered. Every member is in one group, directories in each group that has something in them.
pub(super) fn divide(gathered: &Gathered) -> Vec<Members> {
    let sizes: BTreeMap<&[u8], u64> =
        gathered.files.iter().map(|(place, found)| (&place[..], found.metadata.len())).collect();
    let names = assign(&gathered.members, &sizes);
    let mut groups: BTreeMap<&Group, Members> = BTreeMap::new();
    for (place, group) in &names {
        let members = groups.entry(group).or_default();
        for (i, _) in place.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            if let Some((dir, member)) = gathered.members.get_key_value(&place[..i]) {
                members.entry(dir.clone()).or_insert_with(|| member.clone());
            }
        }
        if let Some(member) = gathered.members.get(*place) {
            members.insert(place.to_vec(), member.clone());
        }
    }
    groups.into_values().collect()
}

/// Which group a member belongs to. Spread ones come first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Spread(u64),
    Own(Vec<u8>),
}

/// Groups of everything but directories that hold something.
fn assign<'a>(members: &'a Members, sizes: &BTreeMap<&[u8], u64>) -> BTreeMap<&'a [u8], Group> {
    let parents: BTreeSet<&[u8]> = members.keys().map(|place| parent(place)).collect();
    let leaves = members
        .iter()
        .filter(|(place, member)| member.content != Content::Directory || !parents.contains(&place[..]))
        .map(|(place, _)| &place[..]);
    let total: u64 = sizes.values().sum();
    if total <= ONE_LAYER {
        return leaves.map(|place| (place, Group::Spread(0))).collect();
    }
    let size = |place: &[u8]| sizes.get(place).copied().unwrap_or(0);
    let big = |place: &[u8]| size(place) > BIG.max(total / MAX_GROUPS);
    let rest: u64 = sizes.keys().filter(|place| !big(place)).map(|place| size(place)).sum();
    let count = (rest / WANTED).next_power_of_two().clamp(1, MAX_GROUPS);
    let mut dirs: BTreeMap<&[u8], u64> = BTreeMap::new();
    for place in sizes.keys().filter(|place| !big(place)) {
        *dirs.entry(parent(place)).or_default() += size(place);
    }
    let group = |place: &[u8]| {
        if big(place) {
            return Group::Own(place.to_vec());
        }
        let together = dirs.get(parent(place)).is_none_or(|bytes| *bytes <= rest / count);
        Group::Spread(hash(if together { parent(place) } else { place }) % count)
    };
    leaves.map(|place| (place, group(place))).collect()
}

fn parent(place: &[u8]) -> &[u8] {
    place.iter().rposition(|byte| *byte == b'/').map_or(b"", |slash| &place[..slash])
}

fn hash(bytes: &[u8]) -> u64 {
    u64::from_str_radix(&Digest::of(bytes).hex()[..15], 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::layer::Member;

    fn check(files: &[(&str, u64)], most: usize) -> BTreeMap<String, Group> {
        let mut members = Members::new();
        for (name, _) in files {
            for (i, _) in name.match_indices('/') {
                let dir = name.as_bytes()[..i].to_vec();
                members.insert(dir, Member::of_root(Content::Directory, 0o755));
            }
            members.insert(name.as_bytes().to_vec(), Member::of_root(Content::Bytes(Vec::new()), 0o644));
        }
        let sizes = files.iter().map(|(name, size)| (name.as_bytes(), *size)).collect();
        let groups = assign(&members, &sizes);
        assert_eq!(groups.len(), files.len(), "every file once, directories with their files");
        let distinct: BTreeSet<&Group> = groups.values().collect();
        assert!(distinct.len() <= most, "{} groups", distinct.len());
        groups
            .into_iter()
            .map(|(place, group)| (String::from_utf8_lossy(place).into_owned(), group))
            .collect()
    }

    #[test]
    fn small_trees_are_one_layer() {
        check(&[("a/b", 1 << 20), ("c", 30 << 20), ("d/e/f", 0)], 1);
    }

    #[test]
    fn a_change_concerns_one_group_and_moves_nothing() {
        let names: Vec<String> = (0..400).map(|i| format!("app/part{}/file{i}", i % 40)).collect();
        let files: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 1 << 20)).collect();
        let before = check(&files, 16);
        assert!(before.values().collect::<BTreeSet<_>>().len() > 8);
        let mut changed = files.clone();
        changed[7].1 += 1000;
        changed.push(("app/part3/new", 1 << 19));
        let after = check(&changed, 16);
        assert!(before.iter().all(|(name, group)| after[name] == *group));
        assert_eq!(after["app/part3/new"], after["app/part3/file3"], "a directory stays together");
    }

    #[test]
    fn big_files_stand_alone() {
        let groups = check(&[("data/big", 399 << 20), ("data/small", 1 << 20)], 2);
        assert_ne!(groups["data/big"], groups["data/small"]);
    }

    #[test]
    fn a_directory_that_is_too_big_is_divided() {
        let names: Vec<String> = (0..200).map(|i| format!("flat/{i}")).collect();
        let files: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 2 << 20)).collect();
        let groups = check(&files, 16);
        assert!(groups.values().collect::<BTreeSet<_>>().len() > 8);
    }
}
