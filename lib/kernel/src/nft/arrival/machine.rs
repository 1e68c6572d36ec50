//! The kernel's rule machine, run with a packet of which some bytes are known.
//!
//! Invariant: a byte that is not known for sure is unknown, and so is whatever is made of it; an instruction that is not known
//! makes its rule one that may hold.

use netstate::nft::{Name, Op, Verdict};

use super::packet::{Packet, REGISTERS};
use crate::attribute;
use crate::nft::expression::{Expression, Found, fib, slot_in};
use crate::nft::foreign::foreign_rule;
use crate::nft::rule;
use crate::nft::wire::{LIST_ELEM, number, text, value};

/// NFTA_MATCH_NAME, NFTA_MATCH_INFO.
const MATCH_NAME: u16 = 1;
const MATCH_INFO: u16 = 3;

/// What is known of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Truth {
    No,
    Perhaps,
    Yes,
}

impl Truth {
    const fn of(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }

    const fn not(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Perhaps => Self::Perhaps,
            Self::Yes => Self::No,
        }
    }

    /// Whether bytes of which some are known are `wanted`.
    pub(super) fn equal(bytes: &[Option<u8>], wanted: &[u8]) -> Self {
        let pairs = || bytes.iter().zip(wanted);
        if pairs().any(|(byte, wanted)| byte.is_some_and(|byte| byte != *wanted)) {
            return Self::No;
        }
        let all = bytes.len() >= wanted.len() && pairs().all(|(byte, _)| byte.is_some());
        if all { Self::Yes } else { Self::Perhaps }
    }
}

/// What a rule does when it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    Verdict(Verdict),
    Deny,
    /// The packet leaves the connection table's sight.
    Untrack,
    /// Something that is not understood, which may let it pass.
    Unclear,
    /// What a map says.
    Map(Name),
}

/// An instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Instruction {
    Native(Expression),
    /// The register from this slot on is, or is not, in a range of bytes; open where there is no bound.
    Range {
        from: u8,
        low: Option<Vec<u8>>,
        high: Option<Vec<u8>>,
        inverted: bool,
    },
    /// A match of iptables with its data.
    Match(String, Vec<u8>),
    /// A target of iptables.
    Target(String),
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) handle: u64,
    pub(super) comment: Option<String>,
    program: Vec<Instruction>,
}

/// Whether the bytes that a register starts with are in a set.
pub(super) type Contains<'a, E> = dyn FnMut(&Name, &[Option<u8>]) -> Result<Truth, E> + 'a;

/// What a rule comes to: whether it holds, what it does then, and the register that a map is asked with.
pub(super) struct Outcome {
    pub(super) truth: Truth,
    pub(super) effects: Vec<Effect>,
    pub(super) key: Vec<Option<u8>>,
}

impl Rule {
    /// From the attributes of its message.
    pub(super) fn read(attributes: &[u8]) -> Option<Self> {
        let list = attribute::find(attributes, rule::EXPRESSIONS).unwrap_or_default();
        let elements = attribute::iter(list).filter(|(kind, _)| *kind == LIST_ELEM);
        let program = elements.map(|(_, element)| Instruction::read(element)).collect();
        let handle = u64::from_be_bytes(attribute::find(attributes, rule::HANDLE)?.try_into().ok()?);
        Some(Self { handle, comment: foreign_rule(attributes)?.comment, program })
    }

    /// Runs it; `elements` says whether a register's bytes are in a set.
    pub(super) fn run<E>(&self, packet: &Packet<'_>, elements: &mut Contains<'_, E>) -> Result<Outcome, E> {
        let mut state =
            State { registers: vec![None; REGISTERS], truth: Truth::Yes, effects: Vec::new(), key: Vec::new() };
        for instruction in &self.program {
            match instruction {
                Instruction::Native(Expression::Lookup { set, from, to, inverted }) => {
                    let key = state.register(*from);
                    match to {
                        Found::Nothing => {
                            let found = elements(set, &key)?;
                            state.hold(if *inverted { found.not() } else { found });
                        }
                        Found::Verdict => {
                            state.effects.push(Effect::Map(set.clone()));
                            state.key = key;
                        }
                        Found::Slot(_) => {
                            state.hold(Truth::Perhaps);
                            state.forget();
                        }
                    }
                }
                Instruction::Native(expression) => state.native(expression, packet),
                Instruction::Range { from, low, high, inverted } => {
                    let within = range(&state.register(*from), low.as_deref(), high.as_deref());
                    state.hold(if *inverted { within.not() } else { within });
                }
                Instruction::Match(name, info) => state.hold(matches(name, info, packet)),
                Instruction::Target(name) => state.effects.extend(target(name)),
            }
            if state.truth == Truth::No {
                break;
            }
        }
        let State { truth, effects, key, .. } = state;
        Ok(Outcome { truth, effects, key })
    }
}

