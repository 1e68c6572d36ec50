//! `Policy`: one rule for choosing a subnet, and lists of rules as they are typed.
//!
//! Invariant: a list has at least one rule, each of them once.

use std::fmt;
use std::str::FromStr;

/// One rule for choosing a subnet; they are asked in the configured order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// The subnet this node had before, as its subnet file says: Pods may still live in it.
    Previous,
    /// The node's host number inside its own network is the number of the subnet inside the Pod network:
    /// 10.4.7.21/24 is host 21, and subnet 21 of 172.7.0.0/16 is 172.7.21.0/24. IPv6 counts alike, in its own digits:
    /// fd00:10:4:7::21/64 is host 0x21, and subnet 0x21 of fd00:7::/48 is fd00:7:0:21::/64. It applies when that subnet
    /// lies between SubnetMin and SubnetMax.
    NodeIp,
    /// The first subnet that is free. Beside `NodeIp` the first that no host number of the node's network names, else
    /// the last: what `NodeIp` owes to a node that is still to come is left to it for as long as possible.
    FirstFree,
    /// Any free subnet.
    Random,
}

impl Policy {
    const ALL: [Self; 4] = [Self::Previous, Self::NodeIp, Self::FirstFree, Self::Random];

    /// The rules that are asked when nobody names any.
    pub(crate) const DEFAULT: [Self; 3] = [Self::Previous, Self::NodeIp, Self::FirstFree];

    /// What a list of them may be.
    pub(crate) const ACCEPTED: &str =
        "one or more of previous, node-ip, first-free, random, each once, separated by commas";

    /// The name on the command line and in net-conf.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Previous => "previous",
            Self::NodeIp => "node-ip",
            Self::FirstFree => "first-free",
            Self::Random => "random",
        }
    }

    /// Reads names separated by commas.
    ///
    /// # Errors
    /// What is wrong with each of them that is.
    pub(crate) fn parse_list(text: &str) -> Result<Vec<Self>, Vec<String>> {
        let (mut policies, mut problems) = (Vec::new(), Vec::new());
        for name in text.split(',').map(str::trim) {
            match name.parse::<Self>() {
                Ok(policy) if policies.contains(&policy) => problems.push(format!("{name:?} stands there twice")),
                Ok(policy) => policies.push(policy),
                Err(()) => problems.push(format!("{name:?} is no policy")),
            }
        }
        if problems.is_empty() { Ok(policies) } else { Err(problems) }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Policy {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|policy| policy.name() == s).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_names_each_rule_once() {
        for policy in Policy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        assert_eq!(Policy::parse_list("random, previous"), Ok(vec![Policy::Random, Policy::Previous]));
        let problems = Policy::parse_list("node-ip,fastest,node-ip,").unwrap_err();
        let expected = [r#""fastest" is no policy"#, r#""node-ip" stands there twice"#, r#""" is no policy"#];
        assert_eq!(problems, expected);
    }
}
