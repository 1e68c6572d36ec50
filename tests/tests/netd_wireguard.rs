//! The wireguard backend on a real kernel: Pods that talk, keys that stay, peers that come, go and roam.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;
mod secrets;

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Host, Need, echo, eventually, throughout};
use netd_node::{Conversation, Net, SOON, VXLAN, pod};
use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, socket};
use secrets::Secrets;

const WIREGUARD: &str = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"wireguard"}}"#;

/// A key like any other, for nodes that are not there.
const STRANGER: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

const KEY_FILE: &str = "/var/lib/netd/wgkey";

/// What `wg show flannel-wg WHAT` prints on a node, sorted.
fn wg(host: &Host, what: &str) -> Result<Vec<String>> {
    let text = host.run(&["wg", "show", "flannel-wg", what])?.stdout;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    Ok(lines)
}

fn public_key(host: &Host) -> Result<String> {
    Ok(wg(host, "public-key")?.first().context("no public key")?.clone())
}

/// The line of `wg show flannel-wg WHAT` about a peer, without its key.
fn of_peer(host: &Host, what: &str, key: &str) -> Result<String> {
    let lines = wg(host, what)?;
    let line =
        lines.iter().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key} in {lines:?}"))?;
    Ok(line.trim().to_owned())
}

/// Bytes received from and sent to a peer. A peer that was taken out and put in again, which resets its session, begins at 0.
fn transferred(host: &Host, key: &str) -> Result<Vec<u64>> {
    let line = of_peer(host, "transfer", key)?;
    line.split_whitespace().map(|word| word.parse().with_context(|| line.clone())).collect()
}

/// The peer is the one that had transferred `before`. When its last handshake was says less: keys are exchanged anew every two minutes.
fn ensure_same_session(host: &Host, key: &str, before: &[u64]) -> Result<()> {
    let now = transferred(host, key)?;
    ensure!(
        now.iter().zip(before).all(|(now, before)| now >= before),
        "the session was reset: {now:?} after {before:?}"
    );
    Ok(())
}

/// A connection with enough behind it that a new session could not have caught up.
fn long_conversation(net: &Net) -> Result<Conversation> {
    let mut connection = Conversation::open(net)?;
    (0..20).try_for_each(|_| connection.ask())?;
    Ok(connection)
}

/// What netd is responsible for on a node, as text that is equal when the state is.
fn state(host: &Host) -> Result<String> {
    let script = "ip -d link show type wireguard | grep -v link/ | sed 's/^[0-9]*: //; s/qlen.*//'; ip -4 -br address show dev flannel-wg; \
                  ip route | grep -v cbr0; for what in public-key listen-port peers endpoints allowed-ips preshared-keys \
                  persistent-keepalive; do wg show flannel-wg $what | sort; done; nft -s list ruleset";
    Ok(host.run(&["sh", "-c", script])?.stdout)
}

fn put_lease(net: &Net, n: u8, key: &str) -> Result<()> {
    let value = format!(
        r#"{{"PublicIP":"10.4.7.{n}","PublicIPv6":null,"BackendType":"wireguard","BackendData":{{"PublicKey":"{key}","Port":51820}}}}"#
    );
    net.etcd.put(&format!("/coreos.com/network/subnets/172.7.{n}.0-24"), &value)
}

fn lease(net: &Net, n: u8) -> Result<String> {
    net.etcd.get(&format!("/coreos.com/network/subnets/172.7.{n}.0-24"))?.context("no lease")
}

