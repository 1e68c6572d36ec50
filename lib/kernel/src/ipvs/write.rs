//! Servers as the kernel takes them: one message for each virtual server and each real server.
//!
//! Invariant: a refusal that means that a server is already as the step wants it, or that another step brings it there, is no failure;
//! every other one is reported in words, and no other step waits for it.

use std::collections::{BTreeMap, BTreeSet};

use netstate::ipvs::{Row, Server, ServerKey, VirtualServerKey};
use reconcile::Step;

use super::{Ipvs, IpvsTable, wire};
use crate::error::{Cause, KernelError, Nack};
use crate::socket::Message;

/// Messages per datagram. Each may be refused, and a refusal occupies about 1 KiB of the receive buffer, whose default
/// is 208 KiB (net.core.rmem_default): with more, a storm of refusals would overrun it.
const BATCH: usize = 128;

/// A step that is one message.
pub type ServerStep = Step<ServerKey, Server>;

/// What a step of a row does to its servers, in the order in which the kernel takes it. A virtual server that goes takes its real servers
/// along.
#[must_use]
pub fn server_steps(step: &Step<VirtualServerKey, Row>) -> Vec<ServerStep> {
    match step {
        Step::Create(key, row) => row.servers(*key).map(|(key, server)| Step::Create(key, server)).collect(),
        Step::Change(key, have, want) => changes(*key, have, want),
        Step::Remove(key, row) => {
            vec![Step::Remove(ServerKey::Virtual(*key), Server::Virtual(std::sync::Arc::clone(&row.server)))]
        }
    }
}

/// From one row to another one in place; both have their real servers in the same order.
fn changes(key: VirtualServerKey, have: &Row, want: &Row) -> Vec<ServerStep> {
    let mut steps = Vec::new();
    let mut held = have.servers(key).peekable();
    for (server, value) in want.servers(key) {
        while let Some((gone, before)) = held.next_if(|(other, _)| *other < server) {
            steps.push(Step::Remove(gone, before));
        }
        match held.next_if(|(other, _)| *other == server) {
            Some((_, before)) if before == value => {}
            Some((_, before)) => steps.push(Step::Change(server, before, value)),
            None => steps.push(Step::Create(server, value)),
        }
    }
    steps.extend(held.map(|(gone, before)| Step::Remove(gone, before)));
    steps
}

impl IpvsTable {
    /// Carries out the steps and returns for each, in order, what is true afterwards.
    pub(super) fn write(&mut self, steps: &[ServerStep]) -> Vec<Result<(), KernelError>> {
        let all: Vec<_> = steps.iter().enumerate().collect();
        let mut failed: BTreeMap<usize, Cause> = self.send(&all);
        if failed.is_empty() {
            return steps.iter().map(|_| Ok(())).collect();
        }
        let again = self.corrections(steps, &mut failed);
        let again: Vec<_> = again.iter().map(|(index, step)| (*index, step)).collect();
        failed.extend(self.send(&again));
        let created = created_services(steps);
        let result = |(index, step): (usize, &ServerStep)| {
            let Some(cause) = failed.remove(&index) else { return Ok(()) };
            let cause = explain(step, cause, &created);
            if matches!(cause, Cause::Vanished(_)) {
                self.vanished.insert(*step.key().service());
            }
            Err(error(step, cause))
        };
        steps.iter().enumerate().map(result).collect()
    }

    /// Carries out the steps and returns why which of them failed. Messages are made a batch at a time: all of them together would
    /// take more memory than the rows.
    fn send(&mut self, steps: &[(usize, &ServerStep)]) -> BTreeMap<usize, Cause> {
        let mut failed = BTreeMap::new();
        for chunk in steps.chunks(BATCH) {
            let messages: Vec<_> = chunk.iter().map(|(_, step)| self.ipvs.encode(step)).collect();
            let indices = chunk.iter().map(|(index, _)| *index);
            match self.ipvs.genl.batch(&messages) {
                Ok(answers) => {
                    failed
                        .extend(indices.zip(answers).filter_map(|(index, answer)| Some((index, answer.err()?.into()))));
                }
                Err(error) => {
                    let text = error.to_string();
                    failed.extend(indices.map(|index| (index, Cause::Unexpected(text.clone()))));
                }
            }
        }
        failed
    }

