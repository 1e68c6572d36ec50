//! `Traffic`: what the clients of each Service send, for `/metrics`.
//!
//! | module | what it does |
//! |---|---|
//! | [`counts`] | reads what the kernel has counted |
//! | [`estimates`] | has the kernel put together what virtual servers count, for as long as somebody asks |
//! | [`page`] | writes the numbers with their labels |
//!
//! The kernel counts for itself: a new connection at the element of its frontend, packets and bytes at a virtual server. Invariants: nothing
//! is read unless somebody asks, and then on a thread that does nothing else; the thread of the kernel tables is asked for no more than
//! [`TOGETHER`] names at a time; no more than [`MOST`] places are shown of each kind, whatever the cluster has.

mod counts;
mod estimates;
mod page;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use daemon::metrics::Metrics;
use daemon::slot::locked;
use daemon::worker::Mailbox;
use kernel::ipvs::Traffic as Counted;
use netstate::Protocol;
use netstate::ipvs::VirtualServerKey;

pub(super) use self::estimates::ESTIMATION;

use self::counts::Counts;
use self::estimates::Estimates;
use self::page::ServicePage;
use super::worker::ProxyWork;
use crate::command::service_metrics::ServiceMetrics;
use crate::dataplane::Mode;
use crate::object::ObjectName;
use crate::plan::FrontendKey;
use crate::plan::frontend::Kind;

/// Longest wait for the thread of the kernel tables: a scrape takes ten seconds at most, as Prometheus comes.
const LIMIT: Duration = Duration::from_secs(3);

/// How many names are asked for at a time.
const TOGETHER: usize = 256;

/// How many addresses and ports are shown.
const MOST: usize = 10_000;

/// Where something was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Counter {
    /// At the element of a frontend.
    Frontend(FrontendKey),
    /// At a virtual server.
    Server(VirtualServerKey),
}

/// The port of a Service that something was counted for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServicePlace {
    /// The Service.
    pub(crate) service: ObjectName,
    /// The port's name.
    pub(crate) port_name: String,
    /// Its protocol.
    pub(crate) protocol: Protocol,
    /// What the address is to the Service.
    pub(crate) kind: Kind,
    /// Where clients connect; unspecified for a node port, which is at several addresses.
    pub(crate) at: SocketAddr,
}

/// What is shown once.
#[derive(Debug, Default)]
struct Sample {
    connections: Vec<(ServicePlace, u64)>,
    traffic: Vec<(ServicePlace, Counted)>,
    /// How many places are not shown.
    left_out: usize,
}

/// See the module's text.
struct Traffic {
    wanted: ServiceMetrics,
    mailbox: Mailbox<ProxyWork>,
    page: ServicePage,
    estimates: Arc<Mutex<Estimates>>,
}

/// Shows in `metrics` what the configuration asks for; the thread behind `mailbox` knows the names.
pub(super) fn show(wanted: ServiceMetrics, mailbox: &Mailbox<ProxyWork>, metrics: &Metrics) {
    if wanted == ServiceMetrics::Off {
        return;
    }
    let page = ServicePage::default();
    metrics.extend(|registry| registry.register_collector(Box::new(page.clone())));
    let traffic = Arc::new(Traffic { wanted, mailbox: mailbox.clone(), page, estimates: Arc::default() });
    metrics.read_first(Box::new(move || {
        let traffic = Arc::clone(&traffic);
        Box::pin(async move { traffic.read().await })
    }));
}

impl Traffic {
    /// Puts up what the kernel has counted by now, or nothing where it cannot be had.
    async fn read(&self) {
        let sample = self.sample().await.unwrap_or_else(|error| {
            tracing::warn!("what Services count is left out of the metrics: {error:#}");
            Sample::default()
        });
        self.page.put(sample);
    }

    async fn sample(&self) -> anyhow::Result<Sample> {
        let mode = self.mailbox.ask(LIMIT, |work| work.proxy().plane().mode()).await?;
        let servers = mode == Mode::Ipvs && self.wanted == ServiceMetrics::All;
        if servers {
            estimates::run(&self.estimates);
        }
        let read = move || Counts::read(servers);
        let counts = tokio::task::spawn_blocking(read).await.context("read counters of the kernel")??;
        let Counts { mut connections, mut traffic } = counts;
        let left_out = cut(&mut connections).max(cut(&mut traffic));
        let connections = connections.into_iter().map(|(key, count)| (Counter::Frontend(key), count)).collect();
        let traffic = traffic.into_iter().map(|(key, count)| (Counter::Server(key), count)).collect();
        Ok(Sample { connections: self.name(connections).await?, traffic: self.name(traffic).await?, left_out })
    }

    /// The places of these counters; what no Service is served at any more is left out.
    async fn name<T: Copy + Send + 'static>(
        &self,
        counters: Vec<(Counter, T)>,
    ) -> anyhow::Result<Vec<(ServicePlace, T)>> {
        let mut named = Vec::with_capacity(counters.len());
        for some in counters.chunks(TOGETHER) {
            let some = some.to_vec();
            let places = move |work: &ProxyWork| {
                let of = |(counter, count): (Counter, T)| Some((work.proxy().place_of(counter)?, count));
                some.into_iter().filter_map(of).collect::<Vec<_>>()
            };
            named.extend(self.mailbox.ask(LIMIT, places).await?);
        }
        Ok(named)
    }
}

/// Leaves the first [`MOST`] by their keys, so that each scrape shows the same; returns how many are left out.
fn cut<K: Ord, T>(counted: &mut Vec<(K, T)>) -> usize {
    counted.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    let left_out = counted.len().saturating_sub(MOST);
    counted.truncate(MOST);
    left_out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_bounded_and_always_the_same() {
        let mut counted: Vec<_> = (0..MOST + 3).rev().map(|key| (key, ())).collect();
        assert_eq!(cut(&mut counted), 3);
        assert_eq!((counted.len(), counted.first(), counted.last()), (MOST, Some(&(0, ())), Some(&(MOST - 1, ()))));
    }
}
