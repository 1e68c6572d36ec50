//! Messages as text, for golden tests.

use crate::socket::{Frame, Message};

/// One attribute a line: its type and its bytes in hex, or what it holds, indented.
pub(crate) fn tree(attributes: &[u8]) -> String {
    let mut text = String::new();
    branch(attributes, 0, &mut text);
    text
}

/// NLA_F_NESTED.
const NESTED: u16 = 0x8000;

fn branch(mut rest: &[u8], depth: usize, text: &mut String) {
    while let Some([l0, l1, t0, t1]) = rest.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([*l0, *l1]));
        let kind = u16::from_ne_bytes([*t0, *t1]);
        let value = &rest[4..length];
        text.push_str(&"  ".repeat(depth));
        if kind & NESTED == 0 {
            text.push_str(&format!("{kind}: {}\n", hex(value)));
        } else {
            text.push_str(&format!("{}:\n", kind & !NESTED));
            branch(value, depth + 1, text);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

/// Bytes in hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A message: type and flags, its fixed header of `header` bytes, its attributes.
pub(crate) fn message(message: &Message, header: usize) -> String {
    let Message { kind, flags, body } = message;
    format!("type {kind} flags {flags:#x}\n{}\n{}", hex(&body[..header]), tree(&body[header..]))
}

/// What the kernel would send: a frame of type `kind`.
pub(crate) fn frame(kind: u16, body: Vec<u8>) -> Frame {
    Frame { kind, flags: 0, sequence: 1, body }
}

/// Every beginning of `body` that is too short to be whole, as frames.
pub(crate) fn torn(kind: u16, body: &[u8]) -> impl Iterator<Item = Frame> {
    (0..body.len()).map(move |length| frame(kind, body[..length].to_vec()))
}
