//! VLANs of the bridge: who reaches whom over a bridge that filters, and what the options do to ports and links.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::cni::{Attachment, Network, Runtime};
use lab::{Host, Need, Pod, bin, echo};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

/// A machine with the plugin under the names that have bridge options.
fn machine() -> Result<Runtime> {
    let runtime = Runtime::new(&Host::start("a")?);
    runtime.install(&bin("netd-cni")?, &["netd-cni", "bridge", "flannel"])?;
    Ok(runtime)
}

/// A network of the name `bridge` on `br0`, without addresses unless `options` say otherwise.
fn network(runtime: &Runtime, name: &str, options: &Value) -> Result<Network> {
    of_version(runtime, "1.0.0", name, options)
}

fn of_version(runtime: &Runtime, version: &str, name: &str, options: &Value) -> Result<Network> {
    let mut plugin = json!({"type": "bridge", "bridge": "br0"});
    plugin.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    runtime.parse(&json!({"name": name, "cniVersion": version, "plugins": [plugin]}).to_string())
}

/// Host-local addresses from 10.1.2.`first` on, all in one subnet.
fn from(first: u8) -> Value {
    let range = json!({"subnet": "10.1.2.0/24", "rangeStart": format!("10.1.2.{first}")});
    json!({"type": "host-local", "ranges": [[range]]})
}

fn attach(runtime: &Runtime, network: &Network, name: &str) -> Result<(Pod, Attachment, Value)> {
    let pod = runtime.host().pod(name)?;
    let attachment = Attachment::of(&pod);
    let result = runtime.add(network, &attachment)?;
    Ok((pod, attachment, result))
}

fn address(result: &Value) -> &str {
    result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap()
}

fn reaches(pod: &Pod, address: &str) -> bool {
    pod.run(&["ping", "-c1", "-W1", address]).is_ok()
}

/// What a port carries, as `bridge vlan show` tells it: `100 PVID Egress Untagged` and so on.
fn carried(host: &Host, port: &str) -> Result<Vec<String>> {
    let shown = host.run(&["bridge", "-compressvlans", "-j", "vlan", "show", "dev", port])?.stdout;
    let ports: Value = serde_json::from_str(&shown).context(shown.clone())?;
    let vlans = ports[0]["vlans"].as_array().cloned().unwrap_or_default();
    let words = |vlan: &Value| {
        let flags = vlan["flags"].as_array().cloned().unwrap_or_default();
        let id = vlan["vlanEnd"].as_u64().map_or(vlan["vlan"].to_string(), |end| format!("{}-{end}", vlan["vlan"]));
        std::iter::once(id)
            .chain(flags.iter().map(|flag| flag.as_str().unwrap().to_owned()))
            .collect::<Vec<_>>()
            .join(" ")
    };
    Ok(vlans.iter().map(words).collect())
}

fn filters(host: &Host, bridge: &str) -> Result<bool> {
    Ok(host.run(&["ip", "-d", "link", "show", bridge])?.stdout.contains("vlan_filtering 1"))
}

fn pods_of_one_vlan_reach_each_other_and_pods_of_two_do_not() -> Result<()> {
    let runtime = machine()?;
    let red = network(&runtime, "red", &json!({"vlan": 100, "ipam": from(10)}))?;
    let blue = network(&runtime, "blue", &json!({"vlan": 200, "ipam": from(100)}))?;
    let (red1, _, _) = attach(&runtime, &red, "red1")?;
    let (_red2, _, red2_result) = attach(&runtime, &red, "red2")?;
    let (blue1, _, blue1_result) = attach(&runtime, &blue, "blue1")?;
    let (_blue2, _, blue2_result) = attach(&runtime, &blue, "blue2")?;
    ensure!(filters(runtime.host(), "br0")?);
    ensure!(reaches(&red1, address(&red2_result)) && reaches(&blue1, address(&blue2_result)), "inside one VLAN");
    ensure!(!reaches(&red1, address(&blue1_result)), "a frame left its VLAN");
    // The same two without VLANs do reach each other: nothing else kept them apart.
    let plain = json!({"bridge": "br1", "ipam": from(10)});
    let (one, _, _) = attach(&runtime, &network(&runtime, "one", &plain)?, "one")?;
    let other = json!({"bridge": "br1", "ipam": from(100)});
    let (_two, _, two_result) = attach(&runtime, &network(&runtime, "two", &other)?, "two")?;
    ensure!(reaches(&one, address(&two_result)) && !filters(runtime.host(), "br1")?);
    Ok(())
}