impl Instruction {
    fn read(element: &[u8]) -> Self {
        let data = attribute::find(element, 2).unwrap_or_default();
        let extension = || text(data, MATCH_NAME).unwrap_or_default();
        match text(element, 1).unwrap_or_default().as_str() {
            "match" => {
                Self::Match(extension(), attribute::find(data, MATCH_INFO).map(<[u8]>::to_vec).unwrap_or_default())
            }
            "target" => Self::Target(extension()),
            kind => ordered(kind, data).unwrap_or_else(|| Self::Native(Expression::read(element))),
        }
    }
}

/// NFT_CMP_LT, NFT_CMP_LTE, NFT_CMP_GT and NFT_CMP_GTE, of which the strict ones exclude the bound; and a range.
fn ordered(kind: &str, data: &[u8]) -> Option<Instruction> {
    let bytes = |kind| Some(value(attribute::find(data, kind)?)?.to_vec());
    let (from, op) = (slot_in(data, 1)?, number(data, 2)?);
    let (low, high, inverted) = match (kind, op) {
        ("cmp", 2) => (Some(bytes(3)?), None, true),
        ("cmp", 3) => (None, Some(bytes(3)?), false),
        ("cmp", 4) => (None, Some(bytes(3)?), true),
        ("cmp", 5) => (Some(bytes(3)?), None, false),
        ("range", 0 | 1) => (Some(bytes(3)?), Some(bytes(4)?), op == 1),
        _ => return None,
    };
    Some(Instruction::Range { from, low, high, inverted })
}

/// Whether a register is between two bounds, which are compared byte by byte.
fn range(register: &[Option<u8>], low: Option<&[u8]>, high: Option<&[u8]>) -> Truth {
    let known = |bound: &[u8]| register.iter().take(bound.len()).copied().collect::<Option<Vec<u8>>>();
    let side = |bound: Option<&[u8]>, holds: fn(&[u8], &[u8]) -> bool| {
        bound.map_or(Some(true), |bound| known(bound).map(|bytes| holds(&bytes, bound)))
    };
    match (side(low, |bytes, bound| bytes >= bound), side(high, |bytes, bound| bytes <= bound)) {
        (Some(low), Some(high)) => Truth::of(low && high),
        _ => Truth::Perhaps,
    }
}

/// A machine under way.
struct State {
    registers: Vec<Option<u8>>,
    truth: Truth,
    effects: Vec<Effect>,
    key: Vec<Option<u8>>,
}

impl State {
    fn hold(&mut self, condition: Truth) {
        self.truth = match (self.truth, condition) {
            (Truth::No, _) | (_, Truth::No) => Truth::No,
            (Truth::Yes, Truth::Yes) => Truth::Yes,
            _ => Truth::Perhaps,
        };
    }

    fn register(&self, slot: u8) -> Vec<Option<u8>> {
        self.registers.get(usize::from(slot) * 4..).unwrap_or_default().to_vec()
    }

    /// Stores bytes; the kernel fills the last slot with zeros.
    fn store(&mut self, slot: u8, bytes: &[Option<u8>]) {
        let padding = bytes.len().next_multiple_of(4).saturating_sub(bytes.len());
        let bytes = bytes.iter().copied().chain(std::iter::repeat_n(Some(0), padding));
        let place = self.registers.iter_mut().skip(usize::from(slot) * 4);
        place.zip(bytes).for_each(|(place, byte)| *place = byte);
    }

    fn forget(&mut self) {
        self.registers.fill(None);
    }

    fn native(&mut self, expression: &Expression, packet: &Packet<'_>) {
        match expression {
            Expression::Meta { key, to } => self.store(*to, &packet.meta(*key)),
            Expression::Ct { key, direction: None, to } => self.store(*to, &packet.ct(*key)),
            Expression::Fib { flags, result: fib::ADDRTYPE, to } => self.store(*to, &Packet::address_type(*flags)),
            Expression::Payload { base, offset, length, to } => {
                self.store(*to, &packet.payload(*base, *offset, *length));
            }
            // A packet that is followed is IPv6's header and what it carries.
            Expression::HasHeader { to, .. } => self.store(*to, &[Some(0)]),
            Expression::Bitwise { from, to, mask, xor } => {
                let bytes = self.register(*from);
                let masked: Vec<Option<u8>> = bytes
                    .iter()
                    .zip(mask.iter().zip(xor))
                    .map(|(byte, (mask, xor))| if *mask == 0 { Some(*xor) } else { byte.map(|byte| byte & mask ^ xor) })
                    .collect();
                self.store(*to, &masked);
            }
            Expression::Compare { from, op, data } => {
                let equal = Truth::equal(&self.register(*from), data);
                self.hold(if *op == Op::Is { equal } else { equal.not() });
            }
            Expression::Immediate { to, data } => {
                let bytes: Vec<Option<u8>> = data.iter().copied().map(Some).collect();
                self.store(*to, &bytes);
            }
            Expression::Verdict(Verdict::Drop) | Expression::Reject { .. } => self.effects.push(Effect::Deny),
            Expression::Verdict(verdict) => self.effects.push(Effect::Verdict(verdict.clone())),
            Expression::Notrack => self.effects.push(Effect::Untrack),
            Expression::Counter | Expression::MetaSet { .. } => {}
            Expression::Unknown(name) => self.unknown(name),
            _ => {
                self.hold(Truth::Perhaps);
                self.forget();
            }
        }
    }

