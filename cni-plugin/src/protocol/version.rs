//! `SpecVersion`: the versions of the CNI specification this plugin speaks.
//!
//! Invariant: a version is one of the released ones, compared by age. A configuration must name one of them exactly
//! (SPEC "Version considerations"); a configuration without `cniVersion` means 0.1.0, as libcni reads it.

use std::fmt;
use std::str::FromStr;

/// One released version of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecVersion {
    /// 0.1.0: result with `ip4` and `ip6`.
    V0_1_0,
    /// 0.2.0: as 0.1.0, with the VERSION verb.
    V0_2_0,
    /// 0.3.0: result with interfaces, many addresses.
    V0_3_0,
    /// 0.3.1: corrects the text of 0.3.0; the version of flannel's stock configuration.
    V0_3_1,
    /// 0.4.0: CHECK, previous result on DEL.
    V0_4_0,
    /// 1.0.0: addresses without `version`, empty `dns` left out.
    V1_0_0,
    /// 1.1.0: GC and STATUS.
    V1_1_0,
}

impl SpecVersion {
    /// All versions, oldest first.
    pub const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest version; what VERSION and errors without a configuration are written in.
    pub const NEWEST: Self = Self::V1_1_0;

    /// The version as written in `cniVersion`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is no version this plugin speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownVersion(pub String);

impl FromStr for SpecVersion {
    type Err = UnknownVersion;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|v| v.as_str() == s).ok_or_else(|| UnknownVersion(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_age_orders() {
        for version in SpecVersion::ALL {
            assert_eq!(version.to_string().parse(), Ok(version));
        }
        assert!(SpecVersion::ALL.is_sorted());
        assert!("1.0".parse::<SpecVersion>().is_err());
        assert!("9.9.9".parse::<SpecVersion>().is_err());
    }
}
