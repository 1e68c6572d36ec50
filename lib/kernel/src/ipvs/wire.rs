//! Form of IPVS messages (include/uapi/linux/ip_vs.h, net/netfilter/ipvs/ip_vs_ctl.c).
//!
//! Invariant: what is written here and read back from the kernel gives the same value. Counters are read over, the
//! HASHED flag, which the kernel sets by itself, is masked, and an IPv4 address is known by the address family, never by
//! the length: listings give 16 bytes for both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netstate::Protocol;
use netstate::ipvs::{
    Persistence, RealServer, RealServerKey, Scheduler, SchedulerFlags, VirtualServer, VirtualServerKey,
};

use super::{Connections, IpvsInfo, Traffic};
use crate::attribute::{self, Writer};
use crate::genl::read_u16;

pub(super) const FAMILY: &str = "IPVS";
pub(super) const VERSION: u8 = 1;

// Commands (IPVS_CMD_*).
pub(super) const NEW_SERVICE: u8 = 1;
pub(super) const SET_SERVICE: u8 = 2;
pub(super) const DEL_SERVICE: u8 = 3;
pub(super) const GET_SERVICE: u8 = 4;
pub(super) const NEW_DEST: u8 = 5;
pub(super) const SET_DEST: u8 = 6;
pub(super) const DEL_DEST: u8 = 7;
pub(super) const GET_DEST: u8 = 8;
pub(super) const SET_CONFIG: u8 = 12;
pub(super) const GET_CONFIG: u8 = 13;
pub(super) const GET_INFO: u8 = 15;

// Attributes of a command (IPVS_CMD_ATTR_*).
const SERVICE: u16 = 1;
const DEST: u16 = 2;
pub(super) const TIMEOUT_TCP: u16 = 4;
pub(super) const TIMEOUT_TCP_FIN: u16 = 5;
pub(super) const TIMEOUT_UDP: u16 = 6;

// Attributes of a service (IPVS_SVC_ATTR_*).
const SVC_AF: u16 = 1;
const SVC_PROTOCOL: u16 = 2;
const SVC_ADDR: u16 = 3;
const SVC_PORT: u16 = 4;
const SVC_FWMARK: u16 = 5;
const SVC_SCHED_NAME: u16 = 6;
const SVC_FLAGS: u16 = 7;
const SVC_TIMEOUT: u16 = 8;
const SVC_NETMASK: u16 = 9;
/// Numbers of 64 bits (Linux 4.1).
const SVC_STATS64: u16 = 12;

// Attributes of what a service has counted (IPVS_STATS_ATTR_*).
const STATS_CONNECTIONS: u16 = 1;
const STATS_IN_PACKETS: u16 = 2;
const STATS_OUT_PACKETS: u16 = 3;
const STATS_IN_BYTES: u16 = 4;
const STATS_OUT_BYTES: u16 = 5;

// Attributes of a destination (IPVS_DEST_ATTR_*).
const DEST_ADDR: u16 = 1;
const DEST_PORT: u16 = 2;
const DEST_FWD_METHOD: u16 = 3;
const DEST_WEIGHT: u16 = 4;
const DEST_U_THRESH: u16 = 5;
const DEST_L_THRESH: u16 = 6;
const DEST_ACTIVE: u16 = 7;
const DEST_INACTIVE: u16 = 8;
const DEST_AF: u16 = 11;

// Attributes of GET_INFO (IPVS_INFO_ATTR_*).
const INFO_VERSION: u16 = 1;
const INFO_TABLE_SIZE: u16 = 2;

/// IP_VS_SVC_F_PERSISTENT.
const PERSISTENT: u32 = 1;
/// IP_VS_SVC_F_HASHED, which every listing shows.
const HASHED: u32 = 2;
/// IP_VS_CONN_F_MASQ: answers come back through this host, which rewrites both ways.
const MASQUERADE: u32 = 0;
/// IP_VS_CONN_F_LOCALNODE.
const LOCAL_NODE: u32 = 1;
/// IP_VS_CONN_F_FWD_MASK.
const FORWARDING: u32 = 7;
/// AF_INET and AF_INET6 (include/linux/socket.h).
const INET: u16 = 2;
const INET6: u16 = 10;

