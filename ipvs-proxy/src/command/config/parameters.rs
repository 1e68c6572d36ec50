//! Kernel parameters that the settings ask for.
//!
//! Invariant: a parameter that the settings leave at 0 is not there, and so stays as the host has it.

use std::collections::BTreeMap;

use netstate::SysctlKey;

use super::Reader;
use crate::command::settings::fields::path;

impl Reader<'_> {
    /// The parameters on a host of so many processors.
    pub(super) fn parameters(&mut self, processors: u64) -> BTreeMap<SysctlKey, String> {
        let number = |key| self.settings.text(key).parse::<u64>().unwrap_or_default();
        let most = number(path::MAX_PER_CORE).saturating_mul(processors);
        let most = if most == 0 { 0 } else { most.max(number(path::MIN)) };
        let is_on = |key| u64::from(self.settings.text(key) == "true");
        let (liberal, strict) = (is_on(path::BE_LIBERAL), is_on(path::STRICT_ARP));
        let mut seconds = |key| u64::from(self.seconds(key));
        let parameters = [
            ("net/netfilter/nf_conntrack_max", most),
            ("net/netfilter/nf_conntrack_tcp_timeout_established", seconds(path::ESTABLISHED)),
            ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", seconds(path::CLOSE_WAIT)),
            ("net/netfilter/nf_conntrack_udp_timeout", seconds(path::UDP)),
            ("net/netfilter/nf_conntrack_udp_timeout_stream", seconds(path::UDP_STREAM)),
            ("net/netfilter/nf_conntrack_tcp_be_liberal", liberal),
            // An address of kube-ipvs0 is not answered for at the other interfaces.
            ("net/ipv4/conf/all/arp_ignore", strict),
            ("net/ipv4/conf/all/arp_announce", strict.saturating_mul(2)),
        ];
        let set = parameters.into_iter().filter(|(_, value)| *value != 0);
        set.filter_map(|(key, value)| Some((key.parse().ok()?, value.to_string()))).collect()
    }
}