    /// Takes refusals out of `failed` that mean that a row is as it should be already, or that another step brings it
    /// there; returns those steps.
    fn corrections(&mut self, steps: &[ServerStep], failed: &mut BTreeMap<usize, Cause>) -> Vec<(usize, ServerStep)> {
        let (mut again, mut remade) = (Vec::new(), BTreeSet::new());
        // In the order of the keys, so a virtual server that is made again is known before its real servers are judged.
        for (index, step) in steps.iter().enumerate() {
            let Some(Cause::Nack(nack)) = failed.get(&index) else { continue };
            match after(step, nack, &remade) {
                After::Done => {}
                After::Send(other) => {
                    if let Step::Create(ServerKey::Virtual(key), _) = &other {
                        remade.insert(*key);
                        self.vanished.insert(*key);
                        self.counted = None;
                    }
                    again.push((index, other));
                }
                After::Fail => continue,
            }
            failed.remove(&index);
        }
        again
    }
}

impl Ipvs {
    fn encode(&self, step: &ServerStep) -> Message {
        let (command, body) = match step {
            Step::Create(ServerKey::Virtual(key), Server::Virtual(value)) => {
                (wire::NEW_SERVICE, wire::service(key, value))
            }
            Step::Change(ServerKey::Virtual(key), _, Server::Virtual(value)) => {
                (wire::SET_SERVICE, wire::service(key, value))
            }
            Step::Create(ServerKey::Real(key), Server::Real(value)) => (wire::NEW_DEST, wire::dest(key, *value)),
            Step::Change(ServerKey::Real(key), _, Server::Real(value)) => (wire::SET_DEST, wire::dest(key, *value)),
            Step::Remove(ServerKey::Virtual(key), _) => (wire::DEL_SERVICE, wire::service_id(key)),
            Step::Remove(ServerKey::Real(key), _) => (wire::DEL_DEST, wire::dest_id(key)),
            // Of different kinds: what is missing in the message makes the kernel answer EINVAL.
            Step::Create(ServerKey::Virtual(key), _) | Step::Change(ServerKey::Virtual(key), ..) => {
                (wire::SET_SERVICE, wire::service_id(key))
            }
            Step::Create(ServerKey::Real(key), _) | Step::Change(ServerKey::Real(key), ..) => {
                (wire::SET_DEST, wire::dest_id(key))
            }
        };
        self.genl.message(command, body)
    }
}

fn created_services(steps: &[ServerStep]) -> BTreeSet<VirtualServerKey> {
    let created = |step: &ServerStep| match step {
        Step::Create(ServerKey::Virtual(key), _) => Some(*key),
        _ => None,
    };
    steps.iter().filter_map(created).collect()
}

/// What a refusal means for a step.
enum After {
    /// The kernel is already as the step wants it.
    Done,
    /// The row's state was not what we believed; this step reaches the same end.
    Send(ServerStep),
    /// It failed.
    Fail,
}

/// `remade` are the virtual servers that turned out to be gone and are made again.
fn after(step: &ServerStep, nack: &Nack, remade: &BTreeSet<VirtualServerKey>) -> After {
    match (step, nack.errno) {
        (Step::Remove(..), libc::ESRCH | libc::ENOENT) => After::Done,
        (Step::Create(key, value), libc::EEXIST) => After::Send(Step::Change(*key, value.clone(), value.clone())),
        (Step::Change(key @ ServerKey::Virtual(_), _, value), libc::ESRCH)
        | (Step::Change(key @ ServerKey::Real(_), _, value), libc::ENOENT) => {
            After::Send(Step::Create(*key, value.clone()))
        }
        (
            Step::Create(key @ ServerKey::Real(_), value) | Step::Change(key @ ServerKey::Real(_), _, value),
            libc::ESRCH,
        ) if remade.contains(key.service()) => After::Send(Step::Create(*key, value.clone())),
        _ => After::Fail,
    }
}

