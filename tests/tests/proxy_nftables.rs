//! The nftables data path with packets: who answers and whom the Pod sees, changes under load, repair, restart.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::Absent;
use lab::{Host, Need, Place, Process, echo, eventually};
use proxy::exposed::start;
use proxy::{
    DNS, Nodes, SERVICES, SOON, WEB, WEB_SERVICE, WEB_YAML, counted, dns, exposed, families, flow_moves_on, killed,
    node, sctp, slice, spread,
};

fn proxy(nodes: &Nodes) -> Result<Process> {
    exposed::proxy(nodes, "nftables")
}

/// Whom the four Pods see when the client is masqueraded: the bridge on its own node, the node's address on others.
const MASQUERADED: [(&str, &str); 4] = [
    ("172.7.21.2", "172.7.21.1"),
    ("172.7.21.3", "172.7.21.1"),
    ("172.7.22.2", "10.4.7.21"),
    ("172.7.22.3", "10.4.7.21"),
];

/// Asks until all four Pods have answered, and compares whom they saw.
fn ensure_seen(from: &impl Place, expected: [(&str, &str); 4]) -> Result<()> {
    let expected: BTreeSet<_> = expected.map(|(pod, client)| (pod.to_owned(), client.to_owned())).into();
    let mut seen = BTreeSet::new();
    // Choice is at random: that one of four is not chosen in 200 tries happens once in 10^24.
    for _ in 0..20 {
        seen.extend(spread(from, 10)?.into_iter().map(|(pod, (_, client))| (pod, client)));
        if seen.len() >= expected.len() {
            break;
        }
    }
    ensure!(seen == expected, "{seen:?}");
    Ok(())
}

fn everybody_reaches_a_service_and_only_pods_keep_their_source() -> Result<()> {
    let nodes = start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let _proxy = proxy(&nodes)?;
    ensure_seen(nodes.node()?, MASQUERADED).context("from the node")?;
    ensure_seen(nodes.outside()?, MASQUERADED).context("from outside")?;
    let mut kept = MASQUERADED.map(|(pod, _)| (pod, "172.7.21.2"));
    // A Pod keeps its address, except towards itself.
    kept[0].1 = "172.7.21.1";
    ensure_seen(nodes.pod("172.7.21.2")?, kept).context("from a Pod")?;
    let status = nodes.status()?;
    ensure!(status["mode"] == "nftables", "{status}");
    let left = nodes.node()?.run(&["ip", "-o", "link"])?.stdout;
    ensure!(!left.contains("kube-ipvs0"), "no virtual address is local: {left}");
    Ok(())
}

