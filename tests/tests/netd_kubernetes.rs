//! netd on a real API server: nodes of it and of flannel are one network, and what the own Node says stays true.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod kube_nodes;
mod secrets;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use kube_nodes::{DUAL, HOST_GW, NODES, Net, PREFIX, READY, SOON, VXLAN};
use lab::harness::Suite;
use lab::kubernetes::{Fault, Release};
use lab::{Need, Process, allowing_for_load, eventually, throughout};
use secrets::Secrets;
use serde_json::{Value, json};

/// A node of flannel's, as it would announce itself.
const FLANNEL: [(&str, &str); 3] = [
    ("backend-type", "vxlan"),
    ("backend-data", r#"{"VNI":1,"VtepMAC":"02:00:00:00:01:31"}"#),
    ("public-ip", "10.4.7.31"),
];

fn nodes_of_netd_and_of_flannel_are_one_network() -> Result<()> {
    let net = Net::start(Release::V1_20, VXLAN)?;
    net.put_node(NODES[0], &["172.7.21.0/24"])?;
    net.put_node(NODES[1], &["172.7.22.0/24"])?;
    net.put_flannel("flannel", &["172.7.31.0/24"], &FLANNEL)?;
    net.put_node("unmanaged", &["172.7.41.0/24"])?;
    let daemons = [net.launch(NODES[0], &[])?, net.launch(NODES[1], &[])?];
    net.eventually_routes(NODES[0], &["172.7.22.0/24", "172.7.31.0/24"])?;
    net.eventually_routes(NODES[1], &["172.7.21.0/24", "172.7.31.0/24"])?;
    daemons.iter().try_for_each(|netd| netd.wait_for_line(READY, SOON).map(drop))?;
    // What a flannel node reads, to the byte.
    let link = net.host(NODES[0])?.run(&["cat", "/sys/class/net/flannel.1/address"])?.stdout;
    for (name, value) in [
        ("kube-subnet-manager", "true".to_owned()),
        ("backend-type", "vxlan".to_owned()),
        ("backend-data", format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, link.trim())),
        ("public-ip", "10.4.7.21".to_owned()),
        ("backend-v6-data", String::new()),
        ("public-ipv6", String::new()),
    ] {
        ensure!(net.annotation(NODES[0], name)? == value, "{name}: {}", net.node(NODES[0])?);
    }
    NODES.iter().try_for_each(|node| net.eventually_available(node))?;
    net.eventually_subnet(NODES[0], "172.7.21.1/24")?;
    let status = net.status(NODES[0])?;
    ensure!(status.contains("kubernetes: listed") && status.contains("leases   2 other nodes"), "{status}");
    // A restart finds everything as it is: the Node is not written.
    let before = net.faults(NODES[0])?.seen().len();
    let [first, _second] = daemons;
    ensure!(first.terminate(SOON)?.success());
    let again = net.launch(NODES[0], &[])?;
    again.wait_for_line(READY, SOON)?;
    net.eventually_status(NODES[0], "in sync")?;
    let seen = net.faults(NODES[0])?.seen();
    let patches: Vec<_> = seen[before..].iter().filter(|request| request.method == "PATCH").collect();
    ensure!(patches.is_empty(), "{patches:?}");
    Ok(())
}

fn what_is_missing_is_waited_for_and_named() -> Result<()> {
    let net = Net::start(Release::V1_20, VXLAN)?;
    let (node, faults) = (NODES[0], net.faults(NODES[0])?);
    faults.refuse()?;
    let netd = net.launch(node, &[])?;
    netd.wait_for_line("waiting: ", SOON)?;
    net.eventually_status(node, "not begun yet")?;
    faults.heal()?;
    net.eventually_status(node, "Node hdss7-21 does not exist")?;
    net.put_node(node, &[])?;
    net.eventually_status(node, "it has no podCIDR: have the controller-manager give them out")?;
    net.eventually_event(node, "NoSubnet: Node hdss7-21: it has no podCIDR")?;
    ensure!(netd.is_running());
    // The controller-manager of a cluster with another --cluster-cidr.
    net.api
        .patch("/api/v1/nodes/hdss7-21", &json!({"spec": {"podCIDR": "10.9.1.0/24", "podCIDRs": ["10.9.1.0/24"]}}))?;
    net.eventually_status(node, "podCIDR 10.9.1.0/24 is not in the network 172.7.0.0/16")?;
    net.api.delete("/api/v1/nodes/hdss7-21")?;
    net.put_node(node, &["172.7.21.0/24"])?;
    netd.wait_for_line(READY, SOON)?;
    net.eventually_available(node)
}

