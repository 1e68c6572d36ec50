//! netd as a daemon: what it says of itself while it runs, when it is dead or stuck, and to whom.

#![allow(clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::confined::ensure_confined;
use lab::{Host, Need, Output, echo, eventually};
use netd_node::{Net, SOON, VXLAN};
use serde_json::Value;

/// What the program answers to these words, whatever its exit status is.
fn ask(host: &Host, words: &str) -> Result<Output> {
    host.command(lab::bin("netd")?).args(words.split(' ')).output()
}

/// What curl gets, with the status code as its last line.
fn curl(host: &Host, url: &str) -> Result<String> {
    let words = ["-s", "--max-time", "5", "-w", "\n%{http_code}", url];
    host.command("curl").args(words).output().map(|output| output.stdout)
}

fn status_of_a_dead_daemon_says_so_and_exits_1() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    net.put_lease("172.7.99.0-24", "10.4.7.99", "02:00:00:00:00:99")?;
    let netd = net.netd("hdss7-21")?;
    let alive = eventually(SOON, || {
        let output = ask(host, "status")?;
        ensure!(output.status.success() && output.stdout.contains(": in sync\n"), "{output:?}");
        ensure!(output.stdout.contains("leases   1 other nodes\n         172.7.99.0/24 "), "{output:?}");
        Ok::<_, anyhow::Error>(output)
    })?;
    ensure!(alive.stderr.is_empty(), "{alive:?}");
    // The file follows what is answered.
    eventually(SOON, || {
        let status: Value = serde_json::from_str(&host.read("/run/netd/status.json")?)?;
        ensure!(status["process"]["heartbeat"].as_u64() >= status["process"]["started"].as_u64(), "{status}");
        ensure!(status["lease_count"] == 1 && status["leases"].is_null(), "{status}");
        Ok(())
    })?;
    let whole: Value = serde_json::from_str(&ask(host, "status --json")?.stdout)?;
    ensure!(whole["leases"]["172.7.99.0/24"]["public_ip"] == "10.4.7.99", "{whole}");
    ensure!(whole["process"]["state"] == "running", "{whole}");
    netd.kill()?;
    let dead = ask(host, "status")?;
    ensure!(dead.status.code() == Some(1) && dead.stderr.contains("netd is not running: process "), "{dead:?}");
    ensure!(dead.stdout.contains(": not in sync\n") && !dead.stdout.contains(": in sync\n"), "{dead:?}");
    ensure!(dead.stdout.contains("leases   1 other nodes; which, only the running daemon says\n"), "{dead:?}");
    let dead = ask(host, "status --json")?;
    let status: Value = serde_json::from_str(&dead.stdout)?;
    ensure!(dead.status.code() == Some(1) && status["process"]["state"] == "dead", "{dead:?}");
    let rows = ask(host, "tables")?;
    ensure!(rows.status.code() == Some(1) && rows.stderr.contains("no daemon answers at "), "{rows:?}");
    Ok(())
}

fn status_of_a_stopped_daemon_or_of_another_version_is_not_well() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    let netd = net.netd("hdss7-21")?;
    eventually(SOON, || {
        let output = ask(host, "status")?;
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    })?;
    netd.signal(nix::sys::signal::Signal::SIGSTOP)?;
    eventually(4 * SOON, || {
        let stopped = ask(host, "status")?;
        ensure!(stopped.status.code() == Some(1) && !stopped.stdout.contains(": in sync\n"), "{stopped:?}");
        Ok(())
    })?;
    netd.kill()?;
    // Files of other versions, cut off, and of somebody else.
    for text in [
        r#"{"node":{"in_sync":true}}"#,
        r#"{"node":{"in_sync":"yes","subnet":7},"process":[]}"#,
        "{}",
        "[]",
        "",
        "null",
    ] {
        host.command("tee").args(["/run/netd/status.json"]).input(text.to_owned()).run()?;
        for words in ["status", "status --json"] {
            let old = ask(host, words)?;
            ensure!(old.status.code() == Some(1) && !old.stdout.contains(": in sync\n"), "{text}: {old:?}");
            ensure!(!old.stderr.contains("panicked"), "{text}: {old:?}");
        }
    }
    Ok(())
}

