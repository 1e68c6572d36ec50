//! SIGKILL behind every single step into the kernel, and the start behind it.

use super::*;

const MODES: [Mode; 2] = [Mode::Ipvs, Mode::Nftables];

/// What a source lists: Services with their protocol, the last number of their address, and Pods.
type Listed = &'static [(&'static str, u8, &'static str, &'static [u8])];

const FIRST: Listed = &[("web", 10, "TCP", &[2, 3]), ("dns", 53, "UDP", &[4]), ("old", 11, "TCP", &[5])];
/// Other endpoints, a Service that moved to another address, one that went and one that came.
const NEXT: Listed = &[("web", 10, "TCP", &[3, 6]), ("dns", 54, "UDP", &[7]), ("new", 12, "TCP", &[5, 2])];

impl Rig {
    /// A start that finds this listed, and works.
    fn listing(mut self, listed: Listed) -> Self {
        self.receive(Event::Reset);
        self.hold(listed);
        self.complete();
        self.work();
        self
    }

    fn hold(&mut self, listed: Listed) {
        for (name, last, protocol, pods) in listed {
            self.service(name, *last, protocol);
            self.endpoints(name, protocol, pods);
        }
    }

    /// A start in this mode on what the kernel has, which knows of a program before it only what its record says.
    fn started_behind(self, mode: Mode, boot: u64) -> Self {
        for row in self.servers.contents().rows.values_mut() {
            row.owner = Owner::Foreign;
        }
        let after = Self::after(&self, mode, boot);
        after.busy.lock().unwrap().extend(self.busy.lock().unwrap().iter().copied());
        after
    }

    /// Works until every drain has come to its end.
    fn settled(mut self) -> Self {
        for _ in 0..3 {
            self.later(1000);
        }
        self
    }

    /// What holds at every moment.
    fn ensure_owned(&self, moment: &str) {
        let (nft, servers) = (self.nft.contents(), self.servers.contents());
        let virtual_servers = servers.rows.keys().filter_map(|key| match key {
            ServerKey::Virtual(server) => Some(*server),
            ServerKey::Real(_) => None,
        });
        let virtual_servers: BTreeSet<_> = virtual_servers.collect();
        for server in &virtual_servers {
            assert!(nft.rows.contains_key(&record::key(server)), "{moment}: {server} is in no record");
        }
        for key in self.addresses.contents().rows.keys() {
            let of = |server: &&VirtualServerKey| server.addr == key.addr;
            let real = |server: &VirtualServerKey| {
                servers.rows.keys().any(|key| matches!(key, ServerKey::Real(_)) && key.service() == server)
            };
            assert!(virtual_servers.iter().filter(of).any(real), "{moment}: nobody serves at {key}, which is local");
        }
    }
}

/// Kills `change` behind each step, starts anew with `listed` in `mode`, and compares with a change that nobody killed.
fn killed_at_each_step(what: &str, mode: Mode, listed: Listed, change: impl Fn(Option<usize>) -> Rig) {
    let marker = record::marker_key(IpFamily::V4).to_string();
    let rows = |rig: Rig| -> BTreeSet<String> {
        let kernel = rig.settled().kernel();
        let rows = kernel.iter().flat_map(|table| table.lines());
        // With nftables the marker of an empty record says nothing, and stays where it is.
        let counts = |row: &&str| mode == Mode::Ipvs || !row.starts_with(&marker);
        rows.filter(counts).map(str::to_owned).collect()
    };
    let whole = rows(change(None));
    for steps in 0.. {
        let moment = format!("{what} to {mode:?}, killed behind step {steps}");
        let killed = change(Some(steps));
        killed.ensure_owned(&moment);
        let is_over = killed.life.is_over();
        let started = killed.started_behind(mode, 5000).listing(listed);
        started.ensure_owned(&moment);
        let found = rows(started);
        let differing: Vec<_> = found.symmetric_difference(&whole).collect();
        assert!(differing.is_empty(), "{moment}: {differing:#?}");
        if !is_over {
            assert!(steps > 1, "{moment}: there are steps");
            return;
        }
    }
}

fn limited(rig: Rig, steps: Option<usize>) -> Rig {
    if let Some(steps) = steps {
        rig.life.end_behind(steps);
    }
    rig
}

#[test]
fn killed_at_any_step_of_the_first_start_it_ends_where_nobody_killed_it() {
    for mode in MODES {
        killed_at_each_step("first start", mode, FIRST, |steps| {
            limited(Rig::in_mode(mode, 1000, Kept::default()), steps).listing(FIRST)
        });
    }
}

#[test]
fn killed_at_any_step_of_a_change_it_ends_where_nobody_killed_it() {
    for mode in MODES {
        killed_at_each_step("change", mode, NEXT, |steps| {
            let mut rig = limited(Rig::in_mode(mode, 1000, Kept::default()).listing(FIRST), steps);
            for key in ["services/default/old", "endpointslices/default/old-1"] {
                rig.receive(Event::Delete { key: key.to_owned(), revision: 2 });
            }
            rig.hold(NEXT);
            rig.work();
            rig.later(1000);
            rig
        });
    }
}

#[test]
fn killed_at_any_step_of_a_start_or_of_a_change_of_mode_it_ends_where_nobody_killed_it() {
    for (before, after) in MODES.into_iter().flat_map(|before| MODES.map(|after| (before, after))) {
        killed_at_each_step(&format!("start behind {before:?}"), after, NEXT, |steps| {
            let earlier = Rig::in_mode(before, 1000, Kept::default()).listing(FIRST);
            earlier.busy.lock().unwrap().insert(real(Protocol::Tcp, 2));
            let mut rig = limited(earlier.started_behind(after, 3000), steps).listing(NEXT);
            rig.later(20);
            rig.later(1000);
            rig
        });
    }
}
