//! Every write of `render` and `certs renew` fails once, and each is killed at it: the call goes on all the same or says what the system said,
//! what it says is as it was is, and the next call makes the folder what an undisturbed one does. `FAULTS=all` tries every operation with every
//! errno.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use injection::{Effect, Injected, Plan};
use tempfile::TempDir;

/// One host with everything, and one that goes.
const FIRST: &str = "cluster: small
networks: {nodes: 10.4.7.0/24, pods: 172.7.0.0/16, services: 192.168.0.0/16}
versions: {kubernetes: 1.20.2, etcd: 3.4.23, containerd: 1.6.20}
hosts:
  one: {address: 10.4.7.21, roles: [etcd, control-plane, node]}
  two: {address: 10.4.7.22, roles: node}
";

/// A topology and the folder that is rendered from it.
struct Place {
    top: TempDir,
}

impl Place {
    fn new() -> Self {
        // In memory: what is synced a thousand times need not wait for a disk.
        Self { top: tempfile::tempdir_in("/dev/shm").unwrap() }
    }

    fn out(&self) -> PathBuf {
        self.top.path().join("out")
    }

    /// `netdadm WORDS -f … -o …` with this topology.
    fn command(&self, words: &[&str], topology: &str) -> Command {
        let file = self.top.path().join("cluster.yaml");
        fs::write(&file, topology).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_netdadm"));
        command.args(words).arg("-f").arg(file).arg("-o").arg(self.out());
        command
    }

    fn run(&self, words: &[&str], topology: &str) -> String {
        let Output { status, stdout, stderr } = self.command(words, topology).output().unwrap();
        let printed = String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap();
        assert!(status.success(), "{words:?}: {printed}");
        printed
    }

    /// The same with what `other` has.
    fn copy(other: &Path) -> Self {
        let place = Self::new();
        let copied = Command::new("cp").arg("-a").arg(other).arg(place.out()).status().unwrap();
        assert!(copied.success());
        place
    }
}

/// Everything below `root` by path: mode and content.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let (mut found, mut open) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let mode = metadata.permissions().mode() & 0o7777;
            let content = if metadata.is_dir() { String::new() } else { fs::read_to_string(&path).unwrap() };
            if metadata.is_dir() {
                open.push(path.clone());
            }
            found.insert(path.strip_prefix(root).unwrap().to_owned(), format!("{mode:o} {content}"));
        }
    }
    found
}

/// The paths that differ.
fn differing(a: &BTreeMap<PathBuf, String>, b: &BTreeMap<PathBuf, String>) -> Vec<PathBuf> {
    let paths = a.keys().chain(b.keys()).filter(|path| a.get(*path) != b.get(*path));
    let mut paths: Vec<PathBuf> = paths.cloned().collect();
    paths.dedup();
    paths
}

/// What an undisturbed call makes of a folder: what two of them agree in, because keys and what is made of them are each one's own.
struct Wanted {
    names: Vec<PathBuf>,
    constant: BTreeMap<PathBuf, String>,
}

impl Wanted {
    fn of(make: impl Fn() -> Place) -> Self {
        let [one, other] = [(); 2].map(|()| tree(&make().out()));
        assert!(one.keys().eq(other.keys()), "{:?}", differing(&one, &other));
        let constant = one.iter().filter(|(path, text)| other.get(*path) == Some(text));
        let constant = constant.map(|(path, text)| (path.clone(), text.clone())).collect();
        Self { names: one.into_keys().collect(), constant }
    }

