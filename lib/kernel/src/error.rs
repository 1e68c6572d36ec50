//! `KernelError`: what failed, on which object, and what the kernel said.
//!
//! Invariant: the text names operation and object, carries the kernel's own extended error text when there is one
//! (NLMSGERR_ATTR_MSG), and ends with what to do when that is not obvious. [`Classify`] says the same to the loop.

use std::fmt;
use std::io;
use std::time::Duration;

use reconcile::{Classify, RetryClass};

/// The kernel's refusal of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// Positive error number (errno.h).
    pub errno: i32,
    /// The kernel's extended error text, when it gave one.
    pub text: Option<String>,
}

impl fmt::Display for Nack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.text {
            Some(text) => write!(f, "{text} ({})", io::Error::from_raw_os_error(self.errno)),
            None => write!(f, "{}", io::Error::from_raw_os_error(self.errno)),
        }
    }
}

/// Why a conversation with the kernel broke off.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A socket operation failed.
    #[error("netlink socket: {call}: {error}")]
    Io {
        /// The system call.
        call: &'static str,
        /// What it answered.
        error: io::Error,
    },
    /// The kernel did not answer in time.
    #[error("netlink socket: no answer within {0:?}; the kernel is very busy or lacks the subsystem")]
    Timeout(Duration),
    /// The kernel had more to say than the receive buffer held; what was lost is unknown.
    #[error("netlink socket: receive buffer overrun, answers were lost; read the table again")]
    Overrun,
    /// A datagram was larger than the receive buffer.
    #[error("netlink socket: answer of {0} bytes is larger than the receive buffer")]
    Truncated(usize),
    /// A table changed while it was listed, each time it was listed.
    #[error("netlink socket: the table changed during each of {0} listings; try again")]
    Interrupted(u32),
    /// The kernel sent something that is no netlink message.
    #[error("netlink socket: malformed answer: {0}")]
    Malformed(String),
}

/// Why an operation on an object failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The kernel refused.
    #[error("{0}{advice}", advice = advice(Some(.0.errno), .0.text.as_deref()))]
    Nack(Nack),
    /// The conversation broke off: the outcome is unknown.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Something that the operation needs is not there.
    #[error("{0} does not exist{advice}", advice = advice_on_parameter(.0))]
    Missing(String),
    /// Something that was believed to be there is not: to be made again at once.
    #[error("{0} is gone")]
    Vanished(String),
    /// A system call other than netlink failed.
    #[error("{call}: {error}{advice}", advice = advice(.error.raw_os_error(), None))]
    Io {
        /// The system call or the file.
        call: String,
        /// What it answered.
        error: io::Error,
    },
    /// Something that only a person can change stands in the way.
    #[error("{0}")]
    Obstacle(String),
    /// Somebody else has what is needed.
    #[error("{0}")]
    Taken(String),
    /// The kernel answered something else than what was asked for.
    #[error("unexpected answer: {0}")]
    Unexpected(String),
}

impl From<Nack> for Cause {
    fn from(nack: Nack) -> Self {
        Self::Nack(nack)
    }
}

/// An operation on a kernel object that failed. Its text says what failed; why is its source, so programs print the chain
/// ([`crate::Chain`]).
#[derive(Debug, thiserror::Error)]
#[error("{op} {object}")]
pub struct KernelError {
    /// What was tried: "create link", "replace route".
    pub op: &'static str,
    /// The object's text, as an operator would write it.
    pub object: String,
    /// What went wrong.
    #[source]
    pub cause: Cause,
}

impl KernelError {
    /// An error of `op` on `object`.
    pub fn new(op: &'static str, object: impl fmt::Display, cause: impl Into<Cause>) -> Self {
        Self { op, object: object.to_string(), cause: cause.into() }
    }

    /// An error of a system call or file operation.
    pub fn io(op: &'static str, object: impl fmt::Display, call: impl Into<String>, error: io::Error) -> Self {
        Self::new(op, object, Cause::Io { call: call.into(), error })
    }

    /// True when the kernel found a value in the message that it does not take.
    pub(crate) fn is_refused_setting(&self) -> bool {
        matches!(self.errno(), Some(libc::EINVAL | libc::ERANGE | libc::EADDRNOTAVAIL | libc::EBUSY))
    }

