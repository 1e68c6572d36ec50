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

    fn parts(&mut self) -> Result<Option<PartsOf<Self>>, KernelError> {
        self.table.parts()
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

/// IPVS in memory, server by server as the kernel takes them; `busy` are the real servers with connections.
pub(super) struct FakeServers {
    pub(super) rows: Logged<ServerKey, Server>,
    pub(super) busy: Arc<Mutex<BTreeSet<RealServerKey>>>,
    pub(super) vanished: BTreeSet<VirtualServerKey>,
    /// Rows of which a step that failed has changed a part.
    pub(super) partial: BTreeSet<VirtualServerKey>,
    /// How many virtual servers there were when all were compared last.
    pub(super) counted: usize,
}

/// The rows that these servers are. As in the kernel's table, real servers of others are not listed.
fn assembled(servers: &Rows<ServerKey, Server>) -> Rows<VirtualServerKey, Row> {
    let mut rows = Rows::new();
    for (key, Observed { value, owner }) in servers {
        match (key, value) {
            (ServerKey::Virtual(key), Server::Virtual(server)) => {
                let value = Row { server: Arc::clone(server), reals: Default::default() };
                rows.insert(*key, Observed { value, owner: *owner });
            }
            (ServerKey::Real(key), Server::Real(real)) => {
                let row = rows.get_mut(&key.service).filter(|row| row.owner == Owner::Ours);
                row.into_iter().for_each(|row| row.value.reals = row.value.reals.with(key.at(), Some(*real)));
            }
            _ => panic!("{key} is of another kind"),
        }
    }
    rows
}

impl FakeServers {
    /// IPVS that holds `rows`.
    pub(super) fn new(rows: Logged<ServerKey, Server>, busy: Arc<Mutex<BTreeSet<RealServerKey>>>) -> Self {
        Self { rows, busy, vanished: BTreeSet::new(), partial: BTreeSet::new(), counted: 0 }
    }

    /// How many virtual servers there are.
    pub(super) fn count(&self) -> usize {
        self.rows.table.contents().rows.keys().filter(|key| matches!(key, ServerKey::Virtual(_))).count()
    }

    /// The row of a virtual server as it is.
    pub(super) fn of(&self, service: VirtualServerKey) -> Option<Observed<Row>> {
        let contents = self.rows.table.contents();
        let servers = contents.rows.iter().filter(|(key, _)| *key.service() == service);
        assembled(&servers.map(|(key, row)| (*key, row.clone())).collect()).remove(&service)
    }

    /// As the kernel: a real server needs its virtual server and goes with it.
    fn write(&mut self, step: &ServerStep) -> Result<(), KernelError> {
        let service = ServerKey::Virtual(*step.key().service());
        let missing = !self.rows.table.contents().rows.contains_key(&service);
        if let Step::Create(ServerKey::Real(real), _) | Step::Change(ServerKey::Real(real), ..) = step
            && missing
        {
            self.vanished.insert(real.service);
            return Err(KernelError::new("write", real, Cause::Vanished(service.to_string())));
        }
        let result = self.rows.apply(std::slice::from_ref(step)).remove(0);
        if matches!((step, &result), (Step::Remove(ServerKey::Virtual(_), _), Ok(()))) {
            self.rows.table.contents().rows.retain(|key, _| ServerKey::Virtual(*key.service()) != service);
        }
        result
    }
}

impl Target for FakeServers {
    type Key = VirtualServerKey;
    type Value = Row;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<VirtualServerKey, Row>, KernelError> {
        Ok(assembled(&self.rows.observe()?))
    }

    fn left(&mut self, key: &VirtualServerKey, before: Option<Observed<Row>>) -> Option<Observed<Row>> {
        if self.partial.remove(key) { self.of(*key) } else { before }
    }

    fn apply(&mut self, steps: &[Step<VirtualServerKey, Row>]) -> Vec<Result<(), KernelError>> {
        let mut results = Vec::new();
        for step in steps {
            let written: Vec<_> = server_steps(step).iter().map(|step| self.write(step)).collect();
            if written.iter().any(Result::is_ok) && written.iter().any(Result::is_err) {
                self.partial.insert(*step.key());
            }
            results.push(written.into_iter().collect());
        }
        results
    }
}

impl Servers for FakeServers {
    fn idle(&mut self, service: &VirtualServerKey) -> Result<BTreeMap<RealServerKey, bool>, KernelError> {
        let (contents, busy) = (self.rows.table.contents(), self.busy.lock().unwrap());
        let reals = contents.rows.keys().filter_map(|key| match key {
            ServerKey::Real(real) if real.service == *service => Some((*real, !busy.contains(real))),
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

    fn is_as_many(&self) -> Result<bool, KernelError> {
        Ok(self.count() == self.counted)
    }

    fn differing(&mut self, believed: &Rows<VirtualServerKey, Row>) -> Result<BTreeSet<VirtualServerKey>, KernelError> {
        self.counted = self.count();
        self.differing_in_turn(believed)
    }

    /// Everything is in turn at once.
    fn differing_in_turn(
        &mut self,
        believed: &Rows<VirtualServerKey, Row>,
    ) -> Result<BTreeSet<VirtualServerKey>, KernelError> {
        let ours = believed.iter().filter(|(_, row)| row.owner == Owner::Ours);
        Ok(ours.filter(|(key, row)| self.of(**key).as_ref() != Some(*row)).map(|(key, _)| *key).collect())
    }

    fn rows_of(&mut self, services: &BTreeSet<VirtualServerKey>) -> Result<Rows<VirtualServerKey, Row>, KernelError> {
        Ok(services.iter().filter_map(|key| Some((*key, self.of(*key)?))).collect())
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

    fn parts(&mut self) -> Result<Option<PartsOf<Self>>, KernelError> {
        self.table.parts()
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
