//! The detour of everything a link receives over another link.
//!
//! A `u32` filter that matches every packet, with the action `mirred` (include/uapi/linux/pkt_cls.h,
//! tc_act/tc_mirred.h). Invariant: nothing passes by the detour: the filter takes all protocols, comes first, and has
//! no condition.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::{INGRESS_HANDLE, TCA_KIND, TCA_OPTIONS, Tc};
use crate::attribute::{self, Writer};
use crate::error::KernelError;
use crate::rtnl::{Operation, Rtnl};
use crate::socket::{Frame, Message};

pub(super) const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
const TCA_U32_CLASSID: u16 = 1;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
/// TCA_EGRESS_REDIR: the packet is sent over the other link.
const EGRESS_REDIRECT: u32 = 1;
/// TC_ACT_STOLEN: and goes no further here.
const STOLEN: u32 = 4;
/// ETH_P_ALL (include/uapi/linux/if_ether.h).
const ALL_PROTOCOLS: u16 = 3;
/// Before every other filter, in the upper half of `tcm_info`.
const FIRST: u32 = 1 << 16;
/// Class `1:1`, which the reference writes; a redirected packet never comes to any.
const CLASS: u32 = 0x0001_0001;

/// `tc_u32_sel` with TC_U32_TERMINAL and one `tc_u32_key` without any bit to compare.
fn match_all() -> [u8; 32] {
    let mut selector = [0; 32];
    let [flags, _, keys, ..] = &mut selector;
    (*flags, *keys) = (1, 1);
    selector
}

/// `tc_mirred`: index, capabilities, action, reference counts, what to do, where.
fn mirred(to: u32) -> Vec<u8> {
    [0, 0, STOLEN, 0, 0, EGRESS_REDIRECT, to].iter().flat_map(|number| number.to_ne_bytes()).collect()
}

impl Rtnl {
    /// Sends everything that the link with `index` receives over the link with index `to`. The link needs the ingress
    /// hook.
    ///
    /// # Errors
    /// When either link does not exist or the kernel lacks `u32` or `mirred`.
    pub fn redirect(&mut self, index: u32, to: u32) -> Result<(), KernelError> {
        let info = FIRST | u32::from(ALL_PROTOCOLS.to_be());
        let tc = Tc { index, handle: 0, parent: INGRESS_HANDLE, info };
        let mut body = Writer::behind(tc.bytes());
        body.put_str(TCA_KIND, "u32").nest(TCA_OPTIONS, |options| {
            options.put(TCA_U32_SEL, &match_all()).put(TCA_U32_CLASSID, &CLASS.to_ne_bytes());
            options.nest(TCA_U32_ACT, |actions| {
                actions.nest(1, |action| {
                    action.put_str(TCA_ACT_KIND, "mirred").nest(TCA_ACT_OPTIONS, |parameters| {
                        parameters.put(TCA_MIRRED_PARMS, &mirred(to));
                    });
                });
            });
        });
        let message = Message { kind: RTM_NEWTFILTER, flags: NLM_F_CREATE | NLM_F_EXCL, body: body.finish() };
        let object = format!("of link with index {index} to link with index {to}");
        self.request(&Operation { op: "redirect packets", object, message }).map(drop)
    }

    /// Indexes of the links over which everything that the link with `index` receives is sent.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn redirects(&mut self, index: u32) -> Result<Vec<u32>, KernelError> {
        let body = Tc { index, handle: 0, parent: INGRESS_HANDLE, info: 0 }.bytes();
        let message = Message { kind: RTM_GETTFILTER, flags: 0, body };
        match self.socket.dump(&message) {
            Ok(frames) => Ok(frames.iter().filter_map(|frame| target(frame, index)).collect()),
            Err(fault) => Err(KernelError::new("list filters", format!("of link with index {index}"), fault)),
        }
    }
}

