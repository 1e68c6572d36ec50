//! Every recorded case of kube-proxy by the IPVS data path: who answers, whom it sees, refusal or silence.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may fail by panic")]

mod replay;

use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Host, Need};
use oracle::Run;
use replay::{Setting, client, replay};

const PODS: &str = "--cluster-cidr=172.7.0.0/16,fd00:7::/32";
/// By default kube-proxy's mode ipvs has node ports at every address; the recorded runs were in mode nftables.
const PRIMARY: &str = "--nodeport-addresses=primary";

const SETTINGS: [Setting; 5] = [
    by(Run::Plain, &[PODS, PRIMARY]),
    by(Run::MasqueradeAll, &[PODS, PRIMARY, "--masquerade-all"]),
    by(Run::NoDetector, &[PRIMARY]),
    by(Run::NodePortCidr, &[PODS, "--nodeport-addresses=10.4.7.0/24,fd00:4:7::/64"]),
    by(Run::NodePortAll, &[PODS, "--nodeport-addresses=0.0.0.0/0,::/0"]),
];

const fn by(run: Run, flags: &'static [&'static str]) -> Setting {
    Setting { path: "ipvs", run, flags }
}

/// Cases that run beside each other on the one processor of the lab kernel.
const LANES: usize = 3;

fn every_case_of_every_set_up_is_answered_as_kube_proxy_answers_it() -> Result<()> {
    replay(&SETTINGS, LANES)
}

/// Where there are eight ports for all of a client's connections.
fn a_connection_that_stays_open_shares_its_port_with_no_later_one() -> Result<()> {
    let host = Host::start("client")?;
    host.run(&["sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40007"])?;
    host.within(|| {
        let listeners = [TcpListener::bind("127.0.0.1:80")?, TcpListener::bind("127.0.0.2:80")?];
        let open = client::open_alone(listeners[0].local_addr()?, Duration::from_secs(6))?;
        let (mut later, mut ports) = (Vec::new(), BTreeSet::new());
        while let Ok(stream) = TcpStream::connect(listeners[1].local_addr()?) {
            ports.insert(stream.local_addr()?.port());
            later.push(stream);
        }
        ensure!(later.len() == 7 && !ports.contains(&open.local_addr()?.port()), "{open:?} and {ports:?}");
        Ok(())
    })?
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::IpVs, Need::Nftables, Need::Dummy],
        lab::tests![
            a_connection_that_stays_open_shares_its_port_with_no_later_one,
            every_case_of_every_set_up_is_answered_as_kube_proxy_answers_it,
        ],
    )
}
