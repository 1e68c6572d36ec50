//! Routes of other people inside the Pod network, and routes that a predecessor left.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Host, Need, eventually, throughout};
use netd_node::{HOST_GW, Net, SOON, VXLAN, pod};
use nix::sys::signal::Signal;

/// Routes of every kind that an administrator or another program may have inside the Pod network.
const FOREIGN: [&str; 11] = [
    "172.7.50.0/24 via 10.4.7.200 dev eth0 metric 5",
    "172.7.51.0/24 via 10.4.7.200 dev eth0 proto static",
    "172.7.52.0/24 via 10.4.7.200 dev eth0 proto bird",
    "172.7.53.0/24 via 10.4.7.200 dev eth0 proto 121",
    "172.7.53.0/24 via 10.4.7.200 dev eth0 proto 121 metric 77",
    "172.7.54.0/24 dev eth0 scope link",
    "172.7.55.128/25 via 10.4.7.200 dev eth0",
    "blackhole 172.7.56.0/24",
    "unreachable 172.7.57.0/24 proto 121",
    "172.7.58.0/24 proto 121 nexthop via 10.4.7.200 dev eth0 nexthop via 10.4.7.11 dev eth0",
    "172.7.59.0/24 via 10.4.7.200 dev eth0 table 77 proto 121",
];

fn add(host: &Host, routes: &[&str]) -> Result<()> {
    let batch: String = routes.iter().map(|route| format!("route add {route}\n")).collect();
    host.command("ip").args(["-batch", "-"]).input(batch).run().map(drop)
}

/// All routes but those of Pods and of links.
fn routes(host: &Host) -> Result<String> {
    Ok(host.run(&["sh", "-c", "ip route show table all | grep '172\\.7\\.5[0-9]'"])?.stdout)
}

fn foreign_routes_inside_the_pod_network_stay(config: &str) -> Result<()> {
    let net = Net::start(config)?;
    let [first, _second] = net.both()?;
    let host = net.host("hdss7-21")?;
    // While it runs, whether or not this is the first run on this machine.
    add(host, &FOREIGN)?;
    add(host, &["172.7.40.0/24 via 10.4.7.200 dev eth0"])?;
    let before = routes(host)?;
    ensure!(before.lines().count() >= FOREIGN.len(), "{before}");
    let stay = || {
        ensure!(routes(host)? == before, "{}\n--- instead of\n{before}", routes(host)?);
        let ours = host.run(&["ip", "route", "show", "172.7.40.0/24"])?.stdout;
        ensure!(ours.contains("10.4.7.200"), "a route of flannel's shape that flannel did not make is gone");
        Ok(())
    };
    // A repair reads the whole table.
    host.run(&["ip", "route", "flush", "proto", "121", "172.7.22.0/24"])?;
    net.eventually_routes("hdss7-21", "172.7.22.0/24")?;
    throughout(Duration::from_secs(2), stay)?;
    first.terminate(SOON)?;
    let _again = net.netd("hdss7-21")?;
    throughout(Duration::from_secs(2), stay)
}

fn foreign_routes_stay_beside_a_tunnel() -> Result<()> {
    foreign_routes_inside_the_pod_network_stay(VXLAN)
}

fn foreign_routes_stay_beside_direct_ones() -> Result<()> {
    foreign_routes_inside_the_pod_network_stay(HOST_GW)
}

fn first_start_takes_over_only_what_flannel_makes() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    let device = "link add flannel.1 address 02:00:00:00:00:21 mtu 1450 type vxlan id 1 local 10.4.7.21 dev eth0 \
        nolearning dstport 8472\naddress add 172.7.21.0/32 dev flannel.1\nlink set flannel.1 up\n\
        route add 172.7.22.0/24 via 172.7.22.0 dev flannel.1 onlink\n\
        route add 172.7.23.0/24 via 172.7.23.0 dev flannel.1 onlink\n\
        route add 172.7.44.0/24 via 172.7.44.0 dev flannel.1 onlink\n\
        route add 172.7.50.0/24 via 172.7.50.1 dev flannel.1 onlink\n\
        route add 172.7.51.0/24 via 172.7.51.0 dev flannel.1 onlink metric 3\n\
        route add 172.7.52.0/25 via 172.7.52.0 dev flannel.1 onlink\n\
        route add 172.7.53.0/24 via 172.7.53.0 dev flannel.1 onlink proto static\n\
        route add 172.7.54.0/24 via 10.4.7.200\n";
    host.command("ip").args(["-batch", "-"]).input(device).run()?;
    add(host, &FOREIGN[6..9])?;
    let before = routes(host)?;
    // Most of the nodes are still there, so the listing is believed.
    for last in [22, 23] {
        net.put_lease(&format!("172.7.{last}.0-24"), &format!("10.4.7.{last}"), &format!("02:00:00:00:00:{last}"))?;
    }
    let _netd = net.netd("hdss7-21")?;
    eventually(SOON, || {
        let left = host.run(&["ip", "route", "show", "172.7.44.0/24"])?.stdout;
        ensure!(left.is_empty(), "flannel's route to a node that is gone stays: {left}");
        Ok(())
    })?;
    throughout(Duration::from_secs(1), || {
        ensure!(routes(host)? == before, "{}\n--- instead of\n{before}", routes(host)?);
        Ok(())
    })
}

