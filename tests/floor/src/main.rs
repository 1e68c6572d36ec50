//! The floor of the CNI benchmark: what one ADD and one DEL cost when a program makes the kernel calls and file operations that
//! an attachment consists of, and nothing else.
//!
//! It is no plugin to use. It serves one network, the benchmark's (constants below), reads its standard input to the end and
//! believes none of it, undoes nothing, and knows no version, CHECK or IPv6. Invariant: every call that `netd-cni` must make for one
//! Pod with a default route behind a bridge is made here too, in as few system calls as the kernel allows, so the difference
//! between the two is the price of parsing, checking and keeping records.

#![no_main]
#![allow(unsafe_code, reason = "raw system calls are the point")]

mod delete;
mod message;
mod reservation;
mod socket;

use std::io;
use std::net::Ipv4Addr;

use message::{Message, Reply};
use socket::Socket;

/// The bridge that the benchmark has made.
const BRIDGE: &str = "floor0";
/// The bridge's address; Pods get the others of its /24.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 98, 1, 1);
const PREFIX_LENGTH: u8 = 24;
/// The cluster's Pod network, which gets a route of its own as under flannel.
const POD_NETWORK: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 98, 0, 0), 16);
const MTU: u32 = 1450;
const TXQLEN: u32 = 1000;
/// Where reservations are kept, beside those of the other networks.
const RESERVATIONS: &str = "/var/lib/cni/networks/floor";