fn node_ports_are_at_the_addresses_that_are_asked_for_as_they_come_and_go() -> Result<()> {
    let nodes = start()?;
    nodes.publish("web.yaml", &exposed::exposed("externalTrafficPolicy: Cluster", &[exposed::HERE]))?;
    let of_default_route = nodes.proxy_with(&["--proxy-mode=nftables"])?;
    let ask = |addr: &str| echo::ask_tcp(nodes.node()?, format!("{addr}:30080").parse()?, SOON);
    let refuses = |addr: &str| match ask(addr) {
        Ok(answer) => anyhow::bail!("{addr} answers: {answer:?}"),
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(text.contains("refused"), "{addr}: {text}");
            Ok(())
        }
    };
    ask("10.9.9.21").context("the primary address, of the default route")?;
    refuses("10.4.7.21")?;
    // No address changes with it.
    nodes.node()?.run(&["ip", "route", "replace", "default", "via", "10.4.7.200", "dev", "eth0"])?;
    eventually(SOON, || {
        ask("10.4.7.21").context("the primary address, of another default route")?;
        refuses("10.9.9.21")
    })?;
    nodes.node()?.run(&["ip", "route", "replace", "default", "via", "10.9.9.1", "dev", "up0"])?;
    eventually(SOON, || refuses("10.4.7.21"))?;
    // The link of the default route gets another name, for which it is taken down.
    let renamed = "link set up0 down\nlink set up0 name up1\nlink set up1 up\nroute add default via 10.9.9.1 dev up1\n";
    nodes.node()?.command("ip").args(["-batch", "-"]).input(renamed).run()?;
    eventually(SOON, || {
        refuses("10.4.7.21")?;
        ask("10.9.9.21").map(drop)
    })?;
    of_default_route.terminate(SOON)?;
    let _proxy = nodes.proxy_with(&["--proxy-mode=nftables", "--nodeport-addresses=10.4.7.0/24,127.0.0.0/8"])?;
    eventually(SOON, || refuses("10.9.9.21"))?;
    ask("10.4.7.21")?;
    refuses("127.0.0.1")?;
    for _ in 0..2 {
        nodes.node()?.run(&["ip", "address", "add", "10.4.7.121/24", "dev", "eth0"])?;
        eventually(SOON, || echo::ask_tcp(nodes.outside()?, "10.4.7.121:30080".parse()?, SOON).map(drop))?;
        // Its network gets another length. What comes behind that shows that it was taken in.
        nodes.node()?.run(&["ip", "address", "add", "10.4.7.121/25", "dev", "eth0"])?;
        nodes.node()?.run(&["ip", "address", "del", "10.4.7.121/24", "dev", "eth0"])?;
        nodes.node()?.run(&["ip", "address", "add", "10.4.7.122/24", "dev", "eth0"])?;
        eventually(SOON, || echo::ask_tcp(nodes.outside()?, "10.4.7.122:30080".parse()?, SOON).map(drop))?;
        ask("10.4.7.121").context("an address whose network has another length")?;
        nodes.node()?.run(&["ip", "address", "del", "10.4.7.122/24", "dev", "eth0"])?;
        nodes.node()?.run(&["ip", "address", "del", "10.4.7.121/25", "dev", "eth0"])?;
        let row = || nodes.node()?.run(&["nft", "list", "set", "ip", "ipvs-proxy", "node-port-addresses"]);
        eventually(SOON, || {
            let set = row()?.stdout;
            ensure!(set.contains("10.4.7.21") && !set.contains("10.4.7.12"), "{set}");
            Ok(())
        })?;
    }
    Ok(())
}

fn a_flow_of_datagrams_moves_on_when_its_endpoint_goes() -> Result<()> {
    let nodes = start()?;
    nodes.publish("dns.yaml", &dns(&["172.7.21.3", "172.7.22.2"]))?;
    let _proxy = proxy(&nodes)?;
    let other = flow_moves_on(&nodes)?;
    ensure!(echo::ask_udp(nodes.pod("172.7.21.3")?, DNS.parse()?, SOON)?.name == other);
    // What was deleted for that is counted as kube-proxy counts it.
    let deleted = "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} ";
    eventually(SOON, || {
        let url = "http://127.0.0.1:10249/metrics";
        let page = nodes.node()?.run(&["curl", "-s", "--fail", "--max-time", "20", url])?.stdout;
        let count = page.lines().find_map(|line| line.strip_prefix(deleted)?.parse::<u64>().ok());
        ensure!(count.is_some_and(|count| count > 0), "{page}");
        Ok(())
    })
}

fn no_connection_fails_while_all_endpoints_are_replaced_again_and_again() -> Result<()> {
    let nodes = start()?;
    nodes.publish("service.yaml", WEB_SERVICE)?;
    nodes.publish("slice.yaml", &slice(&["172.7.21.2", "172.7.22.2"]))?;
    let _proxy = proxy(&nodes)?;
    let stop = AtomicBool::new(false);
    let asked = std::thread::scope(|scope| -> Result<usize> {
        let client = scope.spawn(|| -> Result<usize> {
            let mut asked = 0;
            while !stop.load(Ordering::Relaxed) {
                echo::ask_tcp(nodes.outside()?, WEB.parse()?, SOON).with_context(|| format!("request {asked}"))?;
                asked += 1;
            }
            Ok(asked)
        });
        let replaced = replace_again_and_again(&nodes);
        stop.store(true, Ordering::Relaxed);
        replaced?;
        client.join().map_err(|_| anyhow::anyhow!("the client panicked"))?
    })?;
    ensure!(asked >= 20, "{asked} requests");
    Ok(())
}

