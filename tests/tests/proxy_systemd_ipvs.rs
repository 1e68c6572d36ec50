//! ipvs-proxy.service as systemd runs it on a kernel with IPVS: under the unit's own filter of calls, capabilities and file systems.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;
mod proxy;
mod units;

use std::process::ExitCode;

use anyhow::Result;
use lab::Need;

fn unit_with_ipvs_ends_and_begins_again_in_every_way_and_costs_no_packet() -> Result<()> {
    units::ends_and_begins_again_in_every_way(&units::IPVS)
}

fn main() -> ExitCode {
    // Where systemd boots on this machine it does so in the lab kernel, which takes its time.
    let obstacle = if lab::lab_kernel::is_inside() { None } else { units::unbootable() };
    lab::harness::Suite::new(&[Need::IpVs, Need::Nftables, Need::Dummy])
        .unless(obstacle)
        .run(lab::tests![unit_with_ipvs_ends_and_begins_again_in_every_way_and_costs_no_packet])
}
