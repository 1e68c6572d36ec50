//! What the kernel can do for our programs, asked by doing it in a network namespace that ends at once.
//!
//! Invariant: nothing of it is in the host's own namespace; where no namespace can be made that is the answer.

use std::collections::BTreeMap;
use std::path::Path;

use kernel::ipvs::Ipvs;
use kernel::nft::{Nft, Tables};
use kernel::{Chain as Words, KernelError, Rtnl, netns};
use netstate::link::{BridgeOptions, Link, LinkKind};
use netstate::nft::{
    Chain, ChainKind, CtState, Family, Hook, Match, Name, Op, Policy, Rule, Ruleset, Statement, TableKey, priority,
};
use netstate::{IfName, VxlanOptions};
use reconcile::{Step, Target as _};

/// Each feature that `crate::preflight` asks about, with the kernel's answer.
pub(super) fn ask() -> BTreeMap<&'static str, Result<(), String>> {
    let mut found = match netns::aside(inside) {
        Ok(found) => found,
        Err(error) => {
            let reason = Words(&error).to_string();
            let names = ["bridge", "veth", "dummy", "vxlan", "wireguard", "nftables", "ipvs", "ipvs rr"];
            names.into_iter().map(|name| (name, Err(reason.clone()))).collect()
        }
    };
    found.extend(overlay().map(|answer| ("overlay", answer)));
    found
}

fn inside() -> BTreeMap<&'static str, Result<(), String>> {
    let links = [
        ("bridge", LinkKind::Bridge(BridgeOptions::default())),
        ("veth", LinkKind::Veth),
        ("dummy", LinkKind::Dummy),
        ("vxlan", LinkKind::Vxlan(VxlanOptions::new(1, 8472))),
        ("wireguard", LinkKind::Wireguard),
    ];
    let words = |result: Result<(), KernelError>| result.map_err(|error| Words(&error).to_string());
    let mut found: BTreeMap<_, _> = links.into_iter().map(|(name, kind)| (name, words(link(name, kind)))).collect();
    found.insert("nftables", words(nftables()));
    found.insert("ipvs", words(Ipvs::open().and_then(|mut ipvs| ipvs.info().map(drop))));
    found.insert("ipvs rr", scheduler());
    found
}

fn link(name: &str, kind: LinkKind) -> Result<(), KernelError> {
    let Ok(name) = IfName::new(format!("try-{name}")) else { return Ok(()) };
    let link = Link { kind, mtu: None, mac: None, up: false, master: None };
    Rtnl::open()?.create_link(&name, &link)
}

/// Translation, states and local addresses, which netd's and ipvs-proxy's rules ask for.
fn nftables() -> Result<(), KernelError> {
    let mut ruleset = Ruleset::new(TableKey { family: Family::Ip, name: Name::literal("try") });
    let mut chain = Chain::base(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT, Policy::Accept);
    let rule = Rule::new().when(Match::CtState(CtState::ESTABLISHED)).when(Match::DaddrLocal(Op::IsNot));
    chain.rules.push(rule.then(Statement::Masquerade { fully_random: true }));
    ruleset.table.chains.insert(Name::literal("postrouting"), chain);
    let steps: Vec<_> = ruleset.rows().into_iter().map(|(key, row)| Step::Create(key, row)).collect();
    Tables::new(Nft::open()?, [ruleset.key]).apply(&steps).into_iter().collect()
}

/// The scheduler that ipvs-proxy takes by itself.
fn scheduler() -> Result<(), String> {
    let has = Ipvs::open().and_then(|mut ipvs| ipvs.has_scheduler("rr")).map_err(|error| Words(&error).to_string())?;
    if has { Ok(()) } else { Err("no scheduler of that name".to_owned()) }
}

/// Whether the kernel has the file system, or a module of it; `None` where neither can be read.
fn overlay() -> Option<Result<(), String>> {
    let known = std::fs::read_to_string("/proc/filesystems").ok()?;
    if known.split_whitespace().any(|word| word == "overlay") {
        return Some(Ok(()));
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let modules = Path::new("/lib/modules").join(release.trim()).join("modules.dep");
    let modules = bounded::read_text(&modules, bounded::MANIFEST).unwrap_or_default();
    // containerd's mount loads it.
    let there = modules.lines().filter_map(|line| line.split(':').next()).any(|path| path.contains("/overlay.ko"));
    Some(if there { Ok(()) } else { Err("it is not in /proc/filesystems, nor among its modules".to_owned()) })
}
