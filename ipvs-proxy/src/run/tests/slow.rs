//! A kernel that answers slowly: who asks is answered with the truth meanwhile, and nothing is lost or done twice.

use std::time::Instant;

use daemon::shell::Shell;
use daemon::worker::{Mailbox, Worker};

use super::super::worker::{Order, ProxyWork};
use super::super::{PROGRAM, TABLES};
use super::*;

/// Orders for a Service at `last` with these endpoints.
fn orders(last: u8, endpoints: &[u8]) -> Vec<Order> {
    let name = format!("s{last}");
    let ports = json!([{"name": "main", "port": 80}]);
    let spec = json!({"clusterIP": format!("192.168.0.{last}"), "ports": ports});
    let service = json!({"kind": "Service", "metadata": {"name": name}, "spec": spec});
    let at: Vec<_> = endpoints.iter().map(|pod| json!({"addresses": [format!("172.7.21.{pod}")]})).collect();
    let metadata = json!({"name": name, "labels": {"kubernetes.io/service-name": name}});
    let slice =
        json!({"kind": "EndpointSlice", "addressType": "IPv4", "endpoints": at, "ports": ports, "metadata": metadata});
    let put = |folder: &str, object: &serde_json::Value| Event::Put {
        key: format!("{folder}/default/{name}"),
        value: object.to_string().into_bytes(),
        revision: 1,
    };
    let events = [put("services", &service), put("endpointslices", &slice), Event::Commit];
    events.into_iter().map(order).collect()
}

fn order(event: Event) -> Order {
    Order::Update(update(event, ObjectKey::from_etcd, true).unwrap())
}

/// Waits for a report that all is in place; before it none may say so.
async fn in_place(worker: &Worker<ProxyWork>, services: usize) {
    let waiting = async {
        loop {
            let status = worker.next().await;
            assert!(
                !status.ok || status.tables.iter().all(|table| table.rows.done == table.rows.desired),
                "{status:?}"
            );
            if status.ok && status.services == services {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap();
}

#[tokio::test]
async fn a_kernel_that_answers_slowly_is_named_and_nothing_is_lost_or_done_twice() {
    let rig = Rig::new();
    let (life, log, nft, servers, addresses) =
        (rig.life.clone(), rig.log.clone(), rig.nft.clone(), rig.servers.clone(), rig.addresses.clone());
    let shell = Shell::new(&PROGRAM);
    let mailbox = Mailbox::new(shell.liveness.clone());
    shell.attach(&mailbox);
    let work = ProxyWork::new(rig.proxy, super::super::checks::Checks::default(), shell.clone());
    life.slow();
    let worker = Worker::start("worker", work, mailbox.clone()).unwrap();
    mailbox.send(order(Event::Reset)).await;
    for sent in orders(10, &[2, 3]) {
        mailbox.send(sent).await;
    }
    mailbox.send(order(Event::Complete)).await;
    let blocked = life.clone();
    tokio::task::spawn_blocking(move || blocked.await_step()).await.unwrap();
    // Not stuck yet, and named once it has been for longer than a pass may take.
    let stuck = |seconds| {
        let at = Instant::now() + Duration::from_secs(seconds);
        shell.liveness.stuck_at(at).into_iter().map(|stuck| stuck.name).collect::<Vec<_>>()
    };
    assert_eq!((stuck(0), stuck(61)), (vec![], vec!["worker".to_owned()]));
    let awaits = |gate: &'static str| shell.readiness.gates().contains(&(gate, false));
    assert!(awaits(TABLES), "{:?}", shell.readiness.gates());
    // Whatever comes meanwhile waits, and holds nobody up.
    for last in 11..31 {
        for sent in orders(last, &[last]) {
            mailbox.send(sent).await;
        }
    }
    for sent in orders(10, &[3, 4]) {
        mailbox.send(sent).await;
    }
    // One step after another, each by itself, and then as fast as ever.
    for _ in 0..12 {
        life.let_one_through();
        let blocked = life.clone();
        tokio::task::spawn_blocking(move || blocked.await_step()).await.unwrap();
        assert!(awaits(TABLES) || !log.lock().unwrap().is_empty());
    }
    life.release();
    in_place(&worker, 21).await;
    assert!(!awaits(TABLES) && stuck(0).is_empty());
    let mut done: Vec<String> = log.lock().unwrap().iter().filter(|line| line.contains(" + ")).cloned().collect();
    let all = done.len();
    done.sort();
    done.dedup();
    assert_eq!(done.len(), all, "no row was made twice");
    // As on a kernel that answers at once.
    let mut quick = Rig::new();
    quick.receive(Event::Reset);
    for last in 10..31 {
        let endpoints: &[u8] = if last == 10 { &[3, 4] } else { &[last] };
        for sent in orders(last, endpoints) {
            if let Order::Update(update) = sent {
                quick.proxy.take(update);
            }
        }
    }
    quick.complete();
    quick.work();
    let keys = |servers: &FakeTable<ServerKey, Server>| servers.contents().rows.keys().copied().collect::<Vec<_>>();
    let reals = |keys: Vec<ServerKey>| {
        keys.into_iter().filter(|key| !key.to_string().contains("172.7.21.2:")).collect::<Vec<_>>()
    };
    assert_eq!(reals(keys(&servers)), reals(keys(&quick.servers)), "but for the endpoint that drains");
    assert_eq!(
        addresses.contents().rows.keys().collect::<Vec<_>>(),
        quick.addresses.contents().rows.keys().collect::<Vec<_>>()
    );
    let elements = |nft: &FakeTable<nft_rows::RowKey, nft_rows::Row>| {
        let rows = &nft.contents().rows;
        rows.keys()
            .map(ToString::to_string)
            .filter(|key| key.contains("@services") || key.contains("@vips"))
            .collect::<Vec<_>>()
    };
    assert_eq!(elements(&nft), elements(&quick.nft));
}
