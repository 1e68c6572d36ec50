//! Leases in a real etcd: who gets which subnet, and what happens when the store misbehaves.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Need, Topology, eventually, throughout};
use netd_node::{HOST_GW, Net, SOON, VXLAN, kernel_state, lease, status};
use serde_json::Value;

/// A key with what etcd knows of it.
fn entry(net: &Net, key: &str) -> Result<Value> {
    let key = format!("/coreos.com/network/subnets/{key}");
    let text = net.etcd.etcdctl(&["get", "--write-out=json", "--", &key])?.stdout;
    let answer: Value = serde_json::from_str(&text)?;
    Ok(answer["kvs"][0].clone())
}

/// The store's revision: grows by one with each write.
fn revision(net: &Net) -> Result<u64> {
    let text = net.etcd.etcdctl(&["get", "--write-out=json", "--", "none"])?.stdout;
    let answer: Value = serde_json::from_str(&text)?;
    answer["header"]["revision"].as_u64().with_context(|| format!("no revision in {text}"))
}

/// Remaining and granted seconds of a key's lease.
fn time_to_live(net: &Net, key: &str) -> Result<(i64, i64)> {
    let lease = entry(net, key)?["lease"].as_i64().context("the key has no lease")?;
    let text = net.etcd.etcdctl(&["lease", "timetolive", "--write-out=json", &format!("{lease:x}")])?.stdout;
    let answer: Value = serde_json::from_str(&text)?;
    let number = |name: &str| answer[name].as_i64().with_context(|| format!("no {name} in {text}"));
    Ok((number("ttl")?, number("granted-ttl")?))
}

fn nodes_lease_the_subnets_of_their_addresses_in_flannels_format() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.both()?;
    ensure!(net.subnets()? == ["172.7.21.0-24", "172.7.22.0-24"], "{:?}", net.subnets()?);
    for (node, subnet, ip) in [("hdss7-21", "172.7.21", "10.4.7.21"), ("hdss7-22", "172.7.22", "10.4.7.22")] {
        let host = net.host(node)?;
        let mac = host.read("/sys/class/net/flannel.1/address")?.trim().to_owned();
        let value = net.etcd.get(&format!("/coreos.com/network/subnets/{subnet}.0-24"))?;
        ensure!(value == Some(lease(ip, &mac)), "{value:?}");
        let (remaining, granted) = time_to_live(&net, &format!("{subnet}.0-24"))?;
        ensure!(granted == 86_400 && remaining > 86_300, "{remaining} of {granted}");
        let expected = format!(
            "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET={subnet}.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        );
        ensure!(host.read("/run/flannel/subnet.env")? == expected, "{}", host.read("/run/flannel/subnet.env")?);
        let mode = std::fs::metadata(host.path("/run/flannel/subnet.env"))?.permissions().mode();
        ensure!(mode & 0o777 == 0o644, "{mode:o}");
    }
    Ok(())
}

fn subnet_file_appears_after_the_data_path_and_not_without_a_lease() -> Result<()> {
    let mut net = Net::start(VXLAN)?;
    net.etcd.pause("hdss7-12")?;
    let netd = net.launch("hdss7-21", &[])?;
    netd.wait_for_line("waiting: ", SOON)?;
    let host = net.host("hdss7-21")?;
    ensure!(!host.path("/run/flannel/subnet.env").exists(), "a subnet file without a subnet");
    let path = host.path("/run/flannel/subnet.env");
    net.etcd.resume("hdss7-12")?;
    let host = net.host("hdss7-21")?;
    eventually(SOON, || {
        ensure!(path.exists(), "no subnet file");
        Ok(())
    })?;
    // At the first moment the file is seen, Pods can be started.
    let state = kernel_state(host)?;
    ensure!(state.contains("172.7.21.0/32") && state.contains("table ip netd"), "{state}");
    Ok(())
}

