//! Clients that keep their endpoint: many connections one after another, to one address of a Service and then to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use netstate::IpFamily;
use oracle::script::Kept;

use super::client::{self, End, Target};
use super::script::Scene;

/// Connections of each client to each address.
const CONNECTIONS: usize = 20;
/// How long each may take, on a machine that may have other work.
const PATIENCE: Duration = Duration::from_secs(6);

/// Asks as the recorded script did. A client may have any endpoint, but at each address only one. By nftables it is the same one at all
/// of them, as kube-proxy has it; IPVS keeps clients by virtual server, as in kube-proxy's mode ipvs.
pub(crate) fn play(scene: &mut Scene<'_>, rows: &[Kept]) -> Result<()> {
    let mut before: BTreeMap<(&str, IpFamily), BTreeSet<String>> = BTreeMap::new();
    for (row, family) in rows.iter().flat_map(|row| IpFamily::ALL.map(|family| (row, family))) {
        if row.family.is_some_and(|recorded| (recorded == 4) != family.is_v4()) {
            continue;
        }
        for client in row.endpoints.keys() {
            let seen = ask(scene, client, &row.dest, family, CONNECTIONS)?;
            let known = before.get(&(client.as_str(), family)).filter(|_| scene.player.setting().path != "ipvs");
            if !is_one(&seen) {
                scene.report(family, client, &row.dest, &format!("kube-proxy: one endpoint; ours: {seen:?}"));
            } else if let Some(other) = known.filter(|known| **known != seen) {
                let text = format!("kube-proxy: the same at each address; ours: {other:?} before, now {seen:?}");
                scene.report(family, client, &row.dest, &text);
            }
            before.insert((client.as_str(), family), seen);
        }
    }
    Ok(())
}

/// Whether one endpoint answered, and nothing else happened.
pub(crate) fn is_one(seen: &BTreeSet<String>) -> bool {
    seen.len() == 1 && !seen.iter().any(|name| name.starts_with("no endpoint"))
}

/// Who answered a client, over so many connections one after another.
pub(crate) fn ask(
    scene: &Scene<'_>,
    client: &str,
    dest: &str,
    family: IpFamily,
    connections: usize,
) -> Result<BTreeSet<String>> {
    let (transport, to) = scene.address(dest, family)?;
    let target = Target { transport, to, count: 1 };
    let one = || match client::ask_all(&[target], PATIENCE).into_iter().flatten().next() {
        Some((_, End::Answered(line))) => line.split(' ').next().unwrap_or_default().to_owned(),
        other => format!("no endpoint: {other:?}"),
    };
    scene.player.machines().at(client, || (0..connections).map(|_| one()).collect()).context("ask")
}
