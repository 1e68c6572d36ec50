//! `Pool`: the Pod addresses of one family, and which subnets nodes may take of them.
//!
//! Invariant: flannel's bounds and defaults hold where nodes take their subnets, and none where somebody else gives them out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cluster::Problem;
use netstate::{IpFamily, Prefix};

use crate::format::go_json::Object;

/// The Pod addresses of one family, and how they are cut into subnets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pool {
    /// All Pod addresses; where nodes take their subnets, /28 or larger, of IPv6 /124.
    pub network: Prefix,
    /// Length of one node's subnet, from the network's length + 2 to 30, of IPv6 to 126; where somebody else gives them out, they may
    /// have another one.
    pub subnet_len: u8,
    /// The first subnet a node may get.
    pub subnet_min: Prefix,
    /// The last subnet a node may get.
    pub subnet_max: Prefix,
}

impl Pool {
    /// The subnet with number `n`, counted from the network's first; `None` when it is not between the first and the
    /// last that a node may get.
    #[must_use]
    pub(crate) fn subnet(&self, n: u128) -> Option<Prefix> {
        self.network.subnet(self.subnet_len, n).filter(|subnet| self.may_lease(subnet))
    }

    /// The number of `subnet`, counted from the network's first.
    #[must_use]
    pub(crate) fn number(&self, subnet: &Prefix) -> u128 {
        let host_bits = u32::from(self.network.width().saturating_sub(self.subnet_len));
        self.network.number_of(subnet.addr()).and_then(|offset| offset.checked_shr(host_bits)).unwrap_or(0)
    }

    /// True when `prefix` is a part of the Pod network, of whatever length, and not all of it.
    #[must_use]
    pub(crate) fn has_subnet(&self, prefix: &Prefix) -> bool {
        self.network.covers(prefix) && *prefix != self.network
    }

    /// True when a node may get `subnet`: it has the right length and lies between the first and the last.
    #[must_use]
    pub(crate) fn may_lease(&self, subnet: &Prefix) -> bool {
        subnet.family() == self.network.family()
            && subnet.len() == self.subnet_len
            && (self.subnet_min..=self.subnet_max).contains(subnet)
    }

    /// Every subnet a node may get, in order.
    pub(crate) fn subnets(&self) -> impl Iterator<Item = Prefix> {
        let last = self.subnet_max;
        std::iter::successors(Some(self.subnet_min), Prefix::next).take_while(move |subnet| *subnet <= last)
    }
}

/// The members of one family's pool, and flannel's bounds for them.
pub(super) struct Fields {
    family: IpFamily,
    network: &'static str,
    len: &'static str,
    min: &'static str,
    max: &'static str,
    /// An accepted network.
    example: &'static str,
    /// An accepted first or last subnet.
    subnet: &'static str,
    /// Length of a node's subnet where the network has room for four of them.
    usual_len: u8,
    /// The longest length.
    longest: u8,
}

impl Fields {
    pub(super) const fn of(family: IpFamily) -> Self {
        match family {
            IpFamily::V4 => Self {
                family,
                network: "Network",
                len: "SubnetLen",
                min: "SubnetMin",
                max: "SubnetMax",
                example: "an IPv4 network such as 172.7.0.0/16",
                subnet: "the first address of a subnet such as 172.7.21.0",
                usual_len: 24,
                longest: 30,
            },
            IpFamily::V6 => Self {
                family,
                network: "IPv6Network",
                len: "IPv6SubnetLen",
                min: "IPv6SubnetMin",
                max: "IPv6SubnetMax",
                example: "an IPv6 network such as fd00:7::/48",
                subnet: "the first address of a subnet such as fd00:7:0:21::",
                usual_len: 64,
                longest: 126,
            },
        }
    }

    pub(super) const fn all(&self) -> [&'static str; 4] {
        [self.network, self.len, self.min, self.max]
    }

    fn take_addr(&self, field: &str, object: &mut Object, problems: &mut Vec<Problem>) -> Option<IpAddr> {
        match self.family {
            IpFamily::V4 => object.take::<Ipv4Addr>(field, self.subnet, problems).map(IpAddr::V4),
            IpFamily::V6 => object.take::<Ipv6Addr>(field, self.subnet, problems).map(IpAddr::V6),
        }
    }
}

/// Who says which subnets nodes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subnets {
    /// The nodes, out of what the configuration leaves them.
    Chosen,
    /// Somebody else, whatever it says of them.
    Assigned,
}

/// What a family's members say of subnets.
struct Said {
    len: Option<u64>,
    min: Option<IpAddr>,
    max: Option<IpAddr>,
}

/// Takes the addresses of one family.
pub(super) fn take_pool(
    fields: &Fields,
    subnets: Subnets,
    object: &mut Object,
    problems: &mut Vec<Problem>,
    notes: &mut Vec<String>,
) -> Option<Pool> {
    let known = problems.len();
    let network = take_network(fields, object, problems);
    let accepted = format!("a number from 2 to {}", fields.longest);
    let len = object.take(fields.len, &accepted, problems);
    let min = fields.take_addr(fields.min, object, problems);
    let max = fields.take_addr(fields.max, object, problems);
    let (network, said) = (network?, Said { len, min, max });
    let pool = match subnets {
        Subnets::Chosen => chosen(fields, network, &said, problems),
        Subnets::Assigned => assigned(fields, network, &said, notes),
    };
    pool.filter(|_| problems.len() == known)
}