fn ten_nodes_that_start_at_once_get_ten_subnets() -> Result<()> {
    let nodes: Vec<String> = (1..=10).map(|n| format!("node{n} 10.0.0.{n} node")).collect();
    let topology = Topology::parse(&format!("network 10.0.0.0/24\n{}\nstore 10.0.0.200 etcd", nodes.join("\n")))?;
    let net = Net::on(&topology, "store", HOST_GW)?;
    let running: Vec<_> =
        (1..=10).map(|n| net.launch(&format!("node{n}"), &["--lease-policy=first-free"])).collect::<Result<_>>()?;
    for netd in &running {
        netd.wait_for_line("lease acquired", Duration::from_secs(60))?;
    }
    let subnets = net.subnets()?;
    ensure!(subnets.len() == 10, "{subnets:?}");
    let files = (1..=10).map(|n| {
        let host = net.host(&format!("node{n}"))?;
        eventually(SOON, || host.read("/run/flannel/subnet.env"))
    });
    let files: BTreeSet<String> = files.collect::<Result<_>>()?;
    ensure!(files.len() == 10, "two nodes think that they have the same subnet: {files:?}");
    for n in 1..=10 {
        let host = net.host(&format!("node{n}"))?;
        eventually(SOON, || {
            let routes = host.run(&["ip", "route", "show", "proto", "121"])?.stdout;
            ensure!(routes.lines().count() == 9, "node{n}: {routes}");
            Ok(())
        })?;
    }
    Ok(())
}

fn taken_subnet_is_left_alone_and_the_first_free_one_is_used() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    net.put_lease("172.7.21.0-24", "10.4.7.99", "host-gw")?;
    // No node of 10.4.7.0/24 is owed the last subnet, which so is taken before all others.
    net.put_lease("172.7.255.0-24", "10.4.7.98", "host-gw")?;
    let netd = net.netd("hdss7-21")?;
    let line = netd.wait_for_line("lease acquired", SOON)?;
    ensure!(line.contains("172.7.254.0/24") && line.contains("172.7.21.0/24 is leased to 10.4.7.99"), "{line}");
    ensure!(net.etcd.get("/coreos.com/network/subnets/172.7.21.0-24")? == Some(lease("10.4.7.99", "host-gw")));
    Ok(())
}

fn restart_writes_nothing_to_the_store() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let [first, _second] = net.both()?;
    let before = (revision(&net)?, entry(&net, "172.7.21.0-24")?);
    first.terminate(SOON)?;
    let again = net.netd("hdss7-21")?;
    again.wait_for_line("it names this node already", SOON)?;
    ensure!((revision(&net)?, entry(&net, "172.7.21.0-24")?) == before, "the restart was an event for every node");
    Ok(())
}

fn previous_subnet_is_taken_again_when_its_lease_has_run_out() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    net.host("hdss7-21")?.write(
        "/run/flannel/subnet.env",
        "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.77.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=true\n",
    )?;
    let _netd = net.netd("hdss7-21")?;
    ensure!(net.subnets()? == ["172.7.77.0-24"], "{:?}", net.subnets()?);
    Ok(())
}

fn revoked_lease_is_claimed_again_and_the_data_path_stays() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let [first, _second] = net.both()?;
    let (host, other) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let (state, subnet_file) = (kernel_state(host)?, host.read("/run/flannel/subnet.env")?);
    let id = entry(&net, "172.7.21.0-24")?["lease"].as_i64().context("no lease")?;
    net.etcd.etcdctl(&["lease", "revoke", &format!("{id:x}")])?;
    first.wait_for_line("claiming the subnet again", SOON)?;
    eventually(SOON, || {
        ensure!(net.subnets()? == ["172.7.21.0-24", "172.7.22.0-24"], "{:?}", net.subnets()?);
        ensure!(entry(&net, "172.7.21.0-24")?["lease"].as_i64() != Some(id));
        Ok(())
    })?;
    net.eventually_routes("hdss7-22", "172.7.21.0/24")?;
    ensure!(first.is_running(), "flannel ends here; netd does not");
    ensure!(kernel_state(host)? == state && host.read("/run/flannel/subnet.env")? == subnet_file);
    // The other node has it back as it was.
    ensure!(kernel_state(other)?.contains("172.7.21.0/24 via 172.7.21.0 dev flannel.1"));
    Ok(())
}

fn key_taken_by_another_node_is_never_taken_back() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    let netd = net.netd("hdss7-21")?;
    net.put_lease("172.7.21.0-24", "10.4.7.99", "host-gw")?;
    netd.wait_for_line("this node has another subnet now", SOON)?;
    eventually(SOON, || {
        ensure!(net.subnets()? == ["172.7.21.0-24", "172.7.255.0-24"], "{:?}", net.subnets()?);
        let file = net.host("hdss7-21")?.read("/run/flannel/subnet.env")?;
        ensure!(file.contains("FLANNEL_SUBNET=172.7.255.1/24"), "{file}");
        Ok(())
    })?;
    net.eventually_routes("hdss7-21", "172.7.21.0/24")?;
    ensure!(net.etcd.get("/coreos.com/network/subnets/172.7.21.0-24")? == Some(lease("10.4.7.99", "host-gw")));
    Ok(())
}

