//! Virtual servers of a program that lives, and of one that does not any more.

use std::sync::atomic::{AtomicBool, Ordering};

use super::super::guarded::Guarded;
use super::*;

fn virtual_server(scheduler: &str) -> Row {
    Row::from(VirtualServer::new(scheduler.to_owned(), None))
}

fn servers() -> FakeTable<ServerKey, Server> {
    let table = FakeTable::default();
    let service = real(Protocol::Tcp, 9).service;
    let foreign = |value| Observed { value, owner: Owner::Foreign };
    table.contents().rows.insert(ServerKey::Virtual(service), foreign(Server::Virtual(virtual_server("wlc").server)));
    table.contents().rows.insert(ServerKey::Real(real(Protocol::Tcp, 9)), foreign(Server::Real(RealServer::new(7))));
    table
}

fn guarded(table: &FakeTable<ServerKey, Server>, living: fn() -> Option<String>) -> Guarded<FakeServers> {
    let rows = Logged { name: "ipvs", table: table.clone(), log: Log::default(), life: Life::default() };
    Guarded::new(FakeServers::new(rows, Arc::default()), living)
}

fn change(scheduler: &str) -> Step<VirtualServerKey, Row> {
    Step::Change(real(Protocol::Tcp, 9).service, virtual_server("wlc"), virtual_server(scheduler))
}

#[test]
fn a_virtual_server_of_a_living_program_is_left_alone_until_the_program_ends() {
    static LIVES: AtomicBool = AtomicBool::new(true);
    let table = servers();
    let mut guarded = guarded(&table, || LIVES.load(Ordering::Relaxed).then(|| "keepalived (process 7)".to_owned()));
    guarded.claim(real(Protocol::Tcp, 9).service);
    let before = guarded.observe().unwrap();
    assert!(before.values().all(|row| row.owner == Owner::Foreign));
    let others = VirtualServerKey { port: 81, ..real(Protocol::Tcp, 9).service };
    let create = Step::Create(others, virtual_server("rr"));
    let results = guarded.apply(&[change("rr"), create]);
    let refused = results[0].as_ref().unwrap_err();
    assert!(
        kernel::Chain(refused).to_string().contains("keepalived (process 7) has a virtual server there"),
        "{refused:?}"
    );
    assert!(results[1].is_ok(), "others are written");
    let written = |key| match &table.contents().rows.get(&ServerKey::Virtual(key))?.value {
        Server::Virtual(server) => Some(server.scheduler.to_string()),
        Server::Real(_) => None,
    };
    let schedulers = [real(Protocol::Tcp, 9).service, others].map(written);
    assert_eq!(schedulers, ["wlc", "rr"].map(|scheduler| Some(scheduler.to_owned())));
    assert_eq!(table.contents().rows[&ServerKey::Real(real(Protocol::Tcp, 9))].owner, Owner::Foreign);
    LIVES.store(false, Ordering::Relaxed);
    assert!(guarded.apply(&[change("rr")])[0].is_ok());
    assert_eq!(table.contents().rows[&ServerKey::Real(real(Protocol::Tcp, 9))].owner, Owner::Ours, "with all in it");
    LIVES.store(true, Ordering::Relaxed);
    assert!(guarded.apply(&[change("wrr")])[0].is_ok(), "ours, whoever begins again");
    guarded.claim(real(Protocol::Tcp, 9).service);
    assert!(guarded.apply(&[change("rr")])[0].is_ok());
}

#[test]
fn a_virtual_server_that_its_program_has_removed_is_made() {
    let table = servers();
    let mut guarded = guarded(&table, || Some("keepalived (process 7)".to_owned()));
    guarded.observe().unwrap();
    guarded.claim(real(Protocol::Tcp, 9).service);
    assert!(guarded.apply(&[change("rr")])[0].is_err());
    table.contents().rows.clear();
    let made = Step::Create(real(Protocol::Tcp, 9).service, virtual_server("rr"));
    assert!(guarded.apply(&[made])[0].is_ok());
}

#[test]
fn what_nobody_that_lives_has_made_is_a_predecessors() {
    let table = servers();
    let mut guarded = guarded(&table, || None);
    guarded.claim(real(Protocol::Tcp, 9).service);
    assert!(guarded.observe().unwrap().values().all(|row| row.owner == Owner::Ours));
}
