//! `SubnetAssignment`: how a network's configuration gives the nodes their subnets, with real etcd.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use lab::{Need, Process, eventually};
use netd_node::{Net, SOON, lease};

const NODES: [&str; 2] = ["hdss7-21", "hdss7-22"];

/// A network that is cut into subnets by `assignment`.
fn net(network: &str, assignment: &str) -> Result<Net> {
    Net::start(&format!(
        r#"{{"Network":"{network}","SubnetAssignment":"{assignment}","Backend":{{"Type":"host-gw"}}}}"#
    ))
}

/// Starts netd on a node; its subnet, and netd.
fn started(net: &Net, node: &str) -> Result<(String, Process)> {
    let netd = net.netd(node)?;
    let line = netd.wait_for_line("lease acquired", SOON)?;
    let (_, subnet) = line.split_once("subnet=\"").with_context(|| line.clone())?;
    Ok((subnet.split('"').next().unwrap_or_default().to_owned(), netd))
}

/// Waits until netd says `words` of the lease that it cannot get.
fn eventually_says(netd: &Process, words: &[&str]) -> Result<()> {
    let line = netd.wait_for_line("no lease yet", SOON)?;
    for words in words {
        ensure!(line.contains(words), "no `{words}` in {line}");
    }
    Ok(())
}

fn remember(net: &Net, node: &str, third: u8) -> Result<()> {
    let text = format!(
        "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.{third}.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=true\n"
    );
    net.host(node)?.write("/run/flannel/subnet.env", &text)
}

fn node_ip_gives_the_subnet_of_the_nodes_number_or_waits_for_it() -> Result<()> {
    let net = net("172.7.0.0/16", "node-ip")?;
    net.put_lease("172.7.22.0-24", "10.4.7.99", "host-gw")?;
    let (subnet, _first) = started(&net, NODES[0])?;
    ensure!(subnet == "172.7.21.0/24", "{subnet}");
    let second = net.launch(NODES[1], &[])?;
    eventually_says(&second, &["no subnet to take", "node-ip: 172.7.22.0/24 is leased to 10.4.7.99"])?;
    ensure!(net.etcd.get("/coreos.com/network/subnets/172.7.22.0-24")? == Some(lease("10.4.7.99", "host-gw")));
    // It goes on trying, and says so in its status.
    net.etcd.delete("/coreos.com/network/subnets/172.7.22.0-24")?;
    second.wait_for_line("ready: every lease is in the kernel", SOON)?;
    ensure!(net.subnets()? == ["172.7.21.0-24", "172.7.22.0-24"], "{:?}", net.subnets()?);
    Ok(())
}

fn previous_gives_the_subnet_that_the_file_remembers_and_nothing_else() -> Result<()> {
    let net = net("172.7.0.0/16", "previous")?;
    remember(&net, NODES[0], 77)?;
    let (subnet, _first) = started(&net, NODES[0])?;
    ensure!(subnet == "172.7.77.0/24", "{subnet}");
    let second = net.launch(NODES[1], &[])?;
    eventually_says(&second, &["no subnet to take", "previous: no earlier subnet is known"])?;
    // What is remembered belongs to another node by now.
    second.terminate(SOON)?;
    remember(&net, NODES[1], 77)?;
    let second = net.launch(NODES[1], &[])?;
    eventually_says(&second, &["previous: 172.7.77.0/24 is leased to 10.4.7.21"])?;
    ensure!(net.subnets()? == ["172.7.77.0-24"], "{:?}", net.subnets()?);
    Ok(())
}

/// What the subnet file of this node says, if there is one.
fn file(net: &Net, node: &str) -> Result<Option<String>> {
    let path = net.host(node)?.path("/run/flannel/subnet.env");
    if path.exists() { std::fs::read_to_string(path).map(Some).context("read the subnet file") } else { Ok(None) }
}

/// No Pod is started with an address of another node's subnet: neither by what a file from before says, nor after the loss while netd runs.
fn subnet_of_another_node_is_named_to_no_plugin_until_there_is_another() -> Result<()> {
    let net = net("172.7.0.0/22", "previous,first-free")?;
    for third in 1..=3 {
        net.put_lease(&format!("172.7.{third}.0-24"), &format!("10.4.7.9{third}"), "host-gw")?;
    }
    let key = |third: u8| format!("/coreos.com/network/subnets/172.7.{third}.0-24");
    let names = |expected: Option<&str>| {
        eventually(SOON, || {
            let found = file(&net, NODES[0])?;
            let subnet =
                found.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET=")));
            ensure!(subnet == expected, "{found:?} instead of {expected:?}");
            Ok(())
        })
    };
    let text = "FLANNEL_NETWORK=172.7.0.0/22\nFLANNEL_SUBNET=172.7.3.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=true\n";
    net.host(NODES[0])?.write("/run/flannel/subnet.env", text)?;
    let netd = net.launch(NODES[0], &[])?;
    netd.wait_for_line("subnet.env is removed", SOON)?;
    names(None)?;
    net.etcd.delete(&key(2))?;
    names(Some("172.7.2.1/24"))?;
    netd.wait_for_line("ready: every lease is in the kernel", SOON)?;
    // While it runs.
    net.put_lease("172.7.2.0-24", "10.4.7.92", "host-gw")?;
    names(None)?;
    net.etcd.delete(&key(1))?;
    names(Some("172.7.1.1/24"))
}

