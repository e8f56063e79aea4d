//! Looking at a cluster from outside of everything that is tested: what runs, what is where, who asked
//! for what.

pub mod audit;
pub mod containers;
pub mod memory;
pub mod node;
pub mod objects;
pub mod prober;
pub mod processes;
pub mod running;

use std::collections::{BTreeMap, BTreeSet};

/// What something looked like at one moment: lines by section, so that two moments can be compared.
pub type Snapshot = BTreeMap<String, BTreeSet<String>>;

/// What is in one snapshot and not in the other: `-` was there before, `+` is there now.
pub fn difference(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let none = BTreeSet::new();
    let sections: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    sections
        .into_iter()
        .flat_map(|section| {
            let old = before.get(section).unwrap_or(&none);
            let new = after.get(section).unwrap_or(&none);
            let gone = old.difference(new).map(move |line| format!("- {section}: {line}"));
            let come = new.difference(old).map(move |line| format!("+ {section}: {line}"));
            gone.chain(come).collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(section: &str, lines: &[&str]) -> Snapshot {
        BTreeMap::from([(section.to_owned(), lines.iter().map(|line| (*line).to_owned()).collect())])
    }

    #[test]
    fn a_difference_names_the_section_and_the_direction() {
        let before = snapshot("files", &["/etc/a", "/etc/b"]);
        let after = snapshot("files", &["/etc/b", "/etc/c"]);
        assert_eq!(difference(&before, &after), ["- files: /etc/a", "+ files: /etc/c"]);
        assert!(difference(&before, &before).is_empty());
    }

    #[test]
    fn a_section_that_only_one_has_counts() {
        assert_eq!(
            difference(&snapshot("units", &[]), &snapshot("sockets", &["10261"])),
            ["+ sockets: 10261"]
        );
    }
}
