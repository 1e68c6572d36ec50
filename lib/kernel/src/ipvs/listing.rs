//! `/proc/net/ip_vs`: every virtual server with its real servers in one text, several times faster than netlink's listings.
//!
//! IPVS announces no changes, so this is how a change by another program is found. The form is that of
//! `ip_vs_info_seq_show` in net/netfilter/ipvs/ip_vs_ctl.c. It does not show thresholds and scheduler flags, and counts
//! persistence in the kernel's ticks.
//!
//! Invariant: a line that is not understood makes the whole text unreadable; a server is never read over and so taken
//! for missing. Servers of a firewall mark and of protocols that nobody here serves are not listed.

use std::fs::{self, File};
use std::hash::Hasher;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netstate::Protocol;
use netstate::ipvs::VirtualServerKey;

use super::Connections;
use crate::error::{Cause, KernelError};

/// The file, of the calling thread's network namespace.
const PATH: &str = "/proc/thread-self/net/ip_vs";
/// Lines of headings.
const HEADINGS: usize = 3;

/// A virtual server as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// What clients connect to.
    pub key: VirtualServerKey,
    /// The scheduler's name; `none` without one.
    pub scheduler: String,
    /// Every packet is a connection of its own (IP_VS_SVC_F_ONEPACKET).
    pub one_packet: bool,
    /// How long a client stays with its real server, when it does.
    pub persistence: Option<Persistence>,
    /// Its real servers, in the kernel's order.
    pub servers: Vec<ListedServer>,
}

/// How long clients stay, and which count as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Persistence {
    /// In ticks of the kernel (CONFIG_HZ).
    pub ticks: u32,
    /// Clients are told apart by their whole address.
    pub whole_address: bool,
}

/// A real server as it is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedServer {
    /// Its address.
    pub addr: IpAddr,
    /// Its port.
    pub port: u16,
    /// How packets get there.
    pub forwarding: Forwarding,
    /// Share of new connections.
    pub weight: u32,
    /// Connections that it has.
    pub connections: Connections,
}

impl ListedServer {
    /// True when packets get there in the only way that this product asks for: the kernel makes the one of the other for an
    /// address of this host.
    #[must_use]
    pub const fn is_masqueraded(&self) -> bool {
        matches!(self.forwarding, Forwarding::Masquerade | Forwarding::Local)
    }
}

/// How packets get to a real server (`ip_vs_fwd_name`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarding {
    /// Its address is written into them; the only one that this product uses.
    Masquerade,
    /// It is this host.
    Local,
    /// In a tunnel.
    Tunnel,
    /// To its hardware address.
    Route,
    /// Past IPVS.
    Bypass,
}

/// Reads the listing of the calling thread's network namespace.
///
/// # Errors
/// [`Cause::Missing`] when this kernel has no IPVS or the module is not loaded; when a line is not understood.
pub fn listed() -> Result<Vec<Listed>, KernelError> {
    let text = fs::read_to_string(PATH).map_err(unreadable)?;
    read(&text)
}

fn read(text: &str) -> Result<Vec<Listed>, KernelError> {
    parse(text).map_err(|line| error(Cause::Unexpected(format!("{PATH}: {line:?}"))))
}

/// The listing with the [`fingerprint`] of its very text.
///
/// # Errors
/// As [`listed`].
pub(super) fn listed_with_fingerprint(hasher: impl Hasher) -> Result<(Vec<Listed>, u64), KernelError> {
    let text = fs::read_to_string(PATH).map_err(unreadable)?;
    Ok((read(&text)?, hash_lines(text.as_bytes(), hasher).map_err(unreadable)?))
}

/// Puts into `hasher` what the text says, connections apart: they come and go all the time. A tenth of the work of [`listed`],
/// and no memory.
///
/// # Errors
/// As [`listed`] when the text cannot be read.
pub(super) fn fingerprint(hasher: impl Hasher) -> Result<u64, KernelError> {
    let file = File::open(PATH).map_err(unreadable)?;
    hash_lines(BufReader::with_capacity(PIECE, file), hasher).map_err(unreadable)
}

/// More than the kernel gives at once, which is a page.
const PIECE: usize = 16 * 1024;

fn hash_lines(mut text: impl BufRead, mut hasher: impl Hasher) -> io::Result<u64> {
    let mut line = Vec::new();
    while text.read_until(b'\n', &mut line)? > 0 {
        hasher.write(without_connections(&line));
        line.clear();
    }
    Ok(hasher.finish())
}

/// The line of a real server without its last two numbers; any other line whole.
fn without_connections(line: &[u8]) -> &[u8] {
    if !line.starts_with(b"  ->") {
        return line;
    }
    let mut rest = line.trim_ascii_end();
    for _ in 0..2 {
        let number = rest.iter().rev().take_while(|letter| !letter.is_ascii_whitespace()).count();
        rest = rest.get(..rest.len().saturating_sub(number)).unwrap_or_default().trim_ascii_end();
    }
    rest
}

