//! Tables in memory that stand for the kernel's, with one log of what is written into them.

use super::*;

pub(super) type Log = Arc<Mutex<Vec<String>>>;

/// How many steps into the kernel the program still lives for; for ever where nobody says.
#[derive(Clone, Default)]
pub(super) struct Life(Arc<Mutex<Option<usize>>>, Arc<(Mutex<Pace>, Condvar)>);

/// How fast the kernel answers.
#[derive(Default)]
struct Pace {
    /// So many calls may go through; all where none is said.
    permits: Option<usize>,
    /// A call waits.
    waits: bool,
}

impl Life {
    /// It dies behind so many steps.
    pub(super) fn end_behind(&self, steps: usize) {
        *self.0.lock().unwrap() = Some(steps);
    }

    /// From now on no call into the kernel comes back before it is let through.
    pub(super) fn slow(&self) {
        self.1.0.lock().unwrap().permits = Some(0);
    }

    /// One call more comes back.
    pub(super) fn let_one_through(&self) {
        let mut pace = self.1.0.lock().unwrap();
        pace.permits = pace.permits.map(|permits| permits + 1);
        pace.waits = false;
        self.1.1.notify_all();
    }

    /// All come back, as ever.
    pub(super) fn release(&self) {
        self.1.0.lock().unwrap().permits = None;
        self.1.1.notify_all();
    }

    /// Waits until a call is in the kernel.
    pub(super) fn await_step(&self) {
        let (pace, changed) = &*self.1;
        let limit = Duration::from_secs(60);
        let (_pace, late) = changed.wait_timeout_while(pace.lock().unwrap(), limit, |pace| !pace.waits).unwrap();
        assert!(!late.timed_out(), "nothing is written");
    }

    fn pass(&self) {
        let (pace, changed) = &*self.1;
        let mut pace = pace.lock().unwrap();
        while pace.permits == Some(0) {
            pace.waits = true;
            changed.notify_all();
            pace = changed.wait(pace).unwrap();
        }
        pace.permits = pace.permits.map(|permits| permits - 1);
    }

    pub(super) fn is_over(&self) -> bool {
        *self.0.lock().unwrap() == Some(0)
    }

    /// Lives through so many of these steps.
    fn live(&self, steps: usize) -> usize {
        let mut left = self.0.lock().unwrap();
        let lived = left.map_or(steps, |left| left.min(steps));
        *left = left.map(|left| left - lived);
        lived
    }
}

/// A table in memory that also writes into a log that all tables share.
pub(super) struct Logged<K, V> {
    pub(super) name: &'static str,
    pub(super) table: FakeTable<K, V>,
    pub(super) log: Log,
    pub(super) life: Life,
}

impl<K: Ord + Clone + fmt::Display + Send + 'static, V: Clone + PartialEq + fmt::Display + Send + 'static> Target
    for Logged<K, V>
{
    type Key = K;
    type Value = V;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<K, V>, KernelError> {
        self.table.observe()
    }

    fn apply(&mut self, steps: &[Step<K, V>]) -> Vec<Result<(), KernelError>> {
        self.life.pass();
        // A transaction of nftables is one step.
        let lived = if self.name == "nft" { self.life.live(1) * steps.len() } else { self.life.live(steps.len()) };
        let (steps, dead) = steps.split_at(lived);
        let mut results = self.table.apply(steps);
        for (step, _) in steps.iter().zip(&results).filter(|(_, result)| result.is_ok()) {
            let verb = match step {
                Step::Create(..) => '+',
                Step::Change(..) => '~',
                Step::Remove(..) => '-',
            };
            self.log.lock().unwrap().push(format!("{} {verb} {}", self.name, step.key()));
        }
        let died =
            |step: &Step<K, V>| Err(KernelError::new("write", step.key(), Cause::Missing("the program".to_owned())));
        results.extend(dead.iter().map(died));
        results
    }
}

