//! `Forward`: the rows of foreign chains under the loop; which there are shows only when they are read.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::Duration;

use netstate::IfName;
use netstate::nft::TableKey;
use reconcile::{Counts, Line, Pass, Reconciler, Row, Stage, TableStatus};

use super::{Accept, Accepts, Denying, rows};
use crate::error::KernelError;
use crate::nft::Nft;
use crate::writer::Writers;

/// Foreign chains of the forward hook, and what shall pass them.
pub struct Forward {
    table: Reconciler<Accepts>,
    accepts: BTreeSet<Accept>,
    denying: Vec<Denying>,
}

impl Forward {
    /// Lets nothing pass yet. `own` are this program's tables, `marker` the comment of its rules and of no other's.
    #[must_use]
    pub fn new(nft: Nft, own: BTreeSet<TableKey>, marker: impl Into<Cow<'static, str>>) -> Self {
        let table = Reconciler::new("forward", Accepts::new(nft, own, marker));
        Self { table, accepts: BTreeSet::new(), denying: Vec::new() }
    }

    /// Names in its reports who else writes into a table.
    #[must_use]
    pub fn watched(mut self, writers: Writers) -> Self {
        self.table.target_mut().writers = writers;
        self
    }

    /// Sets what shall pass; with nothing, our rules are taken back.
    pub fn want(&mut self, accepts: BTreeSet<Accept>) {
        if self.accepts != accepts {
            self.accepts = accepts;
            self.table.invalidate();
        }
    }

    /// Sets whose packets shall pass in the zones that these links are in.
    pub fn entered_by(&mut self, links: BTreeSet<IfName>) {
        let target = self.table.target_mut();
        if target.links != links {
            target.links = links;
            self.table.invalidate();
        }
    }

    /// The chains that deny by default some of what shall pass, as they were read last.
    #[must_use]
    pub fn denying(&self) -> &[Denying] {
        &self.denying
    }

    /// The chains that drop what is forwarded, as they are now. Nothing is written.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn survey(&mut self) -> Result<Vec<Denying>, KernelError> {
        let chains = self.table.target_mut().survey()?;
        let desired = rows(&chains, &self.accepts);
        let concerned = chains.iter().filter(|chain| desired.contains_key(&chain.key));
        Ok(concerned.filter_map(super::Chain::denying).collect())
    }
}

impl Stage for Forward {
    fn name(&self) -> &'static str {
        self.table.name()
    }

    fn upsert(&mut self, now: Duration) -> Pass {
        if self.table.mirror().is_none() {
            let target = self.table.target_mut();
            // A failure is the listing's, which comes next and waits its time.
            if let Ok(chains) = target.survey() {
                let desired = rows(&chains, &self.accepts);
                let concerned = chains.iter().filter(|chain| desired.contains_key(&chain.key));
                self.denying = concerned.filter_map(super::Chain::denying).collect();
                target.surveyed = Some(chains);
                self.table.want_all(desired);
            }
        }
        self.table.upsert(now)
    }

    fn remove(&mut self, now: Duration) -> Pass {
        self.table.remove(now)
    }

    fn invalidate(&mut self) {
        self.table.target_mut().surveyed = None;
        self.table.invalidate();
    }

    fn keep_written(&mut self, keep: bool) {
        self.table.keep_written(keep);
    }

    fn next_try(&self) -> Option<Duration> {
        self.table.next_try()
    }

    fn status(&self) -> TableStatus {
        self.table.status()
    }

    fn failed(&self) -> Vec<Row> {
        self.table.failed()
    }

    fn counts(&self) -> Counts {
        self.table.counts()
    }

    fn lines(&self) -> Vec<Line> {
        self.table.lines()
    }
}
