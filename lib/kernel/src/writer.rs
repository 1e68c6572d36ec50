//! `Writers`: who else writes into the kernel's tables, as its notifications name them.
//!
//! nftables says which process made a transaction (NFTA_GEN_PROC_PID and _NAME); rtnetlink says the port id of its socket,
//! which for a program's first socket is its process id. Invariants: what is found out is a hint for an operator, and
//! nothing depends on it; each table has one last writer, so nothing here grows.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netstate::nft::{Row, RowKey, TableKey};
use reconcile::{Layer, Target};

use crate::error::KernelError;
use crate::nft;

/// Tables of nftables whose writers are kept.
const TABLES: usize = 64;

/// What somebody wrote into.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// Links.
    Link,
    /// Addresses.
    Address,
    /// Routes.
    Route,
    /// Neighbours.
    Neighbour,
    /// Forwarding entries.
    Forwarding,
    /// A table of nftables.
    Table(TableKey),
}

/// The last writer of each table; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Writers(Arc<Mutex<BTreeMap<Subject, Writer>>>);

/// Somebody who wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Writer {
    port: u32,
    /// Process id and name, if they were found while it lived.
    process: Option<(u32, String)>,
    /// The same of the process that started it.
    parent: Option<(u32, String)>,
}

impl Writers {
    /// The socket with this port id wrote. Port 0 is the kernel's own.
    #[cfg(any(test, feature = "watch"))]
    pub(crate) fn note(&self, subject: Subject, port: u32) {
        let known = |writer: &Writer| writer.port == port && writer.process.is_some();
        if port == 0 || self.entries().get(&subject).is_some_and(known) {
            return;
        }
        // Now: programs that an administrator calls live for milliseconds.
        let found = Process::read(port);
        let parent = found.as_ref().and_then(Process::parent);
        self.put(subject, Writer { port, process: found.map(|found| (port, found.name)), parent });
    }

    /// The process with this name wrote by the socket with this port id.
    pub(crate) fn note_process(&self, table: &TableKey, port: u32, pid: u32, name: &str) {
        // Numbers of another process namespace lead to another process.
        let found = Process::read(pid).filter(|found| found.name == name);
        let parent = found.as_ref().and_then(Process::parent);
        self.put(Subject::Table(table.clone()), Writer { port, process: Some((pid, name.to_owned())), parent });
    }

    fn put(&self, subject: Subject, writer: Writer) {
        let mut entries = self.entries();
        if entries.len() >= TABLES && !entries.contains_key(&subject) {
            entries.clear();
        }
        entries.insert(subject, writer);
    }

    /// Who wrote there last, for an operator.
    #[must_use]
    pub fn last(&self, subject: &Subject) -> Option<String> {
        let writer = self.entries().get(subject)?.clone();
        let named = |(pid, name): &(u32, String)| format!("{name} (process {pid})");
        let Some(process) = writer.process.or_else(|| owner_of(writer.port)) else {
            return Some(format!("a program, gone by now, with netlink port {}", writer.port));
        };
        let child = writer.parent.map(|parent| format!(", started by {}", named(&parent))).unwrap_or_default();
        Some(format!("{}{child}", named(&process)))
    }

    /// `target`, which knows who wrote into `subject` last.
    pub fn watch<T: Target>(
        &self,
        target: T,
        subject: Subject,
    ) -> impl Target<Key = T::Key, Value = T::Value, Error = T::Error> + use<T> {
        let writers = self.clone();
        Watched { target, rival: move |_: &T::Key| writers.last(&subject) }
    }

    /// Tables of nftables, which know who wrote into the one that a row is in.
    pub fn watch_tables(
        &self,
        target: nft::Tables,
    ) -> impl Target<Key = RowKey, Value = Row, Error = KernelError> + use<> {
        let writers = self.clone();
        let rival = move |key: &RowKey| {
            let table = match key {
                RowKey::Table(table) => table,
                RowKey::Set(set) => &set.table,
                RowKey::Chain(chain) => &chain.table,
                RowKey::Element(element) | RowKey::List(element) => &element.table,
            };
            writers.last(&Subject::Table(table.clone()))
        };
        Watched { target, rival }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Subject, Writer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What `/proc/PID/status` says.
struct Process {
    name: String,
    parent: u32,
}

impl Process {
    fn read(pid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        Some(Self { name: field("Name:")?.to_owned(), parent: field("PPid:")?.parse().ok()? })
    }

    /// Process id and name of the one that started it, unless that is the first of the system.
    fn parent(&self) -> Option<(u32, String)> {
        (self.parent > 1).then(|| Some((self.parent, Self::read(self.parent)?.name))).flatten()
    }
}

/// The process that holds the socket of rtnetlink with this port id: further sockets of a program have ids that are nobody's
/// process id.
fn owner_of(port: u32) -> Option<(u32, String)> {
    let inode = inode_of(&fs::read_to_string("/proc/thread-self/net/netlink").ok()?, port)?;
    let link = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let holds = |pid: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .any(|target| target.as_os_str() == link.as_str())
    };
    let pid = pids.into_iter().find(holds)?;
    Some((pid, Process::read(pid)?.name))
}

/// The inode of the socket with this port id in the text of `/proc/net/netlink`: `sk Eth Pid Groups ... Inode`.
fn inode_of(text: &str, port: u32) -> Option<u64> {
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "0", id, .., inode] = fields.as_slice() else { return None };
        // The kernel prints ids beyond the process ids as large unsigned numbers.
        (id.parse::<u32>().ok()? == port).then(|| inode.parse().ok()).flatten()
    })
}