fn error(cause: Cause) -> KernelError {
    KernelError::new("list", "IPVS virtual servers", cause)
}

fn unreadable(source: io::Error) -> KernelError {
    match source.kind() {
        io::ErrorKind::NotFound => error(Cause::Missing("kernel subsystem IPVS".to_owned())),
        _ => error(Cause::Io { call: PATH.to_owned(), error: source }),
    }
}

/// The servers in the text; the line that is not understood otherwise.
fn parse(text: &str) -> Result<Vec<Listed>, String> {
    let mut listed: Vec<Listed> = Vec::new();
    // False below a server that is not listed.
    let mut listing = false;
    for line in text.lines().skip(HEADINGS) {
        let mut words = line.split_ascii_whitespace();
        let understood = match words.next() {
            None => Some(()),
            Some("->") => match listed.last_mut().filter(|_| listing) {
                Some(server) => real_server(words).map(|real| server.servers.push(real)),
                None => Some(()),
            },
            Some(protocol) => match protocol.to_ascii_lowercase().parse::<Protocol>() {
                Ok(protocol) => virtual_server(protocol, words).map(|server| {
                    listed.push(server);
                    listing = true;
                }),
                Err(_) => {
                    listing = false;
                    Some(())
                }
            },
        };
        understood.ok_or(line)?;
    }
    Ok(listed)
}

/// A text that is understood names every server that a line of it names, and none that none does.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz_listing(text: &str) {
    let lines = text.lines().skip(HEADINGS).filter(|line| !line.trim().is_empty()).count();
    match parse(text) {
        Ok(listed) => {
            let found: usize = listed.iter().map(|server| 1 + server.servers.len()).sum();
            assert!(found <= lines, "{found} servers in {lines} lines");
        }
        Err(line) => assert!(text.contains(&line)),
    }
    let number = |text: &str| hash_lines(text.as_bytes(), std::hash::DefaultHasher::new());
    assert_eq!(number(text).ok(), number(text).ok());
}

fn virtual_server<'a>(protocol: Protocol, mut words: impl Iterator<Item = &'a str>) -> Option<Listed> {
    let (addr, port) = place(words.next()?)?;
    let scheduler = words.next()?.to_owned();
    let mut rest = words.next();
    let one_packet = rest == Some("ops");
    if one_packet {
        rest = words.next();
    }
    let persistence = match rest {
        None => None,
        Some("persistent") => {
            let ticks = words.next()?.parse().ok()?;
            let mask = u32::from_str_radix(words.next()?, 16).ok()?;
            // IPv4: an address mask; IPv6: a prefix length, printed as if it were in network order.
            let whole = if addr.is_ipv4() { u32::MAX } else { u32::from_be(128) };
            Some(Persistence { ticks, whole_address: mask == whole })
        }
        Some(_) => return None,
    };
    let key = VirtualServerKey { protocol, addr, port };
    words.next().is_none().then_some(Listed { key, scheduler, one_packet, persistence, servers: Vec::new() })
}

fn real_server<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<ListedServer> {
    let (addr, port) = place(words.next()?)?;
    let forwarding = match words.next()? {
        "Masq" => Forwarding::Masquerade,
        "Local" => Forwarding::Local,
        "Tunnel" => Forwarding::Tunnel,
        "Route" => Forwarding::Route,
        "Bypass" => Forwarding::Bypass,
        _ => return None,
    };
    let mut number = || words.next()?.parse::<u32>().ok();
    let weight = number()?;
    let connections = Connections { active: number()?, inactive: number()? };
    words.next().is_none().then_some(ListedServer { addr, port, forwarding, weight, connections })
}

/// `C0A8000A:0050`, or `[fd00:0000:0000:0000:0000:0000:0000:000a]:0035`.
fn place(text: &str) -> Option<(IpAddr, u16)> {
    let (addr, port) = text.rsplit_once(':')?;
    let addr = match addr.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(six) => IpAddr::V6(six.parse::<Ipv6Addr>().ok()?),
        None if addr.len() == 8 => IpAddr::V4(Ipv4Addr::from_bits(hex(addr)?)),
        None => return None,
    };
    let port = (port.len() == 4).then(|| hex(port)).flatten()?;
    Some((addr, u16::try_from(port).ok()?))
}

