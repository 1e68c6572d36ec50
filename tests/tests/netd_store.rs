//! A real etcd of three members and everything that happens to one: the data path stays, and what changes is followed.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::{Cluster, Etcd, Need, eventually};
use netd_node::{Net, SOON, VXLAN, kernel_state};

/// The machines of etcd's members; none of them runs netd.
const MEMBERS: [&str; 3] = ["hdss7-11", "hdss7-12", "hdss7-200"];

/// The reference cluster with three members that hold `config`.
fn three(config: &str) -> Result<Net> {
    let cluster = Cluster::reference()?;
    let hosts = MEMBERS.map(|name| cluster.host(name).cloned()).into_iter().collect::<Result<Vec<_>>>()?;
    let etcd = Etcd::start(&hosts)?;
    etcd.put("/coreos.com/network/config", config)?;
    Ok(Net { cluster, etcd })
}

fn key_bound_to_a_foreign_etcd_lease_is_noticed_and_costs_no_row() -> Result<()> {
    let net = three(VXLAN)?;
    let [first, _second] = net.both()?;
    let before = kernel_state(net.host("hdss7-22")?)?;
    let key = "/coreos.com/network/subnets/172.7.21.0-24";
    let value = net.etcd.get(key)?.context("no lease")?;
    let granted = net.etcd.etcdctl(&["lease", "grant", "600"])?.stdout;
    let foreign = granted.split(' ').nth(1).context("no lease")?.to_owned();
    net.etcd.etcdctl(&["put", "--lease", &foreign, "--", key, &value])?;
    first.wait_for_line(&format!("its key was bound to etcd lease {foreign} by another program"), SOON)?;
    eventually(SOON, || {
        let warnings = net.status("hdss7-21")?["warnings"].to_string();
        ensure!(
            warnings.contains(&format!("another program bound this node's lease to etcd lease {foreign}")),
            "{warnings}"
        );
        Ok::<_, anyhow::Error>(())
    })?;
    // Its end is kept away from now on, and where it comes all the same the subnet is claimed anew.
    net.etcd.etcdctl(&["lease", "revoke", &foreign])?;
    eventually(SOON, || {
        ensure!(net.etcd.get(key)?.as_deref() == Some(&value), "{:?}", net.subnets()?);
        let warnings = net.status("hdss7-21")?["warnings"].to_string();
        ensure!(!warnings.contains(&foreign), "{warnings}");
        Ok::<_, anyhow::Error>(())
    })?;
    eventually(SOON, || {
        let now = kernel_state(net.host("hdss7-22")?)?;
        ensure!(now == before, "{now}\n--- instead of\n{before}");
        Ok(())
    })
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![key_bound_to_a_foreign_etcd_lease_is_noticed_and_costs_no_row,],
    )
}
