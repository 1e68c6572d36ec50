//! Keys and leases: races have one winner, a lost answer does no harm, a lost lease is reported.

use std::time::Duration;

use cluster::Class;
use cluster::etcd::{Client, Config, Creation, Deletion, Hold, LeaseState, Replacement, Store};
use tokio::time::timeout;

use crate::consumer::{DEADLINE, eventually};
use crate::server::{Server, free_addresses, short_limits};
use crate::wire::Wire;
use crate::{Case, block_on, subnets};

pub(crate) const CASES: &[Case] = &[
    ("dead_member_of_three_costs_no_failed_request", dead_member),
    ("follower_killed_in_mid_traffic_costs_no_failed_request", follower_killed),
    ("creation_race_has_one_winner_and_says_which", creation_race),
    ("creation_whose_answer_is_lost_is_recognised", lost_answer_to_creation),
    ("replacement_whose_answer_is_lost_is_recognised", lost_answer_to_replacement),
    ("replacement_and_deletion_need_the_revision_that_was_read", compare_and_swap),
    ("kept_lease_outlives_its_time_and_revoked_one_is_lost", kept_and_lost),
    ("outage_is_no_lost_lease", outage),
    ("nobody_listening_fails_within_the_limits", nobody_listening),
    ("frozen_member_costs_one_time_limit_and_no_failure", frozen_member),
];

fn key() -> String {
    subnets().key("172.7.21.0-24")
}

fn dead_member() {
    let mut server = Server::three();
    server.kill(1);
    block_on(async {
        let config = server.config();
        // Three clients, each beginning with another member, the dead one included.
        let clients = (0..64).map(|seed| Client::new(&config, seed).unwrap());
        let mut begun = std::collections::BTreeMap::new();
        for client in clients {
            begun.entry(client.current_endpoint()).or_insert(client);
        }
        assert_eq!(begun.len(), 3);
        // The dead member may have led: until there is a new leader no store can answer.
        let probe = server.store();
        eventually("a leader", || async { probe.put("probe", b"", None).await.is_ok() }).await;
        for (begin, client) in begun {
            let store = Store::new(client);
            for index in 0..100_u32 {
                let key = subnets().key(&format!("{index}"));
                store.get(&key).await.unwrap_or_else(|error| panic!("{begin}: {error}"));
                store.put(&key, b"x", None).await.unwrap_or_else(|error| panic!("{begin}: {error}"));
            }
            assert_ne!(server.index_of(&store.client().current_endpoint()), 1);
        }
    });
}

fn follower_killed() {
    let mut server = Server::three();
    block_on(async {
        let follower = server.a_follower().await;
        let config = server.config();
        let on_follower = |client: &Client| server.index_of(&client.current_endpoint()) == follower;
        let client = (0..64).map(|seed| Client::new(&config, seed).unwrap()).find(on_follower).unwrap();
        let writers: Vec<_> = (0..4_u32)
            .map(|writer| {
                let store = Store::new(client.clone());
                tokio::spawn(async move {
                    for index in 0..200_u32 {
                        let key = subnets().key(&format!("{writer}-{index}"));
                        store.put(&key, b"x", None).await.unwrap_or_else(|error| panic!("{error}"));
                    }
                })
            })
            .collect();
        let probe = server.store();
        eventually("traffic", || async { probe.list(&subnets()).await.unwrap().entries.len() > 50 }).await;
        server.kill(follower);
        let unfinished = probe.list(&subnets()).await.unwrap().entries.len();
        assert!(unfinished < 800, "killed too late to prove anything");
        for writer in writers {
            writer.await.unwrap();
        }
        assert_eq!(probe.list(&subnets()).await.unwrap().entries.len(), 800);
    });
}