    /// The kernel's error number, if it gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match &self.cause {
            Cause::Nack(nack) => Some(nack.errno),
            Cause::Io { error, .. } | Cause::Socket(SocketError::Io { error, .. }) => error.raw_os_error(),
            _ => None,
        }
    }
}

const IPV6_IS_OFF: &str = "; IPv6 is switched off here: set net.ipv6.conf.all.disable_ipv6 and default.disable_ipv6 to 0 \
     (ipv6.disable=0 at boot), or leave IPv6 out of the configuration";

/// What to do about `errno`, where the kernel's own `text` does not say it: advice never contradicts it.
fn advice(errno: Option<i32>, text: Option<&str>) -> &'static str {
    match errno.unwrap_or(0) {
        _ if text.is_some_and(|text| text.contains("IPv6 is disabled") || text.contains("IPv6 not enabled")) => {
            IPV6_IS_OFF
        }
        libc::EPERM | libc::EACCES if text.is_none() => "; CAP_NET_ADMIN in this network namespace is needed",
        libc::EOPNOTSUPP | libc::EPROTONOSUPPORT if text.is_none() => {
            "; this kernel lacks the feature or its module is not loaded"
        }
        libc::EAFNOSUPPORT => "; this kernel lacks the address family or it is switched off",
        libc::EROFS => {
            "; the file system is mounted read-only here: set the value from outside, or mount the host's /proc/sys/net at \
             /host/proc/sys/net"
        }
        _ => "",
    }
}

/// The parameters that every node with IPv6 has are missing where it is off.
fn advice_on_parameter(path: &str) -> &'static str {
    let of_all = ["all", "default", "lo"].map(|name| format!("/proc/sys/net/ipv6/conf/{name}/"));
    if of_all.iter().any(|all| path.starts_with(all)) { IPV6_IS_OFF } else { "" }
}

impl Classify for KernelError {
    fn class(&self) -> RetryClass {
        match (&self.cause, self.errno()) {
            (Cause::Missing(_) | Cause::Taken(_), _) => RetryClass::Wait,
            (Cause::Obstacle(_), _) => RetryClass::Refuse,
            // Unreachable next hops and absent or downed links change with the next link or address event.
            (_, Some(libc::ENODEV | libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN)) => RetryClass::Wait,
            (_, Some(libc::EPERM | libc::EACCES | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EROFS)) => {
                RetryClass::Refuse
            }
            _ => RetryClass::Retry,
        }
    }

