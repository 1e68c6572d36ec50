//! `netd config`: the network's configuration, where it is kept.
//!
//! Invariants: what has a problem is never written; a text is written only in the place of the one that was read and
//! judged; what nodes will do about it is said before.

mod effect;
mod place;

use std::path::Path;

use anyhow::{Context, Result};
use cluster::{Problem, Problems};
use daemon::lifecycle::Exit;
use daemon::status::Lines;
use daemon::terminal;

use self::place::{Place, Stored};
use super::{block_on, etcd};
use crate::command::args::Flags;
use crate::command::verbs::{ConfigVerb, Source};
use crate::format::edit::Change;
use crate::format::lease::SubnetKey;
use crate::format::net_conf::{NetConf, Network};

/// What problems of what was typed are said to be in.
const NEW: &str = "the new configuration";

/// Does what `verb` says.
///
/// # Errors
/// When the text cannot be read or written, or has problems.
pub(super) fn act(verb: &ConfigVerb, flags: &Flags) -> Result<Exit> {
    // A text at hand is judged without any store.
    if let ConfigVerb::Check { file: Some(file) } = verb {
        return check(&text_of(file)?, file);
    }
    // So is what was typed.
    let typed = Typed::read(verb)?;
    let place = Place::of(&super::store(flags)?);
    block_on(async {
        let stored = place.read().await?;
        match verb {
            ConfigVerb::Check { .. } => check(&there(stored, &place)?.text, &place.name()),
            ConfigVerb::Show => {
                let text = there(stored, &place)?.text;
                let text = text.trim_end();
                // Who redirects it gets what is stored.
                if terminal::is_terminal() {
                    terminal::put(&format!("{text}\n"))?
                } else {
                    terminal::put_unchanged(format!("{text}\n").as_bytes())?
                }
                Ok(Exit::Success)
            }
            ConfigVerb::Set { dry_run, .. } => set(&place, stored, typed.text.trim_end(), *dry_run).await,
            ConfigVerb::Edit { dry_run, .. } => {
                let stored = there(stored, &place)?;
                let text = edited(&stored.text, &typed.changes)?;
                set(&place, Some(stored), &text, *dry_run).await
            }
        }
    })
}

/// What an operator wants to be there.
#[derive(Debug, Default)]
struct Typed<'a> {
    /// The whole text, without a problem.
    text: String,
    /// Changes to the text that is there.
    changes: Vec<Change<'a>>,
}

impl<'a> Typed<'a> {
    fn read(verb: &'a ConfigVerb) -> Result<Self> {
        match verb {
            ConfigVerb::Check { .. } | ConfigVerb::Show => Ok(Self::default()),
            ConfigVerb::Set { source, .. } => {
                let text = match source {
                    Source { file: Some(file), .. } => text_of(file)?,
                    Source { text, .. } => text.clone().unwrap_or_default(),
                };
                NetConf::parse(&text).map_err(|list| problems(NEW, list))?;
                Ok(Self { text, ..Self::default() })
            }
            ConfigVerb::Edit { changes, .. } => {
                let (read, list): (Vec<_>, Vec<_>) =
                    changes.iter().map(|text| Change::parse(text)).partition(Result::is_ok);
                let list: Vec<Problem> = list.into_iter().filter_map(Result::err).collect();
                if !list.is_empty() {
                    return Err(problems("changes", list).into());
                }
                Ok(Self { changes: read.into_iter().filter_map(Result::ok).collect(), ..Self::default() })
            }
        }
    }
}

fn there(stored: Option<Stored>, place: &Place) -> Result<Stored> {
    stored.with_context(|| format!("{} does not exist: write it with `netd config set`", place.name()))
}

fn text_of(file: &str) -> Result<String> {
    let named = || if file == "-" { "read standard input".to_owned() } else { format!("read {file}") };
    bounded::read_argument(Path::new(file), bounded::SETTINGS).with_context(named)
}

