//! What flannel's resilience matrix asks of a backend: a Pod that is deleted and made again, and a daemon that is restarted,
//! find their way back with the same subnets; and what Pods lose meanwhile is counted.

use anyhow::{Context, Result, anyhow, ensure};
use lab::{Host, Place, Process, eventually};

use super::dual::{SUBNETS, both, give_ipv6, pod};
use super::traffic::Traffic;
use super::{Net, SOON};

/// Addresses of the Pods of hdss7-21 and of hdss7-22.
const PODS: [[&str; 2]; 2] = [["172.7.21.2", "fd00:7:0:21::2"], ["172.7.22.2", "fd00:7:0:22::2"]];

fn config(backend: &str, dual: bool) -> String {
    let v6 = if dual { r#""EnableIPv6":true,"IPv6Network":"fd00:7::/48","# } else { "" };
    format!(r#"{{"Network":"172.7.0.0/16",{v6}"Backend":{{"Type":"{backend}"}}}}"#)
}

/// Each reaches the other at once or soon, in each of the families.
fn reach_each_other(first: &impl Place, second: &impl Place, dual: bool) -> Result<()> {
    for family in 0..=usize::from(dual) {
        for (from, to) in [(first as &dyn Ping, 1), (second as &dyn Ping, 0)] {
            let address = PODS.get(to).and_then(|pod| pod.get(family)).context("an address")?;
            eventually(SOON, || from.ping(address))?;
        }
    }
    Ok(())
}

/// Whoever can ask for an answer.
trait Ping {
    fn ping(&self, address: &str) -> Result<()>;
}

impl<P: Place> Ping for P {
    fn ping(&self, address: &str) -> Result<()> {
        self.run(&["ping", "-c1", "-W1", address]).map(drop)
    }
}

fn subnets_of(host: &Host) -> Result<Vec<String>> {
    let file = host.read("/run/flannel/subnet.env")?;
    Ok(file.lines().filter(|line| line.contains("SUBNET=")).map(str::to_owned).collect())
}

fn each(backends: &[&str], dual: bool, holds: fn(&str, bool) -> Result<()>) -> Result<()> {
    backends.iter().try_for_each(|backend| holds(backend, dual).with_context(|| (*backend).to_owned()))
}

/// A new Pod and restarts, with the same subnets afterwards, with each of `backends`.
pub(crate) fn each_survives(backends: &[&str], dual: bool) -> Result<()> {
    each(backends, dual, survives)
}

fn survives(backend: &str, dual: bool) -> Result<()> {
    let net = Net::start(&config(backend, dual))?;
    if dual {
        give_ipv6(&net, "21")?;
        give_ipv6(&net, "22")?;
    }
    let subnets = SUBNETS.map(|subnets| if dual { subnets } else { subnets.get(..1).unwrap_or(subnets) });
    let mut netd = both(&net, subnets)?;
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    let first = pod(here, "21")?;
    let second = pod(there, "22")?;
    reach_each_other(&first, &second, dual)?;
    drop(second);
    // The kernel takes a namespace away in its own time.
    eventually(SOON, || {
        ensure!(there.run(&["ip", "link", "show", "pod0"]).is_err(), "its interface is still there");
        Ok(())
    })?;
    there.run(&["ip", "link", "delete", "cbr0"])?;
    let second = pod(there, "22")?;
    reach_each_other(&first, &second, dual).context("a Pod that was made again")?;
    let before = (subnets_of(here)?, net.subnets()?);
    for node in ["hdss7-21", "hdss7-22"] {
        netd.remove(0).terminate(SOON)?;
        reach_each_other(&first, &second, dual).context("without a daemon")?;
        let again = net.launch(node, &[])?;
        again.wait_for_line("ready: every lease is in the kernel", SOON)?;
        netd.push(again);
        reach_each_other(&first, &second, dual).context("after a restart")?;
    }
    let after = (subnets_of(here)?, net.subnets()?);
    ensure!(before == after && before.0.len() == 1 + usize::from(dual), "{before:?} became {after:?}");
    Ok(())
}

/// Restart, upgrade, crash and an outage of etcd under a TCP connection and datagrams of one family, whose losses are counted.
pub(crate) fn each_loses_nothing(backends: &[&str], dual: bool) -> Result<()> {
    each(backends, dual, loses_nothing)
}

fn loses_nothing(backend: &str, dual: bool) -> Result<()> {
    let mut net = Net::start(&config(backend, dual))?;
    if dual {
        give_ipv6(&net, "21")?;
        give_ipv6(&net, "22")?;
    }
    let subnets = SUBNETS.map(|subnets| if dual { subnets } else { subnets.get(..1).unwrap_or(subnets) });
    let [first, second] = <[Process; 2]>::try_from(both(&net, subnets)?).map_err(|_| anyhow!("two daemons"))?;
    let here = net.host("hdss7-21")?.clone();
    let (web, server) = (pod(&here, "21")?, pod(net.host("hdss7-22")?, "22")?);
    reach_each_other(&web, &server, dual)?;
    let traffic = Traffic::start(web, &server, if dual { "[fd00:7:0:22::2]" } else { "172.7.22.2" })?;
    let launch = |net: &Net, program: &str| {
        let flags = [format!("--etcd-endpoints={}", net.etcd.endpoints()), "--iface=eth0".into(), "--ip-masq".into()];
        let netd = here.command(program).args(flags.each_ref().map(String::as_str)).start("netd")?;
        netd.wait_for_line("ready: every lease is in the kernel", SOON)?;
        traffic.flows()?;
        Ok::<_, anyhow::Error>(netd)
    };
    first.terminate(SOON)?;
    traffic.flows().context("without a daemon")?;
    let bin = lab::bin("netd")?;
    let bin = bin.to_str().context("a path in UTF-8")?;
    let again = launch(&net, bin).context("a restart")?;
    here.run(&["cp", bin, "/run/netd-next"])?;
    again.terminate(SOON)?;
    let next = launch(&net, "/run/netd-next").context("an upgrade")?;
    next.kill()?;
    traffic.flows().context("after a crash")?;
    let last = launch(&net, bin).context("a start after a crash")?;
    net.etcd.kill("hdss7-12")?;
    last.wait_for_line("the store is out of reach", SOON)?;
    traffic.flows().context("without etcd")?;
    net.etcd.restart("hdss7-12")?;
    last.wait_for_line("the store is in reach again", 2 * SOON)?;
    let counts = traffic.stop()?;
    ensure!(counts.lost == 0 && second.is_running(), "{counts:?}");
    Ok(())
}
