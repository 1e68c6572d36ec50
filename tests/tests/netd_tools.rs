//! netd's verbs for operators: the network's configuration and the leases.

#![allow(clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::{Need, Output, eventually};
use netd_node::{Net, SOON, VXLAN, lease};
use serde_json::Value;

/// What a verb answers on a node, whatever its exit status is.
fn ask(net: &Net, words: &[&str], input: &str) -> Result<Output> {
    let endpoints = format!("--etcd-endpoints={}", net.etcd.endpoints());
    let command = net.host("hdss7-21")?.command(lab::bin("netd")?).args(words).arg(endpoints);
    command.input(input).output()
}

/// What a verb prints that must succeed.
fn done(net: &Net, words: &[&str]) -> Result<String> {
    let output = ask(net, words, "")?;
    ensure!(output.status.success(), "{words:?}: {output:?}");
    Ok(output.stdout)
}

/// What a verb says that must fail.
fn refused(net: &Net, words: &[&str]) -> Result<String> {
    let output = ask(net, words, "")?;
    ensure!(output.status.code() == Some(1), "{words:?}: {output:?}");
    Ok(output.stderr)
}

fn configuration_with_problems_is_named_field_by_field_and_never_written() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let bad = r#"{"Network":"172.7.0.0","SubnetLen":"24","Backend":{"Type":"vxlan","VNI":16777216}}"#;
    for words in [&["config", "check", "-f", "-"][..], &["config", "set", "-f", "-"]] {
        let output = ask(&net, words, bad)?;
        ensure!(output.status.code() == Some(1), "{output:?}");
        for field in ["Network: ", "SubnetLen: ", "Backend.VNI: "] {
            ensure!(output.stderr.contains(&format!("\n  {field}")), "{words:?}: {output:?}");
        }
    }
    let error = refused(&net, &["config", "edit", "Backend.VNI=16777216"])?;
    ensure!(error.contains("Backend.VNI: 16777216"), "{error}");
    ensure!(done(&net, &["config", "show"])?.trim() == VXLAN);
    net.host("hdss7-21")?.write("/tmp/net-conf.json", bad)?;
    let error = refused(&net, &["config", "check", "--store=local", "--net-config-path=/tmp/net-conf.json"])?;
    ensure!(error.contains("/tmp/net-conf.json: 3 problems"), "{error}");
    Ok(())
}

