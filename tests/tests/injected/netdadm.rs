//! `netdadm backup` and `netdadm etcd` against members that are rendered: the file of a snapshot, and who is a member.
//!
//! Invariant: behind each fault no snapshot is left, and the host that joins is no member; nothing but the faults of the plan ends a call early.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use injection::{Effect, Followed, Kind, Plan, launcher};
use lab::{Cluster, Host, Process, eventually};

use crate::injected::part;
use crate::netdadm_etcd::{MEMBERS, OPERATOR, REFERENCE, SOON, netdadm, render, start_all};

const FOLDER: &str = "/opt/backup";
const SNAPSHOT: &str = "/opt/backup/etcd.db";

/// Members of etcd, and who asks them.
pub(crate) struct Members {
    _members: Vec<Process>,
    cluster: Cluster,
}

impl Members {
    /// The reference cluster.
    pub(crate) fn start() -> Result<Self> {
        let cluster = Cluster::reference()?;
        let operator = cluster.host(OPERATOR)?;
        render(operator, REFERENCE)?;
        let members = start_all(&cluster)?;
        operator.run(&["mkdir", "-p", FOLDER])?;
        Ok(Self { _members: members, cluster })
    }

    fn operator(&self) -> Result<&Host> {
        self.cluster.host(OPERATOR)
    }

    fn run(&self, words: &[&str], plan: &Plan) -> Result<Run> {
        let command = self.operator()?.command(launcher()[0]).args(&launcher()[1..]).arg(lab::bin("netdadm")?);
        let process = command.args(words).args(["-f", "/opt/cluster.yaml", "-o", "/opt/out"]).start("netdadm")?;
        let followed = Followed::start(&lab::bin("injection")?, process.pid(), plan);
        let status = process.wait(SOON)?;
        let fault = followed.finish().faults.into_iter().next().map(|(_, words)| words);
        Ok(Run { code: status.code(), said: process.log(), fault })
    }

    /// Names in the folder of snapshots.
    fn files(&self) -> Result<String> {
        Ok(self.operator()?.run(&["ls", "-A", FOLDER])?.stdout)
    }
}

/// One call with faults.
#[derive(Debug)]
struct Run {
    /// Its exit status; none where it was killed.
    code: Option<i32>,
    said: String,
    /// The first fault that it reached.
    fault: Option<String>,
}

/// A call that failed says the errno, or which member did not answer.
fn is_said(run: &Run) -> Result<()> {
    let names = ["(os error ", "10.4.7.", "hdss7-"].iter().any(|part| run.said.contains(part));
    ensure!(run.code.is_none_or(|code| code == 0 || names), "{run:?}");
    Ok(())
}

/// `backup` with each operation failing by every errno, and killed at each.
pub(crate) fn backup_leaves_no_half(members: &Members) -> Result<usize> {
    let words = ["backup", SNAPSHOT, "--yes"];
    let mut faults = 0;
    for at in 0.. {
        let reached = faults;
        for effect in (0..Kind::MOST).map(Effect::Fails).chain([Effect::Killed]) {
            let run = members.run(&words, &Plan::from([(at, effect)]))?;
            let Some(fault) = &run.fault else { continue };
            faults += 1;
            is_said(&run)?;
            let (failed, was_killed) = (run.code.is_some_and(|code| code > 0), run.code.is_none());
            let files = members.files()?;
            ensure!(!failed || files.is_empty(), "{run:?}: {files}");
            if !files.lines().any(|name| name == "etcd.db") {
                ensure!(failed || was_killed, "{run:?}: {files}");
                netdadm(members.operator()?, &words)?.run().with_context(|| fault.clone())?;
            }
            let restore = ["restore", "-f", "/opt/cluster.yaml", SNAPSHOT];
            members.operator()?.command(lab::bin("netdadm")?).args(restore).run()?;
            ensure!(members.files()? == "etcd.db\n", "{fault}: {}", members.files()?);
            members.operator()?.run(&["rm", SNAPSHOT])?;
        }
        if faults == reached {
            break;
        }
    }
    Ok(faults)
}