fn pods_on_two_nodes_talk_through_the_tunnel_with_their_own_addresses() -> Result<()> {
    let net = Net::start(WIREGUARD)?;
    let _netd = net.both()?;
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let (first, second) = (pod(here, "172.7.21")?, pod(there, "172.7.22")?);
    // 1420 - 20 (IPv4) - 8 (ICMP)
    first.run(&["ping", "-c1", "-W5", "-M", "do", "-s", "1392", "172.7.22.2"])?;
    ensure!(first.run(&["ping", "-c1", "-W2", "-M", "do", "-s", "1393", "172.7.22.2"]).is_err());
    let _server = echo::serve(&second, "web", 80)?;
    let server: SocketAddr = "172.7.22.2:80".parse()?;
    let answer = echo::ask_tcp(&first, server, SOON)?;
    ensure!(answer.client.ip().to_string() == "172.7.21.2", "the server saw {}", answer.client);
    // The node itself is seen as the first address of its subnet.
    let answer = echo::ask_tcp(here, server, SOON)?;
    ensure!(answer.client.ip().to_string() == "172.7.21.0", "the server saw {}", answer.client);
    ensure!(of_peer(here, "transfer", &public_key(there)?)? != "0\t0", "the packets went another way");
    let subnet = here.read("/run/flannel/subnet.env")?;
    ensure!(subnet.contains("FLANNEL_MTU=1420"), "{subnet}");
    // To the byte as flannel writes it.
    let expected = format!(
        r#"{{"PublicIP":"10.4.7.21","PublicIPv6":null,"BackendType":"wireguard","BackendData":{{"PublicKey":"{}","Port":51820}}}}"#,
        public_key(here)?
    );
    ensure!(lease(&net, 21)? == expected, "{}", lease(&net, 21)?);
    Ok(())
}

fn what_crosses_the_link_between_pods_is_encrypted() -> Result<()> {
    const NAME: &str = "a-name-in-the-clear";
    let net = Net::start(WIREGUARD)?;
    let _netd = net.both()?;
    let here = net.host("hdss7-21")?;
    let (first, second) = (pod(here, "172.7.21")?, pod(net.host("hdss7-22")?, "172.7.22")?);
    let _server = echo::serve(&second, NAME, 80)?;
    let card: usize = here.read("/sys/class/net/eth0/ifindex")?.trim().parse()?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let open = || socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthAll);
    let reader = here.within(open)??;
    ensure!(echo::ask_tcp(&first, "172.7.22.2:80".parse()?, SOON)?.name == NAME);
    let (mut tunnelled, mut clear, mut bytes) = (0, 0, [0; 2048]);
    while let Ok((length, Some(from))) = recvfrom::<LinkAddr>(reader.as_raw_fd(), &mut bytes) {
        let packet = &bytes[..length];
        let is_clear = packet.windows(NAME.len()).any(|part| part == NAME.as_bytes());
        let is_on_the_link = from.ifindex() == card;
        ensure!(!(is_clear && is_on_the_link), "{packet:02x?} crosses the link");
        clear += u32::from(is_clear);
        // UDP to or from the tunnel's port.
        tunnelled += u32::from(
            is_on_the_link && packet.get(9) == Some(&17) && packet.get(22..24) == Some(&51820_u16.to_be_bytes()),
        );
    }
    ensure!(clear > 0 && tunnelled > 0, "{clear} packets in the clear inside the node, {tunnelled} on the link");
    Ok(())
}

