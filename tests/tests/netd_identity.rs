//! Which lease is a node's own: what it knows again, what it keeps, and what it never deletes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Host, Need, eventually, throughout};
use netd_node::{HOST_GW, Net, SOON, VXLAN, both_keep_their_subnets, lease, status};

/// Moves a host to another address.
fn readdress(host: &Host, from: &str, to: &str) -> Result<()> {
    host.run(&["ip", "address", "del", from, "dev", "eth0"])?;
    host.run(&["ip", "address", "add", to, "dev", "eth0"])?;
    Ok(())
}

fn mac(host: &Host) -> Result<String> {
    Ok(host.read("/sys/class/net/flannel.1/address")?.trim().to_owned())
}

/// The node's subnet is what it was, under its new address, and the other node sends there.
fn moved_with_its_subnet(net: &Net, mac: &str) -> Result<()> {
    eventually(3 * SOON, || {
        let value = net.etcd.get("/coreos.com/network/subnets/172.7.21.0-24")?;
        ensure!(value == Some(lease("10.4.7.121", mac)), "{value:?}");
        let fdb = net.host("hdss7-22")?.run(&["bridge", "fdb", "show", "dev", "flannel.1"])?.stdout;
        ensure!(fdb.contains(&format!("{mac} dst 10.4.7.121")) && !fdb.contains("10.4.7.21 "), "{fdb}");
        let link = net.host("hdss7-21")?.run(&["ip", "-d", "link", "show", "flannel.1"])?.stdout;
        ensure!(link.contains("local 10.4.7.121"), "{link}");
        net.host("hdss7-21")?.run(&["ping", "-c1", "-W1", "172.7.22.0"])?;
        Ok(())
    })?;
    both_keep_their_subnets(net)
}

fn node_that_comes_back_with_another_address_keeps_its_subnet() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let [first, _second] = net.both()?;
    let host = net.host("hdss7-21")?;
    let mac = mac(host)?;
    first.terminate(SOON)?;
    readdress(host, "10.4.7.21/24", "10.4.7.121/24")?;
    let again = net.netd("hdss7-21")?;
    again.wait_for_line("from before its address changed", SOON)?;
    moved_with_its_subnet(&net, &mac)
}

/// As a machine that was cloned while it ran: what netd wrote down and the device's hardware address are the original's.
fn copy_of_a_running_node_takes_nothing_from_it() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let first = net.netd("hdss7-21")?;
    let (original, copy) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let mac = mac(original)?;
    for file in ["/run/flannel/subnet.env", "/run/netd/leases", "/run/netd/devices", "/run/netd/networks"] {
        copy.run(&["mkdir", "-p", "/run/flannel", "/run/netd"])?;
        copy.write(file, original.read(file)?)?;
    }
    let device = "ip link add flannel.1 address MAC type vxlan id 1 local 10.4.7.22 dev eth0 dstport 8472 nolearning";
    copy.run(&["sh", "-c", &device.replace("MAC", &mac)])?;
    let second = net.launch("hdss7-22", &[])?;
    second.wait_for_line("172.7.21.0/24 is leased to another node at 10.4.7.21", SOON)?;
    let key = "/coreos.com/network/subnets/172.7.21.0-24";
    let revision = || -> Result<String> { Ok(net.etcd.etcdctl(&["get", key, "-w", "json"])?.stdout) };
    let (value, written) = (net.etcd.get(key)?, revision()?);
    ensure!(value == Some(lease("10.4.7.21", &mac)), "{value:?}");
    throughout(Duration::from_secs(3), || {
        ensure!(
            revision()?.split("mod_revision").nth(1) == written.split("mod_revision").nth(1),
            "it is written again"
        );
        Ok(())
    })?;
    ensure!(first.is_running() && !first.log().contains("this node has another subnet now"), "{}", first.log());
    Ok(())
}

