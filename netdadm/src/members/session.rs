//! `Session`: the members of etcd, asked with the certificates of a rendered folder.
//!
//! Invariants: all members are asked at once, and each question ends; whoever does not answer is in the view with its reason.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cluster::Problem;
use cluster::etcd::{Administration, Client, Config, Limits, MemberEntry, MemberStatus, Store, TlsFiles, TlsMaterial};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::view::{Member, Place, View};
use crate::pki::{Ca, authority_file};
use crate::render;
use crate::topology::{Purpose, Role, Topology};

/// The client of etcd that operators have, below the rendered folder.
const CLIENT: &str = "pki/etcd/healthcheck-client";

/// Connections to members.
pub(crate) struct Session {
    runtime: Runtime,
    tls: TlsMaterial,
    limits: Limits,
    places: Vec<Place>,
}

/// What one member answered, by where it is.
struct Answer {
    client: String,
    members: Result<Vec<MemberEntry>, String>,
    status: Result<MemberStatus, String>,
}

impl Session {
    /// The members that `topology` has, with the certificates below `out`; each answer may take `limit`.
    ///
    /// # Errors
    /// When the certificates cannot be read.
    pub(crate) fn open(topology: &Topology, out: &Path, limit: Duration) -> Result<Self, String> {
        let there = |path: PathBuf| {
            if path.exists() {
                return Ok(Some(path));
            }
            Err(format!("{} is not there; name the folder that `netdadm render` wrote by -o", path.display()))
        };
        let given = topology.deviations.pki.as_ref().map(|folder| PathBuf::from(folder.value.to_string()));
        let ca = there(authority_file(Ca::Etcd, out, given.as_deref()))?;
        let client = |suffix: &str| there(out.join(format!("{CLIENT}.{suffix}")));
        let tls = TlsFiles { ca, cert: client("crt")?, key: client("key")? }.read();
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|cause| format!("start asking: {cause}"))?;
        let limits = Limits { operation: limit, ..Limits::default() };
        Ok(Self { runtime, tls, limits, places: places(topology) })
    }

    /// The member at a URL for clients.
    ///
    /// # Errors
    /// When the certificates are of no use.
    pub(crate) fn administration(&self, client: &str) -> Result<Administration, String> {
        Administration::new(&self.config(client.to_owned())).map_err(said)
    }

    /// The keys, at whichever member answers.
    ///
    /// # Errors
    /// When the certificates are of no use.
    pub(crate) fn store(&self) -> Result<Store, String> {
        let all: Vec<&str> = self.places.iter().map(|place| place.client.as_str()).collect();
        Client::new(&self.config(all.join(",")), 0).map(Store::new).map_err(said)
    }

    fn config(&self, endpoints: String) -> Config {
        Config { endpoints, tls: self.tls.clone(), limits: self.limits.clone(), ..Config::default() }
    }

    /// Where clients reach a member.
    pub(crate) fn client(&self, member: &Member) -> Option<String> {
        let place = self.places.iter().find(|place| Some(&place.host) == member.host.as_ref());
        place.map(|place| place.client.clone()).or_else(|| member.entry.client_urls.first().cloned())
    }

    /// Waits for what is asked.
    pub(crate) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Who the members are and how each is.
    ///
    /// # Errors
    /// When none of them knows the others: there is no quorum, or nobody answers.
    pub(crate) fn view(&self) -> Result<View, String> {
        // Certificates that are of no use are nobody's silence.
        self.store()?;
        let known = self.ask(self.places.iter().map(|place| place.client.clone()));
        let answered = known.iter().filter_map(|one| Some((one.status.as_ref().ok()?, one.members.as_ref().ok()?)));
        let Some((_, entries)) = answered.max_by_key(|(status, _)| status.applied) else {
            return Err(silence(&known));
        };
        let mut members: Vec<Member> = entries.iter().map(|entry| self.unasked(entry)).collect();
        members.sort_by_key(|member| member.entry.id);
        let mut found: BTreeMap<String, Answer> = known.into_iter().map(|one| (one.client.clone(), one)).collect();
        let others = members.iter().filter_map(|member| self.client(member)).filter(|url| !found.contains_key(url));
        let others: Vec<String> = others.collect();
        found.extend(self.ask(others.into_iter()).into_iter().map(|one| (one.client.clone(), one)));
        for member in &mut members {
            let Some(answer) = self.client(member).and_then(|client| found.remove(&client)) else { continue };
            member.status = match answer.status {
                // Another cluster's, or a predecessor's that has not stopped yet.
                Ok(status) if status.id != member.entry.id => {
                    Err(format!("a member with the id {:x} answers", status.id))
                }
                status => status,
            };
        }
        Ok(View { members })
    }

    fn unasked(&self, entry: &MemberEntry) -> Member {
        let place = self.places.iter().find(|place| entry.peer_urls.contains(&place.peer));
        let status = Err("it has not started".to_owned());
        Member { entry: entry.clone(), host: place.map(|place| place.host.clone()), status }
    }

    /// Asks all of them; one that cannot be asked by its URL is silent for that reason, and the others are asked.
    fn ask(&self, clients: impl Iterator<Item = String>) -> Vec<Answer> {
        let (mut answers, mut members) = (Vec::new(), Vec::new());
        for client in clients {
            match self.administration(&client) {
                Ok(member) => members.push((member, client)),
                Err(why) => answers.push(Answer { client, members: Err(why.clone()), status: Err(why) }),
            }
        }
        answers.extend(self.wait(async move {
            let mut asked = JoinSet::new();
            for (member, client) in members {
                asked.spawn(async move {
                    let (members, status) = tokio::join!(member.members(), member.status());
                    let (members, status) =
                        (members.map_err(|error| error.message), status.map_err(|error| error.message));
                    Answer { client, members, status }
                });
            }
            asked.join_all().await
        }));
        answers
    }
}

