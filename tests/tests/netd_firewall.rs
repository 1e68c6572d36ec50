//! Firewalls of others on the way of Pods: what can be let pass does, comes back after they load their rules anew, and the
//! rest is named.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::{Host, Need, Pod, eventually};
use netd_node::{Net, SOON, VXLAN, pod};

/// Both nodes with a Pod each.
fn pods(net: &Net) -> Result<(Pod, Pod)> {
    Ok((pod(net.host("hdss7-21")?, "172.7.21")?, pod(net.host("hdss7-22")?, "172.7.22")?))
}

fn load(host: &Host, program: &str, rules: &str) -> Result<()> {
    host.command(program).input(rules.to_owned()).run().map(drop)
}

fn eventually_passes(web: &Pod) -> Result<()> {
    eventually(SOON, || web.run(&["ping", "-c1", "-W1", "172.7.22.2"]).map(drop))
}

fn eventually_warns(net: &Net, part: &str) -> Result<()> {
    eventually(SOON, || {
        let warnings = net.status("hdss7-21")?["warnings"].to_string();
        ensure!(warnings.contains(part), "{warnings}");
        Ok(())
    })
}

/// As RHEL's iptables-services leave it: policies that accept, and a last rule that rejects.
const LAST_RULE: &str = "*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -i lo -j ACCEPT
-A FORWARD -j REJECT --reject-with icmp-host-prohibited
COMMIT
";

/// As Docker and ufw leave it: a policy that drops, with chains of their own before it.
const POLICY: &str = "*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER-USER - [0:0]
:ufw-before-forward - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j ufw-before-forward
-A DOCKER-USER -s 172.7.21.66/32 -j DROP
-A DOCKER-USER -j RETURN
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
";

fn pods_pass_chains_that_reject_without_a_policy_and_they_are_named() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    load(host, "iptables-restore", LAST_RULE)?;
    let _netd = net.both()?;
    let (web, _server) = pods(&net)?;
    eventually_passes(&web)?;
    eventually_warns(&net, "foreign chain ip filter FORWARD drops forwarded packets by its last rule")?;
    // The same in nftables' own words, loaded while the daemon runs.
    let table = "table inet theirs {\nchain forward {\ntype filter hook forward priority 0; policy accept;\n\
                 ct state invalid drop\nreject with icmpx type admin-prohibited\n}\n}\n";
    host.command("nft").args(["-f", "-"]).input(table.to_owned()).run()?;
    eventually_warns(&net, "inet theirs forward")?;
    eventually_passes(&web)
}

fn pods_pass_again_after_a_firewall_has_loaded_its_rules_anew() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.both()?;
    let (web, _server) = pods(&net)?;
    let host = net.host("hdss7-21")?;
    for rules in [POLICY, LAST_RULE, POLICY] {
        load(host, "iptables-restore", rules)?;
        eventually_passes(&web)?;
    }
    // What its owner denies stays denied.
    web.run(&["ip", "address", "add", "172.7.21.66/24", "dev", "eth0"])?;
    ensure!(web.run(&["ping", "-c1", "-W1", "-I", "172.7.21.66", "172.7.22.2"]).is_err(), "a denial was overruled");
    Ok(())
}

fn tables_of_iptables_legacy_are_named_with_the_commands_that_help() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    host.run(&["iptables-legacy", "-P", "FORWARD", "DROP"])?;
    let _netd = net.both()?;
    let (web, _server) = pods(&net)?;
    ensure!(web.run(&["ping", "-c1", "-W1", "172.7.22.2"]).is_err(), "the policy does not work here");
    eventually_warns(
        &net,
        "FORWARD of iptables-legacy drops what is forwarded by policy, and netd cannot write there",
    )?;
    eventually_warns(&net, "iptables-legacy -A FORWARD -s 172.7.0.0/16 -j ACCEPT")?;
    let found = || {
        let found = host.command(lab::bin("netd")?).args(["doctor"]).output()?.stdout;
        Ok::<_, anyhow::Error>(found.contains("PROBLEM  firewall     FORWARD of iptables-legacy drops"))
    };
    ensure!(found()?, "doctor does not find it");
    for way in ["-s", "-d"] {
        host.run(&["iptables-legacy", "-A", "FORWARD", way, "172.7.0.0/16", "-j", "ACCEPT"])?;
    }
    eventually_passes(&web)?;
    ensure!(!found()?, "doctor finds what is mended");
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            pods_pass_chains_that_reject_without_a_policy_and_they_are_named,
            pods_pass_again_after_a_firewall_has_loaded_its_rules_anew,
            tables_of_iptables_legacy_are_named_with_the_commands_that_help,
        ],
    )
}
