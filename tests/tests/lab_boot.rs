//! Machines that boot prove themselves: a system that runs, an address, a disk that outlives every end.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Cluster, Topology, eventually};

const TWO: &str = "network 10.9.0.0/24\none.example 10.9.0.1\ntwo.example 10.9.0.2\n";

/// A service of the test that says when it is ready.
const UNIT: &str = "[Service]\nType=notify\nNotifyAccess=all\nExecStart=/bin/sh -c 'systemd-notify --ready; exec sleep infinity'\n\
                    [Install]\nWantedBy=multi-user.target\n";

fn machines_boot_and_keep_what_they_wrote_through_a_reboot_and_a_loss_of_power() -> Result<()> {
    let cluster = Cluster::boot(&Topology::parse(TWO)?)?;
    let (one, two) = (cluster.host("one")?, cluster.host("two")?);
    two.run(&["ping", "-c1", "-W5", "one.example"])?;
    ensure!(one.run(&["cat", "/proc/1/comm"])?.stdout.trim() == "systemd");
    ensure!(one.run(&["hostname"])?.stdout.trim() == "one.example");
    one.write("/etc/systemd/system/probe.service", UNIT)?;
    one.run(&["systemctl", "enable", "--now", "probe.service"])?;
    ensure!(two.run(&["systemctl", "is-active", "probe.service"]).is_err(), "a unit of one machine runs on the other");
    ensure!(
        !std::path::Path::new("/etc/systemd/system/probe.service").exists(),
        "the unit appeared on the real machine"
    );
    let id = one.read("/etc/machine-id")?;
    ensure!(id.trim().len() == 32 && id != two.read("/etc/machine-id")?, "{id}");
    let before = one.pid();
    one.write("/run/volatile", "x")?;
    cluster.reboot(&["one"])?;
    let kept = |ending: &str| {
        ensure!(one.run(&["systemctl", "is-active", "probe.service"])?.stdout.trim() == "active", "after {ending}");
        ensure!(one.read("/etc/machine-id")? == id, "after {ending}");
        two.run(&["ping", "-c1", "-W5", "one.example"])?;
        ensure!(one.read("/run/volatile").is_err(), "/run outlived {ending}");
        Ok(())
    };
    kept("a reboot")?;
    ensure!(one.pid() != before);
    cluster.cut_power("one")?;
    let refused = format!("{:#}", one.run(&["true"]).unwrap_err());
    ensure!(refused.contains("switched off"), "{refused}");
    ensure!(two.run(&["ping", "-c1", "-W0.3", "one.example"]).is_err(), "a machine without power answers");
    cluster.switch_on(&["one"])?;
    kept("a loss of power")?;
    Ok(())
}

fn failed_boot_names_the_unit() -> Result<()> {
    let cluster = Cluster::boot(&Topology::parse("network 10.9.0.0/24\none 10.9.0.1\n")?)?;
    let unit = "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo the disk is on fire; false'\n[Install]\nWantedBy=multi-user.target\n";
    let one = cluster.host("one")?;
    one.write("/etc/systemd/system/burning.service", unit)?;
    one.run(&["systemctl", "enable", "burning.service"])?;
    cluster.shut_down(&["one"])?;
    let error = format!("{:#}", cluster.switch_on(&["one"]).unwrap_err());
    ensure!(error.contains("degraded") && error.contains("burning.service failed"), "{error}");
    ensure!(error.contains("the disk is on fire"), "{error}");
    eventually(Duration::from_secs(20), || {
        let journal = lab::logs();
        ensure!(journal.contains("log of journal on one") && journal.contains("Reached target"), "{journal}");
        Ok(())
    })
}

fn main() -> ExitCode {
    lab::harness::Suite::new(&[]).unless(Cluster::boot_obstacle()).run(lab::tests![
        machines_boot_and_keep_what_they_wrote_through_a_reboot_and_a_loss_of_power,
        failed_boot_names_the_unit,
    ])
}