fn reservation_stays_a_reservation() -> Result<()> {
    let net = Net::start(VXLAN)?;
    net.put_lease("172.7.5.0-24", "10.4.7.21", "02:00:00:00:00:01")?;
    let netd = net.netd("hdss7-21")?;
    netd.wait_for_line("the lease is a reservation", SOON)?;
    ensure!(net.subnets()? == ["172.7.5.0-24"]);
    ensure!(entry(&net, "172.7.5.0-24")?["lease"].is_null(), "{}", entry(&net, "172.7.5.0-24")?);
    Ok(())
}

fn short_lease_of_a_predecessor_is_kept_alive() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let granted = net.etcd.etcdctl(&["lease", "grant", "4"])?.stdout;
    let id = granted.split_whitespace().nth(1).context("no lease id")?.to_owned();
    let lease_option = format!("--lease={id}");
    let value = lease("10.4.7.21", "02:00:00:00:00:01");
    net.etcd.etcdctl(&["put", &lease_option, "--", "/coreos.com/network/subnets/172.7.21.0-24", &value])?;
    let _netd = net.netd("hdss7-21")?;
    let created = entry(&net, "172.7.21.0-24")?["create_revision"].as_i64();
    throughout(Duration::from_secs(8), || {
        let now = entry(&net, "172.7.21.0-24")?;
        ensure!(now["create_revision"].as_i64() == created, "the key ran out");
        Ok(())
    })
}

fn junk_under_subnets_is_reported_and_the_others_go_on() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let folder = "/coreos.com/network/subnets";
    for (key, value) in [
        ("junk", "{}"),
        ("172.7.30.0-24", "not json"),
        ("172.7.31.0-24", r#"{"PublicIP":"10.4.7.31","BackendType":"vxlan","BackendData":{"VNI":1}}"#),
        (
            "0.0.0.0-0",
            r#"{"PublicIP":"10.4.7.66","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:66"}}"#,
        ),
    ] {
        net.etcd.put(&format!("{folder}/{key}"), value)?;
    }
    let [first, _second] = net.both()?;
    net.etcd.put(&format!("{folder}/172.7.32.0-24hi"), "{}")?;
    net.put_lease("172.7.99.0-24", "10.4.7.99", "02:00:00:00:00:99")?;
    net.eventually_routes("hdss7-21", "172.7.99.0/24")?;
    first.wait_for_line("172.7.32.0-24hi", SOON)?;
    eventually(SOON, || {
        let status = status(&net, "hdss7-21")?;
        let keys: Vec<&String> = status["invalid"].as_object().context("invalid")?.keys().collect();
        ensure!(keys == ["172.7.30.0-24", "172.7.31.0-24", "172.7.32.0-24hi", "junk"], "{keys:?}");
        ensure!(status["invalid"]["172.7.31.0-24"].as_str().is_some_and(|why| why.contains("BackendData.VtepMAC")));
        let skipped = status["skipped"]["0.0.0.0/0"].as_str().unwrap_or_default();
        ensure!(skipped.contains("no subnet of the Pod network"), "{status}");
        ensure!(status["leases"]["172.7.99.0/24"]["public_ip"] == "10.4.7.99", "{status}");
        Ok(())
    })?;
    let routes = net.host("hdss7-21")?.run(&["ip", "route"])?.stdout;
    ensure!(!routes.contains("default") && routes.contains("172.7.22.0/24"), "{routes}");
    Ok(())
}

fn store_that_goes_away_costs_nothing_and_comes_back() -> Result<()> {
    let mut net = Net::start(VXLAN)?;
    let [first, _second] = net.both()?;
    let before = kernel_state(net.host("hdss7-21")?)?;
    net.etcd.kill("hdss7-12")?;
    first.wait_for_line("the store is out of reach", SOON)?;
    let host = net.host("hdss7-21")?;
    // Repairs go on without it.
    host.run(&["ip", "route", "del", "172.7.22.0/24"])?;
    eventually(SOON, || {
        ensure!(kernel_state(host)? == before);
        Ok(())
    })?;
    eventually(SOON, || {
        ensure!(!status(&net, "hdss7-21")?["store"]["lost"].is_null(), "the status does not tell");
        Ok(())
    })?;
    net.etcd.restart("hdss7-12")?;
    net.put_lease("172.7.99.0-24", "10.4.7.99", "02:00:00:00:00:99")?;
    net.eventually_routes("hdss7-21", "172.7.99.0/24")?;
    eventually(SOON, || {
        ensure!(status(&net, "hdss7-21")?["store"]["lost"].is_null(), "the status still complains");
        Ok(())
    })
}

