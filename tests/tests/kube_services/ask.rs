//! Clients of the servers: who answers them, and what becomes of a request that nobody answers.
//!
//! Invariant: each request is a connection, or a datagram, of a socket of its own, opened in the network of the Pod or machine that asks.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Command, Host, Place, Pod, echo, eventually};

use super::SOON;

/// How long a client waits for an answer that it gets.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one waits that expects none.
const SHORT: Duration = Duration::from_secs(1);
/// Of two servers one is left out of so many requests once in a million times, and then it is asked again.
const MANY: usize = 20;

/// Where a client is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum At<'a> {
    Pod(&'a Pod),
    Machine(&'a Host),
}

impl Place for At<'_> {
    fn label(&self) -> String {
        match self {
            Self::Pod(pod) => pod.label(),
            Self::Machine(host) => host.label(),
        }
    }

    fn command(&self, program: &OsStr) -> Command {
        match self {
            Self::Pod(pod) => pod.command(program),
            Self::Machine(host) => host.command(program),
        }
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        match self {
            Self::Pod(pod) => pod.within(work),
            Self::Machine(host) => host.within(work),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Tcp,
    Udp,
}
pub(crate) use By::{Tcp, Udp};

fn ask(from: At<'_>, by: By, to: SocketAddr, limit: Duration) -> Result<echo::Answer> {
    match by {
        Tcp => echo::ask_tcp(&from, to, limit),
        Udp => echo::ask_udp(&from, to, limit),
    }
}

/// One request that is answered.
pub(crate) fn once(from: At<'_>, by: By, to: SocketAddr) -> Result<echo::Answer> {
    ask(from, by, to, PATIENCE)
}

/// Who answers many requests, each of which is answered.
pub(crate) fn answers(from: At<'_>, by: By, to: SocketAddr) -> Result<BTreeSet<String>> {
    (0..MANY).map(|_| Ok(once(from, by, to)?.name)).collect()
}

/// Waits until many requests are answered, by all of these servers and by nobody else.
pub(crate) fn served(from: At<'_>, by: By, to: SocketAddr, servers: &[&str]) -> Result<()> {
    let wanted: BTreeSet<String> = servers.iter().map(|name| (*name).to_owned()).collect();
    eventually(SOON, || {
        // One that nobody serves yet is asked once.
        ask(from, by, to, SHORT)?;
        let found = answers(from, by, to)?;
        ensure!(found == wanted, "answered by {found:?}, not {wanted:?}");
        Ok(())
    })
    .with_context(|| format!("{by:?} {to} from {}", from.label()))
}

/// [`served`] at each place.
pub(crate) fn served_at(from: At<'_>, by: By, to: &[SocketAddr], servers: &[&str]) -> Result<()> {
    to.iter().try_for_each(|to| served(from, by, *to, servers))
}

/// Waits until a connection is refused at once, not lost.
pub(crate) fn refused(from: At<'_>, to: SocketAddr) -> Result<()> {
    eventually(SOON, || {
        let error = ask(from, Tcp, to, SHORT).err().context("it is answered")?;
        let kind =
            error.downcast_ref::<std::io::Error>().or_else(|| error.chain().find_map(|cause| cause.downcast_ref()));
        ensure!(kind.is_some_and(|kind| kind.kind() == ErrorKind::ConnectionRefused), "not refused: {error:#}");
        Ok(())
    })
    .with_context(|| format!("{to} from {}", from.label()))
}

/// Waits until a request is not answered, and then asks some more, none of which is.
pub(crate) fn unanswered(from: At<'_>, by: By, to: SocketAddr) -> Result<()> {
    let fails = || {
        let answer = ask(from, by, to, SHORT);
        ensure!(answer.is_err(), "{by:?} {to} from {} is answered: {answer:?}", from.label());
        Ok(())
    };
    eventually(SOON, fails)?;
    (0..2).try_for_each(|_| fails())
}