/// A table that knows who else writes into it.
struct Watched<T, F> {
    target: T,
    /// Says who may have changed the row with a key.
    rival: F,
}

impl<T: Target, F: Fn(&T::Key) -> Option<String> + 'static> Layer for Watched<T, F> {
    type Inner = T;

    fn inner(&self) -> &T {
        &self.target
    }

    fn inner_mut(&mut self) -> &mut T {
        &mut self.target
    }

    fn rival(&self, key: &T::Key) -> Option<String> {
        (self.rival)(key)
    }
}

#[cfg(test)]
mod tests {
    use reconcile::{Observed, Step};

    use super::*;

    /// A table whose steps are given to it three at a time, and where nothing fits that is not the same upside down.
    struct Peculiar;

    impl Target for Peculiar {
        type Key = u8;
        type Value = i8;
        type Error = KernelError;

        fn observe(&mut self) -> Result<BTreeMap<u8, Observed<i8>>, KernelError> {
            Ok(BTreeMap::new())
        }

        fn satisfies(&self, have: &i8, want: &i8) -> bool {
            *have == -want
        }

        fn successor<'a>(&self, key: &u8, desired: &'a BTreeMap<u8, i8>) -> Option<&'a u8> {
            desired.keys().find(|other| **other == key + 1)
        }

        fn batch(&self) -> usize {
            3
        }

        fn apply(&mut self, steps: &[Step<u8, i8>]) -> Vec<Result<(), KernelError>> {
            steps.iter().map(|_| Ok(())).collect()
        }
    }

    #[test]
    fn table_that_is_watched_is_the_same_otherwise() {
        let watched = Writers::default().watch(Peculiar, Subject::Route);
        assert_eq!(watched.batch(), 3);
        assert_eq!(watched.successor(&1, &BTreeMap::from([(2, 0)])), Some(&2));
        assert!(watched.satisfies(&1, &-1) && !watched.satisfies(&1, &1));
    }

    #[test]
    fn writer_is_named_by_its_process_and_the_kernel_is_nobody() {
        let writers = Writers::default();
        writers.note(Subject::Route, 0);
        assert_eq!(writers.last(&Subject::Route), None);
        writers.note(Subject::Route, std::process::id());
        let text = writers.last(&Subject::Route).unwrap();
        assert!(text.contains(&format!("(process {})", std::process::id())), "{text}");
        assert!(text.contains("started by"), "{text}");
        assert_eq!(writers.last(&Subject::Link), None);
        writers.note(Subject::Route, u32::MAX - 7);
        let gone = "a program, gone by now, with netlink port 4294967288";
        assert_eq!(writers.last(&Subject::Route).as_deref(), Some(gone));
    }

    #[test]
    fn socket_of_another_port_is_found_by_its_inode() {
        let text = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
                    00000000a6f0e1d2 0   0          00000000 0        0        0     2        0        6\n\
                    00000000b1c8f3aa 12  4294963200 00000000 0        0        0     2        0        16077\n\
                    00000000b1c8f3ab 0   4294963200 00000000 0        0        0     2        0        16078\n";
        assert_eq!(inode_of(text, 4_294_963_200), Some(16078));
        assert_eq!(inode_of(text, 12), None);
        assert_eq!(inode_of("", 12), None);
    }

    #[test]
    fn writers_of_tables_without_number_are_not_kept() {
        let writers = Writers::default();
        for number in 0..1000 {
            let name = netstate::nft::Name::new(format!("t{number}")).unwrap();
            let table = TableKey { family: netstate::nft::Family::Ip, name };
            writers.note_process(&table, 7, u32::MAX, "nft");
            assert!(writers.last(&Subject::Table(table)).unwrap().starts_with("nft (process "));
        }
        assert!(writers.entries().len() <= TABLES);
    }
}