fn route_of_a_predecessor_to_what_is_now_the_own_subnet_goes() -> Result<()> {
    for left in [
        // flannel's, of a node that had this subnet before; netd's own with the metric that it gives.
        "route add 172.7.21.0/24 via 172.7.21.0 dev flannel.1 onlink\n",
        "route add 172.7.21.0/24 via 172.7.21.0 dev flannel.1 onlink proto 121 metric 1789\n",
    ] {
        let net = Net::start(VXLAN)?;
        let host = net.host("hdss7-21")?;
        let mut batch =
            "link add flannel.1 mtu 1450 type vxlan id 1 local 10.4.7.21 dev eth0 nolearning dstport 8472\n\
            link set flannel.1 up\n"
                .to_owned();
        let metric = own_metric(&net)?;
        batch.push_str(&left.replace("1789", &metric));
        host.command("ip").args(["-batch", "-"]).input(batch).run()?;
        let _netd = net.netd("hdss7-21")?;
        let web = pod(host, "172.7.21")?;
        eventually(SOON, || {
            let routes = host.run(&["ip", "route", "show", "172.7.21.0/24"])?.stdout;
            ensure!(!routes.contains("flannel.1"), "{left}stays: {routes}");
            web.run(&["ping", "-c1", "-W1", "172.7.21.1"])?;
            host.run(&["ping", "-c1", "-W1", "172.7.21.2"]).map(drop)
        })?;
    }
    Ok(())
}

/// The metric that netd gives to a route to 172.7.21.0/24.
fn own_metric(net: &Net) -> Result<String> {
    let _other = net.netd("hdss7-22")?;
    let config = net.etcd.get("/coreos.com/network/config")?.unwrap_or_default();
    let backend = if config.contains("host-gw") { "host-gw" } else { "02:00:00:00:00:99" };
    net.put_lease("172.7.21.0-24", "10.4.7.99", backend)?;
    net.eventually_routes("hdss7-22", "172.7.21.0/24")?;
    let route = net.host("hdss7-22")?.run(&["ip", "route", "show", "172.7.21.0/24"])?.stdout;
    net.etcd.delete("/coreos.com/network/subnets/172.7.21.0-24")?;
    let words: Vec<&str> = route.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "metric").unwrap();
    Ok(words[at + 1].to_owned())
}

