//! A watch misses nothing, whatever happens between it and the store.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use cluster::Event;
use cluster::etcd::{Client, Config, Limits, Shown, Store, watch_entries, watch_key};
use etcd_client::{CompactionOptions, Txn, TxnOp};
use tokio::time::timeout;

use crate::consumer::{Consumer, DEADLINE, eventually};
use crate::server::Server;
use crate::wire::Wire;
use crate::{Case, block_on, subnets};

pub(crate) const CASES: &[Case] = &[
    ("watch_lists_then_follows_and_leaves_neighbours_out", lists_then_follows),
    ("watch_begins_with_a_listing_that_was_made_before_it", begins_with_listing),
    ("watch_goes_on_after_kill_and_restart_without_loss", survives_kill),
    ("one_transaction_ends_with_one_commit", transaction),
    ("store_restored_past_our_revision_is_noticed", restored_store),
    ("audit_lists_although_nothing_happened", audit),
    ("audits_of_a_watch_that_misses_nothing_list_nothing", quiet_audits),
    ("one_key_is_watched_without_its_neighbours", one_key),
    ("members_that_nobody_configured_are_learned_and_used", learned_members),
    ("frozen_member_is_left_within_seconds", frozen_member),
    ("connections_of_an_address_that_is_gone_are_left_at_once", other_address),
    ("member_without_quorum_is_no_source", quorum_lost),
    ("change_during_a_cut_is_found_by_a_new_listing", cut_without_compaction),
    ("change_during_a_cut_with_compaction_is_found_by_a_new_listing", cut_with_compaction),
    ("wiped_store_is_listed_anew_and_reported_as_such", wiped_store),
    ("twenty_thousand_keys_are_listed", twenty_thousand),
    ("listing_that_stalls_between_two_pages_is_reported_and_done_again", stalled_listing),
    ("page_too_large_for_a_message_is_cut_smaller", large_values),
];

fn lists_then_follows() {
    let server = Server::single();
    block_on(async {
        let store = server.store();
        store.put("/coreos.com/network/subnets/172.7.21.0-24", b"21", None).await.unwrap();
        let neighbours =
            ["subnets-old/172.7.99.0-24", "subnets", "subnets0", "subnets2/172.7.99.0-24", "subnetsz", "config"];
        for neighbour in neighbours {
            store.put(&format!("/coreos.com/network/{neighbour}"), b"99", None).await.unwrap();
        }
        let mut consumer = Consumer::of(&server.client(), &subnets());
        consumer.listed().await;
        for neighbour in neighbours {
            store.put(&format!("/coreos.com/network/{neighbour}"), b"98", None).await.unwrap();
        }
        let revision = store.put("/coreos.com/network/subnets/172.7.22.0-24", b"22", None).await.unwrap();
        store.delete("/coreos.com/network/subnets/172.7.21.0-24").await.unwrap();
        consumer.until("the deletion", |c| !c.knows("172.7.21.0-24")).await;
        assert_eq!(consumer.snapshot.entries().keys().collect::<Vec<_>>(), ["172.7.22.0-24"]);
        let put = Event::Put { key: "172.7.22.0-24".into(), value: b"22".to_vec(), revision };
        assert!(consumer.log.contains(&put), "{:?}", consumer.log);
    });
}

fn begins_with_listing() {
    let server = Server::single();
    block_on(async {
        let store = server.store();
        for name in ["stays", "goes"] {
            store.put(&subnets().key(name), b"1", None).await.unwrap();
        }
        let listing = store.list(&subnets()).await.unwrap();
        let origin = listing.origin;
        let value = |entry: &cluster::etcd::Entry| entry.value.escape_ascii().to_string();
        let values = listing.entries.iter().map(|entry| (entry.key.clone(), entry.mod_revision, value(entry)));
        let listed = Shown { values: values.collect(), origin };
        store.delete(&subnets().key("goes")).await.unwrap();
        store.put(&subnets().key("comes"), b"2", None).await.unwrap();
        let mut source =
            watch_entries(store.client(), &subnets(), 1, |entry| entry.value.escape_ascii().to_string(), Some(listed));
        let mut shown = Vec::new();
        while shown.last().is_none_or(|last| last != "put comes 2") {
            let event = tokio::time::timeout(Duration::from_secs(20), source.next()).await;
            shown.push(match event.expect("an event").expect("the source goes on") {
                Event::Put { key, value, .. } => format!("put {key} {value}"),
                Event::Delete { key, .. } => format!("delete {key}"),
                Event::Reset => "reset".to_owned(),
                Event::Origin(shown) if shown == origin => "origin".to_owned(),
                Event::Complete => "complete".to_owned(),
                Event::Commit => continue,
                other => format!("{other:?}"),
            });
        }
        // The key that went is in the listing, and only there: nothing was listed anew.
        let wanted = ["reset", "origin", "put goes 1", "put stays 1", "complete", "delete goes", "put comes 2"];
        assert_eq!(shown, wanted);
    });
}

