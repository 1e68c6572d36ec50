//! `netd cleanup` on a node, and what is on the node besides netd.

use anyhow::Result;
use lab::{Host, Output};

/// What flannel has in iptables-nft, and in nftables.
pub(crate) const RULES: &str = "
iptables -t nat -N FLANNEL-POSTRTG
iptables -t nat -A FLANNEL-POSTRTG -s 172.7.0.0/16 ! -d 224.0.0.0/4 -m comment --comment 'flanneld masq' -j MASQUERADE
iptables -t nat -A POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG
iptables -N FLANNEL-FWD
iptables -A FLANNEL-FWD -s 172.7.0.0/16 -m comment --comment 'flanneld forward' -j ACCEPT
iptables -A FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD
iptables -A FORWARD -s 172.7.0.0/16 -m comment --comment 'flanneld forward' -j ACCEPT
nft add table ip flannel-ipv4 '{ comment \"rules for flannel-ipv4\" ; }'
nft add chain ip flannel-ipv4 postrtg '{ type nat hook postrouting priority srcnat ; policy accept ; }'
nft add rule ip flannel-ipv4 postrtg meta mark 0x4000 return
nft add rule ip flannel-ipv4 postrtg ip saddr 172.7.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
nft add table ip6 flannel-ipv6
";

/// A node as flannel's vxlan backend leaves it, but for the rules.
pub(crate) const FLANNEL: &str = "
ip link add flannel.1 type vxlan id 1 dstport 8472 local 10.4.7.21 nolearning
ip address add 172.7.21.0/32 dev flannel.1
ip link set flannel.1 up
ip route add 172.7.22.0/24 via 172.7.22.0 dev flannel.1 onlink
ip route add 172.7.23.0/24 via 10.4.7.22
mkdir -p /run/flannel
printf 'FLANNEL_NETWORK=172.7.0.0/16\\nFLANNEL_SUBNET=172.7.21.1/24\\nFLANNEL_MTU=1450\\nFLANNEL_IPMASQ=true\\n' > /run/flannel/subnet.env
";

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
