//! A hundred changes of endpoints in a second for ten seconds, and clients that check who answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use lab::{Place, echo, eventually};

use super::{PODS, service, start};
use crate::proxy::{Nodes, SOON};

/// Each Service has endpoints of its own; everybody else's answer is a wrong delivery.
const SERVICES: [(&str, &str, [&str; 2]); 2] =
    [("odd", "192.168.0.31", [PODS[1], PODS[3]]), ("even", "192.168.0.32", [PODS[0], PODS[2]])];

const PERIOD: Duration = Duration::from_secs(10);
const CHANGES: u32 = 1000;

/// The endpoints that a Service has after change `number`: the first, both, the second, both.
fn endpoints(number: usize, own: [&'static str; 2]) -> Vec<&'static str> {
    match number % 4 {
        0 => vec![own[0]],
        2 => vec![own[1]],
        _ => own.to_vec(),
    }
}

pub(crate) fn ten_seconds_of_changes_deliver_nothing_to_the_wrong_service(mode: &str) -> Result<()> {
    let (_proxy, nodes) = start(mode)?;
    let write = |number: usize, (name, addr, own): (&str, &str, [&'static str; 2])| {
        let text = service(name, addr, ("TCP", 80, 80), &endpoints(number, own));
        nodes.publish_quickly(&format!("{name}.yaml"), &text)
    };
    SERVICES.iter().try_for_each(|one| write(0, *one))?;
    for (_, addr, _) in SERVICES {
        eventually(SOON, || echo::ask_tcp(nodes.outside()?, format!("{addr}:80").parse()?, SOON))?;
    }
    let (ended, failures, asked) = (AtomicBool::new(false), Mutex::new(Vec::new()), AtomicUsize::new(0));
    let client = |place: &dyn Fn(SocketAddr) -> Result<String>, label: &str| {
        while !ended.load(Ordering::Relaxed) {
            for (name, addr, own) in SERVICES {
                let number = asked.fetch_add(1, Ordering::Relaxed);
                let failure = match format!("{addr}:80").parse().map_err(Into::into).and_then(place) {
                    Ok(who) if own.contains(&who.as_str()) => continue,
                    Ok(who) => format!("request {number} from {label} to {name} was answered by {who}"),
                    Err(error) => format!("request {number} from {label} to {name}: {error:#}"),
                };
                failures.lock().unwrap().push(failure);
            }
        }
    };
    let made = thread::scope(|scope| -> Result<u32> {
        scope.spawn(|| client(&|to| name(nodes.outside()?, to), "outside"));
        scope.spawn(|| client(&|to| name(nodes.node()?, to), "the node"));
        scope.spawn(|| client(&|to| name(nodes.pod(PODS[0])?, to), "a Pod"));
        let made = change(|number| write(number, SERVICES[number % 2]));
        ended.store(true, Ordering::Relaxed);
        made
    })?;
    let failures = failures.into_inner().unwrap();
    ensure!(
        failures.is_empty(),
        "{} of {asked:?} requests failed: {:#?}",
        failures.len(),
        &failures[..failures.len().min(9)]
    );
    ensure!(made == CHANGES, "{made} changes");
    settles(&nodes)
}

fn name(from: &impl Place, to: SocketAddr) -> Result<String> {
    echo::ask_tcp(from, to, SOON).map(|answer| answer.name)
}

/// Makes the changes at their times and returns how many. A machine with other work may be behind; it makes all of them.
fn change(mut write: impl FnMut(usize) -> Result<()>) -> Result<u32> {
    let begun = Instant::now();
    for number in 0..CHANGES {
        thread::sleep((PERIOD * number / CHANGES).saturating_sub(begun.elapsed()));
        write(number as usize)?;
    }
    Ok(CHANGES)
}

/// After the last change each Service leads where it says.
fn settles(nodes: &Nodes) -> Result<()> {
    for (name, addr, own) in SERVICES {
        nodes.publish(&format!("{name}.yaml"), &service(name, addr, ("TCP", 80, 80), &own[..1]))?;
        eventually(SOON, || {
            let mut seen = BTreeMap::new();
            for _ in 0..10 {
                *seen.entry(echo::ask_tcp(nodes.outside()?, format!("{addr}:80").parse()?, SOON)?.name).or_insert(0) +=
                    1;
            }
            if seen.keys().eq([own[0]]) { Ok(()) } else { bail!("{name}: {seen:?}") }
        })?;
    }
    Ok(())
}
