//! `netdadm backup` and `restore`: a snapshot is whole or not there, and what `restore` prints makes a cluster of it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netdadm_etcd;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::{Cluster, Host, Need, eventually};
use netdadm_etcd::{
    MEMBERS, OPERATOR, REFERENCE, SOON, every_member_serves, netdadm, render, start, start_all, store, typed,
};

const SNAPSHOT: &str = "/opt/backup/etcd.db";

fn put(operator: &Host, key: &str, value: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    operator.within(|| Ok(runtime.block_on(store()?.put(key, value.as_bytes(), None)).map(drop)?))?
}

fn get(operator: &Host, key: &str) -> Result<Option<Vec<u8>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    operator.within(|| Ok(runtime.block_on(store()?.get(key))?.map(|entry| entry.value)))?
}

fn a_snapshot_is_whole_or_not_there_and_becomes_a_cluster_by_what_restore_prints() -> Result<()> {
    let cluster = Cluster::reference()?;
    let operator = cluster.host(OPERATOR)?;
    render(operator, REFERENCE)?;
    let members = start_all(&cluster)?;
    put(operator, "/before", "kept")?;
    operator.run(&["mkdir", "-p", "/opt/backup", "/opt/small"])?;
    operator.run(&["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", "/opt/small"])?;
    let full = netdadm(operator, &["backup", "/opt/small/etcd.db", "--yes"])?.output()?;
    ensure!(full.status.code() == Some(2) && full.stderr.contains("No space left on device"), "{full:?}");
    ensure!(operator.run(&["ls", "-A", "/opt/small"])?.stdout.is_empty());
    let declined = typed(operator, &format!("backup {SNAPSHOT}"), "n")?;
    ensure!(declined.status.code() == Some(2) && operator.run(&["ls", "-A", "/opt/backup"])?.stdout.is_empty());
    let taken = typed(operator, &format!("backup {SNAPSHOT}"), "y")?;
    ensure!(taken.status.success(), "{taken:?}");
    let taken = taken.stdout;
    ensure!(taken.contains("which follows, at revision 2, ") && taken.contains("SHA-256 "), "{taken}");
    let mode = operator.run(&["stat", "-c", "%a", SNAPSHOT])?.stdout;
    ensure!(mode.trim() == "600" && operator.run(&["ls", "-A", "/opt/backup"])?.stdout == "etcd.db\n", "{mode}");
    let again = netdadm(operator, &["backup", SNAPSHOT, "--yes"])?.output()?;
    ensure!(
        again.status.code() == Some(2) && again.stderr.contains("is there already; name another file"),
        "{again:?}"
    );
    put(operator, "/after", "lost")?;
    for member in &members {
        member.kill()?;
    }
    let restore = operator.command(lab::bin("netdadm")?).args(["restore", "-f", "/opt/cluster.yaml", SNAPSHOT]);
    let printed = restore.run()?.stdout;
    let bytes = std::fs::read(operator.path(SNAPSHOT))?;
    for name in MEMBERS {
        let host = cluster.host(name)?;
        host.write(SNAPSHOT, &bytes)?;
        let own = printed.lines().filter_map(|line| line.trim().strip_prefix(&format!("{name}# ")));
        let commands: Vec<&str> = own.filter(|command| !command.starts_with("systemctl ")).collect();
        ensure!(commands.len() == 2 && commands[0].starts_with("mv "), "{printed}");
        for command in commands {
            host.run(&["sh", "-c", command]).with_context(|| command.to_owned())?;
        }
    }
    let _members = MEMBERS.iter().map(|name| start(operator, cluster.host(name)?)).collect::<Result<Vec<_>>>()?;
    eventually(SOON, || every_member_serves(operator))?;
    ensure!(get(operator, "/before")?.as_deref() == Some(&b"kept"[..]) && get(operator, "/after")?.is_none());
    put(operator, "/new", "written")?;
    ensure!(cluster.host(MEMBERS[0])?.run(&["ls", "/var/lib/etcd"])?.stdout.contains("default.etcd.before-"));
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables],
        lab::tests![a_snapshot_is_whole_or_not_there_and_becomes_a_cluster_by_what_restore_prints],
    )
}