fn node_that_changes_its_address_while_it_runs_keeps_its_subnet() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let [first, _second] = net.both()?;
    let host = net.host("hdss7-21")?;
    let mac = mac(host)?;
    let begin = Instant::now();
    readdress(host, "10.4.7.21/24", "10.4.7.121/24")?;
    // Nothing comes back on the connections of the earlier address: whoever waits for that waits for seconds.
    first.wait_for_line("connections to etcd are made anew", SOON)?;
    eventually(SOON, || {
        let value = net.etcd.get("/coreos.com/network/subnets/172.7.21.0-24")?;
        ensure!(value == Some(lease("10.4.7.121", &mac)), "{value:?}");
        Ok(())
    })?;
    println!("the new address is in the lease after {:?}", begin.elapsed());
    moved_with_its_subnet(&net, &mac)?;
    ensure!(first.is_running());
    Ok(())
}

fn older_lease_with_a_copied_hardware_address_takes_nothing_from_a_node() -> Result<()> {
    let net = Net::start(VXLAN)?;
    // The hardware address of 10.4.7.21, under a smaller subnet, before that node's lease.
    net.netd("hdss7-21")?.terminate(SOON)?;
    let mac = mac(net.host("hdss7-21")?)?;
    net.etcd.delete("/coreos.com/network/subnets/172.7.21.0-24")?;
    net.put_lease("172.7.5.0-24", "10.4.7.99", &mac)?;
    let _netd = net.both()?;
    let other = net.host("hdss7-22")?;
    let fdb = other.run(&["bridge", "fdb", "show", "dev", "flannel.1"])?.stdout;
    ensure!(fdb.contains(&format!("{mac} dst 10.4.7.21 ")), "{fdb}");
    eventually(SOON, || {
        let status = status(&net, "hdss7-22")?;
        let why = status["skipped"]["172.7.5.0/24"].as_str().context("the stale lease is not named")?;
        ensure!(why.contains("10.4.7.21") && why.contains("newer"), "{why}");
        Ok(())
    })
}

fn second_key_that_names_a_node_moves_it_nowhere_and_is_never_deleted() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    let netd = net.netd("hdss7-21")?;
    // One before and one behind in order, one of them an operator's reservation.
    net.put_lease("172.7.5.0-24", "10.4.7.21", "host-gw")?;
    net.put_lease("172.7.99.0-24", "10.4.7.21", "host-gw")?;
    let all = ["172.7.21.0-24", "172.7.5.0-24", "172.7.99.0-24"];
    for run in [Some(netd), None] {
        let netd = match run {
            Some(netd) => netd,
            None => net.netd("hdss7-21")?,
        };
        let file = net.host("hdss7-21")?.read("/run/flannel/subnet.env")?;
        ensure!(file.contains("FLANNEL_SUBNET=172.7.21.1/24"), "{file}");
        ensure!(net.subnets()? == all, "{:?}", net.subnets()?);
        netd.terminate(SOON)?;
    }
    let _netd = net.netd("hdss7-21")?;
    eventually(SOON, || {
        let status = status(&net, "hdss7-21")?;
        for key in ["172.7.5.0-24", "172.7.99.0-24"] {
            let named =
                status["warnings"].as_array().is_some_and(|all| all.iter().any(|w| w.to_string().contains(key)));
            ensure!(named, "{key} is not named: {status}");
        }
        Ok(())
    })
}

fn own_key_deleted_right_after_each_claim_is_claimed_again() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    let _netd = net.netd("hdss7-21")?;
    for _ in 0..10 {
        eventually(SOON, || {
            ensure!(net.subnets()? == ["172.7.21.0-24"], "{:?}", net.subnets()?);
            Ok(())
        })?;
        net.etcd.delete("/coreos.com/network/subnets/172.7.21.0-24")?;
    }
    eventually(SOON, || {
        ensure!(net.subnets()? == ["172.7.21.0-24"], "the last deletion was not noticed: {:?}", net.subnets()?);
        Ok(())
    })
}

