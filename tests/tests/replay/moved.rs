//! Clients that keep their endpoint until it goes.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use netstate::IpFamily;
use oracle::script::Moved;

use super::kept::{ask, is_one};
use super::objects::Condition;
use super::script::Scene;

/// All endpoints of the case.
const ALL: [&str; 3] = ["p11", "p12", "p21"];
/// The client whose endpoint goes.
const FIRST: &str = "pod-n1";
const CONNECTIONS: usize = 10;
/// How often a client that keeps no endpoint asks until it has seen all.
const ROUNDS: usize = 20;

/// The endpoint that each client has.
type Chosen = BTreeMap<String, BTreeSet<String>>;

/// Takes the endpoint of one client away, and brings it back: who had it moves once, and nobody else.
pub(crate) fn play<'a>(scene: &mut Scene<'a>, rows: &'a [Moved]) -> Result<()> {
    let mut before = BTreeMap::from(IpFamily::ALL.map(|family| (family, Chosen::new())));
    for row in rows {
        scene.begin(&row.step);
        for family in IpFamily::ALL {
            let chosen = before.get_mut(&family).context("no such family")?;
            *chosen = after(scene, row, family, chosen)?;
        }
    }
    Ok(())
}

/// Does what the row says, and compares whom each client has then.
fn after(scene: &mut Scene<'_>, row: &Moved, family: IpFamily, before: &Chosen) -> Result<Chosen> {
    let of_first = before.get(FIRST).and_then(|names| names.first()).cloned().unwrap_or_default();
    let all = |condition: Option<Condition>| -> Vec<(&str, Condition)> {
        let other = |name: &&str| if **name == of_first { condition } else { Some(Condition::Ready) };
        ALL.iter().filter_map(|name| Some((*name, other(name)?))).collect()
    };
    let gone = match row.step.as_str() {
        "three ready" => "",
        "endpoint of pod-n1 removed" => {
            scene.endpoints(family, &all(None))?;
            of_first.as_str()
        }
        "it comes back" => {
            scene.endpoints(family, &all(Some(Condition::Ready)))?;
            ""
        }
        "the endpoint of pod-n1 is terminating and serving" => {
            scene.endpoints(family, &all(Some(Condition::Leaving)))?;
            of_first.as_str()
        }
        "sessionAffinity set to None" => return spread(scene, row, family),
        other => bail!("nobody knows how to do {other:?}"),
    };
    scene.player.apply()?;
    let mut chosen = Chosen::new();
    for client in row.seen.keys() {
        let seen = ask(scene, client, "clusterIP", family, CONNECTIONS)?;
        let old = before.get(client);
        let may_move = old.is_none_or(|old| old.contains(gone));
        if !is_one(&seen) || seen.contains(gone) || !may_move && old != Some(&seen) {
            let text = format!("kube-proxy: one endpoint, another only where it is gone; ours: {old:?}, now {seen:?}");
            scene.report(family, client, "clusterIP", &text);
        }
        chosen.insert(client.clone(), seen);
    }
    Ok(chosen)
}

/// Nobody keeps an endpoint any more.
fn spread(scene: &mut Scene<'_>, row: &Moved, family: IpFamily) -> Result<Chosen> {
    scene.endpoints(family, &ALL.map(|name| (name, Condition::Ready)))?;
    scene.player.objects_mut().forget_clients();
    scene.player.apply()?;
    for client in row.seen.keys() {
        let mut seen = BTreeSet::new();
        for _ in 0..ROUNDS {
            seen.append(&mut ask(scene, client, "clusterIP", family, CONNECTIONS)?);
            if seen.len() >= ALL.len() {
                break;
            }
        }
        if seen != ALL.map(str::to_owned).into() {
            scene.report(family, client, "clusterIP", &format!("kube-proxy: all three; ours: {seen:?}"));
        }
    }
    Ok(Chosen::new())
}