fn trunk_carries_its_vlans_with_their_tags_and_no_others() -> Result<()> {
    let runtime = machine()?;
    let access = |vlan: u16, first| network(&runtime, &format!("v{vlan}"), &json!({"vlan": vlan, "ipam": from(first)}));
    let (_a, _, in_101) = attach(&runtime, &access(101, 11)?, "a")?;
    let (_b, _, in_205) = attach(&runtime, &access(205, 22)?, "b")?;
    let (_c, _, in_300) = attach(&runtime, &access(300, 33)?, "c")?;
    let options = json!({"vlanTrunk": [{"id": 101}, {"minID": 200, "maxID": 210}]});
    let (router, attachment, result) = attach(&runtime, &network(&runtime, "trunk", &options)?, "router")?;
    for (vlan, peer, expected) in [(101, &in_101, true), (205, &in_205, true), (300, &in_300, false)] {
        let link = format!("eth0.{vlan}");
        router.run(&["ip", "link", "add", "link", "eth0", "name", &link, "type", "vlan", "id", &vlan.to_string()])?;
        router.run(&["ip", "link", "set", &link, "up"])?;
        router.run(&["ip", "addr", "add", "10.1.2.200/24", "dev", &link])?;
        ensure!(reaches(&router, address(peer)) == expected, "VLAN {vlan}");
        router.run(&["ip", "link", "del", &link])?;
    }
    runtime.check(&network(&runtime, "trunk", &options)?, &attachment)?;
    let port = result["interfaces"][1]["name"].as_str().unwrap();
    runtime.host().run(&["bridge", "vlan", "del", "vid", "101", "dev", port])?;
    let error = runtime.check(&network(&runtime, "trunk", &options)?, &attachment).unwrap_err();
    ensure!(format!("{error:#}").contains("lacks VLANs: 101 tagged"), "{error:#}");
    Ok(())
}

fn ports_carry_what_the_reference_gives_them() -> Result<()> {
    let runtime = machine()?;
    let native = "100 PVID Egress Untagged";
    for (number, (options, expected)) in [
        (json!({"vlan": 100}), vec![native]),
        (json!({"vlan": 100, "preserveDefaultVlan": true}), vec!["1 Egress Untagged", native]),
        (
            json!({"vlan": 100, "vlanTrunk": [{"id": 101}, {"minID": 200, "maxID": 210}]}),
            vec![native, "101", "200-210"],
        ),
        (json!({"vlanTrunk": [{"id": 101}]}), vec!["1 PVID Egress Untagged", "101"]),
        (json!({"vlanTrunk": [{"id": 101}], "preserveDefaultVlan": true}), vec!["1 PVID Egress Untagged", "101"]),
        (json!({"vlanTrunk": [{"minID": 1, "maxID": 4094}]}), vec!["1 PVID Egress Untagged", "2-4094"]),
        (json!({"vlan": 0}), vec!["1 PVID Egress Untagged"]),
    ]
    .into_iter()
    .enumerate()
    {
        for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let network = of_version(&runtime, version, "net", &options)?;
            let (_pod, attachment, result) = attach(&runtime, &network, &format!("web{number}-{version}"))?;
            let port = result["interfaces"][1]["name"].as_str().unwrap();
            let found = carried(runtime.host(), port)?;
            ensure!(found == expected, "{version} {options}: {found:?}");
            if version >= "0.4.0" {
                runtime.check(&network, &attachment)?;
            }
            runtime.del(&network, &attachment)?;
        }
    }
    for version in ["0.1.0", "0.2.0"] {
        let network = of_version(&runtime, version, "net", &json!({"vlan": 100}))?;
        let error = attach(&runtime, &network, &format!("old-{version}")).unwrap_err();
        ensure!(format!("{error:#}").contains("does not support a network without addresses"), "{error:#}");
    }
    Ok(())
}

