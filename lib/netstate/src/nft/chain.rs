//! `Chain`: an ordered list of rules, reached by a jump or hung into the path of packets.

use std::fmt;

use super::{Family, Rule};
use crate::IfName;

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Chain {
    /// Where packets enter by themselves; `None` for a chain that is only jumped to.
    pub base: Option<BaseChain>,
    /// The rules, first to last.
    pub rules: Vec<Rule>,
}

impl Chain {
    /// A base chain without rules.
    #[must_use]
    pub const fn base(kind: ChainKind, hook: Hook, priority: i32, policy: Policy) -> Self {
        let base = BaseChain { kind, hook, priority, policy, device: None };
        Self { base: Some(base), rules: Vec::new() }
    }

    /// A base chain without rules for what arrives on `device`, in a table of family netdev.
    #[must_use]
    pub const fn ingress(device: IfName, priority: i32, policy: Policy) -> Self {
        let base = BaseChain { kind: ChainKind::Filter, hook: Hook::Ingress, priority, policy, device: Some(device) };
        Self { base: Some(base), rules: Vec::new() }
    }

    /// A chain that is reached by jumps.
    #[must_use]
    pub const fn regular(rules: Vec<Rule>) -> Self {
        Self { base: None, rules }
    }
}

/// Where and when packets enter a base chain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BaseChain {
    /// What its rules may do.
    pub kind: ChainKind,
    /// Where in the path of a packet.
    pub hook: Hook,
    /// Order among the chains of one hook, lowest first. The values that have names are in [`priority`].
    pub priority: i32,
    /// What becomes of a packet that no rule decided.
    pub policy: Policy,
    /// The link whose packets it sees, in tables of family netdev. The chain goes with the link, or loses it.
    pub device: Option<IfName>,
}

/// Priorities with names (enum nf_ip_hook_priorities in include/uapi/linux/netfilter_ipv4.h; the same for IPv6).
pub mod priority {
    /// Before connection tracking.
    pub const RAW: i32 = -300;
    /// After connection tracking, before routing decisions.
    pub const MANGLE: i32 = -150;
    /// Destination address translation.
    pub const DSTNAT: i32 = -100;
    /// Filtering.
    pub const FILTER: i32 = 0;
    /// Security modules.
    pub const SECURITY: i32 = 50;
    /// Source address translation.
    pub const SRCNAT: i32 = 100;
    /// After everybody else.
    pub const LAST: i32 = i32::MAX;
}

/// What the rules of a base chain may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainKind {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of a connection; translations are made here.
    Nat,
    /// Sees locally made packets and routes them again when a mark or an address changed.
    Route,
}

impl ChainKind {
    /// The kind of the kernel's name for it, if it is one of these.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Filter, Self::Nat, Self::Route].into_iter().find(|kind| kind.as_str() == name)
    }

    /// The kernel's name for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
}

/// A place in the path of packets (enum nf_inet_hooks and enum nf_dev_hooks in include/uapi/linux/netfilter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// 0 of family netdev: arrived on a link, before anything else has seen it.
    Ingress,
    /// 0: arrived, not yet routed.
    Prerouting,
    /// 1: for this host.
    Input,
    /// 2: passing through.
    Forward,
    /// 3: made by this host.
    Output,
    /// 4: about to leave.
    Postrouting,
}

impl Hook {
    /// The hook's number.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Ingress | Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }

    /// The hook of a number in tables of `family`, if it is one of these.
    #[must_use]
    pub const fn from_number(family: Family, number: u32) -> Option<Self> {
        match (family, number) {
            (Family::Netdev, 0) => Some(Self::Ingress),
            (Family::Netdev, _) => None,
            (_, 0) => Some(Self::Prerouting),
            (_, 1) => Some(Self::Input),
            (_, 2) => Some(Self::Forward),
            (_, 3) => Some(Self::Output),
            (_, 4) => Some(Self::Postrouting),
            _ => None,
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        })
    }
}

/// What becomes of a packet that no rule of a base chain decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Policy {
    /// It goes on.
    Accept,
    /// It is dropped.
    Drop,
}