fn what_is_taken_from_the_own_node_is_written_again() -> Result<()> {
    let net = Net::start(Release::V1_20, VXLAN)?;
    let node = NODES[0];
    net.put_node(node, &["172.7.21.0/24"])?;
    net.put_flannel("flannel", &["172.7.31.0/24"], &FLANNEL)?;
    let netd = net.launch(node, &[])?;
    netd.wait_for_line(READY, SOON)?;
    net.eventually_available(node)?;
    let data = net.annotation(node, "backend-data")?;
    for name in ["kube-subnet-manager", "backend-data", "backend-type", "public-ip"] {
        let before = net.annotation(node, name)?;
        net.annotate(node, &[(name, Value::Null)])?;
        net.eventually_annotated(node, name, &before)?;
    }
    let stripped = json!({"status": {"conditions": []}});
    net.api.patch("/api/v1/nodes/hdss7-21/status", &stripped)?;
    net.eventually_available(node)?;
    // The Node is made anew, as a cloud does it, and gets another podCIDR.
    net.api.delete("/api/v1/nodes/hdss7-21")?;
    net.put_node(node, &[])?;
    net.eventually_status(node, "it has no podCIDR")?;
    ensure!(net.routes(node)? == ["172.7.31.0/24"], "the data path stays");
    net.api.patch(
        "/api/v1/nodes/hdss7-21",
        &json!({"spec": {"podCIDR": "172.7.51.0/24", "podCIDRs": ["172.7.51.0/24"]}}),
    )?;
    net.eventually_annotated(node, "backend-data", &data)?;
    net.eventually_available(node)?;
    net.eventually_subnet(node, "172.7.51.1/24")?;
    eventually(SOON, || {
        let addresses = net.host(node)?.run(&["ip", "-4", "address", "show", "dev", "flannel.1"])?.stdout;
        ensure!(addresses.contains("172.7.51.0/32") && !addresses.contains("172.7.21.0/32"), "{addresses}");
        Ok(())
    })?;
    net.eventually_routes(node, &["172.7.31.0/24"])?;
    ensure!(netd.is_running());
    Ok(())
}

fn leases_follow_annotations_and_nodes_of_others() -> Result<()> {
    let net = Net::start(Release::V1_20, HOST_GW)?;
    let node = NODES[0];
    net.put_node(node, &["172.7.21.0/24"])?;
    for n in 31..=36 {
        let (subnet, address) = (format!("172.7.{n}.0/24"), format!("10.4.7.{n}"));
        let said = [("backend-type", "host-gw"), ("backend-data", "null"), ("public-ip", &address)];
        net.put_flannel(&format!("n{n}"), &[&subnet], &said)?;
    }
    let netd = net.launch(node, &[])?;
    netd.wait_for_line(READY, SOON)?;
    let subnets = |numbers: &[u8]| numbers.iter().map(|n| format!("172.7.{n}.0/24")).collect::<Vec<_>>();
    let expect = |numbers: &[u8]| {
        let wanted = subnets(numbers);
        net.eventually_routes(node, &wanted.iter().map(String::as_str).collect::<Vec<_>>())
    };
    expect(&[31, 32, 33, 34, 35, 36])?;
    net.annotate("n31", &[("kube-subnet-manager", Value::Null)])?;
    expect(&[32, 33, 34, 35, 36])?;
    net.api.delete("/api/v1/nodes/n32")?;
    expect(&[33, 34, 35, 36])?;
    net.annotate("n33", &[("public-ip", json!("10.4.7.99"))])?;
    eventually(SOON, || {
        let route = net.host(node)?.run(&["ip", "route", "show", "172.7.33.0/24"])?.stdout;
        ensure!(route.contains("via 10.4.7.99"), "{route}");
        Ok(())
    })?;
    net.annotate("n34", &[("public-ip", json!("10.4.7"))])?;
    expect(&[33, 35, 36])?;
    net.eventually_status(node, "Node n34: annotation flannel.alpha.coreos.com/public-ip")?;
    // A Node of the same name that is made anew with another podCIDR.
    net.api.delete("/api/v1/nodes/n35")?;
    let said = [("backend-type", "host-gw"), ("backend-data", "null"), ("public-ip", "10.4.7.35")];
    net.put_flannel("n35", &["172.7.55.0/24"], &said)?;
    expect(&[33, 36, 55])
}

