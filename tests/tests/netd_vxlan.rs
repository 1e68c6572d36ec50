//! The vxlan backend on a real kernel: Pods that talk, rows that come back, restarts that change nothing.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Host, Need, allowing_for_load, echo, eventually};
use netd_node::{
    A_SECOND, Conversation, HOST_GW, Net, SOON, VXLAN, each_is_repaired, kernel_state, lease, pod, settled_log,
};

fn pods_on_two_nodes_talk_with_their_own_addresses() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.both()?;
    let (first, second) = (pod(net.host("hdss7-21")?, "172.7.21")?, pod(net.host("hdss7-22")?, "172.7.22")?);
    second.run(&["ping", "-c1", "-W5", "172.7.21.2"])?;
    let _server = echo::serve(&second, "web", 80)?;
    let server: SocketAddr = "172.7.22.2:80".parse()?;
    let answer = echo::ask_tcp(&first, server, SOON)?;
    ensure!(answer.client.ip().to_string() == "172.7.21.2", "the server saw {}", answer.client);
    // The node itself is seen as the first address of its subnet.
    let answer = echo::ask_udp(net.host("hdss7-21")?, server, SOON)?;
    ensure!(answer.client.ip().to_string() == "172.7.21.0", "the server saw {}", answer.client);
    Ok(())
}

fn pod_that_is_deleted_and_made_again_is_reached_both_ways() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.both()?;
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let first = pod(here, "172.7.21")?;
    for round in 0..3 {
        let second = pod(there, "172.7.22")?;
        first.run(&["ping", "-c1", "-W5", "172.7.22.2"]).with_context(|| format!("round {round}"))?;
        second.run(&["ping", "-c1", "-W5", "172.7.21.2"]).with_context(|| format!("round {round}"))?;
        drop(second);
        // The kernel takes a namespace away in its own time.
        eventually(SOON, || {
            ensure!(there.run(&["ip", "link", "show", "pod0"]).is_err(), "its interface is still there");
            Ok(())
        })?;
        there.run(&["ip", "link", "delete", "cbr0"])?;
        ensure!(first.run(&["ping", "-c1", "-W1", "172.7.22.2"]).is_err(), "round {round}: nobody is there");
    }
    Ok(())
}

fn full_sized_packets_pass_and_larger_ones_are_refused_by_the_device() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.both()?;
    let (first, _second) = (pod(net.host("hdss7-21")?, "172.7.21")?, pod(net.host("hdss7-22")?, "172.7.22")?);
    // 1450 - 20 (IPv4) - 8 (ICMP)
    first.run(&["ping", "-c1", "-W5", "-M", "do", "-s", "1422", "172.7.22.2"])?;
    ensure!(first.run(&["ping", "-c1", "-W2", "-M", "do", "-s", "1423", "172.7.22.2"]).is_err());
    Ok(())
}

fn pod_is_masqueraded_to_the_outside_and_outside_to_a_remote_pod() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.both()?;
    let (first, outside) = (pod(net.host("hdss7-21")?, "172.7.21")?, net.host("hdss7-200")?);
    let _server = echo::serve(outside, "outside", 80)?;
    let answer = echo::ask_tcp(&first, "10.4.7.200:80".parse()?, SOON)?;
    ensure!(answer.client.ip().to_string() == "10.4.7.21", "the outside saw {}", answer.client);
    // A host that knows the Pod network by way of .22 reaches a Pod of .21; the answer must come back through .22.
    outside.run(&["ip", "route", "add", "172.7.0.0/16", "via", "10.4.7.22"])?;
    let _server = echo::serve(&first, "web", 80)?;
    let answer = echo::ask_tcp(outside, "172.7.21.2:80".parse()?, SOON)?;
    ensure!(answer.client.ip().to_string() == "172.7.22.0", "the Pod saw {}", answer.client);
    Ok(())
}

