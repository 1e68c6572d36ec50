//! What nobody deleted: reservations of vanished containers, the `ifb` devices of limits, and what the predecessor's chain
//! of plugins left in the firewall.

pub mod ifb;
pub mod leftovers;
pub mod predecessor;
