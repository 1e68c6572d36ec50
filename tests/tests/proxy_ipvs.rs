//! Connections through a Service: who answers, and whom the Pod sees.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Need, echo, eventually};
use proxy::affinity::{clients_move_with_their_endpoint_only, only_answer, sticky};
use proxy::{
    DNS, Nodes, SOON, WEB, WEB_SERVICE, WEB_YAML, ask, await_reals, client, cold, counted, dns, exposed, families,
    filter, flow_moves_on, killed, node, sctp, servers, slice, spread,
};

const PODS: [&str; 4] = ["172.7.21.2", "172.7.21.3", "172.7.22.2", "172.7.22.3"];
/// Whom the four Pods see when the client is masqueraded: the bridge on its own node, the node's address on others.
const MASQUERADED: [&str; 4] = ["172.7.21.1", "172.7.21.1", "10.4.7.21", "10.4.7.21"];

/// Each Pod twice out of eight, with the source address that it must see.
fn each_twice(seen: [&str; 4]) -> BTreeMap<String, (usize, String)> {
    PODS.iter().zip(seen).map(|(pod, seen)| ((*pod).to_owned(), (2, seen.to_owned()))).collect()
}

fn connections_spread_evenly_and_only_pods_keep_their_source() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let _proxy = nodes.proxy()?;
    let from_node = spread(nodes.node()?, 8)?;
    ensure!(from_node == each_twice(MASQUERADED), "from the node: {from_node:?}");
    let from_outside = spread(nodes.outside()?, 8)?;
    ensure!(from_outside == each_twice(MASQUERADED), "from outside: {from_outside:?}");
    // A Pod keeps its address, except towards itself.
    let from_pod = spread(nodes.pod("172.7.21.2")?, 8)?;
    let seen = ["172.7.21.1", "172.7.21.2", "172.7.21.2", "172.7.21.2"];
    ensure!(from_pod == each_twice(seen), "from a Pod: {from_pod:?}");
    Ok(())
}

fn no_packet_leaves_with_the_masquerade_mark() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let _proxy = nodes.proxy()?;
    let probe = "table ip probe {
        chain before { type filter hook postrouting priority 50; meta mark & 0x4000 == 0x4000 counter; }
        chain behind { type filter hook postrouting priority 300; meta mark & 0x4000 == 0x4000 counter; }
    }";
    nodes.node()?.command("nft").args(["-f", "-"]).input(probe).run()?;
    spread(nodes.node()?, 4)?;
    spread(nodes.outside()?, 4)?;
    let marked = |chain: &str| -> Result<bool> {
        let text = nodes.node()?.run(&["nft", "list", "chain", "ip", "probe", chain])?.stdout;
        Ok(!text.contains("counter packets 0 "))
    };
    // A tunnel's own packet would inherit the mark and be masqueraded as well.
    ensure!(marked("before")? && !marked("behind")?, "before {}, behind {}", marked("before")?, marked("behind")?);
    Ok(())
}

fn a_flow_of_datagrams_moves_on_when_its_endpoint_goes() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("dns.yaml", &dns(&["172.7.21.3", "172.7.22.2"]))?;
    let _proxy = nodes.proxy()?;
    for from in ["172.7.21.2", "172.7.21.3"] {
        let answer = echo::ask_udp(nodes.pod(from)?, DNS.parse()?, SOON)?;
        ensure!(["172.7.21.3", "172.7.22.2"].contains(&answer.name.as_str()), "{answer:?}");
    }
    flow_moves_on(&nodes).map(drop)
}

fn a_flow_that_began_before_its_service_reaches_it_at_last() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("dns.yaml", WEB_SERVICE)?;
    let _proxy = nodes.proxy()?;
    // The node forwards the first datagrams to nowhere and remembers the flow as one that goes there.
    nodes.node()?.run(&["ip", "route", "add", "192.168.0.0/16", "via", "10.4.7.99"])?;
    nodes.node()?.run(&["ip", "neigh", "replace", "10.4.7.99", "lladdr", "02:00:00:00:00:99", "dev", "eth0"])?;
    let socket = client(nodes.pod("172.7.21.2")?)?;
    ensure!(ask(&socket).is_err(), "nobody can answer yet");
    nodes.publish("dns.yaml", &dns(&["172.7.22.3"]))?;
    eventually(SOON, || ask(&socket).map(drop))
}

