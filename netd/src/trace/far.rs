//! The other end: what is asked of its daemon, and what it says it saw.
//!
//! Packets to the port of probes: `see` names a flow and makes the node watch it, `rdy` says that it does, `bsy` that it
//! watches another one, `end` asks for what was seen, `saw` is that as JSON. Invariants: an answer is never longer than its question; a question that
//! is not wholly understood is none.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use netstate::{IfName, Protocol};
use serde::{Deserialize, Serialize};

use super::seen::Seen;
use super::step::Step;

/// Length of every question, in bytes: the longest answer.
pub(crate) const LENGTH: usize = 1400;

/// Bytes in front of an answer's text.
const HEAD: usize = 16;

const SEE: &[u8; 8] = b"netd see";
const READY: &[u8; 8] = b"netd rdy";
const BUSY: &[u8; 8] = b"netd bsy";
const END: &[u8; 8] = b"netd end";
const SAW: &[u8; 8] = b"netd saw";

/// Wait for an answer before the question is asked again.
const WAIT: Duration = Duration::from_millis(700);

/// Wait for a node that gives no answer at all.
const SILENCE: Duration = Duration::from_millis(2100);

/// Wait for a node that says that it watches, or that it still watches another flow: longer than it watches one.
const PATIENCE: Duration = Duration::from_secs(8);

/// Refusals by the node's kernel after which nobody is at the port: a daemon that starts takes a moment.
const REFUSALS: u32 = 3;

/// What a node is asked to watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Watch {
    /// The question's number.
    pub number: u64,
    /// Who sends the probe.
    pub source: SocketAddr,
    /// Who shall get it.
    pub target: SocketAddr,
    /// Its protocol.
    pub protocol: Protocol,
}

/// What a node says it saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Report {
    /// How far packets came there.
    pub seen: Seen,
    /// What the answer meets there on its way back.
    pub back: Vec<Step>,
    /// Why it could not watch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// What a packet asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    /// To watch a flow.
    See(Watch),
    /// To say what was seen.
    End(u64),
}

/// Reads a question; `None` for anything else.
#[must_use]
pub(crate) fn question(packet: &[u8]) -> Option<Question> {
    if packet.len() < LENGTH {
        return None;
    }
    let (number, rest) = packet.get(8..)?.split_first_chunk()?;
    let number = u64::from_be_bytes(*number);
    if packet.starts_with(END) {
        return Some(Question::End(number));
    }
    let (source, rest) = packet.starts_with(SEE).then(|| end_in(rest)).flatten()?;
    let (target, rest) = end_in(rest)?;
    let protocol = Protocol::from_number(*rest.first()?)?;
    Some(Question::See(Watch { number, source, target, protocol }))
}

fn end_in(bytes: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let (address, rest) = bytes.split_first_chunk::<16>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let address = Ipv6Addr::from(*address).to_canonical();
    Some((SocketAddr::new(address, u16::from_be_bytes(*port)), rest))
}

/// The bytes of a question.
#[must_use]
pub(crate) fn render(question: &Question) -> Vec<u8> {
    let mut packet = match question {
        Question::End(number) => [&END[..], &number.to_be_bytes()].concat(),
        Question::See(watch) => {
            let mut packet = [&SEE[..], &watch.number.to_be_bytes()].concat();
            for end in [watch.source, watch.target] {
                let address = match end.ip() {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                    IpAddr::V6(v6) => v6,
                };
                packet.extend(address.octets());
                packet.extend(end.port().to_be_bytes());
            }
            packet.push(watch.protocol.number());
            packet
        }
    };
    packet.resize(LENGTH, 0);
    packet
}

/// The answer that it watches.
#[must_use]
pub(crate) fn ready(number: u64) -> Vec<u8> {
    [&READY[..], &number.to_be_bytes()].concat()
}

/// The answer that it watches another flow.
#[must_use]
pub(crate) fn busy(number: u64) -> Vec<u8> {
    [&BUSY[..], &number.to_be_bytes()].concat()
}

/// The answer with what was seen; steps that do not fit are left out, those that are as they must be first.
#[must_use]
pub(crate) fn saw(number: u64, mut report: Report) -> Vec<u8> {
    loop {
        let text = serde_json::to_vec(&report).unwrap_or_default();
        if text.len() <= LENGTH - HEAD {
            return [&SAW[..], &number.to_be_bytes(), &text].concat();
        }
        let fine = report.back.iter().rposition(|step| !step.stops());
        match fine.or_else(|| report.back.len().checked_sub(1)) {
            Some(at) => drop(report.back.remove(at)),
            None => {
                report =
                    Report { trouble: Some("what it saw does not fit into a packet".to_owned()), ..Report::default() }
            }
        }
    }
}

/// A node that watches.
pub(crate) struct Far {
    socket: UdpSocket,
    number: u64,
}

impl Far {
    /// Asks the daemon at `address`, which is reached in `vrf` if that is given, to watch; `None` when it does not say that it does.
    ///
    /// # Errors
    /// When the system refuses the socket.
    pub(crate) fn ask(address: SocketAddr, vrf: Option<&IfName>, watch: &Watch) -> io::Result<Option<Self>> {
        let far = Self { socket: kernel::probe::asker(address, vrf)?, number: watch.number };
        let answer = far.exchange(&Question::See(*watch), READY, SILENCE);
        Ok(answer.map(|_| far))
    }