/// A message body that names a service.
pub(super) fn service_id(key: &VirtualServerKey) -> Writer {
    let mut writer = Writer::default();
    writer.nest(SERVICE, |inner| put_identity(inner, key));
    writer
}

/// A message body with a service and all its options: the kernel wants all of them, also for a change of one.
pub(super) fn service(key: &VirtualServerKey, value: &VirtualServer) -> Writer {
    let mut writer = Writer::default();
    writer.nest(SERVICE, |inner| {
        put_identity(inner, key);
        let persistent = if value.persistence.is_some() { PERSISTENT } else { 0 };
        let (seconds, prefix) = value.persistence.map_or((0, None), |found| (found.seconds, found.prefix));
        // {flags, mask}: with a full mask exactly these flags are set.
        let flags = [(persistent | value.scheduler.flags.0).to_ne_bytes(), u32::MAX.to_ne_bytes()].concat();
        inner
            .put_str(SVC_SCHED_NAME, &value.scheduler.name)
            .put(SVC_FLAGS, &flags)
            .put(SVC_TIMEOUT, &seconds.to_ne_bytes())
            .put(SVC_NETMASK, &netmask(key.addr, prefix).to_ne_bytes());
    });
    writer
}

/// What of a client's address counts, all of it where `prefix` is open. IPv4: an address mask in network byte order; IPv6: a prefix
/// length (net/netfilter/ipvs/ip_vs_ctl.c).
fn netmask(addr: IpAddr, prefix: Option<u8>) -> u32 {
    match (addr, prefix) {
        (IpAddr::V4(_), None) => u32::MAX,
        (IpAddr::V4(_), Some(bits)) => u32::MAX.checked_shl(32_u32.saturating_sub(bits.into())).unwrap_or(0).to_be(),
        (IpAddr::V6(_), bits) => bits.unwrap_or(128).into(),
    }
}

/// The prefix of a netmask, open for whole addresses; `None` for what is no prefix or of no bits.
fn prefix(addr: IpAddr, mask: u32) -> Option<Option<u8>> {
    let (bits, whole) = match addr {
        IpAddr::V4(_) => (u8::try_from(u32::from_be(mask).leading_ones()).ok()?, 32),
        IpAddr::V6(_) => (u8::try_from(mask).ok()?, 128),
    };
    let known = bits != 0 && bits <= whole && netmask(addr, Some(bits)) == mask;
    known.then(|| (bits != whole).then_some(bits))
}

/// A message body of a service that no kernel makes; see [`super::Ipvs::has_scheduler`].
pub(super) fn scheduler_question(scheduler: &str) -> Writer {
    // Port 9 (discard) at an address of the discard prefix 100::/64 (RFC 6666).
    let addr = IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1));
    let key = VirtualServerKey { protocol: Protocol::Tcp, addr, port: 9 };
    let mut writer = Writer::default();
    writer.nest(SERVICE, |inner| {
        put_identity(inner, &key);
        inner
            .put_str(SVC_SCHED_NAME, scheduler)
            .put(SVC_FLAGS, &[[0; 4], u32::MAX.to_ne_bytes()].concat())
            .put(SVC_TIMEOUT, &0u32.to_ne_bytes())
            .put(SVC_NETMASK, &0u32.to_ne_bytes());
    });
    writer
}

/// A message body that names a destination of a service.
pub(super) fn dest_id(key: &RealServerKey) -> Writer {
    let mut writer = service_id(&key.service);
    writer.nest(DEST, |inner| put_dest_identity(inner, key));
    writer
}

/// A message body with a destination and all its options.
pub(super) fn dest(key: &RealServerKey, value: RealServer) -> Writer {
    let mut writer = service_id(&key.service);
    writer.nest(DEST, |inner| {
        put_dest_identity(inner, key);
        inner
            .put(DEST_FWD_METHOD, &MASQUERADE.to_ne_bytes())
            .put(DEST_WEIGHT, &value.weight.to_ne_bytes())
            .put(DEST_U_THRESH, &0u32.to_ne_bytes())
            .put(DEST_L_THRESH, &0u32.to_ne_bytes());
    });
    writer
}