/// Persistence has an own time at each address, and what quiesces keeps none.
fn clients_of_an_endpoint_that_leaves_move_and_no_others() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("web.yaml", &sticky(10_800, "Cluster", &PODS))?;
    let _proxy = nodes.proxy()?;
    let shown = servers(nodes.node()?)?;
    ensure!(shown.contains(&"-A -t 192.168.0.10:80 -s rr -p 10800".to_owned()), "{shown:?}");
    clients_move_with_their_endpoint_only(&nodes)
}

/// Round robin would give them two endpoints.
fn pods_of_a_network_are_one_client_where_the_service_says_so() -> Result<()> {
    let nodes = Nodes::start()?;
    let annotated = "{name: web, annotations: {ipvs-proxy/affinity-prefix: \"ipv4=24\"}}";
    let text = sticky(10_800, "Cluster", &PODS).replacen("{name: web}", annotated, 1);
    nodes.publish("web.yaml", &text)?;
    let _proxy = nodes.proxy()?;
    let shown = servers(nodes.node()?)?;
    let virtual_server = "-A -t 192.168.0.10:80 -s rr -p 10800 -M 255.255.255.0";
    ensure!(shown.iter().any(|line| line == virtual_server), "{shown:?}");
    let of = |pod| only_answer(nodes.pod(pod)?, &[WEB]);
    let (first, second) = (of("172.7.21.2")?, of("172.7.21.3")?);
    ensure!(first == second, "{first} and {second}");
    Ok(())
}

fn connections_are_shared_as_endpoints_weigh() -> Result<()> {
    let nodes = Nodes::start()?;
    let annotations = "{ipvs-proxy/scheduler: wrr, ipvs-proxy/weights: \"here=3,elsewhere=1\"}";
    let service = WEB_SERVICE.replacen("{name: web}", &format!("{{name: web, annotations: {annotations}}}"), 1);
    let own = "[172.7.21.2]\n  nodeName: hdss7-21.host.com";
    let endpoints = slice(&["172.7.21.2", "172.7.22.2"]).replacen("[172.7.21.2]", own, 1);
    nodes.publish("web.yaml", &format!("{service}---\n{endpoints}"))?;
    let _proxy = nodes.proxy()?;
    await_reals(nodes.node()?, &[("172.7.21.2", 3), ("172.7.22.2", 1)])?;
    let shares: Vec<_> = spread(nodes.outside()?, 40)?.into_iter().map(|(name, (count, _))| (name, count)).collect();
    ensure!(shares == [("172.7.21.2".to_owned(), 30), ("172.7.22.2".to_owned(), 10)], "{shares:?}");
    Ok(())
}

fn a_port_that_no_service_has_is_refused_although_the_node_listens_on_it() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let _proxy = nodes.proxy()?;
    let _server = echo::serve(nodes.node()?, "node", 8080)?;
    let ask = |server: &str| -> Result<String> {
        let server: SocketAddr = server.parse()?;
        echo::ask_tcp(nodes.outside()?, server, SOON).map(|answer| answer.name)
    };
    ensure!(ask("10.4.7.21:8080")? == "node");
    let error = format!("{:#}", ask("192.168.0.10:8080").unwrap_err());
    ensure!(error.contains("refused"), "{error}");
    Ok(())
}

fn a_service_without_endpoints_refuses_at_once() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("web.yaml", WEB_SERVICE)?;
    let _proxy = nodes.proxy()?;
    for error in [
        echo::ask_tcp(nodes.node()?, proxy::WEB.parse()?, SOON).unwrap_err(),
        echo::ask_tcp(nodes.outside()?, proxy::WEB.parse()?, SOON).unwrap_err(),
        echo::ask_tcp(nodes.pod("172.7.21.2")?, proxy::WEB.parse()?, SOON).unwrap_err(),
    ] {
        let text = format!("{error:#}");
        ensure!(text.contains("refused"), "{text}");
    }
    Ok(())
}

