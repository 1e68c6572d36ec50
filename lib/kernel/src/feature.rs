//! `Feature`: what the programs need of the kernel, each with its word, and whether the running one has it.
//!
//! Invariants: the answer comes from asking for the thing itself in a way that the kernel refuses before anything is made, never from a
//! version or a configuration file; asking loads a module as using it would.

use std::fmt;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netstate::IfName;
use netstate::nft::{
    Chain, ChainKind, CtState, Family, Flowtable, Hook, Match, Name, Op, Policy, Reject, Rule, Statement, Table,
    priority,
};

use crate::conntrack;
use crate::error::KernelError;
use crate::ipvs::Ipvs;
use crate::nft::Nft;
use crate::rtnl::{Operation, Rtnl, encode};

/// Something that a kernel has or has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// Links of kind vxlan.
    Vxlan,
    /// Links of kind ipip.
    Ipip,
    /// Links of kind wireguard.
    WireGuard,
    /// Links of kind dummy.
    Dummy,
    /// Tables of nftables for IPv4, with chains that filter.
    Nftables,
    /// Rules about connections.
    Tracking,
    /// Rules that give connections other addresses.
    Translation,
    /// Rules about addresses of this host.
    LocalAddresses,
    /// Rules that choose at random.
    Random,
    /// Rules that send an error back.
    Reject,
    /// Flowtables.
    Flowtable,
    /// Listing and deleting tracked connections.
    Connections,
    /// IPVS.
    Ipvs,
    /// Tables of nftables for what bridges forward.
    BridgeTables,
    /// Queueing disciplines that limit what a link sends.
    TokenBucket,
    /// Links of kind ifb.
    Ifb,
}

/// A link that nobody has.
const ABSENT_LINK: &str = "netd-absent";

impl Feature {
    /// All there are.
    pub const ALL: [Self; 16] = [
        Self::Vxlan,
        Self::Ipip,
        Self::WireGuard,
        Self::Dummy,
        Self::Nftables,
        Self::Tracking,
        Self::Translation,
        Self::LocalAddresses,
        Self::Random,
        Self::Reject,
        Self::Flowtable,
        Self::Connections,
        Self::Ipvs,
        Self::BridgeTables,
        Self::TokenBucket,
        Self::Ifb,
    ];