fn revoked_lease_keeps_its_subnet_under_any_policy() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    // Another node's lease on the subnet that node-ip names makes the node take the first that is owed to nobody.
    net.put_lease("172.7.21.0-24", "10.4.7.99", "host-gw")?;
    let netd = net.launch("hdss7-21", &["--lease-policy=node-ip,first-free"])?;
    netd.wait_for_line("wrote the subnet file", SOON)?;
    ensure!(net.subnets()? == ["172.7.21.0-24", "172.7.255.0-24"], "{:?}", net.subnets()?);
    // Now node-ip would name a free subnet, but Pods live in the held one.
    net.etcd.delete("/coreos.com/network/subnets/172.7.21.0-24")?;
    net.etcd.delete("/coreos.com/network/subnets/172.7.255.0-24")?;
    let line = netd.wait_for_line("held before", SOON)?;
    ensure!(line.contains("172.7.255.0/24"), "{line}");
    ensure!(net.subnets()? == ["172.7.255.0-24"], "{:?}", net.subnets()?);
    Ok(())
}

fn node_that_moves_again_and_again_keeps_its_subnet() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let [first, _second] = net.both()?;
    let host = net.host("hdss7-21")?;
    let mac = mac(host)?;
    for (from, to) in [("21", "31"), ("31", "41"), ("41", "21"), ("21", "121")] {
        readdress(host, &format!("10.4.7.{from}/24"), &format!("10.4.7.{to}/24"))?;
        // The last moves come in quick succession.
        if from != "41" {
            eventually(3 * SOON, || {
                let value = net.etcd.get("/coreos.com/network/subnets/172.7.21.0-24")?;
                ensure!(value == Some(lease(&format!("10.4.7.{to}"), &mac)), "{to}: {value:?}");
                Ok(())
            })?;
        }
    }
    moved_with_its_subnet(&net, &mac)?;
    ensure!(first.is_running());
    Ok(())
}

fn node_without_its_subnet_file_or_device_knows_its_lease_again() -> Result<()> {
    for blow in
        ["rm /run/flannel/subnet.env", "ip link del flannel.1", "rm /run/flannel/subnet.env; ip link del flannel.1"]
    {
        let net = Net::start(VXLAN)?;
        let [first, _second] = net.both()?;
        let host = net.host("hdss7-21")?;
        let mac = mac(host)?;
        first.terminate(SOON)?;
        host.run(&["sh", "-c", blow])?;
        readdress(host, "10.4.7.21/24", "10.4.7.121/24")?;
        let _again = net.netd("hdss7-21")?;
        moved_with_its_subnet(&net, &mac).with_context(|| blow)?;
    }
    Ok(())
}

fn nodes_that_swap_their_addresses_keep_their_subnets() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let [first, second] = net.both()?;
    first.terminate(SOON)?;
    second.terminate(SOON)?;
    let (one, other) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let macs = [mac(one)?, mac(other)?];
    readdress(one, "10.4.7.21/24", "10.4.7.222/24")?;
    readdress(other, "10.4.7.22/24", "10.4.7.21/24")?;
    readdress(one, "10.4.7.222/24", "10.4.7.22/24")?;
    let _netd = [net.launch("hdss7-21", &[])?, net.launch("hdss7-22", &[])?];
    eventually(3 * SOON, || {
        for (subnet, address, mac) in [("21", "22", &macs[0]), ("22", "21", &macs[1])] {
            let value = net.etcd.get(&format!("/coreos.com/network/subnets/172.7.{subnet}.0-24"))?;
            ensure!(value == Some(lease(&format!("10.4.7.{address}"), mac)), "{subnet}: {value:?}");
        }
        one.run(&["ping", "-c1", "-W1", "172.7.22.0"])?;
        Ok(())
    })?;
    ensure!(net.subnets()? == ["172.7.21.0-24", "172.7.22.0-24"], "{:?}", net.subnets()?);
    Ok(())
}