fn put_identity(writer: &mut Writer, key: &VirtualServerKey) {
    writer
        .put(SVC_AF, &family(key.addr).to_ne_bytes())
        .put(SVC_PROTOCOL, &u16::from(key.protocol.number()).to_ne_bytes())
        .put(SVC_ADDR, &address_bytes(key.addr))
        .put(SVC_PORT, &key.port.to_be_bytes());
}

fn put_dest_identity(writer: &mut Writer, key: &RealServerKey) {
    writer
        .put(DEST_ADDR, &address_bytes(key.addr))
        .put(DEST_PORT, &key.port.to_be_bytes())
        .put(DEST_AF, &family(key.addr).to_ne_bytes());
}

fn family(addr: IpAddr) -> u16 {
    if addr.is_ipv4() { INET } else { INET6 }
}

/// `union nf_inet_addr`: 16 bytes, IPv4 in the first four.
fn address_bytes(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn read_address(family: u16, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        INET => bytes.first_chunk::<4>().map(|octets| IpAddr::V4(Ipv4Addr::from(*octets))),
        INET6 => bytes.first_chunk::<16>().map(|octets| IpAddr::V6(Ipv6Addr::from(*octets))),
        _ => None,
    }
}

/// The service that an answer is about; `None` for one of a firewall mark or of a protocol or family we do not know.
fn read_identity(nest: &[u8]) -> Option<VirtualServerKey> {
    let find = |kind| attribute::find(nest, kind);
    if find(SVC_FWMARK).is_some() {
        return None;
    }
    let family = read_u16(find(SVC_AF)?)?;
    let number = u8::try_from(read_u16(find(SVC_PROTOCOL)?)?).ok()?;
    let protocol = Protocol::from_number(number)?;
    let addr = read_address(family, find(SVC_ADDR)?)?;
    Some(VirtualServerKey { protocol, addr, port: attribute::be16(find(SVC_PORT)?)? })
}

/// What the service of an answer has counted.
pub(super) fn read_traffic(body: &[u8]) -> Option<(VirtualServerKey, Traffic)> {
    let nest = attribute::find(body, SERVICE)?;
    let counted = attribute::find(nest, SVC_STATS64)?;
    let number = |kind| Some(u64::from_ne_bytes(*attribute::find(counted, kind)?.first_chunk::<8>()?));
    let traffic = Traffic {
        connections: number(STATS_CONNECTIONS)?,
        packets: [number(STATS_IN_PACKETS)?, number(STATS_OUT_PACKETS)?],
        bytes: [number(STATS_IN_BYTES)?, number(STATS_OUT_BYTES)?],
    };
    Some((read_identity(nest)?, traffic))
}

/// The service of an answer; `None` for one of a firewall mark or of a protocol or family we do not know.
pub(super) fn read_service(body: &[u8]) -> Option<(VirtualServerKey, VirtualServer)> {
    let nest = attribute::find(body, SERVICE)?;
    let find = |kind| attribute::find(nest, kind);
    let key = read_identity(nest)?;
    let scheduler = attribute::text(find(SVC_SCHED_NAME)?);
    let number = |kind| find(kind).and_then(attribute::u32);
    let (flags, timeout, netmask) = (number(SVC_FLAGS)?, number(SVC_TIMEOUT)?, number(SVC_NETMASK)?);
    Some((key, ServiceOptions { flags, timeout, netmask }.read(key.addr, scheduler)))
}

/// Options of a service as the kernel numbers them.
pub(super) struct ServiceOptions {
    pub(super) flags: u32,
    pub(super) timeout: u32,
    pub(super) netmask: u32,
}

impl ServiceOptions {
    /// What they mean for a virtual server at `addr`.
    pub(super) fn read(self, addr: IpAddr, name: String) -> VirtualServer {
        let scheduler = Scheduler { name, flags: SchedulerFlags(self.flags & SchedulerFlags::ALL.0) };
        let is_persistent = self.flags & PERSISTENT != 0;
        let prefix = prefix(addr, self.netmask);
        let persistence =
            is_persistent.then(|| Persistence { seconds: self.timeout, prefix: prefix.unwrap_or_default() });
        let foreign_options =
            self.flags & !(PERSISTENT | HASHED | SchedulerFlags::ALL.0) != 0 || (is_persistent && prefix.is_none());
        VirtualServer { scheduler, persistence, foreign_options }
    }
}