fn a_node_that_gets_another_address_says_so_and_follows_the_others_from_there() -> Result<()> {
    let net = Net::start(Release::V1_20, HOST_GW)?;
    let node = NODES[0];
    net.put_node(node, &["172.7.21.0/24"])?;
    let netd = net.launch(node, &[])?;
    netd.wait_for_line(READY, SOON)?;
    net.host(node)?.run(&["ip", "address", "del", "10.4.7.21/24", "dev", "eth0"])?;
    net.host(node)?.run(&["ip", "address", "add", "10.4.7.121/24", "dev", "eth0"])?;
    netd.wait_for_line("connections to the API server are made anew", SOON)?;
    net.eventually_annotated(node, "public-ip", "10.4.7.121")?;
    let said = [("backend-type", "host-gw"), ("backend-data", "null"), ("public-ip", "10.4.7.31")];
    net.put_flannel("n31", &["172.7.31.0/24"], &said)?;
    net.eventually_routes(node, &["172.7.31.0/24"])?;
    ensure!(!netd.log().contains("out of reach"), "{}", netd.log());
    Ok(())
}

fn an_outage_of_the_api_server_changes_nothing_in_the_kernel() -> Result<()> {
    let net = Net::start(Release::V1_20, VXLAN)?;
    let node = NODES[0];
    net.put_node(node, &["172.7.21.0/24"])?;
    net.put_flannel("flannel", &["172.7.31.0/24"], &FLANNEL)?;
    let netd = net.launch(node, &[])?;
    netd.wait_for_line(READY, SOON)?;
    let kernel = || -> Result<String> {
        let show = |args: &[&str]| net.host(node)?.run(args).map(|output| output.stdout);
        Ok([show(&["ip", "route"])?, show(&["ip", "neigh", "show", "dev", "flannel.1"])?, show(&["ip", "link"])?]
            .concat())
    };
    let before = kernel()?;
    let faults = net.faults(node)?;
    for outage in 0..4 {
        match outage {
            0 => faults.refuse()?,
            1 => faults.inject("/api/v1/nodes", Fault::Answer(403)),
            2 => faults.inject("/api/v1/nodes", Fault::Answer(429)),
            _ => faults.inject("/api/v1/nodes", Fault::Cut),
        }
        faults.break_connections();
        let changed = net.status(node)?;
        throughout(allowing_for_load(Duration::from_secs(3)), || {
            ensure!(kernel()? == before, "the kernel changed in outage {outage}: {}\n{changed}", kernel()?);
            Ok(())
        })?;
        if outage < 2 {
            let part = ["!        store: cannot", "nodes"][outage];
            net.eventually_status(node, part)?;
        }
        faults.heal()?;
        faults.break_connections();
    }
    // What happened meanwhile is taken in.
    let said = [FLANNEL[0], ("backend-data", r#"{"VNI":1,"VtepMAC":"02:00:00:00:01:32"}"#), ("public-ip", "10.4.7.32")];
    net.put_flannel("other", &["172.7.32.0/24"], &said)?;
    net.eventually_routes(node, &["172.7.31.0/24", "172.7.32.0/24"])
}

fn most_of_the_nodes_go_only_when_a_second_listing_confirms_it() -> Result<()> {
    let net = Net::start(Release::V1_20, HOST_GW)?;
    let node = NODES[0];
    net.put_node(node, &["172.7.21.0/24"])?;
    let numbers = 31..=36;
    for n in numbers.clone() {
        let (subnet, address) = (format!("172.7.{n}.0/24"), format!("10.4.7.{n}"));
        let said = [("backend-type", "host-gw"), ("backend-data", "null"), ("public-ip", &address)];
        net.put_flannel(&format!("n{n}"), &[&subnet], &said)?;
    }
    let netd = net.launch(node, &[])?;
    netd.wait_for_line(READY, SOON)?;
    for n in numbers.clone().skip(1) {
        net.api.delete(&format!("/api/v1/nodes/n{n}"))?;
    }
    netd.wait_for_line("nothing is removed before a second look", SOON)?;
    // Well within the half minute before the second look.
    throughout(allowing_for_load(Duration::from_secs(3)).min(Duration::from_secs(15)), || {
        let routes = net.routes(node)?;
        // Where each deletion comes alone, half of them are no doubt yet.
        ensure!(routes.len() >= 3, "{routes:?}");
        Ok(())
    })?;
    // Half a minute later.
    eventually(3 * SOON, || {
        let routes = net.routes(node)?;
        ensure!(routes == ["172.7.31.0/24"], "{routes:?}");
        Ok(())
    })
}

fn doctor_and_trace_know_the_nodes() -> Result<()> {
    let net = Net::start(Release::V1_20, VXLAN)?;
    net.put_node(NODES[0], &["172.7.21.0/24"])?;
    net.put_node(NODES[1], &["172.7.22.0/24"])?;
    let daemons = [net.launch(NODES[0], &[])?, net.launch(NODES[1], &[])?];
    daemons.iter().try_for_each(|netd| netd.wait_for_line(READY, SOON).map(drop))?;
    net.eventually_routes(NODES[0], &["172.7.22.0/24"])?;
    net.eventually_routes(NODES[1], &["172.7.21.0/24"])?;
    let verb = |words: &[&str]| net.host(NODES[0])?.command(lab::bin("netd")?).args(words).limit(3 * SOON).output();
    eventually(SOON, || {
        let doctor = verb(&["doctor", "--json"])?;
        ensure!(doctor.status.success() && doctor.stdout.contains("every node answers"), "{doctor:?}");
        Ok(())
    })?;
    net.eventually_status(NODES[0], "m ago")?;
    let trace = verb(&["trace", "172.7.22.9", "--json"])?;
    ensure!(trace.stdout.contains("10.4.7.22"), "{trace:?}");
    Ok(())
}

fn an_operators_annotations_name_other_addresses() -> Result<()> {
    let net = Net::start(Release::V1_20, HOST_GW)?;
    let node = NODES[0];
    net.host(node)?.run(&["ip", "address", "add", "10.4.7.121/24", "dev", "eth0"])?;
    net.put_node(node, &["172.7.21.0/24"])?;
    net.annotate(node, &[("node-public-ip", json!("10.4.7.121")), ("public-ip-overwrite", json!("203.0.113.7"))])?;
    let netd = net.launch(node, &[])?;
    netd.wait_for_line(READY, SOON)?;
    net.eventually_annotated(node, "public-ip", "203.0.113.7")?;
    net.eventually_status(node, "in sync")?;
    ensure!(net.routes(node)?.is_empty(), "the own subnet is no other node's");
    net.annotate(node, &[("public-ip-overwrite", json!("203.0.113.8"))])?;
    net.eventually_annotated(node, "public-ip", "203.0.113.8")?;
    // The flag's or the interface's own is overridden by node-public-ip.
    net.annotate(node, &[("public-ip-overwrite", Value::Null)])?;
    net.eventually_annotated(node, "public-ip", "10.4.7.121")?;
    net.annotate(node, &[("public-ip-overwrite", json!("here"))])?;
    net.eventually_event(node, "InvalidAnnotation: annotation flannel.alpha.coreos.com/public-ip-overwrite: \"here\"")?;
    ensure!(net.annotation(node, "public-ip")? == "10.4.7.121" && netd.is_running());
    Ok(())
}

fn nodes_of_one_two_and_reversed_families_are_served_in_what_they_have() -> Result<()> {
    // Release 1.20 drops a second podCIDR.
    let net = Net::start(Release::Modern, DUAL)?;
    for (node, n) in NODES.iter().zip(["21", "22"]) {
        let address = format!("fd00:10:4:7::{n}/64");
        net.host(node)?.run(&["ip", "-6", "address", "add", &address, "dev", "eth0", "nodad"])?;
    }
    net.put_node(NODES[0], &["172.7.21.0/24", "fd00:7:0:21::/64"])?;
    net.put_node(NODES[1], &["fd00:7:0:22::/64", "172.7.22.0/24"])?;
    // A node of flannel's whose annotations have IPv4 only, and one that has a podCIDR of IPv6 only.
    let v4 = [("backend-type", "host-gw"), ("backend-data", "null"), ("public-ip", "10.4.7.31")];
    net.put_flannel("v4", &["172.7.31.0/24", "fd00:7:0:31::/64"], &v4)?;
    let v6 = [("backend-type", "host-gw"), ("backend-v6-data", "null"), ("public-ipv6", "fd00:10:4:7::32")];
    net.put_flannel("v6", &["fd00:7:0:32::/64"], &v6)?;
    let _daemons = [net.launch(NODES[0], &[])?, net.launch(NODES[1], &[])?];
    net.eventually_routes(NODES[0], &["172.7.22.0/24", "172.7.31.0/24", "fd00:7:0:22::/64", "fd00:7:0:32::/64"])?;
    net.eventually_routes(NODES[1], &["172.7.21.0/24", "172.7.31.0/24", "fd00:7:0:21::/64", "fd00:7:0:32::/64"])?;
    for (name, value) in [("backend-data", "null"), ("backend-v6-data", "null"), ("public-ipv6", "fd00:10:4:7::22")] {
        ensure!(net.annotation(NODES[1], name)? == value, "{name}: {}", net.node(NODES[1])?);
    }
    NODES.iter().try_for_each(|node| net.eventually_available(node))?;
    // This node's own podCIDR loses a family.
    net.api.delete("/api/v1/nodes/hdss7-22")?;
    net.put_node(NODES[1], &["172.7.22.0/24"])?;
    net.eventually_routes(NODES[0], &["172.7.22.0/24", "172.7.31.0/24", "fd00:7:0:32::/64"])?;
    net.eventually_status(NODES[1], "subnet   172.7.22.0/24 of")?;
    net.eventually_status(NODES[1], "in sync")?;
    let status = net.status(NODES[1])?;
    ensure!(!status.contains("skipped 172.7.22.0/24"), "{status}");
    Ok(())
}

/// A controller-manager with two networks gives podCIDRs of both to every Node.
fn node_with_an_address_of_one_family_holds_its_podcidrs_of_both() -> Result<()> {
    let net = Net::start(Release::Modern, DUAL)?;
    for (node, n) in NODES.iter().zip(["21", "22"]) {
        net.put_node(node, &[&format!("172.7.{n}.0/24"), &format!("fd00:7:0:{n}::/64")])?;
    }
    let _daemons = [net.launch(NODES[0], &[])?, net.launch(NODES[1], &[])?];
    for (node, other) in [(NODES[0], "22"), (NODES[1], "21")] {
        net.eventually_routes(node, &[&format!("172.7.{other}.0/24")])?;
        net.eventually_status(node, "in sync")?;
    }
    // Of the other node IPv4 is served, and why not IPv6 is said.
    net.eventually_status(NODES[0], "skipped 172.7.22.0/24,fd00:7:0:22::/64")?;
    let status = net.status(NODES[0])?;
    ensure!(!status.contains("skipped 172.7.21.0/24"), "{status}");
    Ok(())
}

/// flannel asks nothing of a network here but that podCIDRs are in it.
fn network_of_two_subnets_is_served_as_the_controller_manager_cuts_it() -> Result<()> {
    let two = r#"{"Network":"172.7.22.0/23","SubnetLen":9,"SubnetMin":"10.0.0.1","Backend":{"Type":"host-gw"}}"#;
    let net = Net::start(Release::V1_20, two)?;
    net.put_node(NODES[0], &["172.7.22.0/24"])?;
    net.put_node(NODES[1], &["172.7.23.0/24"])?;
    let _daemons = [net.launch(NODES[0], &[])?, net.launch(NODES[1], &[])?];
    net.eventually_routes(NODES[0], &["172.7.23.0/24"])?;
    net.eventually_routes(NODES[1], &["172.7.22.0/24"])?;
    NODES.iter().try_for_each(|node| net.eventually_available(node))
}

fn network_that_is_one_podcidr_is_served() -> Result<()> {
    let net = Net::start(Release::V1_20, r#"{"Network":"172.7.21.0/24","Backend":{"Type":"vxlan"}}"#)?;
    net.put_node(NODES[0], &["172.7.21.0/24"])?;
    let _netd = net.launch(NODES[0], &[])?;
    net.eventually_available(NODES[0])?;
    net.eventually_status(NODES[0], "in sync")
}

fn network_is_unavailable_while_the_data_path_is_broken() -> Result<()> {
    let net = Net::start(Release::V1_20, VXLAN)?;
    let (node, host) = (NODES[0], net.host(NODES[0])?);
    net.put_node(node, &["172.7.21.0/24"])?;
    // Somebody else's tunnel with this VNI and port.
    host.run(&["ip", "link", "add", "other", "type", "vxlan", "id", "1", "dev", "eth0", "dstport", "8472"])?;
    host.run(&["ip", "link", "set", "other", "up"])?;
    let _netd = net.launch(node, &[])?;
    eventually(SOON, || {
        let found = net.condition(node)?;
        ensure!(found[0] == "True" && found[2].contains("links: 0 of 1 rows in place"), "{found:?}");
        Ok(())
    })?;
    net.eventually_event(node, "DataPathBroken: links: 0 of 1 rows in place")?;
    host.run(&["ip", "link", "del", "other"])?;
    net.eventually_available(node)
}

fn a_configuration_that_cannot_be_used_is_an_event_of_the_node() -> Result<()> {
    let net = Net::start(Release::V1_20, r#"{"Network":"172.7.0.0/16","Backend":{"Type":"udp"}}"#)?;
    let node = NODES[0];
    net.put_node(node, &["172.7.21.0/24"])?;
    let netd = net.launch(node, &[])?;
    net.eventually_event(node, "StartFailed: /etc/kube-flannel/net-conf.json")?;
    eventually(SOON, || {
        ensure!(!netd.is_running());
        Ok(())
    })?;
    net.configure(node, r#"{"Network":"10.4.0.0/16","Backend":{"Type":"host-gw"}}"#)?;
    let _overlaps = net.launch(node, &[])?;
    net.eventually_event(node, "StartFailed: address plan")?;
    net.host(node)?.run(&["ip", "link", "set", "eth0", "mtu", "100"])?;
    net.configure(node, VXLAN)?;
    let _narrow = net.launch(node, &[])?;
    net.eventually_event(node, "StartFailed: interface eth0 with MTU 100 leaves 50 bytes to Pods")?;
    net.host(node)?.run(&["ip", "link", "set", "eth0", "mtu", "1500"])?;
    // A daemon that runs goes on with what it had.
    net.configure(node, HOST_GW)?;
    let netd = net.launch(node, &[])?;
    netd.wait_for_line(READY, SOON)?;
    net.configure(node, r#"{"Network":"172.7.0.0/16","Backend":{"Type":"ipsec"}}"#)?;
    net.eventually_event(node, "InvalidNetConf: ")?;
    ensure!(netd.is_running());
    net.eventually_available(node)
}

/// Puts the objects of these documents.
fn put_yaml(net: &Net, texts: &[&str]) -> Result<()> {
    for text in texts {
        for object in serde_saphyr::from_multiple::<Value>(text)? {
            net.api.put(&object)?;
        }
    }
    Ok(())
}

fn the_node_is_that_of_the_pod_and_annotations_have_the_prefix() -> Result<()> {
    let net = Net::start(Release::V1_20, HOST_GW)?;
    let node = NODES[0];
    net.put_node(node, &["172.7.21.0/24"])?;
    for account in ["default", "flannel"] {
        let metadata = json!({"name": account, "namespace": "kube-flannel"});
        net.api.put(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}))?;
    }
    let containers = json!([{"name": "netd", "image": "netd"}]);
    let spec = json!({"nodeName": node, "containers": containers, "automountServiceAccountToken": false});
    let metadata = json!({"name": "netd-x", "namespace": "kube-flannel"});
    net.api.put(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))?;
    let variables = [("POD_NAME", "netd-x"), ("POD_NAMESPACE", "kube-flannel")];
    let extra = ["--kube-annotation-prefix=example.org/pods", "--set-node-network-unavailable=false"];
    // With the rights of our ClusterRole alone it is said what else is needed, and that is in the document.
    put_yaml(&net, &[include_str!("../../configs/kubernetes/netd/rbac.yaml")])?;
    let subject = json!({"kind": "ServiceAccount", "name": "flannel", "namespace": "kube-flannel"});
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "netd"});
    net.api.put(
        &json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "flannel"},
        "roleRef": role, "subjects": [subject]}),
    )?;
    let token = net.api.token_of("kube-flannel", "flannel")?;
    let kubeconfig = net.faults(node)?.kubeconfig().token(&token);
    net.host(node)?.write("/etc/kubernetes/kubeconfig", kubeconfig.to_string())?;
    let netd = net.launch_as(node, &variables, &extra)?;
    netd.wait_for_line(
        "the verb `get` for `pods`: apply a Role of namespace kube-flannel as in docs/flannel.md",
        SOON,
    )?;
    let page = include_str!("../../docs/flannel.md");
    put_yaml(&net, &page.split("```").filter_map(|part| part.strip_prefix("yaml\n")).collect::<Vec<_>>())?;
    netd.wait_for_line(READY, SOON)?;
    let found = net.node(node)?;
    ensure!(found["metadata"]["annotations"]["example.org/pods-public-ip"] == "10.4.7.21", "{found}");
    ensure!(!found["metadata"]["annotations"].to_string().contains(PREFIX), "{found}");
    throughout(allowing_for_load(Duration::from_secs(1)), || {
        ensure!(net.condition(node).is_err(), "nobody asked for the condition");
        Ok(())
    })
}

