//! BandwidthConf of a Pod's traffic, from what is wanted to steps, and from what is there to differences.
//!
//! What the Pod receives is what the host end of its veth pair sends: a token bucket there. What it sends, the host end
//! receives: everything goes over an `ifb` device, and the token bucket is on that (plugins/meta/bandwidth).
//! Pure. Invariant: the device's name follows from network and container alone, as the reference makes it: either's
//! DEL finds what the other's ADD made.

use netstate::{IfName, MacAddr, TokenBucket};
use sha2::{Digest, Sha512};

use super::Step;
use crate::protocol::attachment::{Attachment, ContainerId};
use crate::protocol::netconf::BandwidthConf;

/// BandwidthConf on the traffic of one attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bandwidth {
    /// What is limited, at least one direction.
    pub conf: BandwidthConf,
    /// The `ifb` device.
    pub ifb: IfName,
    /// Its hardware address.
    pub mac: MacAddr,
}

/// What CHECK found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The token bucket on the host end.
    pub receive: Option<TokenBucket>,
    /// The `ifb` device exists.
    pub ifb: bool,
    /// The token bucket on it.
    pub send: Option<TokenBucket>,
    /// The host end leads everything over the device.
    pub redirected: bool,
}

/// The name of the device for `container` in `network`: `bwp` and the first twelve hexadecimal digits of a SHA-512.
#[must_use]
pub fn ifb_name(network: &str, container: &ContainerId) -> Option<IfName> {
    let hash = Sha512::new().chain_update(network).chain_update(container.as_str()).finalize();
    let digits: String = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    IfName::new(format!("bwp{digits}")).ok()
}

impl Bandwidth {
    /// What `conf` means for `attachment` of `network`; `None` when nothing is limited.
    #[must_use]
    pub(crate) fn new(conf: BandwidthConf, network: &str, attachment: &Attachment) -> Option<Self> {
        if conf.is_none() {
            return None;
        }
        let ifb = ifb_name(network, &attachment.container)?;
        Some(Self { conf, ifb, mac: attachment.ifb_mac() })
    }

    /// Steps that limit the traffic through the host end `link` of `mtu` bytes. The redirection comes last: a packet
    /// finds its token bucket in place.
    #[must_use]
    pub(crate) fn steps(&self, link: &IfName, mtu: u32) -> Vec<Step> {
        let mut steps = Vec::new();
        steps.extend(self.conf.receive.map(|bucket| Step::LimitLink { link: link.clone(), bucket }));
        if let Some(bucket) = self.conf.send {
            let ifb = || self.ifb.clone();
            steps.push(Step::CreateIfb { name: ifb(), mac: self.mac, mtu });
            steps.push(Step::LimitLink { link: ifb(), bucket });
            steps.push(Step::HookIngress(link.clone()));
            steps.push(Step::Redirect { link: link.clone(), over: ifb() });
        }
        steps
    }

    /// The differences between what is wanted on the host end `link` and what is there, each as one sentence.
    #[must_use]
    pub(crate) fn differences(&self, link: &IfName, facts: &Facts) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |name: &IfName, wanted: Option<TokenBucket>, present: Option<TokenBucket>| {
            if let Some(wanted) = wanted.filter(|wanted| present != Some(*wanted)) {
                let present = present.map_or_else(|| "no limit".to_owned(), |bucket| bucket.to_string());
                found.push(format!("link {name} has {present} instead of {wanted}"));
            }
        };
        compare(link, self.conf.receive, facts.receive);
        compare(&self.ifb, self.conf.send.filter(|_| facts.ifb), facts.send);
        if self.conf.send.is_some() && !facts.ifb {
            found.push(format!("ifb {} is missing", self.ifb));
        } else if self.conf.send.is_some() && !facts.redirected {
            found.push(format!("what link {link} receives does not go over ifb {}", self.ifb));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        Attachment::new(ContainerId::new("c1").unwrap(), IfName::new("eth0").unwrap())
    }