/// What the options of a destination mean: its flags, its weight, its upper and lower threshold.
pub(super) fn real_server(flags: u32, weight: u32, thresholds: [u32; 2]) -> RealServer {
    // The kernel makes the one of the other for an address of this host.
    let is_masqueraded = matches!(flags & FORWARDING, MASQUERADE | LOCAL_NODE);
    RealServer { weight, foreign_options: !is_masqueraded || thresholds != [0, 0] }
}

/// The destination of an answer.
pub(super) fn read_dest(body: &[u8], service: VirtualServerKey) -> Option<(RealServerKey, (RealServer, Connections))> {
    let nest = attribute::find(body, DEST)?;
    let find = |kind| attribute::find(nest, kind);
    // Linux before 3.18 does not say: it knew no mixed families.
    let family = find(DEST_AF).and_then(read_u16).unwrap_or_else(|| family(service.addr));
    let addr = read_address(family, find(DEST_ADDR)?)?;
    let key = RealServerKey { service, addr, port: attribute::be16(find(DEST_PORT)?)? };
    let number = |kind| find(kind).and_then(attribute::u32);
    let connections =
        Connections { active: number(DEST_ACTIVE).unwrap_or(0), inactive: number(DEST_INACTIVE).unwrap_or(0) };
    let thresholds = [DEST_U_THRESH, DEST_L_THRESH].map(|kind| number(kind).unwrap_or(0));
    let value = real_server(number(DEST_FWD_METHOD)?, number(DEST_WEIGHT)?, thresholds);
    Some((key, (value, connections)))
}

/// The answer to GET_INFO.
pub(super) fn read_info(body: &[u8]) -> Option<IpvsInfo> {
    let [_, major, minor, patch] = attribute::find(body, INFO_VERSION).and_then(attribute::u32)?.to_be_bytes();
    let connection_table = attribute::find(body, INFO_TABLE_SIZE).and_then(attribute::u32)?;
    Some(IpvsInfo { version: (major, minor, patch), connection_table })
}

