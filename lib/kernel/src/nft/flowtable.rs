//! Flowtables, to and from attributes (enum nft_flowtable_attributes, enum nft_flowtable_hook_attributes).
//!
//! Invariant: what is read back as a flowtable of ours was understood whole; one with flags, which only hardware needs, is unequal to every
//! desired one.

use std::collections::BTreeSet;

use netstate::IfName;
use netstate::nft::{Flowtable, Name};

use super::wire::{name, number, put_number};
use crate::attribute::{self, Writer};

const NAME: u16 = 2;
const HOOK: u16 = 3;
const FLAGS: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const HOOK_DEVICES: u16 = 3;
const DEVICE_NAME: u16 = 1;
/// NF_NETDEV_INGRESS of enum nf_dev_hooks.
const INGRESS: u32 = 0;

/// Priority of a flowtable that we do not understand; nobody asks for it.
const FOREIGN: i32 = i32::MIN;

/// Names the flowtable in a message about it.
pub(super) fn put_name(body: &mut Writer, flowtable: &Name) {
    body.put_str(NAME, flowtable.as_str());
}

/// Declares it.
pub(super) fn put(body: &mut Writer, flowtable: &Name, value: &Flowtable) {
    put_name(body, flowtable);
    body.nest(HOOK, |hook| {
        put_number(hook, HOOK_NUMBER, INGRESS);
        hook.put(HOOK_PRIORITY, &value.priority.to_be_bytes());
        hook.nest(HOOK_DEVICES, |devices| {
            for device in &value.devices {
                devices.put_str(DEVICE_NAME, device.as_str());
            }
        });
    });
}

/// The flowtable that a message of the kernel is about.
pub(super) fn read(attributes: &[u8]) -> Option<(Name, Flowtable)> {
    let value = understood(attributes).unwrap_or(Flowtable { priority: FOREIGN, devices: BTreeSet::new() });
    Some((name(attributes, NAME)?, value))
}

fn understood(attributes: &[u8]) -> Option<Flowtable> {
    let hook = attribute::find(attributes, HOOK)?;
    let ours = number(hook, HOOK_NUMBER)? == INGRESS && number(attributes, FLAGS).unwrap_or(0) == 0;
    let priority = i32::from_be_bytes(*attribute::find(hook, HOOK_PRIORITY)?.first_chunk::<4>()?);
    let devices = attribute::iter(attribute::find(hook, HOOK_DEVICES).unwrap_or_default());
    let names = devices.filter(|(kind, _)| *kind == DEVICE_NAME);
    let devices = names.map(|(_, text)| IfName::new(attribute::text(text)).ok()).collect::<Option<BTreeSet<_>>>()?;
    ours.then_some(Flowtable { priority, devices })
}

/// What is not there when the kernel refuses a flowtable with ENOENT.
pub(super) const MISSING: &str = "one of the flowtable's links, or flowtables in this kernel (CONFIG_NF_FLOW_TABLE, \
                                  CONFIG_NF_FLOW_TABLE_INET, CONFIG_NFT_FLOW_OFFLOAD)";

#[cfg(test)]
mod tests {
    use super::*;

    fn written(value: &Flowtable, more: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut body = Writer::default();
        put(&mut body, &Name::literal("pods"), value);
        more(&mut body);
        body.finish()
    }

    #[test]
    fn flowtable_is_read_as_it_is_written_and_one_with_flags_is_no_desired_one() {
        let names = ["cbr0", "eth0", "flannel.1"].map(|name| IfName::new(name).unwrap());
        for value in [Flowtable::on(names.into_iter().collect()), Flowtable { priority: -5, ..Flowtable::default() }] {
            assert_eq!(read(&written(&value, |_| {})), Some((Name::literal("pods"), value.clone())));
            // NFT_FLOWTABLE_HW_OFFLOAD.
            let with_flags = read(&written(&value, |body| put_number(body, FLAGS, 1)));
            assert!(with_flags.is_some_and(|(_, found)| found != value));
        }
        assert_eq!(read(&[]), None);
    }
}
