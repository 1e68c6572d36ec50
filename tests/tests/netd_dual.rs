//! IPv6 alone and beside IPv4 on a real kernel, with real etcd: Pods that talk, rows that come back, one family of two.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::{Host, Need, echo, eventually};
use netd_node::dual::{DUAL, DUAL_HOST_GW, SUBNETS, both, give_ipv6, net, pod, routes, seen};
use netd_node::{Net, SOON, each_is_repaired, settled_log};

const V6: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:7::/48","Backend":{"Type":"vxlan"}}"#;
const READY: &str = "ready: every lease is in the kernel";

/// What a node's kernel has of IPv6 that netd is responsible for.
fn kernel_state(host: &Host) -> Result<String> {
    let script = "ip -d link show dev flannel-v6.1 | sed 's/^[0-9]*: //; s/qlen.*//'; \
                  ip -6 -o address show dev flannel-v6.1 scope global | sed 's/.*inet6/inet6/'; ip -6 route | grep 'proto 121'; \
                  ip -6 neigh show nud permanent; bridge fdb show dev flannel-v6.1; \
                  sysctl -n net.ipv6.conf.all.forwarding; nft -s list ruleset";
    Ok(host.run(&["sh", "-c", script])?.stdout)
}

fn lease(net: &Net, key: &str) -> Result<String> {
    let text = net.etcd.etcdctl(&["get", "--print-value-only", &format!("/coreos.com/network/subnets/{key}")])?.stdout;
    Ok(text.trim().to_owned())
}

fn mac(host: &Host, device: &str) -> Result<String> {
    Ok(host.run(&["cat", &format!("/sys/class/net/{device}/address")])?.stdout.trim().to_owned())
}

fn pods_with_ipv6_only_talk_and_everything_is_written_as_flannel_writes_it() -> Result<()> {
    let net = net(V6)?;
    let _netd = both(&net, [&["fd00:7:0:22::/64"], &["fd00:7:0:21::/64"]])?;
    let host = net.host("hdss7-21")?;
    let (first, second) = (pod(host, "21")?, pod(net.host("hdss7-22")?, "22")?);
    let _server = echo::serve(&second, "web", 80)?;
    ensure!(seen(&first, "[fd00:7:0:22::2]:80")? == "fd00:7:0:21::2");
    // The node itself is seen as the first address of its subnet.
    ensure!(seen(host, "[fd00:7:0:22::2]:80")? == "fd00:7:0:21::");
    // 1430 - 40 (IPv6) - 8 (ICMP)
    first.run(&["ping", "-6", "-c1", "-W5", "-M", "do", "-s", "1382", "fd00:7:0:22::2"])?;
    ensure!(first.run(&["ping", "-6", "-c1", "-W2", "-M", "do", "-s", "1383", "fd00:7:0:22::2"]).is_err());
    ensure!(net.subnets()? == ["0.0.0.0-0&fd00:7:0:21::-64", "0.0.0.0-0&fd00:7:0:22::-64"], "{:?}", net.subnets()?);
    let expected = format!(
        r#"{{"PublicIP":"0.0.0.0","PublicIPv6":"fd00:10:4:7::21","BackendType":"vxlan","BackendV6Data":{{"VNI":1,"VtepMAC":"{}"}}}}"#,
        mac(host, "flannel-v6.1")?
    );
    let value = lease(&net, "0.0.0.0-0&fd00:7:0:21::-64")?;
    ensure!(value == expected, "{value}");
    let file = host.read("/run/flannel/subnet.env")?;
    ensure!(
        file == "FLANNEL_IPV6_NETWORK=fd00:7::/48\nFLANNEL_IPV6_SUBNET=fd00:7:0:21::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n",
        "{file}"
    );
    Ok(())
}

