//! One endpoint that changes among many: the time until the kernel has the new one, and the messages that `ipvs-proxy` sends for it.
//!
//! Invariant: the time ends when a look at the virtual server shows the new endpoint and not the old one, or with the kernel's own announcement
//! of the transaction that has it. `ipvs-proxy`'s part of it begins when the node's kernel receives etcd's word about the slice. Messages
//! are counted in changes of their own, which are not timed.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use lab::Host;

use super::figures::Figures;
use super::ipvs::Ipvs;
use super::messages::Messages;
use super::transactions::Transactions;
use super::{Carrier, LIMIT, Load, PREFIX};
use crate::arrival::Arrivals;
use crate::store::Store;

/// How often one endpoint is changed, an even number: the last change restores the first state.
const TURNS: usize = 30;
/// How often messages are counted.
const COUNTED: usize = 10;
/// Pause between two listings of one virtual server: one costs some 0.1 ms in the lab kernel.
const PAUSE: Duration = Duration::from_micros(200);
/// After this time nothing more is sent for a change.
const AFTERWARDS: Duration = Duration::from_millis(200);

/// The machines and the process that are watched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) node: &'a Host,
    pub(super) pid: i32,
    pub(super) store: &'a Store,
    /// Open on the node for some time already.
    pub(super) arrivals: &'a Arrivals,
}

/// What shows that the kernel has an endpoint.
enum Kernel {
    Ipvs(Ipvs),
    Nftables(Transactions),
}

/// Changes an endpoint of the middle Service to and fro.
pub(super) fn measure(place: Place, load: Load, figures: &mut Figures) -> Result<()> {
    let kernel = match load.carrier {
        Carrier::Ipvs => Kernel::Ipvs(Ipvs::open(place.node)?),
        Carrier::Nftables => Kernel::Nftables(Transactions::follow(place.node)?),
    };
    for turn in 0..TURNS {
        one(place, load, turn % 2 == 0, &kernel, figures)?;
    }
    let messages = Messages::start(place.node, place.pid)?;
    for turn in 0..COUNTED {
        let before = messages.count()?;
        one(place, load, turn % 2 == 0, &kernel, &mut Figures::default())?;
        thread::sleep(AFTERWARDS);
        figures.messages.push(messages.count()? - before);
    }
    messages.end()
}

/// Makes one change and waits until the kernel has it.
fn one(place: Place, load: Load, changed: bool, kernel: &Kernel, figures: &mut Figures) -> Result<()> {
    let slice = load.middle().slice(PREFIX, changed);
    if let Kernel::Nftables(transactions) = kernel {
        transactions.count()?;
    }
    place.arrivals.discard()?;
    let started = SystemTime::now();
    let (written, at) = thread::scope(|scope| {
        let waiting = scope.spawn(|| await_change(kernel, load, changed));
        place.store.put_all(&[slice], None)?;
        let written = SystemTime::now();
        anyhow::Ok((written, waiting.join().map_err(|_| anyhow!("the thread that waits has ended"))??))
    })?;
    let name = load.middle().slice_name();
    let arrived = place.arrivals.first_with(&name)?.with_context(|| format!("no packet has {name}"))?;
    figures.change.push(at.duration_since(started)?);
    figures.write.push(written.duration_since(started)?);
    figures.own.push(at.duration_since(arrived)?);
    Ok(())
}

/// Waits until the kernel has the endpoints of the middle Service; when it had.
fn await_change(kernel: &Kernel, load: Load, changed: bool) -> Result<SystemTime> {
    let mut wanted = load.middle().endpoints(changed);
    let ipvs = match kernel {
        Kernel::Ipvs(ipvs) => ipvs,
        Kernel::Nftables(transactions) => {
            return transactions.wait(*wanted.first().context("a Service without endpoints")?.ip(), LIMIT);
        }
    };
    wanted.sort_unstable();
    let started = Instant::now();
    loop {
        let mut found = ipvs.serving(load.middle().address())?;
        found.sort_unstable();
        if found == wanted {
            return Ok(SystemTime::now());
        }
        if started.elapsed() > LIMIT {
            bail!("{} has {found:?} and should have {wanted:?}", load.middle().address());
        }
        thread::sleep(PAUSE);
    }
}