    fn bucket(rate: u64) -> TokenBucket {
        TokenBucket::new(rate, 1000).unwrap()
    }

    fn steps(receive: Option<TokenBucket>, send: Option<TokenBucket>) -> Vec<String> {
        let bandwidth = Bandwidth::new(BandwidthConf { receive, send }, "mynet", &attachment());
        let steps = bandwidth.map(|bandwidth| bandwidth.steps(&IfName::new("vethx").unwrap(), 1450));
        steps.unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn device_has_the_name_that_the_reference_gives() {
        // As Debian's bandwidth plugin named it.
        assert_eq!(ifb_name("mynet", &attachment().container).unwrap().as_str(), "bwpf0bca4ac77cd");
    }

    #[test]
    fn each_direction_has_its_own_steps() {
        let receive = "limit vethx: tbf rate 1000Bps depth 1000000us limit 1025b";
        let send = [
            "create ifb bwpf0bca4ac77cd mtu 1450",
            "limit bwpf0bca4ac77cd: tbf rate 2000Bps depth 500000us limit 1050b",
            "hook ingress of vethx",
            "redirect what vethx receives over bwpf0bca4ac77cd",
        ];
        assert_eq!(steps(Some(bucket(1000)), None), [receive]);
        assert_eq!(steps(None, Some(bucket(2000))), send);
        assert_eq!(steps(Some(bucket(1000)), Some(bucket(2000))).len(), 5);
        assert_eq!(steps(None, None), Vec::<String>::new());
    }

    #[test]
    fn every_step_that_makes_something_is_undone() {
        let bandwidth =
            Bandwidth::new(BandwidthConf { receive: Some(bucket(1000)), send: Some(bucket(1)) }, "n", &attachment());
        let steps = bandwidth.unwrap().steps(&IfName::new("vethx").unwrap(), 1450);
        let undone: Vec<bool> = steps.iter().map(|step| step.undo().is_some()).collect();
        assert_eq!(undone, [true, true, true, true, false], "the filter goes with the hook");
    }

    #[test]
    fn what_a_pod_sends_needs_no_device_where_it_is_not_limited() {
        let conf = BandwidthConf { receive: Some(bucket(1000)), send: None };
        let bandwidth = Bandwidth::new(conf, "mynet", &attachment()).unwrap();
        let found = Facts { receive: conf.receive, ..Facts::default() };
        assert_eq!(bandwidth.differences(&IfName::new("vethx").unwrap(), &found), Vec::<String>::new());
    }

    #[test]
    fn each_damage_is_reported_in_its_own_words() {
        let conf = BandwidthConf { receive: Some(bucket(1000)), send: Some(bucket(2000)) };
        let bandwidth = Bandwidth::new(conf, "mynet", &attachment()).unwrap();
        let whole = Facts { receive: conf.receive, ifb: true, send: conf.send, redirected: true };
        let link = IfName::new("vethx").unwrap();
        assert_eq!(bandwidth.differences(&link, &whole), Vec::<String>::new());
        type Damage = fn(&mut Facts);
        let cases: [(Damage, &str); 5] = [
            (|f| f.receive = None, "link vethx has no limit instead of tbf rate 1000Bps"),
            (|f| f.receive = Some(bucket(7)), "link vethx has tbf rate 7Bps"),
            (|f| f.send = None, "link bwpf0bca4ac77cd has no limit"),
            (|f| f.redirected = false, "does not go over ifb bwpf0bca4ac77cd"),
            (|f| (f.ifb, f.send, f.redirected) = (false, None, false), "ifb bwpf0bca4ac77cd is missing"),
        ];
        for (damage, text) in cases {
            let mut facts = whole.clone();
            damage(&mut facts);
            let found = bandwidth.differences(&link, &facts);
            assert!(found.len() == 1 && found[0].contains(text), "{found:?} should say {text}");
        }
    }
}