fn dual_stack_pods_talk_in_both_families_and_are_seen_outside_as_their_node() -> Result<()> {
    let net = net(DUAL)?;
    let _netd = both(&net, SUBNETS)?;
    let (host, outside) = (net.host("hdss7-21")?, net.host("hdss7-200")?);
    let (first, second) = (pod(host, "21")?, pod(net.host("hdss7-22")?, "22")?);
    let _server = echo::serve(&second, "web", 80)?;
    ensure!(seen(&first, "172.7.22.2:80")? == "172.7.21.2");
    ensure!(seen(&first, "[fd00:7:0:22::2]:80")? == "fd00:7:0:21::2");
    let _outside = echo::serve(outside, "outside", 80)?;
    ensure!(seen(&first, "10.4.7.200:80")? == "10.4.7.21");
    ensure!(seen(&first, "[fd00:10:4:7::200]:80")? == "fd00:10:4:7::21");
    // A host that knows the Pod network by way of .22 reaches a Pod of .21; the answer must come back through .22.
    outside.run(&["ip", "-6", "route", "add", "fd00:7::/48", "via", "fd00:10:4:7::22"])?;
    let _server = echo::serve(&first, "web", 81)?;
    ensure!(seen(outside, "[fd00:7:0:21::2]:81")? == "fd00:7:0:22::");
    let keys = ["172.7.21.0-24&fd00:7:0:21::-64", "172.7.22.0-24&fd00:7:0:22::-64"];
    ensure!(net.subnets()? == keys, "{:?}", net.subnets()?);
    let expected = format!(
        r#"{{"PublicIP":"10.4.7.21","PublicIPv6":"fd00:10:4:7::21","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{}"}},"BackendV6Data":{{"VNI":1,"VtepMAC":"{}"}}}}"#,
        mac(host, "flannel.1")?,
        mac(host, "flannel-v6.1")?
    );
    let value = lease(&net, keys[0])?;
    ensure!(value == expected, "{value}");
    let file = host.read("/run/flannel/subnet.env")?;
    let text = "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.21.1/24\nFLANNEL_IPV6_NETWORK=fd00:7::/48\n\
                FLANNEL_IPV6_SUBNET=fd00:7:0:21::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";
    ensure!(file == text, "{file}");
    Ok(())
}

