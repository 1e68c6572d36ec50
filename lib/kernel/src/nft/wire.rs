//! Messages of the nftables subsystem: header, numbers, and the parts that rules and elements share.
//!
//! Constants are those of include/uapi/linux/netfilter/nf_tables.h. Numbers in attributes are in network order.

use netlink_packet_core::NLM_F_REQUEST;
use netstate::nft::{Name, Verdict};

use crate::attribute::{self, Writer};
use crate::socket::{Frame, Message};

/// NFNL_SUBSYS_NFTABLES, the high byte of every message type.
pub(super) const SUBSYSTEM: u16 = 10 << 8;
/// Bytes of `nfgenmsg` (include/uapi/linux/netfilter/nfnetlink.h).
const HEADER: usize = 4;

/// Message types (enum nf_tables_msg_types).
pub(super) mod kind {
    pub(in crate::nft) const NEWTABLE: u16 = 0;
    pub(in crate::nft) const GETTABLE: u16 = 1;
    pub(in crate::nft) const DELTABLE: u16 = 2;
    pub(in crate::nft) const NEWCHAIN: u16 = 3;
    pub(in crate::nft) const GETCHAIN: u16 = 4;
    pub(in crate::nft) const DELCHAIN: u16 = 5;
    pub(in crate::nft) const NEWRULE: u16 = 6;
    pub(in crate::nft) const GETRULE: u16 = 7;
    pub(in crate::nft) const DELRULE: u16 = 8;
    pub(in crate::nft) const NEWSET: u16 = 9;
    pub(in crate::nft) const GETSET: u16 = 10;
    pub(in crate::nft) const DELSET: u16 = 11;
    pub(in crate::nft) const NEWSETELEM: u16 = 12;
    pub(in crate::nft) const GETSETELEM: u16 = 13;
    pub(in crate::nft) const DELSETELEM: u16 = 14;
    pub(in crate::nft) const NEWGEN: u16 = 15;
    pub(in crate::nft) const GETGEN: u16 = 16;
    pub(in crate::nft) const NEWFLOWTABLE: u16 = 22;
    pub(in crate::nft) const GETFLOWTABLE: u16 = 23;
    pub(in crate::nft) const DELFLOWTABLE: u16 = 24;
}

/// NFTA_LIST_ELEM.
pub(super) const LIST_ELEM: u16 = 1;

const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

/// enum nft_verdicts, and NF_DROP and NF_ACCEPT of include/uapi/linux/netfilter.h.
const NF_DROP: i32 = 0;
const NF_ACCEPT: i32 = 1;
const NFT_JUMP: i32 = -3;
const NFT_GOTO: i32 = -4;
const NFT_RETURN: i32 = -5;

/// A message about an object of `family` (0: of every family), with what `fill` writes.
pub(super) fn message(kind: u16, flags: u16, family: u8, fill: impl FnOnce(&mut Writer)) -> Message {
    let mut body = Writer::behind(vec![family, 0, 0, 0]);
    fill(&mut body);
    Message { kind: SUBSYSTEM | kind, flags: NLM_F_REQUEST | flags, body: body.finish() }
}

/// The attributes of a message of type `kind`, with its family; `None` for any other message.
pub(super) fn payload(frame: &Frame, kind: u16) -> Option<(u8, &[u8])> {
    if frame.kind != SUBSYSTEM | kind {
        return None;
    }
    Some((*frame.body.first()?, frame.body.get(HEADER..)?))
}

/// A 32-bit number in network order.
pub(super) fn be32(value: &[u8]) -> Option<u32> {
    value.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes))
}

/// The number in attribute `kind`.
pub(super) fn number(attributes: &[u8], kind: u16) -> Option<u32> {
    attribute::find(attributes, kind).and_then(be32)
}

/// The number of 64 bits in attribute `kind`.
pub(super) fn number_64(attributes: &[u8], kind: u16) -> Option<u64> {
    let value = attribute::find(attributes, kind)?.first_chunk::<8>()?;
    Some(u64::from_be_bytes(*value))
}

/// The text in attribute `kind`.
pub(super) fn text(attributes: &[u8], kind: u16) -> Option<String> {
    attribute::find(attributes, kind).map(attribute::text)
}

/// The name in attribute `kind`.
pub(super) fn name(attributes: &[u8], kind: u16) -> Option<Name> {
    text(attributes, kind).map(Name::observed)
}

/// Writes a 32-bit number.
pub(super) fn put_number(writer: &mut Writer, kind: u16, number: u32) {
    writer.put(kind, &number.to_be_bytes());
}

/// Writes bytes as data (NFTA_DATA_VALUE).
pub(super) fn put_value(writer: &mut Writer, kind: u16, value: &[u8]) {
    writer.nest(kind, |data| {
        data.put(DATA_VALUE, value);
    });
}

/// Writes a verdict as data (NFTA_DATA_VERDICT).
pub(super) fn put_verdict(writer: &mut Writer, kind: u16, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Accept => (NF_ACCEPT, None),
        Verdict::Drop => (NF_DROP, None),
        Verdict::Return => (NFT_RETURN, None),
        Verdict::Jump(chain) => (NFT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (NFT_GOTO, Some(chain)),
    };
    writer.nest(kind, |data| {
        data.nest(DATA_VERDICT, |verdict| {
            verdict.put(VERDICT_CODE, &code.to_be_bytes());
            if let Some(chain) = chain {
                verdict.put_str(VERDICT_CHAIN, chain.as_str());
            }
        });
    });
}

