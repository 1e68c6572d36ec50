//! Nouns that exist once, and variants that stay in their room.

use std::collections::BTreeMap;

use super::{product, sources};

/// Nouns of the workspace: one of each, not one per program.
const ONCE: [&str; 4] = ["Owner", "Status", "Problem", "Problems"];

/// Names that stay out of a folder, and why.
const ELSEWHERE: [(&str, &str, &str); 5] = [
    ("ipvs-proxy/src/plan", "netstate::ipvs", "the plan is neutral of the data path"),
    ("ipvs-proxy/src/plan", "netstate::nft", "the plan is neutral of the data path"),
    ("ipvs-proxy/src/object", "netstate::ipvs", "an object is neutral of the data path"),
    ("netd/src", "Backend::Vxlan", "only plan/backend/mod.rs knows one backend from another"),
    ("netd/src", "Backend::HostGw", "only plan/backend/mod.rs knows one backend from another"),
];

/// Where each of [`ELSEWHERE`] may stand all the same.
const ROOM: &str = "netd/src/plan/backend/";

/// Nouns that are declared twice, variants outside of their rooms, and families that are known by a flag.
pub(crate) fn misplaced() -> Vec<String> {
    let mut found = Vec::new();
    let mut declared: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for source in product().iter().flat_map(|folder| sources(folder)) {
        let code = source.code();
        for (folder, name, why) in ELSEWHERE {
            if source.path.starts_with(folder) && !source.path.starts_with(ROOM) && code.contains(name) {
                found.push(format!("{} names {name}: {why}", source.path));
            }
        }
        for (number, line) in &source.lines {
            let line = line.split("//").next().unwrap_or_default();
            if ["v4: bool", "v6: bool", "[true, false]"].iter().any(|flag| names(line, flag)) {
                found.push(format!("{}:{number} has a flag for an IpFamily: {}", source.path, line.trim()));
            }
            let noun =
                ["struct ", "enum ", "type "].iter().find_map(|kind| line.split_once(kind)).map_or("", |(_, rest)| {
                    rest.split(|letter: char| !letter.is_alphanumeric()).next().unwrap_or_default()
                });
            if let Some(once) = ONCE.iter().find(|once| **once == noun) {
                declared.entry(once).or_default().push(format!("{}:{number}", source.path));
            }
        }
    }
    for (noun, places) in declared.into_iter().filter(|(_, places)| places.len() > 1) {
        found.extend(places.iter().map(|place| format!("{place} declares {noun}, one of {}", places.len())));
    }
    found
}

/// Whether `flag` stands in a line as a name of its own: `has_v4: bool` is another one.
fn names(line: &str, flag: &str) -> bool {
    line.match_indices(flag)
        .any(|(at, _)| !line[..at].ends_with(|letter: char| letter.is_alphanumeric() || letter == '_'))
}
