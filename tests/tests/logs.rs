//! Logs where they go: to a terminal as text, to journald as fields, everywhere else as objects that need no pattern to be read.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;
mod secrets;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Host, Need, Process, eventually};
use netd_node::{HOST_GW, Net, SOON, VXLAN, settled_log};
use nix::sys::signal::Signal;
use secrets::{Secrets, said_behind};
use serde_json::{Value, json};

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
    for line in log.lines().filter(|line| !line.is_empty()) {
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

/// ipvs-proxy beside it, on the same store.
fn proxy(net: &Net) -> Result<Process> {
    let endpoints = format!("--etcd-endpoints={}", net.etcd.endpoints());
    let command = net.host("hdss7-21")?.command(lab::bin("ipvs-proxy")?).env("IPVS_PROXY_LOG_FORMAT", "auto");
    command.args([&endpoints, "--proxy-mode=nftables", "--service-cidr=192.168.0.0/16"]).start("ipvs-proxy")
}

/// One of the daemons of hdss7-21, with what changes several rows of it.
struct Daemon {
    name: &'static str,
    process: Process,
    change: fn(&Net, u8) -> Result<()>,
}

/// The lease of another node: a route, a neighbour, an entry of the forwarding table.
fn put_lease(net: &Net, number: u8) -> Result<()> {
    let hardware = format!("02:00:00:00:00:{number}");
    net.put_lease(&format!("172.7.{number}.0-24"), &format!("10.4.7.{number}"), &hardware)?;
    net.eventually_routes("hdss7-21", &format!("172.7.{number}.0/24"))
}

/// A Service of two ports, without an endpoint: elements of several tables.
fn write_service(net: &Net, number: u8) -> Result<()> {
    let address = format!("192.168.0.{number}");
    let spec = json!({"clusterIP": address, "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]});
    let metadata = json!({"name": format!("web-{number}"), "namespace": "default"});
    let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec});
    net.etcd.put(&format!("/ipvs-proxy/services/default/web-{number}"), &object.to_string())
}

fn put_service(net: &Net, number: u8) -> Result<()> {
    write_service(net, number)?;
    let address = format!("192.168.0.{number}");
    let host = net.host("hdss7-21")?;
    eventually(SOON, || {
        let rules = host.run(&["nft", "list", "ruleset"])?.stdout;
        ensure!(rules.contains(&format!("{address} . tcp . 81")), "no {address}: {rules}");
        Ok(())
    })
}

impl Daemon {
    /// How many lines there are for changes of the kernel.
    fn changes(&self) -> Result<usize> {
        let objects = ingested(&settled_log(&self.process)?)?;
        Ok(objects.iter().filter(|object| object["message"] == "kernel tables changed").count())
    }

    /// A change of several rows is one line.
    fn says_a_change_once(&self, net: &Net) -> Result<()> {
        let before = self.changes()?;
        (self.change)(net, 22)?;
        said_behind(&self.process, 0, "kernel tables changed")?;
        let said = self.changes()? - before;
        ensure!(said == 1, "{}: {said} lines instead of one: {}", self.name, self.process.log());
        let object = ingested(&self.process.log())?;
        let last = object.iter().rfind(|object| object["message"] == "kernel tables changed").context("a change")?;
        let rows = last[self.name.replace('-', "_")]["set"].as_u64().context("set")?;
        ensure!(rows > 1, "{}: a change of one row shows nothing: {last}", self.name);
        Ok(())
    }

    /// Levels of what it says while this is done and behind that.
    fn levels_of(&self, work: impl FnOnce() -> Result<()>) -> Result<BTreeSet<String>> {
        let before = settled_log(&self.process)?.len();
        work()?;
        levels(&settled_log(&self.process)?[before..])
    }

    /// SIGUSR1 brings each row that is written.
    fn says_more_when_asked(&self, net: &Net) -> Result<()> {
        let usual = self.levels_of(|| (self.change)(net, 23))?;
        ensure!(usual == ["info".to_owned()].into(), "{}: {usual:?}", self.name);
        self.process.signal(Signal::SIGUSR1)?;
        self.process.wait_for_line("\"verbosity\":1", SOON)?;
        let from = self.process.log().len();
        (self.change)(net, 24)?;
        said_behind(&self.process, from, "\"log.level\":\"debug\"")?;
        // The row itself.
        said_behind(&self.process, from, ".24")?;
        self.process.signal(Signal::SIGUSR1)?;
        self.process.wait_for_line("\"verbosity\":2", SOON).map(drop)
    }

    /// SIGUSR2 takes that back: a repair is told as it is by default.
    fn says_as_little_as_before(&self, net: &Net) -> Result<()> {
        self.process.signal(Signal::SIGUSR2)?;
        self.process.wait_for_line("\"verbosity\":0", SOON)?;
        let from = self.process.log().len();
        let damage = "nft flush ruleset; ip route del 172.7.22.0/24";
        net.host("hdss7-21")?.run(&["sh", "-ec", damage])?;
        said_behind(&self.process, from, "kernel tables changed")?;
        let found = levels(&self.process.log()[from..])?;
        ensure!(found.is_subset(&["info", "warn", "error"].map(str::to_owned).into()), "{}: {found:?}", self.name);
        Ok(())
    }
}

fn each_line_is_taken_in_without_a_pattern_through_a_whole_life() -> Result<()> {
    let mut net = Net::start(VXLAN)?;
    let bad =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a\nb"}, "spec": {"clusterIP": "none"}});
    net.etcd.put("/ipvs-proxy/services/default/bad", &bad.to_string())?;
    let daemons = [
        Daemon { name: "netd", process: netd(&net, &[])?, change: put_lease },
        Daemon { name: "ipvs-proxy", process: proxy(&net)?, change: put_service },
    ];
    daemons.iter().try_for_each(|daemon| daemon.process.wait_for_line("ready", SOON).map(drop))?;
    net.etcd.put("/coreos.com/network/subnets/x\n{\"message\":\"forged\"}", "junk")?;
    daemons[0].process.wait_for_line("what stands there is no usable lease", SOON)?;
    for daemon in &daemons {
        daemon.says_a_change_once(&net)?;
        daemon.says_more_when_asked(&net)?;
    }
    net.etcd.kill("hdss7-12")?;
    for daemon in &daemons {
        daemon.process.wait_for_line("out of reach", SOON)?;
        // What libraries trace, twice asked for.
        daemon.process.wait_for_line("\"log.level\":\"trace\"", SOON)?;
        daemon.says_as_little_as_before(&net)?;
    }
    daemons.into_iter().try_for_each(|daemon| ends_as_it_began(&daemon))
}

/// Every line to the end is an object of this daemon.
fn ends_as_it_began(daemon: &Daemon) -> Result<()> {
    ensure!(daemon.process.terminate(SOON)?.success());
    let objects = ingested(&daemon.process.log())?;
    ensure!(objects.iter().all(|object| object["service.name"] == daemon.name), "{objects:?}");
    let own = daemon.name.replace('-', "_");
    ensure!(objects.iter().any(|object| object[&own].is_object()), "{objects:?}");
    ensure!(objects.iter().any(|object| object["log.level"] == "warn" && !object["message"].is_null()), "{objects:?}");
    ensure!(objects.iter().all(|object| object["message"] != "forged"), "{objects:?}");
    ensure!(objects.last().context("a line")?["message"] == "ending; the data path stays as it is", "{objects:?}");
    Ok(())
}

/// Has the store ask for names and passwords.
fn shut(net: &Net, password: &str) -> Result<()> {
    for words in [
        &["user", "add", &format!("root:{password}")][..],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        net.etcd.etcdctl(words)?;
    }
    Ok(())
}

/// What etcd gives in exchange for a password: sixteen letters, a point and a number.
fn has_token(log: &str) -> bool {
    let words = log.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '.');
    let mut pairs = words.filter_map(|word| word.split_once('.'));
    pairs.any(|(letters, number)| {
        letters.len() == 16
            && letters.bytes().all(|letter| letter.is_ascii_alphabetic())
            && !number.is_empty()
            && number.bytes().all(|digit| digit.is_ascii_digit())
    })
}