fn streaming_lists_are_taken_where_the_server_has_them() -> Result<()> {
    let net = Net::start(Release::Modern, HOST_GW)?;
    let node = NODES[0];
    net.put_node(node, &["172.7.21.0/24"])?;
    let said = [("backend-type", "host-gw"), ("backend-data", "null"), ("public-ip", "10.4.7.31")];
    net.put_flannel("flannel", &["172.7.31.0/24"], &said)?;
    let netd = net.launch(node, &[])?;
    netd.wait_for_line(READY, SOON)?;
    net.eventually_routes(node, &["172.7.31.0/24"])?;
    net.eventually_available(node)?;
    let seen = net.faults(node)?.seen();
    let of_nodes: Vec<&str> = seen
        .iter()
        .map(|request| request.target.as_str())
        .filter(|target| target.starts_with("/api/v1/nodes?"))
        .collect();
    ensure!(of_nodes.iter().all(|target| target.contains("watch=")), "{of_nodes:?}");
    net.api.delete("/api/v1/nodes/flannel")?;
    net.eventually_routes(node, &[])
}

fn each_right_that_is_missing_is_named_with_what_grants_it() -> Result<()> {
    let calls = [
        ("", "nodes", "get"),
        ("", "nodes", "list"),
        ("", "nodes", "watch"),
        ("", "nodes/status", "patch"),
        ("", "events", "create"),
    ];
    let net = Net::start(Release::V1_20, VXLAN)?;
    let node = NODES[0];
    for missing in calls {
        let (_, resource, verb) = missing;
        // Only what an operator must act on is an Event.
        net.put_node(node, if resource == "events" { &[] } else { &["172.7.21.0/24"] })?;
        let rest: Vec<_> = calls.into_iter().filter(|call| *call != missing).collect();
        let account = format!("without-{verb}-{}", resource.replace('/', "-"));
        let token = net.api.token_with(&account, &rest)?;
        let kubeconfig = net.faults(node)?.kubeconfig().token(&token);
        net.host(node)?.write("/etc/kubernetes/kubeconfig", kubeconfig.to_string())?;
        let netd = net.launch(node, &[])?;
        let grants = "the ClusterRole of configs/kubernetes/netd";
        let text = format!("this needs the verb `{verb}` for `{resource}`: apply {grants}, which grants it");
        netd.wait_for_line(&text, SOON).with_context(|| format!("{account}: {}", netd.log()))?;
        drop(netd);
        net.api.delete("/api/v1/nodes/hdss7-21")?;
    }
    Ok(())
}

