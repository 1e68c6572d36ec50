//! Which interfaces UDP sockets are bound to, those of the kernel's own tunnels included (include/uapi/linux/inet_diag.h).
//!
//! Invariant: reads only; a kernel without the module `udp_diag` says so.

use std::collections::BTreeSet;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netstate::family::IpFamily;

use crate::error::{Cause, KernelError};
use crate::socket::{Message, Socket};

/// SOCK_DIAG_BY_FAMILY.
const BY_FAMILY: u16 = 20;

/// `sizeof(struct inet_diag_req_v2)`: family, protocol, extensions, states, and the socket's ends.
const REQUEST: usize = 56;

/// Where the source port stands in it, and the interface's index in `struct inet_diag_msg`.
const PORT: usize = 8;
const INTERFACE: usize = 40;

/// The indexes of the interfaces that sockets at this UDP port are bound to, 0 for those that are bound to none.
///
/// # Errors
/// When the kernel does not say.
pub fn udp(family: IpFamily, port: u16) -> Result<BTreeSet<u32>, KernelError> {
    let error = |cause: Cause| KernelError::new("list sockets at UDP port", port, cause);
    let mut socket = Socket::open(NETLINK_SOCK_DIAG).map_err(|fault| error(fault.into()))?;
    let message = Message { kind: BY_FAMILY, flags: 0, body: request(family, port) };
    let frames = socket.dump(&message).map_err(|fault| error(fault.into()))?;
    Ok(frames.iter().filter_map(|frame| interface(&frame.body, port)).collect())
}

fn request(family: IpFamily, port: u16) -> Vec<u8> {
    let domain = match family {
        IpFamily::V4 => libc::AF_INET,
        IpFamily::V6 => libc::AF_INET6,
    };
    let mut body =
        vec![u8::try_from(domain).unwrap_or_default(), u8::try_from(libc::IPPROTO_UDP).unwrap_or_default(), 0, 0];
    // All states.
    body.extend(u32::MAX.to_ne_bytes());
    body.extend(port.to_be_bytes());
    body.resize(REQUEST, 0);
    body
}

/// The index in the answer, if it is of a socket at `port`.
fn interface(body: &[u8], port: u16) -> Option<u32> {
    let at = |place: usize| body.get(place..);
    // The answer has no states: its ends begin four bytes earlier.
    let own = at(PORT - 4)?.first_chunk::<2>()?;
    let index = at(INTERFACE)?.first_chunk::<4>()?;
    (u16::from_be_bytes(*own) == port).then(|| u32::from_ne_bytes(*index))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn socket_that_is_bound_to_no_interface_is_found_by_its_port() {
        for (family, own) in [(IpFamily::V4, "127.0.0.1:0"), (IpFamily::V6, "[::1]:0")] {
            let Ok(socket) = UdpSocket::bind(own) else { continue };
            let port = socket.local_addr().unwrap().port();
            match udp(family, port) {
                Ok(found) => assert!(found.contains(&0), "{found:?}"),
                Err(error) => assert_eq!(error.errno(), Some(libc::ENOENT), "{error}"),
            }
        }
    }

    #[test]
    fn answer_that_is_cut_off_or_of_another_port_says_nothing() {
        let mut body = vec![0; 72];
        body[4..6].copy_from_slice(&8472_u16.to_be_bytes());
        body[40..44].copy_from_slice(&7_u32.to_ne_bytes());
        assert_eq!((interface(&body, 8472), interface(&body, 8473)), (Some(7), None));
        for length in 0..44 {
            assert_eq!(interface(&body[..length], 8472), None);
        }
    }
}