/// IPVS in memory; `busy` are the real servers with connections.
pub(super) struct FakeServers {
    pub(super) rows: Logged<RowKey, Row>,
    pub(super) busy: Arc<Mutex<BTreeSet<RealServerKey>>>,
    pub(super) vanished: BTreeSet<VirtualServerKey>,
}

impl FakeServers {
    /// How many virtual servers there are.
    pub(super) fn count(&self) -> usize {
        self.rows.table.contents().rows.keys().filter(|key| matches!(key, RowKey::Virtual(_))).count()
    }

    /// The rows of a virtual server as they are.
    pub(super) fn of(&self, service: VirtualServerKey) -> Rows<RowKey, Row> {
        let contents = self.rows.table.contents();
        let rows = contents.rows.iter().filter(|(key, _)| *key.service() == service);
        rows.map(|(key, row)| (*key, row.clone())).collect()
    }
}

impl Target for FakeServers {
    type Key = RowKey;
    type Value = Row;
    type Error = KernelError;

    /// As the kernel's table: real servers of foreign virtual servers are not listed.
    fn observe(&mut self) -> Result<Rows<RowKey, Row>, KernelError> {
        let rows = self.rows.observe()?;
        let owner = |key: &RowKey| rows.get(&RowKey::Virtual(*key.service())).map(|row| row.owner);
        let listed = |key: &RowKey| matches!(key, RowKey::Virtual(_)) || owner(key) == Some(Owner::Ours);
        Ok(rows.iter().filter(|(key, _)| listed(key)).map(|(key, row)| (*key, row.clone())).collect())
    }

    /// As the kernel's table: a real server needs its virtual server and goes with it.
    fn apply(&mut self, steps: &[Step<RowKey, Row>]) -> Vec<Result<(), KernelError>> {
        let mut results = Vec::new();
        for step in steps {
            let service = RowKey::Virtual(*step.key().service());
            let missing = !self.rows.table.contents().rows.contains_key(&service);
            results.push(match step {
                Step::Create(RowKey::Real(real), _) | Step::Change(RowKey::Real(real), ..) if missing => {
                    self.vanished.insert(real.service);
                    Err(KernelError::new("write", real, Cause::Vanished(service.to_string())))
                }
                _ => self.rows.apply(std::slice::from_ref(step)).remove(0),
            });
            if matches!((step, results.last()), (Step::Remove(RowKey::Virtual(_), _), Some(Ok(())))) {
                self.rows.table.contents().rows.retain(|key, _| RowKey::Virtual(*key.service()) != service);
            }
        }
        results
    }
}

impl Servers for FakeServers {
    fn idle(&mut self, service: &VirtualServerKey) -> Result<BTreeMap<RealServerKey, bool>, KernelError> {
        let (contents, busy) = (self.rows.table.contents(), self.busy.lock().unwrap());
        let reals = contents.rows.keys().filter_map(|key| match key {
            RowKey::Real(real) if real.service == *service => Some((*real, !busy.contains(real))),
            _ => None,
        });
        Ok(reals.collect())
    }

    /// As the kernel's table: what is made later is not ours for that.
    fn adopt(&mut self, owned: BTreeSet<VirtualServerKey>, at: BTreeSet<IpAddr>) {
        let is_ours = |service: &VirtualServerKey| owned.contains(service) || at.contains(&service.addr);
        for (_, row) in self.rows.table.contents().rows.iter_mut().filter(|(key, _)| is_ours(key.service())) {
            row.owner = Owner::Ours;
        }
    }

    fn claim(&mut self, service: VirtualServerKey) {
        for (_, row) in self.rows.table.contents().rows.iter_mut().filter(|(key, _)| *key.service() == service) {
            row.owner = Owner::Ours;
        }
    }

    fn is_empty(&self) -> Result<bool, KernelError> {
        Ok(self.count() == 0)
    }

    fn differing(&mut self, believed: &Rows<RowKey, Row>) -> Result<BTreeSet<VirtualServerKey>, KernelError> {
        self.differing_in_turn(believed)
    }

