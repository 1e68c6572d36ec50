//! What is counted at a quiet point: memory, descriptors and threads of the veteran's daemons, and on all nodes together files of state,
//! namespaces, links, and what nftables and IPVS hold of ours.
//!
//! Invariant: connections that are tracked are not counted, nor are real servers of weight 0 that wait for the end of theirs; the kernel forgets
//! them in its own time.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::Process;

use crate::quiet::VIRTUAL;
use crate::world::{VETERAN, World};

/// Folders of state.
const FOLDERS: [&str; 6] =
    ["/run/netd", "/run/flannel", "/run/ipvs-proxy", "/var/lib/cni", "/var/lib/netd", "/var/lib/ipvs-proxy"];

pub(crate) fn all(world: &World) -> Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    let veteran = world.node(VETERAN)?;
    for (name, process) in [("netd", &veteran.netd), ("ipvs-proxy", &veteran.proxy)] {
        if let Some(process) = process {
            of_process(name, process, &mut counts)?;
        }
    }
    let mut add = |what: &str, count: u64| *counts.entry(what.to_owned()).or_default() += count;
    for name in world.joined() {
        let node = world.node(&name)?;
        add("files of state", FOLDERS.iter().map(|folder| files(&node.host.path(folder))).sum());
        add("namespaces of Pods", entries(&node.host.path("/run/netns")));
        add("links", node.sh("ls /sys/class/net")?.lines().count() as u64);
        let rules: serde_json::Value = serde_json::from_str(&node.sh("nft -j list ruleset")?)?;
        let (elements, others) = of_rules(&rules);
        add("nftables elements", elements);
        add("nftables tables, chains, sets and rules", others);
        if world.options.proxy == "ipvs" {
            let (virtual_servers, real_servers) = of_servers(&node.sh("ipvsadm -Sn")?);
            add("virtual servers", virtual_servers);
            add("real servers", real_servers);
            add("virtual addresses", node.sh(VIRTUAL)?.lines().count() as u64);
        }
    }
    Ok(counts)
}

fn of_process(name: &str, process: &Process, counts: &mut BTreeMap<String, u64>) -> Result<()> {
    let folder = format!("/proc/{}", process.pid());
    let status =
        std::fs::read_to_string(format!("{folder}/status")).with_context(|| format!("read {folder}/status"))?;
    let field = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let count = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        count.with_context(|| format!("no {key} in {folder}/status"))
    };
    // What it has of its own: the program's file, which is most of what is resident, is read page by page as it is needed.
    counts.insert(format!("{name} on {VETERAN}: KiB"), field("RssAnon:")?);
    counts.insert(format!("{name} on {VETERAN}: threads"), field("Threads:")?);
    // A folder that cannot be read would grow by nothing.
    let descriptors = entries(Path::new(&format!("{folder}/fd")));
    ensure!(descriptors > 0, "no descriptor in {folder}/fd");
    counts.insert(format!("{name} on {VETERAN}: descriptors"), descriptors);
    Ok(())
}

fn entries(folder: &Path) -> u64 {
    std::fs::read_dir(folder).map_or(0, |entries| entries.count() as u64)
}

/// Files in a folder and those below it.
fn files(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let count = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files(&entry.path()),
        _ => 1,
    };
    entries.flatten().map(count).sum()
}

/// Elements, and everything else, of all tables but the foreign one.
fn of_rules(ruleset: &serde_json::Value) -> (u64, u64) {
    let (mut elements, mut others) = (0, 0);
    let items = ruleset.get("nftables").and_then(serde_json::Value::as_array).into_iter().flatten();
    for (kind, item) in items.filter_map(serde_json::Value::as_object).flatten() {
        let table = item.get(if kind == "table" { "name" } else { "table" }).and_then(serde_json::Value::as_str);
        if table.is_none_or(|table| table == "theirs") {
            continue;
        }
        others += 1;
        // What packets put in leaves by itself, and since when a real server drains goes with its last connection.
        let flags = item.get("flags").map(ToString::to_string).unwrap_or_default();
        if flags.contains("timeout") || item.get("name").is_some_and(|name| name == "draining") {
            continue;
        }
        elements += item.get("elem").and_then(serde_json::Value::as_array).map_or(0, |elem| elem.len() as u64);
    }
    (elements, others)
}

/// Virtual servers, and real servers that get connections.
fn of_servers(rows: &str) -> (u64, u64) {
    let count =
        |form: &str| rows.lines().filter(|line| line.starts_with(form) && !line.ends_with(" -w 0")).count() as u64;
    (count("-A "), count("-a "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_counted_and_those_that_drain_are_not() {
        let rows = "-A -t 192.168.0.11:80 -s rr\n-a -t 192.168.0.11:80 -r 172.7.21.2:80 -m -w 1\n\
                    -a -t 192.168.0.11:80 -r 172.7.21.3:80 -m -w 0\n-A -u 192.168.0.11:80 -s rr\n";
        assert_eq!(of_servers(rows), (2, 1));
    }

    #[test]
    fn elements_of_our_tables_are_counted_and_foreign_ones_are_not() {
        let ruleset = serde_json::json!({"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"table": {"family": "ip", "name": "ipvs-proxy", "handle": 1}},
            {"map": {"family": "ip", "name": "endpoints", "table": "ipvs-proxy", "elem": [[1, 2], [3, 4]]}},
            {"set": {"family": "ip", "name": "itself", "table": "ipvs-proxy", "flags": ["timeout", "dynamic"], "elem": [1]}},
            {"set": {"family": "ip", "name": "draining", "table": "ipvs-proxy", "elem": [1, 2]}},
            {"rule": {"family": "ip", "table": "ipvs-proxy", "chain": "c", "expr": []}},
            {"table": {"family": "inet", "name": "theirs", "handle": 2}},
            {"set": {"family": "inet", "name": "denied", "table": "theirs", "elem": ["203.0.113.7"]}}]});
        assert_eq!(of_rules(&ruleset), (2, 5));
    }
}