fn creation_race() {
    let server = Server::single();
    block_on(async {
        let racers: Vec<_> = (0..10_u8)
            .map(|racer| {
                let store = server.store();
                tokio::spawn(async move { (racer, store.create(&key(), &[racer], Hold::Seconds(60)).await.unwrap()) })
            })
            .collect();
        let mut winners = Vec::new();
        let mut losers = Vec::new();
        for racer in racers {
            match racer.await.unwrap() {
                (racer, Creation::Created { lease, .. }) => winners.push((vec![racer], lease)),
                (_, Creation::Exists(entry)) => losers.push((entry.value, entry.lease)),
            }
        }
        assert_eq!(winners.len(), 1);
        assert!(winners[0].1.is_some());
        assert!(losers.len() == 9 && losers.iter().all(|losers| *losers == winners[0]), "{losers:?} {winners:?}");
        assert_eq!(server.raw().await.leases().await.unwrap().leases().len(), 1, "the losers' leases are revoked");
    });
}

/// A store whose first member loses the answer to the next request that contains `bytes`.
async fn store_that_loses_an_answer(server: &Server) -> (Wire, Store) {
    let wire = Wire::to(server.address(0)).await;
    let endpoints = format!("{},{}", wire.endpoint(), server.endpoints());
    let config = Config { endpoints, limits: short_limits(), ..Config::default() };
    let through_wire =
        (0..64).map(|seed| Client::new(&config, seed).unwrap()).find(|c| c.current_endpoint() == wire.endpoint());
    (wire, Store::new(through_wire.unwrap()))
}

fn lost_answer_to_creation() {
    let server = Server::single();
    block_on(async {
        let (wire, store) = store_that_loses_an_answer(&server).await;
        wire.lose_answer_to(b"172.7.21.0-24");
        let created = store.create(&key(), b"mine", Hold::Seconds(60)).await.unwrap();
        assert!(wire.has_lost_an_answer());
        let entry = store.get(&key()).await.unwrap().unwrap();
        assert_eq!(created, Creation::Created { lease: entry.lease, mod_revision: entry.mod_revision });
        assert_eq!(server.raw().await.leases().await.unwrap().leases().len(), 1);
    });
}

fn lost_answer_to_replacement() {
    let server = Server::single();
    block_on(async {
        let (wire, store) = store_that_loses_an_answer(&server).await;
        let before = store.put(&key(), b"old", None).await.unwrap();
        wire.lose_answer_to(b"172.7.21.0-24");
        let replaced = store.replace_if(&key(), b"new", Hold::Forever, before).await.unwrap();
        assert!(wire.has_lost_an_answer());
        let entry = store.get(&key()).await.unwrap().unwrap();
        assert_eq!(replaced, Replacement::Replaced { lease: None, mod_revision: entry.mod_revision });
        assert_eq!(entry.mod_revision, before + 1, "written once");
    });
}

fn compare_and_swap() {
    let server = Server::single();
    block_on(async {
        let store = server.store();
        let first = store.put(&key(), b"1", None).await.unwrap();
        let Replacement::Replaced { lease: Some(lease), mod_revision } =
            store.replace_if(&key(), b"2", Hold::Seconds(60), first).await.unwrap()
        else {
            panic!("the revision was right")
        };
        let stale = store.replace_if(&key(), b"3", Hold::Seconds(60), first).await.unwrap();
        let Replacement::Changed(Some(entry)) = stale else { panic!("{stale:?}") };
        assert_eq!((entry.value.as_slice(), entry.lease, entry.mod_revision), (&b"2"[..], Some(lease), mod_revision));
        assert_eq!(store.delete_if(&key(), first).await.unwrap(), Deletion::Changed(entry));
        let same_lease = store.replace_if(&key(), b"4", Hold::Lease(lease), mod_revision).await.unwrap();
        let Replacement::Replaced { lease: kept, mod_revision } = same_lease else { panic!("{same_lease:?}") };
        assert_eq!(kept, Some(lease));
        assert_eq!(store.delete_if(&key(), mod_revision).await.unwrap(), Deletion::Gone);
        assert_eq!(store.delete_if(&key(), mod_revision).await.unwrap(), Deletion::Gone);
        let gone = store.replace_if(&key(), b"5", Hold::Seconds(60), mod_revision).await.unwrap();
        assert_eq!(gone, Replacement::Changed(None));
        assert_eq!(server.raw().await.leases().await.unwrap().leases().len(), 1, "unused leases are revoked");
        let reserved = store.create(&key(), b"6", Hold::Forever).await.unwrap();
        assert!(matches!(reserved, Creation::Created { lease: None, .. }));
        let again = store.create(&key(), b"6", Hold::Forever).await.unwrap();
        assert!(matches!(again, Creation::Exists(entry) if entry.value == b"6"));
    });
}

