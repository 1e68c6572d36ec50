//! Faults of the kernel in the daemons, with what needs the lab kernel: see [`injected`].
#![allow(clippy::indexing_slicing, reason = "a test may fail by panic")]

mod injected;
mod netd_node;
mod proxy;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use injected::every_fault_is_got_over;
use injected::netd::{Netd, WIREGUARD};
use injected::proxy::{IPVS, Proxy};
use lab::Need;
use lab::harness::Suite;

/// Time for the whole walk.
const LONGEST: Duration = Duration::from_secs(3 * 3600);

fn proxy_gets_over_every_operation_that_fails_once_on_ipvs() -> Result<()> {
    every_fault_is_got_over(&Proxy::start(&IPVS)?, 1)
}

fn netd_gets_over_every_operation_that_fails_once_with_wireguard() -> Result<()> {
    every_fault_is_got_over(&Netd::start(&WIREGUARD)?, 1)
}

fn main() -> ExitCode {
    let (ipvs, wireguard) = (
        lab::tests![proxy_gets_over_every_operation_that_fails_once_on_ipvs],
        lab::tests![netd_gets_over_every_operation_that_fails_once_with_wireguard],
    );
    let suite = Suite::new(&[Need::IpVs, Need::Nftables, Need::WireGuard]);
    if injection::all() { suite.limit(LONGEST).run([ipvs, wireguard].concat()) } else { suite.run(ipvs) }
}
