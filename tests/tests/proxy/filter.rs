//! What the filters of the proxy's tables do with packets, on either data path.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Place, echo, eventually};

use super::{Kept, Nodes, SERVICES, SOON, WEB_YAML, families};

const SILENCE: Duration = Duration::from_secs(2);

/// Addresses of the Service networks at which a host behind the router answers, and no Service is.
const NOBODY: [&str; 2] = ["192.168.7.200", "fd09::7:200"];

/// The nodes, with the host outside as router to the Service networks, where it has an address itself.
fn start() -> Result<Nodes> {
    let nodes = families::start()?;
    nodes.node()?.run(&["ip", "route", "add", "192.168.0.0/16", "via", "10.4.7.200"])?;
    nodes.node()?.run(&["sysctl", "-qw", "net.ipv6.conf.all.forwarding=1"])?;
    let batch = format!(
        "address add {}/32 dev eth0\naddress add {}/128 dev eth0 nodad\nroute add 172.7.21.0/24 via 10.4.7.21\n",
        NOBODY[0], NOBODY[1]
    );
    nodes.outside()?.command("ip").args(["-batch", "-"]).input(batch).run()?;
    nodes.publish("web.yaml", &families::web("clusterIP: 192.168.0.10", "SingleStack"))?;
    Ok(nodes)
}

fn ask(from: &impl Place, addr: &str, limit: Duration) -> Result<()> {
    echo::ask_tcp(from, SocketAddr::new(addr.parse()?, 80), limit).map(drop)
}

/// A client waits for an answer in vain; a datagram of the node itself is not even sent.
fn ensure_silent(nodes: &Nodes) -> Result<()> {
    for addr in NOBODY {
        for result in [ask(nodes.node()?, addr, SILENCE), ask(nodes.pod("172.7.21.2")?, addr, SILENCE)] {
            let error = result.err().with_context(|| format!("{addr} answered"))?;
            let text = format!("{error:#}");
            ensure!(!text.contains("refused") && !text.contains("reset"), "{addr}: {text}");
        }
        let to = SocketAddr::new(addr.parse()?, 53);
        let sent = nodes.node()?.within(|| {
            let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
            anyhow::Ok(UdpSocket::bind(any)?.send_to(b"x", to))
        })??;
        let kind = sent.err().map(|error| error.kind());
        ensure!(kind == Some(ErrorKind::PermissionDenied), "{to}: {kind:?}");
    }
    Ok(())
}

fn ensure_answered(nodes: &Nodes) -> Result<()> {
    for addr in NOBODY {
        ask(nodes.node()?, addr, SOON).with_context(|| format!("{addr} from the node"))?;
        ask(nodes.pod("172.7.21.2")?, addr, SOON).with_context(|| format!("{addr} from a Pod"))?;
    }
    Ok(())
}

/// As by kube-proxy; a network of the node that lies in the Service network is left alone, from the moment that the node has it.
pub(crate) fn an_address_that_no_service_has_is_silent_unless_a_network_here_has_it(mode: &str) -> Result<()> {
    let nodes = start()?;
    let _server = echo::serve(nodes.outside()?, "nobody", 80)?;
    ensure_answered(&nodes).context("without the proxy")?;
    let _proxy = families::proxy(&nodes, mode, &families::DUAL)?;
    ensure_silent(&nodes)?;
    let networks = ["192.168.7.1/24", "fd09::7:1/112"];
    for network in networks {
        nodes.node()?.run(&["ip", "address", "add", network, "dev", "eth0"])?;
    }
    eventually(SOON, || ensure_answered(&nodes)).context("beside another network")?;
    for network in networks {
        nodes.node()?.run(&["ip", "address", "del", network, "dev", "eth0"])?;
    }
    eventually(SOON, || ensure_silent(&nodes))
}

/// Without it the client would wait until it gives up, a quarter of an hour later.
pub(crate) fn a_connection_that_is_open_when_its_service_goes_is_reset() -> Result<()> {
    let nodes = start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let _proxy = families::proxy(&nodes, "ipvs", &families::DUAL)?;
    let mut kept = [Kept::open(nodes.pod("172.7.21.2")?)?, Kept::open(nodes.outside()?)?];
    for one in &mut kept {
        one.ask()?;
    }
    nodes.node()?.run(&["rm", &format!("{SERVICES}/web.yaml")])?;
    eventually(SOON, || {
        let addresses = nodes.node()?.run(&["ip", "-o", "address"])?.stdout;
        ensure!(!addresses.contains("192.168.0.10"), "{addresses}");
        Ok(())
    })?;
    for mut one in kept {
        let error = one.ask().err().context("it was answered")?;
        ensure!(format!("{error:#}").contains("reset"), "{error:#}");
    }
    Ok(())
}