fn kept_and_lost() {
    let server = Server::single();
    block_on(async {
        let store = server.store();
        let Creation::Created { lease: Some(lease), .. } = store.create(&key(), b"x", Hold::Seconds(2)).await.unwrap()
        else {
            panic!("nobody else is here")
        };
        let left = store.time_to_live(lease).await.unwrap().unwrap();
        assert_eq!(left.granted, Duration::from_secs(2));
        let mut kept = store.keep_alive(lease, 2, 1);
        // Three times its time, measured by a lease that nobody keeps.
        for _ in 0..3 {
            let clock = store.grant(2).await.unwrap();
            eventually("the clock lease ends", || async { store.time_to_live(clock).await.unwrap().is_none() }).await;
        }
        assert_eq!(kept.state(), LeaseState::Kept);
        assert_eq!(store.get(&key()).await.unwrap().unwrap().lease, Some(lease));

        store.revoke(lease).await.unwrap();
        timeout(DEADLINE, kept.lost()).await.unwrap();
        assert_eq!(kept.state(), LeaseState::Lost);
        assert_eq!(store.get(&key()).await.unwrap(), None);
        store.revoke(lease).await.unwrap();
        let refused = store.put(&key(), b"x", Some(lease)).await.unwrap_err();
        assert_eq!(refused.class, Class::Refuse, "{refused}");
    });
}

fn outage() {
    let mut server = Server::single();
    block_on(async {
        let store = server.store();
        let lease = store.grant(60).await.unwrap();
        // Renewed each second.
        let mut kept = store.keep_alive(lease, 3, 1);
        assert_eq!(timeout(DEADLINE, kept.changed()).await.unwrap(), LeaseState::Kept);
        server.kill(0);
        let failing = timeout(DEADLINE, kept.changed()).await.unwrap();
        assert!(matches!(&failing, LeaseState::Failing(error) if error.class == Class::Retry), "{failing:?}");
        tokio::task::block_in_place(|| server.restart(0));
        let again = async { while kept.changed().await != LeaseState::Kept {} };
        timeout(DEADLINE, again).await.unwrap();
    });
}

fn nobody_listening() {
    block_on(async {
        let endpoints: Vec<String> = free_addresses(3).iter().map(|address| format!("http://{address}")).collect();
        let client = Client::new(&Config { endpoints: endpoints.join(","), ..Config::default() }, 1).unwrap();
        let store = Store::new(client);
        let failed = timeout(Duration::from_secs(5), store.get("x")).await.expect("a bound").unwrap_err();
        assert_eq!(failed.class, Class::Retry);
        assert!(endpoints.iter().all(|endpoint| failed.message.contains(endpoint)), "{failed}");
        assert!(failed.message.contains("Connection refused"), "{failed}");
    });
}

fn frozen_member() {
    let server = Server::three();
    block_on(async {
        let client = Client::new(&Config { limits: short_limits(), ..server.config() }, 1).unwrap();
        let store = Store::new(client);
        store.get("x").await.unwrap();
        let frozen = server.index_of(&store.client().current_endpoint());
        server.freeze(frozen);
        // The frozen member may lead: then the others elect a new leader first. Meanwhile each call ends within
        // the time limit of an attempt, times the members.
        let bounded = || async { timeout(Duration::from_secs(4), store.get("x")).await.expect("a bound").is_ok() };
        eventually("an answer", bounded).await;
        assert_ne!(server.index_of(&store.client().current_endpoint()), frozen);
        for _ in 0..50 {
            timeout(Duration::from_secs(1), store.get("x")).await.expect("sticky").unwrap();
        }
    });
}
