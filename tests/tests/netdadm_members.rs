//! `netdadm etcd` on members that are rendered: replaced and removed under a load, killed half-way, and refused where the quorum would go.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netdadm_etcd;

use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;

use anyhow::{Result, anyhow, ensure};
use lab::{Cluster, Host, Need, bin, eventually};
use netdadm_etcd::{
    LEAST, MEMBERS, OPERATOR, REFERENCE, SOON, bring, every_member_serves, leader, load, netdadm, render, rendered,
    shown, start, start_all, typed,
};

/// Runs `work` while a client writes and reads; nothing of what it asks may fail.
fn under_load(operator: &Host, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let (stop, stopped) = mpsc::channel();
    thread::scope(|scope| {
        let client = scope.spawn(move || operator.within(move || load(&stopped)));
        let done = work();
        drop(stop);
        let seen = client.join().map_err(|_| anyhow!("the client ended"))???;
        eprintln!("{} writes, each read again, the longest in {:?}", seen.writes, seen.longest);
        done?;
        ensure!(
            seen.failed.is_empty() && seen.writes >= LEAST,
            "{} of {} failed: {:?}",
            seen.failed.len(),
            seen.writes,
            seen.failed.first()
        );
        Ok(())
    })
}

fn lines(text: &str, head: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.trim_start().strip_prefix(head)).map(str::to_owned).collect()
}

/// The reference cluster with a member on hdss7-11 in the place of that of `old`.
fn moved(old: &str) -> String {
    let to =
        REFERENCE.replace("10.4.7.11, roles: control-plane}", "10.4.7.11, joins: true, roles: [control-plane, etcd]}");
    let line = |line: &str| match line.trim_start().starts_with(&format!("{old}: ")) {
        true => line.replace("[etcd, node]", "node").replace("roles: etcd", "roles: none"),
        false => line.to_owned(),
    };
    to.lines().map(|text| line(text) + "\n").collect()
}

fn a_member_is_replaced_and_a_leader_removed_under_a_load_and_no_request_fails() -> Result<()> {
    let cluster = Cluster::reference()?;
    let operator = cluster.host(OPERATOR)?;
    render(operator, REFERENCE)?;
    let mut members = start_all(&cluster)?;
    let (lost, words) =
        (cluster.host("hdss7-22")?, ["etcd", "replace", "hdss7-22", "--yes", "--timeout", "3", "--wait", "60"]);
    under_load(operator, || {
        members.pop().unwrap().kill()?;
        lost.run(&["rm", "-r", "/var/lib/etcd"])?;
        // It may have led: until another one does, that is said.
        eventually(SOON, || {
            let refused = netdadm(operator, &words)?.output()?;
            ensure!(refused.stderr.contains("hosts.hdss7-22.joins is not true in the topology"), "{refused:?}");
            Ok(())
        })?;
        let joins = "hdss7-22: {address: 10.4.7.22, joins: true,";
        render(operator, &REFERENCE.replace("hdss7-22: {address: 10.4.7.22,", joins))?;
        let first = netdadm(operator, &words)?.start("netdadm")?;
        first.wait_for_line("now: wait until the member of hdss7-22 has started", SOON)?;
        first.kill()?;
        let again = netdadm(operator, &words)?.start("netdadm")?;
        again.wait_for_line("now: wait until", SOON)?;
        members.push(start(operator, lost)?);
        let ended = again.wait(SOON)?;
        ensure!(ended.success(), "{ended}: {}", again.log());
        ensure!(
            lines(&again.log(), "now: remove").is_empty()
                && lines(&again.log(), "now: give hdss7-22 a vote").len() == 1,
            "{}",
            again.log()
        );
        eventually(SOON, || every_member_serves(operator))?;
        let done = netdadm(operator, &words)?.run()?.stdout;
        ensure!(done.contains("nothing is left to do"), "{done}");
        // The leader goes when another one leads, and another host gets a member.
        let leads = leader(operator)?;
        render(operator, &moved(&leads))?;
        let by = ["etcd", "replace", &leads, "--by", "hdss7-11", "--yes", "--timeout", "3", "--wait", "60"];
        let moving = netdadm(operator, &by)?.start("netdadm")?;
        moving.wait_for_line("now: wait until the member of hdss7-11 has started", SOON)?;
        members.push(start(operator, cluster.host("hdss7-11")?)?);
        ensure!(moving.wait(SOON)?.success(), "{}", moving.log());
        let log = moving.log();
        ensure!(
            lines(&log, "now: have ").len() == 1 && log.contains(&format!("now: remove the member {leads} ")),
            "{log}"
        );
        ensure!(log.contains("2 members vote and survive the loss of none"), "{log}");
        eventually(SOON, || every_member_serves(operator))?;
        Ok(())
    })
}