/// Says in words what IPVS's error numbers mean (net/netfilter/ipvs/ip_vs_ctl.c).
/// `created` are the virtual servers that the same steps make.
fn explain(step: &ServerStep, cause: Cause, created: &BTreeSet<VirtualServerKey>) -> Cause {
    let Cause::Nack(nack) = cause else { return cause };
    match (step, nack.errno) {
        (
            Step::Create(ServerKey::Virtual(_), Server::Virtual(value))
            | Step::Change(ServerKey::Virtual(_), _, Server::Virtual(value)),
            libc::ENOENT,
        ) => {
            let name = &value.scheduler.name;
            Cause::Missing(format!("scheduler {name:?} (kernel module ip_vs_{name}, load it or choose another)"))
        }
        (Step::Create(ServerKey::Real(key), _) | Step::Change(ServerKey::Real(key), ..), libc::ESRCH) => {
            let server = format!("virtual server {}", key.service);
            if created.contains(&key.service) { Cause::Missing(server) } else { Cause::Vanished(server) }
        }
        (Step::Create(ServerKey::Real(_), _) | Step::Change(ServerKey::Real(_), ..), libc::EINVAL) => {
            let text = "the kernel takes no real server at this address: it must be unicast and routable, and the \
                        loopback device of this network namespace must have been up";
            Cause::Nack(Nack { text: Some(text.to_owned()), ..nack })
        }
        _ => Cause::Nack(nack),
    }
}