fn foreign_route_in_front_of_pods_is_reported_and_stays() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let [netd, _second] = net.both()?;
    let host = net.host("hdss7-21")?;
    // Objects of next hops: one, a group of several, and one that refuses.
    let objects = "nexthop add id 7 via 10.4.7.200 dev eth0\nnexthop add id 8 via 10.4.7.11 dev eth0\n\
                   nexthop add id 9 group 7/8\nnexthop add id 10 blackhole\n";
    host.command("ip").args(["-batch", "-"]).input(objects).run()?;
    let ours = || Ok::<_, anyhow::Error>(host.run(&["ip", "route", "show", "proto", "121", "172.7.22.0/24"])?.stdout);
    let before = ours()?;
    let quiet = net.status("hdss7-21")?;
    ensure!(quiet["warnings"].as_array().unwrap().is_empty(), "{quiet}");
    for (route, what) in [
        ("172.7.21.0/24 via 10.4.7.200 proto static metric 5", "172.7.21.0/24"),
        ("172.7.22.0/24 via 10.4.7.200 proto static metric 5", "172.7.22.0/24"),
        ("172.7.22.0/25 via 10.4.7.200", "172.7.22.0/25"),
        ("blackhole 172.7.22.7", "172.7.22.7/32"),
        ("172.7.22.0/24 nexthop via 10.4.7.200 dev eth0 nexthop via 10.4.7.11 dev eth0", "172.7.22.0/24"),
        ("172.7.22.0/24 nhid 7 metric 5", "172.7.22.0/24"),
        ("172.7.22.0/24 nhid 9 proto 121", "172.7.22.0/24"),
        ("172.7.22.0/26 nhid 9", "172.7.22.0/26"),
        ("172.7.22.0/24 nhid 10", "172.7.22.0/24"),
    ] {
        host.run(&["sh", "-c", &format!("ip route add {route}")])?;
        // Compares everything now, as it does each minute by itself.
        netd.signal(Signal::SIGHUP)?;
        eventually(SOON, || {
            let status = net.status("hdss7-21")?;
            let warnings = status["warnings"].as_array().unwrap();
            let named =
                |warning: &serde_json::Value| warning.as_str().is_some_and(|text| text.contains(&format!("{what} ")));
            ensure!(warnings.iter().any(named), "{route} is not reported: {warnings:?}");
            Ok(())
        })?;
        // Theirs stays, which is why it can be deleted, and ours is neither doubled nor gone.
        host.run(&["sh", "-c", &format!("ip route del {route}")])?;
        ensure!(ours()? == before, "beside {route}: {}", ours()?);
        // Compares everything now, as it does each minute by itself.
        netd.signal(Signal::SIGHUP)?;
        eventually(SOON, || {
            let status = net.status("hdss7-21")?;
            ensure!(status["warnings"].as_array().unwrap().is_empty(), "after `ip route del {route}`: {status}");
            Ok(())
        })?;
    }
    Ok(())
}

/// By its protocol and metric it is netd's, whose own route with the same key stands behind it.
fn route_with_our_protocol_in_front_of_ours_is_taken_away() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let [netd, _second] = net.both()?;
    let host = net.host("hdss7-21")?;
    let routes = || Ok::<_, anyhow::Error>(host.run(&["ip", "route", "show", "172.7.22.0/24"])?.stdout);
    let before = routes()?;
    let forged = "172.7.22.0/24 via 10.4.7.200 dev eth0 metric 1790 proto 121";
    for verb in ["prepend", "append"] {
        host.run(&["sh", "-ec", &format!("ip route {verb} {forged}")])?;
        netd.signal(Signal::SIGHUP)?;
        eventually(SOON, || {
            let first = routes()?.lines().next().map(str::to_owned);
            ensure!(first.as_deref() == before.lines().next(), "{verb}: {first:?}");
            Ok(())
        })?;
    }
    eventually(SOON, || {
        let status = net.status("hdss7-21")?;
        ensure!(status["warnings"].as_array().unwrap().is_empty() && status["node"]["in_sync"] == true, "{status}");
        Ok(())
    })
}

fn route_that_a_rule_prefers_is_reported() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let [netd, _second] = net.both()?;
    let host = net.host("hdss7-21")?;
    for (add, del, what) in [
        (
            "ip route add default via 10.4.7.200 table 77; ip rule add to 172.7.22.0/24 lookup 77",
            "ip route flush table 77; ip rule del to 172.7.22.0/24 lookup 77",
            "of somebody else in table 77, is in front of netd's to 172.7.22.0/24",
        ),
        (
            "ip rule add to 172.7.22.0/24 blackhole",
            "ip rule del to 172.7.22.0/24 blackhole",
            "172.7.22.0/24 cannot be reached",
        ),
    ] {
        host.run(&["sh", "-ec", add])?;
        // Compares everything now, as it does each minute by itself.
        netd.signal(Signal::SIGHUP)?;
        eventually(SOON, || {
            let warnings = net.status("hdss7-21")?["warnings"].to_string();
            ensure!(warnings.contains(what), "{add}: {warnings}");
            Ok(())
        })?;
        host.run(&["sh", "-c", del])?;
        netd.signal(Signal::SIGHUP)?;
        eventually(SOON, || {
            let status = net.status("hdss7-21")?;
            ensure!(status["warnings"].as_array().unwrap().is_empty(), "after `{del}`: {status}");
            Ok(())
        })?;
    }
    Ok(())
}

