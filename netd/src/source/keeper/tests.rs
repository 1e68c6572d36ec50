//! The keeper beside a store in memory.

use std::sync::Mutex;
use std::time::Duration;

use cluster::ClusterError;
use netstate::family::{IpFamily, PerFamily};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::*;
use crate::choose::interface::NodeAddress;
use crate::choose::subnet::Candidate;
use crate::format::lease::{Lease, LeaseAttrs};
use crate::format::net_conf::{NetConf, Network};
use crate::source::{ConfigError, Configs, LeaseEvent, LeaseEvents, LeaseRecord};

const SOON: Duration = Duration::from_secs(20);

/// Gives a lease to each candidate that it lets in, and says what was asked for.
#[derive(Clone)]
struct Gate {
    room: Arc<Semaphore>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Gate {
    fn with_room_for(count: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(count)), asked: Arc::default() }
    }
}

impl LeaseSource for Gate {
    fn kind(&self) -> &'static str {
        "gate"
    }

    fn config_place(&self) -> String {
        String::new()
    }

    async fn config(&self) -> Result<Option<Vec<u8>>, ConfigError> {
        Ok(None)
    }

    fn configs(&self) -> Configs {
        Configs::spawn(|_| async {})
    }

    fn events(&self) -> LeaseEvents {
        LeaseEvents::spawn(|_| async {})
    }

    async fn list(&self) -> Result<Vec<LeaseEvent>, ClusterError> {
        Ok(Vec::new())
    }

    async fn acquire(&self, request: &LeaseRequest) -> Result<Held, AcquireError> {
        self.room.acquire().await.unwrap().forget();
        let mut asked = self.asked.lock().unwrap();
        asked.push(request.attrs.public_ips.list());
        let revision = i64::try_from(asked.len()).unwrap() * 100;
        let lease = Lease { key: "172.7.21.0-24".parse().unwrap(), attrs: request.attrs.clone() };
        Ok(Held { lease, token: Some(1), revision, how: "gate".to_owned(), others: Vec::new() })
    }

    async fn keep(&self, _: &Held, mut report: impl FnMut(Keeping) + Send) -> Result<String, ClusterError> {
        report(Keeping::Kept);
        std::future::pending().await
    }
}

