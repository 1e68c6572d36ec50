//! Tables of traces on a kernel where a table belongs to no socket.
//!
//! Invariant: a table is left over only when no socket of this network namespace has the port id that it is named after, so that of a
//! trace that goes on never is.

use std::collections::BTreeSet;
use std::fs;

use netstate::nft::{Family, TableKey};

use crate::error::KernelError;
use crate::nft::Nft;

/// What stands before the port id in the name of a trace's table.
pub(super) const PREFIX: &str = "netd-trace-";

/// NETLINK_NETFILTER, as `/proc/net/netlink` prints it.
const NETFILTER: &str = "12";

/// Tables of traces whose process is gone: a kernel before Linux 5.12 removes none, and a process that is killed cannot.
///
/// # Errors
/// When the kernel cannot be read.
pub fn left_over(nft: &mut Nft) -> Result<Vec<TableKey>, KernelError> {
    let tables = nft.tables(Family::Inet)?;
    let path = "/proc/thread-self/net/netlink";
    let text = fs::read_to_string(path).map_err(|source| KernelError::io("read", path, "read", source))?;
    Ok(without_socket(tables, &text))
}

/// Those of `tables` that are a trace's and whose socket is not in the text of `/proc/net/netlink`: `sk Eth Pid Groups ... Inode`.
fn without_socket(tables: Vec<TableKey>, text: &str) -> Vec<TableKey> {
    let port = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().filter(|protocol| *protocol == NETFILTER).and_then(|_| fields.next()?.parse::<u32>().ok())
    };
    let living: BTreeSet<u32> = text.lines().filter_map(port).collect();
    let port_of = |table: &TableKey| table.name.as_str().strip_prefix(PREFIX)?.parse::<u32>().ok();
    tables.into_iter().filter(|table| port_of(table).is_some_and(|port| !living.contains(&port))).collect()
}

#[cfg(test)]
mod tests {
    use netstate::nft::Name;

    use super::*;

    #[test]
    fn table_is_left_over_when_no_socket_of_nftables_has_its_port() {
        let text = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
                    00000000a6f0e1d2 0   77         00000000 0        0        0     2        0        6\n\
                    00000000b1c8f3aa 12  4294963200 00000000 0        0        0     2        0        16077\n\
                    00000000b1c8f3ab 12  4711       00000000 0        0        0     2        0        16078\n";
        let key = |name: &str| TableKey { family: Family::Inet, name: Name::observed(name.to_owned()) };
        let names =
            ["netd-trace-77", "netd-trace-4711", "netd-trace-4294963200", "netd-trace-x", "netd", "netd-trace-9"];
        let found = without_socket(names.map(key).into(), text);
        assert_eq!(found, ["netd-trace-77", "netd-trace-9"].map(key), "77 is a port of rtnetlink");
    }
}