    /// Everything is in turn at once.
    fn differing_in_turn(&mut self, believed: &Rows<RowKey, Row>) -> Result<BTreeSet<VirtualServerKey>, KernelError> {
        let ours = believed.iter().filter(|(_, row)| row.owner == Owner::Ours).map(|(key, _)| *key.service());
        let same = |service: &VirtualServerKey| {
            let rows = believed.iter().filter(|(key, _)| key.service() == service);
            rows.map(|(key, row)| (*key, row.clone())).collect::<Rows<_, _>>() == self.of(*service)
        };
        Ok(ours.filter(|service| !same(service)).collect())
    }

    fn rows_of(&mut self, services: &BTreeSet<VirtualServerKey>) -> Result<Rows<RowKey, Row>, KernelError> {
        Ok(services.iter().flat_map(|service| self.of(*service)).collect())
    }

    fn has_scheduler(&mut self, name: &str) -> Result<bool, KernelError> {
        Ok(name != "nosuch")
    }

    fn take_vanished(&mut self) -> BTreeSet<VirtualServerKey> {
        std::mem::take(&mut self.vanished)
    }
}

/// Addresses without a local route, and how often they were asked for.
pub(super) type Routes = (BTreeSet<AddressKey>, usize);

/// Addresses in memory.
pub(super) struct FakeAddresses<T> {
    pub(super) table: T,
    pub(super) routes: Arc<Mutex<Routes>>,
}

impl<T: Target<Key = AddressKey, Value = Address, Error = KernelError>> Target for FakeAddresses<T> {
    type Key = AddressKey;
    type Value = Address;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<AddressKey, Address>, KernelError> {
        self.table.observe()
    }

    fn apply(&mut self, steps: &[Step<AddressKey, Address>]) -> Vec<Result<(), KernelError>> {
        let mut routes = self.routes.lock().unwrap();
        routes.0.retain(|key| steps.iter().all(|step| step.key() != key));
        self.table.apply(steps)
    }
}

impl<T: Target<Key = AddressKey, Value = Address, Error = KernelError>> VirtualAddresses for FakeAddresses<T> {
    fn unrouted(&mut self, held: &Rows<AddressKey, Address>) -> Result<BTreeSet<AddressKey>, KernelError> {
        let mut routes = self.routes.lock().unwrap();
        routes.1 += 1;
        Ok(routes.0.iter().filter(|key| held.contains_key(*key)).cloned().collect())
    }
}

/// Tracked connections in memory.
#[derive(Default)]
pub(super) struct Connections {
    pub(super) held: Vec<Tracked>,
    /// How often they were read.
    pub(super) readings: usize,
    /// Readings to come that fail.
    pub(super) failures: usize,
}

/// Connections that are read as soon as they are handed over.
#[derive(Clone, Default)]
pub(super) struct FakeFlows(pub(super) Arc<Mutex<Connections>>, pub(super) Arc<Mutex<Checks>>);

impl Flows for FakeFlows {
    fn forget(&mut self, of: &Selection, stale: Stale<'_>) -> Result<usize, KernelError> {
        let mut connections = self.0.lock().unwrap();
        connections.readings += 1;
        if connections.failures > 0 {
            connections.failures -= 1;
            return Err(KernelError::new("list", of, Cause::Unexpected("broken off".to_owned())));
        }
        let before = connections.held.len();
        connections.held.retain(|flow| !stale(flow));
        Ok(before - connections.held.len())
    }

    fn filters(&self) -> bool {
        true
    }
}

impl Sweeper for FakeFlows {
    fn put(&mut self, checks: BTreeMap<FrontendKey, Check>, locals: Locals) {
        let noted = Arc::clone(&self.1);
        noted.lock().unwrap().put(checks, locals);
        let _ = sweep(&noted, self, &Default::default());
    }

    fn welcome(&mut self, frontend: &FrontendKey, endpoint: SocketAddr) {
        self.1.lock().unwrap().welcome(frontend, endpoint);
    }
}
