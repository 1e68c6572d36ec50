//! `netd config`: the network's configuration, where it is kept.
//!
//! Invariants: what has a problem is never written; a text is written only in the place of the one that was read and
//! judged; what nodes will do about it is said before.

mod effect;
mod place;

use std::io::Read as _;

use anyhow::{Context, Result};
use cluster::{Problem, Problems};
use daemon::lifecycle::Exit;

use self::place::{Place, Stored};
use super::{block_on, etcd};
use crate::command::args::Flags;
use crate::command::verbs::{ConfigVerb, Source};
use crate::format::edit::Change;
use crate::format::lease::SubnetKey;
use crate::format::net_conf::{NetConf, Network};

/// Does what `verb` says.
///
/// # Errors
/// When the text cannot be read or written, or has problems.
pub(super) fn act(verb: &ConfigVerb, flags: &Flags) -> Result<Exit> {
    // A text at hand is judged without any store.
    if let ConfigVerb::Check { file: Some(file) } = verb {
        return check(&text_of(file)?, file);
    }
    let place = Place::of(&super::store(flags)?);
    block_on(async {
        let stored = place.read().await?;
        match verb {
            ConfigVerb::Check { .. } => check(&there(stored, &place)?.text, &place.name()),
            ConfigVerb::Show => {
                let text = there(stored, &place)?.text;
                println!("{}", text.trim_end());
                Ok(Exit::Success)
            }
            ConfigVerb::Set { source, dry_run } => {
                let text = match source {
                    Source { file: Some(file), .. } => text_of(file)?,
                    Source { text, .. } => text.clone().unwrap_or_default(),
                };
                set(&place, stored, text.trim_end(), *dry_run).await
            }
            ConfigVerb::Edit { changes, dry_run } => {
                let stored = there(stored, &place)?;
                let text = edited(&stored.text, changes)?;
                set(&place, Some(stored), &text, *dry_run).await
            }
        }
    })
}

fn there(stored: Option<Stored>, place: &Place) -> Result<Stored> {
    stored.with_context(|| format!("{} does not exist: write it with `netd config set`", place.name()))
}

fn text_of(file: &str) -> Result<String> {
    if file == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("read standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| format!("read {file}"))
}

fn edited(text: &str, changes: &[String]) -> Result<String> {
    let (mut text, mut list) = (text.to_owned(), Vec::new());
    for change in changes {
        match Change::parse(change).and_then(|change| change.apply(&text)) {
            Ok(changed) => text = changed,
            Err(problem) => list.push(problem),
        }
    }
    if list.is_empty() { Ok(text) } else { Err(problems("changes", list).into()) }
}

fn problems(source: &str, list: Vec<Problem>) -> Problems {
    Problems { source: source.to_owned(), list }
}

fn check(text: &str, source: &str) -> Result<Exit> {
    let conf = NetConf::parse(text).map_err(|list| problems(source, list))?;
    describe(&conf, source);
    Ok(Exit::Success)
}

fn describe(conf: &NetConf, source: &str) {
    println!("{source}: no problem");
    for (_, pool) in conf.network.pools.present() {
        let count = subnets(pool.subnet_min, pool.subnet_max);
        println!("  {}: {count} subnets, {} to {}", pool.network, pool.subnet_min, pool.subnet_max);
    }
    println!("  backend {}", conf.network.backend.name());
    println!("  {}", conf.network.egress);
    if conf.network.flowtable {
        println!("  established flows of Pods take the short way of a flowtable, on nodes whose kernel has it");
    }
    for note in &conf.notes {
        println!("  note: {note}");
    }
}

/// How many subnets there are from `first` to `last`.
fn subnets(first: netstate::Prefix, last: netstate::Prefix) -> u128 {
    let bits = |prefix: netstate::Prefix| match prefix.addr() {
        std::net::IpAddr::V4(addr) => u128::from(addr.to_bits()) << 96,
        std::net::IpAddr::V6(addr) => addr.to_bits(),
    };
    let step = 128u32.saturating_sub(u32::from(first.len()));
    bits(last).saturating_sub(bits(first)).checked_shr(step).unwrap_or_default().saturating_add(1)
}

async fn set(place: &Place, before: Option<Stored>, text: &str, dry_run: bool) -> Result<Exit> {
    let after = NetConf::parse(text).map_err(|list| problems("the new configuration", list))?;
    describe(&after, "the new configuration");
    let earlier: Option<Network> = before.as_ref().and_then(|stored| Some(NetConf::parse(&stored.text).ok()?.network));
    let leases = leases(place).await?;
    for effect in effect::effects(earlier.as_ref(), &after.network, &leases) {
        println!("  {effect}");
    }
    if dry_run {
        println!("nothing is written: --dry-run");
    } else if before.as_ref().is_some_and(|stored| stored.text.trim_end() == text) {
        println!("{} holds this text already", place.name());
    } else {
        place.replace(before.as_ref(), text).await?;
        println!("written to {}", place.name());
    }
    Ok(Exit::Success)
}

/// The leases that the store holds.
async fn leases(place: &Place) -> Result<Vec<SubnetKey>> {
    let Place::Etcd { store, prefix } = place else { return Ok(Vec::new()) };
    let listing = store.list(&etcd::subnets(prefix)).await?;
    Ok(listing.entries.iter().filter_map(|entry| entry.key.parse().ok()).collect())
}