fn certificates_of_members_are_renewed_under_a_load_and_shown_to_clients_and_members() -> Result<()> {
    let cluster = Cluster::reference()?;
    let operator = cluster.host(OPERATOR)?;
    render(operator, REFERENCE)?;
    let mut members = start_all(&cluster)?;
    let hosts: Vec<&Host> = MEMBERS.iter().map(|name| cluster.host(name)).collect::<Result<_>>()?;
    under_load(operator, || {
        let before: Vec<String> = hosts.iter().map(|host| shown(operator, host)).collect::<Result<_>>()?;
        let only = ["etcd/server", "etcd/peer", "etcd/healthcheck-client"].map(|name| format!("--only={name}"));
        let words: Vec<&str> = ["certs", "renew", "--yes"].into_iter().chain(only.iter().map(String::as_str)).collect();
        let renewed = netdadm(operator, &words)?.run()?.stdout;
        ensure!(
            renewed.contains("issue hdss7-22: etcd/server: it was asked for") && !renewed.contains(": restart "),
            "{renewed}"
        );
        for (host, old) in hosts.iter().zip(&before) {
            bring(operator, host)?;
            let now = shown(operator, host)?;
            ensure!(now == rendered(operator, host)? && now != *old, "{}: {old} {now}", host.name());
        }
        // One that starts shows its own to the others, and is shown theirs.
        members[1].kill()?;
        members[1] = start(operator, hosts[1])?;
        eventually(SOON, || every_member_serves(operator))
    })
}

fn what_would_lose_the_quorum_is_refused_and_nobody_is_asked() -> Result<()> {
    let cluster = Cluster::reference()?;
    let operator = cluster.host(OPERATOR)?;
    render(operator, REFERENCE)?;
    let members = start_all(&cluster)?;
    // A folder of another cluster.
    operator.command(bin("netdadm")?).args(["render", "-f", "/opt/cluster.yaml", "-o", "/opt/other"]).run()?;
    let foreign = operator.command(bin("netdadm")?).args(["etcd", "remove", "hdss7-12", "--yes"]);
    let foreign = foreign.args(["-f", "/opt/cluster.yaml", "-o", "/opt/other"]).output()?;
    ensure!(foreign.status.code() == Some(2) && foreign.stdout.is_empty(), "{foreign:?}");
    ensure!(
        foreign.stderr.contains("no member of etcd serves (")
            && foreign.stderr.contains("do not go together: name the folder of this cluster by -o"),
        "{foreign:?}"
    );
    members[2].kill()?;
    let remove = |name: &str, more: &[&str]| {
        netdadm(operator, &[&["etcd", "remove", name, "--timeout", "2", "--wait", "2"], more].concat())
    };
    eventually(SOON, || {
        let refused = remove(MEMBERS[0], &["--yes"])?.output()?;
        let words = "without hdss7-12 1 of 2 members would serve, and 2 must: the quorum would be lost; bring hdss7-22 back first";
        ensure!(refused.stderr.contains(words) && refused.status.code() == Some(2), "{refused:?}");
        Ok(())
    })?;
    let unasked = remove(MEMBERS[2], &[])?.output()?;
    ensure!(
        unasked.stdout.contains("1. remove the member hdss7-22") && unasked.stderr.contains("say --yes"),
        "{unasked:?}"
    );
    let declined = typed(operator, "etcd remove hdss7-22 --timeout 2", "n")?;
    ensure!(
        declined.status.code() == Some(2)
            && declined.stdout.contains("do it? [y/N] ")
            && declined.stdout.contains("nothing was changed"),
        "{declined:?}"
    );
    // It is a member all the same.
    members[1].kill()?;
    eventually(SOON, || {
        let refused = remove(MEMBERS[2], &["--yes"])?.output()?;
        ensure!(refused.stderr.contains("no member of etcd serves (https://10.4.7.12:2379: "), "{refused:?}");
        Ok(())
    })
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables],
        lab::tests![
            a_member_is_replaced_and_a_leader_removed_under_a_load_and_no_request_fails,
            certificates_of_members_are_renewed_under_a_load_and_shown_to_clients_and_members,
            what_would_lose_the_quorum_is_refused_and_nobody_is_asked,
        ],
    )
}
