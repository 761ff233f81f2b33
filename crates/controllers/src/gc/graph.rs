//! Who owns whom, of all objects. Pure.
//!
//! Nodes are keyed by uid and hold no more than what a decision needs; the place of an object is the index of its
//! resource and two strings. Edges stand at the dependent; the owner's side is an index.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A uid, shared between node and edges.
pub(crate) type Uid = Arc<str>;

/// An edge from a dependent to its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: Uid,
    pub(crate) api_version: Arc<str>,
    pub(crate) kind: Arc<str>,
    pub(crate) name: Box<str>,
    /// The owner must wait for this dependent in a foreground deletion.
    pub(crate) blocks: bool,
}

/// How far an object is on its way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// It stays.
    #[default]
    No,
    /// It goes, and its dependents follow.
    Background,
    /// It waits for its dependents (`foregroundDeletion`).
    Foreground,
    /// It waits until its dependents have forgotten it (`orphan`).
    Orphan,
}

/// One object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// Index of the resource.
    pub(crate) resource: u16,
    pub(crate) namespace: Option<Arc<str>>,
    pub(crate) name: Box<str>,
    pub(crate) owners: Box<[Owner]>,
    pub(crate) leaving: Leaving,
}

/// All objects.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    nodes: HashMap<Uid, Node>,
    dependents: HashMap<Uid, HashSet<Uid>>,
}

impl Graph {
    pub(crate) fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// Uids of all objects of a resource.
    pub(crate) fn of_resource(&self, resource: u16) -> Vec<Uid> {
        self.nodes.iter().filter(|(_, n)| n.resource == resource).map(|(uid, _)| uid.clone()).collect()
    }

    /// Uids of all objects that may need something done.
    pub(crate) fn candidates(&self) -> Vec<Uid> {
        let open = |n: &Node| !n.owners.is_empty() || n.leaving != Leaving::No;
        self.nodes.iter().filter(|(_, n)| open(n)).map(|(uid, _)| uid.clone()).collect()
    }

    /// Enters an object or its new state. Returns the uids that have to be looked at.
    pub(crate) fn upsert(&mut self, uid: &Uid, node: Node) -> Vec<Uid> {
        if self.nodes.get(uid) == Some(&node) {
            return Vec::new();
        }
        let mut affected = Vec::new();
        if !node.owners.is_empty() || node.leaving != Leaving::No {
            affected.push(uid.clone());
        }
        let before = self.nodes.insert(uid.clone(), node.clone());
        let was_leaving = before.as_ref().map(|b| b.leaving);
        if let Some(before) = before {
            self.unlink(uid, &before, &mut affected);
        }
        for owner in &node.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        // Dependents of an owner that begins to wait for them have to be looked at too.
        if node.leaving == Leaving::Foreground && was_leaving != Some(Leaving::Foreground) {
            affected.extend(self.dependents.get(uid).into_iter().flatten().cloned());
        }
        affected
    }

    /// Removes an object. Returns the uids that have to be looked at: its dependents, and owners that wait for it.
    pub(crate) fn remove(&mut self, uid: &str) -> Vec<Uid> {
        let mut affected = Vec::new();
        if let Some((uid, node)) = self.nodes.remove_entry(uid) {
            self.unlink(&uid, &node, &mut affected);
            affected.extend(self.dependents.get(&uid).into_iter().flatten().cloned());
        }
        affected
    }

