//! `netd doctor` on two nodes: each finding appears by its fault and vanishes with its fix.

#![allow(clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use lab::{Host, Need, eventually};
use netd_node::dual::{self, DUAL, DUAL_HOST_GW};
use netd_node::{HOST_GW, Net, SOON, VXLAN};
use serde_json::Value;

/// The findings on a node that are no `ok`, with the exit status.
fn findings(host: &Host) -> Result<(Vec<Value>, Option<i32>)> {
    let output = host.command(lab::bin("netd")?).args(["doctor", "--json"]).limit(3 * SOON).output()?;
    let all: Vec<Value> = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    let bad = all.into_iter().filter(|finding| finding["severity"] != "ok").collect();
    Ok((bad, output.status.code()))
}

/// Waits until the only problems are of `checks`, in their order.
fn only(host: &Host, checks: &[&str]) -> Result<Vec<Value>> {
    eventually(4 * SOON, || {
        let (bad, code) = findings(host)?;
        let problems: Vec<Value> = bad.into_iter().filter(|finding| finding["severity"] == "problem").collect();
        let mut names: Vec<&str> = problems.iter().filter_map(|finding| finding["check"].as_str()).collect();
        names.dedup();
        ensure!(names == checks, "{names:?} instead of {checks:?}: {problems:?}");
        ensure!(code == Some(i32::from(!checks.is_empty())), "exit status {code:?}");
        ensure!(problems.iter().all(|finding| finding["fix"].as_str().is_some_and(|fix| !fix.is_empty())));
        Ok(problems)
    })
}

/// One fault: what makes it, where, and what undoes it.
struct Fault {
    on: &'static str,
    make: &'static str,
    undo: &'static str,
    check: &'static [&'static str],
    says: &'static str,
}

fn each_fault_is_found_and_gone_with_its_fix(config: &str, faults: &[Fault]) -> Result<()> {
    let net = Net::start(config)?;
    let _both = net.both()?;
    each_is_found_and_gone(&net, faults)
}

/// The same with IPv6 addresses beside the nodes' others.
fn each_fault_of_both_families_is_found(config: &str, faults: &[Fault]) -> Result<()> {
    let net = dual::net(config)?;
    let _both = dual::both(&net, dual::SUBNETS)?;
    each_is_found_and_gone(&net, faults)
}

fn each_is_found_and_gone(net: &Net, faults: &[Fault]) -> Result<()> {
    let here = net.host("hdss7-21")?;
    only(here, &[])?;
    for Fault { on, make, undo, check, says } in faults {
        let there = net.host(on)?;
        there.run(&["sh", "-ec", make])?;
        let problems = only(here, check).with_context(|| (*make).to_owned())?;
        let text = serde_json::to_string(&problems)?;
        ensure!(text.contains(says), "{make}: {text}");
        there.run(&["sh", "-ec", undo])?;
        only(here, &[]).with_context(|| (*undo).to_owned())?;
    }
    Ok(())
}

