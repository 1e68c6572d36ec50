//! WireGuard devices and their peers over generic netlink.
//!
//! The devices themselves are links; here is what `wg` sets: identity, port, peers. Every peer on the table's devices is
//! ours. Invariants: peers are written one by one, and of each only what differs, so no session of an untouched peer is
//! ever reset; identity is compared by its public key and written only when that differs; a peer that roamed is called
//! back to its configured end point only when its session is over, or when another end point is desired; a port that goes from one device
//! to another is given up before it is taken.

mod fingerprint;
mod session;
mod wire;

#[cfg(any(test, feature = "fuzz"))]
pub(crate) use wire::fuzz_peers;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use netstate::IfName;
use netstate::wireguard::{Endpoint, Peer, PrivateKey, Row, RowKey};
use reconcile::{Observed, Owner, Rows, Step, Target};

pub use self::fingerprint::Fingerprint;
pub use self::session::{Session, Sessions};
use crate::attribute::Writer;
use crate::error::{Cause, KernelError};
use crate::genl::Genl;
use crate::socket::{Fault, Message};

/// Messages per datagram. Each may be refused, and a refusal occupies about 1 KiB of the receive buffer, whose default
/// is 208 KiB (net.core.rmem_default).
const BATCH: usize = 128;

/// A session is used for this many seconds after its handshake (REJECT_AFTER_TIME, drivers/net/wireguard/messages.h).
const SESSION: u64 = 180;

type WireguardStep = Step<RowKey, Row>;

/// The table of some WireGuard devices and their peers.
#[derive(Debug)]
pub struct Wireguards {
    genl: Genl,
    /// The devices, each with the identity that it gets.
    devices: BTreeMap<IfName, PrivateKey>,
    /// Where peers were sent to by us.
    endpoints: BTreeMap<RowKey, Endpoint>,
}

impl Wireguards {
    /// The table of `devices`; the kernel loads `wireguard` when it can.
    ///
    /// # Errors
    /// [`Cause::Missing`] when this kernel has no WireGuard.
    pub fn open(devices: impl IntoIterator<Item = (IfName, PrivateKey)>) -> Result<Self, KernelError> {
        let genl = Genl::open(wire::FAMILY, wire::VERSION)?;
        Ok(Self { genl, devices: devices.into_iter().collect(), endpoints: BTreeMap::new() })
    }

    fn rows_of(&mut self, link: &IfName, now: u64) -> Result<Rows<RowKey, Row>, KernelError> {
        let mut rows = Rows::new();
        let messages = match self.genl.dump(wire::GET_DEVICE, wire::device(link)) {
            Ok(messages) => messages,
            // Not made yet, or something else of that name, which the table of links is about to replace.
            Err(Fault::Nack(nack)) if matches!(nack.errno, libc::ENODEV | libc::EOPNOTSUPP) => return Ok(rows),
            Err(fault) => return Err(KernelError::new("list peers of", link, fault)),
        };
        let malformed = || KernelError::new("list peers of", link, Cause::Unexpected("no device".to_owned()));
        let (device, peers) = wire::read(&messages).ok_or_else(malformed)?;
        // The device goes with its link, never by this table.
        let observed = Observed { value: Row::Device(device), owner: Owner::Foreign };
        rows.insert(RowKey::Device(link.clone()), observed);
        for (public, seen) in peers {
            let key = RowKey::Peer(link.clone(), public);
            let endpoint = endpoint(self.endpoints.get(&key), &seen, now);
            let wire::Seen { allowed, preshared, keepalive, .. } = seen;
            let peer = Peer { endpoint, allowed, preshared, keepalive };
            rows.insert(key, Observed { value: Row::Peer(peer), owner: Owner::Ours });
        }
        Ok(rows)
    }

    /// The message of a step; `None` when nothing is to be done.
    fn body(&self, step: &WireguardStep) -> Result<Option<Writer>, KernelError> {
        let (have, want) = match step {
            Step::Create(_, want) => (None, want),
            Step::Change(_, have, want) => (Some(have), want),
            Step::Remove(RowKey::Peer(link, key), _) => return Ok(Some(wire::remove_peer(link, key))),
            Step::Remove(RowKey::Device(_), _) => return Ok(None),
        };
        match (step.key(), have, want) {
            (RowKey::Device(link), have, Row::Device(want)) => {
                let known = matches!(have, Some(Row::Device(have)) if have.public_key == want.public_key);
                let missing = || error(step, Cause::Missing(format!("private key of {link}")));
                let private = if known { None } else { Some(self.devices.get(link).ok_or_else(missing)?) };
                Ok(Some(wire::set_device(link, private, want.listen_port)))
            }
            (RowKey::Peer(link, key), Some(Row::Peer(have)), Row::Peer(want)) => {
                Ok(Some(wire::set_peer(link, key, Some(have), want)))
            }
            (RowKey::Peer(link, key), _, Row::Peer(want)) => Ok(Some(wire::set_peer(link, key, None, want))),
            (key, ..) => Err(error(step, Cause::Unexpected(format!("a row of another kind for {key}")))),
        }
    }

    /// Sends the messages and returns what became of each.
    fn send(&mut self, messages: &[Message]) -> Vec<Result<(), Cause>> {
        let mut answers = Vec::with_capacity(messages.len());
        for chunk in messages.chunks(BATCH) {
            match self.genl.batch(chunk) {
                Ok(chunk) => answers.extend(chunk.into_iter().map(|answer| answer.map_err(Cause::from))),
                Err(error) => {
                    let text = error.to_string();
                    answers.extend(chunk.iter().map(|_| Err(Cause::Unexpected(text.clone()))));
                }
            }
        }
        answers
    }

