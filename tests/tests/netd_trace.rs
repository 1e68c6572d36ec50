//! `netd trace` on two nodes: what a packet meets, from both ends, and where a real one was last seen.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result, ensure};
use lab::{Host, Need, eventually};
use netd_node::tracing::{POD_TO_POD, expect, output, passes_and_is_watched, trace};
use netd_node::{HOST_GW, Net, SOON, VXLAN, pod};
use serde_json::Value;

const DUAL: &str =
    r#"{"Network":"172.7.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:7::/48","Backend":{"Type":"vxlan"}}"#;

fn healthy_path_is_shown_from_both_ends() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let _both = net.both()?;
    let (_web, _other) = (pod(here, "172.7.21")?, pod(there, "172.7.22")?);
    let before = here.run(&["nft", "-s", "list", "ruleset"])?.stdout;
    let steps = passes_and_is_watched(here)?;
    for step in [
        ["here", "pod", "ok", "eth0 in /run/netns/cni-web, MTU 1500"],
        ["here", "pod route", "ok", "0.0.0.0/0 via 172.7.21.1 dev eth0"],
        ["here", "veth", "ok", "pod0, port of cbr0"],
        ["here", "bridge", "ok", "cbr0 has 172.7.21.1"],
        ["here", "route", "ok", "172.7.22.0/24 via 172.7.22.0 dev flannel.1 onlink proto 121"],
        ["here", "device", "note", "flannel.1 vxlan id 1 dstport 8472 local 10.4.7.21"],
        ["here", "neighbour", "ok", "172.7.22.0 lladdr "],
        ["here", "tunnel end", "ok", "dev flannel.1 dst 10.4.7.22"],
        ["here", "outer route", "ok", "10.4.7.22 by 10.4.7.0/24 dev eth0"],
        ["here", "last seen", "ok", "left by eth0, wrapped from 10.4.7.21 to 10.4.7.22"],
        ["here", "answer", "ok", "left by cbr0"],
        ["here", "probe", "ok", "172.7.22.2:80/tcp is reached; nobody is at that port"],
        ["10.4.7.22", "route", "ok", "172.7.21.0/24 via 172.7.21.0 dev flannel.1"],
        ["10.4.7.22", "tunnel end", "ok", "dst 10.4.7.21"],
        ["10.4.7.22", "last seen", "ok", "left by cbr0"],
        ["10.4.7.22", "answer", "ok", "left by eth0, wrapped from 10.4.7.22 to 10.4.7.21"],
    ] {
        expect(&steps, step)?;
    }
    for host in [here, there] {
        ensure!(!host.run(&["nft", "list", "tables"])?.stdout.contains("netd-trace"), "the table stays");
    }
    ensure!(here.run(&["nft", "-s", "list", "ruleset"])?.stdout == before);
    let text = output(here, &POD_TO_POD)?.stdout;
    ensure!(
        text.starts_with("172.7.21.2 to 172.7.22.2:80/tcp: passes\n") && text.contains("\n-- 10.4.7.22\n"),
        "{text}"
    );
    // Two at once: the node watches one behind the other.
    let both = thread::scope(|scope| {
        let traces = [(); 2].map(|()| scope.spawn(|| trace(here, &POD_TO_POD)));
        traces.map(|one| one.join().unwrap())
    });
    for one in both {
        expect(&one?.0, ["10.4.7.22", "last seen", "ok", "left by cbr0"])?;
    }
    // Without `to`: from this host to it, here and there; and to a host and outside.
    for words in [&["172.7.22.2"][..], &["172.7.21.2"], &["10.4.7.22"], &["172.7.21.2", "to", "10.4.7.200:9"]] {
        let (steps, passes) = trace(here, words)?;
        ensure!(passes, "{words:?}: {steps:#?}");
    }
    Ok(())
}