/// A line of `command` on `host` that contains all of `parts`.
fn find(host: &Host, command: &str, parts: &[&str]) -> Result<()> {
    let text = host.run(&["sh", "-c", command])?.stdout;
    ensure!(
        text.lines().any(|line| parts.iter().all(|part| line.contains(part))),
        "{command}: no line with {parts:?}\n{text}"
    );
    Ok(())
}

fn rows_deleted_by_hand_are_back_within_a_second() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.both()?;
    let host = net.host("hdss7-21")?;
    let mac = host.run(&["sh", "-c", "bridge fdb show dev flannel.1 | cut -d' ' -f1"])?.stdout.trim().to_owned();
    let delete_fdb = format!("bridge fdb del {mac} dev flannel.1");
    let changes = [
        "ip route del 172.7.22.0/24",
        "ip neigh del 172.7.22.0 dev flannel.1",
        delete_fdb.as_str(),
        "ip address del 172.7.21.0/32 dev flannel.1",
        "ip address add 172.7.21.9/32 dev flannel.1",
        "ip link set flannel.1 down",
        "ip link set flannel.1 mtu 1400",
        "ip link set flannel.1 address 02:00:00:00:00:99",
        "ip link del flannel.1",
        "ip route replace 172.7.22.0/24 via 10.4.7.22 dev eth0 metric 1790 proto 121",
        "nft delete table ip netd",
        "nft flush chain ip netd postrouting",
        "nft add rule ip netd postrouting drop",
        "nft flush ruleset",
        "sysctl -qw net.ipv4.ip_forward=0 && ip route del 172.7.22.0/24",
    ];
    each_is_repaired(host, kernel_state, &changes)
}

fn burst_of_deletions_is_repaired_within_a_second_each() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.both()?;
    let host = net.host("hdss7-21")?;
    for _ in 0..5 {
        host.run(&["ip", "route", "del", "172.7.22.0/24"])?;
        let started = Instant::now();
        eventually(SOON, || find(host, "ip route", &["172.7.22.0/24"]))?;
        ensure!(started.elapsed() < allowing_for_load(A_SECOND), "took {:?}", started.elapsed());
    }
    Ok(())
}

fn removed_lease_withdraws_route_before_neighbour() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.both()?;
    let host = net.host("hdss7-21")?;
    let monitor = host.command("ip").args(["-o", "monitor", "route", "neigh", "link"]).start("monitor")?;
    // A line of its own shows that the monitor listens.
    eventually(SOON, || {
        host.run(&["ip", "link", "add", "probe0", "type", "bridge"])?;
        host.run(&["ip", "link", "del", "probe0"])?;
        ensure!(monitor.log().contains("probe0"), "the monitor is silent");
        Ok(())
    })?;
    net.put_lease("172.7.99.0-24", "10.4.7.99", "02:00:00:00:00:99")?;
    net.eventually_routes("hdss7-21", "172.7.99.0/24")?;
    net.etcd.delete("/coreos.com/network/subnets/172.7.99.0-24")?;
    monitor.wait_for_line("Deleted 172.7.99.0/24", SOON)?;
    monitor.wait_for_line("Deleted 172.7.99.0 dev flannel.1", SOON)?;
    let log = monitor.log();
    let at =
        |part: &str| log.lines().position(|line| line.contains(part)).with_context(|| format!("no {part:?}\n{log}"));
    ensure!(at("Deleted 172.7.99.0/24")? < at("Deleted 172.7.99.0 dev flannel.1")?, "{log}");
    // Creation ran the other way.
    let created = |part: &str| log.lines().position(|line| !line.contains("Deleted") && line.contains(part));
    ensure!(created("172.7.99.0 dev flannel.1 lladdr") < created("172.7.99.0/24 via"), "{log}");
    Ok(())
}