    fn unknown(&mut self, name: &str) {
        match name {
            "counter" | "log" | "last" => {}
            "reject" => self.effects.push(Effect::Deny),
            "queue" | "tproxy" | "synproxy" | "fwd" | "immediate" => self.effects.push(Effect::Unclear),
            _ => {
                self.hold(Truth::Perhaps);
                self.forget();
            }
        }
    }
}

/// What iptables' target does.
fn target(name: &str) -> Option<Effect> {
    match name {
        "REJECT" | "DROP" => Some(Effect::Deny),
        "LOG" | "NFLOG" | "ULOG" | "AUDIT" | "MARK" | "CONNMARK" => None,
        // CT with --notrack and without.
        "CT" | "NOTRACK" => Some(Effect::Untrack),
        _ => Some(Effect::Unclear),
    }
}

/// Whether a match of iptables holds.
fn matches(name: &str, info: &[u8], packet: &Packet<'_>) -> Truth {
    let found = match name {
        "comment" => Some(true),
        "conntrack" => packet.state().and_then(|state| conntrack(info, state)),
        "state" => packet.state().and_then(|state| Some(attribute::u32(info)? & state != 0)),
        "udp" => udp(info, packet),
        _ => None,
    };
    found.map_or(Truth::Perhaps, Truth::of)
}

/// `struct xt_conntrack_mtinfo3` that asks for states only: match_flags, invert_flags and state_mask stand at 146.
fn conntrack(info: &[u8], state: u32) -> Option<bool> {
    let field = |at: usize| info.get(at..)?.first_chunk::<2>().map(|bytes| u16::from_ne_bytes(*bytes));
    let (asked, inverted, states) = (field(146)?, field(148)?, field(150)?);
    let only = asked == 1 && inverted & !1 == 0;
    only.then_some((u32::from(states) & state != 0) != (inverted & 1 != 0))
}

/// `struct xt_udp`: a range of source ports, one of destination ports, and what is inverted.
fn udp(info: &[u8], packet: &Packet<'_>) -> Option<bool> {
    let field = |at: usize| info.get(at..)?.first_chunk::<2>().map(|bytes| u16::from_ne_bytes(*bytes));
    let (sources, ports) = (field(0)?..=field(2)?, field(4)?..=field(6)?);
    let inverted = *info.get(8)?;
    let destination = ports.contains(&packet.arrival.port?) != (inverted & 2 != 0);
    // The source port is any.
    if destination && (sources != (0..=u16::MAX) || inverted & 1 != 0) { None } else { Some(destination) }
}

#[cfg(test)]
mod tests {
    use super::super::Arrival;
    use super::super::packet::{Tracking, known};
    use super::*;
    use crate::nft::expression::{base, meta};

    impl Rule {
        pub(in crate::nft::arrival) fn of(handle: u64, program: &[Expression]) -> Self {
            let program = program.iter().cloned().map(Instruction::Native).collect();
            Self { handle, comment: None, program }
        }
    }

    fn arrival() -> Arrival {
        let to = [10, 4, 7, 21].into();
        Arrival { link: ("eth0".parse().unwrap(), 2), from: None, to, protocol: 17, port: Some(8472) }
    }

    fn truth(program: &[Expression]) -> Truth {
        let arrival = arrival();
        let packet = Packet { arrival: &arrival, tracking: Tracking::Tracked };
        let none = &mut |_: &Name, _: &[Option<u8>]| Ok::<_, std::convert::Infallible>(Truth::Perhaps);
        let Ok(outcome) = Rule::of(1, program).run(&packet, none);
        outcome.truth
    }

    const fn load(base: u32, offset: u32, length: u32) -> Expression {
        Expression::Payload { base, offset, length, to: 0 }
    }

    fn is(data: &[u8]) -> Expression {
        Expression::Compare { from: 0, op: Op::Is, data: data.to_vec() }
    }