    fn is_made(&self, place: &Place, topology: &str, what: &Injected) {
        let found = tree(&place.out());
        let lacking: Vec<_> = self.names.iter().filter(|path| !found.contains_key(*path)).collect();
        let surplus: Vec<_> = found.keys().filter(|path| !self.names.contains(path)).collect();
        assert!(lacking.is_empty() && surplus.is_empty(), "{what}: without {lacking:?}, with {surplus:?}");
        for (path, text) in &self.constant {
            assert_eq!(found.get(path), Some(text), "{what}: {}", path.display());
        }
        // The record, the manifests and the keys belong together.
        let again = place.run(&["render"], topology);
        assert!(again.contains(": 0 files new, 0 changed, 0 removed"), "{what}: {again}");
        let mut list = Command::new(env!("CARGO_BIN_EXE_netdadm"));
        let listed = list.args(["certs", "list", "-o"]).arg(place.out()).output().unwrap();
        assert!(listed.status.success(), "{what}: {}", String::from_utf8_lossy(&listed.stdout));
    }
}

/// Has each operation of `words` on what `before` gives fail; `wanted` is what is to be there in the end. Without `FAULTS=all` each `sample`-th
/// operation fails, or the call is killed at it.
fn walk((words, sample): (&[&str], usize), topology: &str, before: &dyn Fn() -> Place, wanted: &Wanted) {
    let (mut faults, step) = (0, if injection::all() { 1 } else { sample });
    for at in (0..).step_by(step) {
        let (reached, mut errnos) = (faults, usize::MAX);
        let mut effects = injection::effects(at);
        if !injection::all() && at % 2 == 1 {
            effects = vec![Effect::Killed];
        }
        for effect in effects {
            // Its kind has fewer of them than others.
            if injection::all() && matches!(effect, Effect::Fails(number) if number >= errnos) {
                continue;
            }
            let place = before();
            let was = tree(&place.out());
            let run = injection::run(&place.command(words, topology), "", Plan::from([(at, effect)]));
            let Some(injected) = run.injected else { continue };
            faults += 1;
            errnos = injected.operation.kind.errnos().len();
            if let (Some(code), Some(errno)) = (run.status.code(), injected.errno) {
                let said = format!("(os error {})", errno as i32);
                assert!(code == 0 || run.stderr.contains(&said), "{injected}: {}{}", run.stdout, run.stderr);
                let is_undone = !run.stderr.contains(" is as it was") || tree(&place.out()) == was;
                assert!(is_undone, "{injected}: {}{:?}", run.stderr, differing(&tree(&place.out()), &was));
            }
            place.run(&["render"], topology);
            wanted.is_made(&place, topology, &injected);
        }
        if faults == reached {
            break;
        }
    }
    println!("{words:?}: {faults} faults");
    assert!(faults > 2, "only {faults} faults: the walk did not reach the work");
}

/// The topology without its second host, and with another port.
fn second() -> String {
    let without = FIRST.lines().filter(|line| !line.contains("two:")).map(|line| format!("{line}\n"));
    without.collect::<String>() + "ports: {etcdMetrics: 2391}\n"
}

fn rendered(topologies: &[&str]) -> Place {
    let place = Place::new();
    topologies.iter().for_each(|topology| drop(place.run(&["render"], topology)));
    place
}

#[test]
fn first_render_with_any_operation_failing_is_made_good_by_the_next() {
    walk((&["render"], 97), FIRST, &Place::new, &Wanted::of(|| rendered(&[FIRST])));
}

#[test]
fn render_of_a_change_with_any_operation_failing_is_made_good_by_the_next() {
    let (first, second) = (rendered(&[FIRST]), second());
    let wanted = Wanted::of(|| rendered(&[FIRST, &second]));
    walk((&["render"], 23), &second, &|| Place::copy(&first.out()), &wanted);
}

#[test]
fn renewal_with_any_operation_failing_is_made_good_by_the_next() {
    let first = rendered(&[FIRST]);
    let wanted = Wanted::of(|| {
        let place = Place::copy(&first.out());
        place.run(&["certs", "renew", "--all", "--yes"], FIRST);
        place
    });
    walk((&["certs", "renew", "--all", "--yes"], 61), FIRST, &|| Place::copy(&first.out()), &wanted);
}
