//! Sockets that stay the same and send one datagram after another while endpoints come and go.

use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netstate::IpFamily;
use oracle::script::{Flow, Flows};

use super::script::Scene;
use super::{SOON, purpose};

/// Between two datagrams, as recorded.
const PAUSE: Duration = Duration::from_millis(50);
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_millis(300);
/// For so long, and so many datagrams, an answer must be the same to count.
const STEADY: Duration = Duration::from_secs(1);
const DATAGRAMS: usize = 5;

const NOBODY: &str = "nobody";

/// Opens a socket for each client and family, and compares who answers in the end of each row.
pub(crate) fn play<'a>(scene: &mut Scene<'a>, rows: &'a [Flows]) -> Result<()> {
    let first = rows.first().context("no rows")?;
    let mut sockets = Vec::new();
    for row in rows {
        scene.begin(&row.step);
        scene.act()?;
        if sockets.is_empty() {
            sockets = open(scene, first)?;
        }
        for (flow, family, name) in ends(scene, row, &sockets) {
            if name != flow.last {
                scene.report(family, &flow.client, &flow.dest, &text(flow, &name));
            }
        }
    }
    Ok(())
}

fn text(flow: &Flow, ours: &str) -> String {
    format!("kube-proxy: {} in the end; ours: {ours}", flow.last)
}

/// Who answers each socket in the end of a row.
fn ends<'r>(
    scene: &Scene<'_>,
    row: &'r Flows,
    sockets: &[(usize, IpFamily, UdpSocket)],
) -> Vec<(&'r Flow, IpFamily, String)> {
    let setting = scene.player.setting();
    thread::scope(|scope| {
        let all: Vec<_> = sockets
            .iter()
            .map(|(number, family, socket)| {
                let flow = &row.flows[*number];
                let name = scene.name(&flow.client, &flow.dest);
                let is_settled = move |ours: &str| {
                    ours == flow.last || purpose::explains(setting, &format!("{name}: {}", text(flow, ours)))
                };
                scope.spawn(move || (flow, *family, end(socket, is_settled)))
            })
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

fn open(scene: &Scene<'_>, first: &Flows) -> Result<Vec<(usize, IpFamily, UdpSocket)>> {
    let mut sockets = Vec::new();
    for (number, flow) in first.flows.iter().enumerate() {
        for family in IpFamily::ALL {
            let (_, to) = scene.address(&flow.dest, family)?;
            let socket = scene.player.machines().at(&flow.client, || -> Result<UdpSocket> {
                let socket = UdpSocket::bind((family.unspecified(), 0))?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.connect(to)?;
                Ok(socket)
            })?;
            sockets.push((number, family, socket?));
        }
    }
    Ok(sockets)
}

/// Who answers steadily: somebody of whom the row `is_settled` with, or whoever does when the time is over.
fn end(socket: &UdpSocket, is_settled: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + SOON;
    let (mut last, mut since, mut count) = (String::new(), Instant::now(), 0);
    loop {
        let begun = Instant::now();
        let name = ask(socket);
        if name == last {
            count += 1;
        } else {
            (last, since, count) = (name, begun, 1);
        }
        let is_steady = since.elapsed() >= STEADY && count >= DATAGRAMS;
        if is_steady && is_settled(&last) || Instant::now() > deadline {
            return last;
        }
        thread::sleep(PAUSE.saturating_sub(begun.elapsed()));
    }
}

fn ask(socket: &UdpSocket) -> String {
    let mut bytes = [0; 512];
    let answer = socket.send(b"who are you?\n").and_then(|_| socket.recv(&mut bytes));
    let name = answer.ok().map(|length| String::from_utf8_lossy(&bytes[..length]).into_owned());
    name.and_then(|line| line.split(' ').next().map(str::to_owned)).unwrap_or_else(|| NOBODY.to_owned())
}