fn faults_of_a_node_and_its_tunnels() -> Result<()> {
    each_fault_is_found_and_gone_with_its_fix(
        VXLAN,
        &[
            Fault {
                on: "hdss7-21",
                make: "sysctl -qw net.ipv4.conf.eth0.forwarding=0",
                undo: "sysctl -qw net.ipv4.conf.eth0.forwarding=1",
                check: &["forwarding"],
                says: "comes in by eth0 is not forwarded",
            },
            Fault {
                on: "hdss7-21",
                make: "ip link add docker0 type bridge; ip address add 172.7.99.1/24 dev docker0",
                undo: "ip link del docker0",
                check: &["networks"],
                says: "docker0 has 172.7.99.1/24, which overlaps the Pod network 172.7.0.0/16",
            },
            Fault {
                on: "hdss7-22",
                make: "iptables -A INPUT -p udp --dport 8472 -j DROP",
                undo: "iptables -F INPUT",
                check: &["port"],
                says: "10.4.7.22 answers, its vxlan tunnel does not",
            },
            Fault {
                on: "hdss7-21",
                make: "iptables -A INPUT -p udp --dport 8472 -m comment --comment audit -j DROP",
                undo: "iptables -F INPUT",
                check: &["port", "firewall"],
                says: r#"of ip filter INPUT (\"audit\") dropped "#,
            },
            Fault {
                on: "hdss7-22",
                make: "ip link set eth0 down; sleep 0",
                undo: "ip link set eth0 up",
                check: &["port"],
                says: "nothing comes back from 10.4.7.22",
            },
            Fault {
                on: "hdss7-22",
                make: "nft add table inet broken; nft add chain inet broken in '{ type filter hook input priority 0; }'; \
                       nft add rule inet broken in iifname flannel.1 udp checksum != 0 drop",
                undo: "nft delete table inet broken",
                check: &["checksum"],
                says: "without a checksum only",
            },
            Fault {
                on: "hdss7-22",
                make: "nft add table inet broken; nft add chain inet broken in '{ type filter hook input priority 0; }'; \
                       nft add rule inet broken in iifname eth0 meta length '>' 1400 drop",
                undo: "nft delete table inet broken",
                check: &["mtu"],
                says: "packets of 1450 bytes do not arrive, of 1350 do",
            },
        ],
    )
}

/// Each fault is of IPv6 alone: IPv4 passes, and no finding names it.
fn faults_of_ipv6_are_found_beside_ipv4_that_passes() -> Result<()> {
    each_fault_of_both_families_is_found(
        DUAL,
        &[
            Fault {
                on: "hdss7-21",
                make: "ip link add docker0 type bridge; ip address add fd00:7:0:99::1/64 dev docker0 nodad",
                undo: "ip link del docker0",
                check: &["networks"],
                says: "docker0 has fd00:7:0:99::1/64, which overlaps the Pod network fd00:7::/48",
            },
            Fault {
                on: "hdss7-22",
                make: "ip6tables -A INPUT -p udp --dport 8472 -j DROP",
                undo: "ip6tables -F INPUT",
                check: &["port"],
                says: "fd00:10:4:7::22 answers, its vxlan tunnel does not",
            },
            Fault {
                on: "hdss7-21",
                make: "ip6tables -A INPUT -p udp --dport 8472 -m comment --comment audit -j DROP",
                undo: "ip6tables -F INPUT",
                check: &["port", "firewall"],
                says: r#"of ip6 filter INPUT (\"audit\") dropped "#,
            },
            Fault {
                on: "hdss7-22",
                make: "nft add table inet broken; nft add chain inet broken in '{ type filter hook input priority 0; }'; \
                       nft add rule inet broken in iifname eth0 meta nfproto ipv6 meta l4proto udp drop",
                undo: "nft delete table inet broken",
                check: &["port"],
                says: "nothing comes back from fd00:10:4:7::22",
            },
            Fault {
                on: "hdss7-22",
                make: "nft add table inet broken; nft add chain inet broken in '{ type filter hook input priority 0; }'; \
                       nft add rule inet broken in iifname eth0 meta nfproto ipv6 meta length '>' 1400 drop",
                undo: "nft delete table inet broken",
                check: &["mtu"],
                says: "\"fd00:7:0:22::/64: packets of 1430 bytes do not arrive, of 1330 do\"",
            },
        ],
    )?;
    each_fault_of_both_families_is_found(
        DUAL_HOST_GW,
        &[Fault {
            on: "hdss7-22",
            make: "nft add table inet broken; nft add chain inet broken in '{ type filter hook input priority 0; }'; \
                   nft add rule inet broken in iifname eth0 meta nfproto ipv6 meta length '>' 1400 drop",
            undo: "nft delete table inet broken",
            check: &["mtu"],
            says: "\"fd00:7:0:22::/64: packets of 1500 bytes do not arrive, of 1400 do\"",
        }],
    )
}

