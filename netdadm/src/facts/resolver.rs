//! Names that are not in /etc/hosts, asked of the system's resolver.
//!
//! Invariant: all names together are waited for no longer than [`LIMIT`]; a question that hangs is left to its thread.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::preflight::Plan;

/// How long is waited.
const LIMIT: Duration = Duration::from_secs(3);

/// Asks for the names of all hosts.
pub(super) fn ask(plan: &Plan, hosts: &str) -> BTreeMap<String, Result<Vec<IpAddr>, String>> {
    let known: BTreeSet<&str> =
        hosts.lines().filter_map(|line| line.split('#').next()).flat_map(str::split_whitespace).collect();
    let domain = plan.topology.domain.as_ref().map(|domain| domain.value.to_string());
    let names = plan.topology.hosts.iter().flat_map(|host| {
        let name = host.name.value.clone();
        let long = domain.as_ref().filter(|_| !name.contains('.')).map(|domain| format!("{name}.{domain}"));
        std::iter::once(name).chain(long)
    });
    let names: Vec<String> =
        names.filter(|name| !known.contains(name.as_str()) && name.parse::<IpAddr>().is_err()).collect();
    let (sender, answers) = mpsc::channel();
    for name in names.clone() {
        let sender = sender.clone();
        let question = move || {
            let found = (name.as_str(), 0).to_socket_addrs();
            let found = found.map(|all| all.map(|at| at.ip()).collect()).map_err(|error| error.to_string());
            // Whoever asked may have gone.
            let _ = sender.send((name, found));
        };
        // Without a thread the name has no answer, which is said below.
        let _ = thread::Builder::new().name("resolver".to_owned()).spawn(question);
    }
    drop(sender);
    let late = || Err(format!("no answer within {} s", LIMIT.as_secs()));
    let mut found: BTreeMap<String, Result<Vec<IpAddr>, String>> =
        names.into_iter().map(|name| (name, late())).collect();
    let end = Instant::now() + LIMIT;
    while let Ok((name, answer)) = answers.recv_timeout(end.saturating_duration_since(Instant::now())) {
        found.insert(name, answer);
    }
    found
}