/// A VLAN with its gateway on this host, under each name that takes the option.
fn with_gateway(runtime: &Runtime) -> Result<Vec<(Network, &'static str)>> {
    runtime.host().write(
        "/run/flannel/subnet.env",
        "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.21.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
    )?;
    let list = |name: &str, mut plugin: Value| {
        plugin["capabilities"] = json!({"portMappings": true});
        runtime.parse(&json!({"name": name, "cniVersion": "1.0.0", "plugins": [plugin]}).to_string())
    };
    let delegate = json!({"vlan": 100, "bridge": "br2", "isDefaultGateway": true, "hairpinMode": true});
    Ok(vec![
        (network(runtime, "net", &json!({"vlan": 100, "isDefaultGateway": true, "ipam": from(10)}))?, "br0"),
        (list("native", json!({"type": "netd-cni", "vlan": 100, "bridge": "br1"}))?, "br1"),
        (list("flannel", json!({"type": "flannel", "delegate": delegate}))?, "br2"),
    ])
}

fn gateway_of_a_vlan_is_on_its_own_link_and_shared_by_its_pods() -> Result<()> {
    let runtime = machine()?;
    let host = runtime.host();
    for (network, bridge) in with_gateway(&runtime)? {
        let link = format!("{bridge}.100");
        let (pod, attachment, result) = attach(&runtime, &network, &format!("web-{bridge}"))?;
        let interfaces = result["interfaces"].as_array().unwrap();
        ensure!(interfaces.len() == 4 && interfaces[3]["name"] == json!(link), "{result}");
        let gateway = result["ips"][0]["gateway"].as_str().unwrap().to_owned();
        let shown = host.run(&["ip", "-j", "addr", "show", "dev", &link])?.stdout;
        let shown: Value = serde_json::from_str(&shown)?;
        ensure!(shown[0]["address"] == interfaces[3]["mac"], "{shown}");
        ensure!(shown[0]["addr_info"][0]["local"] == json!(gateway), "{shown}");
        let on_bridge = host.run(&["ip", "-4", "addr", "show", "dev", bridge])?.stdout;
        ensure!(!on_bridge.contains("inet "), "the bridge itself has an address: {on_bridge}");
        ensure!(reaches(&pod, &gateway), "the Pod does not reach its gateway");
        host.run(&["ping", "-c1", "-W2", address(&result)])?;
        runtime.check(&network, &attachment)?;
        // The second Pod makes nothing but its own pair.
        let before = host.run(&["ip", "-o", "link", "show"])?.stdout.lines().count();
        let (second, second_attachment, second_result) = attach(&runtime, &network, &format!("db-{bridge}"))?;
        ensure!(host.run(&["ip", "-o", "link", "show"])?.stdout.lines().count() == before + 1);
        ensure!(reaches(&second, address(&result)) && second_result["interfaces"][3] == interfaces[3]);
        runtime.del(&network, &second_attachment)?;
        runtime.del(&network, &attachment)?;
        let neighbours = host.run(&["ip", "neigh", "show", "dev", &link])?.stdout;
        ensure!(!neighbours.contains("lladdr"), "left over: {neighbours}");
        host.run(&["ip", "link", "show", "dev", &link])?;
        host.run(&["ip", "link", "del", &link])?;
        host.run(&["ip", "link", "del", bridge])?;
    }
    Ok(())
}

