//! Purity by room, transitively: a pure room names no IO and imports pure rooms only.

use super::{Source, sources};

/// Crates that are pure as a whole.
const PURE_CRATES: [&str; 2] = ["lib/netstate/src", "lib/reconcile/src"];

/// The pure rooms of the programs.
pub(crate) const PURE_ROOMS: [(&str, &[&str]); 4] = [
    ("netd/src", &["format", "choose", "page", "plan"]),
    ("ipvs-proxy/src", &["object", "plan"]),
    ("cni-plugin/src", &["protocol", "plan"]),
    ("netdadm/src", &["document", "topology", "check", "render", "preflight"]),
];

/// What pure code may not name: IO, clocks, logs, and the crates that do them.
const IMPURE: [&str; 21] = [
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::os",
    "std::process",
    "std::thread",
    "std::env",
    "std::io::stdin",
    "Instant::now",
    "SystemTime",
    "tokio",
    "tracing::",
    "log::",
    "nix::",
    "libc::",
    "kernel::",
    "cluster::",
    "daemon::",
    "rtnetlink::",
    "etcd_client",
    "hyper::",
];

/// Pure nouns of a crate that does IO otherwise, and the module that they come from, which is pure as well.
const NOUNS: [(&str, &str); 7] = [
    ("cluster::Problem", "lib/cluster/src/problem"),
    ("cluster::problem", "lib/cluster/src/problem"),
    ("cluster::Problems", "lib/cluster/src/problem"),
    ("cluster::manifest", "lib/cluster/src/manifest"),
    ("cluster::text", "lib/cluster/src/text"),
    ("cluster::time", "lib/cluster/src/time"),
    ("daemon::doctor", "lib/daemon/src/doctor"),
];

/// Impure names in pure code, and imports from rooms that are not pure.
pub(crate) fn impurities() -> Vec<String> {
    let mut found = Vec::new();
    for folder in PURE_CRATES {
        let files = sources(folder);
        assert!(!files.is_empty(), "{folder} has no sources");
        found.extend(files.iter().flat_map(impure_names));
    }
    let modules: Vec<Source> = ["lib/cluster/src", "lib/daemon/src"].into_iter().flat_map(sources).collect();
    for (noun, module) in NOUNS {
        let of_module: Vec<&Source> = modules.iter().filter(|source| source.path.starts_with(module)).collect();
        assert!(!of_module.is_empty(), "{noun} has no module {module}");
        // A manifest is read on a stack of its own; the thread lives no longer than the call.
        let impure = of_module.into_iter().flat_map(impure_names);
        found.extend(impure.filter(|line| !line.ends_with("manifest.rs names std::thread")));
    }
    for (program, rooms) in PURE_ROOMS {
        for room in rooms {
            let folder = format!("{program}/{room}");
            let files = sources(&folder);
            assert!(!files.is_empty(), "{folder} has no sources");
            found.extend(files.iter().flat_map(impure_names));
            found.extend(files.iter().flat_map(|file| foreign_imports(file, rooms)));
        }
    }
    found
}

fn impure_names(source: &Source) -> Vec<String> {
    let code = source.code();
    let names = |name: &&&str| {
        code.match_indices(**name).any(|(at, _)| {
            let before = code[..at].chars().next_back().unwrap_or(' ');
            let noun = NOUNS.iter().any(|(noun, _)| code[at..].starts_with(noun));
            // `netstate::kernel::` would be another's module, `my_kernel::` another name.
            !noun && !before.is_alphanumeric() && before != '_' && before != ':'
        })
    };
    IMPURE.iter().filter(names).map(|name| format!("{} names {name}", source.path)).collect()
}

fn foreign_imports(source: &Source, rooms: &[&str]) -> Vec<String> {
    let module = source.module();
    let mut found = Vec::new();
    for path in own_paths(&source.code()) {
        let Some(resolved) = resolve(&path, &module) else { continue };
        let room = resolved.first().map(String::as_str).unwrap_or_default();
        if !rooms.contains(&room) {
            found.push(format!("{} uses {}", source.path, path.join("::")));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// A path from the root of its crate; `None` for one that stays in an inner module of its file.
fn resolve(path: &[String], module: &[String]) -> Option<Vec<String>> {
    let ups = path.iter().take_while(|part| *part == "super").count();
    match path.first().map(String::as_str) {
        Some("crate") => Some(path[1..].to_vec()),
        Some("super") if ups <= module.len() => Some([&module[..module.len() - ups], &path[ups..]].concat()),
        _ => None,
    }
}

/// The paths in `code` that begin at the crate or above the module, with groups of a `use` taken apart.
fn own_paths(code: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back().unwrap_or(' ');
            if before.is_alphanumeric() || before == '_' || before == ':' || before == '$' {
                continue;
            }
            expand(&code[at..], &[], &mut paths);
        }
    }
    paths
}

/// Reads one path at the beginning of `text`; a group in braces gives several. Returns how much was read.
fn expand(text: &str, prefix: &[String], paths: &mut Vec<Vec<String>>) -> usize {
    let (mut path, mut at) = (prefix.to_vec(), 0);
    loop {
        let rest = &text[at..];
        let length = rest.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').count();
        if length > 0 {
            path.push(rest[..length].to_owned());
            at += length;
        } else if rest.starts_with('{') {
            at += 1;
            loop {
                at += text[at..].chars().take_while(|letter| letter.is_whitespace() || *letter == ',').count();
                if text[at..].starts_with('}') || text[at..].is_empty() {
                    return at + 1;
                }
                let read = expand(&text[at..], &path, paths);
                // `self`, `as name` and glob imports end here as well.
                at += read.max(1);
                at += text[at..].chars().take_while(|letter| *letter != ',' && *letter != '}').count();
            }
        }
        if text[at..].starts_with("::") {
            at += 2;
        } else {
            paths.push(path);
            return at;
        }
    }
}

/// The reader, shown on the forms that occur.
pub(crate) fn check_reader() {
    let mut paths =
        own_paths("use crate::{format::Lease, plan::{self, Peers}}; let x = super::super::run::f(1); netd::crate_x();");
    paths.sort();
    let joined: Vec<String> = paths.iter().map(|path| path.join("::")).collect();
    let wanted = ["crate::format::Lease", "crate::plan::Peers", "crate::plan::self", "super::super::run::f"];
    assert!(wanted.iter().all(|path| joined.iter().any(|found| found == path)), "{joined:?}");
    let module = ["plan".to_owned(), "backend".to_owned()];
    assert_eq!(resolve(&paths[paths.len() - 1], &module).unwrap(), ["run", "f"]);
}
