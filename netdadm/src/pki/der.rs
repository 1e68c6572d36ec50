//! Keys of openssl and kubeadm as PKCS #8, the one form that ring takes.
//!
//! Pure. Invariant: only the frame is read and written (X.690 8.1, RFC 5958 2, RFC 5915 3); whether the key is one is ring's
//! to say.

/// INTEGER.
const INTEGER: u8 = 0x02;
/// OCTET STRING.
const OCTETS: u8 = 0x04;
/// OBJECT IDENTIFIER.
const OID: u8 = 0x06;
/// SEQUENCE.
const SEQUENCE: u8 = 0x30;
/// `[0]`, of the curve in RFC 5915.
const CURVE: u8 = 0xa0;

/// rsaEncryption with its NULL (RFC 8017, A.1).
const RSA: [u8; 13] = [OID, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 0x05, 0];
/// id-ecPublicKey (RFC 5480, 2.1.1).
const EC: [u8; 9] = [OID, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];

/// PKCS #8 around the key of `RSA PRIVATE KEY`.
pub(super) fn around_rsa(pkcs1: &[u8]) -> Vec<u8> {
    around(&RSA, pkcs1)
}

/// PKCS #8 around the key of `EC PRIVATE KEY`, which names its curve itself or beside it in `EC PARAMETERS`.
pub(super) fn around_ec(sec1: &[u8], parameters: Option<&[u8]>) -> Option<Vec<u8>> {
    let (_, inside, _) = element(sec1, SEQUENCE)?;
    let (_, _, rest) = element(inside, INTEGER)?;
    let (_, _, rest) = element(rest, OCTETS)?;
    let inside = element(rest, CURVE).map(|(_, curve, _)| curve);
    let (curve, ..) = element(inside.or(parameters)?, OID)?;
    Some(around(&[&EC, curve].concat(), sec1))
}

fn around(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
    let version = [INTEGER, 1, 0];
    let inside = [&version[..], &tagged(SEQUENCE, algorithm), &tagged(OCTETS, key)].concat();
    tagged(SEQUENCE, &inside)
}

/// `content` with its tag and length.
fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
    let mut whole = vec![tag];
    match (significant.as_slice(), u8::try_from(significant.len())) {
        ([], _) => whole.push(0),
        ([short @ 0..0x80], _) => whole.push(*short),
        (_, count) => {
            whole.push(0x80 | count.unwrap_or_default());
            whole.extend(&significant);
        }
    }
    whole.extend(content);
    whole
}

/// The first element of `bytes` when it is a `tag`: whole, what is inside, and what follows.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8], &[u8])> {
    let (found, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if length.len() > 4 {
            return None;
        }
        (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
    };
    let (inside, after) = rest.split_at_checked(length)?;
    let whole = bytes.get(..bytes.len() - after.len())?;
    (*found == tag).then_some((whole, inside, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_in_their_shortest_form_and_read_back() {
        for (size, head) in
            [(0, &[4, 0][..]), (127, &[4, 127]), (128, &[4, 0x81, 128]), (70_000, &[4, 0x83, 1, 17, 112])]
        {
            let content = vec![7; size];
            let whole = tagged(OCTETS, &content);
            assert_eq!(&whole[..head.len()], head);
            assert_eq!(element(&whole, OCTETS), Some((&whole[..], &content[..], &[][..])));
            assert_eq!(element(&whole[..whole.len() - 1], OCTETS), None, "{size}: cut off");
            assert_eq!(element(&whole, SEQUENCE), None);
        }
    }
}