fn passwords_are_in_nothing_that_a_daemon_shows_at_any_level() -> Result<()> {
    const RIGHT: &str = "hunter2-of-the-store";
    const WRONG: &str = "hunter3-of-nobody";
    let net = Net::start(HOST_GW)?;
    net.put_lease("172.7.22.0-24", "10.4.7.22", "host-gw")?;
    write_service(&net, 10)?;
    shut(&net, RIGHT)?;
    let secrets = Secrets::new(&[("password", RIGHT), ("wrong password", WRONG)])?;
    let endpoints = format!("--etcd-endpoints={}", net.etcd.endpoints());
    let host = net.host("hdss7-21")?;
    let programs = [
        ("netd", "FLANNELD_ETCD_PASSWORD", "--iface=eth0"),
        ("ipvs-proxy", "IPVS_PROXY_ETCD_PASSWORD", "--proxy-mode=nftables"),
    ];
    for (program, variable, flag) in programs {
        let start = |password: &str, words: &[&str]| {
            let command = host.command(lab::bin(program)?).env(variable, password);
            command.args([endpoints.as_str(), "--etcd-username=root", flag]).args(words).start(program)
        };
        // Text: refused, and asked again and again while its detail is raised.
        let refused = start(WRONG, &["--log-format=text"])?;
        refused.wait_for_line("authentication failed, invalid user ID or password", SOON)?;
        for detail in ["verbosity=1", "verbosity=2"] {
            refused.signal(Signal::SIGUSR1)?;
            refused.wait_for_line(detail, SOON)?;
        }
        // A request goes out only with the password in exchange for which it was let in, or was not.
        said_behind(&refused, refused.log().len(), "Reconnect::call")?;
        ensure!(refused.log().contains(" TRACE "), "{}", refused.log());
        secrets.are_shown_by_nothing_of(host, program, &refused)?;
        refused.terminate(SOON)?;
        // JSON: let in, and by the password alone what is there was read.
        let daemon = start(RIGHT, &["-v=2", "--log-format=json"])?;
        daemon.wait_for_line("\"message\":\"ready", SOON)?;
        ensure!(levels(&daemon.log())?.contains("trace"), "{}", daemon.log());
        secrets.are_shown_by_nothing_of(host, program, &daemon)?;
        ensure!(!has_token(&daemon.log()), "the token that etcd gave is in {}", daemon.log());
        daemon.terminate(SOON)?;
    }
    ensure!(has_token("token: \"VwHuTqAVYbgNqpPc.16\""), "no token is found in anything");
    secrets::each_form_is_found()
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

/// Starts a program as systemd connects a service: its standard error is a stream of journald's.
fn start_as_a_service(host: &Host, program: &str, words: &[String]) -> Result<Process> {
    let script = "JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) exec \"$0\" \"$@\"";
    let command = host.command("sh").env("NETD_LOG_FORMAT", "auto").env("IPVS_PROXY_LOG_FORMAT", "auto");
    command.args(["-ec", script]).arg(lab::bin(program)?).args(words).start(program)
}

/// The first entry that begins so.
fn entry(journald: &UnixDatagram, beginning: &str) -> Result<String> {
    let (begun, mut others, mut bytes) = (Instant::now(), Vec::new(), vec![0; 64 * 1024]);
    loop {
        ensure!(begun.elapsed() < SOON, "no {beginning} in {others:#?}");
        let Ok(length) = journald.recv(&mut bytes) else { continue };
        let entry = String::from_utf8(bytes[..length].to_vec())?;
        if entry.starts_with(beginning) {
            return Ok(entry);
        }
        others.push(entry);
    }
}

fn journald_gets_the_fields_of_each_event() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    let host = net.host("hdss7-21")?;
    host.run(&["mkdir", "-p", "/run/systemd/journal"])?;
    write_service(&net, 10)?;
    let endpoints = format!("--etcd-endpoints={}", net.etcd.endpoints());
    for (program, flag, message, fields) in [
        (
            "netd",
            "--iface=eth0",
            "MESSAGE=lease acquired subnet=\"172.7.21.0/24\" how=",
            ["LOGGER=netd::run::leases", "NETD_SUBNET=172.7.21.0/24"],
        ),
        (
            "ipvs-proxy",
            "--proxy-mode=nftables",
            "MESSAGE=ready services=1",
            ["LOGGER=ipvs_proxy::run::worker", "IPVS_PROXY_SERVICES=1"],
        ),
    ] {
        let journald = UnixDatagram::bind(host.path("/run/systemd/journal/socket"))?;
        journald.set_read_timeout(Some(Duration::from_millis(200)))?;
        let daemon = start_as_a_service(host, program, &[endpoints.clone(), flag.to_owned()])?;
        let entry = entry(&journald, message)?;
        let identifier = format!("SYSLOG_IDENTIFIER={program}");
        for line in ["PRIORITY=6", &identifier].into_iter().chain(fields) {
            ensure!(entry.lines().any(|found| found == line), "{entry}lacks {line}");
        }
        ensure!(daemon.log().is_empty(), "{}", daemon.log());
        // Without journald nothing is lost.
        drop(journald);
        fs::remove_file(host.path("/run/systemd/journal/socket"))?;
        daemon.signal(Signal::SIGHUP)?;
        daemon.wait_for_line("everything is compared with the kernel now", SOON)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables, Need::Vxlan],
        lab::tests![
            each_line_is_taken_in_without_a_pattern_through_a_whole_life,
            passwords_are_in_nothing_that_a_daemon_shows_at_any_level,
            terminal_gets_text_and_a_pipe_objects,
            journald_gets_the_fields_of_each_event,
        ],
    )
}
