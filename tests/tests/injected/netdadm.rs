//! `netdadm backup` and `netdadm etcd` against members that are rendered: the file of a snapshot, and who is a member.
//!
//! Invariant: after each walk step the members are the three of before, and no snapshot is left.

use anyhow::{Context, Result, ensure};
use injection::{Effect, Followed, Kind, Plan, launcher};
use lab::{Cluster, Host, Process};

use crate::netdadm_etcd::{OPERATOR, REFERENCE, SOON, netdadm, render, start_all};

const FOLDER: &str = "/opt/backup";
const SNAPSHOT: &str = "/opt/backup/etcd.db";
/// A host that is no member, and its URL for members.
const NEW: [&str; 2] = ["hdss7-11", "https://10.4.7.11:2380"];
/// Each n-th operation of a call that asks again fails: a prime.
const STEP: usize = 11;

/// Members of etcd, and who asks them.
pub(crate) struct Members {
    _members: Vec<Process>,
    cluster: Cluster,
}

impl Members {
    /// The reference cluster, in which another host is to join and one is to leave.
    pub(crate) fn start() -> Result<Self> {
        let joins = "10.4.7.11, joins: true, roles: [control-plane, etcd]}";
        let topology = REFERENCE.replace("10.4.7.11, roles: control-plane}", joins);
        let topology = topology.replace("10.4.7.22, roles: [etcd, node]}", "10.4.7.22, roles: node}");
        let cluster = Cluster::reference()?;
        let operator = cluster.host(OPERATOR)?;
        render(operator, REFERENCE)?;
        let members = start_all(&cluster)?;
        render(operator, &topology)?;
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

    /// Whether the new host is a member, as etcd's own program says.
    fn has_joined(&self) -> Result<bool> {
        let pki = "/opt/out/pki/etcd";
        let ask = format!(
            "ETCDCTL_API=3 etcdctl --endpoints https://10.4.7.12:2379 --cacert {pki}/ca.crt --cert {pki}/healthcheck-client.crt \
             --key {pki}/healthcheck-client.key member list"
        );
        let list = self.operator()?.run(&["sh", "-c", &ask])?.stdout;
        let times = list.matches(NEW[1]).count();
        ensure!(times < 2 && list.lines().count() == 3 + times, "{list}");
        Ok(times == 1)
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

/// `etcd add` and `etcd remove` with what they send failing, and killed at it: the next call ends what was begun.
pub(crate) fn membership_is_ended_by_the_next_call(members: &Members) -> Result<usize> {
    let order = |verb| ["etcd", verb, NEW[0], "--yes", "--timeout", "3", "--wait", "1"];
    let operations = 120;
    let failing = |first: usize, errno| -> Plan {
        (first..operations).step_by(STEP).map(|at| (at, Effect::Fails(errno))).collect()
    };
    let failing = (0..2).flat_map(|errno| (0..STEP).map(move |first| failing(first, errno)));
    let killed = (0..operations).step_by(3).map(|at| Plan::from([(at, Effect::Killed)]));
    let mut faults = 0;
    for plan in failing.chain(killed) {
        for (verb, joined) in [("add", true), ("remove", false)] {
            let run = members.run(&order(verb), &plan)?;
            faults += usize::from(run.fault.is_some());
            is_said(&run)?;
            members.has_joined()?;
            // Nobody starts the new member: of adding it that step is left.
            let next = netdadm(members.operator()?, &order(verb))?.output()?;
            let is_done = next.status.success() || (joined && next.stderr.contains("not done within 1s: wait until"));
            ensure!(is_done && members.has_joined()? == joined, "{verb} behind {run:?}: {next:?}");
        }
    }
    Ok(faults)
}