fn restart_changes_nothing_in_the_kernel() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let [first, _second] = net.both()?;
    let host = net.host("hdss7-21")?;
    let mut connection = Conversation::open(&net)?;
    for end in ["SIGTERM", "SIGKILL"] {
        let before = kernel_state(host)?;
        let rtnl =
            host.command("ip").args(["-o", "monitor", "link", "address", "route", "neigh"]).start("ip monitor")?;
        let nft = host.command("nft").args(["monitor"]).start("nft monitor")?;
        let subnet_file = std::fs::metadata(host.path("/run/flannel/subnet.env"))?.modified()?;
        let process = if end == "SIGTERM" { &first } else { &net.netd("hdss7-21")? };
        if end == "SIGTERM" {
            ensure!(process.terminate(SOON)?.success(), "SIGTERM must end with success");
        } else {
            process.kill()?;
        }
        ensure!(kernel_state(host)? == before, "the end by {end} changed the kernel");
        connection.ask()?;
        let again = net.netd("hdss7-21")?;
        again.wait_for_line("kernel tables in sync, 0 changes", SOON)?;
        ensure!(kernel_state(host)? == before, "the start after {end} changed the kernel");
        connection.ask()?;
        ensure!(std::fs::metadata(host.path("/run/flannel/subnet.env"))?.modified()? == subnet_file);
        let ours = |log: &str| {
            let about = |line: &&str| line.contains("flannel.1") || line.contains("172.7.22") || line.contains("netd");
            // What the kernel does by itself: it resolves neighbours and settles link-local addresses.
            let kernels =
                |line: &&str| ["REACHABLE", "STALE", "DELAY", "PROBE", "fe80:"].iter().any(|word| line.contains(word));
            log.lines().filter(about).filter(|line| !kernels(line)).map(str::to_owned).collect::<Vec<_>>()
        };
        ensure!(ours(&rtnl.log()).is_empty(), "{end}: {:?}", ours(&rtnl.log()));
        ensure!(ours(&nft.log()).is_empty(), "{end}: {:?}", ours(&nft.log()));
        ensure!(again.terminate(SOON)?.success());
    }
    Ok(())
}

fn node_that_left_while_netd_was_down_is_cleaned_up_at_start() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let [first, _second] = net.both()?;
    let host = net.host("hdss7-21")?;
    net.put_lease("172.7.99.0-24", "10.4.7.99", "02:00:00:00:00:99")?;
    net.eventually_routes("hdss7-21", "172.7.99.0/24")?;
    first.terminate(SOON)?;
    net.etcd.delete("/coreos.com/network/subnets/172.7.99.0-24")?;
    net.put_lease("172.7.98.0-24", "10.4.7.98", "02:00:00:00:00:98")?;
    let _again = net.netd("hdss7-21")?;
    eventually(SOON, || {
        let state = kernel_state(host)?;
        ensure!(state.contains("172.7.98.0/24"), "{state}");
        ensure!(!state.contains("172.7.99.") && !state.contains("02:00:00:00:00:99"), "{state}");
        Ok(())
    })?;
    Ok(())
}