fn edited(text: &str, changes: &[Change<'_>]) -> Result<String> {
    let (mut text, mut list) = (text.to_owned(), Vec::new());
    for change in changes {
        match change.apply(&text) {
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
    let refuse = |list| {
        // A ConfigMap may be meant.
        let of =
            if NetConf::parse_assigned(text).is_ok() { ", good where Kubernetes gives the subnets out" } else { "" };
        problems(&format!("{source}{of}"), list)
    };
    let conf = NetConf::parse(text).map_err(refuse)?;
    terminal::put(&description(&conf, source))?;
    Ok(Exit::Success)
}

fn description(conf: &NetConf, source: &str) -> String {
    let mut lines = Lines::new();
    lines.push(format_args!("{source}: no problem"));
    for (_, pool) in conf.network.pools.present() {
        let count = subnets(pool.subnet_min, pool.subnet_max);
        let (first, last) = (pool.subnet_min, pool.subnet_max);
        lines.push(format_args!("  {}: {count} subnets, {first} to {last}", pool.network));
    }
    let backend = &conf.network.backend;
    let direct =
        if backend.routes_directly() { ", plain routes to nodes that are reached without a router" } else { "" };
    lines.push(format_args!("  backend {}{direct}", backend.name()));
    lines.push(format_args!("  {}", conf.network.egress.of(&conf.network.pools)));
    if conf.network.flowtable {
        lines.push(format_args!(
            "  established flows of Pods take the short way of a flowtable, on nodes whose kernel has it"
        ));
    }
    for note in &conf.notes {
        lines.push(format_args!("  note: {note}"));
    }
    lines.into_text()
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
    let after = NetConf::parse(text).map_err(|list| problems(NEW, list))?;
    terminal::put(&description(&after, NEW))?;
    let earlier: Option<Network> = before.as_ref().and_then(|stored| Some(NetConf::parse(&stored.text).ok()?.network));
    let leases = leases(place).await?;
    for effect in effect::effects(earlier.as_ref(), &after.network, &leases) {
        terminal::put(&format!("  {effect}\n"))?;
    }
    if dry_run {
        terminal::put("nothing is written: --dry-run\n")?;
    } else if before.as_ref().is_some_and(|stored| stored.text.trim_end() == text) {
        terminal::put(&format!("{} holds this text already\n", place.name()))?;
    } else {
        place.replace(before.as_ref(), text).await?;
        terminal::put(&format!("written to {}\n", place.name()))?;
    }
    Ok(Exit::Success)
}

/// The leases that the store holds.
async fn leases(place: &Place) -> Result<Vec<SubnetKey>> {
    let Place::Etcd { store, prefix } = place else { return Ok(Vec::new()) };
    let listing = store.list(&etcd::subnets(prefix)).await?;
    Ok(listing.entries.iter().filter_map(|entry| entry.key.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_not_used_cannot_forge_a_line() {
        let conf = NetConf::parse(r#"{"Network": "172.7.0.0/16", "a\nb\u001b[2J\u009b": 1}"#).unwrap();
        let text = description(&conf, "-");
        assert!(
            text.contains("\\u{1b}") && text.lines().all(|line| line == "-: no problem" || line.starts_with("  ")),
            "{text}"
        );
        assert!(!text.contains(['\u{1b}', '\u{9b}']), "{text:?}");
    }

    #[test]
    fn only_families_that_the_network_has_are_spoken_of_and_auto_is_no_plain_tunnel() {
        let described = |text: &str| description(&NetConf::parse(text).unwrap(), "-");
        let v4 = described(r#"{"Network":"172.7.0.0/16","NonMasqueradeCIDRs":["10.0.0.0/8","fd00::/8"]}"#);
        assert!(v4.contains("as their node, by IPv4, but not in 10.0.0.0/8\n"), "{v4}");
        let v6 = described(r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:7::/48"}"#);
        assert!(v6.contains("as their node, by IPv6\n"), "{v6}");
        let v6 = r#""EnableIPv6":true,"IPv6Network":"fd00:7::/48""#;
        let both = described(&format!(r#"{{"Network":"172.7.0.0/16",{v6}}}"#));
        assert!(both.contains("as their node, by IPv4 and IPv6\n"), "{both}");
        let auto = described(r#"{"Network":"172.7.0.0/16","Backend":{"Type":"auto"}}"#);
        assert!(auto.contains("backend vxlan, plain routes to nodes"), "{auto}");
        assert!(v4.contains("backend vxlan\n"), "{v4}");
    }

    #[test]
    fn what_is_typed_is_judged_whole_before_any_store_is_asked() {
        let changes = ["Backend.MTU", "Backend.Port=8472", "=1"].map(str::to_owned).into();
        let edit = ConfigVerb::Edit { changes, dry_run: false };
        let refusal = Typed::read(&edit).unwrap_err().to_string();
        assert!(refusal.starts_with("changes: 2 problems") && refusal.contains("\"Backend.MTU\""), "{refusal}");
        let source = Source { file: None, text: Some(r#"{"Network": "10.0.0.0"}"#.to_owned()) };
        let refusal = Typed::read(&ConfigVerb::Set { source, dry_run: false }).unwrap_err().to_string();
        assert!(refusal.starts_with(NEW) && refusal.contains("Network"), "{refusal}");
    }
}