fn fresh_node_takes_its_reservation_beside_a_lease_and_a_key_of_another_length() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    let ends = net.etcd.etcdctl(&["lease", "grant", "3600"])?;
    let ends = ends.stdout.split_whitespace().nth(1).context("number of the lease")?.to_owned();
    for (key, flags) in [("172.7.5.0-24", Some(&ends)), ("172.7.21.0-25", None), ("172.7.50.0-24", None)] {
        let key = format!("/coreos.com/network/subnets/{key}");
        let value = lease("10.4.7.21", "host-gw");
        match flags {
            Some(id) => net.etcd.etcdctl(&["put", &format!("--lease={id}"), &key, &value]).map(drop)?,
            None => net.etcd.put(&key, &value)?,
        }
    }
    let all = ["172.7.21.0-25", "172.7.5.0-24", "172.7.50.0-24"];
    for _ in 0..2 {
        let netd = net.netd("hdss7-21")?;
        let file = net.host("hdss7-21")?.read("/run/flannel/subnet.env")?;
        ensure!(file.contains("FLANNEL_SUBNET=172.7.50.1/24"), "{file}");
        ensure!(net.subnets()? == all, "{:?}", net.subnets()?);
        eventually(SOON, || {
            let warnings = status(&net, "hdss7-21")?["warnings"].to_string();
            ensure!(warnings.contains("172.7.21.0-25") && warnings.contains("172.7.5.0-24"), "{warnings}");
            Ok(())
        })?;
        netd.terminate(SOON)?;
    }
    Ok(())
}

fn own_key_deleted_in_one_transaction_with_others_is_claimed_again() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    for n in [30, 31, 32, 33] {
        net.put_lease(&format!("172.7.{n}.0-24"), &format!("10.4.7.{n}"), "host-gw")?;
    }
    let _netd = net.netd("hdss7-21")?;
    for _ in 0..3 {
        // Ends before the bound: one key more than the own one.
        net.put_lease("172.7.20.0-24", "10.4.7.20", "host-gw")?;
        net.etcd.etcdctl(&["del", "/coreos.com/network/subnets/172.7.20", "/coreos.com/network/subnets/172.7.22"])?;
        eventually(SOON, || {
            let left = ["172.7.21.0-24", "172.7.30.0-24", "172.7.31.0-24", "172.7.32.0-24", "172.7.33.0-24"];
            ensure!(net.subnets()? == left, "{:?}", net.subnets()?);
            Ok(())
        })?;
    }
    Ok(())
}

fn nodes_with_one_public_address_have_devices_of_their_own_and_the_second_is_refused() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let (one, other) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let shared = ["--public-ip=10.4.7.99", "--lease-policy=first-free"];
    let first = net.launch("hdss7-21", &shared)?;
    first.wait_for_line("ready: every lease is in the kernel", SOON)?;
    let subnets = net.subnets()?;
    let key = format!("/coreos.com/network/subnets/{}", subnets[0]);
    let value = || net.etcd.get(&key);
    let second = net.launch("hdss7-22", &shared)?;
    let line = second.wait_for_line("is leased to another node at 10.4.7.99", SOON)?;
    ensure!(line.contains("10.4.7.99") && line.contains(&mac(one)?), "{line}");
    // It changes nothing, however often it tries, and says why.
    throughout(Duration::from_secs(5), || {
        ensure!(net.subnets()? == subnets && value()? == Some(lease("10.4.7.99", &mac(one)?)), "{:?}", value()?);
        Ok::<_, anyhow::Error>(())
    })?;
    ensure!(!other.path("/run/flannel/subnet.env").exists(), "the second has a subnet");
    let trouble = status(&net, "hdss7-22")?["store"]["lease_trouble"].to_string();
    ensure!(trouble.contains("another node"), "{trouble}");
    ensure!(first.is_running());
    // Once the first is gone, the address is the second's, with a device of its own.
    first.terminate(SOON)?;
    net.etcd.delete(&key)?;
    second.wait_for_line("ready: every lease is in the kernel", 3 * SOON)?;
    ensure!(mac(one)? != mac(other)?, "one hardware address");
    Ok(())
}