fn said(problems: Vec<Problem>) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Why nothing is known.
fn silence(answers: &[Answer]) -> String {
    let mut said: Vec<String> = answers
        .iter()
        .filter_map(|answer| Some(format!("{}: {}", answer.client, answer.status.as_ref().err()?)))
        .collect();
    said.sort();
    let said = said.join("; ");
    // rustls' words for a certificate of another authority, or one that has ended.
    let advice = if said.contains("certificate") {
        "the certificates of the rendered folder and of the members do not go together: name the folder of this cluster by -o, and see `netdadm certs list -o`"
    } else {
        "bring a quorum of them back, or restore a backup"
    };
    format!("no member of etcd serves ({said}); {advice}")
}

/// Hosts with members.
pub(crate) fn places(topology: &Topology) -> Vec<Place> {
    let members = topology.of(Role::Etcd).filter_map(|host| Some((host, render::Place::of(topology, host)?)));
    let place = |(host, place): (&crate::topology::Host, render::Place<'_>)| Place {
        host: host.name.value.clone(),
        peer: format!("https://{}", place.at(Purpose::EtcdPeer)),
        client: format!("https://{}", place.at(Purpose::EtcdClient)),
        joins: host.joins,
        initial: render::initial_members(topology, host).map(|(_, peer)| peer).collect(),
    };
    members.map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_with_an_odd_url_is_silent_by_itself() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let (tls, places) = (TlsFiles::default().read(), Vec::new());
        let limits = Limits { operation: Duration::from_secs(1), ..Limits::default() };
        let session = Session { runtime, tls, limits, places };
        let urls = ["unix:///run/etcd", "https://127.0.0.1:1"];
        let answers = session.ask(urls.iter().map(ToString::to_string));
        let said = |url: &str| {
            let answer = answers.iter().find(|answer| answer.client == url).unwrap();
            assert!(answer.members.is_err());
            answer.status.clone().unwrap_err()
        };
        assert!(said(urls[0]).contains("`unix` is not a scheme"), "{}", said(urls[0]));
        assert!(said(urls[1]).contains("refused"), "{}", said(urls[1]));
    }
}