fn error(step: &ServerStep, cause: Cause) -> KernelError {
    let op = match step {
        Step::Create(ServerKey::Virtual(_), _) => "create virtual server",
        Step::Create(ServerKey::Real(_), _) => "create real server",
        Step::Change(ServerKey::Virtual(_), ..) => "change virtual server",
        Step::Change(ServerKey::Real(_), ..) => "change real server",
        Step::Remove(ServerKey::Virtual(_), _) => "remove virtual server",
        Step::Remove(ServerKey::Real(_), _) => "remove real server",
    };
    KernelError::new(op, step.key(), cause)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use netstate::Protocol;
    use netstate::ipvs::{RealServer, RealServerKey, VirtualServer};
    use reconcile::{Chain, Classify, RetryClass};

    use super::*;

    fn web() -> VirtualServerKey {
        VirtualServerKey { protocol: Protocol::Tcp, addr: "192.168.0.10".parse().unwrap(), port: 80 }
    }

    fn pod() -> ServerKey {
        ServerKey::Real(RealServerKey { service: web(), addr: "172.7.21.2".parse().unwrap(), port: 80 })
    }

    fn rr() -> Server {
        Server::Virtual(Arc::new(VirtualServer::new("rr".to_owned(), None)))
    }

    fn one() -> Server {
        Server::Real(RealServer::new(1))
    }

    fn nack(errno: i32) -> Nack {
        Nack { errno, text: None }
    }

    #[test]
    fn a_row_that_was_not_as_believed_reaches_the_same_end() {
        let none = BTreeSet::new();
        let step = Step::Create(pod(), one());
        assert!(matches!(after(&step, &nack(libc::EEXIST), &none), After::Send(Step::Change(..))));
        assert!(matches!(after(&step, &nack(libc::ESRCH), &none), After::Fail));
        let step = Step::Change(ServerKey::Virtual(web()), rr(), rr());
        assert!(matches!(after(&step, &nack(libc::ESRCH), &none), After::Send(Step::Create(..))));
        assert!(
            matches!(after(&step, &nack(libc::ENOENT), &none), After::Fail),
            "a missing scheduler is no missing server"
        );
        let step = Step::Change(pod(), one(), one());
        assert!(matches!(after(&step, &nack(libc::ENOENT), &none), After::Send(Step::Create(..))));
        let remade = BTreeSet::from([web()]);
        assert!(matches!(after(&step, &nack(libc::ESRCH), &remade), After::Send(Step::Create(..))));
        let step = Step::Remove(pod(), one());
        assert!(matches!(after(&step, &nack(libc::ENOENT), &none), After::Done));
        assert!(matches!(after(&step, &nack(libc::ESRCH), &none), After::Done));
        assert!(matches!(after(&step, &nack(libc::EPERM), &none), After::Fail));
    }

    #[test]
    fn a_missing_scheduler_is_named_with_its_module() {
        let value = VirtualServer::new("wlc".to_owned(), None);
        let step = Step::Create(ServerKey::Virtual(web()), Server::Virtual(Arc::new(value)));
        let error = error(&step, explain(&step, nack(libc::ENOENT).into(), &BTreeSet::new()));
        assert_eq!(
            Chain(&error).to_string(),
            "create virtual server tcp 192.168.0.10:80: scheduler \"wlc\" (kernel module ip_vs_wlc, load it or choose \
             another) does not exist"
        );
        assert_eq!(error.class(), RetryClass::Wait);
    }

    #[test]
    fn a_real_server_without_its_virtual_server_waits_for_it_or_has_lost_it() {
        let step = Step::Create(pod(), one());
        let failed = |created: &[VirtualServerKey]| {
            error(&step, explain(&step, nack(libc::ESRCH).into(), &created.iter().copied().collect()))
        };
        let waits = failed(&[web()]);
        assert_eq!(
            Chain(&waits).to_string(),
            "create real server tcp 192.168.0.10:80 -> 172.7.21.2:80: virtual server tcp 192.168.0.10:80 does not exist"
        );
        assert_eq!(waits.class(), RetryClass::Wait);
        let lost = failed(&[]);
        assert!(matches!(lost.cause, Cause::Vanished(_)));
        assert!(Chain(&lost).to_string().ends_with("virtual server tcp 192.168.0.10:80 is gone"));
        assert_eq!(lost.class(), RetryClass::Retry);
    }

    #[test]
    fn row_becomes_another_one_by_what_differs() {
        let row = |scheduler: &str, reals: &[(u8, u32)]| {
            let at = |last: u8| std::net::SocketAddr::from(([172, 7, 21, last], 80));
            let reals = reals.iter().map(|(last, weight)| (at(*last), RealServer::new(*weight))).collect();
            Row::from(VirtualServer::new(scheduler.to_owned(), None)).with(reals)
        };
        let text = |step: &Step<VirtualServerKey, Row>| {
            let line = |step: &ServerStep| match step {
                Step::Create(key, value) => format!("+ {key} {value}"),
                Step::Change(key, _, value) => format!("~ {key} {value}"),
                Step::Remove(key, _) => format!("- {key}"),
            };
            server_steps(step).iter().map(line).collect::<Vec<_>>()
        };
        let before = row("rr", &[(2, 1), (3, 1), (5, 1)]);
        assert_eq!(
            text(&Step::Create(web(), row("rr", &[(2, 1)]))),
            ["+ tcp 192.168.0.10:80 scheduler rr", "+ tcp 192.168.0.10:80 -> 172.7.21.2:80 weight 1"]
        );
        assert_eq!(
            text(&Step::Change(web(), before.clone(), row("wrr", &[(1, 1), (3, 0), (5, 1), (6, 2)]))),
            [
                "~ tcp 192.168.0.10:80 scheduler wrr",
                "+ tcp 192.168.0.10:80 -> 172.7.21.1:80 weight 1",
                "- tcp 192.168.0.10:80 -> 172.7.21.2:80",
                "~ tcp 192.168.0.10:80 -> 172.7.21.3:80 weight 0",
                "+ tcp 192.168.0.10:80 -> 172.7.21.6:80 weight 2",
            ]
        );
        assert_eq!(text(&Step::Change(web(), before.clone(), before.clone())), [""; 0]);
        assert_eq!(text(&Step::Remove(web(), before)), ["- tcp 192.168.0.10:80"], "with what is behind it");
    }
}
