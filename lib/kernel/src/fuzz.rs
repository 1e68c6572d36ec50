//! What the kernel says: the parsers for fuzzing, each by the name of its corpus in `fuzz/`.
//!
//! The kernel is believed, its messages are not: other versions of it, and other programs that send on a netlink socket, form them
//! otherwise. Invariant: every input is answered, by a value or by an error, and nothing is read beyond the end of a message.

use crate::socket::{acknowledgement, split};
use crate::{attribute, ipvs, link, route};

/// Every parser by the name of its corpus.
#[allow(unreachable_pub, clippy::type_complexity, reason = "public with the feature, and a pair is no noun")]
pub const TARGETS: [(&str, fn(&[u8])); 3] = [("attributes", attributes), ("datagram", datagram), ("ip_vs", ip_vs)];

fn datagram(input: &[u8]) {
    for frame in split(input).unwrap_or_default() {
        assert!(frame.body.len() <= input.len());
        let _ = acknowledgement(&frame);
        let _ = link::state(&frame);
        let _ = route::parse(&frame);
    }
}

fn attributes(input: &[u8]) {
    fn within(bytes: &[u8], depth: usize) {
        let mut length = 0;
        for (_, value) in attribute::iter(bytes) {
            length += value.len();
            let (_, _, _) = (attribute::text(value), attribute::u32(value), attribute::be16(value));
            if depth > 0 {
                within(value, depth - 1);
            }
        }
        assert!(length <= bytes.len(), "values of {length} bytes in {}", bytes.len());
    }
    within(input, 4);
}

fn ip_vs(input: &[u8]) {
    ipvs::fuzz_entries(input);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn whatever_the_kernel_says_is_answered() {
        for (name, target) in TARGETS {
            ::fuzz::check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name), target);
        }
    }
}
