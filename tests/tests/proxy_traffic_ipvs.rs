//! Real servers and clients through the IPVS data path while endpoints change.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;
mod traffic;

use std::process::ExitCode;

use anyhow::Result;
use lab::Need;

fn no_request_fails_while_all_web_servers_are_replaced() -> Result<()> {
    traffic::no_request_fails_while_all_web_servers_are_replaced("ipvs")
}

fn no_request_fails_while_the_file_changes_the_mode() -> Result<()> {
    traffic::web::no_request_fails_while_the_file_changes_the_mode()
}

fn queries_on_one_socket_go_on_when_the_server_is_replaced() -> Result<()> {
    traffic::queries_on_one_socket_go_on_when_the_server_is_replaced("ipvs")
}

fn ten_seconds_of_changes_deliver_nothing_to_the_wrong_service() -> Result<()> {
    traffic::ten_seconds_of_changes_deliver_nothing_to_the_wrong_service("ipvs")
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::IpVs, Need::Nftables, Need::Dummy],
        lab::tests![
            no_request_fails_while_all_web_servers_are_replaced,
            no_request_fails_while_the_file_changes_the_mode,
            queries_on_one_socket_go_on_when_the_server_is_replaced,
            ten_seconds_of_changes_deliver_nothing_to_the_wrong_service,
        ],
    )
}
