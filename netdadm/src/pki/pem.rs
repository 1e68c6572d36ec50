//! PEM (RFC 7468): blocks of base64 between lines that name them.
//!
//! Pure. Invariant: text outside of blocks is skipped, whatever openssl wrote there; a block that is damaged is a flaw with
//! its line, and no message has a byte of a block.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::Flaw;

/// One block.
pub(super) struct Block {
    /// What it is, `CERTIFICATE`.
    pub(super) label: String,
    /// True when a header says that a passphrase protects it (RFC 1421, 4.6.1.1).
    pub(super) encrypted: bool,
    /// What it says.
    pub(super) der: Vec<u8>,
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} of {} bytes)", self.label, self.der.len())
    }
}

/// All blocks of `bytes` in their order.
///
/// # Errors
/// The first line at which a block is none.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Block>, Flaw> {
    let text = String::from_utf8_lossy(bytes);
    let mut blocks = Vec::new();
    let mut lines = text.lines().map(str::trim).enumerate();
    while let Some((number, line)) = lines.next() {
        let Some(label) = line.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----")) else {
            continue;
        };
        let end = format!("-----END {label}-----");
        let (mut base64, mut encrypted, mut ended) = (String::new(), false, false);
        for (_, line) in lines.by_ref() {
            if line == end {
                ended = true;
                break;
            }
            if line.contains(':') {
                encrypted |= line.starts_with("Proc-Type:") && line.ends_with("ENCRYPTED");
            } else {
                base64.push_str(line);
            }
        }
        // What is encrypted is refused by its name before anybody asks whether the rest is whole.
        let der = BASE64_STANDARD.decode(base64.as_bytes());
        let der = if encrypted { der.unwrap_or_default() } else { der.map_err(|_| Flaw::NoPem(number + 1))? };
        if !ended {
            return Err(Flaw::NoPem(number + 1));
        }
        blocks.push(Block { label: label.to_owned(), encrypted, der });
    }
    Ok(blocks)
}

/// What `text` says in base64, whose white space is skipped.
pub(crate) fn base64(text: &str) -> Option<Vec<u8>> {
    let plain: String = text.split_whitespace().collect();
    BASE64_STANDARD.decode(plain).ok()
}

/// The one block `label` of `bytes`; others may stand beside it.
///
/// # Errors
/// When there is none, or there are several.
pub(super) fn single(bytes: &[u8], label: &'static str) -> Result<Vec<u8>, Flaw> {
    let mut found: Vec<Block> = parse(bytes)?.into_iter().filter(|block| block.label == label).collect();
    match (found.pop(), found.len()) {
        (Some(block), 0) => Ok(block.der),
        (None, _) => Err(Flaw::NoBlock(label)),
        (Some(_), before) => Err(Flaw::Bundle(before + 1, label)),
    }
}
