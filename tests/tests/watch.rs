//! `status` on a terminal and elsewhere: 80 columns, colour where it is wanted, again and again where that is asked for.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::{Host, Need, Process, eventually};
use netd_node::{HOST_GW, Net, SOON};

/// A node of which there is something to say in every program, with its daemons.
fn start() -> Result<(Net, [Process; 2])> {
    let net = Net::start(HOST_GW)?;
    let host = net.host("hdss7-21")?;
    host.write(
        "/run/services/bad.yaml",
        "{apiVersion: v1, kind: Service, metadata: {name: bad}, spec: {clusterIP: none-of-any-kind}}",
    )?;
    host.write("/run/topology.yaml", include_str!("../../configs/clusters/reference.yaml"))?;
    net.put_lease("172.7.22.0-24", "10.4.7.22", "host-gw")?;
    net.put_lease("172.7.22.0-25", "10.4.7.66", "host-gw")?;
    let netd = net.netd("hdss7-21")?;
    let flags = ["--proxy-mode=nftables", "--services-dir=/run/services", "--service-cidr=192.168.0.0/16"];
    let proxy = host.command(lab::bin("ipvs-proxy")?).args(flags).start("ipvs-proxy")?;
    proxy.wait_for_line("ready", SOON)?;
    Ok((net, [netd, proxy]))
}

/// The command lines, with a text that each prints.
fn commands() -> Result<[(String, &'static str); 3]> {
    let program = |name: &str| Ok::<_, anyhow::Error>(lab::bin(name)?.display().to_string());
    Ok([
        (format!("{} status", program("netd")?), "skipped 172.7.22.0/25"),
        (format!("{} status", program("ipvs-proxy")?), "refused: "),
        (format!("{} status -f /run/topology.yaml --only=kube-apiserver --timeout=1", program("netdadm")?), "FAILED"),
    ])
}

/// What a command prints on a terminal of its own, whatever its exit status.
fn on_terminal(host: &Host, command: &str, variables: &[(&str, &str)]) -> Result<String> {
    let script = variables
        .iter()
        .fold(host.command("script").env("TERM", "xterm").env_remove("NO_COLOR"), |script, (name, value)| {
            script.env(name, value)
        });
    Ok(script.args(["-qec", command, "/dev/null"]).output()?.stdout)
}

/// `text` as it is seen: without escape sequences and the terminal's line ends.
fn seen(text: &str) -> String {
    let mut seen = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        seen.push_str(before);
        rest = after
            .trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == ';')
            .get(1..)
            .unwrap_or_default();
    }
    (seen + rest).replace('\r', "")
}

fn status_has_80_columns_and_colour_on_a_terminal_and_none_elsewhere() -> Result<()> {
    let (net, _daemons) = start()?;
    let host = net.host("hdss7-21")?;
    for (command, word) in commands()? {
        let shown = eventually(SOON, || {
            let shown = on_terminal(host, &command, &[])?;
            ensure!(seen(&shown).contains(word), "{command}: {shown}");
            Ok::<_, anyhow::Error>(shown)
        })?;
        for line in seen(&shown).lines().filter(|line| line.trim().contains(' ')) {
            ensure!(line.chars().count() <= 80, "{command}: {} columns: {line}", line.chars().count());
        }
        ensure!(shown.contains("\u{1b}[31m"), "{command}: nothing is red: {shown:?}");
        for plain in [("NO_COLOR", "1"), ("TERM", "dumb")] {
            let shown = on_terminal(host, &command, &[plain])?;
            ensure!(seen(&shown).contains(word) && !shown.contains("\u{1b}[3"), "{command} with {plain:?}: {shown:?}");
        }
        let piped = host.command("sh").args(["-c", &command]).output()?.stdout;
        ensure!(piped.contains(word) && !piped.contains('\u{1b}'), "{command}: {piped:?}");
    }
    Ok(())
}

fn watched_status_goes_on_while_its_daemon_is_away_and_comes_back() -> Result<()> {
    let (net, [netd, _proxy]) = start()?;
    let host = net.host("hdss7-21")?;
    let watched = |at: usize| Ok::<_, anyhow::Error>(format!("{} --watch=1", commands()?[at].0));
    let command = watched(0)?;
    let screen = host.command("script").env("TERM", "xterm").args(["-qefc", &command, "/dev/null"]).start("script")?;
    let frames = |text: &str| screen.log().matches(text).count();
    eventually(SOON, || {
        ensure!(frames("\u{1b}[H") > 1 && frames("in sync") > 1, "{:?}", screen.log());
        Ok(())
    })?;
    // A terminal of few rows shows what there is room for, and nothing rolls away.
    let sized = format!("stty rows 6 cols 40; {command}");
    let small = host.command("script").env("TERM", "xterm").args(["-qefc", &sized, "/dev/null"]).start("script")?;
    eventually(SOON, || {
        let log = small.log();
        let last = seen(log.rsplit("\u{1b}[H").nth(1).unwrap_or_default());
        ensure!(last.contains(" more lines") && last.lines().count() == 5, "{last:?}");
        ensure!(last.lines().all(|line| line.chars().count() <= 40 || !line.trim().contains(' ')), "{last:?}");
        Ok(())
    })?;
    netd.kill()?;
    // On the screen, not only on its way there: what stands below a frame is cleared with the next one.
    eventually(SOON, || {
        let log = screen.log();
        let last = log.rsplit("\u{1b}[H").nth(1).unwrap_or_default().split("\u{1b}[J").next().unwrap_or_default();
        ensure!(seen(last).contains("netd is not running"), "{last:?}");
        Ok(())
    })?;
    let before = frames("\u{1b}[H");
    let _again = net.netd("hdss7-21")?;
    eventually(SOON, || {
        let last = screen.log().rsplit("\u{1b}[H").nth(1).unwrap_or_default().to_owned();
        ensure!(frames("\u{1b}[H") > before && seen(&last).contains(": in sync"), "{last:?}");
        Ok(())
    })?;
    // The others in a pipe, which has no cursor to move.
    for (at, word) in [(1, "refused: "), (2, "FAILED")] {
        let piped = host.command("sh").args(["-c", &watched(at)?]).start("status")?;
        eventually(SOON, || {
            ensure!(piped.log().matches(word).count() > 1, "{}", piped.log());
            Ok(())
        })?;
        ensure!(!piped.log().contains('\u{1b}'), "{:?}", piped.log());
    }
    Ok(())
}

fn long_work_says_on_a_terminal_what_it_waits_for_and_clears_that_away() -> Result<()> {
    let (net, _daemons) = start()?;
    let host = net.host("hdss7-21")?;
    let status = commands()?[2].0.clone();
    for (command, word) in
        [(format!("{} doctor", lab::bin("netd")?.display()), "asking every node"), (status, "asking every component")]
    {
        let shown = on_terminal(host, &command, &[])?;
        ensure!(shown.contains(word) && shown.contains("\r\u{1b}[K"), "{command}: {shown:?}");
        let piped = host.command("sh").args(["-c", &command]).output()?;
        ensure!(!format!("{}{}", piped.stdout, piped.stderr).contains(word), "{piped:?}");
    }
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables],
        lab::tests![
            status_has_80_columns_and_colour_on_a_terminal_and_none_elsewhere,
            watched_status_goes_on_while_its_daemon_is_away_and_comes_back,
            long_work_says_on_a_terminal_what_it_waits_for_and_clears_that_away,
        ],
    )
}
