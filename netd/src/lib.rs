//! Leases this node's Pod subnet and keeps the kernel's inter-node network equal to the leases.
