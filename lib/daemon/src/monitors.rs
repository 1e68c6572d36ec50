//! What the kernel says of itself, on its way to the thread that owns the tables.
//!
//! Invariants: the monitors are open before a table is listed for the first time, so nothing is missed between the two; a
//! monitor that ends is opened again, and everything that it is about is compared anew then; it never ends the daemon,
//! the audit does its work meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use kernel::nft::{Change, Stream};
use kernel::watch::{Event, Interest, Watch};
use kernel::writer::Writers;
use kernel::{Chain, KernelError};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::liveness::{Heartbeat, Liveness, Progress};
use crate::worker::{Mailbox, Work};

/// Longest time for passing on what a monitor has said.
const LIMIT: Duration = Duration::from_secs(30);

/// Pause before a monitor is opened again.
const PAUSE: Duration = Duration::from_secs(1);

/// Name of the monitor of links, addresses, routes and neighbours.
pub const RTNETLINK: &str = "rtnetlink";

/// Name of the monitor of nft tables.
pub const NFTABLES: &str = "nftables";

/// What concerns a program.
#[derive(Debug, Clone, Default)]
pub struct Interests {
    /// Of what rtnetlink reports.
    pub rtnl: Interest,
    /// Port ids of our own conversations with nftables: everything but our own changes concerns us.
    pub nft: BTreeSet<u32>,
}

/// What a notification of rtnetlink means to a program.
type OfRtnl<C> = Box<dyn Fn(Event) -> Vec<C> + Send>;

/// What a notification of nftables means to a program.
type OfNft<C> = Box<dyn Fn(&Change) -> Vec<C> + Send>;

/// What notifications mean to a program. [`Event::Resync`] and [`Change::Lost`] stand for everything.
pub struct Meaning<C> {
    rtnl: OfRtnl<C>,
    nft: OfNft<C>,
}

impl<C> Meaning<C> {
    /// What notifications of rtnetlink and of nftables mean.
    pub fn new(
        rtnl: impl Fn(Event) -> Vec<C> + Send + 'static,
        nft: impl Fn(&Change) -> Vec<C> + Send + 'static,
    ) -> Self {
        Self { rtnl: Box::new(rtnl), nft: Box::new(nft) }
    }
}

/// The longest time that the monitor of nftables waits to be opened.
pub const LATEST: Duration = Duration::from_secs(5);

/// The monitors, open and not followed yet.
#[derive(Debug)]
pub struct Monitors {
    interests: Interests,
    rtnl: Option<Watch>,
    nft: Option<Stream>,
    /// What the monitor of nftables is opened behind.
    behind: Option<oneshot::Receiver<()>>,
}