    /// Asks for what was seen; `None` when nothing that is understood comes back.
    #[must_use]
    pub(crate) fn report(&self) -> Option<Report> {
        let text = self.exchange(&Question::End(self.number), SAW, PATIENCE)?;
        serde_json::from_slice(&text).ok()
    }

    /// Asks until an answer begins as `wanted`, for at most `limit`, and for [`PATIENCE`] once the node says that it is busy.
    fn exchange(&self, question: &Question, wanted: &[u8; 8], mut limit: Duration) -> Option<Vec<u8>> {
        let packet = render(question);
        let begun = Instant::now();
        let mut refusals = 0;
        while begun.elapsed() < limit && refusals < REFUSALS {
            let again = Instant::now() + WAIT;
            if self.socket.send(&packet).is_err() {
                refusals += 1;
                continue;
            }
            loop {
                match self.answer(wanted, again) {
                    Ok(Some((BUSY, _))) => limit = PATIENCE,
                    Ok(Some((_, text))) => return Some(text),
                    Ok(None) => break,
                    Err(_) => {
                        refusals += 1;
                        break;
                    }
                }
            }
        }
        None
    }

    /// The next answer to this question that is `wanted` or says that the node is busy; `None` at `deadline`.
    fn answer<'a>(&self, wanted: &'a [u8; 8], deadline: Instant) -> io::Result<Option<(&'a [u8; 8], Vec<u8>)>> {
        let mut buffer = [0; LENGTH];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            let length = match self.socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            };
            let received = buffer.get(..length).unwrap_or_default();
            for kind in [wanted, BUSY] {
                let text = received.strip_prefix(kind).and_then(|rest| rest.strip_prefix(&self.number.to_be_bytes()));
                if let Some(text) = text {
                    return Ok(Some((kind, text.to_vec())));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Watch {
        Watch {
            number: 9,
            source: "172.7.21.2:4000".parse().unwrap(),
            target: "172.7.22.2:80".parse().unwrap(),
            protocol: Protocol::Tcp,
        }
    }

    #[test]
    fn questions_are_read_as_they_were_written_and_anything_else_is_none() {
        let v6 = Watch { source: "[fc00::1]:1".parse().unwrap(), target: "[fc00::2]:2".parse().unwrap(), ..watch() };
        for question in [Question::See(watch()), Question::See(v6), Question::End(9)] {
            let packet = render(&question);
            assert_eq!((super::question(&packet), packet.len()), (Some(question), LENGTH));
            assert_eq!(super::question(&packet[..LENGTH - 1]), None, "shorter than its answer may be");
        }
        for packet in [vec![0; LENGTH], [&b"netd ask"[..], &[0; LENGTH]].concat(), [&SEE[..], &[0; LENGTH]].concat()] {
            assert_eq!(super::question(&packet), None, "protocol 0 is none");
        }
    }

    #[test]
    fn report_is_never_longer_than_a_question_and_keeps_what_stops() {
        let mut report =
            Report { seen: Seen { dropped: Some("rule 7".to_owned()), ..Seen::default() }, ..Report::default() };
        for number in 0..9 {
            report.back.push(Step::ok("route", format!("{number}{}", "x".repeat(200))));
        }
        report.back.push(Step::missing("neighbour", "gone", "start netd"));
        let packet = saw(9, report.clone());
        assert!(packet.len() <= LENGTH, "{}", packet.len());
        let read: Report = serde_json::from_slice(&packet[HEAD..]).unwrap();
        assert_eq!((read.seen, read.back.last()), (report.seen, report.back.last()));
        let huge = Report { trouble: Some("x".repeat(2000)), ..Report::default() };
        let read: Report = serde_json::from_slice(&saw(9, huge)[HEAD..]).unwrap();
        assert!(read.trouble.unwrap().contains("does not fit"));
    }

    #[test]
    fn node_that_watches_is_asked_for_what_it_saw() {
        let node = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = node.local_addr().unwrap();
        let report = Report { trouble: Some("old kernel".to_owned()), ..Report::default() };
        let answers = report.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; LENGTH];
            let (length, from) = node.recv_from(&mut buffer).unwrap();
            assert_eq!(question(&buffer[..length]), Some(Question::See(watch())));
            // Somebody else's answer is passed over; one that it watches another flow is waited out.
            node.send_to(&ready(8), from).unwrap();
            node.send_to(&busy(9), from).unwrap();
            node.send_to(&ready(9), from).unwrap();
            let (length, from) = node.recv_from(&mut buffer).unwrap();
            assert_eq!(question(&buffer[..length]), Some(Question::End(9)));
            node.send_to(&saw(9, answers), from).unwrap();
        });
        let far = Far::ask(address, None, &watch()).unwrap().unwrap();
        assert_eq!(far.report(), Some(report));
        thread.join().unwrap();
        assert!(Far::ask(address, None, &watch()).unwrap().is_none(), "nobody is there");
    }
}
