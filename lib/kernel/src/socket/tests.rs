//! Datagrams as the kernel forms them, whole and torn.

use netlink_packet_core::{NLM_F_DUMP_INTR, NLMSG_DONE};

use super::*;
use crate::attribute::Writer;

const SEQUENCE: u32 = 7;

fn message(kind: u16, body: &[u8]) -> Message {
    Message { kind, flags: 0, body: body.to_vec() }
}

fn datagram(messages: &[(Message, u16)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (message, flags) in messages {
        write_message(&mut bytes, message, *flags, SEQUENCE);
    }
    bytes
}

/// An NLMSG_ERROR with `code`, about a message with `payload` bytes that it repeats unless it is capped.
fn error(code: i32, payload: usize, capped: bool, text: Option<&str>) -> Frame {
    let mut body = code.to_ne_bytes().to_vec();
    let length = u32::try_from(HEADER + payload).unwrap();
    body.extend_from_slice(&length.to_ne_bytes());
    body.resize(4 + HEADER, 0);
    if !capped {
        body.resize((4 + HEADER + payload).next_multiple_of(4), 0xaa);
    }
    let mut flags = if capped { NLM_F_CAPPED } else { 0 };
    if let Some(text) = text {
        flags |= NLM_F_ACK_TLVS;
        let mut writer = Writer::default();
        writer.put(2, &[1, 0, 0, 0]).put_str(1, text);
        body.extend(writer.finish());
    }
    Frame { kind: NLMSG_ERROR, flags, sequence: SEQUENCE, body }
}

#[test]
fn message_is_written_with_its_header_and_padded() {
    let bytes = datagram(&[(message(24, &[1, 2, 3, 4, 5]), NLM_F_REQUEST | NLM_F_ACK)]);
    assert_eq!(
        bytes,
        [
            // length, type, flags, sequence, port
            [21, 0, 0, 0],
            [24, 0, 5, 0],
            [7, 0, 0, 0],
            [0, 0, 0, 0],
            // body
            [1, 2, 3, 4],
            [5, 0, 0, 0],
        ]
        .concat()
    );
}

#[test]
fn datagram_is_split_into_its_messages() {
    let bytes = datagram(&[(message(24, &[1, 2, 3, 4, 5]), NLM_F_DUMP_INTR), (message(28, &[]), 0)]);
    let frames = split(&bytes).unwrap();
    let parts: Vec<_> =
        frames.iter().map(|frame| (frame.kind, frame.flags, frame.sequence, frame.body.len())).collect();
    assert_eq!(parts, [(24, NLM_F_DUMP_INTR, SEQUENCE, 5), (28, 0, SEQUENCE, 0)]);
    assert_eq!(frames[0].body, [1, 2, 3, 4, 5]);
    assert!(split(&[]).unwrap().is_empty());
}

#[test]
fn messages_without_meaning_are_left_out_and_a_loss_is_an_error() {
    let quiet = datagram(&[(message(NLMSG_NOOP, &[]), 0), (message(24, &[]), 0)]);
    assert_eq!(split(&quiet).unwrap().len(), 1);
    let lost = datagram(&[(message(24, &[]), 0), (message(NLMSG_OVERRUN, &[]), 0)]);
    assert!(matches!(split(&lost), Err(SocketError::Overrun)));
}

#[test]
fn length_that_does_not_fit_is_malformed_wherever_it_stands() {
    let whole = datagram(&[(message(24, &[1, 2, 3, 4]), 0), (message(28, &[5, 6, 7, 8]), 0)]);
    for length in 0..whole.len() {
        let cut = split(&whole[..length]);
        // A rest that is shorter than a header is padding.
        let clean = length < HEADER || (20..20 + HEADER).contains(&length);
        assert_eq!(cut.is_ok(), clean, "{length} bytes: {cut:?}");
    }
    for length in [0u32, 15, 21, u32::MAX] {
        let mut bytes = datagram(&[(message(24, &[1, 2, 3, 4]), 0)]);
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        assert!(matches!(split(&bytes), Err(SocketError::Malformed(_))), "length {length}");
    }
}

#[test]
fn error_code_zero_is_an_acknowledgement() {
    assert_eq!(acknowledgement(&error(0, 0, true, None)).unwrap(), None);
    let torn = Frame { body: vec![0, 0, 0], ..error(0, 0, true, None) };
    assert!(matches!(acknowledgement(&torn), Err(SocketError::Malformed(_))));
}

#[test]
fn refusal_carries_the_kernels_words_capped_or_not() {
    for (capped, payload) in [(true, 0), (true, 40), (false, 0), (false, 4), (false, 7), (false, 40)] {
        let frame = error(-libc::EINVAL, payload, capped, Some("VXLAN ID must be lower than 16777216"));
        let nack = acknowledgement(&frame).unwrap().unwrap();
        assert_eq!(nack.errno, libc::EINVAL);
        assert_eq!(nack.text.as_deref(), Some("VXLAN ID must be lower than 16777216"), "{capped} {payload}");
        let silent = acknowledgement(&error(-libc::EINVAL, payload, capped, None)).unwrap().unwrap();
        assert_eq!(silent, Nack { errno: libc::EINVAL, text: None });
    }
}

#[test]
fn torn_refusal_keeps_its_number_and_loses_its_words() {
    let whole = error(-libc::EPERM, 8, false, Some("not you"));
    for length in 4..whole.body.len() {
        let cut = Frame { body: whole.body[..length].to_vec(), ..whole.clone() };
        assert_eq!(acknowledgement(&cut).unwrap().unwrap().errno, libc::EPERM, "{length} bytes");
    }
    // A repeated message that claims to be longer than the frame.
    let mut lying = whole.clone();
    lying.body[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert_eq!(acknowledgement(&lying).unwrap().unwrap(), Nack { errno: libc::EPERM, text: None });
}

#[test]
fn code_without_an_opposite_is_an_error_all_the_same() {
    assert_eq!(acknowledgement(&error(i32::MIN, 0, true, None)).unwrap().unwrap().errno, libc::EIO);
}

#[test]
fn end_of_a_listing_may_carry_an_error() {
    let done = |body: &[u8]| Frame { kind: NLMSG_DONE, flags: 0, sequence: SEQUENCE, body: body.to_vec() };
    assert_eq!(listing::done_errno(&done(&0i32.to_ne_bytes())), 0);
    assert_eq!(listing::done_errno(&done(&(-libc::ENODEV).to_ne_bytes())), libc::ENODEV);
    assert_eq!(listing::done_errno(&done(&[])), 0);
    assert_eq!(listing::done_errno(&done(&i32::MIN.to_ne_bytes())), 0);
}

#[test]
fn as_many_messages_go_into_a_datagram_as_fit() {
    let small = message(24, &[0; 44]);
    let each = HEADER + 44;
    let many = vec![small; DATAGRAM / each + 5];
    assert_eq!(datagram_len(&many), DATAGRAM / each);
    assert_eq!(datagram_len(&many[..3]), 3);
    // One that is too large goes alone.
    let large = message(24, &vec![0; DATAGRAM + 1]);
    assert_eq!(datagram_len(&[large.clone(), large]), 1);
    assert_eq!(datagram_len(&[]), 1);
}

#[test]
fn sequence_numbers_begin_again_without_zero() {
    let mut socket = Socket::open(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
    assert_eq!(socket.next_sequence(), 1);
    socket.sequence = u32::MAX;
    assert_eq!(socket.next_sequence(), 1, "zero marks notifications");
    assert_ne!(socket.port().unwrap(), 0);
}
