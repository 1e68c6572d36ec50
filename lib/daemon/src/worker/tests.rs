//! The thread on work in memory.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use super::*;
use crate::liveness::Liveness;
use crate::spent::Spent;

const LIMIT: Duration = Duration::from_secs(10);

/// What the thread did.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Did {
    Pass(Cause, Vec<u32>),
    Listed(u8),
    Audit,
}

struct Fake {
    log: Sender<Did>,
    orders: Vec<u32>,
    needs_order: bool,
    audit: Duration,
    block: Option<Receiver<()>>,
}

impl Work for Fake {
    type Order = u32;
    type Change = u8;
    type Report = usize;

    fn merge(waiting: &mut u32, next: u32) -> Option<u32> {
        // Orders of the same ten replace each other.
        if *waiting / 10 == next / 10 {
            *waiting = next;
            return None;
        }
        Some(next)
    }

    fn min_interval(_: u8) -> Duration {
        Duration::from_millis(300)
    }

    fn audit_period(&self, _: Duration) -> Duration {
        self.audit
    }

    fn take(&mut self, order: u32, _: Duration) {
        self.orders.push(order);
    }

    fn is_begun(&self) -> bool {
        !self.needs_order || !self.orders.is_empty()
    }

    fn invalidate(&mut self, change: u8) {
        self.log.send(Did::Listed(change)).unwrap();
    }

    fn invalidate_all(&mut self) {
        self.log.send(Did::Audit).unwrap();
    }

    fn pass(&mut self, cause: Cause, _: Duration) -> Pass {
        if let Some(block) = &self.block {
            let _ = block.recv();
        }
        self.log.send(Did::Pass(cause, self.orders.clone())).unwrap();
        Pass::default()
    }

    fn next(&self) -> Option<Duration> {
        None
    }

    fn report(&mut self, _: Cause, _: &Pass, _: Took) -> Option<usize> {
        Some(self.orders.len())
    }

    fn tables(&self) -> Vec<TableRows> {
        vec![TableRows { name: "fake".to_owned(), ..TableRows::default() }]
    }
}

fn fake(needs_order: bool) -> (Fake, Receiver<Did>) {
    let (log, done) = channel();
    (Fake { log, orders: Vec::new(), needs_order, audit: Duration::from_secs(3600), block: None }, done)
}

fn start(fake: Fake) -> Worker<Fake> {
    Worker::start("worker", fake, Mailbox::new(Liveness::default())).unwrap()
}

fn passes(done: &Receiver<Did>) -> Did {
    done.recv_timeout(LIMIT).unwrap()
}

#[test]
fn nothing_is_done_before_the_first_order() {
    let (fake, done) = fake(true);
    let worker = start(fake);
    worker.mailbox().changed(1);
    worker.mailbox().try_send(7).unwrap();
    // The change may be due by now or not; it never comes before the order.
    let first = done.iter().find(|did| matches!(did, Did::Pass(..)));
    assert_eq!(first, Some(Did::Pass(Cause::Order, vec![7])));
}

#[test]
fn work_that_needs_no_order_begins_at_once() {
    let (fake, done) = fake(false);
    let _worker = start(fake);
    assert_eq!(passes(&done), Did::Pass(Cause::Timer, Vec::new()));
}

#[test]
fn waiting_orders_are_merged_and_make_one_pass() {
    let (mut fake, done) = fake(true);
    let (go, block) = channel();
    fake.block = Some(block);
    let worker = start(fake);
    let mailbox = worker.mailbox();
    mailbox.try_send(1).unwrap();
    while !mailbox.progress().is_timed() {
        std::thread::yield_now();
    }
    for order in [10, 11, 12, 20, 21] {
        mailbox.try_send(order).unwrap();
    }
    go.send(()).unwrap();
    go.send(()).unwrap();
    assert_eq!(passes(&done), Did::Pass(Cause::Order, vec![1]));
    assert_eq!(passes(&done), Did::Pass(Cause::Order, vec![1, 12, 21]));
}

#[test]
fn changes_are_coalesced_and_a_table_is_not_listed_again_at_once() {
    let (fake, done) = fake(false);
    let worker = start(fake);
    assert_eq!(passes(&done), Did::Pass(Cause::Timer, Vec::new()));
    let mailbox = worker.mailbox();
    let begin = Instant::now();
    for _ in 0..1000 {
        mailbox.changed(1);
    }
    assert_eq!(passes(&done), Did::Listed(1));
    assert_eq!(passes(&done), Did::Pass(Cause::Change, Vec::new()));
    mailbox.changed(1);
    assert_eq!(passes(&done), Did::Listed(1));
    assert!(begin.elapsed() >= Fake::min_interval(1), "{:?}", begin.elapsed());
    assert_eq!(passes(&done), Did::Pass(Cause::Change, Vec::new()));
    mailbox.changed(2);
    assert_eq!(passes(&done), Did::Listed(2));
}