fn key_outlives_restart_and_reboot_and_is_shown_to_nobody() -> Result<()> {
    let psk = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    let backend = format!(r#"{{"Type":"wireguard","PSK":"{psk}","PersistentKeepaliveInterval":25}}"#);
    let net = Net::start(&format!(r#"{{"Network":"172.7.0.0/16","Backend":{backend}}}"#))?;
    let [first, _second] = net.both()?;
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let (web, _other) = (pod(here, "172.7.21")?, pod(there, "172.7.22")?);
    web.run(&["ping", "-c1", "-W5", "172.7.22.2"])?;
    let (key, private, other) = (public_key(here)?, here.read(KEY_FILE)?, public_key(there)?);
    ensure!(of_peer(here, "preshared-keys", &other)? == psk && of_peer(here, "persistent-keepalive", &other)? == "25");
    let mode = std::fs::metadata(here.path(KEY_FILE))?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "{mode:o}");
    // Both are in the kernel, so they were used.
    let secrets = Secrets::new(&[("private key", private.trim()), ("preshared key", psk)])?;
    secrets.are_shown_by_nothing_of(here, "netd", &first)?;
    ensure!(first.terminate(SOON)?.success());
    // What a reboot takes.
    here.run(&["ip", "link", "del", "flannel-wg"])?;
    here.run(&["sh", "-c", "rm -rf /run/netd /run/flannel"])?;
    let _again = net.netd("hdss7-21")?;
    ensure!(public_key(here)? == key, "another key");
    ensure!(lease(&net, 21)?.contains(&key));
    web.run(&["ping", "-c1", "-W5", "172.7.22.2"])?;
    Ok(())
}

/// As on a machine whose disk is a copy of another node's.
fn key_that_a_living_node_has_is_not_used_by_a_second_one() -> Result<()> {
    let net = Net::start(WIREGUARD)?;
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let _first = net.netd("hdss7-21")?;
    let (key, private) = (public_key(here)?, here.read(KEY_FILE)?);
    there.run(&["mkdir", "-p", "/var/lib/netd"])?;
    there.write(KEY_FILE, &private)?;
    let second = net.netd("hdss7-22")?;
    second.wait_for_line("is its disk a copy?", SOON)?;
    ensure!(public_key(there)? != key && public_key(here)? == key && here.read(KEY_FILE)? == private);
    ensure!(there.read("/var/lib/netd/wgkey.of-another-node")? == private, "what was there is not lost");
    let (first, _other) = (pod(here, "172.7.21")?, pod(there, "172.7.22")?);
    first.run(&["ping", "-c1", "-W5", "172.7.22.2"])?;
    // The key stays from now on.
    let own = public_key(there)?;
    ensure!(second.terminate(SOON)?.success());
    let _second = net.netd("hdss7-22")?;
    ensure!(public_key(there)? == own);
    Ok(())
}

fn what_is_changed_by_hand_is_back_after_the_next_listing() -> Result<()> {
    let net = Net::start(WIREGUARD)?;
    let _netd = net.both()?;
    let host = net.host("hdss7-21")?;
    put_lease(&net, 99, STRANGER)?;
    net.eventually_routes("hdss7-21", "172.7.99.0/24")?;
    let (before, other) = (state(host)?, public_key(net.host("hdss7-22")?)?);
    for change in [
        "ip route del 172.7.22.0/24".to_owned(),
        "ip link del flannel-wg".to_owned(),
        "ip link set flannel-wg down".to_owned(),
        "ip link set flannel-wg mtu 1400".to_owned(),
        "ip address del 172.7.21.0/32 dev flannel-wg".to_owned(),
        format!("wg set flannel-wg peer {other} remove"),
        format!("wg set flannel-wg peer {STRANGER} endpoint 10.4.7.98:1"),
        format!("wg set flannel-wg peer {STRANGER} allowed-ips 172.7.22.0/24"),
        format!("wg set flannel-wg peer {STRANGER} persistent-keepalive 7"),
        "wg set flannel-wg peer xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg= allowed-ips 172.7.22.0/24".to_owned(),
        "wg set flannel-wg listen-port 7777".to_owned(),
        "wg genkey > /tmp/netd-test-key; wg set flannel-wg private-key /tmp/netd-test-key".to_owned(),
    ] {
        host.run(&["sh", "-c", &change])?;
        // Far below the time of an audit.
        eventually(SOON, || {
            let now = state(host)?;
            ensure!(now == before, "after `{change}`:\n{now}\n--- instead of\n{before}");
            Ok(())
        })?;
    }
    Ok(())
}

fn session_of_a_peer_goes_on_while_others_come_change_and_go() -> Result<()> {
    let net = Net::start(WIREGUARD)?;
    let _netd = net.both()?;
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let mut connection = long_conversation(&net)?;
    let key = public_key(there)?;
    let before = transferred(here, &key)?;
    put_lease(&net, 99, STRANGER)?;
    eventually(SOON, || {
        ensure!(of_peer(here, "endpoints", STRANGER)? == "10.4.7.99:51820");
        Ok(())
    })?;
    // The same node at another address, with another subnet beside.
    let moved = lease(&net, 99)?.replace("10.4.7.99", "10.4.7.98");
    net.etcd.put("/coreos.com/network/subnets/172.7.99.0-24", &moved)?;
    eventually(SOON, || {
        ensure!(of_peer(here, "endpoints", STRANGER)? == "10.4.7.98:51820");
        Ok(())
    })?;
    // With another key, as after a new installation: its addresses go over, and the old peer goes.
    let new = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    net.etcd.put("/coreos.com/network/subnets/172.7.99.0-24", &moved.replace(STRANGER, new))?;
    eventually(SOON, || {
        ensure!(of_peer(here, "allowed-ips", new)? == "172.7.99.0/24" && wg(here, "peers")?.len() == 2);
        Ok(())
    })?;
    net.etcd.delete("/coreos.com/network/subnets/172.7.99.0-24")?;
    eventually(SOON, || {
        ensure!(wg(here, "peers")?.len() == 1, "{:?}", wg(here, "peers")?);
        Ok(())
    })?;
    ensure_same_session(here, &key, &before)?;
    connection.ask()?;
    Ok(())
}

fn data_path_outlives_the_daemon_and_a_restart_changes_nothing() -> Result<()> {
    let net = Net::start(WIREGUARD)?;
    let [first, _second] = net.both()?;
    let host = net.host("hdss7-21")?;
    let mut connection = long_conversation(&net)?;
    let key = public_key(net.host("hdss7-22")?)?;
    let (before, bytes) = (state(host)?, transferred(host, &key)?);
    ensure!(first.terminate(SOON)?.success());
    ensure!(state(host)? == before, "the end changed the kernel");
    connection.ask()?;
    let again = net.netd("hdss7-21")?;
    again.wait_for_line("kernel tables in sync, 0 changes", SOON)?;
    again.kill()?;
    connection.ask()?;
    let third = net.netd("hdss7-21")?;
    third.wait_for_line("kernel tables in sync, 0 changes", SOON)?;
    ensure!(state(host)? == before);
    ensure_same_session(host, &key, &bytes)?;
    connection.ask()?;
    Ok(())
}

fn backend_changes_to_another_and_back_under_a_connection_and_the_key_stays() -> Result<()> {
    let net = Net::start(WIREGUARD)?;
    let _netd = net.both()?;
    let hosts = [net.host("hdss7-21")?, net.host("hdss7-22")?];
    let mut connection = Conversation::open(&net)?;
    let key = public_key(hosts[0])?;
    for (config, here, gone) in [(VXLAN, "flannel.1", "flannel-wg"), (WIREGUARD, "flannel-wg", "flannel.1")] {
        net.etcd.put("/coreos.com/network/config", config)?;
        eventually(3 * SOON, || {
            connection.ask()?;
            for host in hosts {
                let links = host.run(&["ip", "-br", "link"])?.stdout;
                ensure!(links.contains(here) && !links.contains(gone), "{links}");
            }
            Ok(())
        })?;
        connection.ask()?;
    }
    ensure!(public_key(hosts[0])? == key, "another key");
    Ok(())
}

fn peer_that_roams_is_followed() -> Result<()> {
    let net = Net::start(WIREGUARD)?;
    let [_first, second] = net.both()?;
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let (web, other) = (pod(here, "172.7.21")?, pod(there, "172.7.22")?);
    other.run(&["ping", "-c1", "-W5", "172.7.21.2"])?;
    ensure!(second.terminate(SOON)?.success());
    // Its packets come from another port now, as behind a NAT that forgot.
    there.run(&["wg", "set", "flannel-wg", "listen-port", "52000"])?;
    other.run(&["ping", "-c1", "-W5", "172.7.21.2"])?;
    let key = public_key(there)?;
    throughout(Duration::from_secs(4), || {
        let endpoint = of_peer(here, "endpoints", &key)?;
        ensure!(endpoint == "10.4.7.22:52000", "{endpoint}");
        Ok(())
    })?;
    web.run(&["ping", "-c1", "-W5", "172.7.22.2"])?;
    let status = net.status("hdss7-21")?;
    ensure!(status["tables"]["wireguard"]["desired"] == status["tables"]["wireguard"]["done"], "{status}");
    Ok(())
}

fn device_key_and_route_of_flannel_are_taken_over_in_place() -> Result<()> {
    let net = Net::start(WIREGUARD)?;
    let host = net.host("hdss7-21")?;
    let script = "mkdir -p /run/flannel; umask 077; wg genkey > /run/flannel/wgkey; ip link add flannel-wg type wireguard; \
                  wg set flannel-wg private-key /run/flannel/wgkey listen-port 51820; \
                  ip link set flannel-wg mtu 1420 up; ip address add 172.7.21.0/32 dev flannel-wg; \
                  ip route add 172.7.0.0/16 dev flannel-wg scope link";
    host.run(&["sh", "-c", script])?;
    host.run(&["wg", "set", "flannel-wg", "peer", STRANGER, "allowed-ips", "172.7.44.0/24"])?;
    let (key, index) = (public_key(host)?, host.read("/sys/class/net/flannel-wg/ifindex")?);
    put_lease(&net, 22, STRANGER)?;
    let netd = net.netd("hdss7-21")?;
    eventually(SOON, || {
        let routes = host.run(&["ip", "route"])?.stdout;
        ensure!(routes.contains("172.7.22.0/24 dev flannel-wg") && !routes.contains("172.7.0.0/16"), "{routes}");
        Ok(())
    })?;
    ensure!(public_key(host)? == key && host.read("/sys/class/net/flannel-wg/ifindex")? == index);
    ensure!(of_peer(host, "allowed-ips", STRANGER)? == "172.7.22.0/24");
    ensure!(host.read(KEY_FILE)?.trim() == host.read("/run/flannel/wgkey")?.trim());
    ensure!(!netd.log().contains(host.read(KEY_FILE)?.trim()));
    Ok(())
}

fn auto_takes_the_link_where_it_can_and_the_tunnel_elsewhere() -> Result<()> {
    let net = Net::start(r#"{"Network":"172.7.0.0/16","Backend":{"Type":"auto","Tunnel":"wireguard"}}"#)?;
    let _netd = net.both()?;
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let value = r#"{"PublicIP":"10.9.9.99","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"KEY","Port":51820}}"#;
    net.etcd.put("/coreos.com/network/subnets/172.7.99.0-24", &value.replace("KEY", STRANGER))?;
    net.eventually_routes("hdss7-21", "172.7.99.0/24")?;
    let routes = here.run(&["ip", "route"])?.stdout;
    ensure!(routes.contains("172.7.22.0/24 via 10.4.7.22 dev eth0"), "{routes}");
    ensure!(routes.contains("172.7.99.0/24 dev flannel-wg"), "{routes}");
    ensure!(wg(here, "peers")? == [STRANGER]);
    let (first, _second) = (pod(here, "172.7.21")?, pod(there, "172.7.22")?);
    first.run(&["ping", "-c1", "-W5", "172.7.22.2"])?;
    Ok(())
}

/// The cluster with IPv6 addresses beside, and Pods of both families on both nodes.
fn both_families(mode: &str) -> Result<()> {
    let backend = format!(r#"{{"Type":"wireguard","Mode":"{mode}"}}"#);
    let families = r#""EnableIPv6":true,"Network":"172.7.0.0/16","IPv6Network":"fd00:7::/48""#;
    let net = Net::start(&format!(r#"{{{families},"Backend":{backend}}}"#))?;
    let mut pods = Vec::new();
    for n in ["21", "22"] {
        let host = net.host(&format!("hdss7-{n}"))?;
        host.run(&["ip", "address", "add", &format!("fd00:10:4:7::{n}/64"), "dev", "eth0", "nodad"])?;
    }
    let _netd = net.both()?;
    for n in ["21", "22"] {
        let host = net.host(&format!("hdss7-{n}"))?;
        let pod = pod(host, &format!("172.7.{n}"))?;
        host.run(&["ip", "address", "add", &format!("fd00:7:0:{n}::1/64"), "dev", "cbr0", "nodad"])?;
        pod.run(&["ip", "address", "add", &format!("fd00:7:0:{n}::2/64"), "dev", "eth0", "nodad"])?;
        pod.run(&["ip", "route", "add", "default", "via", &format!("fd00:7:0:{n}::1")])?;
        pods.push(pod);
    }
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    eventually(SOON, || {
        let routes = here.run(&["ip", "-6", "route"])?.stdout;
        ensure!(routes.contains("fd00:7:0:22::/64 dev flannel-wg"), "{routes}");
        Ok(())
    })?;
    pods[0].run(&["ping", "-c1", "-W5", "172.7.22.2"])?;
    pods[0].run(&["ping", "-6", "-c1", "-W5", "-M", "do", "-s", "1372", "fd00:7:0:22::2"])?;
    let _server = echo::serve(&pods[1], "web", 80)?;
    let answer = echo::ask_tcp(&pods[0], "172.7.22.2:80".parse()?, SOON)?;
    ensure!(answer.client.ip().to_string() == "172.7.21.2", "the server saw {}", answer.client);
    let key = public_key(there)?;
    let allowed = of_peer(here, "allowed-ips", &key)?;
    if mode == "separate" {
        ensure!(allowed == "172.7.22.0/24", "{allowed}");
        let text = here.run(&["wg", "show", "flannel-wg-v6"])?.stdout;
        ensure!(text.contains("endpoint: [fd00:10:4:7::22]:51821") && text.contains("latest handshake"), "{text}");
    } else {
        ensure!(allowed == "172.7.22.0/24 fd00:7:0:22::/64", "{allowed}");
        ensure!(of_peer(here, "endpoints", &key)? == "[fd00:10:4:7::22]:51820");
        ensure!(here.run(&["ip", "link", "show", "flannel-wg-v6"]).is_err(), "one device is enough");
    }
    Ok(())
}

fn each_family_has_a_device_of_its_own() -> Result<()> {
    both_families("separate")
}

fn one_device_carries_both_families_over_ipv6() -> Result<()> {
    both_families("ipv6")
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::WireGuard, Need::Nftables],
        lab::tests![
            pods_on_two_nodes_talk_through_the_tunnel_with_their_own_addresses,
            what_crosses_the_link_between_pods_is_encrypted,
            key_outlives_restart_and_reboot_and_is_shown_to_nobody,
            key_that_a_living_node_has_is_not_used_by_a_second_one,
            what_is_changed_by_hand_is_back_after_the_next_listing,
            session_of_a_peer_goes_on_while_others_come_change_and_go,
            data_path_outlives_the_daemon_and_a_restart_changes_nothing,
            backend_changes_to_another_and_back_under_a_connection_and_the_key_stays,
            peer_that_roams_is_followed,
            device_key_and_route_of_flannel_are_taken_over_in_place,
            auto_takes_the_link_where_it_can_and_the_tunnel_elsewhere,
            each_family_has_a_device_of_its_own,
            one_device_carries_both_families_over_ipv6,
        ],
    )
}
