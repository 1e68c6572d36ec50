//! Sockets that wait for clients, with the processes that have them.
//!
//! Invariant: a process that may not be seen, or has ended meanwhile, is no owner.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use kernel::listener;
use netstate::Protocol;

use crate::preflight::{Process, Socket};
use crate::topology::Transport;

/// All of them, TCP and UDP.
pub(super) fn waiting() -> Vec<Socket> {
    let owners = owners();
    let socket = |(listener, number): (listener::Listener, u64)| {
        let transport = match listener.protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
            _ => return None,
        };
        let owner = owners.get(&number).and_then(|pid| owner(*pid));
        Some(Socket { transport, at: listener.at, owner })
    };
    listener::numbered().into_iter().filter_map(socket).collect()
}

/// Processes by the numbers of their sockets.
fn owners() -> BTreeMap<u64, u32> {
    let mut found = BTreeMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let numbers = files.filter_map(|file| number(&fs::read_link(file.path()).ok()?));
        found.extend(numbers.map(|number| (number, pid)));
    }
    found
}

/// The number in `socket:[number]`.
fn number(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn owner(pid: u32) -> Option<Process> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned();
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    Some(Process { pid, name, unit: unit(&groups) })
}

/// The unit in the path of a control group: `0::/system.slice/etcd.service`.
fn unit(groups: &str) -> Option<String> {
    let paths = groups.lines().filter_map(|line| line.rsplit(':').next());
    let steps = paths.flat_map(|path| path.split('/').rev().map(str::to_owned).collect::<Vec<_>>());
    steps.into_iter().find(|step| step.ends_with(".service") || step.ends_with(".scope"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_known_with_its_process_and_its_unit() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = socket.local_addr().unwrap();
        let found = waiting().into_iter().find(|found| found.at == at && found.transport == Transport::Tcp).unwrap();
        assert_eq!(found.owner.unwrap().pid, std::process::id());
        assert_eq!(unit("0::/system.slice/etcd.service\n").as_deref(), Some("etcd.service"));
        assert_eq!(
            unit("12:pids:/\n0::/user.slice/user-0.slice/session-1.scope\n").as_deref(),
            Some("session-1.scope")
        );
        assert_eq!(unit("0::/\n"), None);
    }
}
