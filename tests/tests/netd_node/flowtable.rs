//! Links of a node's flowtable, as the nft tool lists them.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use lab::{Host, eventually};
use serde_json::Value;

use super::SOON;

/// Waits until the flowtable names `wanted` and, where the kernel takes names ahead of links, each port of the Pods' bridge. None are
/// wanted where there shall be no flowtable.
pub(crate) fn eventually_links(host: &Host, wanted: &[&str]) -> Result<()> {
    let with_ports = !wanted.is_empty() && takes_names_ahead(host)?;
    eventually(SOON, || {
        let mut all: BTreeSet<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        if with_ports {
            all.extend(ports(host)?);
        }
        let found = links(host)?;
        ensure!(found == all, "{found:?} instead of {all:?}");
        Ok(())
    })
}

/// Links that it names now.
pub(crate) fn links(host: &Host) -> Result<BTreeSet<String>> {
    let text = host.run(&["nft", "list", "flowtables"])?.stdout;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("devices = "));
    let names = line.unwrap_or_default().trim_matches(['{', '}', ' ']).split(", ");
    Ok(names.filter(|name| !name.is_empty()).map(|name| name.trim_matches('"').to_owned()).collect())
}

fn ports(host: &Host) -> Result<Vec<String>> {
    let listed = host.run(&["ip", "-j", "link", "show", "master", "cbr0"])?.stdout;
    let links: Vec<Value> = serde_json::from_str(&listed)?;
    Ok(links.iter().filter_map(|link| link["ifname"].as_str().map(str::to_owned)).collect())
}

/// Whether the nft tool can name a link that is not there, in a table that is gone afterwards.
fn takes_names_ahead(host: &Host) -> Result<bool> {
    host.run(&["nft", "add", "table", "inet", "tried"])?;
    let flowtable = "{ hook ingress priority 0; devices = { none7 }; }";
    let tried = host.command("nft").args(["add", "flowtable", "inet", "tried", "flows", flowtable]).run().is_ok();
    host.run(&["nft", "delete", "table", "inet", "tried"])?;
    Ok(tried)
}