fn device_and_routes_of_flannel_are_adopted_in_place() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    // What flannel leaves behind, as its netlink calls make it: `proto boot`, metric 0.
    let batch = "link add flannel.1 address 02:00:00:00:00:21 mtu 1450 type vxlan id 1 local 10.4.7.21 dev eth0 nolearning dstport 8472\n\
        address add 172.7.21.0/32 dev flannel.1\nlink set flannel.1 up\n\
        neighbour add 172.7.22.0 lladdr 02:00:00:00:00:22 dev flannel.1 nud permanent\n\
        neighbour add 172.7.44.0 lladdr 02:00:00:00:00:44 dev flannel.1 nud permanent\n\
        route add 172.7.22.0/24 via 172.7.22.0 dev flannel.1 onlink\n\
        route add 172.7.44.0/24 via 172.7.44.0 dev flannel.1 onlink\n\
        route add 172.7.55.0/24 via 10.4.7.200 proto static\n\
        route add 10.99.0.0/16 via 10.4.7.200\n";
    host.command("ip").args(["-batch", "-"]).input(batch).run()?;
    host.run(&[
        "bridge",
        "fdb",
        "add",
        "02:00:00:00:00:22",
        "dev",
        "flannel.1",
        "dst",
        "10.4.7.22",
        "self",
        "permanent",
    ])?;
    host.run(&[
        "bridge",
        "fdb",
        "add",
        "02:00:00:00:00:44",
        "dev",
        "flannel.1",
        "dst",
        "10.4.7.44",
        "self",
        "permanent",
    ])?;
    net.put_lease("172.7.21.0-24", "10.4.7.21", "02:00:00:00:00:21")?;
    net.put_lease("172.7.22.0-24", "10.4.7.22", "02:00:00:00:00:22")?;
    let index = host.read("/sys/class/net/flannel.1/ifindex")?;
    let _netd = net.netd("hdss7-21")?;
    eventually(SOON, || {
        find(host, "ip route", &["172.7.22.0/24 via 172.7.22.0 dev flannel.1", "onlink"])?;
        let state = kernel_state(host)?;
        ensure!(!state.contains("172.7.44") && !state.contains("02:00:00:00:00:44"), "leftovers stay:\n{state}");
        ensure!(state.matches("172.7.22.0/24").count() == 1, "two routes to one node:\n{state}");
        Ok(())
    })?;
    ensure!(host.read("/sys/class/net/flannel.1/ifindex")? == index, "the device was made again");
    ensure!(host.read("/sys/class/net/flannel.1/address")?.trim() == "02:00:00:00:00:21");
    find(host, "ip route", &["172.7.55.0/24 via 10.4.7.200", "proto static"])?;
    find(host, "ip route", &["10.99.0.0/16 via 10.4.7.200"])?;
    let value = net.etcd.get("/coreos.com/network/subnets/172.7.21.0-24")?;
    ensure!(value == Some(lease("10.4.7.21", "02:00:00:00:00:21")), "{value:?}");
    Ok(())
}

fn hardware_address_survives_a_reboot() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    // Written by a flannel that chose it at random; the device is gone with the reboot, the lease is not.
    net.put_lease("172.7.21.0-24", "10.4.7.21", "02:00:00:00:00:77")?;
    net.put_lease("172.7.22.0-24", "10.4.7.22", "02:00:00:00:00:22")?;
    let netd = net.netd("hdss7-21")?;
    ensure!(host.read("/sys/class/net/flannel.1/address")?.trim() == "02:00:00:00:00:77");
    netd.terminate(SOON)?;
    // Without a lease either, the address is the same every time.
    let mut seen = Vec::new();
    for _ in 0..2 {
        host.run(&["ip", "link", "del", "flannel.1"])?;
        host.run(&["rm", "-r", "/run/flannel", "/run/netd"])?;
        net.etcd.delete("/coreos.com/network/subnets/172.7.21.0-24")?;
        let netd = net.netd("hdss7-21")?;
        seen.push(host.read("/sys/class/net/flannel.1/address")?);
        netd.terminate(SOON)?;
    }
    ensure!(seen[0] == seen[1], "{seen:?}");
    Ok(())
}

fn drop_policy_of_a_foreign_chain_is_overcome_and_reported() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.both()?;
    let (host, node) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let (first, _second) = (pod(host, "172.7.21")?, pod(node, "172.7.22")?);
    let docker = "add table ip filter\nadd chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }\n\
        add rule ip filter FORWARD iifname docker0 counter accept\n";
    for _ in 0..2 {
        host.command("nft").args(["-f", "-"]).input(docker).run()?;
        eventually(SOON, || first.run(&["ping", "-c1", "-W1", "172.7.22.2"]))?;
        let rules = host.run(&["nft", "list", "chain", "ip", "filter", "FORWARD"])?.stdout;
        ensure!(
            rules.contains("policy drop") && rules.contains("docker0") && rules.contains("172.7.0.0/16"),
            "{rules}"
        );
        // The status is written after the rules.
        eventually(SOON, || {
            let status = host.command(lab::bin("netd")?).arg("status").run()?.stdout;
            ensure!(status.contains("foreign chain ip filter FORWARD drops forwarded packets"), "{status}");
            Ok(())
        })?;
        host.run(&["nft", "delete", "table", "ip", "filter"])?;
    }
    Ok(())
}