/// Digits only: the parser of numbers would take a sign.
fn hex(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.1 prints it, the blanks at the ends of lines included.
    const TEXT: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  C0A8000A:0050 rr  
  -> AC071502:1F90      Masq    1      3          12        
  -> AC071603:1F90      Tunnel  0      0          0         
TCP  C0A8000A:01BB wlc  persistent 2700000 FFFFFFFF
FWM  00000007 rr  
  -> 0A040715:0050      Route   1      0          0         
UDP  C0A80002:0035 sh ops persistent 1000 FFFFFF00
UDP  [fd00:0000:0000:0000:0000:0000:0000:000a]:0035 rr 
  -> [fd00:0007:0000:0000:0000:0000:0000:0002]:0035      Local   65535  0          4294967295
UDP  [fd00:0000:0000:0000:0000:0000:0000:000b]:FFFF rr persistent 2700000 80000000
SCTP  00000000:0001 none  
";

    fn key(protocol: Protocol, addr: &str, port: u16) -> VirtualServerKey {
        VirtualServerKey { protocol, addr: addr.parse().unwrap(), port }
    }

    #[test]
    fn text_of_the_kernel_is_read_whole() {
        let listed = parse(TEXT).unwrap();
        let keys: Vec<_> = listed.iter().map(|server| server.key).collect();
        assert_eq!(
            keys,
            [
                key(Protocol::Tcp, "192.168.0.10", 80),
                key(Protocol::Tcp, "192.168.0.10", 443),
                key(Protocol::Udp, "192.168.0.2", 53),
                key(Protocol::Udp, "fd00::a", 53),
                key(Protocol::Udp, "fd00::b", 65535),
                key(Protocol::Sctp, "0.0.0.0", 1),
            ]
        );
        let web = &listed[0];
        assert_eq!((web.scheduler.as_str(), web.one_packet, web.persistence), ("rr", false, None));
        let connections = Connections { active: 3, inactive: 12 };
        let pod = ListedServer {
            addr: "172.7.21.2".parse().unwrap(),
            port: 8080,
            forwarding: Forwarding::Masquerade,
            weight: 1,
            connections,
        };
        assert_eq!(web.servers[0], pod);
        assert_eq!((web.servers[1].forwarding, web.servers[1].weight), (Forwarding::Tunnel, 0));
        assert_eq!(listed[1].persistence, Some(Persistence { ticks: 2_700_000, whole_address: true }));
        assert!(listed[1].servers.is_empty(), "a server of a firewall mark keeps its real servers");
        assert_eq!((listed[2].one_packet, listed[2].persistence.unwrap().whole_address), (true, false));
        assert_eq!(listed[3].servers[0].connections.inactive, u32::MAX);
        assert_eq!(listed[4].persistence.unwrap().whole_address, cfg!(target_endian = "little"));
    }

    #[test]
    fn fingerprint_changes_with_everything_but_connections() {
        use std::hash::DefaultHasher;

        let number = |text: &str| hash_lines(text.as_bytes(), DefaultHasher::new()).unwrap();
        let before = number(TEXT);
        assert_eq!(number(&TEXT.replace("1      3          12 ", "1      4          0  ")), before);
        assert_eq!(hash_lines(BufReader::with_capacity(7, TEXT.as_bytes()), DefaultHasher::new()).unwrap(), before);
        for (old, new) in [
            ("Masq    1 ", "Masq    2 "),
            ("Masq    1 ", "Route   1 "),
            ("AC071502:1F90", "AC071502:1F91"),
            ("rr  \n  -> AC071502", "sh  \n  -> AC071502"),
            ("TCP  C0A8000A:01BB", "TCP  C0A8000A:01BC"),
            ("persistent 2700000", "persistent 2700001"),
            ("  -> AC071603:1F90      Tunnel  0      0          0         \n", ""),
            ("SCTP  00000000:0001 none  \n", ""),
        ] {
            let changed = TEXT.replacen(old, new, 1);
            assert_ne!(changed, TEXT, "{old:?}");
            assert_ne!(number(&changed), before, "{old:?} to {new:?}");
        }
    }

    #[test]
    fn headings_alone_are_an_empty_listing() {
        let headings: String = TEXT.lines().take(HEADINGS).map(|line| format!("{line}\n")).collect();
        assert_eq!(parse(&headings), Ok(Vec::new()));
        assert_eq!(parse(""), Ok(Vec::new()));
    }

    #[test]
    fn a_line_that_is_not_understood_is_no_missing_server() {
        let whole = |line: &str| format!("\n\n\nTCP  C0A8000A:0050 rr  \n{line}\n");
        for line in [
            "TCP  C0A8000:0050 rr",
            "TCP  C0A8000A:50 rr",
            "TCP  +0A8000A:0050 rr",
            "TCP  C0A8000A:0050",
            "TCP  C0A8000A:0050 rr persistent x FFFFFFFF",
            "TCP  C0A8000A:0050 rr sticky",
            "TCP  [fd00::a:0050 rr",
            "UDP  [zz]:0035 rr",
            "  -> AC071502:1F90 Masq 1 3",
            "  -> AC071502:1F90 Masq -1 3 1",
            "  -> AC071502:1F90 Masq 1 3 1 9",
            "  -> AC071502:1F90 Teleport 1 3 1",
        ] {
            assert_eq!(parse(&whole(line)), Err(line.to_owned()));
        }
    }
}
