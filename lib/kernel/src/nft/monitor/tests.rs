//! Notifications as datagrams.

use super::*;
use crate::attribute::Writer;
use crate::writer::Subject;

fn notification(message: u16, family: u8, port: u32, table: Option<&str>) -> Vec<u8> {
    let mut body = Writer::behind(vec![family, 0, 0, 0]);
    if let Some(table) = table {
        body.put_str(1, table);
    }
    let body = body.finish();
    let mut bytes = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
    bytes.extend_from_slice(&(SUBSYSTEM | message).to_ne_bytes());
    bytes.extend_from_slice(&[0; 6]);
    bytes.extend_from_slice(&port.to_ne_bytes());
    bytes.extend(body);
    bytes
}

fn reader(own: &[u32], writers: &Writers) -> Reader {
    Reader { own: own.iter().copied().collect(), writers: writers.clone(), open: BTreeMap::new() }
}

fn changes(datagram: &[u8], own: &[u32]) -> Vec<String> {
    let mut changes = BTreeSet::new();
    reader(own, &Writers::default()).read(datagram, &mut changes);
    let text = |change: &Change| match change {
        Change::Table { table, port } => format!("{table} by {port}"),
        Change::Lost => "lost".to_owned(),
    };
    changes.iter().map(text).collect()
}

#[test]
fn every_message_about_a_table_names_it_once() {
    let kinds = [
        kind::NEWTABLE,
        kind::DELTABLE,
        kind::NEWCHAIN,
        kind::DELCHAIN,
        kind::NEWRULE,
        kind::DELRULE,
        kind::NEWSET,
        kind::DELSET,
        kind::NEWSETELEM,
        kind::DELSETELEM,
    ];
    let datagram: Vec<u8> = kinds.iter().flat_map(|kind| notification(*kind, 2, 77, Some("filter"))).collect();
    assert_eq!(changes(&datagram, &[]), ["ip filter by 77"]);
}

#[test]
fn families_and_authors_are_told_apart() {
    let datagram = [
        notification(kind::NEWRULE, 2, 77, Some("filter")),
        notification(kind::NEWRULE, 10, 77, Some("filter")),
        notification(kind::NEWRULE, 1, 78, Some("filter")),
        notification(kind::NEWRULE, 7, 78, Some("netd-spoof")),
    ];
    let expected = ["ip filter by 77", "ip6 filter by 77", "inet filter by 78", "bridge netd-spoof by 78"];
    let mut found = changes(&datagram.concat(), &[]);
    found.sort();
    let mut expected = expected.map(str::to_owned);
    expected.sort();
    assert_eq!(found, expected);
    assert_eq!(changes(&datagram.concat(), &[77, 78]), Vec::<String>::new(), "own changes are no news");
    assert_eq!(changes(&datagram.concat(), &[77]).len(), 2);
}

#[test]
fn generations_traces_and_other_subsystems_are_no_changes() {
    let datagram = [
        notification(kind::NEWGEN, 0, 77, Some("filter")),
        notification(TRACE, 2, 77, Some("filter")),
        // Connection tracking, subsystem 1.
        notification(SUBSYSTEM ^ (1 << 8), 2, 77, Some("filter")),
        notification(kind::NEWRULE, 2, 77, None),
        // A family that nobody here writes: arp.
        notification(kind::NEWRULE, 3, 77, Some("ingress")),
    ];
    assert_eq!(changes(&datagram.concat(), &[]), Vec::<String>::new());
}

#[test]
fn torn_datagram_ends_and_never_loops() {
    let whole =
        [notification(kind::NEWRULE, 2, 77, Some("filter")), notification(kind::NEWRULE, 2, 77, Some("nat"))].concat();
    for length in 0..whole.len() {
        assert!(changes(&whole[..length], &[]).len() <= 2, "{length} bytes");
    }
    for length in [0u32, 4, 19, u32::MAX] {
        let mut lying = whole.clone();
        lying[..4].copy_from_slice(&length.to_ne_bytes());
        changes(&lying, &[]);
    }
}

/// The end of a transaction, with who made it.
fn generation(port: u32, pid: u32, name: &str) -> Vec<u8> {
    let mut body = Writer::behind(vec![0; 4]);
    body.put(1, &7_u32.to_be_bytes()).put(GEN_PROC_PID, &pid.to_be_bytes()).put_str(GEN_PROC_NAME, name);
    let body = body.finish();
    let mut bytes = notification(kind::NEWGEN, 0, port, None);
    bytes.truncate(16);
    bytes.splice(..4, u32::try_from(16 + body.len()).unwrap().to_ne_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn process_of_a_transaction_is_noted_for_its_tables_only() {
    let writers = Writers::default();
    let mut reader = reader(&[99], &writers);
    let subject = |name: &str| Subject::Table(TableKey { family: Family::Ip, name: Name::new(name).unwrap() });
    let datagrams = [
        notification(kind::DELTABLE, 2, 77, Some("netd")),
        notification(kind::NEWRULE, 2, 78, Some("filter")),
        generation(77, u32::MAX, "nft"),
        notification(kind::NEWRULE, 2, 99, Some("own")),
        generation(99, u32::MAX, "netd"),
        generation(78, u32::MAX, "firewalld"),
    ];
    datagrams.iter().for_each(|datagram| reader.read(datagram, &mut BTreeSet::new()));
    let last = |name: &str| writers.last(&subject(name)).unwrap_or_default();
    assert!(last("netd").starts_with("nft (process"), "{}", last("netd"));
    assert!(last("filter").starts_with("firewalld (process"), "{}", last("filter"));
    assert_eq!(last("own"), "");
    assert!(reader.open.is_empty());
}
