//! Clients that keep their endpoint for some time: connections after less than that, and after more.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use netstate::IpFamily;
use oracle::script::Timed;

use super::client::{self, End, Target, Transport};
use super::script::Scene;

/// How long clients are kept.
const KEPT: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(6);
/// What a connection may take for its time to be known.
const MARGIN: Duration = Duration::from_millis(500);

/// Connects as often as it takes to outlast the time twice, from all clients at once.
pub(crate) fn play<'a>(scene: &mut Scene<'a>, rows: &'a [Timed]) -> Result<()> {
    for row in rows {
        scene.begin(&row.what);
        let (pause, count) = match row.what.split(" s,").next() {
            Some("a connection every 2.5") => (Duration::from_millis(2500), 4),
            Some("a connection every 5.5") => (Duration::from_millis(5500), 3),
            _ => bail!("nobody knows how to do {:?}", row.what),
        };
        compare(scene, row, pause, count)?;
    }
    Ok(())
}

/// Endpoints of one client after one another, and whether it was never longer away than it is kept.
struct Seen {
    client: String,
    family: IpFamily,
    names: Vec<String>,
    in_time: bool,
}

fn compare(scene: &mut Scene<'_>, row: &Timed, pause: Duration, count: usize) -> Result<()> {
    let clients: Vec<_> = row.seen.keys().flat_map(|client| IpFamily::ALL.map(|family| (client, family))).collect();
    let asked: Vec<_> = clients
        .into_iter()
        .map(|(client, family)| Ok((client, family, scene.address("clusterIP", family)?)))
        .collect::<Result<_>>()?;
    let machines = scene.player.machines();
    let all: Vec<Result<Seen>> = thread::scope(|scope| {
        let threads: Vec<_> = asked
            .into_iter()
            .map(|(client, family, to)| {
                scope.spawn(move || {
                    let (names, in_time) = machines.at(client, || connect(to, pause, count))?;
                    Ok(Seen { client: client.clone(), family, names, in_time })
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut moved: BTreeMap<IpFamily, bool> = BTreeMap::new();
    for Seen { client, family, names, in_time } in all.into_iter().collect::<Result<Vec<_>>>()? {
        let different: BTreeSet<_> = names.iter().collect();
        let is_answered = !names.iter().any(|name| name.starts_with("no endpoint"));
        if !is_answered || pause < KEPT && in_time && different.len() > 1 {
            scene.report(family, &client, "clusterIP", &format!("kube-proxy: one endpoint; ours: {names:?}"));
        }
        *moved.entry(family).or_default() |= different.len() > 1;
    }
    // Of six endpoints each client may get the same one again.
    for (family, _) in moved.into_iter().filter(|(_, moved)| pause > KEPT && !moved) {
        scene.report(
            family,
            "all",
            "clusterIP",
            "kube-proxy: clients get another endpoint; ours: each has kept its own",
        );
    }
    Ok(())
}

/// Connects so often with a pause between, and says who answered and whether no pause was longer than a client is kept.
fn connect((transport, to): (Transport, std::net::SocketAddr), pause: Duration, count: usize) -> (Vec<String>, bool) {
    let (mut names, mut in_time, mut last) = (Vec::new(), true, Instant::now());
    for number in 0..count {
        if number > 0 {
            thread::sleep(pause.saturating_sub(last.elapsed()));
            in_time &= last.elapsed() + MARGIN < KEPT;
        }
        last = Instant::now();
        let end = client::ask_all(&[Target { transport, to, count: 1 }], PATIENCE).into_iter().flatten().next();
        names.push(match end {
            Some((_, End::Answered(line))) => line.split(' ').next().unwrap_or_default().to_owned(),
            other => format!("no endpoint: {other:?}"),
        });
        in_time &= last.elapsed() < MARGIN;
    }
    (names, in_time)
}