fn wiped_store_costs_no_route() -> Result<()> {
    let mut net = Net::start(VXLAN)?;
    let [first, second] = net.both()?;
    net.etcd.kill("hdss7-12")?;
    net.host("hdss7-12")?.run(&["rm", "-r", "/run/etcd"])?;
    let monitor = net.host("hdss7-21")?.command("ip").args(["-o", "monitor", "route"]).start("monitor")?;
    net.etcd.restart("hdss7-12")?;
    for netd in [&first, &second] {
        netd.wait_for_line("claiming the subnet again", SOON)?;
    }
    eventually(SOON, || {
        ensure!(net.subnets()? == ["172.7.21.0-24", "172.7.22.0-24"], "{:?}", net.subnets()?);
        Ok(())
    })?;
    throughout(Duration::from_secs(2), || {
        ensure!(!monitor.log().contains("Deleted"), "{}", monitor.log());
        net.eventually_routes("hdss7-21", "172.7.22.0/24")
    })
}

fn emptied_store_is_listed_twice_before_a_restarted_node_removes_anything() -> Result<()> {
    let mut net = Net::start(VXLAN)?;
    let both = net.both()?;
    for netd in &both {
        netd.terminate(SOON)?;
    }
    net.etcd.kill("hdss7-12")?;
    net.host("hdss7-12")?.run(&["rm", "-r", "/run/etcd"])?;
    net.etcd.restart("hdss7-12")?;
    net.etcd.put("/coreos.com/network/config", VXLAN)?;
    let host = net.host("hdss7-21")?;
    let before = kernel_state(host)?;
    let again = net.launch("hdss7-21", &[])?;
    again.wait_for_line("nothing is removed before a second look", SOON)?;
    eventually(SOON, || {
        ensure!(status(&net, "hdss7-21")?["store"]["doubted"] == true, "the status does not tell");
        Ok(())
    })?;
    throughout(Duration::from_secs(3), || {
        ensure!(kernel_state(host)? == before, "{}\n--- instead of\n{before}", kernel_state(host)?);
        Ok(())
    })?;
    // The node of .22 does not come back: after the second look it is gone.
    again.wait_for_line("second look at the store", Duration::from_secs(60))?;
    eventually(SOON, || {
        let state = kernel_state(host)?;
        ensure!(!state.contains("172.7.22."), "{state}");
        Ok(())
    })
}

fn bad_network_configuration_is_refused_with_every_field() -> Result<()> {
    let net = Net::start(r#"{"Network":"172.7.0.0/16","SubnetLen":33,"Backend":{"Type":"vxlan","VNI":0,"Port":-1}}"#)?;
    let netd = net.launch("hdss7-21", &[])?;
    ensure!(netd.wait(SOON)?.code() == Some(1));
    for part in
        ["etcd key /coreos.com/network/config: 3 problems", "SubnetLen: 33", "Backend.VNI: 0", "Backend.Port: -1"]
    {
        ensure!(netd.log().contains(part), "{}\nlacks {part}", netd.log());
    }
    Ok(())
}

fn overlapping_networks_are_refused_by_name() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let netd = net.launch("hdss7-21", &["--service-cidr=10.4.0.0/16"])?;
    ensure!(netd.wait(SOON)?.code() == Some(1));
    let expected = "node network 10.4.7.0/24 lies inside Service network 10.4.0.0/16";
    ensure!(netd.log().contains(expected), "{}", netd.log());
    ensure!(net.subnets()?.is_empty(), "a lease was taken all the same");
    Ok(())
}