fn survives_kill() {
    let mut server = Server::single();
    block_on(async {
        let store = server.store();
        let mut consumer = Consumer::of(&server.client(), &subnets());
        consumer.listed().await;
        for round in 0..3_u32 {
            for index in 0..50_u32 {
                store.put(&subnets().key(&format!("{round}-{index}")), b"x", None).await.unwrap();
            }
            // Killed right after the last answer: the watch may not have received the last puts yet.
            server.kill(0);
            consumer.until("the loss is reported", |c| c.snapshot.lost().is_some()).await;
            tokio::task::block_in_place(|| server.restart(0));
            // Or the next outage may begin before this one is over.
            consumer.until("it is listed anew", |c| c.snapshot.lost().is_none()).await;
        }
        store.put(&subnets().key("last"), b"x", None).await.unwrap();
        // A listing may show it before it is complete.
        consumer.until("the last put", |c| c.knows("last") && c.snapshot.lost().is_none()).await;
        assert_eq!(consumer.snapshot.entries().len(), 151);
        let last: Vec<i64> = consumer.since_reset().iter().filter_map(revision).collect();
        assert_eq!(last.iter().collect::<BTreeSet<_>>().len(), 151, "each key once since the last listing: {last:?}");
        assert!(consumer.resets() >= 4, "after each outage the store is listed anew");
    });
}

fn transaction() {
    let server = Server::single();
    block_on(async {
        let mut consumer = Consumer::of(&server.client(), &subnets());
        consumer.listed().await;
        let entries: Vec<_> = (0..5).map(|n| (subnets().key(&n.to_string()), b"x".to_vec())).collect();
        server.store().put_all(&entries).await.unwrap();
        consumer.until("the end of it", |c| c.log.last() == Some(&Event::Commit)).await;
        assert_eq!(consumer.snapshot.entries().len(), 5);
        assert_eq!(consumer.log.iter().filter(|event| **event == Event::Commit).count(), 1);
        // More than one transaction holds is written in several.
        let many: Vec<_> = (0..300).map(|n| (subnets().key(&format!("many-{n}")), b"x".to_vec())).collect();
        server.store().put_all(&many).await.unwrap();
        consumer.until("the rest", |c| c.snapshot.entries().len() == 305).await;
    });
}

/// A store with the keys `stays` and `goes`, and a consumer that has listed them through a wire.
async fn listed_through_a_wire(server: &Server) -> (Store, Wire, Consumer) {
    let store = server.store();
    for name in ["stays", "goes"] {
        store.put(&subnets().key(name), b"1", None).await.unwrap();
    }
    let wire = Wire::to(server.address(0)).await;
    let client = Client::new(&Config { endpoints: wire.endpoint(), ..Config::default() }, 1).unwrap();
    let mut consumer = Consumer::of(&client, &subnets());
    consumer.listed().await;
    (store, wire, consumer)
}

/// A store with the same id whose revision has passed ours shows only by a listing what it has not got.
fn restored_store() {
    let mut server = Server::single();
    block_on(async {
        let (store, wire, mut consumer) = listed_through_a_wire(&server).await;
        let seen = *consumer.snapshot.origin().unwrap();
        wire.cut();
        consumer.until("the loss is reported", |c| c.snapshot.lost().is_some()).await;
        server.kill(0);
        server.wipe(0);
        tokio::task::block_in_place(|| server.restart(0));
        while store.put(&subnets().key("stays"), b"1", None).await.unwrap_or(0) <= seen.revision + 5 {}
        wire.mend();
        consumer.until("what is not there is gone", |c| !c.knows("goes") && c.snapshot.lost().is_none()).await;
        store.put(&subnets().key("after"), b"1", None).await.unwrap();
        consumer.until("and it is followed", |c| c.knows("after")).await;
        assert_eq!(consumer.snapshot.entries().keys().collect::<Vec<_>>(), ["after", "stays"]);
        let origin = consumer.snapshot.origin().unwrap();
        assert_eq!(origin.store, seen.store, "the id of the cluster does not show it");
        assert!(origin.store != 0 && origin.member != 0 && origin.term != 0 && origin.revision != 0, "{origin:?}");
    });
}