/// A daemon of a node that asks the API server as this kubeconfig says, at its finest detail.
fn asking(net: &Net, program: &str, kubeconfig: &str, form: &str) -> Result<Process> {
    const PLACE: &str = "/etc/kubernetes/kubeconfig";
    let host = net.host(NODES[0])?;
    secrets::write(host, PLACE, kubeconfig)?;
    let form = format!("--log-format={form}");
    if program == "netd" {
        return net.launch(NODES[0], &["-v=2", &form]);
    }
    let own = ["-v=2", "--proxy-mode=nftables", "--hostname-override=hdss7-21", &form];
    host.command(lab::bin(program)?).args(own).arg(format!("--kubeconfig={PLACE}")).start(program)
}

fn tokens_and_keys_are_in_nothing_that_a_daemon_shows_at_any_level() -> Result<()> {
    const REFUSED: &str = "a-token-of-another-cluster-0123456789";
    let net = Net::start(Release::V1_20, HOST_GW)?;
    net.put_node(NODES[0], &["172.7.21.0/24"])?;
    let place = net.faults(NODES[0])?.kubeconfig();
    let rights = [("*", "*", "*")];
    let token = net.api.token_with("shown-by-nobody", &rights)?;
    let (certificate, key) = net.api.certificate("root", &["system:masters"])?;
    let host = net.host(NODES[0])?;
    for (name, text) in [("own.crt", &certificate), ("own.key", &key)] {
        secrets::write(host, &format!("/etc/kubernetes/{name}"), text)?;
    }
    let data = base64::engine::general_purpose::STANDARD.encode(&key);
    let secrets = Secrets::new(&[
        ("token", &token),
        ("refused token", REFUSED),
        ("client key", &key),
        ("client-key-data", &data),
    ])?;
    let by_key = place.clone().certificate_files("/etc/kubernetes/own.crt", "/etc/kubernetes/own.key");
    for program in ["netd", "ipvs-proxy"] {
        for (kubeconfig, form, used) in [
            (place.clone().token(&token), "json", "ready"),
            // The place of faults asks for no certificate: the key was read and is in the client's hands, the server sees nobody.
            (by_key.clone(), "text", "403 Forbidden"),
            (place.clone().token(REFUSED), "text", "401 Unauthorized"),
        ] {
            let daemon = asking(&net, program, &kubeconfig.to_string(), form)?;
            daemon.wait_for_line(used, SOON)?;
            secrets.are_shown_by_nothing_of(host, program, &daemon)?;
            daemon.terminate(SOON)?;
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    Suite::new(&[Need::Vxlan, Need::Nftables]).with_kubernetes(Release::V1_20).run(lab::tests![
        nodes_of_netd_and_of_flannel_are_one_network,
        what_is_missing_is_waited_for_and_named,
        what_is_taken_from_the_own_node_is_written_again,
        leases_follow_annotations_and_nodes_of_others,
        a_node_that_gets_another_address_says_so_and_follows_the_others_from_there,
        an_outage_of_the_api_server_changes_nothing_in_the_kernel,
        most_of_the_nodes_go_only_when_a_second_listing_confirms_it,
        doctor_and_trace_know_the_nodes,
        an_operators_annotations_name_other_addresses,
        nodes_of_one_two_and_reversed_families_are_served_in_what_they_have,
        node_with_an_address_of_one_family_holds_its_podcidrs_of_both,
        network_of_two_subnets_is_served_as_the_controller_manager_cuts_it,
        network_that_is_one_podcidr_is_served,
        network_is_unavailable_while_the_data_path_is_broken,
        a_configuration_that_cannot_be_used_is_an_event_of_the_node,
        the_node_is_that_of_the_pod_and_annotations_have_the_prefix,
        streaming_lists_are_taken_where_the_server_has_them,
        each_right_that_is_missing_is_named_with_what_grants_it,
        tokens_and_keys_are_in_nothing_that_a_daemon_shows_at_any_level,
    ])
}
