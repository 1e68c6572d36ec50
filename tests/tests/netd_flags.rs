//! netd in the place of flanneld: service files, variables and names that were made for it.

#![allow(clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::{Host, Need, Output, eventually};
use netd_node::{Net, SOON, VXLAN};

/// netd under another program's name.
fn called(host: &Host, name: &str) -> Result<String> {
    let path = format!("/usr/local/bin/{name}");
    let netd = lab::bin("netd")?;
    host.run(&["ln", "-sf", netd.to_str().context("a path of UTF-8")?, &path])?;
    Ok(path)
}

fn subnet_file(host: &Host, path: &str, line: &str) -> Result<()> {
    eventually(SOON, || {
        let text = host.read(path)?;
        ensure!(text.lines().any(|found| found == line), "{path} lacks {line}: {text}");
        Ok(())
    })
}

fn service_file_of_an_older_distribution_starts_it_as_flanneld() -> Result<()> {
    let net = Net::start(VXLAN)?;
    net.etcd.put("/atomic.io/network/config", r#"{"Network":"172.9.0.0/16"}"#)?;
    let host = net.host("hdss7-21")?;
    let endpoints = net.etcd.endpoints();
    let flanneld = host
        .command(called(host, "flanneld")?)
        .env("FLANNEL_ETCD_ENDPOINTS", &endpoints)
        .env("FLANNEL_ETCD_PREFIX", "/atomic.io/network")
        .env("FLANNEL_OPTIONS", "-iface=eth0  --ip-masq -v 1 -vmodule=worker=2")
        .args(["-log_backtrace_at", "main.go:1", "", "status"])
        .start("flanneld")?;
    flanneld.wait_for_line("ready: every lease is in the kernel", SOON)?;
    flanneld.wait_for_line("ignored, as flanneld does", SOON)?;
    subnet_file(host, "/run/flannel/subnet.env", "FLANNEL_NETWORK=172.9.0.0/16")?;
    subnet_file(host, "/run/flannel/subnet.env", "FLANNEL_IPMASQ=true")?;
    let keys = net.etcd.keys("/atomic.io/network/subnets/")?;
    ensure!(keys.len() == 1, "{keys:?}");
    let status = flanneld.terminate(SOON)?;
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}

fn variables_count_where_the_command_line_says_nothing_and_empty_ones_never() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    let netd = host
        .command(lab::bin("netd")?)
        .env("FLANNELD_ETCD_ENDPOINTS", net.etcd.endpoints())
        .env("FLANNELD_ETCD_PREFIX", "")
        .env("FLANNELD_IFACE", "eth7")
        .env("FLANNELD_IP_MASQ", "1")
        .env("FLANNELD_SUBNET_LEASE_RENEW_MARGIN", "")
        .env("FLANNELD_SUBNET_FILE", "")
        .env("FLANNELD_V", "1")
        .env("FLANNELD_VMODULE", "worker=2")
        .args(["-iface", "eth0"])
        .start("netd")?;
    netd.wait_for_line("ready: every lease is in the kernel", SOON)?;
    subnet_file(host, "/run/flannel/subnet.env", "FLANNEL_IPMASQ=true")?;
    netd.terminate(SOON)?;
    let netd = host
        .command(lab::bin("netd")?)
        .env("FLANNELD_ETCD_ENDPOINTS", net.etcd.endpoints())
        .env("FLANNELD_IP_MASQ", "true")
        .args(["-iface", "eth0", "--ip-masq=F"])
        .start("netd")?;
    subnet_file(host, "/run/flannel/subnet.env", "FLANNEL_IPMASQ=false")?;
    netd.terminate(SOON)?;
    Ok(())
}

fn exit_codes_and_streams_are_those_of_the_name_it_was_started_under() -> Result<()> {
    let host = Host::start("node")?;
    let flanneld = called(&host, "flanneld")?;
    let netd = lab::bin("netd")?.to_str().context("a path of UTF-8")?.to_owned();
    let run = |program: &str, words: &[&str]| -> Result<Output> { host.command(program).args(words).output() };
    for (program, words, code, out, err) in [
        (&netd, &["--version"][..], 0, "netd ", ""),
        (&netd, &["-help"], 0, "--etcd-endpoints", ""),
        (&netd, &["--nope"], 2, "", "--nope"),
        (&netd, &["-subnet-lease-renew-margin=1440"], 1, "", "--subnet-lease-renew-margin: \"1440\""),
        (&flanneld, &["-version"], 0, "", "v"),
        (&flanneld, &["--version=true"], 0, "", "v"),
        (&flanneld, &["-h"], 0, "", "--etcd-endpoints"),
        (&flanneld, &["--nope"], 1, "", "--nope"),
        (
            &flanneld,
            &["-kube-subnet-mgr"],
            1,
            "",
            "NODE_NAME: nothing says which Node is this one; accepted: the Node's name in --node-name",
        ),
    ] {
        let output = run(program, words)?;
        ensure!(output.status.code() == Some(code), "{program} {words:?}: {output:?}");
        for (text, part) in [(&output.stdout, out), (&output.stderr, err)] {
            ensure!(text.contains(part) && text.is_empty() == part.is_empty(), "{program} {words:?}: {output:?}");
        }
    }
    Ok(())
}

fn docker_options_are_written_as_by_flannels_script() -> Result<()> {
    let host = Host::start("node")?;
    let script = called(&host, "mk-docker-opts.sh")?;
    let file = "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.21.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    host.write("/run/flannel/subnet.env", file)?;
    let words = "-k DOCKER_NETWORK_OPTIONS -d /run/flannel/docker";
    host.command(&script).args(words.split(' ')).run()?;
    let text = host.read("/run/flannel/docker")?;
    let all = "DOCKER_NETWORK_OPTIONS=\" --bip=172.7.21.1/24 --ip-masq=false --mtu=1450\"\n";
    ensure!(text.ends_with(all) && text.lines().count() == 4, "{text}");
    host.command(lab::bin("netd")?).args(["docker-opts", "-c"]).run()?;
    let text = host.read("/run/docker_opts.env")?;
    ensure!(text == "DOCKER_OPTS=\" --bip=172.7.21.1/24 --ip-masq=false --mtu=1450\"\n", "{text}");
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables, Need::Vxlan],
        lab::tests![
            service_file_of_an_older_distribution_starts_it_as_flanneld,
            variables_count_where_the_command_line_says_nothing_and_empty_ones_never,
            exit_codes_and_streams_are_those_of_the_name_it_was_started_under,
            docker_options_are_written_as_by_flannels_script,
        ],
    )
}
