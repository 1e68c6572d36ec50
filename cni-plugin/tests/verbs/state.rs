//! The one comparator of what a node holds: links, addresses, routes, neighbours, nftables, state files.
//!
//! Left out is what the kernel changes by itself while nothing happens: whether a link carries, addresses and routes of
//! the link-local range, the age of a neighbour; and the content of the memory of the last address given out, which
//! outlives the Pod on purpose.

use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use kernel::Rtnl;

/// Everything of a node that a Pod could leave something in, one line each.
pub(crate) struct HostState(Vec<String>);

impl fmt::Debug for HostState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{}\n", self.0.join("\n"))
    }
}

impl HostState {
    /// What the calling thread's node holds now.
    pub(crate) fn now() -> Self {
        let mut lines = Vec::new();
        links_and_addresses(&mut lines);
        lines.extend(words_of("ip", &["-4", "neigh", "show"]).iter().filter_map(|line| neighbour(line)));
        lines.extend(words_of("ip", &["-6", "neigh", "show"]).iter().filter_map(|line| neighbour(line)));
        lines.sort();
        lines.extend(words_of("nft", &["list", "ruleset"]));
        files_below(Path::new("/var/lib/cni"), &mut lines);
        Self(lines)
    }

    /// A line each.
    pub(crate) fn lines(&self) -> &[String] {
        &self.0
    }

    /// Checks that `self`, taken now, is `before`; says only what differs. A neighbour may be gone: from 128 entries on in
    /// the whole kernel, all namespaces together, it drops those that nobody asked for.
    pub(crate) fn must_be(&self, before: &Self, when: &str) {
        let only = |a: &Self, b: &Self| a.0.iter().filter(|line| !b.0.contains(line)).cloned().collect::<Vec<_>>();
        let (more, mut less) = (only(self, before), only(before, self));
        less.retain(|line| !line.starts_with("neighbour "));
        let lasting = |state: &Self| state.0.iter().filter(|line| !line.starts_with("neighbour ")).cloned().collect();
        let (now, then): (Vec<String>, Vec<String>) = (lasting(self), lasting(before));
        assert!(more.is_empty() && now == then, "{when}: left over {more:#?}, gone {less:#?}");
    }
}

fn is_link_local(addr: &IpAddr) -> bool {
    matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local() || v6.is_multicast())
}

fn links_and_addresses(lines: &mut Vec<String>) {
    let mut host = Rtnl::open().unwrap();
    let links = host.links().unwrap();
    lines.extend(links.iter().map(|l| format!("link {} {:?} master {:?}", l.name, l.link, l.master_index)));
    for (index, addr, len) in host.addresses().unwrap().into_iter().filter(|(_, addr, _)| !is_link_local(addr)) {
        lines.push(format!("address {addr}/{len} on {index}"));
    }
    for (key, route) in host.routes().unwrap() {
        let text = format!("route {key} {route}");
        lines.extend(Some(text).filter(|text| !text.contains("fe80::") && !text.contains("ff00::")));
    }
}

/// Address, device and hardware address of a line of `ip neigh`; what the kernel has not resolved says nothing.
fn neighbour(line: &str) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let lladdr = words.iter().position(|word| *word == "lladdr")?;
    let addr: IpAddr = words.first()?.parse().ok()?;
    (!is_link_local(&addr)).then(|| format!("neighbour {}", words[..lladdr + 2].join(" ")))
}

fn words_of(program: &str, args: &[&str]) -> Vec<String> {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn files_below(dir: &Path, lines: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let meta = fs::symlink_metadata(&path).unwrap();
        let mode = meta.permissions().mode();
        let name = path.display().to_string();
        if meta.is_dir() {
            lines.push(format!("{mode:o} {name}/"));
            files_below(&path, lines);
        } else if meta.is_symlink() || meta.file_type().is_fifo() || name.contains("last_reserved_ip.") {
            lines.push(format!("{mode:o} {name}"));
        } else {
            lines.push(format!("{mode:o} {name} {:?}", String::from_utf8_lossy(&fs::read(&path).unwrap())));
        }
    }
}
