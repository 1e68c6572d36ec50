//! `View`: the members of etcd as they list themselves and as each is, with the hosts of the topology that they are of.
//!
//! Pure. Invariant: a member serves only if it said so itself.

use cluster::etcd::{MemberEntry, MemberStatus};
use daemon::status::escape;

/// A host that has, or is to have, a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its name, which is that of its member.
    pub(crate) host: String,
    /// Where other members reach it.
    pub(crate) peer: String,
    /// Where clients reach it.
    pub(crate) client: String,
    /// True when its member is rendered for a cluster that runs.
    pub(crate) joins: bool,
    /// Where the members are that it is rendered to know at its first start.
    pub(crate) initial: Vec<String>,
}

/// A member.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// What the cluster lists.
    pub(crate) entry: MemberEntry,
    /// The host of the topology.
    pub(crate) host: Option<String>,
    /// What it says of itself, or why it says nothing.
    pub(crate) status: Result<MemberStatus, String>,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// In the order of their ids.
    pub(crate) members: Vec<Member>,
}

impl Member {
    /// What people call it.
    pub(crate) fn name(&self) -> String {
        let listed = Some(&self.entry.name).filter(|name| !name.is_empty());
        let listed = listed.map(|name| escape(name).into_owned());
        self.host.clone().or(listed).unwrap_or_else(|| format!("{:x}", self.entry.id))
    }

    /// True when it answers and knows who leads.
    pub(crate) fn serves(&self) -> bool {
        self.status.as_ref().is_ok_and(|status| status.leader != 0)
    }

    /// True once it was started for the first time.
    pub(crate) fn has_started(&self) -> bool {
        !self.entry.name.is_empty()
    }

    /// How far it is in the log.
    fn applied(&self) -> u64 {
        self.status.as_ref().map_or(0, |status| status.applied)
    }
}

impl View {
    /// The member of a host, or of this name or id.
    pub(crate) fn member(&self, name: &str) -> Option<&Member> {
        self.called(name).next()
    }

    /// All that are called so: etcd takes a name twice, and a host that has another address has its earlier member still.
    pub(crate) fn called(&self, name: &str) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |member| {
            member.host.as_deref() == Some(name)
                || (member.host.is_none() && member.entry.name == name)
                || format!("{:x}", member.entry.id) == name
        })
    }

    /// Those that vote.
    pub(crate) fn voters(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| !member.entry.is_learner)
    }

    /// The one that leads, as the one says that is furthest. One that died leads on for its followers until they miss it.
    pub(crate) fn leader(&self) -> Option<&Member> {
        let furthest = self.members.iter().filter(|member| member.serves()).max_by_key(|member| member.applied())?;
        let leader = furthest.status.as_ref().ok()?.leader;
        self.members.iter().find(|member| member.entry.id == leader && member.serves())
    }

    /// Why there is nobody to ask: who leads may just not have answered.
    pub(crate) fn leaderless(&self) -> String {
        let silent =
            |member: &Member| Some(format!("{} does not answer: {}", member.name(), member.status.as_ref().err()?));
        let silent: Vec<String> = self.members.iter().filter_map(silent).collect();
        let reason = if silent.is_empty() { "there is no quorum".to_owned() } else { silent.join("; ") };
        format!("no member of etcd leads: {reason}")
    }

    /// The voter that is furthest of those that follow; `None` where nobody else could lead.
    pub(crate) fn best_follower(&self) -> Option<&Member> {
        let leader = self.leader()?.entry.id;
        let followers = self.voters().filter(|member| member.serves() && member.entry.id != leader);
        followers.max_by_key(|member| member.applied())
    }

    /// The same without a member.
    pub(crate) fn without(&self, id: u64) -> Self {
        Self { members: self.members.iter().filter(|member| member.entry.id != id).cloned().collect() }
    }
}