/// Any network, in one subnet at least.
fn assigned(fields: &Fields, network: Prefix, said: &Said, notes: &mut Vec<String>) -> Option<Pool> {
    let said = [(fields.len, said.len.is_some()), (fields.min, said.min.is_some()), (fields.max, said.max.is_some())];
    let ignored = said.into_iter().filter(|(_, said)| *said);
    notes.extend(ignored.map(|(field, _)| format!("{field}: ignored: netd does not choose the subnets here")));
    let subnet_len = network.len().max(fields.usual_len);
    let subnet = |addr| Prefix::new(addr, subnet_len).ok();
    let (subnet_min, subnet_max) = (subnet(network.addr())?, subnet(network.last())?);
    Some(Pool { network, subnet_len, subnet_min, subnet_max })
}

/// A network with room for four subnets, and those of them that nodes may take.
fn chosen(fields: &Fields, network: Prefix, said: &Said, problems: &mut Vec<Problem>) -> Option<Pool> {
    let longest = fields.longest - 2;
    if network.len() > longest {
        let message = format!("{network}: network is too small. Minimum useful network prefix is /{longest}");
        problems.push(Problem::new(fields.network, message, format!("a network from /1 to /{longest}")));
        return None;
    }
    let len = subnet_len(fields, network, said.len, problems)?;
    let step = 1u128.checked_shl(u32::from(network.width().saturating_sub(len)));
    let default_min = step.and_then(|step| network.nth(step)).and_then(|addr| Prefix::new(addr, len).ok());
    let default_max = Prefix::new(network.last(), len).ok();
    let mut bound = |field, typed| bound(fields, (field, typed), network, len, problems);
    let min = bound(fields.min, said.min).or(default_min)?;
    let max = bound(fields.max, said.max).or(default_max)?;
    if min > max {
        let message = format!("{} is after {} {}", min.addr(), fields.max, max.addr());
        problems.push(Problem::new(fields.min, message, format!("an address up to {}", fields.max)));
    }
    Some(Pool { network, subnet_len: len, subnet_min: min, subnet_max: max })
}

fn take_network(fields: &Fields, object: &mut Object, problems: &mut Vec<Problem>) -> Option<Prefix> {
    let mut refuse = |message: String| {
        problems.push(Problem::new(fields.network, message, fields.example));
        None
    };
    let Some(raw) = object.take_raw(fields.network) else { return refuse("missing".to_owned()) };
    let text: Option<String> = serde_json::from_str(raw.get()).ok();
    let parsed = text.and_then(|text| text.parse::<Prefix>().ok()).filter(|found| found.family() == fields.family);
    match parsed {
        Some(network) if network.is_default() => refuse(format!("{network} is every address")),
        Some(network) if is_special(&network) => refuse(format!("no Pod is reached at the addresses of {network}")),
        Some(network) => Some(network),
        None => refuse(raw.get().to_owned()),
    }
}

/// Whether the kernel routes nothing to a network: that of no address, of the host itself, of one link, of groups, or of IPv4 in
/// the form of IPv6 (RFC 6890).
fn is_special(network: &Prefix) -> bool {
    const SPECIAL: [&str; 7] =
        ["0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "::/127", "fe80::/10", "ff00::/8", "::ffff:0:0/96"];
    SPECIAL.iter().filter_map(|text| text.parse::<Prefix>().ok()).any(|special| special.covers(network))
}

/// flannel: /24 in networks up to /22 (IPv6: /64, /62), else a quarter of the network.
fn subnet_len(fields: &Fields, network: Prefix, typed: Option<u64>, problems: &mut Vec<Problem>) -> Option<u8> {
    let (smallest, longest) = (network.len() + 2, fields.longest);
    let Some(len) = typed.filter(|len| *len != 0) else {
        return Some(smallest.max(fields.usual_len));
    };
    let message = match u8::try_from(len) {
        Ok(len) if (smallest..=longest).contains(&len) => return Some(len),
        Ok(len) if len < smallest => format!("{len}: network must be able to accommodate at least four subnets"),
        _ => format!("{len}: {} must be less than /{}", fields.len, longest + 1),
    };
    problems.push(Problem::new(fields.len, message, format!("a number from {smallest} to {longest}")));
    None
}

fn bound(
    fields: &Fields,
    (field, typed): (&str, Option<IpAddr>),
    network: Prefix,
    len: u8,
    problems: &mut Vec<Problem>,
) -> Option<Prefix> {
    let addr = typed.filter(|addr| !addr.is_unspecified())?;
    let subnet = Prefix::new(addr, len).ok()?;
    let message = if !network.contains(addr) {
        format!("{addr} is not in the range of {} {network}", fields.network)
    } else if subnet.addr() != addr {
        format!("{addr} is not on a {} boundary (/{len})", fields.len)
    } else {
        return Some(subnet);
    };
    problems.push(Problem::new(field, message, fields.subnet));
    None
}
