//! Clients that keep their endpoint: many connections one after another, to one address of a Service and then to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use netstate::IpFamily;
use oracle::{Case, Kept, Step};
use serde_json::Value;

use super::client::{self, End, Target, Transport};
use super::machines::Machines;
use super::{Difference, Objects};

/// Connections of each client to each address.
const CONNECTIONS: usize = 20;
/// How long each may take, on a machine that may have other work.
const PATIENCE: Duration = Duration::from_secs(6);

/// Asks as the recorded script did. A client may have any endpoint, but at each address only one. By nftables it is the same one at all
/// of them, as kube-proxy has it; IPVS keeps clients by virtual server, as in kube-proxy's mode ipvs.
pub(crate) fn compare(
    (machines, path): (&Machines, &str),
    objects: &Objects,
    case: &Case,
    step: &Step,
) -> Result<Vec<Difference>> {
    let mut found = Vec::new();
    let mut before: BTreeMap<(&str, u8), BTreeSet<String>> = BTreeMap::new();
    for row in &step.kept {
        let target = target(objects, row).with_context(|| format!("{}: no address for {}", case.name, row.dest))?;
        let family = IpFamily::of(target.to.ip());
        let mut report = |client: &str, text: String| {
            let text = format!("{} [{}] {client} -> {} ({}): {text}", case.name, step.name, row.dest, target.to);
            found.push(Difference { family, text });
        };
        for client in row.endpoints.keys() {
            let seen = machines.at(client, || ask(target))?;
            if seen.len() != 1 || seen.first().is_some_and(|name| name.starts_with("no endpoint")) {
                report(client, format!("kube-proxy: one endpoint; ours: {seen:?}"));
            } else if let Some(other) =
                before.get(&(client.as_str(), row.family)).filter(|other| path != "ipvs" && **other != seen)
            {
                report(client, format!("kube-proxy: the same at each address; ours: {other:?} before, now {seen:?}"));
            }
            before.insert((client, row.family), seen);
        }
    }
    Ok(found)
}

/// Who answered.
fn ask(target: Target) -> BTreeSet<String> {
    let one = |_| {
        let ended = client::ask_all(&[target], PATIENCE).into_iter().flatten().next();
        match ended {
            Some((_, End::Answered(line))) => line.split(' ').next().unwrap_or_default().to_owned(),
            other => format!("no endpoint: {other:?}"),
        }
    };
    (0..CONNECTIONS).map(one).collect()
}

/// Where the row's kind of address is, by the only Service of its family.
fn target(objects: &Objects, row: &Kept) -> Option<Target> {
    let v6 = row.family == 6;
    let of_family =
        |service: &&Value| service["spec"]["clusterIP"].as_str().is_some_and(|addr| addr.contains(':') == v6);
    let spec = &objects.services().find(of_family)?["spec"];
    let port = &spec["ports"][0];
    let number = |name: &str| port[name].as_u64().and_then(|number| u16::try_from(number).ok());
    let to = |addr: &Value, name: &str| Some(SocketAddr::new(addr.as_str()?.parse().ok()?, number(name)?));
    let node: IpAddr = if v6 { "fd00:4:7::21" } else { "10.4.7.21" }.parse().ok()?;
    let to = match row.dest.split(' ').next()? {
        "clusterIP" => to(&spec["clusterIP"], "port")?,
        "externalIP" => to(&spec["externalIPs"][0], "port")?,
        "nodePort" => SocketAddr::new(node, number("nodePort")?),
        _ => return None,
    };
    let transport = if port["protocol"] == "UDP" { Transport::Udp } else { Transport::Tcp };
    Some(Target { transport, to, count: 1 })
}