fn rule_that_drops_is_named_on_either_node() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let _both = net.both()?;
    let (_web, _other) = (pod(here, "172.7.21")?, pod(there, "172.7.22")?);
    passes_and_is_watched(here)?;
    let table = "nft add table inet theirs; nft add chain inet theirs pass '{ type filter hook forward priority 5; }'; nft add rule inet theirs pass";
    for (on, node, rule, names, outcome) in [
        (
            here,
            "here",
            "tcp dport 80 counter drop comment '\"audit\"'",
            "inet theirs pass (\"audit\") dropped the probe",
            "a rule of this node",
        ),
        (
            there,
            "10.4.7.22",
            "tcp dport 80 drop",
            "of inet theirs pass dropped the probe",
            "a rule of the other node dropped it",
        ),
        (
            there,
            "10.4.7.22",
            "tcp sport 80 drop",
            "of inet theirs pass dropped its answer",
            "a rule of the other node dropped its answer",
        ),
        (here, "here", "tcp dport 80 reject", "of inet theirs pass dropped the probe", "rejected on the way"),
    ] {
        on.run(&["sh", "-ec", &format!("{table} {rule}")])?;
        let (steps, passes) = trace(here, &POD_TO_POD)?;
        ensure!(!passes, "{rule}: {steps:#?}");
        expect(&steps, [node, "rule", "wrong", names]).with_context(|| rule.to_owned())?;
        let listed = on.run(&["nft", "-a", "list", "chain", "inet", "theirs", "pass"])?.stdout;
        let line = listed.lines().find(|line| line.contains("port 80")).context("the rule")?;
        let handle = line.rsplit(' ').next().context("its handle")?;
        expect(&steps, [node, "rule", "wrong", &format!("rule {handle} of inet theirs")])?;
        expect(&steps, ["here", "probe", "wrong", outcome]).with_context(|| rule.to_owned())?;
        on.run(&["nft", "delete", "table", "inet", "theirs"])?;
    }
    // Rules of iptables-nft are nftables' as well.
    here.run(&[
        "iptables",
        "-A",
        "FORWARD",
        "-s",
        "172.7.21.2",
        "-m",
        "comment",
        "--comment",
        "quarantine",
        "-j",
        "DROP",
    ])?;
    let (steps, passes) = trace(here, &POD_TO_POD)?;
    ensure!(!passes);
    expect(&steps, ["here", "rule", "wrong", "of ip filter FORWARD (\"quarantine\") dropped the probe"])
}

fn entry_that_is_gone_is_named() -> Result<()> {
    for (config, faults) in [
        (
            VXLAN,
            &[
                (
                    "bridge fdb del $(bridge fdb show dev flannel.1 | sed 's/ .*//' | head -1) dev flannel.1 dst 10.4.7.22",
                    "tunnel end",
                    "no forwarding entry",
                ),
                (
                    "ip neigh del 172.7.22.0 dev flannel.1",
                    "neighbour",
                    "172.7.22.0 has no hardware address on flannel.1",
                ),
                ("ip route del 172.7.22.0/24", "route", "172.7.22.2 is in the Pod network, but "),
            ][..],
        ),
        (HOST_GW, &[("ip route del 172.7.22.0/24", "route", "172.7.22.2 is in the Pod network, but ")][..]),
    ] {
        let net = Net::start(config)?;
        let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
        let [netd, _other] = net.both()?;
        let (_web, _other_pod) = (pod(here, "172.7.21")?, pod(there, "172.7.22")?);
        passes_and_is_watched(here)?;
        // A daemon that runs puts it back within a second.
        netd.kill()?;
        let (steps, passes) = trace(here, &POD_TO_POD)?;
        ensure!(passes, "without a daemon: {steps:#?}");
        here.run(&["sh", "-c", "ip route add default via 10.4.7.200 || true"])?;
        for (fault, part, words) in faults {
            here.run(&["sh", "-ec", fault])?;
            let (steps, passes) = trace(here, &POD_TO_POD)?;
            ensure!(!passes, "{fault}: {steps:#?}");
            expect(&steps, ["here", part, "missing", words]).with_context(|| (*fault).to_owned())?;
        }
    }
    Ok(())
}

fn node_that_is_down_is_where_the_packet_was_last_sent() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let _both = net.both()?;
    let _web = pod(here, "172.7.21")?;
    here.run(&["ip", "neigh", "replace", "10.4.7.22", "lladdr", "02:00:00:00:00:22", "dev", "eth0"])?;
    there.run(&["ip", "link", "set", "eth0", "down"])?;
    let (steps, passes) = trace(here, &POD_TO_POD)?;
    ensure!(!passes);
    expect(&steps, ["here", "other end", "note", "10.4.7.22 does not say what it sees"])?;
    expect(
        &steps,
        ["here", "probe", "wrong", "left by eth0, wrapped from 10.4.7.21 to 10.4.7.22 and nothing came back"],
    )
}

