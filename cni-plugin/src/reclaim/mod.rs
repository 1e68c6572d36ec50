//! What goes: released by DEL, swept by GC, reclaimed when a range is full; and what the predecessor's chain of plugins
//! left in the firewall.

pub mod ifb;
pub mod leftovers;
pub mod predecessor;
pub mod release;
pub mod sweep;
