//! `netd trace` to a Service's address that IPVS serves.

mod netd_node;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::{Need, eventually};
use netd_node::{Net, SOON, VXLAN, pod};
use serde_json::Value;

fn service_in_ipvs_is_shown_with_its_servers_and_the_way_to_one_of_them() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let _both = net.both()?;
    let (_web, _other) = (pod(here, "172.7.21")?, pod(there, "172.7.22")?);
    let service = "ip link add kube-ipvs0 type dummy; ip address add 192.168.0.10/32 dev kube-ipvs0; \
                   ipvsadm -A -t 192.168.0.10:80 -s rr";
    here.run(&["sh", "-ec", service])?;
    let trace = || -> Result<(Value, Option<i32>)> {
        let words = ["trace", "172.7.21.2", "to", "192.168.0.10:80", "--json"];
        let output = here.command(lab::bin("netd")?).args(words).limit(3 * SOON).output()?;
        let value = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
        Ok((value, output.status.code()))
    };
    let has = |all: &Value, part: &str, verdict: &str, words: &str| {
        let found = |step: &Value| {
            step["part"] == part
                && step["verdict"] == verdict
                && step["found"].as_str().is_some_and(|text| text.contains(words))
        };
        all["steps"].as_array().is_some_and(|steps| steps.iter().any(found))
    };
    let (all, code) = trace()?;
    ensure!(code == Some(1) && has(&all, "service", "wrong", "tcp 192.168.0.10:80 in IPVS has no server"), "{all:#}");
    here.run(&["ipvsadm", "-a", "-t", "192.168.0.10:80", "-r", "172.7.22.2:80", "-m"])?;
    let all = eventually(SOON, || {
        let (all, code) = trace()?;
        ensure!(code == Some(0), "{all:#}");
        Ok(all)
    })?;
    for (part, words) in [
        (
            "service",
            "tcp 192.168.0.10:80 in IPVS, rr: 172.7.22.2:80 weight 1; what follows is the way to 172.7.22.2:80",
        ),
        ("route", "172.7.22.0/24 via 172.7.22.0 dev flannel.1"),
        ("tunnel end", "dst 10.4.7.22"),
        ("translated", "to 172.7.22.2:80"),
        ("last seen", "left by eth0, wrapped from 10.4.7.21 to 10.4.7.22"),
        ("probe", "192.168.0.10:80/tcp is reached"),
    ] {
        ensure!(has(&all, part, "ok", words), "{part} {words}: {all:#}");
    }
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::IpVs, Need::Nftables, Need::Vxlan],
        lab::tests![service_in_ipvs_is_shown_with_its_servers_and_the_way_to_one_of_them],
    )
}
