//! IPVS by getsockopt(2), its older interface: all IPv4 virtual servers in one call, the real servers of one in another.
//!
//! netlink takes a datagram with 64-bit counters for each virtual server and a conversation for the real servers of each.
//! `/proc/net/ip_vs` is no way to read all: where the text goes on behind a page, the kernel counts the servers of every network
//! namespace before it and takes the number for one of ours (`ip_vs_info_seq_next`, `ip_vs_info_array`), so with IPVS in two
//! network namespaces servers are left out, but on the newest kernels, where each has a table of its own (7.3); and it walks from the first server to find each page.
//!
//! Invariant: a call returns all or fails. Servers of a firewall mark and of protocols that nobody here serves are left out.

use std::io;
use std::mem::{offset_of, size_of};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;

use netstate::Protocol;
use netstate::ipvs::{RealServer, RealServerKey, VirtualServer, VirtualServerKey};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::wire;
use crate::error::KernelError;
use crate::sockopt;

// IP_VS_SO_GET_* (include/uapi/linux/ip_vs.h).
const GET_INFO: libc::c_int = 64 + 1024 + 64 + 1;
const GET_SERVICES: libc::c_int = GET_INFO + 1;
const GET_DESTS: libc::c_int = GET_INFO + 3;

/// Virtual servers that may be made between the question how many there are and the listing.
const SPARE: usize = 64;

/// Real servers of one virtual server that most have at most.
const FEW: usize = 16;

/// `struct ip_vs_getinfo`.
#[repr(C)]
struct Info {
    _version: u32,
    _size: u32,
    services: u32,
}

/// `struct ip_vs_stats_user`.
#[repr(C)]
struct Stats {
    _numbers: [u32; 3],
    _bytes: [u64; 2],
    _rates: [u32; 5],
}

/// `struct ip_vs_service_entry`.
#[repr(C)]
struct Service {
    protocol: u16,
    addr: u32,
    port: u16,
    mark: u32,
    scheduler: [u8; 16],
    flags: u32,
    timeout: u32,
    netmask: u32,
    servers: u32,
    stats: Stats,
}

/// A virtual server in a listing, without what changes by itself: its counters, which come last.
pub(super) type Entry = [u8; offset_of!(Service, stats)];

/// `struct ip_vs_get_services`.
#[repr(C)]
struct Services {
    count: u32,
    table: [Service; 0],
}

/// `struct ip_vs_dest_entry`.
#[repr(C)]
struct Dest {
    addr: u32,
    port: u16,
    flags: u32,
    weight: u32,
    upper: u32,
    lower: u32,
    _connections: [u32; 3],
    _stats: Stats,
}

/// `struct ip_vs_get_dests`.
#[repr(C)]
struct Dests {
    protocol: u16,
    addr: u32,
    port: u16,
    _mark: u32,
    count: u32,
    table: [Dest; 0],
}

/// Reads the table of the network namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Sockopt {
    socket: OwnedFd,
    buffer: Vec<u8>,
    /// How many virtual servers there were when they were last listed.
    listed: Option<usize>,
}

/// A virtual server as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) key: VirtualServerKey,
    pub(super) value: VirtualServer,
    /// How many real servers it has.
    pub(super) servers: usize,
}

/// All IPv4 virtual servers at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listing<'a>(&'a [u8]);

impl Sockopt {
    /// # Errors
    /// When the system refuses a socket.
    pub(super) fn open() -> Result<Self, KernelError> {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
        let socket = socket.map_err(|errno| KernelError::io("open", "IPVS tables", "socket", errno.into()))?;
        Ok(Self { socket, buffer: Vec::new(), listed: None })
    }

