//! Follows the ServiceCIDRs of the Kubernetes API, where the server has them (networking.k8s.io/v1, v1beta1 before 1.33).
//!
//! Invariants: nothing waits for them, and what is known stays while they cannot be read; a server that has none of them is asked again
//! every [`ABSENT`], since it may be replaced by one that has.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cluster::kubernetes::{Client, Collection, watch_read};
use cluster::{Backoff, ClusterError, Event, Source};
use daemon::liveness::Liveness;
use daemon::shell::seed;
use daemon::worker::Mailbox;
use netstate::Prefix;
use serde::Deserialize;
use tokio::time::sleep;

use super::worker::{Order, ProxyWork};
use crate::object::service_cidr::read;
use crate::plan::announced::Announced;
use crate::source::Place;

const GROUP: &str = "networking.k8s.io";
const PLURAL: &str = "servicecidrs";

/// The newest first.
const VERSIONS: [&str; 2] = ["v1", "v1beta1"];

/// Time until a server that has none is asked again.
const ABSENT: Duration = Duration::from_secs(600);

/// The name of this loop for whoever judges it.
const LOOP: &str = "source of ServiceCIDRs";

/// What an object says.
type Reading = Result<BTreeSet<Prefix>, String>;

/// As much of a version's discovery as names its resources.
#[derive(Deserialize)]
struct Resources {
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
}

/// Follows them where the objects come from an API server. Must be called on a tokio runtime.
pub(super) fn begin(place: &Place, mailbox: &Mailbox<ProxyWork>, liveness: &Liveness) {
    if let Place::Kubernetes(client) = place {
        tokio::spawn(follow(client.clone(), mailbox.clone(), liveness.clone(), seed()));
    }
}

/// Follows them and passes on what they are, for as long as the future is polled; `seed` spreads the retries of many nodes.
async fn follow(client: Client, mailbox: Mailbox<ProxyWork>, liveness: Liveness, seed: u64) {
    let mut backoff = Backoff::new(seed);
    let mut fold = Fold::default();
    loop {
        let pause = match version(&client).await {
            Ok(Some(version)) => {
                let collection = Collection::new(GROUP, version, PLURAL);
                let source = watch_read(&client, collection, seed, |_, text| read(text));
                let progress = source.progress();
                liveness.judge(LOOP, progress.clone());
                follow_source(source, &mut fold, &mailbox).await;
                liveness.forget(LOOP, &progress);
                backoff.next_delay()
            }
            Ok(None) => {
                if fold.apply(Event::Reset) || fold.apply(Event::Complete) {
                    mailbox.send(Order::Announced(fold.announced.clone())).await;
                }
                ABSENT
            }
            // The other sources say the same.
            Err(error) => {
                tracing::debug!(%error, "whether the API server has ServiceCIDRs is not known yet");
                backoff.next_delay()
            }
        };
        sleep(pause).await;
    }
}

/// The newest version in which the server has them.
async fn version(client: &Client) -> Result<Option<&'static str>, ClusterError> {
    for version in VERSIONS {
        match client.get::<Resources>(&format!("/apis/{GROUP}/{version}")).await {
            Ok(found) if found.resources.iter().any(|resource| resource.name == PLURAL) => return Ok(Some(version)),
            Ok(_) => {}
            Err(error) if error.status() == Some(404) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Until the server has them no more.
async fn follow_source(mut source: Source<String, Reading>, fold: &mut Fold, mailbox: &Mailbox<ProxyWork>) {
    while let Some(event) = source.next().await {
        if matches!(&event, Event::Lost(error) if error.status() == Some(404)) {
            return;
        }
        if fold.apply(event) {
            mailbox.send(Order::Announced(fold.announced.clone())).await;
        }
    }
}

/// What the events come to.
#[derive(Debug, Default)]
struct Fold {
    /// As it is read, up to the end of a listing or a change.
    next: BTreeMap<String, Reading>,
    announced: Announced,
}

impl Fold {
    /// Takes an event in; true when something else is announced now.
    fn apply(&mut self, event: Event<String, Reading>) -> bool {
        let before = self.announced.clone();
        match event {
            Event::Reset => self.next.clear(),
            Event::Put { key, value, .. } => drop(self.next.insert(key, value)),
            Event::Delete { key, .. } => drop(self.next.remove(&key)),
            Event::Lost(error) => self.announced.trouble = Some(error.to_string()),
            Event::Commit | Event::Complete => {
                let bad = self.next.iter().find_map(|(name, value)| Some((name, value.as_ref().err()?)));
                self.announced.trouble = bad.map(|(name, reason)| format!("ServiceCIDR {name}: {reason}"));
                let good = self.next.iter().filter_map(|(name, value)| Some((name.clone(), value.clone().ok()?)));
                self.announced.objects = good.collect();
            }
            _ => {}
        }
        self.announced != before
    }
}

#[cfg(test)]
mod tests {
    use cluster::kubernetes::Access;

    use super::*;

    fn put(name: &str, cidrs: &str) -> Event<String, Reading> {
        let value = read(&format!(r#"{{"metadata":{{"name":"{name}"}},"spec":{{"cidrs":[{cidrs}]}}}}"#));
        Event::Put { key: name.to_owned(), value, revision: 1 }
    }

    #[test]
    fn what_is_known_stays_until_a_listing_is_whole_and_one_bad_object_takes_no_other_down() {
        let mut fold = Fold::default();
        let networks = |fold: &Fold| fold.announced.networks().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(!fold.apply(Event::Reset) && !fold.apply(put("kubernetes", "\"10.96.0.0/16\",\"fd09::/108\"")));
        assert!(fold.apply(Event::Complete));
        assert_eq!(networks(&fold), ["10.96.0.0/16", "fd09::/108"]);
        assert!(!fold.apply(put("bad", "\"10.96.0.0\"")) && fold.apply(Event::Commit));
        assert!(fold.announced.trouble.as_ref().is_some_and(|text| text.starts_with("ServiceCIDR bad: spec.cidrs: ")));
        assert_eq!(networks(&fold).len(), 2);
        // Any trouble of the source will do.
        let lost = Client::connect(&Access::new(Some("/no/kubeconfig"), None, "", "")).unwrap_err();
        assert!(fold.apply(Event::Lost(lost)) && !fold.apply(Event::Reset));
        assert_eq!(networks(&fold).len(), 2, "an outage changes nothing");
        assert!(!fold.apply(put("more", "\"10.97.0.0/16\"")) && fold.apply(Event::Complete));
        assert_eq!((networks(&fold), fold.announced.trouble), (vec!["10.97.0.0/16".to_owned()], None));
    }
}
