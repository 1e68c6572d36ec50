//! How long what was disturbed may take to work again.
//!
//! Invariant: each bound is a promise of SPECIFICATION.md and what a probe itself may cost. They hold on an idle machine and grow with
//! what shares its processors.

use std::time::Duration;

/// A row that somebody deleted, a rule set, a table: back within one second; the next request may have to ask for a hardware address anew.
pub(crate) const ROW: Duration = Duration::from_secs(3);

/// A new Pod, a changed Service: milliseconds behind the store's write, and the program that writes.
pub(crate) const CHANGE: Duration = Duration::from_secs(5);

/// A cable that was out: its carrier, and hardware addresses that are asked for each second.
pub(crate) const LINK: Duration = Duration::from_secs(8);

/// A node that comes, reboots, has another address or was cut off: a connection to etcd that is silent is left after 9 s, a member that lies
/// behind after 10.5 s; then everything follows the store's watch.
pub(crate) const NODE: Duration = Duration::from_secs(15);

/// A store that was away: besides that, a listing that goes back is not believed for 30 s.
pub(crate) const STORE: Duration = Duration::from_secs(45);

/// How long a program may take to be ready, or to end.
pub(crate) const PROGRAM: Duration = Duration::from_secs(30);

/// The most by which bounds grow.
const MOST: f64 = 4.0;

/// How much longer bounds are on this machine now.
pub(crate) fn scale() -> f64 {
    growth(lab::allowing_for_load(Duration::from_secs(1)).as_secs_f64())
}

/// Most of what bounds are made of is waiting; a third is work that shares the processors with `crowding` others.
fn growth(crowding: f64) -> f64 {
    (1.0 + (crowding - 1.0) / 3.0).clamp(1.0, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_grow_with_what_shares_the_processors_and_not_without_end() {
        let grows = |crowding, wanted: f64| (growth(crowding) - wanted).abs() < 1e-9;
        assert!(grows(1.0, 1.0) && grows(4.0, 2.0) && grows(100.0, 4.0));
    }
}
