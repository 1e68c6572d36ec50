//! The members of a cluster: those that were configured and those that the cluster names itself.
//!
//! Invariants: a configured member stays for ever and stands first; one that the cluster names is of the configured
//! scheme (TLS is never given up), and on this host only where a configured one is; all requests go to one member until
//! it fails, then everybody moves to the next.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::access::Access;
use super::endpoints::Endpoint;
use super::member::Member;

/// The members and the choice among them.
pub(super) struct Members {
    configured: Vec<Endpoint>,
    access: Arc<Access>,
    state: Mutex<State>,
}

struct State {
    list: Vec<Arc<Member>>,
    current: usize,
}

impl Members {
    /// The configured ones, beginning with the one of number `begin`.
    pub(super) fn new(configured: Vec<Endpoint>, access: Arc<Access>, begin: usize) -> Self {
        let member = |endpoint: &Endpoint| Arc::new(Member::new(endpoint.clone(), Vec::new(), Arc::clone(&access)));
        let list = configured.iter().map(member).collect();
        Self { configured, access, state: Mutex::new(State { list, current: begin }) }
    }

    /// The one that is asked at the moment.
    pub(super) fn current(&self) -> Option<Arc<Member>> {
        let state = self.state();
        state.list.get(state.current).cloned()
    }

    /// All of them.
    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        self.state().list.iter().map(|member| member.endpoint.clone()).collect()
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.state().list.len()
    }

    /// Moves everybody away from a member that failed; when somebody else has done so already, nothing happens.
    pub(super) fn leave(&self, failed: &Arc<Member>) {
        let mut state = self.state();
        let current = state.current;
        if state.list.get(current).is_none_or(|member| !Arc::ptr_eq(member, failed)) {
            return;
        }
        let next = current.saturating_add(1).checked_rem(state.list.len()).unwrap_or(0);
        if let Some(to) = state.list.get(next).filter(|_| next != current) {
            tracing::debug!(from = failed.endpoint.as_str(), to = to.endpoint.as_str(), "etcd member left");
        }
        state.current = next;
    }

    /// Moves everybody to `better`, if it still is a member.
    pub(super) fn prefer(&self, better: &Arc<Member>) {
        let mut state = self.state();
        if let Some(index) = state.list.iter().position(|member| Arc::ptr_eq(member, better)) {
            state.current = index;
        }
    }

    /// One of those that are not asked at the moment; `turn` says which.
    pub(super) fn other(&self, turn: usize) -> Option<Arc<Member>> {
        let state = self.state();
        let others = state.list.len().checked_sub(1)?;
        let step = turn.checked_rem(others)?.saturating_add(1);
        let index = state.current.saturating_add(step).checked_rem(state.list.len())?;
        state.list.get(index).cloned()
    }

    /// Takes over what the cluster says of its members' client URLs.
    pub(super) fn learn<'a>(&self, urls: impl IntoIterator<Item = &'a String>) {
        let mut found: Vec<Endpoint> = Vec::new();
        for endpoint in urls.into_iter().filter_map(|url| usable(url, &self.configured)) {
            if !self.configured.contains(&endpoint) && !found.contains(&endpoint) {
                found.push(endpoint);
            }
        }
        // The order is the cluster's; nodes keep theirs however it lists.
        found.sort();
        let mut state = self.state();
        let known: Vec<Endpoint> = state.list.iter().map(|member| member.endpoint.clone()).collect();
        let wanted: Vec<Endpoint> = self.configured.iter().cloned().chain(found).collect();
        if wanted == known {
            return;
        }
        let shown = wanted.iter().map(Endpoint::as_str).collect::<Vec<_>>().join(",");
        tracing::info!(members = shown, "etcd's members, as configured and as the cluster names them");
        let before = state.list.get(state.current).map(|member| member.endpoint.clone());
        let list = wanted.into_iter().map(|endpoint| {
            let kept = state.list.iter().find(|member| member.endpoint == endpoint);
            kept.cloned().unwrap_or_else(|| Arc::new(Member::new(endpoint, self.names(), Arc::clone(&self.access))))
        });
        state.list = list.collect();
        state.current = state.list.iter().position(|member| Some(&member.endpoint) == before.as_ref()).unwrap_or(0);
    }

    /// Names that a certificate of a member may bear beside its own: it was trusted under these.
    fn names(&self) -> Vec<String> {
        self.configured.iter().filter(|endpoint| endpoint.is_tls()).map(|endpoint| endpoint.host().to_owned()).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The endpoint of a client URL that a cluster advertises; `None` for one that leads nowhere from here.
fn usable(url: &str, configured: &[Endpoint]) -> Option<Endpoint> {
    let endpoint = Endpoint::parse_list(url, false).ok()?.into_iter().next()?;
    let same_scheme = configured.iter().any(|known| known.is_tls() == endpoint.is_tls());
    let local = |endpoint: &Endpoint| match endpoint.host().parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => endpoint.host() == "localhost",
    };
    let unspecified = endpoint.host().parse::<IpAddr>().is_ok_and(|address| address.is_unspecified());
    let reachable = !unspecified && (!local(&endpoint) || configured.iter().any(local));
    (same_scheme && reachable).then_some(endpoint)
}

