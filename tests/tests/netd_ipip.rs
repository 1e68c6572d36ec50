//! The ipip backend on a real kernel.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::{Host, Need, echo, eventually};
use netd_node::{Conversation, Left, Net, SOON, each_is_repaired, lease_replaces_what_is_in_doubt, pod};

const IPIP: &str = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"ipip"}}"#;

fn state(host: &Host) -> Result<String> {
    let script = "ip -d link show type ipip | grep -v '^[0-9]*: tunl0' | sed 's/^[0-9]*: //; s/qlen.*//'; \
                  ip -4 -br address show dev flannel.ipip; ip route | grep -v cbr0; nft -s list ruleset";
    Ok(host.run(&["sh", "-c", script])?.stdout)
}

fn pods_on_two_nodes_talk_with_their_own_addresses() -> Result<()> {
    let net = Net::start(IPIP)?;
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    // Another program's tunnel that takes what comes from anywhere; the module makes tunl0 itself where it may.
    here.run(&["sh", "-c", "ip link show tunl0 || ip link add tunl0 type ipip"])?;
    let others = here.run(&["ip", "-d", "link", "show", "tunl0"])?.stdout;
    let _netd = net.both()?;
    let (first, second) = (pod(here, "172.7.21")?, pod(there, "172.7.22")?);
    // 1480 - 20 (IPv4) - 8 (ICMP)
    first.run(&["ping", "-c1", "-W5", "-M", "do", "-s", "1452", "172.7.22.2"])?;
    let _server = echo::serve(&second, "web", 80)?;
    let answer = echo::ask_tcp(&first, "172.7.22.2:80".parse()?, SOON)?;
    ensure!(answer.client.ip().to_string() == "172.7.21.2", "the server saw {}", answer.client);
    let answer = echo::ask_tcp(here, "172.7.22.2:80".parse()?, SOON)?;
    ensure!(answer.client.ip().to_string() == "172.7.21.0", "the server saw {}", answer.client);
    let sent = here.read("/sys/class/net/flannel.ipip/statistics/tx_packets")?;
    ensure!(sent.trim().parse::<u64>()? > 0, "the packets went another way");
    ensure!(here.run(&["ip", "-d", "link", "show", "tunl0"])?.stdout == others, "tunl0 was touched");
    let lease = net.etcd.get("/coreos.com/network/subnets/172.7.21.0-24")?;
    let expected = r#"{"PublicIP":"10.4.7.21","PublicIPv6":null,"BackendType":"ipip"}"#;
    ensure!(lease.as_deref() == Some(expected), "{lease:?}");
    ensure!(here.read("/run/flannel/subnet.env")?.contains("FLANNEL_MTU=1480"));
    Ok(())
}

fn what_is_changed_by_hand_is_back_within_a_second() -> Result<()> {
    let net = Net::start(IPIP)?;
    let _netd = net.both()?;
    let host = net.host("hdss7-21")?;
    let before = state(host)?;
    ensure!(before.contains("172.7.22.0/24 via 10.4.7.22 dev flannel.ipip") && before.contains("onlink"), "{before}");
    let changes = [
        "ip route del 172.7.22.0/24",
        "ip link del flannel.ipip",
        "ip link set flannel.ipip down",
        "ip link set flannel.ipip mtu 1400",
        "ip address del 172.7.21.0/32 dev flannel.ipip",
    ];
    each_is_repaired(host, state, &changes)
}

