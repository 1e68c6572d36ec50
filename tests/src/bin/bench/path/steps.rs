//! What stands in the way of a packet, step by step: rules and settings that are put on both nodes of a ground.
//!
//! Invariant: each step says all of it, so that steps can be taken in any order.

use anyhow::Result;
use lab::{Host, Pod};

use super::ground::Ground;

/// As flannel has it for `172.7.0.0/16`.
const FORWARD: &str = "chain forward { type filter hook forward priority filter; policy accept;
  ip saddr 172.7.0.0/16 accept
  ip daddr 172.7.0.0/16 accept
}
";
/// As netd writes it for `172.7.0.0/16` (netd/src/plan/masquerade.rs); `OWN` is the node's subnet.
const POSTROUTING: &str = "chain postrouting { type nat hook postrouting priority srcnat; policy accept;
  meta mark & 0x00004000 == 0x00004000 return
  ip saddr 172.7.0.0/16 ip daddr 172.7.0.0/16 return
  ip daddr OWN return
  ip saddr 172.7.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
  ip saddr != 172.7.0.0/16 ip daddr 172.7.0.0/16 masquerade fully-random
}
";
/// The least that makes the kernel track connections.
const TRACKING: &str = "chain tracking { type filter hook postrouting priority filter; policy accept;
  ct state invalid counter
}
";
const TUNNEL: &str = "udp dport 8472 notrack";
const PODS: &str = "ip saddr 172.7.0.0/16 ip daddr 172.7.0.0/16 notrack";

/// One step.
#[derive(Debug, Clone, Default)]
pub(crate) struct Step {
    pub(crate) label: &'static str,
    /// Chains of a table of family ip.
    chains: String,
    /// Packets that are not tracked, as rules.
    untracked: &'static [&'static str],
    /// The same as packets arrive on a link, each before it meets anything else: links and rules.
    untracked_on: &'static [(&'static str, &'static str)],
    /// Established flows of Pods go by a flowtable.
    flowtable: bool,
    /// Packets on the bridge meet the rules for IP as well (`net.bridge.bridge-nf-call-iptables`).
    bridge_calls: bool,
    /// A Pod gives its kernel one packet at a time, not 64 KiB.
    single: bool,
}

impl Step {
    /// The rules of netd.
    pub(crate) fn masquerade() -> Self {
        Self {
            label: "masquerade chain, as netd writes it (tracks)",
            chains: POSTROUTING.to_owned(),
            ..Self::default()
        }
    }

    /// All steps; those with a flowtable where the kernel has it.
    pub(crate) fn all(flowtable: bool) -> Vec<Self> {
        let with = |label, chains: &[&str]| Self { label, chains: chains.concat(), ..Self::default() };
        let masquerade = |label| Self { label, ..Self::masquerade() };
        let mut steps = vec![
            with("the device alone", &[]),
            with("connections tracked", &[TRACKING]),
            with("forward chain", &[FORWARD]),
            Self::masquerade(),
            with("forward and masquerade chain, as flannel has them", &[FORWARD, POSTROUTING]),
            Self { untracked: &[TUNNEL], ..masquerade("masquerade chain, tunnel's packets untracked") },
            Self { untracked: &[PODS], ..masquerade("masquerade chain, Pod to Pod untracked") },
            Self { untracked: &[TUNNEL, PODS], ..masquerade("masquerade chain, neither tracked") },
            Self {
                untracked_on: &[("eth0", TUNNEL)],
                ..masquerade("masquerade chain, tunnel's packets untracked as they arrive")
            },
            Self {
                untracked_on: &[("eth0", TUNNEL), ("cbr0", PODS), ("flannel.1", PODS)],
                ..masquerade("masquerade chain, neither tracked as it arrives")
            },
        ];
        if flowtable {
            steps.push(Self { flowtable: true, ..masquerade("masquerade chain, flowtable") });
            steps.push(Self {
                flowtable: true,
                untracked: &[TUNNEL],
                ..masquerade("masquerade chain, flowtable, tunnel untracked")
            });
        }
        steps.extend([
            Self { single: true, ..with("the device alone, no segmentation offload", &[]) },
            Self { single: true, ..masquerade("masquerade chain, no segmentation offload") },
        ]);
        if std::path::Path::new("/proc/sys/net/bridge").is_dir() {
            steps.push(Self { bridge_calls: true, ..with("the device alone, br_netfilter on", &[]) });
            steps.push(Self { bridge_calls: true, ..masquerade("masquerade chain, br_netfilter on") });
        }
        steps
    }

    /// Takes the step on both nodes.
    pub(crate) fn take(&self, ground: &Ground) -> Result<()> {
        for (host, pod) in ground.nodes().zip(&ground.pods) {
            let own = format!("172.7.{}.0/24", host.address()?.octets()[3]);
            host.command("nft").args(["-f", "-"]).input(self.rules(&own)).run()?;
            self.set(host, pod)?;
        }
        Ok(())
    }

    fn set(&self, host: &Host, pod: &Pod) -> Result<()> {
        if std::path::Path::new("/proc/sys/net/bridge").is_dir() {
            let calls = format!("net.bridge.bridge-nf-call-iptables={}", u8::from(self.bridge_calls));
            host.run(&["sysctl", "-qw", &calls])?;
        }
        // GSO_MAX_SEGS of include/linux/netdevice.h.
        let segments = if self.single { "1" } else { "65535" };
        pod.run(&["ip", "link", "set", "eth0", "gso_max_segs", segments]).map(drop)
    }

    fn rules(&self, own: &str) -> String {
        let mut text = format!("flush ruleset\ntable ip netd {{\n{}}}\n", self.chains.replace("OWN", own));
        if !self.untracked.is_empty() {
            let rules = self.untracked.join("\n");
            text += &format!(
                "table ip untracked {{\nchain arriving {{ type filter hook prerouting priority raw;\n{rules}\n}}\n\
                 chain leaving {{ type filter hook output priority raw;\n{rules}\n}}\n}}\n"
            );
        }
        if !self.untracked_on.is_empty() {
            let chain = |(link, rule): &(&str, &str)| {
                let name = link.replace('.', "-");
                format!("chain {name} {{ type filter hook ingress device {link} priority filter;\n{rule}\n}}\n")
            };
            let chains: String = self.untracked_on.iter().map(chain).collect();
            text += &format!("table netdev arriving {{\n{chains}}}\n");
            text += &format!(
                "table ip leaving {{\nchain leaving {{ type filter hook output priority raw;\n{TUNNEL}\n}}\n}}\n"
            );
        }
        if self.flowtable {
            text += "table inet flows {\nflowtable pods { hook ingress priority filter; devices = { cbr0, flannel.1 };\n}\n\
                     chain forward { type filter hook forward priority filter; policy accept;\n\
                     ct state established ct direction original ip saddr 172.7.0.0/16 ip daddr 172.7.0.0/16 flow add @pods\n}\n}\n";
        }
        text
    }
}
