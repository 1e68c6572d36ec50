//! dnsmasq behind a Service, dig and a client that keeps its socket in front of it, and the server replaced meanwhile.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::{Process, eventually};

use super::{PODS, apply, service, start};
use crate::proxy::{Nodes, SOON};

const ADDR: &str = "192.168.0.53";
const PORTS: (&str, u16, u16) = ("UDP", 53, 5353);

/// How often a resolver asks, and how long it waits each time: what resolv.conf(5) has by default, somewhat faster.
const TRIES: usize = 3;
const WAIT: Duration = Duration::from_secs(2);
/// Between two queries of the client that keeps its socket.
const PAUSE: Duration = Duration::from_millis(20);

/// Replaces the only server again and again; the old one ends when it is no endpoint any more and no flow leads to it.
pub(crate) fn queries_on_one_socket_go_on_when_the_server_is_replaced(mode: &str) -> Result<()> {
    let (_proxy, nodes) = start(mode)?;
    let mut marks = 0;
    let (mut server, mut old) = (dnsmasq(&nodes, PODS[1])?, PODS[1]);
    apply(&nodes, "dns.yaml", &service("dns", ADDR, PORTS, &[PODS[1]]), &mut marks)?;
    let ended = AtomicBool::new(false);
    let client = nodes.pod(PODS[0])?.within(socket)??;
    let answered = AtomicUsize::new(0);
    thread::scope(|scope| {
        let asking = scope.spawn(|| ask_until(&client, &ended, &answered));
        let replaced = (|| {
            for new in [PODS[2], PODS[3], PODS[1], PODS[2]] {
                let next = dnsmasq(&nodes, new)?;
                apply(&nodes, "dns.yaml", &service("dns", ADDR, PORTS, &[new]), &mut marks)?;
                await_no_flow(&nodes, old)?;
                server.terminate(SOON)?;
                (server, old) = (next, new);
                await_answers(&answered)?;
                // With the same source port each time, the flow of before is the flow of now.
                let answer = dig(&nodes)?;
                ensure!(answer == new, "{new} is the only server, and {answer} answered");
            }
            Ok(())
        })();
        ended.store(true, Ordering::Relaxed);
        // What the client says is the cause of what is missed here.
        asking.join().unwrap().and(replaced)
    })
}

/// Waits until the client that keeps its socket has been answered some more times.
fn await_answers(answered: &AtomicUsize) -> Result<()> {
    let before = answered.load(Ordering::Relaxed);
    eventually(SOON, || {
        let more = answered.load(Ordering::Relaxed) - before;
        ensure!(more >= 5, "{more} answers to the client that keeps its socket");
        Ok(())
    })
}

/// Waits until the node leads no flow of the Service to `pod`: a server that ended earlier would refuse its queries.
fn await_no_flow(nodes: &Nodes, pod: &str) -> Result<()> {
    eventually(SOON, || {
        let flows = nodes.node()?.run(&["conntrack", "-L", "-p", "udp", "-d", ADDR])?.stdout;
        ensure!(!flows.contains(&format!("src={pod} ")), "{flows}");
        Ok(())
    })
}

/// dnsmasq in a Pod, which says of `who.test` that it has the Pod's address.
fn dnsmasq(nodes: &Nodes, pod: &'static str) -> Result<Process> {
    let place = nodes.pod(pod)?;
    let who = format!("--address=/who.test/{pod}");
    let args =
        ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--port=5353", "--user=root"];
    let command = place.command("dnsmasq").args(args).args(["--pid-file=", "--log-facility=-", &who]);
    let server = command.start(&format!("dnsmasq {pod}"))?;
    let to = format!("@{pod}");
    eventually(SOON, || {
        ensure!(server.is_running(), "dnsmasq ended: {}", server.log());
        let answer = place.host().run(&["dig", &to, "-p5353", "+short", "+tries=1", "+time=2", "who.test"])?.stdout;
        ensure!(answer.trim() == pod, "{answer}");
        Ok(())
    })?;
    Ok(server)
}

/// Who answers dig, which asks from a port of its own that is the same each time.
fn dig(nodes: &Nodes) -> Result<String> {
    let place = nodes.outside()?;
    let (to, tries, time) = (format!("@{ADDR}"), format!("+tries={TRIES}"), format!("+time={}", WAIT.as_secs()));
    let output = place.run(&["dig", &to, "-b10.4.7.200#41000", "+short", &tries, &time, "who.test"])?.stdout;
    Ok(output.trim().to_owned())
}

fn socket() -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.set_read_timeout(Some(WAIT))?;
    socket.connect((ADDR, 53))?;
    Ok(socket)
}

/// Asks on one socket until the end and counts the answers; a query that nobody answers however often it is sent is the error.
fn ask_until(socket: &UdpSocket, ended: &AtomicBool, answered: &AtomicUsize) -> Result<()> {
    let mut asked = 0_u16;
    while !ended.load(Ordering::Relaxed) {
        asked = asked.wrapping_add(1);
        ask(socket, asked).with_context(|| format!("query {asked} of the client that keeps its socket"))?;
        answered.fetch_add(1, Ordering::Relaxed);
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// One query with this number, sent again where no answer comes.
fn ask(socket: &UdpSocket, number: u16) -> Result<()> {
    let mut query = number.to_be_bytes().to_vec();
    // One question, recursion desired: who.test, A, IN (RFC 1035, section 4).
    query.extend(b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03who\x04test\x00\x00\x01\x00\x01");
    let mut last = None;
    for _ in 0..TRIES {
        if let Err(error) = socket.send(&query) {
            last = Some(error);
            continue;
        }
        let mut bytes = [0; 512];
        loop {
            match socket.recv(&mut bytes) {
                Ok(length) if length > 12 && bytes[..2] == query[..2] => return Ok(()),
                // The answer to a query that was sent twice.
                Ok(_) => {}
                Err(error) => {
                    last = Some(error);
                    break;
                }
            }
        }
    }
    bail!("no answer: {last:?}")
}
