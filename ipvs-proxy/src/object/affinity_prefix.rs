//! `AffinityPrefix`: how many bits of an address are one client of session affinity, by family.
//!
//! Text, as in the annotation: `ipv4=24,ipv6=64`; in a family that is not named each address is a client. Invariants: no prefix is longer
//! than the family's addresses or of no bits, which would make all clients one; the text of a value is read as that value.

use std::fmt;
use std::str::FromStr;

use cluster::Problem;
use netstate::family::PerFamily;

use super::field::Field;
use super::pairs;

/// The annotation of a Service that says it.
pub(crate) const ANNOTATION: &str = "ipvs-proxy/affinity-prefix";

/// See the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AffinityPrefix(pub(crate) PerFamily<Option<u8>>);

impl AffinityPrefix {
    /// What its text is like.
    const FORM: &str =
        "ipv4=N,ipv6=N, each once, from 1 to 32 and to 128; an address is a client where one is not named";

    /// What a Service's object says.
    ///
    /// # Errors
    /// Says what is accepted in place of a text that cannot be read.
    pub(super) fn of(service: &Field<'_>) -> Result<Option<Self>, Problem> {
        pairs::annotation(service, ANNOTATION, Self::FORM)
    }
}

impl fmt::Display for AffinityPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PerFamily { v4, v6 } = self.0;
        let named = [("ipv4", v4), ("ipv6", v6)].into_iter().filter_map(|(name, bits)| Some((name, bits?)));
        for (place, (name, bits)) in named.enumerate() {
            write!(f, "{}{name}={bits}", if place == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// A text that is not of the form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InvalidPrefix;

impl FromStr for AffinityPrefix {
    type Err = InvalidPrefix;

    fn from_str(text: &str) -> Result<Self, InvalidPrefix> {
        let [v4, v6] = pairs::read(text, ["ipv4", "ipv6"]).ok_or(InvalidPrefix)?;
        let bits = |number: Option<u16>, whole: u8| -> Result<Option<u8>, InvalidPrefix> {
            let within = |number| u8::try_from(number).ok().filter(|bits| *bits <= whole).ok_or(InvalidPrefix);
            number.map(within).transpose()
        };
        Ok(Self(PerFamily::new(bits(v4, 32)?, bits(v6, 128)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_read_by_family_and_nothing_else_is() {
        for (text, v4, v6) in [
            ("ipv4=24,ipv6=64", Some(24), Some(64)),
            ("ipv6=56", None, Some(56)),
            (" ipv4 = 1 ", Some(1), None),
            ("ipv4=32,ipv6=128", Some(32), Some(128)),
        ] {
            let prefix: AffinityPrefix = text.parse().unwrap();
            assert_eq!(prefix, AffinityPrefix(PerFamily::new(v4, v6)));
            assert_eq!(prefix.to_string().parse(), Ok(prefix));
        }
        for text in
            ["", "24", "ipv4", "ipv4=0", "ipv4=33", "ipv6=129", "ipv4=24,ipv4=24", "ip=24", "ipv4=/24", "ipv6=300"]
        {
            assert_eq!(text.parse::<AffinityPrefix>(), Err(InvalidPrefix), "{text:?}");
        }
    }
}
