//! What a machine has: its files, and all that its kernel holds of networking.
//!
//! Invariant: two states of a machine that nobody has touched are the same; what comes and goes by itself is not in them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use lab::{Host, allowing_for_load};

/// How long a look may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Prints it, a line each, with the section in front.
const SCRIPT: &str = r#"
section() { sed "s#^#$1: #"; }
{
  # Names, kinds, modes, owners, targets of symbolic links; of settings also what is in them.
  find /etc /opt /var /run \
    \( -path /var/lib/dpkg -o -path /var/log -o -path /var/cache -o -path /var/lib/systemd -o -path /var/lib/containerd \
       -o -path /var/lib/cni/results -o -path /run/systemd -o -path /run/log -o -path /run/udev -o -path /run/netns \) -prune -o \
    -printf '%p %y %m %u:%g %l\n' | section file
  # Names alone of what packages bring, which a machine has a hundred thousand of.
  find /usr -maxdepth 5 -print | section file
  find /etc -type f -exec md5sum {} + | section text
  dpkg-divert --list | section divert
  nft -s list ruleset | section nft
  for save in iptables-legacy-save ip6tables-legacy-save; do
    # Tables that are not there are made by a look at them.
    ! command -v "$save" >/dev/null || "$save" | grep -v '^#' | sed 's/\[.*//' | section "$save"
  done
  ! command -v ipset >/dev/null || ipset -o save list 2>/dev/null | section ipset
  ! [ -e /proc/net/ip_vs ] || section ipvs </proc/net/ip_vs
  ip -o -d link | sed 's/^[0-9]*: //' | section link
  ip -o address | sed 's/^[0-9]*: //; s/\\.*//; s/ tentative//' | section address
  for family in -4 -6; do
    ip "$family" route show table all | sed 's/ expires [0-9a-z]*//' | section "route $family"
    ip "$family" rule | section "rule $family"
    ip "$family" neigh show nud permanent | section "neighbour $family"
  done
  bridge fdb show | grep permanent | section fdb
  tc qdisc | section qdisc
  grep -rs . /proc/sys/net | grep -vE '/(nf_conntrack_count|random|dev_addr|stat|.*_count):' | section sysctl
} 2>&1
"#;

/// What was found at one time: lines, and how often each is there.
pub(crate) struct State(BTreeMap<String, usize>);

impl State {
    /// Looks at a machine.
    pub(crate) fn of(host: &Host) -> Result<Self> {
        let text = host.command("bash").args(["-c", SCRIPT]).limit(allowing_for_load(LIMIT)).run()?.stdout;
        let mut lines = BTreeMap::new();
        for line in text.lines() {
            *lines.entry(line.to_owned()).or_default() += 1;
        }
        Ok(Self(lines))
    }

    /// What is here and was not before, behind `+`, and the other way round behind `-`.
    pub(crate) fn differs_from(&self, before: &Self) -> Vec<String> {
        let more = |sign: &str, of: &Self, than: &Self| {
            let is_more = |(line, count): &(&String, &usize)| than.0.get(*line).is_none_or(|other| *count > other);
            of.0.iter().filter(is_more).map(|(line, _)| format!("{sign} {line}")).collect::<Vec<_>>()
        };
        [more("+", self, before), more("-", before, self)].concat()
    }
}