fn second_node_with_one_public_address_is_refused_although_no_device_tells_them_apart() -> Result<()> {
    for backend in ["alloc", "extension"] {
        let net = Net::start(&format!(r#"{{"Network":"172.7.0.0/16","Backend":{{"Type":"{backend}"}}}}"#))?;
        let shared = ["--public-ip=10.4.7.99", "--lease-policy=first-free"];
        let first = net.launch("hdss7-21", &shared)?;
        first.wait_for_line("ready: every lease is in the kernel", SOON)?;
        let subnets = net.subnets()?;
        let second = net.launch("hdss7-22", &shared)?;
        let line = second.wait_for_line("is leased to another node at 10.4.7.99", SOON)?;
        ensure!(line.contains("10.4.7.99"), "{line}");
        throughout(Duration::from_secs(5), || {
            ensure!(net.subnets()? == subnets, "{:?}", net.subnets()?);
            Ok::<_, anyhow::Error>(())
        })?;
        ensure!(!net.host("hdss7-22")?.path("/run/flannel/subnet.env").exists(), "{backend}: the second has a subnet");
        first.wait_for_line("does a second node have this address?", SOON)?;
        // A node that was started again knows its lease by nothing but its address: nobody objects.
        second.terminate(SOON)?;
        first.terminate(SOON)?;
        let host = net.host("hdss7-21")?;
        host.run(&["rm", "/run/netd/leases", "/run/flannel/subnet.env"])?;
        let again = net.launch("hdss7-21", &shared)?;
        again.wait_for_line("ready: every lease is in the kernel", SOON)?;
        ensure!(net.subnets()? == subnets, "{:?}", net.subnets()?);
    }
    Ok(())
}

fn node_that_lost_all_but_its_address_takes_its_lease_over() -> Result<()> {
    let net = Net::start(VXLAN)?;
    // As flannel left it before the node was started again: a hardware address that nothing has any more.
    let ends = net.etcd.etcdctl(&["lease", "grant", "3600"])?;
    let ends = ends.stdout.split_whitespace().nth(1).context("number of the lease")?.to_owned();
    let key = "/coreos.com/network/subnets/172.7.77.0-24";
    let value = lease("10.4.7.21", "02:00:00:00:00:77");
    net.etcd.etcdctl(&["put", &format!("--lease={ends}"), key, &value])?;
    let netd = net.netd("hdss7-21")?;
    let own = mac(net.host("hdss7-21")?)?;
    ensure!(own != "02:00:00:00:00:77" && net.etcd.get(key)? == Some(lease("10.4.7.21", &own)), "{own}");
    ensure!(net.subnets()? == ["172.7.77.0-24"], "{:?}", net.subnets()?);
    ensure!(netd.is_running());
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            node_that_comes_back_with_another_address_keeps_its_subnet,
            copy_of_a_running_node_takes_nothing_from_it,
            node_that_changes_its_address_while_it_runs_keeps_its_subnet,
            older_lease_with_a_copied_hardware_address_takes_nothing_from_a_node,
            second_key_that_names_a_node_moves_it_nowhere_and_is_never_deleted,
            own_key_deleted_right_after_each_claim_is_claimed_again,
            revoked_lease_keeps_its_subnet_under_any_policy,
            node_that_moves_again_and_again_keeps_its_subnet,
            node_without_its_subnet_file_or_device_knows_its_lease_again,
            nodes_that_swap_their_addresses_keep_their_subnets,
            fresh_node_takes_its_reservation_beside_a_lease_and_a_key_of_another_length,
            own_key_deleted_in_one_transaction_with_others_is_claimed_again,
            nodes_with_one_public_address_have_devices_of_their_own_and_the_second_is_refused,
            second_node_with_one_public_address_is_refused_although_no_device_tells_them_apart,
            node_that_lost_all_but_its_address_takes_its_lease_over,
        ],
    )
}