fn own_address_that_the_other_nodes_would_refuse_is_refused() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let endpoints = format!("--etcd-endpoints={}", net.etcd.endpoints());
    let cases: [(&[&str], &str); 3] = [
        (&["--iface=lo"], "PublicIP 127.0.0.1 is not the address of a host"),
        (
            &["--iface=eth0", "--public-ip=172.7.21.5"],
            "PublicIP 172.7.21.5 is an address of the Pod network 172.7.0.0/16",
        ),
        (&["--iface=eth0", "--public-ip=10.4.7.255"], "PublicIP 10.4.7.255 is the broadcast address of 10.4.7.0/24"),
    ];
    for (flags, words) in cases {
        let netd = net.host("hdss7-21")?.command(lab::bin("netd")?).arg(&endpoints).args(flags).start("netd")?;
        ensure!(netd.wait(SOON)?.code() == Some(1), "{flags:?}");
        ensure!(netd.log().contains(words) && netd.log().contains("--public-ip"), "{flags:?}: {}", netd.log());
        ensure!(net.subnets()?.is_empty(), "{flags:?}: a lease was taken all the same");
    }
    Ok(())
}

fn network_is_waited_for_until_it_is_configured() -> Result<()> {
    let net = Net::start(VXLAN)?;
    net.etcd.delete("/coreos.com/network/config")?;
    let netd = net.launch("hdss7-21", &[])?;
    netd.wait_for_line("etcd key /coreos.com/network/config does not exist", SOON)?;
    net.etcd.put("/coreos.com/network/config", VXLAN)?;
    netd.wait_for_line("wrote the subnet file", SOON)?;
    Ok(())
}

fn other_prefix_of_the_store_is_used_alone() -> Result<()> {
    let net = Net::start("junk, which nobody must read")?;
    net.etcd.put("/atomic.io/network/config", HOST_GW)?;
    let netd = net.launch("hdss7-21", &["-etcd-prefix=/atomic.io/network"])?;
    netd.wait_for_line("wrote the subnet file", SOON)?;
    ensure!(net.etcd.keys("/atomic.io/network/subnets/")? == ["/atomic.io/network/subnets/172.7.21.0-24"]);
    ensure!(net.subnets()?.is_empty());
    Ok(())
}

fn single_machine_needs_no_store() -> Result<()> {
    let net = Net::start("{}")?;
    let host = net.host("hdss7-200")?;
    host.write("/etc/net-conf.json", HOST_GW)?;
    let command = host.command(lab::bin("netd")?).env("FLANNELD_IFACE", "eth0").env("FLANNELD_IP_MASQ", "true");
    let netd = command.args(["--store=local", "--net-config-path=/etc/net-conf.json"]).start("netd")?;
    netd.wait_for_line("ready: every lease is in the kernel", SOON)?;
    let expected =
        "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.200.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=true\n";
    ensure!(host.read("/run/flannel/subnet.env")? == expected);
    ensure!(kernel_state(host)?.contains("masquerade"));
    // The file is followed; what is no configuration changes nothing.
    host.write("/etc/net-conf.json", r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#)?;
    eventually(SOON, || {
        ensure!(host.read("/run/flannel/subnet.env")?.contains("FLANNEL_MTU=1450"));
        host.run(&["ls", "-d", "/sys/class/net/flannel.7"]).map(drop)
    })?;
    host.write("/etc/net-conf.json", "{\"Network\":")?;
    netd.wait_for_line("this node runs on with what it had", SOON)?;
    ensure!(host.read("/run/flannel/subnet.env")?.contains("FLANNEL_MTU=1450"));
    ensure!(netd.terminate(SOON)?.success());
    ensure!(!netd.log().contains("lease is lost"), "{}", netd.log());
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            nodes_lease_the_subnets_of_their_addresses_in_flannels_format,
            subnet_file_appears_after_the_data_path_and_not_without_a_lease,
            ten_nodes_that_start_at_once_get_ten_subnets,
            taken_subnet_is_left_alone_and_the_first_free_one_is_used,
            restart_writes_nothing_to_the_store,
            previous_subnet_is_taken_again_when_its_lease_has_run_out,
            revoked_lease_is_claimed_again_and_the_data_path_stays,
            key_taken_by_another_node_is_never_taken_back,
            reservation_stays_a_reservation,
            short_lease_of_a_predecessor_is_kept_alive,
            junk_under_subnets_is_reported_and_the_others_go_on,
            store_that_goes_away_costs_nothing_and_comes_back,
            wiped_store_costs_no_route,
            emptied_store_is_listed_twice_before_a_restarted_node_removes_anything,
            bad_network_configuration_is_refused_with_every_field,
            overlapping_networks_are_refused_by_name,
            own_address_that_the_other_nodes_would_refuse_is_refused,
            network_is_waited_for_until_it_is_configured,
            other_prefix_of_the_store_is_used_alone,
            single_machine_needs_no_store,
        ],
    )
}