fn audit() {
    let server = Server::single();
    block_on(async {
        server.store().put(&subnets().key("a"), b"1", None).await.unwrap();
        let limits = Limits { audit: Duration::from_millis(200), audits_per_listing: 2, ..Limits::default() };
        let endpoints = format!("http://{}", server.address(0));
        let client = Client::new(&Config { endpoints, limits, ..Config::default() }, 1).unwrap();
        let mut consumer = Consumer::of(&client, &subnets());
        consumer.until("a second listing", |c| c.resets() > 1 && !c.snapshot.is_listing()).await;
        assert!(consumer.knows("a"));
        let lost = |event: &Event| matches!(event, Event::Lost(_));
        assert!(!consumer.log.iter().any(lost), "nothing went wrong");
    });
}

/// The store is written to beside the watched keys, so that audits have to ask the stream how far it is.
fn quiet_audits() {
    let server = Server::single();
    block_on(async {
        let limits = Limits { audit: Duration::from_millis(50), audits_per_listing: 1_000_000, ..Limits::default() };
        let client = Client::new(&Config { limits, ..server.config() }, 1).unwrap();
        let store = server.store();
        store.put(&subnets().key("a"), b"1", None).await.unwrap();
        let mut consumer = Consumer::of(&client, &subnets());
        consumer.listed().await;
        let begin = Instant::now();
        for round in 0.. {
            store.put("/elsewhere", b"1", None).await.unwrap();
            match round % 3 {
                0 => store.put(&subnets().key("b"), b"1", None).await.map(drop).unwrap(),
                1 => store.put(&subnets().key("b"), b"2", None).await.map(drop).unwrap(),
                _ => store.delete(&subnets().key("b")).await.unwrap(),
            }
            if begin.elapsed() > Duration::from_secs(3) {
                break;
            }
        }
        store.put(&subnets().key("last"), b"1", None).await.unwrap();
        consumer.until("the last put", |c| c.knows("last")).await;
        assert_eq!(consumer.resets(), 1, "the first listing is the only one, after some 50 audits");
        assert!(!consumer.log.iter().any(|event| matches!(event, Event::Lost(_))));
    });
}

fn one_key() {
    let server = Server::single();
    block_on(async {
        let store = server.store();
        let mut source = watch_key(store.client(), "/net/config", 1);
        let mut next = async || source.next().await.unwrap();
        assert_eq!(next().await, Event::Reset);
        assert!(matches!(next().await, Event::Origin(_)));
        assert_eq!(next().await, Event::Complete);
        for neighbour in ["/net/confi", "/net/config/x", "/net/config0", "/net/configs"] {
            store.put(neighbour, b"99", None).await.unwrap();
        }
        let revision = store.put("/net/config", b"1", None).await.unwrap();
        assert_eq!(next().await, Event::Put { key: "/net/config".into(), value: b"1".to_vec(), revision });
        assert_eq!(next().await, Event::Commit);
        store.delete("/net/config").await.unwrap();
        assert!(matches!(next().await, Event::Delete { .. }));
    });
}

/// Only one of three is configured, and it dies.
fn learned_members() {
    let mut server = Server::three();
    block_on(async {
        let configured = format!("http://{}", server.address(0));
        let client = Client::new(&Config { endpoints: configured.clone(), ..Config::default() }, 1).unwrap();
        let mut consumer = Consumer::of(&client, &subnets());
        consumer.listed().await;
        let store = Store::new(client.clone());
        crate::consumer::eventually("all three are known", || async { client.endpoints().split(',').count() == 3 })
            .await;
        assert!(client.endpoints().starts_with(&configured));
        server.kill(0);
        crate::consumer::eventually("a put", || async { store.put(&subnets().key("after"), b"1", None).await.is_ok() })
            .await;
        consumer.until("the put", |c| c.knows("after") && c.snapshot.lost().is_none()).await;
    });
}

fn revision(event: &Event) -> Option<i64> {
    match event {
        Event::Put { revision, .. } | Event::Delete { revision, .. } => Some(*revision),
        _ => None,
    }
}