    /// Its name, the modules that bring it, and the options of a kernel that has it.
    const fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Vxlan => ("vxlan devices", "vxlan", "CONFIG_VXLAN"),
            Self::Ipip => ("ipip devices", "ipip", "CONFIG_NET_IPIP"),
            Self::WireGuard => ("wireguard devices", "wireguard", "CONFIG_WIREGUARD"),
            Self::Dummy => ("dummy devices", "dummy", "CONFIG_DUMMY"),
            Self::Nftables => ("nftables", "nf_tables", "CONFIG_NF_TABLES, CONFIG_NF_TABLES_IPV4"),
            Self::Tracking => ("rules of nftables about connections", "nft_ct", "CONFIG_NFT_CT"),
            Self::Translation => {
                ("address translation by nftables", "nft_chain_nat nft_masq", "CONFIG_NFT_NAT, CONFIG_NFT_MASQ")
            }
            Self::LocalAddresses => (
                "rules of nftables about local addresses",
                "nft_fib_ipv4 nft_fib_ipv6",
                "CONFIG_NFT_FIB_IPV4, CONFIG_NFT_FIB_IPV6",
            ),
            Self::Random => ("random numbers in nftables", "nft_numgen", "CONFIG_NFT_NUMGEN"),
            Self::Reject => (
                "rules of nftables that reject",
                "nft_reject_ipv4 nft_reject_ipv6",
                "CONFIG_NFT_REJECT_IPV4, CONFIG_NFT_REJECT_IPV6",
            ),
            Self::Flowtable => (
                "flowtables of nftables",
                "nf_flow_table_inet nft_flow_offload",
                "CONFIG_NF_FLOW_TABLE_INET, CONFIG_NFT_FLOW_OFFLOAD",
            ),
            Self::Connections => ("a list of tracked connections", "nf_conntrack_netlink", "CONFIG_NF_CT_NETLINK"),
            Self::Ipvs => ("IPVS", "ip_vs", "CONFIG_IP_VS"),
            Self::BridgeTables => ("nftables for bridges", "nf_tables", "CONFIG_NF_TABLES, CONFIG_NF_TABLES_BRIDGE"),
            Self::TokenBucket => ("token buckets", "sch_tbf", "CONFIG_NET_SCH_TBF"),
            Self::Ifb => ("ifb devices", "ifb", "CONFIG_IFB"),
        }
    }

    /// Links of this kind, where a program asks for some at the start.
    #[must_use]
    pub fn of_kind(kind: &str) -> Option<Self> {
        match kind {
            "vxlan" => Some(Self::Vxlan),
            "ipip" => Some(Self::Ipip),
            "wireguard" => Some(Self::WireGuard),
            "dummy" => Some(Self::Dummy),
            _ => None,
        }
    }

    /// What to do about it where it is missing.
    #[must_use]
    pub fn advice(self) -> String {
        let (_, modules, options) = self.words();
        format!("modprobe {modules}, and name that in /etc/modules-load.d, or take a kernel with {options}")
    }

    /// Whether the running kernel has it.
    ///
    /// # Errors
    /// When that cannot be found out, as without CAP_NET_ADMIN.
    pub fn is_there(self) -> Result<bool, KernelError> {
        let found = match self {
            Self::Vxlan => has_kind(InfoKind::Vxlan),
            Self::Ipip => has_kind(InfoKind::IpIp),
            Self::WireGuard => has_kind(InfoKind::Wireguard),
            Self::Dummy => has_kind(InfoKind::Dummy),
            Self::Connections => conntrack::is_listed(),
            Self::Ipvs => Ipvs::open().map(|_| true),
            Self::Ifb => has_kind(InfoKind::Ifb),
            Self::TokenBucket => Rtnl::open().and_then(|mut rtnl| rtnl.knows_buckets()),
            Self::BridgeTables => Nft::open().and_then(|mut nft| nft.would_take(Family::Bridge, &self.table())),
            Self::Flowtable => Nft::open().and_then(|mut nft| nft.would_take(Family::Inet, &self.table())),
            _ => Nft::open().and_then(|mut nft| nft.would_take(Family::Ip, &self.table())),
        };
        match found {
            Err(error) if is_missing(&error) => Ok(false),
            other => other,
        }
    }

    /// Whether a flowtable may name links that are not there: since Linux 6.16. Elsewhere the kernel refuses the flowtable for one such name.
    ///
    /// # Errors
    /// When that cannot be found out, as without CAP_NET_ADMIN.
    pub fn flowtable_takes_names_ahead() -> Result<bool, KernelError> {
        let absent = Flowtable::on(IfName::new(ABSENT_LINK).into_iter().collect());
        let flowtables = [(Name::literal("tried"), absent)].into();
        Nft::open()?.would_take(Family::Inet, &Table { flowtables, ..Table::default() })
    }

    /// A table with a rule of it.
    fn table(self) -> Table {
        let filter = Chain::base(ChainKind::Filter, Hook::Forward, priority::FILTER, Policy::Accept);
        let with = |chain: Chain, rule: Rule| Chain { rules: vec![rule], ..chain };
        let (chain, flowtable) = match self {
            Self::Tracking => (with(filter, Rule::new().when(Match::CtState(CtState::INVALID))), None),
            Self::Translation => {
                let nat = Chain::base(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT, Policy::Accept);
                (with(nat, Rule::new().then(Statement::Masquerade { fully_random: true })), None)
            }
            Self::LocalAddresses => (with(filter, Rule::new().when(Match::DaddrLocal(Op::Is))), None),
            Self::Random => (with(filter, Rule::new().when(Match::OneOf(2))), None),
            Self::Reject => (with(filter, Rule::new().then(Statement::Reject(Reject::PortUnreachable))), None),
            Self::Flowtable => {
                let (name, lo) = (Name::literal("tried"), IfName::new("lo").into_iter().collect());
                (with(filter, Rule::new().then(Statement::Offload(name.clone()))), Some((name, Flowtable::on(lo))))
            }
            _ => (filter, None),
        };
        Table {
            chains: [(Name::literal("tried"), chain)].into(),
            flowtables: flowtable.into_iter().collect(),
            ..Table::default()
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words().0)
    }
}

/// Those of `wanted` that the running kernel has not.
///
/// # Errors
/// When that cannot be found out.
pub fn missing(wanted: &[Feature]) -> Result<Vec<Feature>, KernelError> {
    let mut missing = Vec::new();
    for feature in wanted {
        if !feature.is_there()? {
            missing.push(*feature);
        }
    }
    Ok(missing)
}

/// Why nothing can be done on a kernel without `missing`, a line for each, with what to do and what to do `instead`; `None` when nothing is missing.
#[must_use]
pub fn refusal(missing: &[Feature], instead: impl Fn(Feature) -> &'static str) -> Option<String> {
    let line = |feature: &Feature| format!("this kernel has no {feature}: {}{}", feature.advice(), instead(*feature));
    (!missing.is_empty()).then(|| missing.iter().map(line).collect::<Vec<_>>().join("\n"))
}

/// Whether an error says that the kernel has not what was asked for.
fn is_missing(error: &KernelError) -> bool {
    matches!(error.cause, crate::error::Cause::Missing(_))
        || matches!(error.errno(), Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT))
}

/// Whether links of `kind` can be made. The question is one with no queue to send by, which the kernel refuses when it has found the kind
/// (`rtnl_create_link`), or before for want of its settings.
fn has_kind(kind: InfoKind) -> Result<bool, KernelError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::NumTxQueues(0));
    let object = format!("links of kind {kind}");
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
    let message = encode(&RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL);
    match Rtnl::open()?.request(&Operation { op: "ask for", object, message }) {
        Err(error) if error.errno() == Some(libc::EPERM) || is_missing(&error) => Err(error),
        _ => Ok(true),
    }
}