fn pods_are_found_by_name_and_what_is_no_pod_is_said() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let here = net.host("hdss7-21")?;
    let _both = net.both()?;
    let _web = pod(here, "172.7.21")?;
    let cached = r#"{"kind":"cniCacheV1","containerId":"0123456789ab","ifName":"eth0","networkName":"cbr0",
        "cniArgs":[["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","web"]],"result":{"ips":[{"address":"172.7.21.2/24"}]}}"#;
    here.run(&["mkdir", "-p", "/var/lib/cni/results"])?;
    here.write("/var/lib/cni/results/cbr0-0123456789ab-eth0", cached)?;
    for name in ["shop/web", "web", "0123456789ab"] {
        let (steps, passes) = trace(here, &[name, "to", "10.4.7.22"])?;
        ensure!(passes, "{name}: {steps:#?}");
        expect(&steps, ["here", "veth", "ok", "pod0, port of cbr0"])?;
    }
    for (words, part) in [
        (&["nobody"][..], "no Pod of this node is called \"nobody\""),
        (&["web", "for", "10.4.7.22"], "accepted: netd trace POD|IP [to IP:PORT]"),
        (&["web", "to", "10.4.7.22:"], "accepted: IP, IP:PORT"),
        (&["172.7.22.9", "to", "10.4.7.22"], "is a Pod of the node 10.4.7.22: trace from there"),
        (&["172.7.21.2", "to", "fd00::1"], "of different families"),
    ] {
        let refused = output(here, words)?;
        ensure!(refused.status.code() == Some(2) && refused.stderr.contains(part), "{words:?}: {refused:?}");
    }
    // An address of this node's subnet that no Pod has.
    let (steps, passes) = trace(here, &["172.7.21.77", "to", "10.4.7.22"])?;
    ensure!(!passes);
    expect(&steps, ["here", "pod", "missing", "no network namespace on this node has 172.7.21.77"])?;
    // The status follows the lease by up to half a second.
    eventually(SOON, || {
        let (steps, passes) = trace(here, &["172.7.21.2", "to", "172.7.21.77:80"])?;
        ensure!(!passes);
        expect(&steps, ["here", "receiver", "missing", "no network namespace of this node has 172.7.21.77"])
    })?;
    // A Pod whose other end was taken off the bridge.
    here.run(&["ip", "link", "set", "pod0", "down"])?;
    let (steps, passes) = trace(here, &["web", "to", "10.4.7.22"])?;
    ensure!(!passes);
    expect(&steps, ["here", "veth", "wrong", "pod0, port of cbr0, down"])
}

fn ipv6_is_traced_and_a_tunnel_that_does_not_fit_is_named() -> Result<()> {
    let net = Net::start(DUAL)?;
    for n in ["21", "22"] {
        let address = format!("fd00:10:4:7::{n}/64");
        net.host(&format!("hdss7-{n}"))?.run(&["ip", "-6", "address", "add", &address, "dev", "eth0", "nodad"])?;
    }
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let _both = net.both()?;
    let (_web, _other) = (pod(here, "172.7.21")?, pod(there, "172.7.22")?);
    let subnet = |host: &Host| -> Result<String> {
        let file = host.read("/run/flannel/subnet.env")?;
        let line = file.lines().find_map(|line| line.strip_prefix("FLANNEL_IPV6_SUBNET=")).context("IPv6 subnet")?;
        Ok(line.trim_end_matches("::1/64").to_owned())
    };
    let (own, other) = (subnet(here)?, subnet(there)?);
    for (host, net) in [(here, &own), (there, &other)] {
        let script = format!(
            "ip address add {net}::1/64 dev cbr0 nodad; ip -n cni-web address add {net}::2/64 dev eth0 nodad; \
             ip -n cni-web -6 route add default via {net}::1"
        );
        host.run(&["sh", "-ec", &script])?;
    }
    let (source, target) = (format!("{own}::2"), format!("[{other}::2]:80"));
    let words = [source.as_str(), "to", target.as_str()];
    let steps = eventually(SOON, || {
        let (steps, passes) = trace(here, &words)?;
        let watched = steps.iter().any(|step| step["node"] == "fd00:10:4:7::22" && step["part"] == "last seen");
        ensure!(passes && watched, "{steps:#?}");
        Ok(steps)
    })?;
    expect(&steps, ["here", "device", "note", "flannel-v6.1 vxlan"])?;
    expect(&steps, ["here", "last seen", "ok", "left by eth0, wrapped from fd00:10:4:7::21 to fd00:10:4:7::22"])?;
    let rule = "nft add table ip6 theirs; nft add chain ip6 theirs pass '{ type filter hook forward priority 5; }'; nft add rule ip6 theirs pass tcp dport 80 drop";
    there.run(&["sh", "-ec", rule])?;
    let (steps, passes) = trace(here, &words)?;
    ensure!(!passes);
    ensure!(steps.iter().any(|step| step["part"] == "rule" && step["node"] != "here"), "{steps:#?}");
    here.run(&["ip", "link", "set", "eth0", "mtu", "1400"])?;
    let (steps, _) = trace(here, &POD_TO_POD)?;
    let fits = |step: &Value| step["part"] == "outer route" && step["verdict"] == "wrong";
    let device =
        |step: &Value| step["part"] == "device" && step["found"].as_str().is_some_and(|text| text.contains("MTU 1350"));
    ensure!(steps.iter().any(|step| fits(step) || device(step)), "{steps:#?}");
    Ok(())
}