/// A server that is understood whole is written so that it is read again.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz_answer(body: &[u8]) {
    let (_, _) = (read_info(body), read_traffic(body));
    if let Some((key, server)) = read_service(body).filter(|(_, server)| !server.foreign_options) {
        assert_eq!(read_service(&service(&key, &server).finish()), Some((key, server)));
    }
    let of = VirtualServerKey { protocol: Protocol::Tcp, addr: Ipv6Addr::LOCALHOST.into(), port: 80 };
    if let Some((key, (server, _))) = read_dest(body, of).filter(|(_, (server, _))| !server.foreign_options) {
        let again = read_dest(&dest(&key, server).finish(), key.service);
        assert_eq!(again.map(|(key, (server, _))| (key, server)), Some((key, server)));
    }
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;

    fn web() -> VirtualServerKey {
        VirtualServerKey { protocol: Protocol::Tcp, addr: "192.168.0.10".parse().unwrap(), port: 80 }
    }

    /// One attribute a line: `type: bytes in hex`, nested ones indented.
    fn text(bytes: &[u8], nested: bool) -> String {
        let hex = |value: &[u8]| value.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let line = |(kind, value): (u16, &[u8])| match nested {
            true => format!("{kind}:\n{}", text(value, false)),
            false => format!("  {kind}: {}\n", hex(value)),
        };
        attribute::iter(bytes).map(line).collect()
    }

    #[test]
    fn a_virtual_server_is_written_with_every_option_the_kernel_wants() {
        let value = VirtualServer::new("rr".to_owned(), Some(10_800.into()));
        assert_eq!(
            text(&service(&web(), &value).finish(), true),
            "1:\n  1: 0200\n  2: 0600\n  3: c0a8000a000000000000000000000000\n  4: 0050\n  \
             6: 727200\n  7: 01000000ffffffff\n  8: 302a0000\n  9: ffffffff\n"
        );
        let six = VirtualServerKey { protocol: Protocol::Udp, addr: "fd00::a".parse().unwrap(), port: 53 };
        let value = VirtualServer::new("mh,mh-port,mh-fallback".parse::<Scheduler>().unwrap(), None);
        assert_eq!(
            text(&service(&six, &value).finish(), true),
            "1:\n  1: 0a00\n  2: 1100\n  3: fd00000000000000000000000000000a\n  4: 0035\n  \
             6: 6d6800\n  7: 18000000ffffffff\n  8: 00000000\n  9: 80000000\n"
        );
    }

    #[test]
    fn a_real_server_is_written_with_thresholds_and_family() {
        let key = RealServerKey { service: web(), addr: "172.7.21.2".parse().unwrap(), port: 8080 };
        assert_eq!(
            text(&dest(&key, RealServer::new(1)).finish(), true),
            "1:\n  1: 0200\n  2: 0600\n  3: c0a8000a000000000000000000000000\n  4: 0050\n\
             2:\n  1: ac071502000000000000000000000000\n  2: 1f90\n  11: 0200\n  \
             3: 00000000\n  4: 01000000\n  5: 00000000\n  6: 00000000\n"
        );
        assert_eq!(
            text(&dest_id(&key).finish(), true),
            "1:\n  1: 0200\n  2: 0600\n  3: c0a8000a000000000000000000000000\n  4: 0050\n\
             2:\n  1: ac071502000000000000000000000000\n  2: 1f90\n  11: 0200\n"
        );
    }

    #[test]
    fn what_was_written_is_read_back_equal() {
        let value = VirtualServer::new("rr".to_owned(), None);
        assert_eq!(read_service(&service(&web(), &value).finish()), Some((web(), value)));
        let key = RealServerKey { service: web(), addr: "172.7.21.2".parse().unwrap(), port: 8080 };
        let (read, (value, connections)) = read_dest(&dest(&key, RealServer::new(7)).finish(), web()).unwrap();
        assert_eq!((read, value.weight, connections), (key, 7, Connections::default()));
    }

    #[test]
    fn networks_that_are_one_client_are_read_back_in_either_family() {
        let six = VirtualServerKey { addr: "fd00::10".parse().unwrap(), ..web() };
        let masks = |key: VirtualServerKey, prefix: Option<u8>, mask: [u8; 4]| {
            let value = VirtualServer::new("rr".to_owned(), Some(Persistence { seconds: 60, prefix }));
            let body = service(&key, &value).finish();
            let written = attribute::find(attribute::find(&body, SERVICE).unwrap(), SVC_NETMASK).unwrap();
            assert_eq!(written, mask, "{key} {prefix:?}");
            assert_eq!(read_service(&body), Some((key, value)));
        };
        masks(web(), None, [255, 255, 255, 255]);
        masks(web(), Some(24), [255, 255, 255, 0]);
        masks(web(), Some(1), [128, 0, 0, 0]);
        masks(web(), Some(19), [255, 255, 224, 0]);
        masks(six, None, 128_u32.to_ne_bytes());
        masks(six, Some(64), 64_u32.to_ne_bytes());
        assert_eq!(prefix(six.addr, 0), None);
        assert_eq!(prefix(six.addr, 129), None);
    }

    #[test]
    fn flags_and_counters_the_kernel_adds_do_not_make_a_difference() {
        let mut answer = Writer::default();
        answer.nest(SERVICE, |inner| {
            put_identity(inner, &web());
            // HASHED (2), as every listing shows it; and STATS (10), which change by themselves.
            inner.put_str(SVC_SCHED_NAME, "rr").put(SVC_FLAGS, &[2, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
            inner.put(SVC_TIMEOUT, &[0; 4]).put(SVC_NETMASK, &[0xff; 4]).nest(10, |stats| {
                stats.put(1, &[9; 4]);
            });
        });
        let wanted = VirtualServer::new("rr".to_owned(), None);
        assert_eq!(read_service(&answer.finish()), Some((web(), wanted)));
    }

    #[test]
    fn options_that_nobody_here_asks_for_make_a_difference() {
        let with = |flags: u8, mask: [u8; 4]| {
            let mut answer = Writer::default();
            answer.nest(SERVICE, |inner| {
                put_identity(inner, &web());
                inner.put_str(SVC_SCHED_NAME, "sh").put(SVC_FLAGS, &[flags, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
                inner.put(SVC_TIMEOUT, &[60, 0, 0, 0]).put(SVC_NETMASK, &mask);
            });
            read_service(&answer.finish()).unwrap().1.foreign_options
        };
        // One packet (4), flags of the scheduler (8, 16) and one without a meaning (32), a mask of persistent clients (1) that is no prefix.
        for (flags, mask, foreign) in [
            (2, [0xff; 4], false),
            (3, [0xff; 4], false),
            (2, [0; 4], false),
            (6, [0xff; 4], true),
            (26, [0xff; 4], false),
            (34, [0xff; 4], true),
            (35, [0xff; 4], true),
            (3, [0xff, 0xff, 0xff, 0], false),
            (3, [0xff, 0, 0xff, 0], true),
            (3, [0; 4], true),
        ] {
            assert_eq!(with(flags, mask), foreign, "{flags} {mask:?}");
        }
        let real = |method: u32, upper: u32, lower: u32| {
            let mut answer = Writer::default();
            answer.nest(DEST, |inner| {
                inner.put(DEST_ADDR, &address_bytes([172, 7, 21, 2].into())).put(DEST_PORT, &80u16.to_be_bytes());
                inner.put(DEST_FWD_METHOD, &method.to_ne_bytes()).put(DEST_WEIGHT, &1u32.to_ne_bytes());
                inner.put(DEST_U_THRESH, &upper.to_ne_bytes()).put(DEST_L_THRESH, &lower.to_ne_bytes());
            });
            read_dest(&answer.finish(), web()).unwrap().1.0.foreign_options
        };
        for (method, upper, lower, foreign) in [
            (0, 0, 0, false),
            (1, 0, 0, false),
            (2, 0, 0, true),
            (3, 0, 0, true),
            (4, 0, 0, true),
            (0, 5, 0, true),
            (0, 0, 2, true),
        ] {
            assert_eq!(real(method, upper, lower), foreign, "{method} {upper} {lower}");
        }
    }

    #[test]
    fn firewall_mark_services_and_torn_answers_are_read_over() {
        let mut answer = Writer::default();
        answer.nest(SERVICE, |inner| {
            inner.put(SVC_AF, &[2, 0]).put(SVC_FWMARK, &[7, 0, 0, 0]).put_str(SVC_SCHED_NAME, "rr");
        });
        assert_eq!(read_service(&answer.finish()), None);
        let whole = service(&web(), &VirtualServer::new("rr".to_owned(), None)).finish();
        for length in 0..whole.len() {
            assert_eq!(read_service(&whole[..length]), None, "{length} bytes");
        }
        assert_eq!(read_dest(&[], web()), None);
    }

    #[test]
    fn version_is_three_bytes_of_one_number() {
        let mut answer = Writer::default();
        answer.put(INFO_VERSION, &0x0001_0201_u32.to_ne_bytes()).put(INFO_TABLE_SIZE, &4096u32.to_ne_bytes());
        let info = read_info(&answer.finish()).unwrap();
        assert_eq!((info.version, info.connection_table), ((1, 2, 1), 4096));
    }

    #[test]
    fn what_a_service_has_counted_is_read_in_64_bits_and_by_direction() {
        let key = VirtualServerKey { protocol: Protocol::Udp, addr: Ipv6Addr::LOCALHOST.into(), port: 53 };
        let answer = |kind: u16| {
            let mut answer = Writer::default();
            answer.nest(SERVICE, |service| {
                put_identity(service, &key);
                service.nest(kind, |counted| {
                    for (kind, number) in (1..).zip([7_u64, 1 << 40, 3, 1 << 50, 5]) {
                        counted.put(kind, &number.to_ne_bytes());
                    }
                });
            });
            answer.finish()
        };
        let traffic = Traffic { connections: 7, packets: [1 << 40, 3], bytes: [1 << 50, 5] };
        assert_eq!(read_traffic(&answer(SVC_STATS64)), Some((key, traffic)));
        assert_eq!(read_traffic(&answer(10)), None, "numbers of 32 bits wrap, and are not read");
    }
}
