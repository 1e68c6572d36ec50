//! Texts that become nouns: the parsers for fuzzing, each by the name of its corpus in `fuzz/`.
//!
//! Invariant: what is read is written so that it is read again as the same, and what is refused is refused with a short reason.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use crate::ipvs::Scheduler;
use crate::nft::{Name, TableKey};
use crate::subnet_file::SubnetFile;
use crate::wireguard::{PresharedKey, PrivateKey, PublicKey};
use crate::{IfName, MacAddr, Prefix, Protocol, SysctlKey};

/// Every parser by the name of its corpus.
#[allow(unreachable_pub, clippy::type_complexity, reason = "public with the feature, and a pair is no noun")]
pub const TARGETS: [(&str, fn(&[u8])); 2] = [("subnet_file", subnet_file), ("words", words)];

/// The longest reason, in bytes, for a word of 200 that is shown with its control characters escaped.
const LONGEST: usize = 1200;

fn words(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    // A word is short wherever it stands: in a file, on a command line, in a key.
    for word in text.lines().filter(|line| line.len() <= 200) {
        same::<Prefix>(word);
        same::<MacAddr>(word);
        same::<IfName>(word);
        same::<Name>(word);
        same::<Protocol>(word);
        same::<Scheduler>(word);
        same::<SysctlKey>(word);
        same::<PublicKey>(word);
        refused(word.parse::<PrivateKey>().map(drop));
        refused(word.parse::<PresharedKey>().map(drop));
        let observed = TableKey { family: crate::nft::Family::Ip, name: Name::observed(word.to_owned()) };
        assert!(observed.to_string().ends_with(observed.name.as_str()));
    }
}

fn same<T: FromStr<Err: Display> + Display + PartialEq + Debug>(word: &str) {
    match word.parse::<T>() {
        Ok(read) => assert!(read.to_string().parse().is_ok_and(|again: T| again == read), "{word:?} as {read}"),
        Err(error) => refused(Err::<(), _>(error)),
    }
}

fn refused(outcome: Result<(), impl Display>) {
    if let Err(reason) = outcome {
        let reason = reason.to_string();
        assert!(!reason.is_empty() && reason.len() <= LONGEST, "{reason}");
    }
}

fn subnet_file(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    match SubnetFile::parse(&text) {
        Ok(file) => {
            // As flannel's plugin does, a subnet is accepted beside a network of the other family; nobody writes that.
            let whole = file.networks_v4.is_empty() == file.subnet_v4.is_none()
                && file.networks_v6.is_empty() == file.subnet_v6.is_none();
            let written = file.render();
            let again = SubnetFile::parse(&written).map(|again| again.render());
            assert!(
                !whole || again.as_ref() == Ok(&written),
                "{text:?} is written as {written:?}, and read as {again:?}"
            );
        }
        Err(error) => assert!(error.to_string().len() <= LONGEST + text.len(), "{error}"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn whatever_is_written_is_answered() {
        ::fuzz::check_all(env!("CARGO_MANIFEST_DIR"), &super::TARGETS);
    }
}