#[tokio::test]
async fn everything_is_compared_at_the_audit_and_when_asked() {
    let (mut fake, done) = fake(false);
    fake.audit = Duration::from_millis(50);
    let _worker = start(fake);
    assert!(done.iter().any(|did| did == Did::Audit));
    let (fake, done) = self::fake(false);
    let worker = start(fake);
    assert_eq!(passes(&done), Did::Pass(Cause::Timer, Vec::new()));
    assert!(worker.mailbox().audit(LIMIT).await);
    assert_eq!(done.try_iter().collect::<Vec<_>>(), [Did::Audit, Did::Pass(Cause::Timer, Vec::new())]);
}

#[tokio::test]
async fn too_many_orders_wait_outside() {
    let (mut fake, _done) = fake(true);
    let (go, block) = channel();
    fake.block = Some(block);
    let worker = start(fake);
    let mailbox = worker.mailbox();
    let mut number = 0;
    while mailbox.try_send(number).is_ok() {
        number += 10;
        assert!(number < 200_000, "the queue has no bound");
    }
    let waiting = tokio::spawn(async move { mailbox.send(number).await });
    drop(go);
    assert!(tokio::time::timeout(LIMIT, waiting).await.unwrap().unwrap());
}

#[tokio::test]
async fn rows_are_shown_between_passes_and_a_busy_thread_is_named() {
    let (mut fake, _done) = fake(true);
    let (go, block) = channel();
    fake.block = Some(block);
    let worker = start(fake);
    let mailbox = worker.mailbox();
    assert_eq!(mailbox.tables(LIMIT).await.unwrap().len(), 1, "before the first order, too");
    // Otherwise the round that answered is taken for the one that is blocked.
    while mailbox.progress().is_timed() {
        tokio::task::yield_now().await;
    }
    mailbox.try_send(1).unwrap();
    while !mailbox.progress().is_timed() {
        tokio::task::yield_now().await;
    }
    assert_eq!(mailbox.tables(Duration::from_millis(1)).await, Err(Busy::Late));
    assert!(!mailbox.liveness().is_stuck());
    let named = |after: u64| {
        let stuck = mailbox.liveness().stuck_at(Instant::now() + Duration::from_secs(after));
        stuck.into_iter().map(|stuck| stuck.name).collect::<Vec<_>>()
    };
    assert_eq!((named(59), named(62)), (Vec::new(), vec!["worker".to_owned()]));
    drop(go);
    assert_eq!(mailbox.tables(LIMIT).await.unwrap().len(), 1);
}

#[tokio::test]
async fn newest_report_is_read_and_the_thread_ends_when_asked() {
    let (fake, done) = fake(true);
    let worker = start(fake);
    worker.mailbox().try_send(1).unwrap();
    assert_eq!(tokio::time::timeout(LIMIT, worker.next()).await.unwrap(), 1);
    worker.mailbox().try_send(10).unwrap();
    assert_eq!(tokio::time::timeout(LIMIT, worker.next()).await.unwrap(), 2);
    let mailbox = worker.mailbox();
    assert!(worker.stop(LIMIT).await);
    assert!(!mailbox.changed(1));
    assert_eq!(mailbox.try_send(30), Ok(false));
    assert_eq!(mailbox.tables(LIMIT).await, Err(Busy::Ended));
    drop(done);
}

/// Work whose orders are the times of the events that they are about, and whose reports say what was measured.
struct Timed;

impl Work for Timed {
    type Order = Instant;
    type Change = u8;
    type Report = Option<Duration>;

    fn merge(_: &mut Instant, _: Instant) -> Option<Instant> {
        None
    }
    fn since(event: &Instant) -> Option<Instant> {
        Some(*event)
    }
    fn min_interval(_: u8) -> Duration {
        Duration::ZERO
    }
    fn audit_period(&self, _: Duration) -> Duration {
        Duration::from_secs(3600)
    }
    fn take(&mut self, _: Instant, _: Duration) {}
    fn invalidate(&mut self, _: u8) {}
    fn invalidate_all(&mut self) {}
    fn pass(&mut self, _: Cause, _: Duration) -> Pass {
        Pass::default()
    }
    fn next(&self) -> Option<Duration> {
        None
    }
    fn report(&mut self, cause: Cause, _: &Pass, took: Took) -> Option<Option<Duration>> {
        (cause == Cause::Order).then_some(took.event_to_kernel)
    }
    fn tables(&self) -> Vec<TableRows> {
        Vec::new()
    }
}