/// Where a filter that matches everything redirects to.
pub(crate) fn target(frame: &Frame, index: u32) -> Option<u32> {
    let (tc, attributes) = Tc::read(&frame.body).filter(|_| frame.kind == RTM_NEWTFILTER)?;
    let kind = attribute::find(attributes, TCA_KIND).map(attribute::text)?;
    let all_protocols = tc.info & 0xffff == u32::from(ALL_PROTOCOLS.to_be());
    if tc.index != index || kind != "u32" || !all_protocols {
        return None;
    }
    let options = attribute::find(attributes, TCA_OPTIONS)?;
    let selector = attribute::find(options, TCA_U32_SEL)?;
    // The mask of every key is empty.
    let matches_all = selector.get(16..)?.chunks_exact(16).all(|key| key.first_chunk() == Some(&[0; 4]));
    let actions = attribute::find(options, TCA_U32_ACT).filter(|_| matches_all)?;
    let first = attribute::iter(actions).map(|(_, action)| action).next()?;
    let parameters = attribute::find(attribute::find(first, TCA_ACT_OPTIONS)?, TCA_MIRRED_PARMS)?;
    let number = |at: usize| parameters.get(at..).and_then(attribute::u32);
    let is_mirred = attribute::find(first, TCA_ACT_KIND).map(attribute::text).as_deref() == Some("mirred");
    number(24).filter(|_| is_mirred && number(20) == Some(EGRESS_REDIRECT))
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;
    use crate::golden;

    /// A filter as the kernel lists it.
    fn filter(info: u32, kind: &str, selector: &[u8], action: &str, parameters: &[u8]) -> Frame {
        let mut body = Writer::behind(Tc { index: 7, handle: 1, parent: INGRESS_HANDLE, info }.bytes());
        body.put_str(TCA_KIND, kind).nest(TCA_OPTIONS, |options| {
            options.put(TCA_U32_SEL, selector).nest(TCA_U32_ACT, |actions| {
                actions.nest(1, |one| {
                    one.put_str(TCA_ACT_KIND, action).nest(TCA_ACT_OPTIONS, |of_action| {
                        of_action.put(TCA_MIRRED_PARMS, parameters);
                    });
                });
            });
        });
        golden::frame(RTM_NEWTFILTER, body.finish())
    }

    const ALL: u32 = FIRST | 0x0300;

    #[test]
    fn detour_is_read_as_it_is_made() {
        assert_eq!(target(&filter(ALL, "u32", &match_all(), "mirred", &mirred(9)), 7), Some(9));
        assert_eq!(golden::hex(&match_all()), format!("010001{}", "00".repeat(29)));
        assert_eq!(golden::hex(&mirred(9)), "00000000000000000400000000000000000000000100000009000000");
    }

    #[test]
    fn filter_that_lets_something_pass_is_no_detour() {
        assert_eq!(target(&filter(ALL, "u32", &match_all(), "mirred", &mirred(9)), 8), None, "another link");
        assert_eq!(target(&filter(FIRST | 0x0008, "u32", &match_all(), "mirred", &mirred(9)), 7), None, "IPv4 only");
        assert_eq!(target(&filter(ALL, "flower", &match_all(), "mirred", &mirred(9)), 7), None);
        assert_eq!(target(&filter(ALL, "u32", &match_all(), "gact", &mirred(9)), 7), None);
        let mut some = match_all();
        some[16] = 0xff;
        assert_eq!(target(&filter(ALL, "u32", &some, "mirred", &mirred(9)), 7), None, "a condition");
        let mut copy = mirred(9);
        copy[20] = 2;
        assert_eq!(target(&filter(ALL, "u32", &match_all(), "mirred", &copy), 7), None, "a copy");
    }

    #[test]
    fn torn_filter_is_no_detour() {
        let whole = filter(ALL, "u32", &match_all(), "mirred", &mirred(9));
        assert!(golden::torn(RTM_NEWTFILTER, &whole.body).all(|frame| target(&frame, 7).is_none()));
        assert_eq!(target(&golden::frame(45, whole.body), 7), None, "a removal");
    }
}