fn advice_on_a_narrower_network_makes_packets_arrive_in_both_families() -> Result<()> {
    let net = dual::net(DUAL)?;
    let _both = dual::both(&net, dual::SUBNETS)?;
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    only(here, &[])?;
    let narrow = "nft add table inet broken; nft add chain inet broken in '{ type filter hook input priority 0; }'; \
                  nft add rule inet broken in iifname eth0 meta length '>' 1400 drop";
    there.run(&["sh", "-ec", narrow])?;
    let problems = only(here, &["mtu"])?;
    // IPv6 leaves 20 bytes less: its advice holds for both.
    let advised = |finding: &Value| Some(finding["fix"].as_str()?.split_once(": netd ")?.1.to_owned());
    let advice: Vec<String> = problems.iter().filter_map(advised).collect();
    ensure!(advice == ["config edit Backend.MTU=1400", "config edit Backend.MTU=1400"], "{problems:?}");
    let endpoints = format!("--etcd-endpoints={}", net.etcd.endpoints());
    let words = advice[0].split(' ').chain([endpoints.as_str()]);
    here.command(lab::bin("netd")?).args(words).run()?;
    only(here, &[]).map(drop)
}

fn bridged_packets_past_the_rules_are_noted_for_each_family_of_the_pods() -> Result<()> {
    let net = dual::net(DUAL)?;
    let _both = dual::both(&net, dual::SUBNETS)?;
    let here = net.host("hdss7-21")?;
    let notes = || {
        let bad = only(here, &[]).and_then(|_| findings(here))?.0;
        let of_bridge = |finding: &Value| finding["check"] == "br_netfilter" && finding["severity"] == "note";
        Ok::<Vec<Value>, anyhow::Error>(bad.into_iter().filter(of_bridge).collect())
    };
    if !here.path("/proc/sys/net/bridge").exists() {
        let notes = notes()?;
        let unloaded = |note: &Value| note["found"].as_str().is_some_and(|text| text.contains("is not loaded"));
        ensure!(notes.len() == 2 && notes.iter().all(unloaded), "{notes:?}");
        return Ok(());
    }
    let names = ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"];
    for name in names {
        here.run(&["sysctl", "-qw", &format!("net.bridge.{name}=1")])?;
    }
    ensure!(notes()?.is_empty(), "{:?}", notes()?);
    for name in names {
        here.run(&["sysctl", "-qw", &format!("net.bridge.{name}=0")])?;
        let notes = notes()?;
        let [note] = notes.as_slice() else { anyhow::bail!("{name}: {notes:?}") };
        ensure!(
            note["found"].as_str().is_some_and(|text| text.starts_with(&format!("net.bridge.{name} is 0"))),
            "{note}"
        );
        // What it says is to be done is all that is.
        here.run(&["sh", "-ec", note["fix"].as_str().context("no fix")?])?;
    }
    ensure!(notes()?.is_empty(), "{:?}", notes()?);
    Ok(())
}

/// Answers probes for a node as its netd does, with a clock that is `ahead` milliseconds ahead of the kernel's, until `done`.
fn answer_probes(socket: &UdpSocket, ahead: i64, done: &AtomicBool) -> Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut request = [0; 2048];
    while !done.load(Ordering::Relaxed) {
        let from = match socket.recv_from(&mut request) {
            Ok((length, from)) if length >= 48 && request.starts_with(b"netd ask") => from,
            Ok(_) => continue,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(error) => return Err(error.into()),
        };
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
        let mut answer = [b"netd ans", &request[8..16], &(now + ahead).to_be_bytes()].concat();
        answer.resize(48, 0);
        socket.send_to(&answer, from)?;
    }
    Ok(())
}