/// Only what has the tunnel's source, protocol and port meets the rule: the nodes reach each other otherwise.
fn rule_that_takes_the_tunnels_own_packets_is_named_by_trace_and_doctor() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let _both = net.both()?;
    let (_web, _other) = (pod(here, "172.7.21")?, pod(there, "172.7.22")?);
    passes_and_is_watched(here)?;
    let rule = "from 10.4.7.21 ipproto udp dport 8472 lookup 77";
    here.run(&["sh", "-ec", &format!("ip route add unreachable default table 77; ip rule add pref 100 {rule}")])?;
    let (steps, passes) = trace(here, &POD_TO_POD)?;
    ensure!(!passes, "{steps:#?}");
    expect(
        &steps,
        ["here", "outer route", "missing", "no route for the tunnel's packets to the node 10.4.7.22: No route to host"],
    )?;
    let doctor =
        || Ok::<_, anyhow::Error>(here.command(lab::bin("netd")?).arg("doctor").limit(3 * SOON).output()?.stdout);
    let found = doctor()?;
    for part in [
        "PROBLEM  outer        flannel.1: its packets from 10.4.7.21 to 10.4.7.22 have no route: No route to host",
        "`ip route get 10.4.7.22 from 10.4.7.21 ipproto udp dport 8472`",
    ] {
        ensure!(found.contains(part), "no {part:?}: {found}");
    }
    // Another table that leads there is as good, and shown.
    here.run(&["ip", "route", "replace", "default", "dev", "eth0", "table", "77"])?;
    let steps = passes_and_is_watched(here)?;
    expect(&steps, ["here", "outer route", "ok", "10.4.7.22 by 0.0.0.0/0 dev eth0 "])?;
    expect(&steps, ["here", "outer route", "ok", " table 77, by a rule of `ip rule`"])?;
    let found = doctor()?;
    ensure!(found.contains("ok       outer        tunnels have a route to every node"), "{found}");
    Ok(())
}

/// As kube-proxy's nftables and iptables modes translate.
fn service_of_nftables_is_followed_to_the_endpoint_that_its_rules_choose() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let _both = net.both()?;
    let (_web, _other) = (pod(here, "172.7.21")?, pod(there, "172.7.22")?);
    passes_and_is_watched(here)?;
    // The host of the packet has no route for a Service's address of its own.
    here.run(&["sh", "-c", "ip route add default via 10.4.7.200 || true"])?;
    let native = "nft add table ip kube-proxy; nft add chain ip kube-proxy pre '{ type nat hook prerouting priority -100; }'; \
                  nft add rule ip kube-proxy pre ip daddr 192.168.0.10 tcp dport 80 dnat to 172.7.22.2:8080";
    let iptables = "nft delete table ip kube-proxy; \
                    iptables -t nat -A PREROUTING -d 192.168.0.10 -p tcp --dport 80 -j DNAT --to-destination 172.7.22.2:8080";
    for rules in [native, iptables] {
        here.run(&["sh", "-ec", rules])?;
        let (steps, passes) = trace(here, &["172.7.21.2", "to", "192.168.0.10:80"])?;
        ensure!(passes, "{steps:#?}");
        for step in [
            ["here", "service", "ok", "rules of this host send it to 172.7.22.2:8080; what follows is the way there"],
            ["here", "route", "ok", "172.7.22.0/24 via 172.7.22.0 dev flannel.1"],
            ["here", "tunnel end", "ok", "dst 10.4.7.22"],
            ["here", "translated", "ok", "to 172.7.22.2:8080"],
            ["here", "last seen", "ok", "left by eth0, wrapped from 10.4.7.21 to 10.4.7.22"],
            ["10.4.7.22", "last seen", "ok", "left by cbr0"],
            ["here", "probe", "ok", "192.168.0.10:80/tcp is reached; nobody is at that port"],
        ] {
            expect(&steps, step)?;
        }
    }
    // No endpoint: the rule that says so is named.
    here.run(&["sh", "-ec", "iptables -t nat -F PREROUTING; iptables -I FORWARD -d 192.168.0.10 -j REJECT"])?;
    let (steps, passes) = trace(here, &["172.7.21.2", "to", "192.168.0.10:80"])?;
    ensure!(!passes);
    expect(&steps, ["here", "rule", "wrong", "of ip filter FORWARD dropped the probe"])
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables, Need::Vxlan],
        lab::tests![
            healthy_path_is_shown_from_both_ends,
            rule_that_drops_is_named_on_either_node,
            entry_that_is_gone_is_named,
            node_that_is_down_is_where_the_packet_was_last_sent,
            pods_are_found_by_name_and_what_is_no_pod_is_said,
            ipv6_is_traced_and_a_tunnel_that_does_not_fit_is_named,
            rule_that_takes_the_tunnels_own_packets_is_named_by_trace_and_doctor,
            service_of_nftables_is_followed_to_the_endpoint_that_its_rules_choose,
        ],
    )
}