fn link_of_a_vlan_that_was_left_half_made_is_made_whole() -> Result<()> {
    let runtime = machine()?;
    let host = runtime.host();
    let options = json!({"vlan": 100, "isDefaultGateway": true, "ipam": from(10)});
    let network = network(&runtime, "net", &options)?;
    let (_first, attachment, result) = attach(&runtime, &network, "first")?;
    let peer = host.run(&["ip", "-o", "link", "show", "dev", "br0.100"])?.stdout;
    let port = peer.split_once('@').unwrap().1.split(':').next().unwrap().to_owned();
    // As an ADD leaves it that is killed between making the pair and setting its port.
    host.run(&["ip", "link", "set", "br0.100", "down"])?;
    host.run(&["bridge", "vlan", "del", "vid", "100", "dev", &port])?;
    host.run(&["bridge", "vlan", "add", "vid", "1", "dev", &port, "pvid", "untagged"])?;
    let error = runtime.check(&network, &attachment).unwrap_err();
    ensure!(format!("{error:#}").contains("VLAN link br0.100 is down"), "{error:#}");
    let (second, _, _) = attach(&runtime, &network, "second")?;
    ensure!(reaches(&second, result["ips"][0]["gateway"].as_str().unwrap()));
    ensure!(carried(host, &port)? == ["100 PVID Egress Untagged"], "{:?}", carried(host, &port)?);
    Ok(())
}

fn host_port_leads_into_the_vlan() -> Result<()> {
    let runtime = machine()?;
    let (native, _) = with_gateway(&runtime)?.remove(1);
    let web = runtime.host().pod("web")?;
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let attachment = Attachment::of(&web).capability("portMappings", ports);
    let result = runtime.add(&native, &attachment)?;
    let (client, _, _) = attach(&runtime, &native, "client")?;
    let _server = echo::serve(&web, "web", 80)?;
    // A frame of a Pod passes the bridge before it comes out of the VLAN's link. Where bridged frames go through the IP
    // rules as well (br_netfilter), its destination would be translated on the bridge already, in the wrong place.
    runtime.host().run(&["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0"])?;
    let gateway = result["ips"][0]["gateway"].as_str().unwrap().to_owned();
    for (place, target) in [("host", "127.0.0.1:8080".to_owned()), ("Pod", format!("{gateway}:8080"))] {
        let answer = match place {
            "host" => echo::ask_tcp(runtime.host(), target.parse()?, SOON),
            _ => echo::ask_tcp(&client, target.parse()?, SOON),
        };
        ensure!(answer.with_context(|| format!("from the {place}"))?.name == "web");
    }
    runtime.check(&native, &attachment)
}

fn bridge_that_does_not_filter_is_taught_when_empty_and_refused_when_not() -> Result<()> {
    let runtime = machine()?;
    let host = runtime.host();
    let (plain, vlan) = (network(&runtime, "plain", &json!({}))?, network(&runtime, "red", &json!({"vlan": 100}))?);
    let (_plain, attachment, _) = attach(&runtime, &plain, "plain")?;
    ensure!(!filters(host, "br0")?);
    let error = attach(&runtime, &vlan, "red").unwrap_err();
    let text = format!("{error:#}");
    ensure!(text.contains("br0 does not filter VLANs, and has ports") && text.contains("vlan_filtering 1"), "{text}");
    ensure!(!filters(host, "br0")?, "nothing is changed under other Pods");
    runtime.del(&plain, &attachment)?;
    attach(&runtime, &vlan, "blue")?;
    ensure!(filters(host, "br0")?);
    Ok(())
}

fn subnet_of_another_vlan_is_refused_by_name() -> Result<()> {
    let runtime = machine()?;
    let gateway = |vlan: u16| json!({"vlan": vlan, "isGateway": true, "ipam": from(10)});
    attach(&runtime, &network(&runtime, "red", &gateway(100))?, "red")?;
    let error = attach(&runtime, &network(&runtime, "blue", &gateway(200))?, "blue").unwrap_err();
    ensure!(format!("{error:#}").contains("br0.100 already has 10.1.2.1/24"), "{error:#}");
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::VlanFiltering, Need::Nftables],
        lab::tests![
            pods_of_one_vlan_reach_each_other_and_pods_of_two_do_not,
            trunk_carries_its_vlans_with_their_tags_and_no_others,
            ports_carry_what_the_reference_gives_them,
            gateway_of_a_vlan_is_on_its_own_link_and_shared_by_its_pods,
            link_of_a_vlan_that_was_left_half_made_is_made_whole,
            host_port_leads_into_the_vlan,
            bridge_that_does_not_filter_is_taught_when_empty_and_refused_when_not,
            subnet_of_another_vlan_is_refused_by_name,
        ],
    )
}