/// All machines of the lab share one kernel and its clock: another one answers in the place of the other node's netd.
fn clock_of_another_node_that_is_wrong_is_named_once_with_its_distance() -> Result<()> {
    let net = dual::net(DUAL)?;
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let _netd = net.launch("hdss7-21", &[])?;
    let other = net.launch("hdss7-22", &["--probe-port=0"])?;
    other.wait_for_line("ready: every lease is in the kernel", SOON)?;
    // Questions need the way there, answers the way back.
    for (n, subnets) in ["21", "22"].into_iter().zip(dual::SUBNETS) {
        subnets.iter().try_for_each(|subnet| dual::routes(&net, n, subnet))?;
    }
    for (ahead, check, says) in [
        (0, &[][..], ""),
        (9_000, &[], ""),
        // What the answer takes on its way is less than the half second.
        (3_600_500, &["clock"], "fd00:7:0:22::/64: its clock is 3600 s ahead of this one's"),
        (-60_000, &["clock"], "fd00:7:0:22::/64: its clock is 60 s behind this one's"),
        (0, &[], ""),
    ] {
        let socket = there.within(|| UdpSocket::bind("[::]:10247"))??;
        let done = AtomicBool::new(false);
        let found = std::thread::scope(|scope| {
            let answers = scope.spawn(|| answer_probes(&socket, ahead, &done));
            let found = only(here, check);
            done.store(true, Ordering::Relaxed);
            answers.join().map_err(|_| anyhow::anyhow!("the answering thread panicked"))??;
            found
        })?;
        let said = |finding: &Value| finding["found"].as_str().is_some_and(|text| text.ends_with(says));
        ensure!(found.len() == check.len() && found.iter().all(said), "{ahead} ms: {found:?}");
    }
    Ok(())
}

fn packets_dropped_for_their_source_are_counted() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let _both = net.both()?;
    here.run(&["sysctl", "-qw", "net.ipv4.conf.eth0.rp_filter=1"])?;
    only(here, &[])?;
    // Answers of the tunnel come by another way.
    there.run(&["ip", "route", "add", "172.7.21.0/32", "via", "10.4.7.21"])?;
    let text = serde_json::to_string(&only(here, &["rp_filter", "port"])?)?;
    ensure!(text.contains("dropped for their source address; strict on eth0"), "{text}");
    there.run(&["ip", "route", "del", "172.7.21.0/32", "via", "10.4.7.21"])?;
    only(here, &[])?;
    Ok(())
}

fn host_gw_is_probed_on_the_pods_own_way() -> Result<()> {
    each_fault_is_found_and_gone_with_its_fix(
        HOST_GW,
        &[Fault {
            on: "hdss7-22",
            make: "nft add table inet broken; nft add chain inet broken in '{ type filter hook input priority 0; }'; \
                   nft add rule inet broken in iifname eth0 meta length '>' 1400 drop",
            undo: "nft delete table inet broken",
            check: &["mtu"],
            says: "packets of 1500 bytes do not arrive, of 1400 do",
        }],
    )
}

fn status_shows_path_size_and_last_probe_of_each_node_and_what_was_repaired() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let here = net.host("hdss7-21")?;
    let _both = net.both()?;
    let status = || Ok::<_, anyhow::Error>(here.command(lab::bin("netd")?).arg("status").run()?.stdout);
    eventually(SOON, || {
        let text = status()?;
        ensure!(text.contains("172.7.22.0/24      10.4.7.22       vxlan flannel.1  1450\n"), "{text}");
        Ok(())
    })?;
    only(here, &[])?;
    here.run(&["ip", "route", "del", "172.7.22.0/24"])?;
    eventually(SOON, || {
        let text = status()?;
        ensure!(text.contains("172.7.22.0/24      10.4.7.22       vxlan flannel.1  1450 0m ago\n"), "{text}");
        ensure!(text.lines().any(|line| line.starts_with("repaired ")), "{text}");
        ensure!(text.lines().all(|line| line.len() <= 80), "{text}");
        let peer = &net.status("hdss7-21")?["leases"]["172.7.22.0/24"];
        ensure!(peer["path"] == "flannel.1" && peer["probe"]["reached"] == true, "{peer}");
        Ok(())
    })
}