    /// How many IPv4 virtual servers there are, those of firewall marks among them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn count(&self) -> Result<usize, KernelError> {
        let mut info = [0; size_of::<Info>()];
        self.get(GET_INFO, &mut info).map_err(unreadable)?;
        Ok(count_at(&info, offset_of!(Info, services)))
    }

    /// All IPv4 virtual servers.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn services(&mut self) -> Result<Listing<'_>, KernelError> {
        // Where there are more by now, the listing is full.
        let known = self.listed.map_or_else(|| self.count(), Ok)?;
        let mut room = known.saturating_add(SPARE);
        loop {
            self.clear(offset_of!(Services, table) + room * size_of::<Service>());
            put(&mut self.buffer, offset_of!(Services, count), &number(room));
            let mut buffer = std::mem::take(&mut self.buffer);
            let read = self.get(GET_SERVICES, &mut buffer);
            self.buffer = buffer;
            read.map_err(unreadable)?;
            let used =
                entries::<Service>(&self.buffer, offset_of!(Services, table)).take_while(|e| is_service(e)).count();
            if used < room {
                self.listed = Some(used);
                let start = offset_of!(Services, table);
                return Ok(Listing(self.buffer.get(start..start + used * size_of::<Service>()).unwrap_or_default()));
            }
            room *= 2;
        }
    }

    /// The real servers of an IPv4 virtual server; `None` when it does not exist.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn servers(
        &mut self,
        service: &VirtualServerKey,
    ) -> Result<Option<Vec<(RealServerKey, RealServer)>>, KernelError> {
        let mut room = FEW;
        loop {
            self.clear(offset_of!(Dests, table) + room * size_of::<Dest>());
            put(&mut self.buffer, offset_of!(Dests, protocol), &u16::from(service.protocol.number()).to_ne_bytes());
            if let IpAddr::V4(addr) = service.addr {
                put(&mut self.buffer, offset_of!(Dests, addr), &addr.octets());
            }
            put(&mut self.buffer, offset_of!(Dests, port), &service.port.to_be_bytes());
            put(&mut self.buffer, offset_of!(Dests, count), &number(room));
            let mut buffer = std::mem::take(&mut self.buffer);
            let read = self.get(GET_DESTS, &mut buffer);
            self.buffer = buffer;
            match read {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
                Err(error) => {
                    return Err(KernelError::io("list real servers of", service, "IP_VS_SO_GET_DESTS", error));
                }
                Ok(()) => {}
            }
            let entries = entries::<Dest>(&self.buffer, offset_of!(Dests, table));
            let found: Vec<_> = entries.map_while(|entry| real_server(entry, *service)).collect();
            if found.len() < room {
                return Ok(Some(found));
            }
            room *= 8;
        }
    }

    /// The buffer filled with zeros, behind which the end of what the kernel writes is seen.
    fn clear(&mut self, bytes: usize) {
        self.buffer.clear();
        // One that grows would have room for twice as much.
        self.buffer.reserve_exact(bytes);
        self.buffer.resize(bytes, 0);
    }

    fn get(&self, option: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
        sockopt::get(&self.socket, libc::IPPROTO_IP, option, buffer)
    }
}

impl<'a> Listing<'a> {
    /// The virtual servers whose keys are wanted.
    pub(super) fn of(self, wants: impl Fn(&VirtualServerKey) -> bool) -> impl Iterator<Item = Listed> {
        entries::<Service>(self.0, 0).filter_map(move |entry| Some(listed(entry, key(entry).filter(&wants)?)))
    }

    /// The entries without what changes by itself.
    pub(super) fn entries(self) -> impl Iterator<Item = &'a Entry> + Clone {
        entries::<Service>(self.0, 0).filter_map(|entry| entry.first_chunk())
    }
}

fn unreadable(error: io::Error) -> KernelError {
    KernelError::io("list", "IPVS virtual servers", "getsockopt", error)
}

/// The kernel takes numbers of entries in 32 bits.
fn number(count: usize) -> [u8; 4] {
    u32::try_from(count).unwrap_or(u32::MAX).to_ne_bytes()
}