/// Ready endpoints come before others go, as a rolling update has it.
fn replace_again_and_again(nodes: &Nodes) -> Result<()> {
    let all = ["172.7.21.2", "172.7.21.3", "172.7.22.2", "172.7.22.3"];
    for round in 0..20 {
        let wanted: Vec<&str> = (0..=round % 3).map(|step| all[(round + step) % all.len()]).collect();
        nodes.publish("slice.yaml", &slice(&wanted))?;
        eventually(SOON, || {
            let map = nodes.node()?.run(&["nft", "list", "map", "ip", "ipvs-proxy", "endpoints"])?.stdout;
            let held: BTreeSet<&str> = all.into_iter().filter(|pod| map.contains(&format!(": {pod} . 80"))).collect();
            ensure!(held == wanted.iter().copied().collect(), "{map}");
            Ok(())
        })?;
    }
    Ok(())
}

fn ruleset(host: &Host) -> Result<String> {
    Ok(host.run(&["nft", "-s", "list", "ruleset"])?.stdout)
}

fn what_somebody_deletes_is_back_within_a_second() -> Result<()> {
    let nodes = start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let _proxy = proxy(&nodes)?;
    let node = nodes.node()?;
    let chain = ruleset(node)?
        .lines()
        .find_map(|line| Some(line.trim().strip_prefix("chain choose/")?.trim_end_matches(" {").to_owned()))
        .context("no chain chooses")?;
    for command in [
        "flush ruleset".to_owned(),
        "delete table ip ipvs-proxy".to_owned(),
        format!("flush chain ip ipvs-proxy choose/{chain}"),
        "delete element ip ipvs-proxy services { 192.168.0.10 . tcp . 80 }".to_owned(),
        "delete element ip ipvs-proxy endpoints { 192.168.0.10 . tcp . 80 . 0 }".to_owned(),
        "add element ip ipvs-proxy vips { 10.4.7.22 }".to_owned(),
    ] {
        let before = ruleset(node)?;
        let begun = Instant::now();
        let words: Vec<&str> = std::iter::once("nft").chain(command.split_whitespace()).collect();
        node.run(&words)?;
        eventually(SOON, || {
            let now = ruleset(node)?;
            ensure!(sorted(&now) == sorted(&before), "{now}");
            Ok(())
        })
        .with_context(|| command.clone())?;
        // A second, and what a loaded machine adds to it.
        ensure!(begun.elapsed() < Duration::from_secs(4), "{command}: after {:?}", begun.elapsed());
        echo::ask_tcp(node, WEB.parse()?, SOON).with_context(|| command.clone())?;
    }
    Ok(())
}

/// Chains come back in another order.
fn sorted(ruleset: &str) -> BTreeSet<&str> {
    ruleset.lines().collect()
}

fn killed_and_started_again_it_changes_nothing() -> Result<()> {
    let nodes = start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let first = proxy(&nodes)?;
    let held = || Ok::<_, anyhow::Error>(nodes.node()?.run(&["nft", "-s", "-a", "list", "ruleset"])?.stdout);
    let before = held()?;
    first.kill()?;
    ensure!(held()? == before, "its end touched the kernel");
    echo::ask_tcp(nodes.outside()?, WEB.parse()?, SOON).context("while it is away")?;
    let _second = proxy(&nodes)?;
    eventually(SOON, || {
        let status = nodes.status()?;
        ensure!(status["ok"] == true, "{status}");
        Ok(())
    })?;
    ensure!(held()? == before, "its start touched the kernel");
    let totals = &nodes.status()?["totals"];
    ensure!(totals["upserted"] == 0 && totals["removed"] == 0 && totals["failed"] == 0, "{totals}");
    Ok(())
}

