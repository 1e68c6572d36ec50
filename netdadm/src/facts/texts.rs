//! Files that the checks read.
//!
//! Invariants: a file that is not there is not in the answer; of a large file no more than [`MOST`] bytes are read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::preflight;

/// Bytes of one file.
const MOST: u64 = 1 << 20;

/// Single files.
const FILES: [&str; 23] = [
    "/etc/fstab",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/ufw/ufw.conf",
    "/proc/cpuinfo",
    "/proc/swaps",
    "/proc/sys/fs/inotify/max_user_instances",
    "/proc/sys/fs/inotify/max_user_watches",
    "/proc/sys/kernel/hostname",
    "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
    "/proc/sys/net/bridge/bridge-nf-call-iptables",
    "/proc/sys/net/ipv4/conf/all/rp_filter",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/net/ipv4/ip_local_port_range",
    "/proc/sys/net/ipv4/ip_local_reserved_ports",
    "/proc/sys/net/ipv4/neigh/default/gc_thresh3",
    "/proc/sys/net/ipv6/conf/all/forwarding",
    "/proc/sys/net/ipv6/neigh/default/gc_thresh3",
    "/proc/sys/net/netfilter/nf_conntrack_max",
    "/sys/fs/cgroup/cgroup.controllers",
    "/sys/fs/selinux/enforce",
    "/sys/module/apparmor/parameters/enabled",
];

/// Those that are there below `root`, by their place on the host.
pub(super) fn below(root: &Path) -> BTreeMap<String, String> {
    let listed = preflight::folders().flat_map(|folder| listing(root, folder));
    let places = FILES.into_iter().chain(preflight::FILES).map(str::to_owned).chain(listed);
    places.filter_map(|place| Some((text(&on(root, &place))?, place))).map(|(text, place)| (place, text)).collect()
}

/// Those of the places that are there.
pub(super) fn paths(root: &Path) -> BTreeSet<String> {
    preflight::paths().filter(|place| on(root, place).exists()).map(str::to_owned).collect()
}

fn on(root: &Path, place: &str) -> PathBuf {
    root.join(place.trim_start_matches('/'))
}

fn listing(root: &Path, folder: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(on(root, folder)) else { return Vec::new() };
    entries.filter_map(|entry| Some(format!("{folder}/{}", entry.ok()?.file_name().to_str()?))).collect()
}

fn text(path: &Path) -> Option<String> {
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MOST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_below_a_root_are_known_by_their_place_on_the_host() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/sysctl.d/folder.conf")).unwrap();
        fs::create_dir_all(root.path().join("proc")).unwrap();
        fs::write(root.path().join("etc/sysctl.d/10-own.conf"), "a=1\n").unwrap();
        fs::write(root.path().join("proc/swaps"), b"Filename\xff\n").unwrap();
        let found = below(root.path());
        let places: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(places, ["/etc/sysctl.d/10-own.conf", "/proc/swaps"]);
        assert_eq!(found["/proc/swaps"], "Filename\u{fffd}\n");
        fs::create_dir_all(root.path().join("var/lib/etcd/member")).unwrap();
        assert_eq!(paths(root.path()), BTreeSet::from(["/var/lib/etcd/member".to_owned()]));
    }
}