/// The bytes in a data attribute.
pub(super) fn value(data: &[u8]) -> Option<&[u8]> {
    attribute::find(data, DATA_VALUE)
}

/// The verdict in a data attribute, if it is one of ours.
pub(super) fn verdict(data: &[u8]) -> Option<Verdict> {
    let verdict = attribute::find(data, DATA_VERDICT)?;
    let code = attribute::find(verdict, VERDICT_CODE)?;
    match i32::from_be_bytes(*code.first_chunk::<4>()?) {
        NF_ACCEPT => Some(Verdict::Accept),
        NF_DROP => Some(Verdict::Drop),
        NFT_RETURN => Some(Verdict::Return),
        NFT_JUMP => Some(Verdict::Jump(name(verdict, VERDICT_CHAIN)?)),
        NFT_GOTO => Some(Verdict::Goto(name(verdict, VERDICT_CHAIN)?)),
        _ => None,
    }
}

/// A comment as user data: type 0, length with the NUL, text (NFTNL_UDATA_RULE_COMMENT and
/// NFTNL_UDATA_SET_ELEM_COMMENT of libnftnl's udata.h).
pub(super) fn comment_bytes(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len().saturating_add(1)).unwrap_or(u8::MAX);
    let mut bytes = vec![0, length];
    bytes.extend_from_slice(comment.as_bytes());
    bytes.push(0);
    bytes
}

/// NFTNL_UDATA_COMMENT_MAXLEN.
const COMMENT_MAX: usize = 128;

/// Refuses a comment that would not be read back as it was written, or that the nft tool could not show.
pub(super) fn check_comment(comment: Option<&str>) -> Result<(), String> {
    let fits = |text: &str| text.len() <= COMMENT_MAX && !text.contains(|c: char| c == '"' || c.is_control());
    if comment.is_none_or(fits) {
        return Ok(());
    }
    Err(format!("comment {comment:?} is not at most {COMMENT_MAX} bytes without quotes and control characters"))
}

/// The comment in user data, which is a list of type, length, value, a byte each for the first two.
pub(super) fn comment(mut bytes: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = bytes {
        let (value, behind) = rest.split_at_checked(usize::from(*length))?;
        if *kind == 0 {
            return Some(attribute::text(value));
        }
        bytes = behind;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comment_is_a_typed_piece_of_user_data() {
        assert_eq!(comment_bytes("ab"), [0, 3, b'a', b'b', 0]);
        assert_eq!(comment(&comment_bytes("netd: Pods")).as_deref(), Some("netd: Pods"));
        // Behind another piece, and none at all.
        assert_eq!(comment(&[&[5, 2, 1, 1][..], &comment_bytes("x")].concat()).as_deref(), Some("x"));
        for none in [&[][..], &[0], &[5, 0], &[0, 9, b'x']] {
            assert_eq!(comment(none), None, "{none:?}");
        }
    }

    #[test]
    fn comment_that_the_tool_could_not_show_is_refused() {
        for bad in ["a \"quote\"", "a\nline", "\u{7f}", &"ä".repeat(65)] {
            assert!(check_comment(Some(bad)).is_err(), "{bad:?}");
        }
        for good in ["", "it's", &"ä".repeat(64)] {
            assert!(check_comment(Some(good)).is_ok(), "{good:?}");
        }
        assert!(check_comment(None).is_ok());
    }

    #[test]
    fn verdicts_are_read_as_they_are_written() {
        let aside = || Name::new("aside").unwrap();
        for wanted in [Verdict::Accept, Verdict::Drop, Verdict::Return, Verdict::Jump(aside()), Verdict::Goto(aside())]
        {
            let mut writer = Writer::default();
            put_verdict(&mut writer, 2, &wanted);
            let bytes = writer.finish();
            assert_eq!(verdict(attribute::find(&bytes, 2).unwrap()), Some(wanted));
        }
        // To a queue (3): a verdict, and none of ours.
        let mut queue = Writer::default();
        queue.nest(DATA_VERDICT, |verdict| {
            verdict.put(VERDICT_CODE, &3i32.to_be_bytes());
        });
        assert_eq!(verdict(&queue.finish()), None);
        assert_eq!(verdict(&[]), None);
    }

    #[test]
    fn payload_is_of_its_kind_and_has_its_header() {
        let frame = |kind: u16, body: &[u8]| Frame { kind, flags: 0, sequence: 1, body: body.to_vec() };
        let rule = SUBSYSTEM | kind::NEWRULE;
        assert_eq!(payload(&frame(rule, &[2, 0, 0, 0, 9]), kind::NEWRULE), Some((2, &[9][..])));
        assert_eq!(payload(&frame(rule, &[2, 0, 0]), kind::NEWRULE), None);
        assert_eq!(payload(&frame(rule, &[]), kind::NEWRULE), None);
        assert_eq!(payload(&frame(kind::NEWRULE, &[2, 0, 0, 0]), kind::NEWRULE), None, "another subsystem");
        assert_eq!(be32(&[0, 0, 1, 2]), Some(258));
        assert_eq!(be32(&[0, 0, 1]), None);
    }
}