fn killed_at_any_message_it_ends_right_after_the_next_start() -> Result<()> {
    killed::killed_at_any_message_it_ends_right_after_the_next_start("nftables", 10)
}

/// What the proxy counts of refused transactions of IPv4.
fn refusals(node: &Host) -> Result<u64> {
    let url = "http://127.0.0.1:10249/metrics";
    let page = node.run(&["curl", "-s", "--fail", "--max-time", "20", url])?.stdout;
    let name = "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"} ";
    Ok(page.lines().find_map(|line| line.strip_prefix(name)?.parse().ok()).unwrap_or(0))
}

/// A table with the flag `owner` belongs to the socket that made it: the kernel refuses it to everybody else (nft(8)).
fn a_table_that_the_kernel_refuses_is_counted_and_named() -> Result<()> {
    let nodes = start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let node = nodes.node()?;
    if node.run(&["nft", "add table ip tried { flags owner; }"]).is_err() {
        return Err(
            Absent::CannotBeHad("this kernel has no tables of nftables with an owner (Linux 5.12)".into()).into()
        );
    }
    node.run(&["mkfifo", "/run/owner"])?;
    let holder = node.command("sh").args(["-c", "exec nft -i 0<>/run/owner"]).start("nft")?;
    node.run(&["sh", "-c", "echo 'add table ip ipvs-proxy { flags owner; }' > /run/owner"])?;
    eventually(SOON, || {
        let table = node.run(&["nft", "list", "table", "ip", "ipvs-proxy"])?.stdout;
        ensure!(table.contains("flags owner"), "{table}");
        Ok(())
    })?;
    let command = node.command(lab::bin("ipvs-proxy")?).arg(format!("--services-dir={SERVICES}"));
    let proxy = command.args(["--proxy-mode=nftables", "--cluster-cidr=172.7.0.0/16"]).start("ipvs-proxy")?;
    eventually(SOON, || {
        let status = nodes.status()?;
        ensure!(status["ok"] == false && status.to_string().contains("Operation not permitted"), "{status}");
        ensure!(refusals(node)? > 0, "not counted");
        Ok(())
    })?;
    ensure!(proxy.is_running(), "{}", proxy.log());
    // It goes with the socket. A refused row is tried again after a minute; a new start does not wait for that.
    drop(holder);
    eventually(SOON, || {
        ensure!(node.run(&["nft", "list", "table", "ip", "ipvs-proxy"]).is_err(), "the table is there");
        Ok(())
    })?;
    ensure!(proxy.terminate(SOON)?.success(), "{}", proxy.log());
    let _proxy = nodes.proxy_with(&["--proxy-mode=nftables"])?;
    eventually(SOON, || {
        ensure!(nodes.status()?["ok"] == true, "{}", nodes.status()?);
        Ok(())
    })?;
    echo::ask_tcp(nodes.outside()?, WEB.parse()?, SOON)?;
    ensure!(refusals(node)? == 0, "what the kernel takes is no failure");
    Ok(())
}

fn cleanup_takes_all_of_it_away_and_nothing_else() -> Result<()> {
    let nodes = start()?;
    let node = nodes.node()?;
    node.run(&["nft", "add", "table", "ip", "foreign"])?;
    node.run(&["ip", "link", "add", "kube-ipvs0", "type", "bridge"])?;
    let before = ruleset(node)?;
    nodes.publish("web.yaml", WEB_YAML)?;
    ensure!(proxy(&nodes)?.terminate(SOON)?.success());
    ensure!(ruleset(node)? != before, "nothing was made");
    node.command(lab::bin("ipvs-proxy")?).arg("--cleanup").run()?;
    ensure!(ruleset(node)? == before, "{}", ruleset(node)?);
    node.run(&["ip", "link", "show", "kube-ipvs0"]).context("a link that it never made").map(drop)
}