#[cfg(test)]
mod tests {
    use etcd_client::ConnectOptions;

    use super::super::tls::TlsMaterial;
    use super::*;

    fn members(configured: &str) -> Members {
        let access = Access::new(ConnectOptions::new(), TlsMaterial::default(), None);
        Members::new(Endpoint::parse_list(configured, false).unwrap(), Arc::new(access), 0)
    }

    fn shown(members: &Members) -> Vec<String> {
        members.endpoints().iter().map(ToString::to_string).collect()
    }

    fn learned(configured: &str, urls: &[&str]) -> Vec<String> {
        let members = members(configured);
        members.learn(&urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>());
        shown(&members)
    }

    #[test]
    fn a_member_is_left_once_however_many_fail_on_it() {
        let members = members("http://a:1,http://b:1,http://c:1");
        let first = members.current().unwrap();
        members.leave(&first);
        members.leave(&first);
        assert_eq!(members.current().unwrap().endpoint.as_str(), "http://b:1");
    }

    #[test]
    fn others_have_their_turns_and_a_better_one_is_moved_to() {
        let members = members("http://a:1,http://b:1,http://c:1");
        let asked: Vec<String> = (0..4).map(|turn| members.other(turn).unwrap().endpoint.to_string()).collect();
        assert_eq!(asked, ["http://b:1", "http://c:1", "http://b:1", "http://c:1"]);
        members.prefer(&members.other(1).unwrap());
        assert_eq!(members.current().unwrap().endpoint.as_str(), "http://c:1");
        let alone = super::tests::members("http://a:1");
        assert!(alone.other(0).is_none());
    }

    #[test]
    fn members_that_the_cluster_names_stand_behind_the_configured_ones() {
        let all = learned("http://b:1", &["http://c:1", "http://a:1", "http://b:1", "http://a:1"]);
        assert_eq!(all, ["http://b:1", "http://a:1", "http://c:1"]);
    }

    #[test]
    fn what_leads_nowhere_from_here_or_gives_up_tls_is_not_learned() {
        let junk = [
            "http://localhost:2379",
            "http://127.0.0.1:2379",
            "http://[::1]:2379",
            "http://0.0.0.0:2379",
            "unix://x",
            "",
        ];
        assert_eq!(learned("http://10.4.7.12:2379", &junk), ["http://10.4.7.12:2379"]);
        assert_eq!(learned("https://10.4.7.12:2379", &["http://10.4.7.11:2379"]), ["https://10.4.7.12:2379"]);
        assert_eq!(learned("http://127.0.0.1:1", &["http://127.0.0.1:2"]).len(), 2, "everything is on this host");
    }

    #[test]
    fn member_that_was_removed_goes_and_the_current_one_stays_current() {
        let members = members("http://a:1");
        members.learn(&["http://b:1".to_owned(), "http://c:1".to_owned()]);
        members.leave(&members.current().unwrap());
        members.leave(&members.current().unwrap());
        assert_eq!(members.current().unwrap().endpoint.as_str(), "http://c:1");
        members.learn(&["http://c:1".to_owned()]);
        assert_eq!(
            (shown(&members), members.current().unwrap().endpoint.as_str()),
            (vec!["http://a:1".to_owned(), "http://c:1".to_owned()], "http://c:1")
        );
        members.learn(&[]);
        assert_eq!(members.current().unwrap().endpoint.as_str(), "http://a:1", "a configured one is always there");
    }
}
