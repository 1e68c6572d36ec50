//! The floor: a program that sends what fills the kernel, and one that lists it, and neither does anything else.
//!
//! Invariant: what it writes is what `ipvs-proxy` left in the kernel, read back from it and put into the fullest messages that the kernel takes;
//! the calls are prepared beforehand and made by `tests/floor/src/proxy.rs`, whose time counts. What it leaves is counted and must be
//! as much as there was.

mod addresses;
mod calls;
mod conversation;
mod servers;
mod tables;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Host, bin};

use super::{Carrier, LIMIT, LINK};
use addresses::Addresses;
use calls::Calls;
use servers::Servers;
use tables::Tables;

/// How real servers are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listing {
    /// By getsockopt(2), as `ipvs-proxy` does.
    Option,
    /// By netlink, as ipvsadm and kube-proxy do.
    Netlink,
}

/// What `ipvs-proxy` has in the kernel of a machine.
#[derive(Debug)]
pub(super) struct Content {
    tables: Tables,
    /// Of IPVS.
    rest: Option<(Addresses, Servers)>,
}

impl Content {
    /// Reads it.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub(super) fn read(host: &Host, carrier: Carrier) -> Result<Self> {
        let rest = || Ok::<_, anyhow::Error>((Addresses::read(host)?, Servers::read(host)?));
        let rest = (carrier == Carrier::Ipvs).then(rest).transpose()?;
        Ok(Self { tables: Tables::read(host)?, rest })
    }

    /// Writes it into the empty kernel of `host`; the time that it takes.
    ///
    /// # Errors
    /// When the kernel refuses something.
    pub(super) fn write(&self, host: &Host, carrier: Carrier) -> Result<Duration> {
        let mut calls = Calls::default();
        self.tables.fill(&mut calls);
        if let Some((addresses, servers)) = &self.rest {
            host.run(&["ip", "link", "add", LINK, "type", "dummy"])?;
            addresses.fill(host, &mut calls)?;
            servers.fill(&mut calls);
        }
        let took = play(host, &calls)?;
        let (wanted, found) = (self.counts(), Self::read(host, carrier)?.counts());
        ensure!(found == wanted, "the floor left {found:?} of {wanted:?}");
        Ok(took)
    }

    /// Lists it on the machine that it was read from; the time that it takes.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub(super) fn list(&self, by: Listing, host: &Host) -> Result<Duration> {
        let mut calls = Calls::default();
        self.tables.list(&mut calls);
        if let Some((_, servers)) = &self.rest {
            Addresses::list(&mut calls);
            servers.list(by, &mut calls);
        }
        play(host, &calls)
    }

    /// How much there is of everything.
    fn counts(&self) -> Vec<usize> {
        let rest =
            self.rest.iter().flat_map(|(addresses, servers)| [vec![addresses.count()], servers.counts().to_vec()]);
        [self.tables.counts()].into_iter().chain(rest).flatten().collect()
    }
}

/// Makes the calls on `host`, by a program of its own.
fn play(host: &Host, calls: &Calls) -> Result<Duration> {
    host.write("/run/calls", calls.bytes())?;
    let output = host.command(bin("proxy-floor")?).arg("/run/calls").limit(LIMIT).run()?.stdout;
    Ok(Duration::from_nanos(output.trim().parse().with_context(|| format!("proxy-floor printed {output:?}"))?))
}
