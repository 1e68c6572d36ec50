//! Who keeps an earlier MTU.
//!
//! The bridge and new Pods follow the configuration. The links of running Pods are left alone: a route inside may have
//! been given the size. Invariant: whoever sees the log of the runtime reads of them once, by the ADD that changes the
//! bridge.

use std::fmt::Write;

use kernel::link::LinkState;
use netstate::IfName;

/// Names in one line of the log.
const NAMES_MAX: usize = 20;

/// One line about those of `links` that are ports of the bridge with index `bridge` and have another MTU than `mtu`
/// bytes; `None` when there are none. `own` is the port of the Pod that is being attached.
#[must_use]
pub(crate) fn earlier(
    network: &str,
    bridge: (&IfName, u32),
    mtu: u32,
    links: &[LinkState],
    own: &IfName,
) -> Option<String> {
    let (name, index) = bridge;
    let is_earlier = |link: &&LinkState| {
        link.master_index == Some(index) && link.name != *own && link.link.mtu.is_some_and(|found| found != mtu)
    };
    let earlier: Vec<&LinkState> = links.iter().filter(is_earlier).collect();
    if earlier.is_empty() {
        return None;
    }
    let mut text = format!(
        "netd-cni: network {network}: bridge {name} has an MTU of {mtu} bytes now; {} Pods keep another until their \
         sandboxes are made anew:",
        earlier.len()
    );
    for link in earlier.iter().take(NAMES_MAX) {
        // Writing to a String does not fail.
        let _ = write!(text, " {} ({})", link.name, link.link.mtu.unwrap_or_default());
    }
    text.push_str(if earlier.len() > NAMES_MAX { " ..." } else { "" });
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netstate::{Link, LinkKind};

    fn link(name: &str, mtu: u32, master: Option<u32>) -> LinkState {
        LinkState {
            index: 7,
            name: IfName::new(name).unwrap(),
            link: Link { kind: LinkKind::Veth, mtu: Some(mtu), mac: None, up: true, master: None },
            master_index: master,
            lower_index: None,
            peer_netns_id: None,
            running: true,
            operational: true,
            promiscuous: false,
        }
    }

    #[test]
    fn ports_with_another_mtu_are_reported_and_no_others() {
        let name = |text: &str| IfName::new(text).unwrap();
        let links = [link("veth1", 1450, Some(3)), link("veth2", 1400, Some(3)), link("veth3", 1450, Some(4))];
        let report = |mtu, own: &str| earlier("cbr0", (&name("cbr0"), 3), mtu, &links, &name(own));
        let text = report(1400, "veth9").unwrap();
        assert!(text.contains("1 Pods") && text.ends_with("veth1 (1450)"), "{text}");
        assert_eq!(report(1400, "veth1"), None);
        assert!(report(1500, "veth9").unwrap().ends_with("veth1 (1450) veth2 (1400)"));
        let many: Vec<LinkState> = (0..30).map(|n| link(&format!("veth{n}"), 1450, Some(3))).collect();
        let text = earlier("cbr0", (&name("cbr0"), 3), 1400, &many, &name("own")).unwrap();
        assert!(text.contains("30 Pods") && text.ends_with(" ..."), "{text}");
    }
}