    fn record(&mut self, step: &WireguardStep) {
        match step {
            Step::Create(key, Row::Peer(want)) => drop(self.endpoints.insert(key.clone(), want.endpoint)),
            Step::Change(key, Row::Peer(have), Row::Peer(want)) if !have.endpoint.satisfies(&want.endpoint) => {
                self.endpoints.insert(key.clone(), want.endpoint);
            }
            Step::Remove(key, _) => drop(self.endpoints.remove(key)),
            _ => {}
        }
    }
}

impl Target for Wireguards {
    type Key = RowKey;
    type Value = Row;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<RowKey, Row>, KernelError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let links: Vec<IfName> = self.devices.keys().cloned().collect();
        let mut rows = Rows::new();
        for link in links {
            rows.extend(self.rows_of(&link, now)?);
        }
        self.endpoints.retain(|key, _| rows.contains_key(key));
        Ok(rows)
    }

    fn satisfies(&self, have: &Row, want: &Row) -> bool {
        match (have, want) {
            (Row::Peer(have), Row::Peer(want)) => have.satisfies(want),
            (have, want) => have == want,
        }
    }

    fn apply(&mut self, steps: &[WireguardStep]) -> Vec<Result<(), KernelError>> {
        let (mut results, mut messages) = (Vec::with_capacity(steps.len()), Vec::new());
        for step in steps {
            let body = self.body(step);
            if let Ok(Some(body)) = body {
                messages.push(self.genl.message(wire::SET_DEVICE, body));
                results.push(Ok(true));
            } else {
                results.push(body.map(|_| false));
            }
        }
        // What becomes of it shows in the answer to who takes the port.
        let given_up =
            giving_up(steps).map(|link| self.genl.message(wire::SET_DEVICE, wire::set_device(link, None, 0)));
        let given_up: Vec<_> = given_up.collect();
        self.send(&given_up);
        let mut answers = self.send(&messages).into_iter();
        let settle = |(step, result): (&WireguardStep, Result<bool, KernelError>)| {
            if result? {
                answers.next().unwrap_or(Ok(())).map_err(|cause| error(step, cause))?;
            }
            self.record(step);
            Ok(())
        };
        steps.iter().zip(results).map(settle).collect()
    }
}

/// The devices whose port goes to another one in the same steps: the kernel refuses it for as long as the one listens, of two that
/// exchange theirs for ever.
fn giving_up(steps: &[WireguardStep]) -> impl Iterator<Item = &IfName> {
    let port = |row: &Row| if let Row::Device(device) = row { Some(device.listen_port) } else { None };
    let taken: BTreeSet<u16> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Create(_, want) | Step::Change(_, _, want) => port(want),
            Step::Remove(..) => None,
        })
        .collect();
    steps.iter().filter_map(move |step| match step {
        Step::Change(RowKey::Device(link), have, want) if port(have) != port(want) => {
            port(have).filter(|port| taken.contains(port)).map(|_| link)
        }
        _ => None,
    })
}

fn error(step: &WireguardStep, cause: Cause) -> KernelError {
    let (op, value) = match step {
        Step::Create(_, value) | Step::Change(_, _, value) => ("set", Some(value)),
        Step::Remove(..) => ("delete", None),
    };
    let cause = match (cause, value) {
        (Cause::Nack(nack), Some(Row::Device(device))) if nack.errno == libc::EADDRINUSE => {
            let port = device.listen_port;
            Cause::Taken(format!("another program or device has UDP port {port}: end it, or choose another ListenPort"))
        }
        (cause, _) => cause,
    };
    let object = value.map_or_else(|| step.key().to_string(), |value| netstate::row_text(step.key(), value));
    KernelError::new(op, object, cause)
}

/// Where the kernel sends what is for a peer that was `set` to somewhere, and whether that is the peer's own doing.
/// Without a session nobody answers there: then it counts as set.
fn endpoint(set: Option<&Endpoint>, seen: &wire::Seen, now: u64) -> Endpoint {
    let Some(to) = seen.endpoint else { return Endpoint::Open };
    let alive = seen.handshake.is_some_and(|then| now.abs_diff(then) < SESSION);
    match set {
        Some(Endpoint::At(from)) if alive && *from != to => Endpoint::Roamed { to, from: Some(*from) },
        None if alive => Endpoint::Roamed { to, from: None },
        _ => Endpoint::At(to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_is_followed_for_as_long_as_its_session_lasts() {
        let (here, there) = ("10.4.7.22:51820".parse().unwrap(), "203.0.113.9:40000".parse().unwrap());
        let set = Endpoint::At(here);
        let seen = |handshake| wire::Seen { endpoint: Some(there), handshake, ..wire::Seen::default() };
        for (handshake, now, found) in [
            (Some(1000), 1179, Endpoint::Roamed { to: there, from: Some(here) }),
            (Some(1000), 1180, Endpoint::At(there)),
            // The clock was set back meanwhile.
            (Some(1000), 900, Endpoint::Roamed { to: there, from: Some(here) }),
            (Some(1000), 0, Endpoint::At(there)),
            (None, 1000, Endpoint::At(there)),
        ] {
            let observed = endpoint(Some(&set), &seen(handshake), now);
            assert_eq!(observed, found, "{handshake:?} at {now}");
            assert_eq!(observed.satisfies(&set), matches!(found, Endpoint::Roamed { .. }), "it is called back");
        }
        // After a start of this program nobody knows what was set.
        assert!(endpoint(None, &seen(Some(1000)), 1100).satisfies(&set));
        assert!(!endpoint(None, &seen(Some(1000)), 1200).satisfies(&set));
        assert_eq!(endpoint(Some(&set), &wire::Seen::default(), 0), Endpoint::Open);
    }
}
