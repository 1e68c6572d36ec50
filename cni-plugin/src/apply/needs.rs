//! What the steps of an ADD need of the kernel that not every kernel has.
//!
//! Invariant: the kernel is asked for it only when it has refused a step, or for STATUS: an ADD that succeeds asks for nothing.

use kernel::KernelError;
use kernel::feature::{self, Feature};
use nix::libc;

use crate::plan::Step;
use crate::protocol::error::{CniError, Code};
use crate::protocol::netconf::{BandwidthConf, BridgeConf};

/// What `step` cannot do without.
const fn of_step(step: &Step) -> &'static [Feature] {
    match step {
        Step::WriteTable(_) => &[Feature::Nftables, Feature::Translation],
        Step::OpenPorts { .. } => &[Feature::Nftables, Feature::Translation, Feature::LocalAddresses],
        Step::ForgetFlows(_) => &[Feature::Connections],
        Step::GuardPort { .. } => &[Feature::BridgeTables],
        Step::LimitLink { .. } => &[Feature::TokenBucket],
        Step::CreateIfb { .. } => &[Feature::Ifb],
        _ => &[],
    }
}

/// What Pods with these limits cannot do without.
pub(crate) fn of_limits(limits: BandwidthConf) -> Vec<Feature> {
    let bucket = (!limits.is_none()).then_some(Feature::TokenBucket);
    bucket.into_iter().chain(limits.send.map(|_| Feature::Ifb)).collect()
}

/// What Pods of this bridge cannot do without.
pub(crate) fn of_bridge(conf: &BridgeConf) -> Vec<Feature> {
    let guard = conf.spoof_guard.then_some(Feature::BridgeTables);
    let rules = conf.masquerade.as_ref().map(|_| [Feature::Nftables, Feature::Translation]);
    guard.into_iter().chain(rules.into_iter().flatten()).collect()
}

/// Refuses for STATUS what every ADD of the network would fail for.
///
/// # Errors
/// Code 50 with each of `features` that the kernel has not.
pub(crate) fn check(network: &str, features: &[Feature]) -> Result<(), CniError> {
    let lacking = lacking(features);
    if lacking.is_empty() {
        return Ok(());
    }
    let error = CniError::new(Code::NotAvailable, format!("this kernel cannot do what network {network} asks for"));
    Err(lacking.into_iter().fold(error, CniError::details))
}

/// `error`, the refusal of `step`, with what the kernel has not of that.
pub(crate) fn explained(error: CniError, step: &Step) -> CniError {
    if error.code == Code::Kernel { lacking(of_step(step)).into_iter().fold(error, CniError::details) } else { error }
}

/// A line for each of `features` that the kernel has not; none where that cannot be found out.
fn lacking(features: &[Feature]) -> Vec<String> {
    let missing = feature::missing(features).unwrap_or_default();
    missing.iter().map(|feature| format!("this kernel has no {feature}: {}", feature.advice())).collect()
}

/// What the kernel said about the detour of what a Pod sends; ENOENT where it does not know a part of that.
pub(crate) fn detour_refused(error: KernelError) -> CniError {
    let is_unknown = error.errno() == Some(libc::ENOENT);
    let error = CniError::from(error);
    if !is_unknown {
        return error;
    }
    error.details(
        "limits of what a Pod sends need ingress hooks with u32 filters and mirred actions: modprobe sch_ingress cls_u32 act_mirred, and \
         name that in /etc/modules-load.d, or take a kernel with CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_U32, CONFIG_NET_ACT_MIRRED",
    )
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn part_of_the_detour_that_the_kernel_does_not_know_is_named_and_no_other_refusal_is_taken_for_that() {
        let refused = |errno: i32| {
            let error = KernelError::io(
                "redirect packets",
                "of link with index 7",
                "send",
                io::Error::from_raw_os_error(errno),
            );
            detour_refused(error).to_string()
        };
        for option in ["CONFIG_NET_SCH_INGRESS", "CONFIG_NET_CLS_U32", "CONFIG_NET_ACT_MIRRED"] {
            assert!(refused(libc::ENOENT).contains(option), "{}", refused(libc::ENOENT));
        }
        assert!(!refused(libc::EPERM).contains("CONFIG_"), "{}", refused(libc::EPERM));
    }

    #[test]
    fn limits_need_devices_only_where_a_pod_sends_through_them() {
        let bucket = netstate::TokenBucket::new(1_000_000, 100_000).ok();
        let of = |receive, send| of_limits(BandwidthConf { receive, send });
        assert_eq!(of(None, None), []);
        assert_eq!(of(bucket, None), [Feature::TokenBucket]);
        assert_eq!(of(None, bucket), [Feature::TokenBucket, Feature::Ifb]);
    }
}
