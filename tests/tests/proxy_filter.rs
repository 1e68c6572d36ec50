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

fn packets_of_no_connection_are_dropped_unless_tracking_is_liberal() -> Result<()> {
    filter::packets_of_no_connection_are_dropped_unless_tracking_is_liberal("nftables")
}

fn what_listens_at_loopback_is_not_reached_from_elsewhere() -> Result<()> {
    filter::what_listens_at_loopback_is_not_reached_from_elsewhere("nftables")
}

fn nothing_goes_round_between_the_node_and_a_router() -> Result<()> {
    filter::nothing_goes_round_between_the_node_and_a_router()
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables],
        lab::tests![
            an_address_that_no_service_has_is_silent_unless_a_network_here_has_it,
            packets_of_no_connection_are_dropped_unless_tracking_is_liberal,
            what_listens_at_loopback_is_not_reached_from_elsewhere,
            nothing_goes_round_between_the_node_and_a_router,
        ],
    )
}
