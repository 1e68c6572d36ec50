//! Logs where they go: to a terminal as text, to journald as fields, everywhere else as objects that need no pattern to be read.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Need, Process, eventually};
use netd_node::{HOST_GW, Net, SOON};
use nix::sys::signal::Signal;
use serde_json::Value;

/// The fields of a line in JSON, with their types, as `docs/logs.md` has them.
fn documented() -> Result<BTreeMap<String, String>> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/logs.md"))?;
    let section = page.split("\n## JSON\n").nth(1).context("JSON")?.split("\n## ").next().unwrap();
    let mut fields = BTreeMap::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let names = cells[0].split('`').skip(1).step_by(2);
        fields.extend(names.map(|name| (name.to_owned(), cells[1].to_owned())));
    }
    ensure!(fields.len() == 11, "{fields:?}");
    Ok(fields)
}

/// Whether a value is of a type of Elasticsearch without being converted.
fn is_of(value: &Value, kind: &str) -> bool {
    match kind {
        "keyword" | "text" => value.is_string(),
        "long" => value.is_i64() || value.is_u64(),
        "object" => value.as_object().is_some_and(|fields| {
            fields.values().all(|field| !field.is_object() && !field.is_array() && !field.is_null())
        }),
        "date" => value.as_str().is_some_and(|text| {
            let digits: String =
                text.chars().map(|letter| if letter.is_ascii_digit() { '0' } else { letter }).collect();
            digits == "0000-00-00T00:00:00.000000Z"
        }),
        _ => false,
    }
}

/// Every line is an object with these fields and types; the objects.
fn ingested(log: &str) -> Result<Vec<Value>> {
    let fields = documented()?;
    let mut objects = Vec::new();
    for line in log.lines() {
        let object: Value = serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
        for (name, value) in object.as_object().with_context(|| format!("no object: {line}"))? {
            let kind = fields.get(name).with_context(|| format!("{name} is not documented: {line}"))?;
            ensure!(is_of(value, kind), "{name} is no {kind}: {line}");
        }
        for always in [
            "@timestamp",
            "log.level",
            "message",
            "ecs.version",
            "service.name",
            "service.version",
            "process.pid",
            "log.logger",
        ] {
            ensure!(!object[always].is_null(), "{always} is missing: {line}");
        }
        let level = object["log.level"].as_str().unwrap_or_default();
        ensure!(["error", "warn", "info", "debug", "trace"].contains(&level), "{line}");
        objects.push(object);
    }
    Ok(objects)
}

fn levels(log: &str) -> Result<BTreeSet<String>> {
    Ok(ingested(log)?.iter().filter_map(|object| object["log.level"].as_str()).map(str::to_owned).collect())
}

/// netd on hdss7-21 with the form that it takes by itself.
fn netd(net: &Net, extra: &[&str]) -> Result<Process> {
    let endpoints = format!("--etcd-endpoints={}", net.etcd.endpoints());
    let command = net.host("hdss7-21")?.command(lab::bin("netd")?).env("NETD_LOG_FORMAT", "auto");
    command.args([endpoints.as_str(), "--iface=eth0"]).args(extra).start("netd")
}

fn proxy(net: &Net) -> Result<Process> {
    let command = net.host("hdss7-21")?.command(lab::bin("ipvs-proxy")?).env("IPVS_PROXY_LOG_FORMAT", "auto");
    command
        .args(["--proxy-mode=nftables", "--services-dir=/run/services", "--service-cidr=192.168.0.0/16"])
        .start("ipvs-proxy")
}

fn each_line_is_taken_in_without_a_pattern_through_a_whole_life() -> Result<()> {
    let mut net = Net::start(HOST_GW)?;
    let host = net.host("hdss7-21")?;
    let bad = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"a\nb"},"spec":{"clusterIP":"none","ports":[{"port":80}]}}"#;
    host.write("/run/services/bad.json", bad)?;
    let (netd, proxy) = (netd(&net, &[])?, proxy(&net)?);
    netd.wait_for_line("ready: every lease is in the kernel", SOON)?;
    proxy.wait_for_line("ready", SOON)?;
    net.etcd.put("/coreos.com/network/subnets/x\n{\"message\":\"forged\"}", "junk")?;
    netd.wait_for_line("what stands there is no usable lease", SOON)?;
    // One line for a change, however many rows it has.
    let changes = || {
        Ok::<_, anyhow::Error>(
            ingested(&netd.log())?.iter().filter(|object| object["message"] == "kernel tables changed").count(),
        )
    };
    let before = changes()?;
    net.put_lease("172.7.22.0-24", "10.4.7.22", "host-gw")?;
    net.eventually_routes("hdss7-21", "172.7.22.0/24")?;
    eventually(SOON, || {
        ensure!(changes()? == before + 1, "{} lines instead of one", changes()? - before);
        Ok(())
    })?;
    host.run(&["nft", "flush", "ruleset"])?;
    for daemon in [&netd, &proxy] {
        eventually(SOON, || {
            let repaired =
                ingested(&daemon.log())?.iter().filter(|object| object["message"] == "kernel tables changed").count();
            ensure!(repaired > before, "no repair in the log");
            Ok(())
        })?;
        ensure!(
            levels(&daemon.log())?.is_subset(&["info", "warn", "error"].map(str::to_owned).into()),
            "{}",
            daemon.log()
        );
        for detail in ["\"verbosity\":1", "\"verbosity\":2"] {
            daemon.signal(Signal::SIGUSR1)?;
            daemon.wait_for_line(detail, SOON)?;
        }
    }
    net.etcd.kill("hdss7-12")?;
    netd.wait_for_line("the store is out of reach", SOON)?;
    netd.wait_for_line("\"log.level\":\"trace\"", SOON)?;
    for daemon in [&netd, &proxy] {
        daemon.signal(Signal::SIGUSR2)?;
        daemon.wait_for_line("\"verbosity\":0", SOON)?;
    }
    for (daemon, name) in [(netd, "netd"), (proxy, "ipvs-proxy")] {
        ensure!(daemon.terminate(SOON)?.success());
        let objects = ingested(&daemon.log())?;
        ensure!(objects.iter().all(|object| object["service.name"] == name), "{objects:?}");
        let own = name.replace('-', "_");
        ensure!(objects.iter().any(|object| object[&own].is_object()), "{objects:?}");
        ensure!(
            objects.iter().any(|object| object["log.level"] == "warn" && !object["message"].is_null()),
            "{objects:?}"
        );
        ensure!(objects.iter().all(|object| object["message"] != "forged"), "{objects:?}");
        ensure!(objects.last().unwrap()["message"] == "ending; the data path stays as it is", "{objects:?}");
    }
    Ok(())
}

