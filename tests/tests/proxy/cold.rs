//! A node that is new to many Services begins with those that others need to start, shown by packets.

use std::net::UdpSocket;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use lab::{Place, Process, eventually};

use super::{Nodes, SERVICES, SOON, WEB_SERVICE, slice};

/// Services beside that of DNS.
const MANY: usize = 1_200;
/// Each message to the kernel takes so much longer, that the order of two answers does not hang on how busy the machine is.
const SLOW: &str = "inject=sendto,sendmsg:delay_enter=10ms";

fn address(index: usize) -> String {
    format!("192.168.{}.{}", 1 + index / 200, 1 + index % 200)
}

/// Services whose names come before that of DNS and behind it, of UDP as it is.
fn many() -> String {
    let mut text = String::new();
    for index in 0..MANY {
        let name = format!("{}{index}", if index % 2 == 0 { "a" } else { "z" });
        let service = WEB_SERVICE.replace("web", &name).replace("192.168.0.10", &address(index));
        let both = format!("{service}---\n{}---\n", slice(&["172.7.22.2"]).replace("web", &name));
        text.push_str(&both.replace("port: 80}", "port: 80, protocol: UDP}"));
    }
    text.push_str(&super::dns(&["172.7.22.3"]));
    text.push('\n');
    text
}

/// Asks at this address again and again until somebody answers; when that was.
fn first_answer(from: &impl Place, server: &str, proxy: &Process) -> Result<Instant> {
    let begun = Instant::now();
    let mut bytes = [0; 1024];
    while begun.elapsed() < 3 * SOON {
        // A flow of its own each time: nothing of an earlier one is remembered anywhere.
        let socket = from.within(|| UdpSocket::bind("0.0.0.0:0"))??;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let asked = socket.send_to(b"who are you?\n", server).and_then(|_| socket.recv(&mut bytes));
        if asked.is_ok() {
            return Ok(Instant::now());
        }
    }
    Err(anyhow::anyhow!("{}", proxy.log())).context(format!("nobody answers at {server}"))
}

pub(crate) fn dns_answers_on_a_new_node_before_the_last_service_is_there() -> Result<()> {
    let nodes = Nodes::start()?;
    let node = nodes.node()?;
    nodes.publish("all.yaml", &many())?;
    let words = ["-D", "-f", "-qq", "-o", "/run/trace", "-e", "trace=sendto,sendmsg", "-e", SLOW];
    let command = node.command("strace").args(words).arg(lab::bin("ipvs-proxy")?);
    let command = command.arg(format!("--services-dir={SERVICES}")).arg("--proxy-mode=ipvs");
    let proxy = command.args(["--cluster-cidr=172.7.0.0/16", "--service-cidr=192.168.0.0/16"]).start("ipvs-proxy")?;
    // Every third of them, for which one is written last is not promised.
    let asked = [super::DNS.to_owned()].into_iter().chain((0..MANY).step_by(MANY / 3).map(|i| address(i) + ":80"));
    let asked: Vec<String> = asked.chain([address(MANY - 1) + ":80"]).collect();
    let answered = std::thread::scope(|scope| {
        let (nodes, proxy) = (&nodes, &proxy);
        let ask = |server: &String| {
            let server = server.clone();
            scope.spawn(move || first_answer(nodes.outside()?, &server, proxy))
        };
        let clients: Vec<_> = asked.iter().map(ask).collect();
        let answer =
            |client: ScopedJoinHandle<'_, Result<_>>| client.join().map_err(|_| anyhow!("a client panicked"))?;
        clients.into_iter().map(answer).collect::<Result<Vec<_>>>()
    })?;
    let (first, last) = (answered[0], answered[1..].iter().max().context("none")?);
    println!("the last of {} other Services answered {:?} behind DNS", answered.len() - 1, last.duration_since(first));
    ensure!(*last > first, "DNS answered {:?} behind all others", first.duration_since(*last));
    eventually(SOON, || {
        ensure!(nodes.status()?["ok"] == true, "{}", nodes.status()?);
        Ok(())
    })
}