fn first_free_gives_the_first_that_is_neither_leased_nor_reserved() -> Result<()> {
    let net = net("172.7.0.0/16", "first-free")?;
    // A key without an end is a reservation of another node's.
    net.put_lease("172.7.2.0-24", "10.4.7.99", "host-gw")?;
    let (first, _first) = started(&net, NODES[0])?;
    let (second, _second) = started(&net, NODES[1])?;
    ensure!((first.as_str(), second.as_str()) == ("172.7.1.0/24", "172.7.3.0/24"), "{first} {second}");
    Ok(())
}

fn random_gives_any_that_is_free_and_keeps_it() -> Result<()> {
    let net = net("172.7.0.0/16", "random")?;
    let (first, netd) = started(&net, NODES[0])?;
    let (second, _second) = started(&net, NODES[1])?;
    ensure!(first != second && first.starts_with("172.7.") && second.starts_with("172.7."), "{first} {second}");
    netd.terminate(SOON)?;
    ensure!(started(&net, NODES[0])?.0 == first, "after a restart");
    Ok(())
}

fn reservation_of_this_node_goes_before_every_policy() -> Result<()> {
    for assignment in ["node-ip", "first-free", "random", "previous,node-ip"] {
        let net = net("172.7.0.0/16", assignment)?;
        net.put_lease("172.7.99.0-24", "10.4.7.21", "host-gw")?;
        let (subnet, netd) = started(&net, NODES[0])?;
        ensure!(subnet == "172.7.99.0/24", "{assignment}: {subnet}");
        netd.wait_for_line("the lease is a reservation: it has no end", SOON)?;
    }
    Ok(())
}

fn policies_are_asked_in_order_and_the_flag_of_a_node_goes_before_them() -> Result<()> {
    let net = net("172.7.0.0/16", "node-ip,first-free")?;
    net.put_lease("172.7.21.0-24", "10.4.7.99", "host-gw")?;
    net.put_lease("172.7.255.0-24", "10.4.7.98", "host-gw")?;
    let first = net.netd(NODES[0])?;
    let line = first.wait_for_line("lease acquired", SOON)?;
    ensure!(
        line.contains("172.7.254.0/24") && line.contains("node-ip: 172.7.21.0/24 is leased to 10.4.7.99"),
        "{line}"
    );
    let second = net.launch(NODES[1], &["--lease-policy=first-free"])?;
    let line = second.wait_for_line("lease acquired", SOON)?;
    ensure!(line.contains("172.7.1.0/24") && line.contains("policy first-free"), "{line}");
    Ok(())
}

fn exhausted_network_is_named_and_a_subnet_that_comes_free_is_taken() -> Result<()> {
    for assignment in ["first-free", "random"] {
        let net = net("172.7.0.0/22", assignment)?;
        for third in 1..=3 {
            net.put_lease(&format!("172.7.{third}.0-24"), &format!("10.4.7.9{third}"), "host-gw")?;
        }
        let netd = net.launch(NODES[0], &[])?;
        eventually_says(&netd, &["no subnet to take", "every subnet from 172.7.1.0/24 to 172.7.3.0/24 is leased"])?;
        eventually(SOON, || {
            let status = net.status(NODES[0])?;
            let trouble = status["store"]["lease_trouble"].as_str().unwrap_or_default();
            ensure!(
                trouble.contains("every subnet from 172.7.1.0/24 to 172.7.3.0/24 is leased"),
                "{assignment}: {status}"
            );
            Ok(())
        })?;
        net.etcd.delete("/coreos.com/network/subnets/172.7.2.0-24")?;
        let line = netd.wait_for_line("lease acquired", SOON)?;
        ensure!(line.contains("172.7.2.0/24"), "{line}");
    }
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables],
        lab::tests![
            node_ip_gives_the_subnet_of_the_nodes_number_or_waits_for_it,
            previous_gives_the_subnet_that_the_file_remembers_and_nothing_else,
            subnet_of_another_node_is_named_to_no_plugin_until_there_is_another,
            first_free_gives_the_first_that_is_neither_leased_nor_reserved,
            random_gives_any_that_is_free_and_keeps_it,
            reservation_of_this_node_goes_before_every_policy,
            policies_are_asked_in_order_and_the_flag_of_a_node_goes_before_them,
            exhausted_network_is_named_and_a_subnet_that_comes_free_is_taken,
        ],
    )
}