/// Entry point without Rust's own start-up (no signal handler, no thread information, no argument vector).
#[unsafe(no_mangle)]
extern "C" fn main() -> libc::c_int {
    drain_input();
    let outcome = match std::env::var("CNI_COMMAND").as_deref() {
        Ok("ADD") => add(),
        Ok("DEL") => del().map(|()| String::new()),
        Ok("VERSION") => Ok(r#"{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}"#.to_owned()),
        _ => Err(io::Error::other("CNI_COMMAND is none of ADD, DEL, VERSION")),
    };
    let (text, status) = match outcome {
        Ok(text) => (text, 0),
        Err(error) => (format!(r#"{{"cniVersion":"1.0.0","code":100,"msg":"{error}"}}"#), 1),
    };
    // SAFETY: the pointer and the length describe the live bytes of `text`.
    unsafe { libc::write(1, text.as_ptr().cast(), text.len()) };
    status
}

fn drain_input() {
    let mut buffer = [0_u8; 8192];
    // SAFETY: the pointer and the length describe `buffer`.
    while unsafe { libc::read(0, buffer.as_mut_ptr().cast(), buffer.len()) } > 0 {}
}

fn variable(name: &str) -> io::Result<String> {
    std::env::var(name).map_err(|_| io::Error::other(format!("{name} is not set")))
}

/// Name of the host's end; the benchmark's container IDs differ in their first eleven characters.
fn host_name(container: &str) -> String {
    format!("veth{}", container.get(..11).unwrap_or(container))
}

/// A locally administered hardware address that ends in `addr`.
fn mac(prefix: u8, addr: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = addr.octets();
    [prefix, 0x58, a, b, c, d]
}

fn add() -> io::Result<String> {
    let (container, netns) = (variable("CNI_CONTAINERID")?, variable("CNI_NETNS")?);
    let addr = reservation::reserve(&container)?;
    let pod = std::fs::File::open(&netns)?;
    let host = Socket::open()?;
    let bridge = host.link_by_name(BRIDGE)?;
    let veth = create_veth(&host, &host_name(&container), bridge.index, &pod, addr)?;
    let mut port = Message::link(libc::RTM_SETLINK, 0, libc::AF_BRIDGE, veth.index, 0);
    port.nest(message::IFLA_PROTINFO, |port| port.attribute(message::IFLA_BRPORT_MODE, &[1]));
    host.request(&[port])?;
    host.request(&[neighbour(bridge.index, addr)])?;
    inside(&pod, veth.peer_index, addr)?;
    Ok(result(&host_name(&container), &netns, addr))
}

/// Both ends in one message: the host's up and on the bridge, the Pod's in its namespace.
fn create_veth(host: &Socket, name: &str, bridge: i32, pod: &std::fs::File, addr: Ipv4Addr) -> io::Result<Reply> {
    use std::os::fd::AsRawFd;
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL | libc::NLM_F_ECHO;
    let mut veth = Message::link(libc::RTM_NEWLINK, flags, libc::AF_UNSPEC, 0, libc::IFF_UP);
    end(&mut veth, name, mac(0x02, addr));
    veth.attribute(libc::IFLA_MASTER, &bridge.to_ne_bytes());
    veth.nest(libc::IFLA_LINKINFO, |info| {
        info.attribute(libc::IFLA_INFO_KIND, b"veth");
        info.nest(libc::IFLA_INFO_DATA, |data| {
            data.nest(message::VETH_INFO_PEER, |peer| {
                peer.put(&message::link_header(libc::AF_UNSPEC, 0, 0));
                end(peer, "eth0", mac(0x06, addr));
                peer.attribute(libc::IFLA_NET_NS_FD, &pod.as_raw_fd().to_ne_bytes());
            });
        });
    });
    let made = host.request(&[veth])?;
    // Linux before 6.2 does not echo the new link.
    made.map_or_else(|| host.link_by_name(name), Ok)
}

fn end(message: &mut Message, name: &str, mac: [u8; 6]) {
    message.name(libc::IFLA_IFNAME, name);
    message.attribute(libc::IFLA_MTU, &MTU.to_ne_bytes());
    message.attribute(libc::IFLA_TXQLEN, &TXQLEN.to_ne_bytes());
    message.attribute(libc::IFLA_ADDRESS, &mac);
}

/// The entry that spares the first packet to the Pod its ARP question.
fn neighbour(bridge: i32, addr: Ipv4Addr) -> Message {
    let mut entry = Message::neighbour(bridge);
    entry.attribute(libc::NDA_DST, &addr.octets());
    entry.attribute(libc::NDA_LLADDR, &mac(0x06, addr));
    entry
}

/// The Pod's side: announce the address on link up, then address, link up and routes in one send.
fn inside(pod: &std::fs::File, index: i32, addr: Ipv4Addr) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: setns(2) takes any descriptor and answers an error for a wrong one; the process has one thread.
    if unsafe { libc::setns(pod.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    std::fs::write("/proc/sys/net/ipv4/conf/eth0/arp_notify", "1")?;
    let socket = Socket::open()?;
    let up = Message::link(libc::RTM_NEWLINK, 0, libc::AF_UNSPEC, index, libc::IFF_UP);
    let default = Message::route(index, (Ipv4Addr::UNSPECIFIED, 0), GATEWAY);
    let network = Message::route(index, POD_NETWORK, GATEWAY);
    socket.request(&[Message::address(index, addr, PREFIX_LENGTH), up, default, network])?;
    Ok(())
}

fn result(host_name: &str, netns: &str, addr: Ipv4Addr) -> String {
    format!(
        r#"{{"cniVersion":"1.0.0","interfaces":[{{"name":"{BRIDGE}"}},{{"name":"{host_name}"}},{{"name":"eth0","sandbox":"{netns}"}}],"ips":[{{"address":"{addr}/{PREFIX_LENGTH}","gateway":"{GATEWAY}","interface":2}}],"routes":[{{"dst":"0.0.0.0/0","gw":"{GATEWAY}"}}],"dns":{{}}}}"#
    )
}

fn del() -> io::Result<()> {
    let container = variable("CNI_CONTAINERID")?;
    let host = Socket::open()?;
    if let Ok(link) = host.link_by_name(&host_name(&container)) {
        delete::delete_aside(&host, link.index)?;
    }
    reservation::release(&container)
}