fn configuration_is_set_and_edited_with_what_it_means_for_the_nodes() -> Result<()> {
    let net = Net::start(VXLAN)?;
    net.put_lease("172.7.21.0-24", "10.4.7.21", "02:00:00:00:00:21")?;
    net.put_lease("172.7.99.0-24", "10.4.7.99", "02:00:00:00:00:99")?;
    ensure!(done(&net, &["config", "check"])?.contains("172.7.0.0/16: 255 subnets, 172.7.1.0/24 to 172.7.255.0/24"));
    let dry = done(&net, &["config", "edit", "--dry-run", "SubnetMin=172.7.50.0", "Backend.MTU=1400"])?;
    ensure!(dry.contains("1 of 2 leases do not fit: 172.7.21.0/24;") && dry.contains("nothing is written"), "{dry}");
    ensure!(done(&net, &["config", "show"])?.trim() == VXLAN);
    done(&net, &["config", "edit", "Backend.MTU=1400"])?;
    let text = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","MTU":1400}}"#;
    ensure!(net.etcd.get("/coreos.com/network/config")?.as_deref() == Some(text));
    let again = done(&net, &["config", "set", text])?;
    ensure!(again.contains("no node changes anything") && again.contains("holds this text already"), "{again}");
    let set = done(&net, &["config", "set", r#"{"Network":"172.7.0.0/16","Backend":{"Type":"host-gw"}}"#])?;
    ensure!(set.contains("backend vxlan becomes host-gw") && set.contains("written to etcd key"), "{set}");
    net.etcd.delete("/coreos.com/network/config")?;
    ensure!(refused(&net, &["config", "show"])?.contains("does not exist: write it with `netd config set`"));
    done(&net, &["config", "set", VXLAN])?;
    let host = net.host("hdss7-21")?;
    let file = ["--store=local", "--net-config-path=/etc/kube-flannel/net-conf.json"];
    done(&net, &[&["config", "set", VXLAN][..], &file].concat())?;
    done(&net, &[&["config", "edit", "SubnetLen=25"][..], &file].concat())?;
    ensure!(host.read("/etc/kube-flannel/net-conf.json")?.contains(r#""SubnetLen":25"#));
    Ok(())
}

fn leases_are_listed_with_node_backend_and_end() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.netd("hdss7-21")?;
    net.put_lease("172.7.99.0-24", "10.4.7.99", "02:00:00:00:00:99")?;
    net.etcd.put("/coreos.com/network/subnets/junk", "junk")?;
    let text = done(&net, &["lease", "list"])?;
    let line =
        |start: &str| text.lines().find(|line| line.starts_with(start)).with_context(|| format!("{start}: {text}"));
    let own = line("172.7.21.0/24")?;
    ensure!(own.contains("10.4.7.21") && own.contains("vxlan") && own.contains("in 2") && own.contains("ago"), "{own}");
    ensure!(line("172.7.99.0/24")?.contains("never") && line("! junk: ")?.contains("is not the key"), "{text}");
    ensure!(text.lines().filter(|line| !line.starts_with('!')).all(|line| line.len() <= 80), "{text}");
    let json: Value = serde_json::from_str(&done(&net, &["lease", "list", "--json"])?)?;
    ensure!(json[0]["public_ip"] == "10.4.7.21" && json[0]["reservation"] == false, "{json}");
    ensure!(json[0]["expires_in_seconds"].as_u64().is_some_and(|left| left > 80_000), "{json}");
    Ok(())
}

fn reserved_subnet_is_taken_by_its_node_and_stays() -> Result<()> {
    let net = Net::start(VXLAN)?;
    ensure!(refused(&net, &["lease", "reserve", "172.7.77.0/24"])?.contains("--node"));
    ensure!(
        refused(&net, &["lease", "reserve", "172.8.77.0/24", "--node=10.4.7.21"])?
            .contains("no subnet that a node may get")
    );
    for (node, why) in [
        ("127.0.0.1", "is not the address of a host"),
        ("172.7.4.4", "is an address of the Pod network"),
        ("fd00::1", "has no Pods of IPv6"),
    ] {
        let said = refused(&net, &["lease", "reserve", "172.7.77.0/24", "--node", node])?;
        ensure!(said.contains(node) && said.contains(why), "{said}");
    }
    done(&net, &["lease", "reserve", "172.7.77.0/24", "--node", "10.4.7.21"])?;
    let value = net.etcd.get("/coreos.com/network/subnets/172.7.77.0-24")?;
    ensure!(value.as_deref() == Some(r#"{"PublicIP":"10.4.7.21","PublicIPv6":null}"#), "{value:?}");
    ensure!(refused(&net, &["lease", "reserve", "172.7.77.0/24", "--node=10.4.7.22"])?.contains("10.4.7.21's"));
    let _netd = net.netd("hdss7-21")?;
    ensure!(net.subnets()? == ["172.7.77.0-24"]);
    let list: Value = serde_json::from_str(&done(&net, &["lease", "list", "--json"])?)?;
    ensure!(list[0]["reservation"] == true && list[0]["backend"] == "vxlan", "{list}");
    ensure!(done(&net, &["lease", "reserve", "172.7.77.0/24"])?.contains("already"));
    Ok(())
}

fn lease_becomes_a_reservation_with_the_same_value() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.netd("hdss7-21")?;
    let key = "/coreos.com/network/subnets/172.7.21.0-24";
    let before = net.etcd.get(key)?;
    done(&net, &["lease", "reserve", "172.7.21.0/24"])?;
    ensure!(net.etcd.get(key)? == before);
    ensure!(done(&net, &["lease", "list"])?.contains("1 keys, 1 of them reservations"));
    Ok(())
}

fn live_lease_is_released_by_force_only_and_claimed_again() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let netd = net.netd("hdss7-21")?;
    let error = refused(&net, &["lease", "release", "172.7.21.0/24"])?;
    ensure!(error.contains("leased by 10.4.7.21 for another 2") && error.contains("--force"), "{error}");
    ensure!(net.subnets()? == ["172.7.21.0-24"]);
    done(&net, &["lease", "release", "172.7.21.0/24", "--force"])?;
    netd.wait_for_line("the lease is lost", SOON)?;
    eventually(SOON, || {
        ensure!(net.subnets()? == ["172.7.21.0-24"]);
        Ok(())
    })?;
    // A reservation has no end, and a junk key is nobody's: no force.
    net.etcd.put("/coreos.com/network/subnets/172.7.99.0-24", &lease("10.4.7.99", "host-gw"))?;
    net.etcd.put("/coreos.com/network/subnets/junk", "junk")?;
    done(&net, &["lease", "release", "172.7.99.0-24"])?;
    done(&net, &["lease", "release", "junk"])?;
    ensure!(refused(&net, &["lease", "release", "172.7.99.0/24"])?.contains("does not exist"));
    ensure!(net.subnets()? == ["172.7.21.0-24"]);
    Ok(())
}

fn verb_without_a_store_says_what_failed_and_not_that_it_goes_on() -> Result<()> {
    let net = Net::start(VXLAN)?;
    for words in [&["lease", "list"][..], &["lease", "release", "172.7.21.0/24"], &["config", "show"]] {
        let command = net.host("hdss7-21")?.command(lab::bin("netd")?).args(words);
        let output = command.arg("--etcd-endpoints=http://10.4.7.200:2379").limit(3 * SOON).output()?;
        let said = &output.stderr;
        ensure!(output.status.code() == Some(1) && said.contains("http://10.4.7.200:2379"), "{words:?}: {output:?}");
        ensure!(!said.contains("again"), "{words:?}: {said}");
    }
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables, Need::Vxlan],
        lab::tests![
            configuration_with_problems_is_named_field_by_field_and_never_written,
            configuration_is_set_and_edited_with_what_it_means_for_the_nodes,
            leases_are_listed_with_node_backend_and_end,
            reserved_subnet_is_taken_by_its_node_and_stays,
            lease_becomes_a_reservation_with_the_same_value,
            live_lease_is_released_by_force_only_and_claimed_again,
            verb_without_a_store_says_what_failed_and_not_that_it_goes_on,
        ],
    )
}