fn put(buffer: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = buffer.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// The entries of type `T` from the byte `start` on.
fn entries<T>(buffer: &[u8], start: usize) -> impl Iterator<Item = &[u8]> + Clone {
    buffer.get(start..).unwrap_or_default().chunks_exact(size_of::<T>())
}

fn bytes<const N: usize>(entry: &[u8], at: usize) -> [u8; N] {
    entry.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

fn number_at(entry: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes(entry, at))
}

fn count_at(entry: &[u8], at: usize) -> usize {
    usize::try_from(number_at(entry, at)).unwrap_or(usize::MAX)
}

/// False for the zeros behind the last server: each has a scheduler, if only `none`.
fn is_service(entry: &[u8]) -> bool {
    bytes::<1>(entry, offset_of!(Service, scheduler)) != [0]
}

/// Whose an entry is; `None` of a firewall mark and of protocols that nobody here serves.
pub(super) fn key(entry: &[u8]) -> Option<VirtualServerKey> {
    if number_at(entry, offset_of!(Service, mark)) != 0 {
        return None;
    }
    let protocol = u8::try_from(u16::from_ne_bytes(bytes(entry, offset_of!(Service, protocol)))).ok()?;
    let addr = IpAddr::V4(Ipv4Addr::from(bytes::<4>(entry, offset_of!(Service, addr))));
    let port = u16::from_be_bytes(bytes(entry, offset_of!(Service, port)));
    Some(VirtualServerKey { protocol: Protocol::from_number(protocol)?, addr, port })
}

fn listed(entry: &[u8], key: VirtualServerKey) -> Listed {
    let scheduler = crate::attribute::text(&bytes::<16>(entry, offset_of!(Service, scheduler)));
    let number = |at| number_at(entry, at);
    let options = wire::ServiceOptions {
        flags: number(offset_of!(Service, flags)),
        timeout: number(offset_of!(Service, timeout)),
        netmask: number(offset_of!(Service, netmask)),
    };
    let value = options.read(key.addr, scheduler);
    Listed { key, value, servers: count_at(entry, offset_of!(Service, servers)) }
}

/// The real server of an entry; `None` for the zeros behind the last one, for none has the address 0.0.0.0.
fn real_server(entry: &[u8], service: VirtualServerKey) -> Option<(RealServerKey, RealServer)> {
    let addr = Ipv4Addr::from(bytes::<4>(entry, offset_of!(Dest, addr)));
    if addr.is_unspecified() {
        return None;
    }
    let port = u16::from_be_bytes(bytes(entry, offset_of!(Dest, port)));
    let number = |at| number_at(entry, at);
    let thresholds = [number(offset_of!(Dest, upper)), number(offset_of!(Dest, lower))];
    let value = wire::real_server(number(offset_of!(Dest, flags)), number(offset_of!(Dest, weight)), thresholds);
    Some((RealServerKey { service, addr: addr.into(), port }, value))
}

/// The entry of a virtual server, of which `servers` is the number of real servers.
#[cfg(test)]
pub(super) fn entry(key: VirtualServerKey, servers: u8) -> Entry {
    let mut entry = [0; offset_of!(Service, stats)];
    put(&mut entry, offset_of!(Service, protocol), &u16::from(key.protocol.number()).to_ne_bytes());
    if let IpAddr::V4(addr) = key.addr {
        put(&mut entry, offset_of!(Service, addr), &addr.octets());
    }
    put(&mut entry, offset_of!(Service, port), &key.port.to_be_bytes());
    put(&mut entry, offset_of!(Service, servers), &[servers]);
    entry
}

/// Whatever the bytes are, no more servers are read than they have room for.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz_entries(input: &[u8]) {
    let listing = Listing(input);
    assert!(listing.of(|_| true).count() <= listing.entries().count());
    assert_eq!(listing.entries().filter(|entry| key(*entry).is_some()).count(), listing.of(|_| true).count());
    let service = VirtualServerKey { protocol: Protocol::Tcp, addr: Ipv4Addr::LOCALHOST.into(), port: 1 };
    let servers = entries::<Dest>(input, 0).filter_map(|entry| real_server(entry, service)).count();
    assert!(servers * size_of::<Dest>() <= input.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(last: u8, put: impl Fn(&mut [u8])) -> Vec<u8> {
        let mut entry = vec![0; size_of::<Service>()];
        super::put(&mut entry, offset_of!(Service, protocol), &6u16.to_ne_bytes());
        super::put(&mut entry, offset_of!(Service, addr), &[192, 168, 0, last]);
        super::put(&mut entry, offset_of!(Service, port), &80u16.to_be_bytes());
        super::put(&mut entry, offset_of!(Service, scheduler), b"rr");
        super::put(&mut entry, offset_of!(Service, flags), &2u32.to_ne_bytes());
        super::put(&mut entry, offset_of!(Service, netmask), &u32::MAX.to_ne_bytes());
        super::put(&mut entry, offset_of!(Service, servers), &3u32.to_ne_bytes());
        put(&mut entry);
        entry
    }

    /// x86-64 and aarch64; the sizes are those of the C structures, as `ipvsadm` sends them.
    #[cfg(target_pointer_width = "64")]
    #[test]
    fn structures_are_as_long_as_in_c() {
        assert_eq!([size_of::<Service>(), size_of::<Dest>(), size_of::<Info>()], [104, 96, 12]);
        assert_eq!([offset_of!(Services, table), offset_of!(Dests, table), offset_of!(Service, stats)], [8, 24, 48]);
    }

    #[test]
    fn virtual_server_is_read_with_its_number_of_real_servers() {
        let entry = service(10, |_| {});
        let key = VirtualServerKey { protocol: Protocol::Tcp, addr: [192, 168, 0, 10].into(), port: 80 };
        let value = VirtualServer::new("rr".to_owned(), None);
        let listed: Vec<_> = Listing(&entry).of(|_| true).collect();
        assert_eq!(listed, [Listed { key, value, servers: 3 }]);
    }

    #[test]
    fn servers_of_firewall_marks_and_unknown_protocols_are_left_out() {
        let marked = service(10, |entry| put(entry, offset_of!(Service, mark), &7u32.to_ne_bytes()));
        let strange = service(11, |entry| put(entry, offset_of!(Service, protocol), &99u16.to_ne_bytes()));
        let bytes = [marked, strange, service(12, |_| {})].concat();
        assert_eq!((Listing(&bytes).of(|_| true).count(), Listing(&bytes).entries().count()), (1, 3));
        let port = |port| Listing(&bytes).of(move |key| key.port == port).count();
        assert_eq!((port(80), port(81)), (1, 0));
    }

    #[test]
    fn entry_has_everything_but_counters() {
        let of = |entry: &[u8]| Listing(entry).entries().copied().collect::<Vec<_>>();
        let before = of(&service(10, |_| {}));
        for at in 0..size_of::<Service>() {
            let changed = service(10, |entry| entry[at] ^= 1);
            assert_eq!(of(&changed) == before, at >= offset_of!(Service, stats), "byte {at}");
        }
    }

    #[test]
    fn real_server_is_read_with_whether_others_set_options() {
        let service = VirtualServerKey { protocol: Protocol::Tcp, addr: [192, 168, 0, 10].into(), port: 80 };
        let with = |flags: u32, upper: u32, lower: u32| {
            let mut entry = vec![0; size_of::<Dest>()];
            put(&mut entry, offset_of!(Dest, addr), &[172, 7, 21, 2]);
            put(&mut entry, offset_of!(Dest, port), &8080u16.to_be_bytes());
            put(&mut entry, offset_of!(Dest, weight), &5u32.to_ne_bytes());
            put(&mut entry, offset_of!(Dest, flags), &flags.to_ne_bytes());
            put(&mut entry, offset_of!(Dest, upper), &upper.to_ne_bytes());
            put(&mut entry, offset_of!(Dest, lower), &lower.to_ne_bytes());
            real_server(&entry, service)
        };
        let key = RealServerKey { service, addr: [172, 7, 21, 2].into(), port: 8080 };
        for (flags, upper, lower, foreign_options) in
            [(0x100, 0, 0, false), (1, 0, 0, false), (2, 0, 0, true), (3, 0, 0, true), (0, 9, 0, true), (0, 0, 3, true)]
        {
            assert_eq!(with(flags, upper, lower), Some((key, RealServer { weight: 5, foreign_options })), "{flags}");
        }
        assert_eq!(real_server(&[0; size_of::<Dest>()], service), None);
    }
}
