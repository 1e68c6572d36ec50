//! Scripts: what was done in a step beyond its objects, in both families at once although most was recorded in IPv4 only.
//!
//! Invariant: a row of a script is known by its words; what stands in no list here is an error.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use netstate::IpFamily;
use oracle::{Case, Probe, Script, Step};

use super::client::Transport;
use super::objects::Condition::{self, Gone, Leaving, Ready};
use super::{Difference, Player, flows, kept, moved, opened, timed};

/// A step whose script is played, and what differed.
pub(crate) struct Scene<'a> {
    pub(crate) player: &'a mut Player,
    case: &'a Case,
    step: &'a Step,
    /// The row that is played.
    row: &'a str,
    found: Vec<Difference>,
}

/// Plays the script of a step.
pub(crate) fn play(player: &mut Player, case: &Case, step: &Step) -> Result<Vec<Difference>> {
    let mut scene = Scene { player, case, step, row: &step.name, found: Vec::new() };
    match &step.script {
        Script::None => {}
        Script::Kept(rows) => kept::play(&mut scene, rows)?,
        Script::Opened(rows) => opened::play(&mut scene, rows)?,
        Script::Flows(rows) => flows::play(&mut scene, rows)?,
        Script::Moved(rows) => moved::play(&mut scene, rows)?,
        Script::Timed(rows) => timed::play(&mut scene, rows)?,
        Script::Unknown(why) => bail!("nobody knows how to play that: {why}"),
    }
    Ok(scene.found)
}

impl<'a> Scene<'a> {
    /// The name of a difference of a client.
    pub(crate) fn name(&self, client: &str, dest: &str) -> String {
        format!("{} [{}] {client} -> {dest}", self.case.name, self.row)
    }

    pub(crate) fn report(&mut self, family: IpFamily, client: &str, dest: &str, text: &str) {
        let text = format!("{}: {text}", self.name(client, dest));
        self.found.push(Difference { family, text });
    }

    pub(crate) fn address(&self, dest: &str, family: IpFamily) -> Result<(Transport, SocketAddr)> {
        let address = self.player.objects().address(dest, family);
        address.with_context(|| format!("{}: no {dest} of {family}", self.case.name))
    }

    /// From now on differences are of this row.
    pub(crate) fn begin(&mut self, row: &'a str) {
        self.row = row;
    }

    /// Makes new connections and compares them.
    pub(crate) fn probe(&mut self, probes: Vec<Probe>) -> Result<()> {
        let step = Step { name: self.row.to_owned(), probes, script: Script::None, ..self.step.clone() };
        let found = self.player.probe(self.case, &step)?;
        self.found.extend(found);
        Ok(())
    }

    /// The endpoints of one family become these.
    pub(crate) fn endpoints(&mut self, family: IpFamily, endpoints: &[(&str, Condition)]) -> Result<()> {
        self.player.objects_mut().set_endpoints(family, endpoints)
    }

    /// Does what the words of the row say.
    pub(crate) fn act(&mut self) -> Result<()> {
        match self.row {
            "one ready endpoint p11" | "p11 is the endpoint" | "running" => return Ok(()),
            "p11 terminating and serving" => self.all(&[("p11", Leaving)])?,
            "p11 terminating, not serving" => self.all(&[("p11", Gone)])?,
            "slice empty" => self.all(&[])?,
            "p12 instead" | "p12 instead of p11 (one write)" | "p12 ready" => self.all(&[("p12", Ready)])?,
            "p21 appears" => self.all(&[("p21", Ready)])?,
            "p21 terminating and serving, p22 ready" => self.all(&[("p21", Leaving), ("p22", Ready)])?,
            "p21 gone" => self.all(&[("p22", Ready)])?,
            "p11 comes beside p22" => self.all(&[("p11", Ready), ("p22", Ready)])?,
            "p22 terminating and not serving, p11 ready" => self.all(&[("p11", Ready), ("p22", Gone)])?,
            "all endpoints terminating and not serving" => self.all(&[("p11", Gone), ("p22", Gone)])?,
            "Service deleted" => {
                let services = self.player.objects_mut().take_services();
                self.player.put_aside(services);
            }
            "Service made again" => self.player.bring_back(),
            "stopped (SIGTERM)" => return self.player.stop(),
            "stopped, slice now says p12" => {
                self.all(&[("p12", Ready)])?;
                return self.player.write().map(drop);
            }
            "started again" => return self.player.start_again(self.step.zone.as_deref()),
            other => bail!("{}: nobody knows how to do {other:?}", self.case.name),
        }
        self.player.apply()
    }

    fn all(&mut self, endpoints: &[(&str, Condition)]) -> Result<()> {
        IpFamily::ALL.into_iter().try_for_each(|family| self.endpoints(family, endpoints))
    }
}