#[tokio::test]
async fn time_from_an_event_to_the_kernel_begins_with_the_first_event_of_merged_orders() {
    let mailbox = Mailbox::<Timed>::new(Liveness::default());
    let event = Instant::now();
    // Planning and waiting take their time before the orders are sent.
    while event.elapsed() < Duration::from_millis(30) {
        std::thread::yield_now();
    }
    mailbox.try_send(event).unwrap();
    mailbox.try_send(Instant::now()).unwrap();
    let worker = Worker::start("worker", Timed, mailbox).unwrap();
    let measured = tokio::time::timeout(LIMIT, worker.next()).await.unwrap().unwrap();
    assert!(measured >= Duration::from_millis(30) && measured <= event.elapsed(), "{measured:?}");
}

/// Work whose audit has some parts, each of which waits until it is let go.
struct Parted {
    log: Sender<&'static str>,
    go: Receiver<()>,
    parts: usize,
    /// The time to the next audit, for one that took so long.
    period: fn(Duration) -> Duration,
}

/// What a part of an audit takes of a processor.
const PART: Duration = Duration::from_millis(5);

impl Work for Parted {
    type Order = u32;
    type Change = u8;
    type Report = ();

    fn merge(_: &mut u32, _: u32) -> Option<u32> {
        None
    }
    fn min_interval(_: u8) -> Duration {
        Duration::ZERO
    }
    fn audit_period(&self, took: Duration) -> Duration {
        (self.period)(took)
    }
    fn take(&mut self, _: u32, _: Duration) {}
    fn invalidate(&mut self, _: u8) {}
    fn invalidate_all(&mut self) {}
    fn begin_audit(&mut self) {
        self.parts = 4;
    }
    fn audit(&mut self) -> Option<Audited> {
        self.parts = self.parts.checked_sub(1)?;
        let _ = self.log.send("part");
        let spent = Spent::begin();
        while spent.so_far() < PART {}
        let _ = self.go.recv();
        Some(if self.parts == 1 { Audited::Due } else { Audited::More })
    }
    fn pass(&mut self, cause: Cause, _: Duration) -> Pass {
        let _ = self.log.send(cause.name());
        Pass::default()
    }
    fn next(&self) -> Option<Duration> {
        None
    }
    fn report(&mut self, _: Cause, _: &Pass, _: Took) -> Option<()> {
        None
    }
    fn tables(&self) -> Vec<TableRows> {
        Vec::new()
    }
}

fn parted(period: fn(Duration) -> Duration) -> (Worker<Parted>, Receiver<&'static str>, Sender<()>) {
    let ((log, done), (go, let_go)) = (channel(), channel());
    let work = Parted { log, go: let_go, parts: 0, period };
    (Worker::start("worker", work, Mailbox::new(Liveness::default())).unwrap(), done, go)
}

#[test]
fn time_to_the_next_audit_is_counted_from_the_end_of_one_and_follows_from_the_work_for_it() {
    let (_worker, done, go) = parted(|took| took * 2);
    let next = || done.recv_timeout(LIMIT).unwrap();
    assert_eq!([next(), next()], ["timer", "part"], "the first audit is due at once here");
    for expected in [&["part"][..], &["part"], &["timer", "part"]] {
        go.send(()).unwrap();
        expected.iter().for_each(|expected| assert_eq!(next(), *expected));
    }
    let end = Instant::now();
    go.send(()).unwrap();
    assert_eq!(next(), "timer", "the next audit");
    assert!(end.elapsed() >= PART * 8, "{:?} behind an audit of four parts of {PART:?}", end.elapsed());
}

#[tokio::test]
async fn order_that_comes_during_an_audit_is_worked_on_before_the_next_part_and_the_audit_goes_on_to_its_end() {
    let (worker, done, go) = parted(|_| Duration::from_secs(3600));
    let next = || done.recv_timeout(LIMIT).unwrap();
    assert_eq!(next(), "timer", "the first pass");
    let mailbox = worker.mailbox();
    let audited = tokio::spawn({
        let mailbox = mailbox.clone();
        async move { mailbox.audit(LIMIT).await }
    });
    tokio::task::yield_now().await;
    assert_eq!([next(), next()], ["timer", "part"]);
    mailbox.try_send(1).unwrap();
    go.send(()).unwrap();
    assert_eq!([next(), next()], ["order", "part"]);
    assert!(!audited.is_finished());
    go.send(()).unwrap();
    assert_eq!(next(), "part");
    mailbox.try_send(2).unwrap();
    go.send(()).unwrap();
    assert_eq!([next(), next(), next()], ["timer", "order", "part"], "what a part has found is mended first");
    go.send(()).unwrap();
    assert!(audited.await.unwrap());
}