fn leases_that_nobody_can_use_and_a_dead_daemon_are_named() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let here = net.host("hdss7-21")?;
    let [netd, _other] = net.both()?;
    net.put_lease("172.7.99.0-24", "10.4.7.22", "02:00:00:00:00:99")?;
    let text = serde_json::to_string(&only(here, &["duplicates", "port"])?)?;
    ensure!(
        text.contains("10.4.7.22 should have 172.7.99.0/24, and a node with 172.7.22.0/24 answers there"),
        "{text}"
    );
    ensure!(text.contains("10.4.7.22 has several subnets: 172.7.22.0/24, 172.7.99.0/24"), "{text}");
    net.etcd.delete("/coreos.com/network/subnets/172.7.99.0-24")?;
    only(here, &[])?;
    netd.terminate(SOON)?;
    let problems = only(here, &["daemon"])?;
    ensure!(serde_json::to_string(&problems)?.contains("systemctl start netd"), "{problems:?}");
    Ok(())
}

/// By ARP and by neighbour discovery; everybody else knows this node's hardware address and so loses nothing meanwhile.
fn another_host_with_this_nodes_address_is_found_by_real_packets() -> Result<()> {
    let net = dual::net(DUAL)?;
    let _both = dual::both(&net, dual::SUBNETS)?;
    let (here, stranger) = (net.host("hdss7-21")?, net.host("hdss7-200")?);
    only(here, &[])?;
    let mac = |host: &Host| Ok::<_, anyhow::Error>(host.read("/sys/class/net/eth0/address")?.trim().to_owned());
    let own = mac(here)?;
    for address in ["10.4.7.21", "fd00:10:4:7::21"] {
        for host in ["hdss7-12", "hdss7-22"] {
            let words = ["ip", "neigh", "replace", address, "lladdr", &own, "dev", "eth0", "nud", "permanent"];
            net.host(host)?.run(&words)?;
        }
    }
    for (address, len, flags) in [("10.4.7.21", 32, ""), ("fd00:10:4:7::21", 128, "nodad")] {
        stranger.run(&["sh", "-ec", &format!("ip address add {address}/{len} dev eth0 {flags}")])?;
        let found = only(here, &["duplicates"])?;
        let says =
            format!("{address}: another host on the link has it as well, with hardware address {}", mac(stranger)?);
        ensure!(found.len() == 1 && found[0]["found"] == says.as_str(), "{says}: {found:?}");
        stranger.run(&["ip", "address", "del", &format!("{address}/{len}"), "dev", "eth0"])?;
        only(here, &[])?;
    }
    Ok(())
}

fn node_of_flannel_is_reached_and_probes_can_be_turned_off() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let here = net.host("hdss7-21")?;
    let _netd = net.netd("hdss7-21")?;
    let other = net.launch("hdss7-22", &["--probe-port=0"])?;
    other.wait_for_line("ready: every lease is in the kernel", SOON)?;
    net.eventually_routes("hdss7-21", "172.7.22.0/24")?;
    only(here, &[])?;
    let sockets = net.host("hdss7-22")?.run(&["cat", "/proc/net/udp"])?.stdout;
    ensure!(!sockets.contains(":2807 "), "port 10247 is open: {sockets}");
    let text = here.command(lab::bin("netd")?).arg("doctor").limit(3 * SOON).run()?.stdout;
    ensure!(text.lines().filter(|line| line.starts_with("ok ")).count() >= 10, "{text}");
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables, Need::Vxlan],
        lab::tests![
            faults_of_a_node_and_its_tunnels,
            faults_of_ipv6_are_found_beside_ipv4_that_passes,
            advice_on_a_narrower_network_makes_packets_arrive_in_both_families,
            bridged_packets_past_the_rules_are_noted_for_each_family_of_the_pods,
            clock_of_another_node_that_is_wrong_is_named_once_with_its_distance,
            packets_dropped_for_their_source_are_counted,
            host_gw_is_probed_on_the_pods_own_way,
            status_shows_path_size_and_last_probe_of_each_node_and_what_was_repaired,
            leases_that_nobody_can_use_and_a_dead_daemon_are_named,
            another_host_with_this_nodes_address_is_found_by_real_packets,
            node_of_flannel_is_reached_and_probes_can_be_turned_off,
        ],
    )
}
