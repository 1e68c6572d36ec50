//! Where Services come from: etcd, a directory, or the Kubernetes API.
//!
//! Invariant: what is named by a flag of this program counts before what kube-proxy would read, so that its configuration file can be used
//! as it is; two places at once are refused; none at all is the service account of the Pod that this runs in, where there is one.

use cluster::Problem;
use cluster::etcd::{Client, Prefix, TlsMaterial};
use cluster::kubernetes::{self, Access};

use super::Reader;
use crate::command::args::Flags;
use crate::command::settings::Settings;
use crate::command::settings::fields::path;
use crate::source::Place;

/// What gives this program its rights on the API server.
const GRANTS: &str = "the ClusterRole of configs/kubernetes/ipvs-proxy";

/// What is accepted as a place.
const ACCEPTED: &str = "one of etcd-endpoints, services-dir, kubeconfig and master, or a Pod with a service account";

impl Reader<'_> {
    pub(super) fn place(&mut self, flags: &Flags, tls: TlsMaterial, seed: u64) -> Option<Place> {
        match (&flags.services_dir, &flags.etcd.etcd_endpoints) {
            (Some(dir), None) if !dir.is_empty() => Some(Place::Directory(dir.into())),
            (None, Some(_)) => self.store(flags, tls, seed).map(|(client, prefix)| Place::Etcd(client, prefix)),
            (Some(_), Some(_)) => {
                let accepted = "either etcd-endpoints or services-dir";
                self.flag("services-dir", "given together with etcd-endpoints".to_owned(), accepted);
                None
            }
            _ => self.api_server(),
        }
    }

    fn api_server(&mut self) -> Option<Place> {
        let text = |key: &str| Some(self.settings.text(key)).filter(|text| !text.is_empty());
        let (kubeconfig, server) = (text(path::KUBECONFIG), text(path::MASTER));
        let agent = concat!("ipvs-proxy/", env!("CARGO_PKG_VERSION"));
        let access = Access::new(kubeconfig, server, agent, GRANTS);
        if access.is_in_cluster() && !access.is_in_pod() {
            self.flag("etcd-endpoints", "missing".to_owned(), ACCEPTED);
            return None;
        }
        match kubernetes::Client::connect(&access) {
            Ok(client) => Some(Place::Kubernetes(client)),
            Err(error) => {
                let key = if kubeconfig.is_some() { path::KUBECONFIG } else { path::MASTER };
                self.problems.push(Problem::new(self.settings.name(key), error.asked_once(), ""));
                None
            }
        }
    }

    pub(super) fn store(&mut self, flags: &Flags, tls: TlsMaterial, seed: u64) -> Option<(Client, Prefix)> {
        let mut note = |found: Vec<Problem>| self.problems.extend(found.into_iter().map(|found| found.under("--")));
        let client = Client::new(&flags.etcd.client_config(tls), seed).map_err(&mut note).ok();
        let prefix = Prefix::parse("etcd-prefix", flags.etcd.etcd_prefix.as_deref().unwrap_or_default())
            .map_err(|found| note(vec![found]))
            .ok();
        client.zip(prefix)
    }
}

/// What to say of an API server that is named and not read.
pub(super) fn warning(settings: &Settings, place: Option<&Place>) -> Option<String> {
    let from = match place? {
        Place::Etcd(..) => "--etcd-endpoints",
        Place::Directory(_) => "--services-dir",
        Place::Kubernetes(_) => return None,
    };
    let key = [path::KUBECONFIG, path::MASTER].into_iter().find(|key| !settings.text(key).is_empty())?;
    let (name, text) = (settings.name(key), settings.text(key));
    Some(format!("{name}: {text} has no effect: Services come from {from}"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{read, read_with};
    use super::*;

    const KUBECONFIG: &str = "contexts: [{name: x, context: {cluster: c, user: u}}]\nclusters: [{name: c, cluster: {server: 'https://10.0.0.1:6443'}}]\n";

    #[test]
    fn an_api_server_is_named_by_kube_proxys_flags_or_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kubeconfig");
        std::fs::write(&file, KUBECONFIG).unwrap();
        let file = file.display();
        let server = |place: Place| match place {
            Place::Kubernetes(client) => client.server(),
            other => panic!("{other:?}"),
        };
        let by_flag = read(&[&format!("--kubeconfig={file}")]).unwrap();
        assert_eq!(server(by_flag.place), "https://10.0.0.1:6443");
        assert_eq!(server(read(&["--master=http://127.0.0.1:8080"]).unwrap().place), "http://127.0.0.1:8080");
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclientConnection: {{kubeconfig: {file}}}\n"
        );
        assert_eq!(server(read_with(Some(&text), &[]).unwrap().place), "https://10.0.0.1:6443");
        assert_eq!(server(read_with(Some(&text), &["--master=https://10.0.0.2"]).unwrap().place), "https://10.0.0.2");
        let notes = read_with(Some(&text), &["--services-dir=/x"]).unwrap().notes;
        assert!(
            notes.warnings.iter().any(|it| it.contains("has no effect: Services come from --services-dir")),
            "{notes:?}"
        );
    }

    #[test]
    fn a_kubeconfig_that_cannot_be_used_is_named_with_what_is_wrong() {
        let problems = read(&["--kubeconfig=/absent"]).unwrap_err().list;
        let problem = problems.iter().find(|problem| problem.field == "--kubeconfig").unwrap();
        assert!(problem.found.contains("/absent: No such file"), "{problem}");
    }
}