fn frozen_member() {
    let server = Server::three();
    block_on(async {
        let client = server.client();
        let mut consumer = Consumer::of(&client, &subnets());
        consumer.listed().await;
        // The stream is open when a change comes through it; before that only the time limit of opening it is met.
        server.store().put(&subnets().key("open"), b"x", None).await.unwrap();
        consumer.until("the stream is open", |c| c.knows("open")).await;
        let frozen = server.index_of(&client.current_endpoint());
        server.freeze(frozen);
        let begin = Instant::now();
        // A second client writes through the living members meanwhile.
        let others = (0..3).filter(|index| *index != frozen);
        let endpoints = others.map(|index| format!("http://{}", server.address(index))).collect::<Vec<_>>().join(",");
        let writer = Store::new(Client::new(&Config { endpoints, ..Config::default() }, 1).unwrap());
        crate::consumer::eventually("a new leader", || async {
            writer.put(&subnets().key("172.7.21.0-24"), b"x", None).await.is_ok()
        })
        .await;
        consumer.until("the put", |c| c.knows("172.7.21.0-24")).await;
        let Limits { keep_alive, keep_alive_answer, operation, .. } = Limits::default();
        let bound = keep_alive + keep_alive_answer + operation + Duration::from_secs(5);
        assert!(begin.elapsed() < bound, "{:?}", begin.elapsed());
        assert_eq!(consumer.resets(), 2);
        assert_ne!(server.index_of(&client.current_endpoint()), frozen);
    });
}

fn quorum_lost() {
    let mut server = Server::three();
    block_on(async {
        let client = server.client();
        let mut consumer = Consumer::of(&client, &subnets());
        consumer.listed().await;
        server.store().put(&subnets().key("open"), b"x", None).await.unwrap();
        consumer.until("the stream is open", |c| c.knows("open")).await;
        // The member that is watched stays alive and answers pings, but cannot know what is true any more.
        let watched = server.index_of(&client.current_endpoint());
        let others: Vec<usize> = (0..3).filter(|index| *index != watched).collect();
        others.iter().for_each(|index| server.kill(*index));
        consumer.until("the loss is reported", |c| c.snapshot.lost().is_some()).await;
        assert!(consumer.knows("open"));
        tokio::task::block_in_place(|| server.restart_all(&others));
        server.store().put(&subnets().key("after"), b"x", None).await.unwrap();
        consumer.until("a change after it", |c| c.knows("after") && c.snapshot.lost().is_none()).await;
    });
}

/// A watch through a wire that is cut, what is done meanwhile, and the watch after it is mended.
async fn cut_off(server: &Server, compact: bool) -> Consumer {
    let (store, wire, mut consumer) = listed_through_a_wire(server).await;
    // The stream is open when a change comes through.
    store.put(&subnets().key("stays"), b"2", None).await.unwrap();
    consumer.until("a change", |c| c.snapshot.get("stays").is_some_and(|value| value == b"2")).await;

    wire.cut();
    consumer.until("the loss is reported", |c| c.snapshot.lost().is_some()).await;
    store.delete(&subnets().key("goes")).await.unwrap();
    let revision = store.put(&subnets().key("comes"), b"1", None).await.unwrap();
    if compact {
        let physical = CompactionOptions::new().with_physical();
        server.raw().await.compact(revision, Some(physical)).await.unwrap();
    }
    assert!(consumer.knows("goes"), "nothing is removed while out of reach");
    wire.mend();
    consumer.until("the put", |c| c.knows("comes") && c.snapshot.lost().is_none()).await;
    consumer.until("the deletion", |c| !c.knows("goes")).await;
    assert_eq!(consumer.snapshot.entries().keys().collect::<Vec<_>>(), ["comes", "stays"]);
    consumer
}

fn cut_without_compaction() {
    let server = Server::single();
    block_on(async {
        let consumer = cut_off(&server, false).await;
        assert_eq!(consumer.resets(), 2);
    });
}

fn cut_with_compaction() {
    let server = Server::single();
    block_on(async {
        let consumer = cut_off(&server, true).await;
        assert_eq!(consumer.resets(), 2);
        let deleted = |event: &Event| matches!(event, Event::Delete { .. });
        assert!(!consumer.log.iter().any(deleted), "found by the listing, not by the stream");
    });
}

fn wiped_store() {
    let mut server = Server::single();
    block_on(async {
        let store = server.store();
        for index in 0..20_u32 {
            store.put(&subnets().key(&index.to_string()), b"x", None).await.unwrap();
        }
        let mut consumer = Consumer::of(&server.client(), &subnets());
        consumer.listed().await;
        server.kill(0);
        server.wipe(0);
        tokio::task::block_in_place(|| server.restart(0));
        consumer.until("a second listing begins", |c| c.resets() == 2).await;
        assert_eq!(consumer.snapshot.pending_removals(), 20, "the consumer can see what an empty listing would cost");
        consumer.until("it is empty", |c| c.snapshot.entries().is_empty()).await;
        store.put(&subnets().key("new"), b"x", None).await.unwrap();
        consumer.until("and followed", |c| c.knows("new")).await;
    });
}

