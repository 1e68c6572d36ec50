//! The filters of the nft tables with packets, by nftables; those of IPVS are in `proxy_ipvs.rs`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;

use std::process::ExitCode;

use anyhow::Result;
use lab::Need;
use proxy::filter;

fn an_address_that_no_service_has_is_silent_unless_a_network_here_has_it() -> Result<()> {
    filter::an_address_that_no_service_has_is_silent_unless_a_network_here_has_it("nftables")
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables],
        lab::tests![an_address_that_no_service_has_is_silent_unless_a_network_here_has_it],
    )
}
