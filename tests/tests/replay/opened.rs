//! Connections that stay open while endpoints come and go, and new ones beside them.
//!
//! Invariant: no connection that is made later has the port of an open one ([`client::open_alone`]).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use netstate::IpFamily;
use oracle::Probe;
use oracle::script::{Answered, Opened};

use super::client;
use super::script::Scene;

/// How long an answer may take, on a machine that may have other work.
const PATIENCE: Duration = Duration::from_secs(6);

struct Open<'a> {
    client: &'a str,
    dest: &'a str,
    family: IpFamily,
    stream: TcpStream,
}

/// Opens the connections of the first row, and after each row asks on all of them and opens new ones.
pub(crate) fn play<'a>(scene: &mut Scene<'a>, rows: &'a [Opened]) -> Result<()> {
    let first = rows.first().context("no rows")?;
    let mut open = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let targets = addresses(scene, row);
        scene.begin(&row.step);
        scene.act()?;
        if number == 0 {
            open = open_all(scene, first)?;
        }
        for (one, says) in ask_all(&mut open) {
            let expected = expected(row, first, one).context("no such connection")?;
            if says != expected {
                let text = format!("open connection: kube-proxy: {expected}; ours: {says}");
                scene.report(one.family, one.client, one.dest, &text);
            }
        }
        let probes = row.new.iter().cloned().zip(targets?).map(|(probe, to)| probe.at(format!("{to}/tcp")));
        scene.probe(probes.collect())?;
    }
    Ok(())
}

/// Where the new connections of a row go, while its Service still exists.
fn addresses(scene: &Scene<'_>, row: &Opened) -> Result<Vec<SocketAddr>> {
    row.new.iter().map(|probe| Ok(scene.address(&probe.dest, IpFamily::V4)?.1)).collect()
}

fn open_all<'a>(scene: &Scene<'_>, first: &'a Opened) -> Result<Vec<Open<'a>>> {
    let mut open = Vec::new();
    for (Probe { client, dest, .. }, family) in
        first.new.iter().flat_map(|new| IpFamily::ALL.map(|family| (new, family)))
    {
        let (_, to) = scene.address(dest, family)?;
        let stream = scene.player.machines().at(client, || client::open_alone(to, PATIENCE))?;
        let mut one = Open { client, dest, family, stream: stream.with_context(|| format!("{client} to {to}"))? };
        one.stream.set_read_timeout(Some(PATIENCE))?;
        one.line().context("greeting")?;
        open.push(one);
    }
    Ok(open)
}

/// Asks on all of them at once.
fn ask_all<'o, 'a>(open: &'o mut [Open<'a>]) -> Vec<(&'o Open<'a>, String)> {
    let says = |name: Result<String>| {
        name.map_or_else(|error| format!("no answer: {error:#}"), |name| format!("answered by {name}"))
    };
    thread::scope(|scope| {
        let asked: Vec<_> = open
            .iter_mut()
            .map(|one| {
                scope.spawn(|| {
                    let name = one.ask();
                    (&*one, says(name))
                })
            })
            .collect();
        asked.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

/// What was recorded of a connection.
fn expected<'a>(row: &'a Opened, first: &Opened, open: &Open<'_>) -> Option<&'a str> {
    let number = first.new.iter().position(|new| new.client == open.client && new.dest == open.dest)?;
    Some(match row.open.get(number)? {
        Answered::Of { says, client, dest } if client == open.client && dest == open.dest => says,
        Answered::Of { .. } => return None,
        Answered::Same(says) => says,
    })
}

impl Open<'_> {
    /// The name of who answers.
    fn ask(&mut self) -> Result<String> {
        self.stream.write_all(b"who are you?\n")?;
        self.line()
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        let mut bytes = [0; 512];
        while !line.ends_with(b"\n") {
            let length = self.stream.read(&mut bytes)?;
            anyhow::ensure!(length > 0, "closed");
            line.extend_from_slice(&bytes[..length]);
        }
        let line = String::from_utf8(line)?;
        Ok(line.split(' ').next().unwrap_or_default().to_owned())
    }
}