    fn unlink(&mut self, uid: &Uid, node: &Node, affected: &mut Vec<Uid>) {
        for owner in &node.owners {
            if let Some(set) = self.dependents.get_mut(&owner.uid) {
                set.remove(uid);
                if set.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
            if self
                .nodes
                .get(&owner.uid)
                .is_some_and(|o| matches!(o.leaving, Leaving::Foreground | Leaving::Orphan))
            {
                affected.push(owner.uid.clone());
            }
        }
    }

    /// The dependents of an object, and whether each keeps it from going.
    pub(crate) fn dependents(&self, uid: &str) -> Vec<(Uid, Node, bool)> {
        let set = self.dependents.get(uid).into_iter().flatten();
        set.filter_map(|dependent| {
            let node = self.nodes.get(dependent)?;
            let blocks = node.owners.iter().any(|o| &*o.uid == uid && o.blocks);
            Some((dependent.clone(), node.clone(), blocks))
        })
        .collect()
    }

    /// Sorts the owners of an object by what this graph knows of them.
    pub(crate) fn owners(&self, node: &Node) -> Owners {
        let mut owners = Owners::default();
        for owner in &node.owners {
            match self.nodes.get(&owner.uid) {
                None => owners.unknown.push(owner.clone()),
                Some(o) if o.leaving == Leaving::Foreground && owner.blocks => {
                    owners.waiting.push(owner.uid.clone())
                }
                Some(_) => owners.solid += 1,
            }
        }
        owners
    }
}

/// The owners of one object.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Owners {
    /// Living ones.
    pub(crate) solid: usize,
    /// Those that wait for the object to go first.
    pub(crate) waiting: Vec<Uid>,
    /// Those that are not in the graph: gone, or not seen yet.
    pub(crate) unknown: Vec<Owner>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn uid(n: u8) -> Uid {
        n.to_string().into()
    }

    fn node(owners: &[(u8, bool)], leaving: Leaving) -> Node {
        let owner = |(n, blocks): &(u8, bool)| Owner {
            uid: uid(*n),
            api_version: "v1".into(),
            kind: "Pod".into(),
            name: "x".into(),
            blocks: *blocks,
        };
        Node {
            resource: 0,
            namespace: None,
            name: "x".into(),
            owners: owners.iter().map(owner).collect(),
            leaving,
        }
    }

    #[test]
    fn who_has_to_be_looked_at() {
        let mut graph = Graph::default();
        assert!(graph.upsert(&uid(1), node(&[], Leaving::No)).is_empty(), "nothing to do for a free object");
        assert_eq!(graph.upsert(&uid(2), node(&[(1, true)], Leaving::No)), [uid(2)]);
        assert!(graph.upsert(&uid(2), node(&[(1, true)], Leaving::No)).is_empty(), "nothing changed");
        assert_eq!(graph.upsert(&uid(1), node(&[], Leaving::Foreground)), [uid(1), uid(2)]);
        assert_eq!(graph.owners(graph.get("2").expect("known")).waiting, [uid(1)]);
        assert_eq!(graph.remove("2"), [uid(1)], "the owner waited for it");
        graph.upsert(&uid(3), node(&[(1, false)], Leaving::No));
        assert_eq!(graph.remove("1"), [uid(3)]);
        assert_eq!(graph.owners(graph.get("3").expect("known")).unknown.len(), 1);
    }

    #[test]
    fn an_owner_that_does_not_wait_for_the_object_is_solid() {
        let mut graph = Graph::default();
        graph.upsert(&uid(1), node(&[], Leaving::Foreground));
        graph.upsert(&uid(2), node(&[(1, false)], Leaving::No));
        assert_eq!(graph.owners(graph.get("2").expect("known")).solid, 1);
    }

    proptest! {
        /// The index of dependents is always that of the edges.
        #[test]
        fn index_matches_edges(steps in prop::collection::vec((0u8..6, prop::collection::vec((0u8..6, any::<bool>()), 0..3), any::<bool>()), 0..50)) {
            let mut graph = Graph::default();
            for (n, owners, remove) in steps {
                if remove { graph.remove(&uid(n)); } else { graph.upsert(&uid(n), node(&owners, Leaving::No)); }
                let edges: usize = graph.nodes.values().map(|n| {
                    n.owners.iter().map(|o| &o.uid).collect::<HashSet<_>>().len()
                }).sum();
                prop_assert_eq!(graph.dependents.values().map(HashSet::len).sum::<usize>(), edges);
                prop_assert!(graph.dependents.values().all(|set| !set.is_empty()));
            }
        }
    }
}