    #[test]
    fn condition_is_known_as_far_as_its_bytes_are() {
        let meta = |key| Expression::Meta { key, to: 0 };
        let mask = |mask: &[u8]| Expression::Bitwise { from: 0, to: 0, mask: mask.to_vec(), xor: vec![0; mask.len()] };
        for (program, wanted) in [
            (vec![meta(meta::L4PROTO), is(&[17])], Truth::Yes),
            (vec![meta(meta::L4PROTO), is(&[6])], Truth::No),
            (vec![meta(meta::MARK), is(&[1, 0, 0, 0])], Truth::Perhaps),
            // Of a part of the header: the network of the destination, the type of service, the source.
            (vec![load(base::NETWORK, 16, 4), mask(&[255, 255, 255, 0]), is(&[10, 4, 7, 0])], Truth::Yes),
            (vec![load(base::NETWORK, 1, 1), is(&[0])], Truth::Perhaps),
            (vec![load(base::NETWORK, 12, 4), is(&[10, 4, 7, 22])], Truth::Perhaps),
            (vec![load(base::NETWORK, 12, 4), mask(&[0; 4]), is(&[0; 4])], Truth::Yes),
            (vec![load(base::TRANSPORT, 0, 4), is(&[0x80, 0, 0x21, 0x18])], Truth::Perhaps),
            (vec![load(base::TRANSPORT, 0, 4), is(&[0x80, 0, 0x21, 0x19])], Truth::No),
            // One condition that does not hold is enough, wherever it stands.
            (vec![meta(meta::MARK), is(&[1, 0, 0, 0]), meta(meta::L4PROTO), is(&[6])], Truth::No),
            (vec![meta(meta::L4PROTO), Expression::Unknown("limit".to_owned()), is(&[6])], Truth::Perhaps),
            (vec![Expression::Unknown("log".to_owned()), Expression::Counter], Truth::Yes),
        ] {
            assert_eq!(truth(&program), wanted, "{program:?}");
        }
    }

    #[test]
    fn bounds_are_compared_byte_by_byte() {
        let port = known(&8472u16.to_be_bytes());
        let bytes = |port: u16| port.to_be_bytes();
        for (low, high, wanted) in [
            (Some(8000), Some(9000), Truth::Yes),
            (Some(8472), None, Truth::Yes),
            (Some(8473), None, Truth::No),
            (None, Some(8471), Truth::No),
            (None, None, Truth::Yes),
        ] {
            let (low, high) = (low.map(bytes), high.map(bytes));
            let bound = |side: &Option<[u8; 2]>| side.map(|side| side.to_vec());
            assert_eq!(range(&port, bound(&low).as_deref(), bound(&high).as_deref()), wanted, "{low:?} {high:?}");
        }
        assert_eq!(range(&[None, Some(1)], Some(&[0, 1]), None), Truth::Perhaps);
    }

    #[test]
    fn matches_of_iptables_are_read_as_far_as_they_are_known() {
        let arrival = arrival();
        let packet = Packet { arrival: &arrival, tracking: Tracking::Tracked };
        let states =
            |flags: [u16; 3]| [vec![0; 146], flags.iter().flat_map(|flag| flag.to_ne_bytes()).collect()].concat();
        let ports = |range: [u16; 4], inverted: u8| {
            [range.iter().flat_map(|port| port.to_ne_bytes()).collect(), vec![inverted, 0]].concat()
        };
        for (name, info, wanted) in [
            ("comment", vec![0; 256], Truth::Yes),
            ("conntrack", states([1, 0, 0x6]), Truth::No),
            ("conntrack", states([1, 0, 0xe]), Truth::Yes),
            ("conntrack", states([1, 1, 0x6]), Truth::Yes),
            ("conntrack", states([3, 0, 0x6]), Truth::Perhaps),
            ("state", 0x6u32.to_ne_bytes().to_vec(), Truth::No),
            ("udp", ports([0, 65535, 8472, 8472], 0), Truth::Yes),
            ("udp", ports([0, 65535, 8472, 8472], 2), Truth::No),
            ("udp", ports([53, 53, 8472, 8472], 0), Truth::Perhaps),
            ("udp", ports([53, 53, 53, 53], 0), Truth::No),
            ("udp", vec![], Truth::Perhaps),
            ("recent", vec![1; 8], Truth::Perhaps),
        ] {
            assert_eq!(matches(name, &info, &packet), wanted, "{name} {info:?}");
        }
        let unclear = Packet { tracking: Tracking::Perhaps, ..packet };
        assert_eq!(matches("conntrack", &states([1, 0, 0x6]), &unclear), Truth::Perhaps);
        let untracked = Packet { tracking: Tracking::Untracked, ..packet };
        assert_eq!(matches("conntrack", &states([1, 0, 0x6]), &untracked), Truth::No);
        assert_eq!(matches("conntrack", &states([1, 0, 0x40]), &untracked), Truth::Yes);
    }
}
