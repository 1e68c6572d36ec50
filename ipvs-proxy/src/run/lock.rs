//! One of us per network namespace, and who else balances there.
//!
//! Two daemons that want different rows undo each other's work for ever. Invariant: a daemon, and a clean-up, of this
//! program works only while it holds a name in the network namespace that the kernel gives to one process at a time and
//! takes back when that ends, in whatever way.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, bail};
use kernel::name::{self, Name, Taken};

/// Name of the lock in the namespace's abstract sockets (unix(7)).
const NAME: &str = "ipvs-proxy";

/// Programs that keep virtual servers of their own, by the name of their process.
const BALANCERS: [&str; 4] = ["keepalived", "kube-router", "kube-vip", "ldirectord"];

/// The lock; it is held as long as this exists.
#[derive(Debug)]
pub(crate) struct Lock {
    _name: Option<Name>,
}

impl Lock {
    /// Takes the lock of this network namespace.
    ///
    /// # Errors
    /// When another process holds it, with the processes that may be it; when the kernel refuses.
    pub(crate) fn take() -> anyhow::Result<Self> {
        match name::take(NAME).context("lock this network namespace")? {
            Taken::Own(name) => Ok(Self { _name: Some(name) }),
            Taken::Other => bail!(
                "another ipvs-proxy{} works in this network namespace: two of them would undo each other's rows",
                whose(&processes(NAME))
            ),
            Taken::Stranger(uid) => {
                tracing::warn!(
                    name = NAME,
                    uid,
                    "a process of this user holds the daemon's name, for nothing: find it with `ss -xlp`"
                );
                Ok(Self { _name: None })
            }
        }
    }
}

/// What to say of a kube-proxy that runs in this network namespace, if one does.
pub(crate) fn rival() -> Option<String> {
    kube_proxy().map(|name| format!("{name} runs in this network namespace: it removes what it does not know; stop it"))
}

/// A kube-proxy that runs in this network namespace, with its process; this program may have the name too.
pub(crate) fn kube_proxy() -> Option<String> {
    let program =
        |process: &str| fs::metadata(format!("/proc/{process}/exe")).map(|file| (file.dev(), file.ino())).ok();
    let mut found = processes("kube-proxy");
    found.retain(|process| program(&process.to_string()).is_none_or(|other| Some(other) != program("self")));
    (!found.is_empty()).then(|| format!("kube-proxy{}", text(&found)))
}

/// A program that makes virtual servers of its own in this network namespace, with its process.
pub(crate) fn balancer() -> Option<String> {
    BALANCERS.into_iter().find_map(|name| {
        let found = processes(name);
        (!found.is_empty()).then(|| format!("{name}{}", text(&found)))
    })
}

/// Processes of that name in this network namespace, as far as they can be seen: a container sees its own only, and with the node's
/// processes it does not see the namespaces of those that have more rights. These count: what they work with must not be taken away.
fn processes(name: &str) -> Vec<u32> {
    let own = namespace(Path::new("/proc/self"));
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let numbered = entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())));
    let is_it = |path: &Path| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name);
    let is_here = |path: &Path| namespace(path).is_none_or(|other| Some(other) == own);
    let others = numbered.filter(|(id, path)| *id != std::process::id() && is_it(path) && is_here(path));
    let mut found: Vec<u32> = others.map(|(id, _)| id).collect();
    found.sort_unstable();
    found
}

fn namespace(process: &Path) -> Option<std::path::PathBuf> {
    fs::read_link(process.join("ns/net")).ok()
}

/// Who holds the lock: a container sees none of the processes of others.
fn whose(processes: &[u32]) -> String {
    let unseen = " (of a container that is not seen from here: `ss -xlp` on the host names its process)";
    if processes.is_empty() { unseen.to_owned() } else { text(processes) }
}

fn text(processes: &[u32]) -> String {
    let ids: Vec<_> = processes.iter().map(ToString::to_string).collect();
    if ids.is_empty() { String::new() } else { format!(" (process {})", ids.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_found_by_their_name_without_this_one() {
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        assert!(!processes(own.trim_end()).contains(&std::process::id()));
        assert_eq!(processes("of no such name"), [0; 0]);
    }

    #[test]
    fn processes_are_named_and_none_is_no_word() {
        assert_eq!(text(&[]), "");
        assert_eq!(text(&[7, 12]), " (process 7, 12)");
        assert_eq!(whose(&[7]), " (process 7)");
        assert!(whose(&[]).contains("`ss -xlp` on the host"));
    }
}