fn network() -> Network {
    NetConf::parse(r#"{"Network":"172.7.0.0/16","Backend":{"Type":"host-gw"}}"#).unwrap().network
}

/// This node at 10.4.`third`.21.
fn at(third: u8) -> Readdress {
    let address = [10, 4, third, 21].into();
    let own = NodeAddress { address, network: IpFamily::V4.loopback(), public_ip: address };
    let value = format!(r#"{{"PublicIP":"{address}","BackendType":"host-gw"}}"#);
    let attrs = LeaseAttrs::parse(value.as_bytes(), [IpFamily::V4].into_iter()).unwrap();
    Readdress { addresses: PerFamily::new(Some(own), None), attrs, network: network() }
}

fn keeper(source: &Gate) -> Keeper {
    let Readdress { addresses, attrs, network } = at(7);
    let request = LeaseRequest {
        network,
        node: Candidate { addresses, ..Candidate::default() },
        policies: Vec::new(),
        attrs,
        adopts_mac: false,
        record: LeaseRecord::default(),
        rival: None,
        objects: false,
    };
    Keeper::start(source.clone(), request, 1)
}

async fn next(keeper: &mut Keeper) -> KeeperEvent {
    timeout(SOON, keeper.next()).await.expect("an event in time")
}

/// The revision of the claim that is reported next, whatever else is reported before.
async fn held(keeper: &mut Keeper) -> i64 {
    loop {
        if let KeeperEvent::Held(held) = next(keeper).await {
            return held.revision;
        }
    }
}

/// Bytes of memory that this process uses, the other tests that run beside it included.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test]
async fn flood_of_orders_needs_no_memory_and_the_last_one_holds() {
    let source = Gate::with_room_for(1);
    let mut keeper = keeper(&source);
    assert_eq!(held(&mut keeper).await, 100);
    assert_eq!(next(&mut keeper).await, KeeperEvent::Kept);
    let before = resident();
    // Nobody reads them meanwhile: a gigabyte and a half if they waited. Other tests may fill some 200 MB at the same time.
    for number in 0..100_000_u32 {
        keeper.report_loss("x".repeat(16 << 10), Some(i64::from(number)));
        keeper.readdress(at(u8::try_from(number % 200).unwrap()));
    }
    keeper.readdress(at(99));
    let grown = resident().saturating_sub(before);
    assert!(grown < 512 << 20, "{grown} bytes more");
    source.room.add_permits(1);
    assert_eq!(held(&mut keeper).await, 200);
    assert_eq!(*source.asked.lock().unwrap(), ["10.4.7.21", "10.4.99.21"], "one claim for all of them");
}

const fn failing(reason: String, taken: bool) -> KeeperEvent {
    KeeperEvent::Failing { reason, taken }
}

#[tokio::test]
async fn subnet_that_is_another_nodes_is_reported_whatever_fails_after_it() {
    let reports = Slot::<Reports>::default();
    for (reason, taken) in [("leased to another node", true), ("the store is out of reach", false)] {
        report(&reports, failing(reason.to_owned(), taken));
    }
    assert_eq!(reports.take().await.state, Some(failing("the store is out of reach".to_owned(), true)));
    report(&reports, failing("later".to_owned(), false));
    assert_eq!(reports.take().await.state, Some(failing("later".to_owned(), false)));
}

#[tokio::test]
async fn of_a_flood_of_reports_only_the_last_state_waits() {
    let reports = Slot::<Reports>::default();
    for number in 0..100_000 {
        report(&reports, failing(format!("{number}{}", "x".repeat(16 << 10)), false));
    }
    report(&reports, KeeperEvent::Kept);
    let waiting = reports.take().await;
    assert_eq!((waiting.held.is_none(), waiting.state), (true, Some(KeeperEvent::Kept)));
}

#[tokio::test]
async fn lease_that_is_lost_again_and_again_is_waited_for_and_says_so() {
    let mut keeper = keeper(&Gate::with_room_for(100));
    for _ in 0..LOSSES {
        held(&mut keeper).await;
        keeper.report_loss("it was overwritten".to_owned(), None);
    }
    held(&mut keeper).await;
    keeper.report_loss("it was overwritten".to_owned(), None);
    loop {
        match next(&mut keeper).await {
            KeeperEvent::Kept => {}
            KeeperEvent::Failing { reason, taken } => {
                let wanted =
                    format!("lost {} times in 10 minutes, the last time because it was overwritten", LOSSES + 1);
                assert!(reason.contains(&wanted) && !taken, "{reason}");
                break;
            }
            KeeperEvent::Held(held) => panic!("claimed again without a pause: {held:?}"),
        }
    }
    held(&mut keeper).await;
}

#[tokio::test]
async fn loss_that_the_claim_knows_of_is_ignored_and_a_later_one_is_acted_on() {
    let source = Gate::with_room_for(2);
    let mut keeper = keeper(&source);
    // Before there is a lease: older than the claim.
    keeper.report_loss("deleted".to_owned(), Some(99));
    assert_eq!(held(&mut keeper).await, 100);
    keeper.report_loss("deleted".to_owned(), Some(101));
    keeper.report_loss("an older notice".to_owned(), Some(50));
    assert_eq!(held(&mut keeper).await, 200, "the notice that came last does not hide the loss");
    assert_eq!(source.asked.lock().unwrap().len(), 2);
}

#[test]
fn of_two_losses_the_one_that_concerns_more_claims_waits() {
    let loss = |revision| Loss { reason: String::new(), revision, objects: false };
    let waiting = |first, then| loss(then).or(Some(loss(first))).revision;
    assert_eq!(waiting(Some(5), Some(7)), Some(7));
    assert_eq!(waiting(Some(7), Some(5)), Some(7));
    assert_eq!(waiting(None, Some(7)), None, "one of unknown age concerns every claim");
    assert_eq!(waiting(Some(7), None), None);
    assert_eq!(loss(Some(3)).or(None).revision, Some(3));
}
