//! How many bytes each encapsulation takes from the MTU of the network below.

/// VXLAN over IPv4: inner Ethernet 14, VXLAN 8, UDP 8, IPv4 20 (RFC 7348 §5).
pub const VXLAN_OVER_IPV4: u32 = 50;

/// VXLAN over IPv6: inner Ethernet 14, VXLAN 8, UDP 8, IPv6 40. flannel writes 50 here, and the kernel then clamps
/// the device to 70 below while subnet.env keeps promising 20 bytes too many.
pub const VXLAN_OVER_IPV6: u32 = 70;

/// WireGuard over IPv4 or IPv6: header 16, tag 16, UDP 8, IPv6 40. flannel takes as much for IPv4, where 60 would do.
pub const WIREGUARD: u32 = 80;

/// IPv4 in IPv4: another header of 20 bytes (RFC 2003).
pub const IPIP: u32 = 20;

/// The smallest MTU an IPv4 link may have, in bytes (ETH_MIN_MTU, RFC 791).
pub const MIN_IPV4: u32 = 68;

/// The smallest MTU an IPv6 link may have, in bytes (RFC 8200 §5).
pub const MIN_IPV6: u32 = 1280;