fn data_path_outlives_the_daemon_and_flannels_is_taken_over_in_place() -> Result<()> {
    let net = Net::start(IPIP)?;
    let host = net.host("hdss7-21")?;
    let script = "ip link add flannel.ipip type ipip local 10.4.7.21 ttl inherit nopmtudisc; ip link set flannel.ipip mtu 1480 up; \
                  ip address add 172.7.21.0/32 dev flannel.ipip; \
                  ip route add 172.7.22.0/24 via 10.4.7.22 dev flannel.ipip onlink; \
                  ip route add 172.7.44.0/24 via 10.4.7.44 dev flannel.ipip onlink";
    host.run(&["sh", "-c", script])?;
    let index = host.read("/sys/class/net/flannel.ipip/ifindex")?;
    // The other node's lease is there before this one lists the leases: else most would be missing, and nothing would go for now.
    let (_second, first) = (net.netd("hdss7-22")?, net.netd("hdss7-21")?);
    net.eventually_routes("hdss7-21", "172.7.22.0/24")?;
    let mut connection = Conversation::open(&net)?;
    ensure!(host.read("/sys/class/net/flannel.ipip/ifindex")? == index, "the device was made again");
    let before = eventually(SOON, || {
        let now = state(host)?;
        ensure!(now.matches("172.7.22.0/24").count() == 1 && !now.contains("172.7.44.0"), "{now}");
        Ok::<_, anyhow::Error>(now)
    })?;
    first.kill()?;
    connection.ask()?;
    let again = net.netd("hdss7-21")?;
    again.wait_for_line("kernel tables in sync, 0 changes", SOON)?;
    ensure!(state(host)? == before);
    connection.ask()?;
    Ok(())
}

fn predecessors_route_that_a_lease_names_is_replaced_though_the_store_is_in_doubt() -> Result<()> {
    let net = Net::start(IPIP)?;
    let script = "ip link add flannel.ipip type ipip local 10.4.7.21 ttl inherit nopmtudisc; ip link set flannel.ipip mtu 1480 up
                  ip address add 172.7.21.0/32 dev flannel.ipip
                  for n in 22 44; do ip route add 172.7.$n.0/24 via 10.4.7.$n dev flannel.ipip onlink; done";
    let lease = r#"{"PublicIP":"10.4.7.22","PublicIPv6":null,"BackendType":"ipip"}"#;
    let left = [Left { named: "172.7.22.0/24", unnamed: "172.7.44.0/24" }];
    lease_replaces_what_is_in_doubt(&net, script, ("172.7.22.0-24", lease), &left)
}

fn direct_routing_takes_the_link_to_nodes_on_it() -> Result<()> {
    let net = Net::start(r#"{"Network":"172.7.0.0/16","Backend":{"Type":"auto","Tunnel":"ipip"}}"#)?;
    let [netd, _other] = net.both()?;
    let host = net.host("hdss7-21")?;
    let far = r#"{"PublicIP":"10.9.9.99","PublicIPv6":null,"BackendType":"ipip"}"#;
    net.etcd.put("/coreos.com/network/subnets/172.7.99.0-24", far)?;
    net.eventually_routes("hdss7-21", "172.7.99.0/24")?;
    let routes = host.run(&["ip", "route"])?.stdout;
    ensure!(routes.contains("172.7.22.0/24 via 10.4.7.22 dev eth0"), "{routes}");
    ensure!(routes.contains("172.7.99.0/24 via 10.9.9.99 dev flannel.ipip"), "{routes}");
    let (first, _second) = (pod(host, "172.7.21")?, pod(net.host("hdss7-22")?, "172.7.22")?);
    first.run(&["ping", "-c1", "-W5", "172.7.22.2"])?;
    let before = state(host)?;
    netd.kill()?;
    let again = net.netd("hdss7-21")?;
    again.wait_for_line("kernel tables in sync, 0 changes", SOON)?;
    ensure!(state(host)? == before && !again.log().contains("kernel tables changed"), "{}", again.log());
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::IpIp, Need::Nftables],
        lab::tests![
            pods_on_two_nodes_talk_with_their_own_addresses,
            what_is_changed_by_hand_is_back_within_a_second,
            data_path_outlives_the_daemon_and_flannels_is_taken_over_in_place,
            predecessors_route_that_a_lease_names_is_replaced_though_the_store_is_in_doubt,
            direct_routing_takes_the_link_to_nodes_on_it,
        ],
    )
}
