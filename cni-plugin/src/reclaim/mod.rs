//! What goes: released by DEL, swept by GC, reclaimed when a range is full; and what the predecessor's chain of plugins
//! left in the firewall.

pub(crate) mod ifb;
pub(crate) mod leftovers;
pub(crate) mod predecessor;
pub(crate) mod release;
pub(crate) mod sweep;