fn default_route_with_several_next_hops_names_the_interface() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    host.run(&[
        "ip",
        "route",
        "add",
        "default",
        "nexthop",
        "via",
        "10.4.7.11",
        "dev",
        "eth0",
        "nexthop",
        "via",
        "10.4.7.12",
        "dev",
        "eth0",
    ])?;
    let endpoints = format!("--etcd-endpoints={}", net.etcd.endpoints());
    let netd = host.command(lab::bin("netd")?).args([endpoints.as_str()]).start("netd")?;
    netd.wait_for_line("ready: every lease is in the kernel", SOON)?;
    let status = net.status("hdss7-21")?;
    ensure!(status["node"]["interface"] == "eth0", "{status}");
    Ok(())
}

fn route_with_our_metric_stays_beside_ours_and_gives_way_in_its_place() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let [netd, _second] = net.both()?;
    let host = net.host("hdss7-21")?;
    let listed = || host.run(&["ip", "route", "show", "172.7.22.0/24"]).map(|run| run.stdout);
    let (route, words) = (listed()?, |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let metric = &words(&route)[words(&route).iter().position(|word| word == "metric").unwrap() + 1];
    let other = format!("172.7.22.0/24 via 10.4.7.200 dev eth0 metric {metric}");
    for (verb, in_front) in [("append", false), ("prepend", true)] {
        host.run(&["sh", "-c", &format!("ip route {verb} {other}")])?;
        // Compares everything now, as it does each minute by itself.
        netd.signal(Signal::SIGHUP)?;
        let stays = || {
            let routes = listed()?;
            ensure!(routes.contains("dev flannel.1") && routes.contains("10.4.7.200"), "{verb}: {routes}");
            Ok(())
        };
        throughout(Duration::from_secs(1), stays)?;
        eventually(SOON, || {
            let warnings = net.status("hdss7-21")?["warnings"].to_string();
            ensure!(warnings.contains("172.7.22.0/24") == in_front, "{verb}: {warnings}");
            Ok(())
        })?;
        host.run(&["sh", "-c", &format!("ip route del {other}")])?;
    }
    for other in [other.clone(), format!("{other} proto 121"), format!("blackhole 172.7.22.0/24 metric {metric}")] {
        host.run(&["sh", "-c", &format!("ip route replace {other}")])?;
        eventually(SOON, || {
            ensure!(listed()?.contains("dev flannel.1"), "{other}: {}", listed()?);
            Ok(())
        })?;
        host.run(&["sh", "-c", &format!("ip route del {other} 2>/dev/null; true")])?;
    }
    Ok(())
}

fn direct_route_of_a_predecessor_to_what_is_now_the_own_subnet_goes() -> Result<()> {
    for left in ["172.7.21.0/24 via 10.4.7.99 dev eth0", "172.7.21.0/24 via 10.4.7.99 dev eth0 proto 121 metric 1789"] {
        let net = Net::start(HOST_GW)?;
        let host = net.host("hdss7-21")?;
        let metric = own_metric(&net)?;
        add(host, &[&left.replace("1789", &metric)])?;
        let _netd = net.netd("hdss7-21")?;
        let web = pod(host, "172.7.21")?;
        eventually(SOON, || {
            let routes = host.run(&["ip", "route", "show", "172.7.21.0/24"])?.stdout;
            ensure!(!routes.contains("10.4.7.99"), "{left} stays: {routes}");
            web.run(&["ping", "-c1", "-W1", "172.7.21.1"])?;
            host.run(&["ping", "-c1", "-W1", "172.7.21.2"]).map(drop)
        })?;
    }
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            foreign_routes_stay_beside_a_tunnel,
            foreign_routes_stay_beside_direct_ones,
            first_start_takes_over_only_what_flannel_makes,
            route_of_a_predecessor_to_what_is_now_the_own_subnet_goes,
            foreign_route_in_front_of_pods_is_reported_and_stays,
            route_that_a_rule_prefers_is_reported,
            route_with_our_protocol_in_front_of_ours_is_taken_away,
            default_route_with_several_next_hops_names_the_interface,
            route_with_our_metric_stays_beside_ours_and_gives_way_in_its_place,
            direct_route_of_a_predecessor_to_what_is_now_the_own_subnet_goes,
        ],
    )
}
