//! `netd cleanup` on a node, and what is on the node besides netd.

use anyhow::Result;
use lab::{Host, Output};

/// What the verb answers, whatever its exit status is.
pub(crate) fn cleanup(host: &Host, words: &[&str]) -> Result<Output> {
    host.command(lab::bin("netd")?).arg("cleanup").args(words).output()
}

/// Links, addresses, routes, neighbours, tunnels and rules of a node, without handles, counters and what is always there.
pub(crate) fn state(host: &Host) -> Result<String> {
    let script = "ip -br link | sed 's/@.*//' | cut -d' ' -f1; ip rule; ip -4 route show table all; ip -6 route | grep -v fe80; \
                  ip neigh show nud permanent; ip -6 neigh show nud permanent; nft -s list ruleset; \
                  for device in $(ls /sys/class/net | grep ^wg); do wg showconf $device; done";
    Ok(host.run(&["sh", "-c", script])?.stdout)
}

/// The files that netd may have left, or others beside them.
pub(crate) fn files(host: &Host) -> Result<Vec<String>> {
    let script = "find /run/netd /run/flannel /var/lib/netd -not -type d -o -path /run/netd/claims -prune";
    let mut files: Vec<String> =
        host.command("sh").args(["-c", script]).output()?.stdout.lines().map(str::to_owned).collect();
    files.sort();
    Ok(files)
}

/// Gives a node what an administrator and Docker have.
pub(crate) fn others_have(host: &Host) -> Result<()> {
    let script = "ip link add dummy9 type dummy; ip link set dummy9 up; ip route add 172.7.200.0/24 dev dummy9 proto 121; \
                  ip route add 172.7.201.0/24 dev dummy9; iptables -P FORWARD DROP; iptables -A FORWARD -d 203.0.113.1 -j DROP; \
                  nft add table inet theirs";
    host.run(&["sh", "-c", script]).map(drop)
}