fn change_of_the_backend_takes_the_device_away() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let [first, _second] = net.both()?;
    let host = net.host("hdss7-21")?;
    first.terminate(SOON)?;
    // A device of another program that merely has such a name is not ours.
    host.run(&["ip", "link", "add", "flannel.7", "type", "vxlan", "id", "7", "dstport", "4790"])?;
    net.etcd.put("/coreos.com/network/config", HOST_GW)?;
    net.put_lease("172.7.22.0-24", "10.4.7.22", "host-gw")?;
    let _again = net.launch("hdss7-21", &[])?;
    eventually(SOON, || {
        find(host, "ip route", &["172.7.22.0/24 via 10.4.7.22 dev eth0"])?;
        ensure!(host.run(&["ip", "link", "show", "flannel.1"]).is_err(), "flannel.1 is still there");
        Ok(())
    })?;
    host.run(&["ip", "link", "show", "flannel.7"])?;
    eventually(SOON, || {
        ensure!(host.read("/run/flannel/subnet.env")?.contains("FLANNEL_MTU=1500"));
        Ok(())
    })
}

/// Nothing of netd's is due in this time: what it asks a single member for, it asks for minutes apart (docs/etcd.md).
const QUIET: Duration = Duration::from_secs(8);

/// The calls that the store has received since it started, by their names.
fn requests(net: &Net) -> Result<BTreeMap<String, u64>> {
    let page = net.host("hdss7-12")?.run(&["curl", "-s", "http://10.4.7.12:2379/metrics"])?.stdout;
    let calls = page.lines().filter_map(|line| line.strip_prefix("grpc_server_started_total{")?.rsplit_once(' '));
    let calls: BTreeMap<_, _> =
        calls.map(|(call, count)| Ok((call.to_owned(), count.parse()?))).collect::<Result<_>>()?;
    ensure!(calls.values().sum::<u64>() > 0, "{page}");
    Ok(calls)
}

/// The same once a start's own calls are over.
fn settled_requests(net: &Net) -> Result<BTreeMap<String, u64>> {
    let before = requests(net)?;
    lab::throughout(Duration::from_secs(1), || {
        let now = requests(net)?;
        ensure!(now == before, "the store is being asked: {now:?}");
        Ok(())
    })?;
    Ok(before)
}

fn quiet_cluster_leaves_netd_asleep() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let [first, _second] = net.both()?;
    let (_web, _other) = (pod(net.host("hdss7-21")?, "172.7.21")?, pod(net.host("hdss7-22")?, "172.7.22")?);
    // Other programs change their own tables all the time.
    let host = net.host("hdss7-21")?;
    host.run(&["sh", "-c", "nft add table ip other && for n in $(seq 30); do nft add chain ip other c$n; done"])?;
    let (before, asked) = (settled_log(&first)?, eventually(SOON, || settled_requests(&net))?);
    lab::throughout(QUIET, || {
        ensure!(first.log() == before, "netd had something to say:\n{}", first.log());
        Ok(())
    })?;
    let now = requests(&net)?;
    ensure!(now == asked, "the store was asked: {now:?} instead of {asked:?}");
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            pods_on_two_nodes_talk_with_their_own_addresses,
            pod_that_is_deleted_and_made_again_is_reached_both_ways,
            full_sized_packets_pass_and_larger_ones_are_refused_by_the_device,
            pod_is_masqueraded_to_the_outside_and_outside_to_a_remote_pod,
            rows_deleted_by_hand_are_back_within_a_second,
            burst_of_deletions_is_repaired_within_a_second_each,
            removed_lease_withdraws_route_before_neighbour,
            restart_changes_nothing_in_the_kernel,
            node_that_left_while_netd_was_down_is_cleaned_up_at_start,
            device_and_routes_of_flannel_are_adopted_in_place,
            hardware_address_survives_a_reboot,
            drop_policy_of_a_foreign_chain_is_overcome_and_reported,
            change_of_the_backend_takes_the_device_away,
            quiet_cluster_leaves_netd_asleep,
        ],
    )
}