/// The monitors while they are followed; dropping this ends it.
#[derive(Debug)]
pub struct Following {
    #[allow(dead_code, reason = "kept for its drop")]
    tasks: JoinSet<()>,
    liveness: Liveness,
    loops: [(&'static str, Progress); 2],
}

impl Drop for Following {
    fn drop(&mut self) {
        self.loops.iter().for_each(|(name, progress)| self.liveness.forget(name, progress));
    }
}

impl Monitors {
    /// Opens the monitors; one that the kernel refuses is logged and tried again when they are followed. Must be called
    /// on a tokio runtime, in the network namespace that is meant.
    #[must_use]
    pub fn open(interests: Interests) -> Self {
        let rtnl = logged(Watch::open(interests.rtnl.clone()), RTNETLINK);
        let nft = logged(Stream::open(interests.nft.clone(), interests.rtnl.writers.clone()), NFTABLES);
        Self { interests, rtnl, nft, behind: None }
    }

    /// As [`Monitors::open`], but that of nftables is opened when `begun` says so, or after [`LATEST`]: while somebody listens, the kernel
    /// makes a message of every element, which takes longer than to put a hundred thousand of them in. What others have changed by then
    /// counts as changed.
    #[must_use]
    pub fn open_behind(interests: Interests, begun: oneshot::Receiver<()>) -> Self {
        let rtnl = logged(Watch::open(interests.rtnl.clone()), RTNETLINK);
        Self { interests, rtnl, nft: None, behind: Some(begun) }
    }

    /// Passes on what the kernel says, as `meaning` has it. `opened` is called with the name of each monitor that is open,
    /// [`RTNETLINK`] or [`NFTABLES`].
    #[must_use]
    pub fn follow<W: Work>(
        self,
        mailbox: &Mailbox<W>,
        meaning: Meaning<W::Change>,
        opened: impl Fn(&'static str) + Clone + Send + 'static,
    ) -> Following {
        let Self { interests, rtnl, nft, behind } = self;
        let Meaning { rtnl: of_rtnl, nft: of_nft } = meaning;
        let mut tasks = JoinSet::new();
        let writers = interests.rtnl.writers.clone();
        let rtnl_monitor = Rtnl { watch: rtnl, interest: interests.rtnl, meaning: of_rtnl };
        let nft_monitor = Nft { stream: nft, ports: interests.nft, writers, meaning: of_nft };
        let liveness = mailbox.liveness().clone();
        let beats = [RTNETLINK, NFTABLES].map(|name| (name, liveness.heartbeat(name, LIMIT)));
        let loops = beats.each_ref().map(|(name, heartbeat)| (*name, heartbeat.progress()));
        let [(_, of_rtnl), (_, of_nft)] = beats;
        let into = |heartbeat| Recipient { mailbox: mailbox.clone(), heartbeat };
        tasks.spawn(follow(rtnl_monitor, into(of_rtnl), opened.clone(), PAUSE));
        tasks.spawn(follow_behind(behind, nft_monitor, into(of_nft), opened));
        Following { tasks, liveness, loops }
    }
}

fn logged<T>(opened: Result<T, KernelError>, name: &str) -> Option<T> {
    opened.map_err(|error| tracing::warn!(error = %Chain(&error), "no {name} monitor yet; the audit has to do")).ok()
}

/// A monitor that can be opened again.
trait Monitor<C>: Send {
    /// Its name in the log.
    const NAME: &'static str;

    /// True when it is open.
    fn is_open(&self) -> bool;
    /// Opens it anew, or says why it cannot be opened.
    fn open(&mut self) -> Result<(), String>;
    /// Everything that it is about.
    fn everything(&self) -> Vec<C>;
    /// What has changed; `None` when it has ended.
    fn next(&mut self) -> impl Future<Output = Option<Vec<C>>> + Send;
}

/// Where changes go.
struct Recipient<W: Work> {
    mailbox: Mailbox<W>,
    heartbeat: Heartbeat,
}

impl<W: Work> Recipient<W> {
    /// Returns false when the thread was asked to end.
    fn pass_on(&self, changes: Vec<W::Change>) -> bool {
        self.heartbeat.busy();
        let goes_on = changes.into_iter().all(|change| self.mailbox.changed(change));
        self.heartbeat.idle();
        goes_on
    }
}

/// Opens the monitor behind what it waits for, if it waits.
async fn follow_behind<W: Work, M: Monitor<W::Change>>(
    behind: Option<oneshot::Receiver<()>>,
    mut monitor: M,
    into: Recipient<W>,
    opened: impl Fn(&'static str),
) {
    if let Some(behind) = behind {
        into.heartbeat.back_within(LATEST);
        // Whoever should say so may have ended.
        let _ = tokio::time::timeout(LATEST, behind).await;
        into.heartbeat.idle();
        if monitor.open().is_ok() && !into.pass_on(monitor.everything()) {
            return;
        }
    }
    follow(monitor, into, opened, PAUSE).await;
}

async fn follow<W: Work, M: Monitor<W::Change>>(
    mut monitor: M,
    into: Recipient<W>,
    opened: impl Fn(&'static str),
    pause: Duration,
) {
    let name = M::NAME;
    let mut open = monitor.is_open();
    loop {
        if open {
            opened(name);
            while let Some(changes) = monitor.next().await {
                if !into.pass_on(changes) {
                    return;
                }
            }
            tracing::warn!("the {name} monitor has ended; it is opened again");
        }
        let mut reason = String::new();
        loop {
            into.heartbeat.back_within(pause);
            tokio::time::sleep(pause).await;
            let Err(error) = monitor.open() else { break };
            if error != reason {
                tracing::warn!(error, "no {name} monitor; the audit has to do");
                reason = error;
            }
        }
        open = true;
        // Whatever happened while there was no monitor.
        if !into.pass_on(monitor.everything()) {
            return;
        }
    }
}

struct Rtnl<C> {
    watch: Option<Watch>,
    interest: Interest,
    meaning: OfRtnl<C>,
}

impl<C> Monitor<C> for Rtnl<C> {
    const NAME: &'static str = RTNETLINK;

    fn is_open(&self) -> bool {
        self.watch.is_some()
    }

    fn open(&mut self) -> Result<(), String> {
        self.watch = Some(Watch::open(self.interest.clone()).map_err(|error| Chain(&error).to_string())?);
        Ok(())
    }

    fn everything(&self) -> Vec<C> {
        (self.meaning)(Event::Resync)
    }

    async fn next(&mut self) -> Option<Vec<C>> {
        match self.watch.as_mut()?.next().await {
            Ok(event) => Some((self.meaning)(event)),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the {RTNETLINK} monitor failed");
                None
            }
        }
    }
}

struct Nft<C> {
    stream: Option<Stream>,
    ports: BTreeSet<u32>,
    writers: Writers,
    meaning: OfNft<C>,
}

impl<C> Monitor<C> for Nft<C> {
    const NAME: &'static str = NFTABLES;

    fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    fn open(&mut self) -> Result<(), String> {
        self.stream =
            Some(Stream::open(self.ports.clone(), self.writers.clone()).map_err(|error| Chain(&error).to_string())?);
        Ok(())
    }

    fn everything(&self) -> Vec<C> {
        (self.meaning)(&Change::Lost)
    }

    async fn next(&mut self) -> Option<Vec<C>> {
        match self.stream.as_mut()?.next().await {
            Ok(changes) => Some(changes.iter().flat_map(|change| (self.meaning)(change)).collect()),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the {NFTABLES} monitor failed");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use reconcile::Pass;

    use super::*;
    use crate::status::TableRows;
    use crate::worker::{Cause, Took, Worker};

    const SOON: Duration = Duration::from_secs(10);

    /// Says which changes arrive.
    struct Listener(Sender<u8>);

    impl Work for Listener {
        type Order = ();
        type Change = u8;
        type Report = ();

        fn min_interval(_: u8) -> Duration {
            Duration::ZERO
        }
        fn audit_period(&self, _: Duration) -> Duration {
            Duration::from_secs(3600)
        }
        fn take(&mut self, (): (), _: Duration) {}
        fn invalidate(&mut self, change: u8) {
            self.0.send(change).unwrap();
        }
        fn invalidate_all(&mut self) {}
        fn pass(&mut self, _: Cause, _: Duration) -> Pass {
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

    /// Says its words and ends; the first attempts to open it fail.
    struct Script {
        words: Option<Vec<u8>>,
        attempts: usize,
    }

    impl Monitor<u8> for Script {
        const NAME: &'static str = "scripted";

        fn is_open(&self) -> bool {
            self.words.is_some()
        }
        fn open(&mut self) -> Result<(), String> {
            self.attempts = self.attempts.checked_sub(1).ok_or("no more")?;
            if self.attempts > 1 {
                return Err("no socket".to_owned());
            }
            self.words = Some(vec![3]);
            Ok(())
        }
        fn everything(&self) -> Vec<u8> {
            vec![100]
        }
        async fn next(&mut self) -> Option<Vec<u8>> {
            self.words.as_mut()?.pop().map(|word| vec![word])
        }
    }

    fn next(arrived: &Receiver<u8>) -> u8 {
        arrived.recv_timeout(SOON).unwrap()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn monitor_that_ends_is_opened_again_with_everything_compared_anew() {
        let (sender, arrived) = channel();
        let worker = Worker::start("worker", Listener(sender), Mailbox::new(Liveness::default())).unwrap();
        let into = Recipient { mailbox: worker.mailbox(), heartbeat: Heartbeat::new(LIMIT) };
        let script = Script { words: Some(vec![1]), attempts: 4 };
        let task = tokio::spawn(follow(script, into, |_| (), Duration::from_millis(1)));
        let words = tokio::task::spawn_blocking(move || [next(&arrived), next(&arrived), next(&arrived)]);
        let mut words = words.await.unwrap();
        words.sort_unstable();
        assert_eq!(words, [1, 3, 100]);
        assert!(!task.is_finished(), "it goes on trying");
        task.abort();
    }
}