fn values_of_the_store_cannot_forge_a_line_of_the_status() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    let _netd = net.netd("hdss7-21")?;
    let forged = "\\nnode     10.4.7.21 on eth0: in sync\\u001b[2J";
    for (n, value) in [
        format!(r#"{{"PublicIP":"10.4.7.41","BackendType":"{forged}"}}"#),
        format!(r#"{{"PublicIP":"10.4.7.42","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{forged}"}}}}"#),
        format!(r#"{{"PublicIP":"{forged}","BackendType":"vxlan"}}"#),
        format!(r#"{{"PublicIP":"10.4.7.44","PublicIPv6":"{forged}","BackendType":"host-gw"}}"#),
        format!(r#"{{"PublicIP":"10.4.7.45","{forged}":1,"BackendType":7}}"#),
    ]
    .iter()
    .enumerate()
    {
        net.etcd.put(&format!("/coreos.com/network/subnets/172.7.{}.0-24", 41 + n), value)?;
    }
    eventually(SOON, || {
        let text = ask(host, "status")?.stdout;
        for n in 41..46 {
            ensure!(text.contains(&format!("172.7.{n}.0")), "172.7.{n}.0 is not named: {text}");
        }
        ensure!(text.lines().filter(|line| line.starts_with("node")).count() == 1, "{text}");
        ensure!(!text.contains('\u{1b}'), "{text:?}");
        Ok(())
    })
}

fn key_of_the_store_cannot_forge_a_line_of_the_status() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    let _netd = net.netd("hdss7-21")?;
    net.etcd.put("/coreos.com/network/subnets/x\nnode     10.4.7.21 on eth0: in sync\u{1b}[2J", "junk")?;
    eventually(SOON, || {
        let text = ask(host, "status")?.stdout;
        ensure!(text.contains("invalid x\\nnode     10.4.7.21 on eth0: in sync\\u{1b}[2J: "), "{text}");
        ensure!(text.lines().filter(|line| line.starts_with("node")).count() == 1, "{text}");
        Ok(())
    })
}

fn health_is_served_where_flannels_flags_say_and_metrics_on_loopback() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let (host, other) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let netd = net.launch("hdss7-21", &["--healthz-ip=0.0.0.0", "--healthz-port=8081"])?;
    netd.wait_for_line("ready: every lease is in the kernel", SOON)?;
    for (path, body) in [("healthz", "flanneld is running\n200"), ("readyz", "flanneld is ready\n200")] {
        let text = curl(other, &format!("http://10.4.7.21:8081/{path}"))?;
        ensure!(text == body, "{path}: {text}");
    }
    for path in ["metrics", "status", "tables"] {
        ensure!(curl(other, &format!("http://10.4.7.21:8081/{path}"))?.ends_with("\n404"), "{path}");
        ensure!(curl(other, &format!("http://10.4.7.21:10247/{path}"))?.ends_with("\n000"), "{path}");
        ensure!(curl(host, &format!("http://127.0.0.1:10247/{path}"))?.ends_with("\n200"), "{path}");
    }
    let metrics = curl(host, "http://127.0.0.1:10247/metrics")?;
    let gates = metrics.lines().filter(|line| line.starts_with("netd_readiness_gate{") && line.ends_with(" 1"));
    ensure!(gates.count() == 4, "{metrics}");
    host.run(&["ip", "link", "del", "flannel.1"])?;
    eventually(SOON, || {
        let metrics = curl(host, "http://127.0.0.1:10247/metrics")?;
        let repairs =
            metrics.lines().find_map(|line| line.strip_prefix("netd_repairs_total ")).context("no repairs")?;
        ensure!(repairs.parse::<u64>()? > 0, "{metrics}");
        Ok(())
    })
}

fn netd_without_a_store_is_well_but_not_ready_and_says_what_it_awaits() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    let unreachable = "--etcd-endpoints=http://10.4.7.12:1";
    let empty = [&format!("--etcd-endpoints={}", net.etcd.endpoints()), "--etcd-prefix=/nowhere"];
    for (store, awaited) in [
        (&[unreachable][..], "cannot get /coreos.com/network/config at http://10.4.7.12:1"),
        (&empty, "etcd key /nowhere/config does not exist: write the network's configuration there"),
    ] {
        let netd = host.command(lab::bin("netd")?).args(store).args(["--iface=eth0", "--healthz-port=8081"]);
        let netd = netd.start("netd")?;
        eventually(SOON, || {
            let text = curl(host, "http://127.0.0.1:8081/readyz")?;
            let begins = format!("flanneld is not ready yet\nwaits for leases: {awaited}");
            ensure!(text.starts_with(&begins) && text.ends_with("\n503"), "{text}");
            let status = ask(host, "status")?.stdout;
            ensure!(status.contains("not begun yet") && status.contains(awaited), "{status}");
            Ok(())
        })?;
        ensure!(curl(host, "http://127.0.0.1:8081/healthz")? == "flanneld is running\n200");
        netd.terminate(SOON)?;
    }
    Ok(())
}

fn address_that_is_taken_hinders_no_lease() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    let taken = echo::serve(host, "taken", 10247)?;
    let netd = net.netd("hdss7-21")?;
    netd.wait_for_line("no HTTP here; tried again every 5 s", SOON)?;
    taken.kill()?;
    eventually(SOON, || {
        let text = curl(host, "http://127.0.0.1:10247/healthz")?;
        ensure!(text == "flanneld is running\n200", "{text}");
        Ok(())
    })
}

