//! Virtual time: a test that needs ten minutes of waiting gets them in seconds.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Etcd, Host, Need};

fn etcd_lease_of_ten_minutes_expires_on_schedule() -> Result<()> {
    let host = Host::start("a")?;
    let etcd = Etcd::start([&host])?;
    let granted = etcd.etcdctl(&["lease", "grant", "600"])?.stdout;
    let lease = granted.split(' ').nth(1).context("no lease")?;
    etcd.etcdctl(&["put", "--lease", lease, "key", "value"])?;
    std::thread::sleep(Duration::from_secs(590));
    ensure!(etcd.get("key")?.as_deref() == Some("value"), "the lease expired early");
    std::thread::sleep(Duration::from_secs(20));
    ensure!(etcd.get("key")?.is_none(), "the lease did not expire");
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::Suite::new(&[Need::VirtualTime])
        .limit(Duration::from_secs(3600))
        .run(lab::tests![etcd_lease_of_ten_minutes_expires_on_schedule])
}