fn passwords_are_in_no_line_at_any_level() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    let endpoints = format!("--etcd-endpoints={}", net.etcd.endpoints());
    let host = net.host("hdss7-21")?;
    for (program, variable) in [("netd", "FLANNELD_ETCD_PASSWORD"), ("ipvs-proxy", "IPVS_PROXY_ETCD_PASSWORD")] {
        let command = host.command(lab::bin(program)?).env(variable, "hunter2-secret").args([
            endpoints.as_str(),
            "-v=2",
            "--etcd-username=root",
        ]);
        let command = if program == "netd" { command.arg("--iface=eth0") } else { command };
        let daemon = command.start(program)?;
        // Each asks to be let in by name and password.
        daemon.wait_for_line("poll_ready", SOON)?;
        daemon.terminate(SOON)?;
        ensure!(!daemon.log().contains("hunter2"), "{}", daemon.log());
        ensure!(daemon.log().contains(" TRACE ") || daemon.log().contains(" DEBUG "), "{}", daemon.log());
    }
    Ok(())
}

fn terminal_gets_text_and_a_pipe_objects() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    let command = format!("{} --etcd-endpoints={} --iface=eth0", lab::bin("netd")?.display(), net.etcd.endpoints());
    let words = ["-qec", &command, "/dev/null"];
    for (host, no_colour) in [("hdss7-21", ""), ("hdss7-22", "1")] {
        let script = net.host(host)?.command("script").env("TERM", "xterm").env("NO_COLOR", no_colour);
        let on_terminal = script.env("NETD_LOG_FORMAT", "auto").args(words).start("script")?;
        let line = on_terminal.wait_for_line("lease acquired", SOON)?;
        ensure!(!line.starts_with('{') && line.contains("INFO"), "{line}");
        ensure!(line.contains('\u{1b}') == no_colour.is_empty(), "NO_COLOR={no_colour}: {line:?}");
    }
    Ok(())
}

fn journald_gets_the_fields_of_each_event() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    let host = net.host("hdss7-21")?;
    host.run(&["mkdir", "-p", "/run/systemd/journal"])?;
    let journald = UnixDatagram::bind(host.path("/run/systemd/journal/socket"))?;
    journald.set_read_timeout(Some(Duration::from_millis(200)))?;
    let netd = lab::bin("netd")?;
    // As systemd connects a service.
    let script = format!(
        "JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) exec {} --etcd-endpoints={} --iface=eth0",
        netd.display(),
        net.etcd.endpoints()
    );
    let daemon = host.command("sh").env("NETD_LOG_FORMAT", "auto").args(["-ec", &script]).start("netd")?;
    let (begun, mut entries) = (Instant::now(), Vec::new());
    let mut bytes = vec![0; 64 * 1024];
    let acquired = loop {
        ensure!(begun.elapsed() < SOON, "{entries:#?}");
        let Ok(length) = journald.recv(&mut bytes) else { continue };
        let entry = String::from_utf8(bytes[..length].to_vec())?;
        if entry.starts_with("MESSAGE=lease acquired") {
            break entry;
        }
        entries.push(entry);
    };
    for line in ["PRIORITY=6", "SYSLOG_IDENTIFIER=netd", "LOGGER=netd::run::leases", "NETD_SUBNET=172.7.21.0/24"] {
        ensure!(acquired.lines().any(|found| found == line), "{acquired}lacks {line}");
    }
    ensure!(acquired.starts_with("MESSAGE=lease acquired subnet=\"172.7.21.0/24\" how="), "{acquired}");
    ensure!(daemon.log().is_empty(), "{}", daemon.log());
    // Without journald nothing is lost.
    drop(journald);
    fs::remove_file(host.path("/run/systemd/journal/socket"))?;
    daemon.signal(Signal::SIGHUP)?;
    daemon.wait_for_line("everything is compared with the kernel now", SOON)?;
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables],
        lab::tests![
            each_line_is_taken_in_without_a_pattern_through_a_whole_life,
            passwords_are_in_no_line_at_any_level,
            terminal_gets_text_and_a_pipe_objects,
            journald_gets_the_fields_of_each_event,
        ],
    )
}