fn tables_show_desired_and_actual_rows() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    let _both = net.both()?;
    let rows = eventually(SOON, || {
        let rows = host.command(lab::bin("netd")?).arg("tables").run()?.stdout;
        ensure!(rows.contains("\n  route 172.7.22.0/24 metric 1790"), "{rows}");
        Ok::<_, anyhow::Error>(rows)
    })?;
    ensure!(!rows.lines().any(|line| line.starts_with(['+', '-', '?'])), "{rows}");
    let text = host.command(lab::bin("netd")?).args(["tables", "--json"]).run()?.stdout;
    let tables: Value = serde_json::from_str(&text)?;
    let routes = tables.as_array().into_iter().flatten().find(|table| table["name"] == "routes").context("routes")?;
    ensure!(routes["rows"][0]["equal"] == true && routes["listed"] == true, "{routes}");
    Ok(())
}

fn signals_change_the_log_and_compare_everything() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    let netd = net.netd("hdss7-21")?;
    let signal = |name: &str| host.run(&["pkill", &format!("-{name}"), "-x", "netd"]);
    signal("USR1")?;
    netd.wait_for_line("detail of the log changed verbosity=1", SOON)?;
    signal("USR2")?;
    netd.wait_for_line("detail of the log changed verbosity=0", SOON)?;
    signal("HUP")?;
    netd.wait_for_line("everything is compared with the kernel now", SOON)?;
    ensure!(netd.is_running());
    Ok(())
}

fn daemon_of_root_gives_up_all_but_the_network() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let netd = net.netd("hdss7-21")?;
    eventually(SOON, || ensure_confined(&netd))
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables, Need::Vxlan],
        lab::tests![
            status_of_a_dead_daemon_says_so_and_exits_1,
            key_of_the_store_cannot_forge_a_line_of_the_status,
            values_of_the_store_cannot_forge_a_line_of_the_status,
            status_of_a_stopped_daemon_or_of_another_version_is_not_well,
            health_is_served_where_flannels_flags_say_and_metrics_on_loopback,
            netd_without_a_store_is_well_but_not_ready_and_says_what_it_awaits,
            address_that_is_taken_hinders_no_lease,
            daemon_of_root_gives_up_all_but_the_network,
            tables_show_desired_and_actual_rows,
            signals_change_the_log_and_compare_everything,
        ],
    )
}