fn dual_stack_routes_lead_to_the_nodes_without_a_tunnel() -> Result<()> {
    let net = net(DUAL_HOST_GW)?;
    let _netd = both(&net, SUBNETS)?;
    let host = net.host("hdss7-21")?;
    let (first, second) = (pod(host, "21")?, pod(net.host("hdss7-22")?, "22")?);
    let _server = echo::serve(&second, "web", 80)?;
    ensure!(seen(&first, "172.7.22.2:80")? == "172.7.21.2");
    ensure!(seen(&first, "[fd00:7:0:22::2]:80")? == "fd00:7:0:21::2");
    let value = lease(&net, "172.7.21.0-24&fd00:7:0:21::-64")?;
    ensure!(value == r#"{"PublicIP":"10.4.7.21","PublicIPv6":"fd00:10:4:7::21","BackendType":"host-gw"}"#, "{value}");
    // A link that was down has no IPv6 address: the subnet stays, and all is as before once the address is back.
    host.run(&["ip", "link", "set", "eth0", "down"])?;
    host.run(&["ip", "link", "set", "eth0", "up"])?;
    give_ipv6(&net, "21")?;
    eventually(SOON, || {
        ensure!(seen(&first, "[fd00:7:0:22::2]:80")? == "fd00:7:0:21::2");
        Ok(())
    })?;
    ensure!(net.subnets()?.contains(&"172.7.21.0-24&fd00:7:0:21::-64".to_owned()), "{:?}", net.subnets()?);
    Ok(())
}

fn ipv6_rows_deleted_by_hand_are_back_within_a_second() -> Result<()> {
    let net = net(DUAL)?;
    let _netd = both(&net, SUBNETS)?;
    let host = net.host("hdss7-21")?;
    let delete_fdb = format!("bridge fdb del {} dev flannel-v6.1", mac(net.host("hdss7-22")?, "flannel-v6.1")?);
    let changes = [
        "ip -6 route del fd00:7:0:22::/64",
        "ip -6 neigh del fd00:7:0:22:: dev flannel-v6.1",
        delete_fdb.as_str(),
        "ip -6 address del fd00:7:0:21::/128 dev flannel-v6.1",
        "ip -6 address add fd00:7:0:21::9/128 dev flannel-v6.1 nodad",
        "ip link set flannel-v6.1 down",
        "ip link set flannel-v6.1 mtu 1400",
        "ip link set flannel-v6.1 address 02:00:00:00:00:99",
        "ip link del flannel-v6.1",
        "nft delete table ip6 netd",
        "nft flush ruleset",
        "sysctl -qw net.ipv6.conf.all.forwarding=0 && ip -6 route del fd00:7:0:22::/64",
    ];
    each_is_repaired(host, kernel_state, &changes)
}

fn restart_changes_nothing_of_either_family() -> Result<()> {
    let net = net(DUAL)?;
    let mut netd = both(&net, SUBNETS)?;
    let host = net.host("hdss7-21")?;
    let revision = |key: &str| net.etcd.etcdctl(&["get", "-w", "json", key]).map(|output| output.stdout);
    let key = "/coreos.com/network/subnets/172.7.21.0-24&fd00:7:0:21::-64";
    let (before, lease_before) = (kernel_state(host)?, revision(key)?);
    let monitor =
        host.command("ip").args(["-6", "-o", "monitor", "route", "neigh", "link", "address"]).start("monitor")?;
    netd.remove(0).terminate(SOON)?;
    ensure!(kernel_state(host)? == before, "the end of the daemon took something along");
    let again = net.launch("hdss7-21", &[])?;
    again.wait_for_line(READY, SOON)?;
    ensure!(kernel_state(host)? == before);
    ensure!(revision(key)? == lease_before, "the lease was written");
    let changes = settled_log(&monitor)?;
    // What the kernel does by itself: it resolves neighbours and settles link-local addresses.
    let kernels = ["REACHABLE", "STALE", "DELAY", "PROBE", "fe80:"];
    let ours = |line: &&str| line.contains("flannel") && !kernels.iter().any(|word| line.contains(word));
    ensure!(!changes.lines().any(|line| ours(&line)), "{changes}");
    Ok(())
}

fn device_and_routes_of_flannel_for_ipv6_are_adopted_in_place() -> Result<()> {
    let net = net(V6)?;
    let host = net.host("hdss7-21")?;
    let batch = "link add flannel-v6.1 address 02:00:00:00:06:21 mtu 1450 type vxlan id 1 dev eth0 local fd00:10:4:7::21 dstport 8472 nolearning\n\
                 address add fd00:7:0:5::/128 dev flannel-v6.1 nodad\nlink set flannel-v6.1 up\n\
                 neigh add fd00:7:0:22:: lladdr 02:00:00:00:06:22 dev flannel-v6.1 nud permanent\n\
                 route add fd00:7:0:22::/64 via fd00:7:0:22:: dev flannel-v6.1 onlink\n\
                 route add fd00:7:0:99::/64 via fd00:7:0:99:: dev flannel-v6.1 onlink\n";
    host.command("ip").args(["-batch", "-"]).input(batch).run()?;
    host.run(&[
        "bridge",
        "fdb",
        "add",
        "02:00:00:00:06:22",
        "dev",
        "flannel-v6.1",
        "dst",
        "fd00:10:4:7::22",
        "self",
        "permanent",
    ])?;
    let index = host.run(&["cat", "/sys/class/net/flannel-v6.1/ifindex"])?.stdout;
    let value = |n: &str| {
        format!(
            r#"{{"PublicIP":"0.0.0.0","PublicIPv6":"fd00:10:4:7::{n}","BackendType":"vxlan","BackendV6Data":{{"VNI":1,"VtepMAC":"02:00:00:00:06:{n}"}}}}"#
        )
    };
    net.etcd.put("/coreos.com/network/subnets/0.0.0.0-0&fd00:7:0:5::-64", &value("21"))?;
    net.etcd.put("/coreos.com/network/subnets/0.0.0.0-0&fd00:7:0:22::-64", &value("22"))?;
    let _netd = net.netd("hdss7-21")?;
    ensure!(host.run(&["cat", "/sys/class/net/flannel-v6.1/ifindex"])?.stdout == index, "the device was made anew");
    ensure!(mac(host, "flannel-v6.1")? == "02:00:00:00:06:21");
    let routes = host.run(&["ip", "-6", "route", "show", "dev", "flannel-v6.1"])?.stdout;
    let ours = routes.lines().filter(|line| line.contains("proto 121")).count();
    ensure!(ours == 1 && !routes.contains("fd00:7:0:99::") && !routes.contains("metric 1024 onlink"), "{routes}");
    ensure!(net.subnets()?.contains(&"0.0.0.0-0&fd00:7:0:5::-64".to_owned()), "{:?}", net.subnets()?);
    Ok(())
}

fn subnet_stays_when_a_family_is_switched_off_and_on_and_the_earlier_key_goes() -> Result<()> {
    let net = net(DUAL)?;
    let mut netd = both(&net, SUBNETS)?;
    let host = net.host("hdss7-21")?;
    let (first, second) = (pod(host, "21")?, pod(net.host("hdss7-22")?, "22")?);
    let _server = echo::serve(&second, "web", 80)?;
    let mut connection = echo::Connection::open(&first, "172.7.22.2:80".parse()?, SOON)?;
    for (config, key) in [(netd_node::VXLAN, "172.7.21.0-24"), (DUAL, "172.7.21.0-24&fd00:7:0:21::-64")] {
        net.etcd.put("/coreos.com/network/config", config)?;
        netd.remove(0).terminate(SOON)?;
        let again = net.launch("hdss7-21", &[])?;
        again.wait_for_line(READY, SOON)?;
        netd.insert(0, again);
        eventually(SOON, || {
            let own: Vec<String> = net.subnets()?.into_iter().filter(|key| key.contains("172.7.21.0")).collect();
            ensure!(own == [key], "{own:?}");
            let devices = host.run(&["ls", "/sys/class/net"])?.stdout;
            ensure!(devices.contains("flannel-v6.1") == key.contains('&'), "{devices}");
            Ok(())
        })?;
        connection.ask()?;
    }
    routes(&net, "22", "fd00:7:0:21::/64")?;
    eventually(SOON, || {
        ensure!(seen(&first, "[fd00:7:0:22::2]:80")? == "fd00:7:0:21::2");
        Ok(())
    })
}

fn family_comes_and_goes_on_nodes_that_run_and_stays_where_pods_have_it() -> Result<()> {
    let net = net(netd_node::VXLAN)?;
    let _netd = both(&net, [&["172.7.22.0/24"], &["172.7.21.0/24"]])?;
    let hosts = [net.host("hdss7-21")?, net.host("hdss7-22")?];
    let (first, second) = (netd_node::pod(hosts[0], "172.7.21")?, netd_node::pod(hosts[1], "172.7.22")?);
    let _server = echo::serve(&second, "web", 80)?;
    let mut connection = echo::Connection::open(&first, "172.7.22.2:80".parse()?, SOON)?;
    let keys =
        |n: &str, v6: bool| format!("172.7.{n}.0-24{}", if v6 { format!("&fd00:7:0:{n}::-64") } else { String::new() });
    // Whether each node has IPv6: in its lease, its devices, its rules and its subnet file.
    let settled = |has: [bool; 2]| {
        eventually(SOON, || {
            let wanted = [keys("21", has[0]), keys("22", has[1])];
            ensure!(net.subnets()? == wanted, "{:?} instead of {wanted:?}", net.subnets()?);
            for (host, has) in hosts.iter().zip(has) {
                let devices = host.run(&["ls", "/sys/class/net"])?.stdout;
                ensure!(devices.contains("flannel-v6.1") == has, "{devices}");
                let rules = host.run(&["nft", "list", "tables"])?.stdout;
                ensure!(rules.contains("table ip6 netd") == has && rules.contains("table ip netd"), "{rules}");
                let file = host.read("/run/flannel/subnet.env")?;
                ensure!(file.contains("FLANNEL_IPV6_SUBNET") == has && file.contains("FLANNEL_SUBNET"), "{file}");
                let status = netd_node::status(&net, host.name())?;
                ensure!(status["node"]["in_sync"] == true, "{status}");
            }
            Ok(())
        })
    };
    let configure = |config: &str| net.etcd.put("/coreos.com/network/config", config);
    settled([false, false])?;
    configure(DUAL)?;
    settled([true, true])?;
    routes(&net, "21", "fd00:7:0:22::/64")?;
    routes(&net, "22", "fd00:7:0:21::/64")?;
    connection.ask()?;
    // No Pod has an address of it.
    configure(netd_node::VXLAN)?;
    settled([false, false])?;
    for host in hosts {
        let left = host.run(&["ip", "-6", "route", "show", "proto", "121"])?.stdout;
        ensure!(left.trim().is_empty(), "{left}");
    }
    connection.ask()?;
    configure(DUAL)?;
    settled([true, true])?;
    hosts[0].run(&["ip", "address", "add", "fd00:7:0:21::1/64", "dev", "cbr0", "nodad"])?;
    let refused =
        "EnableIPv6: Pods that run have addresses of that family (interface cbr0 has one of fd00:7:0:21::/64)";
    configure(netd_node::VXLAN)?;
    settled([true, false])?;
    eventually(SOON, || {
        let warnings = netd_node::status(&net, "hdss7-21")?["warnings"].to_string();
        ensure!(warnings.contains(refused) && warnings.contains("restart netd"), "{warnings}");
        Ok(())
    })?;
    connection.ask()?;
    Ok(())
}

fn node_that_forwards_goes_on_taking_what_routers_announce() -> Result<()> {
    for (before, after) in [("1", "2"), ("0", "0"), ("2", "2")] {
        let net = net(V6)?;
        let host = net.host("hdss7-21")?;
        host.run(&["sysctl", "-qw", &format!("net.ipv6.conf.eth0.accept_ra={before}")])?;
        let netd = net.netd("hdss7-21")?;
        let parameters = ["net.ipv6.conf.all.forwarding", "net.ipv6.conf.eth0.accept_ra"];
        let read = || Ok::<_, anyhow::Error>(host.run(&["sysctl", "-n", parameters[0], parameters[1]])?.stdout);
        ensure!(read()? == format!("1\n{after}\n"), "{before}: {}", read()?);
        // The next start finds a host that forwards.
        netd.terminate(SOON)?;
        let _again = net.netd("hdss7-21")?;
        ensure!(read()? == format!("1\n{after}\n"), "{before}: {}", read()?);
    }
    Ok(())
}

fn node_with_one_family_of_two_is_served_in_that_one_and_takes_the_other_when_it_comes() -> Result<()> {
    let net = Net::start(DUAL)?;
    give_ipv6(&net, "21")?;
    let _netd = both(&net, [&["172.7.22.0/24"], &["172.7.21.0/24"]])?;
    let keys = ["172.7.21.0-24&fd00:7:0:21::-64".to_owned(), "172.7.22.0-24".to_owned()];
    ensure!(net.subnets()? == keys, "{:?}", net.subnets()?);
    let (first, second) = (pod(net.host("hdss7-21")?, "21")?, pod(net.host("hdss7-22")?, "22")?);
    let _server = echo::serve(&second, "web", 80)?;
    ensure!(seen(&first, "172.7.22.2:80")? == "172.7.21.2");
    let mut connection = echo::Connection::open(&first, "172.7.22.2:80".parse()?, SOON)?;
    // The address comes while netd runs: one lease holds both, with the subnet that Pods live in.
    give_ipv6(&net, "22")?;
    routes(&net, "21", "fd00:7:0:22::/64")?;
    routes(&net, "22", "fd00:7:0:21::/64")?;
    eventually(SOON, || {
        ensure!(seen(&first, "[fd00:7:0:22::2]:80")? == "fd00:7:0:21::2");
        Ok(())
    })?;
    connection.ask()?;
    eventually(SOON, || {
        let keys = ["172.7.21.0-24&fd00:7:0:21::-64".to_owned(), "172.7.22.0-24&fd00:7:0:22::-64".to_owned()];
        ensure!(net.subnets()? == keys, "{:?}", net.subnets()?);
        Ok(())
    })
}

fn family_that_comes_to_a_node_with_too_small_an_mtu_is_refused_with_its_reason_until_it_fits() -> Result<()> {
    // What comes: the family to the network's configuration, or the address to the node.
    for by_config in [true, false] {
        let net = Net::start(if by_config { netd_node::VXLAN } else { DUAL })?;
        give_ipv6(&net, "21")?;
        let (first, second) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
        if by_config {
            give_ipv6(&net, "22")?;
        }
        // 1320 - 50 is enough for IPv4, 1320 - 70 is not for IPv6.
        second.run(&["ip", "link", "set", "eth0", "mtu", "1320"])?;
        let _netd = both(&net, [&["172.7.22.0/24"], &["172.7.21.0/24"]])?;
        let (client, server) = (pod(first, "21")?, pod(second, "22")?);
        let _server = echo::serve(&server, "web", 80)?;
        let mut connection = echo::Connection::open(&client, "172.7.22.2:80".parse()?, SOON)?;
        if by_config {
            net.etcd.put("/coreos.com/network/config", DUAL)?;
        } else {
            give_ipv6(&net, "22")?;
        }
        let refused = "no Pods of IPv6: interface eth0 with MTU 1320 leaves 1250 bytes to Pods; 1280 are needed";
        eventually(SOON, || {
            let status = net.status("hdss7-22")?;
            ensure!(status["warnings"].to_string().contains(refused), "{status}");
            ensure!(status["node"]["in_sync"] == true && status["node"]["mtu"] == 1270, "{status}");
            let keys = ["172.7.21.0-24&fd00:7:0:21::-64".to_owned(), "172.7.22.0-24".to_owned()];
            ensure!(net.subnets()? == keys, "{:?}", net.subnets()?);
            Ok(())
        })?;
        ensure!(second.run(&["ip", "link", "show", "flannel-v6.1"]).is_err());
        connection.ask()?;
        second.run(&["ip", "link", "set", "eth0", "mtu", "1500"])?;
        routes(&net, "21", "fd00:7:0:22::/64")?;
        routes(&net, "22", "fd00:7:0:21::/64")?;
        eventually(SOON, || {
            let warnings = net.status("hdss7-22")?["warnings"].to_string();
            ensure!(!warnings.contains("no Pods of IPv6"), "{warnings}");
            ensure!(seen(&client, "[fd00:7:0:22::2]:80")? == "fd00:7:0:21::2");
            Ok(())
        })?;
        connection.ask()?;
    }
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            pods_with_ipv6_only_talk_and_everything_is_written_as_flannel_writes_it,
            dual_stack_pods_talk_in_both_families_and_are_seen_outside_as_their_node,
            dual_stack_routes_lead_to_the_nodes_without_a_tunnel,
            ipv6_rows_deleted_by_hand_are_back_within_a_second,
            restart_changes_nothing_of_either_family,
            device_and_routes_of_flannel_for_ipv6_are_adopted_in_place,
            subnet_stays_when_a_family_is_switched_off_and_on_and_the_earlier_key_goes,
            family_comes_and_goes_on_nodes_that_run_and_stays_where_pods_have_it,
            node_that_forwards_goes_on_taking_what_routers_announce,
            node_with_one_family_of_two_is_served_in_that_one_and_takes_the_other_when_it_comes,
            family_that_comes_to_a_node_with_too_small_an_mtu_is_refused_with_its_reason_until_it_fits,
        ],
    )
}
