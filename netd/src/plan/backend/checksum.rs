//! Whether this node counts the checksums of its tunnel's packets itself instead of leaving them to hardware.
//!
//! Some kernels and network cards count checksums inside a tunnel wrongly, and every packet but the smallest is lost on
//! the way. Invariant: what `auto` decides depends on the kernel's release and the card's driver alone, so it is the same
//! after every start.

use netstate::{Release, TxChecksum};

use crate::format::go_json::Object;
use cluster::Problem;

const ACCEPTED: &str = "auto, on or off";

/// `Backend.ChecksumWorkaround`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Workaround {
    /// On where the kernel or the network card is known to count wrongly.
    #[default]
    Auto,
    /// The host counts.
    On,
    /// The hardware counts, whatever is known of it.
    Off,
}

/// Drivers whose cards count wrongly inside tunnels, with the reason.
const DRIVERS: [(&str, &str); 1] =
    [("vmxnet3", "VMware's card counts wrongly inside tunnels whose UDP port it does not know")];

/// Stable series that have the correction of 5.7 ("netfilter: nat: never update the UDP checksum when it's 0"), with the
/// first release that has it.
const CORRECTED: [Release; 4] = [Release(4, 14, 181), Release(4, 19, 123), Release(5, 4, 41), Release(5, 6, 13)];

impl Workaround {
    /// Reads the option of net-conf.
    pub(super) fn take(backend: &mut Object, problems: &mut Vec<Problem>) -> Self {
        match backend.take::<String>("ChecksumWorkaround", ACCEPTED, problems).as_deref() {
            None | Some("auto") => Self::Auto,
            Some("on") => Self::On,
            Some("off") => Self::Off,
            Some(other) => {
                problems.push(Problem::new("Backend.ChecksumWorkaround", format!("{other:?}"), ACCEPTED));
                Self::Auto
            }
        }
    }

    /// Who shall count on a node with this `fault`; `None` leaves the device as it is.
    pub(super) const fn desired(self, fault: Option<&str>) -> Option<TxChecksum> {
        match (self, fault) {
            (Self::On, _) | (Self::Auto, Some(_)) => Some(TxChecksum::Counted),
            (Self::Off, _) => Some(TxChecksum::Offloaded),
            (Self::Auto, None) => None,
        }
    }

    /// What was chosen and why, for an operator.
    pub(super) fn describe(self, fault: Option<&str>) -> String {
        match (self, fault) {
            (Self::On, _) => "on, as net-conf says".to_owned(),
            (Self::Off, None) => "off, as net-conf says".to_owned(),
            (Self::Off, Some(fault)) => format!("off, as net-conf says, although {fault}"),
            (Self::Auto, Some(fault)) => format!("on, because {fault}"),
            (Self::Auto, None) => "off: nothing is known against this kernel and network card".to_owned(),
        }
    }
}

/// What is known against a node with the kernel `release` (`uname -r`) and a network card of `driver`.
#[must_use]
pub(crate) fn known_fault(release: &str, driver: Option<&str>) -> Option<String> {
    if let Some((name, reason)) = DRIVERS.iter().find(|(name, _)| Some(*name) == driver) {
        return Some(format!("the network card's driver is {name}: {reason}"));
    }
    let known = Release::of(release)?;
    let corrected = CORRECTED.iter().any(|first| (first.0, first.1) == (known.0, known.1) && known >= *first);
    (known < Release(5, 7, 0) && !corrected).then(|| {
        format!(
            "kernel {release} counts checksums of tunnel packets wrongly when it changes their addresses (before 5.7)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_the_correction_and_cards_that_count_wrongly_are_known() {
        for wrong in ["4.4.0", "4.14.180", "4.18.0-193.el8.x86_64", "4.19.122", "5.3.18", "5.4.40", "5.5.19", "5.6.12"]
        {
            assert!(known_fault(wrong, Some("virtio_net")).is_some_and(|fault| fault.contains(wrong)), "{wrong}");
        }
        for right in
            ["4.14.181", "4.19.123-rc1", "5.4.41", "5.4.0.41", "5.6.13", "5.7.0", "5.10", "6.1.0-18-amd64", "7", "odd"]
        {
            let expected = right == "5.4.0.41";
            assert_eq!(known_fault(right, None).is_some(), expected, "{right}");
        }
        let card = known_fault("6.18.0", Some("vmxnet3")).unwrap();
        assert!(card.contains("driver is vmxnet3"), "{card}");
    }

    #[test]
    fn auto_touches_nothing_unless_something_is_known() {
        let fault = Some("it is old");
        assert_eq!(Workaround::Auto.desired(None), None);
        assert_eq!(Workaround::Auto.desired(fault), Some(TxChecksum::Counted));
        for known in [None, fault] {
            assert_eq!(Workaround::On.desired(known), Some(TxChecksum::Counted));
            assert_eq!(Workaround::Off.desired(known), Some(TxChecksum::Offloaded));
        }
        assert_eq!(Workaround::Off.describe(fault), "off, as net-conf says, although it is old");
    }
}