async fn fill(server: &Server, count: usize, value: &[u8], per_transaction: usize) {
    let mut raw = server.raw().await;
    let keys: Vec<String> = (0..count).map(|index| subnets().key(&format!("{index:05}"))).collect();
    for keys in keys.chunks(per_transaction) {
        let puts: Vec<TxnOp> = keys.iter().map(|key| TxnOp::put(key.as_str(), value, None)).collect();
        raw.txn(Txn::new().and_then(puts)).await.unwrap();
    }
}

fn twenty_thousand() {
    let server = Server::single();
    block_on(async {
        fill(&server, 20_000, &[b'x'; 250], 100).await;
        let begin = Instant::now();
        let listing = server.store().list(&subnets()).await.unwrap();
        println!("listed {} keys of 250 B in {:?}", listing.entries.len(), begin.elapsed());
        assert_eq!(listing.entries.len(), 20_000);
        let names: Vec<&str> = listing.entries.iter().map(|entry| entry.key.as_str()).collect();
        assert!(names.is_sorted() && names.first() == Some(&"00000") && names.last() == Some(&"19999"));
        let mut consumer = Consumer::of(&server.client(), &subnets());
        consumer.listed().await;
        assert_eq!(consumer.snapshot.entries().len(), 20_000);
    });
}

/// Nothing comes back on the connections of an address that the host has no more, and nothing says so.
fn other_address() {
    let server = Server::single();
    block_on(async {
        let wire = Wire::to(server.address(0)).await;
        // No limit of its own ends a wait before the test gives up.
        let never = Duration::from_secs(3600);
        let limits = Limits { operation: never, keep_alive: never, compare: never, ..Limits::default() };
        let config = Config { endpoints: wire.endpoint(), limits, ..Config::default() };
        let client = Client::new(&config, 1).unwrap();
        let store = server.store();
        let mut consumer = Consumer::of(&client, &subnets());
        consumer.listed().await;
        store.put(&subnets().key("172.7.21.0-24"), b"21", None).await.unwrap();
        consumer.until("a change by the stream", |c| c.knows("172.7.21.0-24")).await;
        wire.silence();
        store.put(&subnets().key("172.7.22.0-24"), b"22", None).await.unwrap();
        let (asked, key) = (Store::new(client.clone()), subnets().key("172.7.22.0-24"));
        wire.lose_answer_to(key.as_bytes());
        let waiting = tokio::spawn(async move { asked.get(&key).await });
        eventually("a request on the silent connection", || async { wire.has_lost_an_answer() }).await;
        client.dial_anew();
        consumer.until("a change that came meanwhile", |c| c.knows("172.7.22.0-24")).await;
        assert!(!consumer.log.iter().any(|event| matches!(event, Event::Lost(_))), "{:?}", consumer.log);
        let answer = timeout(DEADLINE, waiting).await.unwrap().unwrap().unwrap();
        assert_eq!(answer.unwrap().value, b"22");
    });
}

/// The store falls silent between two pages, and comes back.
fn stalled_listing() {
    let mut server = Server::single();
    block_on(async {
        fill(&server, 3000, b"x", 100).await;
        let limits = Limits { page: 50, ..crate::server::short_limits() };
        let client = Client::new(&Config { limits, ..server.config() }, 1).unwrap();
        let mut consumer = Consumer::of(&client, &subnets());
        // More than the queue holds is still to be asked for then.
        consumer.until("a part of the listing", |c| c.log.len() >= 500).await;
        server.freeze(0);
        consumer.until("the silence is reported", |c| c.snapshot.lost().is_some()).await;
        assert!(!consumer.snapshot.is_complete(), "half of it is no listing");
        server.kill(0);
        tokio::task::block_in_place(|| server.restart(0));
        consumer.until("all of it", |c| c.snapshot.is_complete() && c.snapshot.lost().is_none()).await;
        assert_eq!(consumer.snapshot.entries().len(), 3000);
    });
}

fn large_values() {
    let server = Server::single();
    block_on(async {
        // 80 MB on one page of 1000: more than one answer may carry.
        fill(&server, 80, &vec![b'x'; 1_000_000], 1).await;
        let mut consumer = Consumer::of(&server.client(), &subnets());
        consumer.listed().await;
        assert_eq!(consumer.snapshot.entries().len(), 80);
    });
}
