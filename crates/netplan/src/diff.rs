//! Scripts: a whole ruleset, and the way from one to another.
//!
//! One command per line, in an order in which every line only refers to what is there: declare, fill, delete. A
//! script is one transaction, so traffic sees the old ruleset or the new one and nothing between.

use crate::ruleset::{Names, Ruleset, frame};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The script that makes the table equal to a ruleset, whatever was in it before.
pub fn render(names: &Names, ruleset: &Ruleset) -> String {
    let table = &names.table;
    // Adding first makes the deletion valid when there is no table.
    let mut script = format!("add table ip {table}\ndelete table ip {table}\nadd table ip {table}\n");
    for line in frame(names) {
        script.push_str(&line);
        script.push('\n');
    }
    script.push_str(&diff(names, &Ruleset::default(), ruleset));
    script
}

/// The script that turns `old` into `new`; empty when they are equal.
pub fn diff(names: &Names, old: &Ruleset, new: &Ruleset) -> String {
    let mut script = Script { table: &names.table, text: String::new() };
    for (name, declaration) in added(&old.sets, &new.sets) {
        script.line(&["add set ip", script.table, name, declaration]);
    }
    for (name, _) in added(&old.chains, &new.chains) {
        script.line(&["add chain ip", script.table, name]);
    }
    for (name, rules) in &new.chains {
        script.rules(name, old.chains.get(name), rules);
    }
    for (map, elements) in &new.elements {
        let empty = BTreeMap::new();
        script.elements(map, old.elements.get(map).unwrap_or(&empty), elements);
    }
    for (map, elements) in added(&new.elements, &old.elements) {
        script.elements(map, elements, &BTreeMap::new());
    }
    // Chains refer to each other and to sets: all are emptied before any of them is deleted.
    for (name, _) in added(&new.chains, &old.chains) {
        script.line(&["flush chain ip", script.table, name]);
    }
    for (name, _) in added(&new.chains, &old.chains) {
        script.line(&["delete chain ip", script.table, name]);
    }
    for (name, _) in added(&new.sets, &old.sets) {
        script.line(&["delete set ip", script.table, name]);
    }
    script.text
}

/// The entries of `new` whose key `old` does not have.
fn added<'a, K: Ord, V>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    new.iter().filter(|(key, _)| !old.contains_key(key))
}

struct Script<'a> {
    table: &'a str,
    text: String,
}

impl Script<'_> {
    fn line(&mut self, words: &[&str]) {
        for (number, word) in words.iter().enumerate() {
            if number > 0 {
                self.text.push(' ');
            }
            self.text.push_str(word);
        }
        self.text.push('\n');
    }

    fn rules(&mut self, chain: &str, old: Option<&Vec<String>>, new: &Vec<String>) {
        if old == Some(new) {
            return;
        }
        if old.is_some_and(|rules| !rules.is_empty()) {
            self.line(&["flush chain ip", self.table, chain]);
        }
        for rule in new {
            self.line(&["add rule ip", self.table, chain, rule]);
        }
    }

    fn elements(&mut self, map: &str, old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) {
        let gone = old.iter().filter(|(key, value)| new.get(*key) != Some(value));
        self.element_line("delete", map, gone);
        let fresh = new.iter().filter(|(key, value)| old.get(*key) != Some(value));
        self.element_line("add", map, fresh);
    }

    fn element_line<'e>(
        &mut self,
        verb: &str,
        map: &str,
        elements: impl Iterator<Item = (&'e String, &'e String)>,
    ) {
        let mut separator = "{ ";
        for (number, (key, value)) in elements.enumerate() {
            if number == 0 {
                // Writing to a string cannot fail.
                let _ = write!(self.text, "{verb} element ip {} {map} ", self.table);
            }
            self.text.push_str(separator);
            self.text.push_str(key);
            if !value.is_empty() {
                let _ = write!(self.text, " : {value}");
            }
            separator = ", ";
        }
        if separator == ", " {
            self.text.push_str(" }\n");
        }
    }
}