    fn errno(&self) -> Option<i32> {
        Self::errno(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Chain;

    fn refused(errno: i32) -> KernelError {
        KernelError::new("set", "route 172.7.22.0/24", Nack { errno, text: None })
    }

    #[test]
    fn chain_says_what_failed_why_and_what_to_do_each_once() {
        let error = KernelError::new(
            "set link",
            "flannel.1 mtu 9000",
            Nack { errno: libc::EINVAL, text: Some("mtu greater than device maximum".to_owned()) },
        );
        assert_eq!(error.to_string(), "set link flannel.1 mtu 9000");
        assert_eq!(
            Chain(&error).to_string(),
            "set link flannel.1 mtu 9000: mtu greater than device maximum (Invalid argument (os error 22))"
        );
        let error = KernelError::io("write parameter", "net/ipv4/ip_forward", "open", io::Error::from_raw_os_error(30));
        assert_eq!(
            Chain(&error).to_string(),
            "write parameter net/ipv4/ip_forward: open: Read-only file system (os error 30); the file system is mounted \
             read-only here: set the value from outside, or mount the host's /proc/sys/net at /host/proc/sys/net"
        );
        let lost: Cause = SocketError::Io { call: "recv", error: io::Error::from_raw_os_error(libc::EBADF) }.into();
        assert_eq!(
            Chain(&KernelError::new("list links", "all", lost)).to_string(),
            "list links all: netlink socket: recv: Bad file descriptor (os error 9)"
        );
    }

    #[test]
    fn advice_is_given_where_the_number_does_not_say_it() {
        for (errno, words) in [
            (libc::EPERM, "CAP_NET_ADMIN"),
            (libc::EACCES, "CAP_NET_ADMIN"),
            (libc::EOPNOTSUPP, "lacks the feature"),
            (libc::EPROTONOSUPPORT, "lacks the feature"),
            (libc::EROFS, "set the value from outside"),
        ] {
            let text = Chain(&refused(errno)).to_string();
            assert!(text.contains(words), "{text}");
        }
        assert!(!Chain(&refused(libc::EEXIST)).to_string().contains(';'));
    }

    #[test]
    fn class_says_whether_time_an_event_or_a_person_mends_it() {
        let of = |cause: Cause| KernelError::new("set", "row", cause).class();
        for (errno, class) in [
            (libc::EPERM, RetryClass::Refuse),
            (libc::EACCES, RetryClass::Refuse),
            (libc::EOPNOTSUPP, RetryClass::Refuse),
            (libc::EPROTONOSUPPORT, RetryClass::Refuse),
            (libc::EROFS, RetryClass::Refuse),
            (libc::ENODEV, RetryClass::Wait),
            (libc::ENETUNREACH, RetryClass::Wait),
            (libc::EHOSTUNREACH, RetryClass::Wait),
            (libc::ENETDOWN, RetryClass::Wait),
            (libc::EEXIST, RetryClass::Retry),
            (libc::EINVAL, RetryClass::Retry),
            (libc::ENOBUFS, RetryClass::Retry),
        ] {
            assert_eq!(of(Nack { errno, text: None }.into()), class, "errno {errno}");
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(of(Cause::Io { call: "open".to_owned(), error }), class, "errno {errno} of a call");
        }
        assert_eq!(of(Cause::Missing("link eth0".to_owned())), RetryClass::Wait);
        assert_eq!(of(Cause::Taken("VNI 1".to_owned())), RetryClass::Wait);
        assert_eq!(of(Cause::Vanished("virtual server".to_owned())), RetryClass::Retry);
        assert_eq!(of(Cause::Obstacle("a zone".to_owned())), RetryClass::Refuse);
        assert_eq!(of(Cause::Unexpected("nothing".to_owned())), RetryClass::Retry);
        assert_eq!(of(SocketError::Timeout(Duration::from_secs(10)).into()), RetryClass::Retry);
    }

    #[test]
    fn error_number_is_known_wherever_it_came_from() {
        assert_eq!(refused(17).errno(), Some(17));
        assert_eq!(Classify::errno(&refused(17)), Some(17));
        let error = || io::Error::from_raw_os_error(libc::ENOSPC);
        assert_eq!(KernelError::io("write", "file", "write", error()).errno(), Some(libc::ENOSPC));
        let socket = SocketError::Io { call: "send", error: error() };
        assert_eq!(KernelError::new("list", "all", socket).errno(), Some(libc::ENOSPC));
        assert_eq!(KernelError::new("list", "all", SocketError::Overrun).errno(), None);
        assert_eq!(KernelError::new("list", "all", Cause::Missing("a route".to_owned())).errno(), None);
    }

    #[test]
    fn advice_follows_the_kernels_text_and_never_contradicts_it() {
        let text = |errno, text: Option<&str>| Cause::Nack(Nack { errno, text: text.map(str::to_owned) }).to_string();
        let off = text(libc::EACCES, Some("ipv6: IPv6 is disabled on this device"));
        assert!(off.contains("disable_ipv6") && !off.contains("CAP_NET_ADMIN"), "{off}");
        assert!(text(libc::EPERM, None).contains("CAP_NET_ADMIN"));
        let said = text(libc::EPERM, Some("Can't change the MTU of this device"));
        assert!(!said.contains("CAP_NET_ADMIN"), "{said}");
        assert!(text(libc::EOPNOTSUPP, None).contains("module"));
        assert!(!text(libc::EOPNOTSUPP, Some("Device does not support VLAN filtering")).contains("module"));
        let missing = |path: &str| Cause::Missing(path.to_owned()).to_string();
        assert!(missing("/proc/sys/net/ipv6/conf/all/forwarding").contains("ipv6.disable"));
        assert!(!missing("/proc/sys/net/ipv6/conf/veth1/accept_ra").contains("ipv6.disable"));
    }
}