/// A Service of SCTP with an address, an external one and a node port.
const SCTP: &str = "apiVersion: v1
kind: Service
metadata: {name: sig}
spec:
  type: NodePort
  clusterIP: 192.168.0.20
  externalIPs: [10.4.7.98]
  ports: [{name: sig, port: 3868, nodePort: 30868, protocol: SCTP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
addressType: IPv4
metadata: {name: sig-1, labels: {kubernetes.io/service-name: sig}}
ports: [{name: sig, port: 3868, protocol: SCTP}]
endpoints: [{addresses: [172.7.21.2]}]
";

fn a_service_of_sctp_has_a_virtual_server_at_each_of_its_places() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("sig.yaml", SCTP)?;
    let _proxy = nodes.proxy_with(&["--nodeport-addresses=10.4.7.0/24"])?;
    let mut expected = Vec::new();
    for place in ["10.4.7.21:30868", "10.4.7.98:3868", "192.168.0.20:3868"] {
        expected.push(format!("-A --sctp-service {place} -s rr"));
        expected.push(format!("-a --sctp-service {place} -r 172.7.21.2:3868 -m -w 1"));
    }
    expected.sort();
    let found = servers(nodes.node()?)?;
    ensure!(found == expected, "{found:?}");
    let status = nodes.status()?;
    ensure!(status["notServed"] == serde_json::json!([]), "{status}");
    Ok(())
}

fn both_families_of_a_service_are_served() -> Result<()> {
    families::both_families_of_a_service_are_served("ipvs")
}

fn ipv6_alone_is_served() -> Result<()> {
    families::ipv6_alone_is_served("ipvs")
}

fn a_flow_over_ipv6_moves_on_when_its_endpoint_goes() -> Result<()> {
    families::a_flow_over_ipv6_moves_on_when_its_endpoint_goes("ipvs")
}

fn every_class_of_clients_is_led_by_the_policy() -> Result<()> {
    exposed::every_class_of_clients_is_led_by_the_policy("ipvs")
}

fn every_class_is_led_where_pods_are_known_by_their_interface() -> Result<()> {
    exposed::every_class_is_led_where_pods_are_known_by_their_interface("ipvs")
}

fn a_pod_of_another_node_reaches_itself_through_this_one() -> Result<()> {
    exposed::a_pod_of_another_node_reaches_itself_through_this_one("ipvs")
}

fn the_policy_local_without_an_endpoint_here_is_silent() -> Result<()> {
    exposed::the_policy_local_without_an_endpoint_here_is_silent("ipvs")
}

fn source_ranges_let_only_listed_clients_in() -> Result<()> {
    exposed::source_ranges_let_only_listed_clients_in("ipvs")
}

fn what_nobody_serves_is_refused_at_once() -> Result<()> {
    exposed::what_nobody_serves_is_refused_at_once("ipvs")
}

fn an_address_that_no_service_has_is_silent_unless_a_network_here_has_it() -> Result<()> {
    filter::an_address_that_no_service_has_is_silent_unless_a_network_here_has_it("ipvs")
}

fn a_connection_that_is_open_when_its_service_goes_is_reset() -> Result<()> {
    filter::a_connection_that_is_open_when_its_service_goes_is_reset()
}

fn the_primary_address_is_that_of_the_default_route_whatever_becomes_of_its_link() -> Result<()> {
    node::the_primary_address_is_that_of_the_default_route_whatever_becomes_of_its_link("ipvs")
}

fn a_node_object_says_zone_pods_and_primary_address() -> Result<()> {
    node::a_node_object_says_zone_pods_and_primary_address("ipvs")
}

fn packets_of_no_connection_are_dropped_unless_tracking_is_liberal() -> Result<()> {
    filter::packets_of_no_connection_are_dropped_unless_tracking_is_liberal("ipvs")
}

fn what_listens_at_loopback_is_not_reached_from_elsewhere() -> Result<()> {
    filter::what_listens_at_loopback_is_not_reached_from_elsewhere("ipvs")
}

fn clients_over_ipv6_stay_with_their_endpoint_until_it_goes() -> Result<()> {
    families::clients_over_ipv6_stay_with_their_endpoint_until_it_goes("ipvs")
}

fn pods_of_ipv6_are_known_by_their_interface() -> Result<()> {
    families::pods_of_ipv6_are_known_by_their_interface("ipvs")
}

fn both_ends_of_an_association_find_each_other() -> Result<()> {
    sctp::both_ends_of_an_association_find_each_other("ipvs")
}

fn each_connection_of_a_service_is_counted_once() -> Result<()> {
    counted::each_connection_of_a_service_is_counted_once("ipvs")
}

fn packets_and_bytes_of_a_service_are_what_was_sent_and_received() -> Result<()> {
    counted::packets_and_bytes_of_a_service_are_what_was_sent_and_received()
}

fn numbers_of_services_can_be_left_out() -> Result<()> {
    counted::numbers_of_services_can_be_left_out()
}

fn killed_at_any_message_it_ends_right_after_the_next_start() -> Result<()> {
    killed::killed_at_any_message_it_ends_right_after_the_next_start("ipvs", 6)
}

fn dns_answers_on_a_new_node_before_the_last_service_is_there() -> Result<()> {
    cold::dns_answers_on_a_new_node_before_the_last_service_is_there()
}

fn main() -> ExitCode {
    // Beside other work on the machine they have taken more than the ten minutes that there are by default.
    let suite = lab::harness::Suite::new(&[Need::IpVs, Need::Nftables, Need::Dummy]).limit(Duration::from_secs(1800));
    suite.run(lab::tests![
        connections_spread_evenly_and_only_pods_keep_their_source,
        no_packet_leaves_with_the_masquerade_mark,
        a_flow_of_datagrams_moves_on_when_its_endpoint_goes,
        a_flow_that_began_before_its_service_reaches_it_at_last,
        clients_of_an_endpoint_that_leaves_move_and_no_others,
        pods_of_a_network_are_one_client_where_the_service_says_so,
        connections_are_shared_as_endpoints_weigh,
        a_port_that_no_service_has_is_refused_although_the_node_listens_on_it,
        a_service_without_endpoints_refuses_at_once,
        a_service_of_sctp_has_a_virtual_server_at_each_of_its_places,
        both_families_of_a_service_are_served,
        ipv6_alone_is_served,
        a_flow_over_ipv6_moves_on_when_its_endpoint_goes,
        clients_over_ipv6_stay_with_their_endpoint_until_it_goes,
        pods_of_ipv6_are_known_by_their_interface,
        every_class_of_clients_is_led_by_the_policy,
        every_class_is_led_where_pods_are_known_by_their_interface,
        a_pod_of_another_node_reaches_itself_through_this_one,
        the_policy_local_without_an_endpoint_here_is_silent,
        source_ranges_let_only_listed_clients_in,
        what_nobody_serves_is_refused_at_once,
        the_primary_address_is_that_of_the_default_route_whatever_becomes_of_its_link,
        a_node_object_says_zone_pods_and_primary_address,
        an_address_that_no_service_has_is_silent_unless_a_network_here_has_it,
        a_connection_that_is_open_when_its_service_goes_is_reset,
        packets_of_no_connection_are_dropped_unless_tracking_is_liberal,
        what_listens_at_loopback_is_not_reached_from_elsewhere,
        both_ends_of_an_association_find_each_other,
        each_connection_of_a_service_is_counted_once,
        packets_and_bytes_of_a_service_are_what_was_sent_and_received,
        numbers_of_services_can_be_left_out,
        killed_at_any_message_it_ends_right_after_the_next_start,
        dns_answers_on_a_new_node_before_the_last_service_is_there,
    ])
}
