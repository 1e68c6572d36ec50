//! Notifications as datagrams.

use super::*;
use crate::attribute::Writer;

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

fn changes(datagram: &[u8], own: &[u32]) -> Vec<String> {
    let mut changes = BTreeSet::new();
    collect(datagram, &own.iter().copied().collect(), &mut changes);
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
        // A family that nobody here writes: netdev.
        notification(kind::NEWRULE, 5, 77, Some("ingress")),
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