fn both_families_of_a_service_are_served() -> Result<()> {
    families::both_families_of_a_service_are_served("nftables")
}

fn ipv6_alone_is_served() -> Result<()> {
    families::ipv6_alone_is_served("nftables")
}

fn a_flow_over_ipv6_moves_on_when_its_endpoint_goes() -> Result<()> {
    families::a_flow_over_ipv6_moves_on_when_its_endpoint_goes("nftables")
}

fn every_class_of_clients_is_led_by_the_policy() -> Result<()> {
    exposed::every_class_of_clients_is_led_by_the_policy("nftables")
}

fn every_class_is_led_where_pods_are_known_by_their_interface() -> Result<()> {
    exposed::every_class_is_led_where_pods_are_known_by_their_interface("nftables")
}

fn a_pod_of_another_node_reaches_itself_through_this_one() -> Result<()> {
    exposed::a_pod_of_another_node_reaches_itself_through_this_one("nftables")
}

fn the_policy_local_without_an_endpoint_here_is_silent() -> Result<()> {
    exposed::the_policy_local_without_an_endpoint_here_is_silent("nftables")
}

fn source_ranges_let_only_listed_clients_in() -> Result<()> {
    exposed::source_ranges_let_only_listed_clients_in("nftables")
}

fn what_nobody_serves_is_refused_at_once() -> Result<()> {
    exposed::what_nobody_serves_is_refused_at_once("nftables")
}

fn the_primary_address_is_that_of_the_default_route_whatever_becomes_of_its_link() -> Result<()> {
    node::the_primary_address_is_that_of_the_default_route_whatever_becomes_of_its_link("nftables")
}

fn a_node_object_says_zone_pods_and_primary_address() -> Result<()> {
    node::a_node_object_says_zone_pods_and_primary_address("nftables")
}

fn load_balancers_are_sent_elsewhere_while_the_node_leaves() -> Result<()> {
    node::load_balancers_are_sent_elsewhere_while_the_node_leaves()
}

fn clients_over_ipv6_stay_with_their_endpoint_until_it_goes() -> Result<()> {
    families::clients_over_ipv6_stay_with_their_endpoint_until_it_goes("nftables")
}

fn pods_of_ipv6_are_known_by_their_interface() -> Result<()> {
    families::pods_of_ipv6_are_known_by_their_interface("nftables")
}

fn both_ends_of_an_association_find_each_other() -> Result<()> {
    sctp::both_ends_of_an_association_find_each_other("nftables")
}

fn each_connection_of_a_service_is_counted_once() -> Result<()> {
    counted::each_connection_of_a_service_is_counted_once("nftables")
}

fn prometheus_scrapes_the_numbers_of_ten_thousand_services() -> Result<()> {
    counted::prometheus_scrapes_the_numbers_of_ten_thousand_services()
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables],
        lab::tests![
            everybody_reaches_a_service_and_only_pods_keep_their_source,
            node_ports_are_at_the_addresses_that_are_asked_for_as_they_come_and_go,
            a_flow_of_datagrams_moves_on_when_its_endpoint_goes,
            no_connection_fails_while_all_endpoints_are_replaced_again_and_again,
            what_somebody_deletes_is_back_within_a_second,
            killed_and_started_again_it_changes_nothing,
            killed_at_any_message_it_ends_right_after_the_next_start,
            a_table_that_the_kernel_refuses_is_counted_and_named,
            cleanup_takes_all_of_it_away_and_nothing_else,
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
            a_node_object_says_zone_pods_and_primary_address,
            the_primary_address_is_that_of_the_default_route_whatever_becomes_of_its_link,
            load_balancers_are_sent_elsewhere_while_the_node_leaves,
            both_ends_of_an_association_find_each_other,
            prometheus_scrapes_the_numbers_of_ten_thousand_services,
            each_connection_of_a_service_is_counted_once,
        ],
    )
}