/// The host that joins, whose member nobody starts: it stays a learner, which has no vote.
const JOINS: &str = "hdss7-11";

/// The reference cluster with five members: that host's is added first, and the other one's never.
fn with_more() -> String {
    let to =
        REFERENCE.replace("10.4.7.11, roles: control-plane}", "10.4.7.11, joins: true, roles: [control-plane, etcd]}");
    to.replace("10.4.7.200, roles: none}", "10.4.7.200, joins: true, roles: etcd}")
}

impl Members {
    /// Addresses for peers of all members, as etcd's own tool lists them.
    fn peers(&self) -> Result<Vec<String>> {
        let client = "/opt/out/pki/etcd/healthcheck-client";
        let (cert, key) = (format!("--cert={client}.crt"), format!("--key={client}.key"));
        let endpoints = format!("--endpoints=https://{}:2379", self.cluster.host(MEMBERS[0])?.address()?);
        let command = self.operator()?.command("etcdctl").env("ETCDCTL_API", "3");
        let listed = command.args([&endpoints, "--cacert=/opt/out/pki/etcd/ca.crt", &cert, &key, "member", "list"]);
        let listed = listed.run()?.stdout;
        let peer = |line: &str| line.split(", ").nth(3).map(str::to_owned);
        let mut peers: Vec<String> = listed.lines().filter_map(peer).collect();
        peers.sort();
        Ok(peers)
    }

    /// Makes the host that joins a member, or none, without a fault.
    fn set_joined(&self, joined: bool, is_joined: impl Fn() -> Result<bool>) -> Result<()> {
        if is_joined()? == joined {
            return Ok(());
        }
        let verb = if joined { "add" } else { "remove" };
        // etcd takes no change while a connection between members is younger than five seconds.
        eventually(SOON, || {
            let output = netdadm(self.operator()?, &["etcd", verb, JOINS, "--yes", "--wait", "1"])?.output()?;
            ensure!(is_joined()? == joined, "{verb}: {output:?}");
            Ok(())
        })
    }
}

/// `etcd add` and `etcd remove` with each operation failing by every errno, and killed at each: the host is a member or not, whatever was
/// said, the others stay, and the next call does what the one before was to do.
pub(crate) fn members_are_never_others(members: &Members) -> Result<usize> {
    let others = members.peers()?;
    ensure!(others.len() == MEMBERS.len(), "{others:?}");
    render(members.operator()?, &with_more())?;
    let is_joined = || {
        let peers = members.peers()?;
        ensure!(others.iter().all(|other| peers.contains(other)) && peers.len() <= 4, "{peers:?}");
        Ok(peers.len() == 4)
    };
    let (begun, (part, parts)) = (Instant::now(), part()?);
    let mut faults = 0;
    for joins in [true, false] {
        let verb = if joins { "add" } else { "remove" };
        let words = ["etcd", verb, JOINS, "--yes", "--timeout", "3", "--wait", "1"];
        for at in (part..).step_by(parts) {
            let reached = faults;
            eprintln!("{verb}: operation {at}, {faults} faults, {} s", begun.elapsed().as_secs());
            for effect in (0..Kind::MOST).map(Effect::Fails).chain([Effect::Killed]) {
                members.set_joined(!joins, is_joined)?;
                let run = members.run(&words, &Plan::from([(at, effect)]))?;
                let Some(fault) = &run.fault else { continue };
                faults += 1;
                is_said(&run)?;
                let is_done = is_joined().with_context(|| format!("{run:?}"))? == joins;
                ensure!(is_done || run.code != Some(0), "{run:?}: it says that it is done");
                members.set_joined(joins, is_joined).with_context(|| fault.clone())?;
            }
            if faults == reached {
                break;
            }
        }
    }
    Ok(faults)
}
