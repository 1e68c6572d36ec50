//! `ApiServer`: a real API server with its etcd on a machine of the lab.
//!
//! Invariant: it is the server's own program over a real etcd; what it serves after a start, a loss or a restored state is what that
//! program makes of it. It ends with its value.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Release;
use super::authority::Authority;
use super::client::{Answer, Client, Watch};
use super::etcd::Etcd;
use super::http;
use super::kubeconfig::Kubeconfig;
use super::launch::{self, ADMIN, PORT, STRANGER};
use super::objects::Path;
use crate::deadline::eventually;
use crate::host::Host;
use crate::process::Process;

/// Until it serves, on a busy machine or in the lab kernel.
const LIMIT: Duration = Duration::from_secs(240);
/// Where a Pod finds who it is; `/var/run` leads there.
const ACCOUNT: &str = "/run/secrets/kubernetes.io/serviceaccount";

/// The server; it ends with this value, and its etcd with it.
pub struct ApiServer {
    host: Host,
    release: Release,
    programs: PathBuf,
    pub(super) flags: Vec<String>,
    authority: Authority,
    address: SocketAddr,
    client: Client,
    // In the order of their end: the server first.
    process: Option<Process>,
    etcd: Etcd,
}

impl ApiServer {
    /// Starts one of release 1.20 on the machine: with RBAC, service accounts and their tokens. It serves on the machine's address, or on
    /// its loopback where it has none, and on every other address of it.
    ///
    /// # Errors
    /// When it is not built ([`Absent`](crate::Absent)) or does not come up.
    pub fn start(host: &Host) -> Result<Self> {
        Self::start_with(host, Release::default(), &[])
    }

    /// Starts one of this release, with flags of its own behind ours.
    ///
    /// # Errors
    /// As [`ApiServer::start`].
    pub fn start_with(host: &Host, release: Release, flags: &[&str]) -> Result<Self> {
        let without = [launch::WITHOUT_ACCOUNTS];
        let own = if release == Release::V1_20 { &without[..] } else { &[] };
        Self::launch(host, release, &[own, flags].concat())
    }

    /// Starts one of release 1.20 for a [`ControlPlane`](super::ControlPlane): each Pod has a service account and its token.
    ///
    /// # Errors
    /// As [`ApiServer::start`].
    pub fn start_for_pods(host: &Host, flags: &[&str]) -> Result<Self> {
        Self::launch(host, Release::V1_20, flags)
    }

    fn launch(host: &Host, release: Release, flags: &[&str]) -> Result<Self> {
        let programs = release.programs().map_err(anyhow::Error::from)?;
        let authority = Authority::new()?;
        let own = host.address().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4);
        launch::write_files(host, &authority, own)?;
        let address = SocketAddr::from((own, PORT));
        let client = Client::new(host, address, http::trust(&authority.pem())?, ADMIN);
        let beside = programs.join("etcd");
        let etcd = Etcd::start(host, if beside.exists() { beside } else { "etcd".into() })?;
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mut server =
            Self { host: host.clone(), release, programs, flags, authority, address, client, process: None, etcd };
        server.start_again()?;
        Ok(server)
    }

    /// Which it is.
    #[must_use]
    pub const fn release(&self) -> Release {
        self.release
    }

    /// The folder of its programs.
    #[must_use]
    pub fn programs(&self) -> &std::path::Path {
        &self.programs
    }

    /// Its machine.
    #[must_use]
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// Where it serves.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Everything that it has logged since its last start.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    pub(crate) const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The authority that its certificate and those of users are of, as PEM.
    #[must_use]
    pub fn authority_pem(&self) -> String {
        self.authority.pem()
    }

    /// A kubeconfig of an administrator; other users and places are built from it.
    #[must_use]
    pub fn kubeconfig(&self) -> Kubeconfig {
        Kubeconfig::new(&format!("https://{}", self.address), &self.authority.pem()).token(ADMIN)
    }

    /// A kubeconfig of a user whom no rule allows anything.
    #[must_use]
    pub fn kubeconfig_of_a_stranger(&self) -> Kubeconfig {
        self.kubeconfig().token(STRANGER)
    }

    /// A kubeconfig with a certificate for this user of these groups. It works at the server itself: the [`Faults`](super::Faults)
    /// before it end the connection, and a certificate with it.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn kubeconfig_of(&self, user: &str, groups: &[&str]) -> Result<Kubeconfig> {
        Ok(self.kubeconfig().certificate(&self.authority.user(user, groups)?))
    }

    /// A certificate and its key for this user of these groups, as PEM.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn certificate(&self, user: &str, groups: &[&str]) -> Result<(String, String)> {
        let issued = self.authority.user(user, groups)?;
        Ok((issued.certificate, issued.key))
    }

    /// A new token of a service account, which is made where it does not exist; it is valid for an hour.
    ///
    /// # Errors
    /// When the server gives none: the modern one never does.
    pub fn token_of(&self, namespace: &str, account: &str) -> Result<String> {
        let object = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": namespace}});
        self.put(&object)?;
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}});
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let given = self.ask("POST", &path, Some(("application/json", &request)))?.object()?;
        let token = given.pointer("/status/token").and_then(Value::as_str);
        Ok(token.with_context(|| format!("no token in {given}"))?.to_owned())
    }

    /// Gives a machine what a Pod of this service account finds in its files; returns the variables of its environment for a server at
    /// this address. Called again it rotates the token. On the modern server the account is an administrator's.
    ///
    /// # Errors
    /// As [`ApiServer::token_of`].
    pub fn in_cluster(
        &self,
        host: &Host,
        account: (&str, &str),
        at: SocketAddr,
    ) -> Result<[(&'static str, String); 2]> {
        let token = match self.release {
            Release::Modern => ADMIN.to_owned(),
            Release::V1_20 => self.token_of(account.0, account.1)?,
        };
        for (name, text) in [("token", token), ("ca.crt", self.authority.pem()), ("namespace", account.0.to_owned())] {
            host.write(format!("{ACCOUNT}/{name}"), text)?;
        }
        Ok([("KUBERNETES_SERVICE_HOST", at.ip().to_string()), ("KUBERNETES_SERVICE_PORT", at.port().to_string())])
    }

    /// Asks as an administrator; whatever the server says is the answer. `body` is its type and itself.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn ask(&self, method: &str, path: &str, body: Option<(&str, &Value)>) -> Result<Answer> {
        self.client.ask(method, path, body)
    }

    /// An administrator's client with a connection of its own: several ask at the same time.
    #[must_use]
    pub fn another_client(&self) -> Client {
        self.client.with_token(ADMIN)
    }

    /// Where its etcd serves on its machine, for whoever fills it beneath the server.
    #[must_use]
    pub const fn store(&self) -> SocketAddr {
        super::etcd::ADDRESS
    }

    /// Asks with this token.
    ///
    /// # Errors
    /// As [`ApiServer::ask`].
    pub fn ask_with(&self, token: &str, method: &str, path: &str) -> Result<Answer> {
        self.client.with_token(token).ask(method, path, None)
    }

    /// The object, or the list, at this path.
    ///
    /// # Errors
    /// When the server does not give it.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.ask("GET", path, None)?.object().with_context(|| format!("GET {path}"))
    }

    /// Puts an object in the place of the one of its kind, namespace and name, or where there is none: with its namespace, and with its
    /// status where it has one. Returns it as the server has it.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn put(&self, object: &Value) -> Result<Value> {
        let path = Path::of(object)?;
        let what = || format!("put {}", path.whole());
        let known = self.ask("GET", &path.whole(), None)?;
        let answer = if known.code == 200 {
            // A Service is replaced in the version that is meant alone.
            let mut object = object.clone();
            let version = known.body.pointer("/metadata/resourceVersion").cloned();
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.entry("resourceVersion").or_insert(version.unwrap_or_default());
            }
            self.send("PUT", &path.whole(), &object)?
        } else {
            let answer = self.send("POST", &path.collection, object)?;
            match &path.namespace {
                Some(namespace) if answer.code == 404 => {
                    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
                    self.send("POST", "/api/v1/namespaces", &namespace)?.object().with_context(what)?;
                    self.send("POST", &path.collection, object)?
                }
                _ => answer,
            }
        };
        let is = answer.object().with_context(what)?;
        let Some(status) = object.get("status").filter(|status| is.get("status") != Some(status)) else {
            return Ok(is);
        };
        let patch = json!({"status": status});
        let body = Some(("application/merge-patch+json", &patch));
        self.ask("PATCH", &format!("{}/status", path.whole()), body)?.object().with_context(what)
    }

    fn send(&self, method: &str, path: &str, body: &Value) -> Result<Answer> {
        self.ask(method, path, Some(("application/json", body)))
    }

    /// Changes an object by a merge patch: what is null goes.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn patch(&self, path: &str, patch: &Value) -> Result<Value> {
        let answer = self.ask("PATCH", path, Some(("application/merge-patch+json", patch)))?;
        answer.object().with_context(|| format!("PATCH {path}"))
    }

    /// Deletes the object at this path at once.
    ///
    /// # Errors
    /// When the server refuses, or has none.
    pub fn delete(&self, path: &str) -> Result<()> {
        let at_once = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
        let answer = self.ask("DELETE", path, Some(("application/json", &at_once)))?;
        answer.object().map(drop).with_context(|| format!("DELETE {path}"))
    }

    /// Watches a path with this query, such as `/api/v1/nodes?watch=1&resourceVersion=5`.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn watch(&self, path: &str) -> Result<Watch> {
        self.client.watch(path)
    }

    /// Ends the server as a crash does; its etcd goes on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn stop(&mut self) -> Result<()> {
        self.process.take().context("this API server does not run")?.kill()
    }

    /// Starts the server that was stopped, and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "this API server runs");
        let command = self
            .host
            .command(self.programs.join("kube-apiserver"))
            .args(launch::arguments(&self.host, self.release))
            .args(&self.flags);
        let process = command.start("kube-apiserver")?;
        let ready = eventually(LIMIT, || -> Result<Result<()>> {
            if !process.is_running() {
                return Ok(Err(anyhow::anyhow!("the API server has ended: {}", process.log())));
            }
            self.check().map(Ok)
        });
        ready.and_then(|ended| ended).context("start the API server")?;
        self.process = Some(process);
        Ok(())
    }

    /// Stops the server's process (SIGSTOP): connections stay open and nothing answers.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> Result<()> {
        self.process.as_ref().context("this API server does not run")?.signal(signal)
    }

    /// Has etcd forget every version but the current one: who continues from an older one gets 410.
    ///
    /// # Errors
    /// When etcd refuses.
    pub fn compact(&self) -> Result<()> {
        self.etcd.compact()
    }

    /// Ends etcd as a crash does; the server stays, without its store.
    ///
    /// # Errors
    /// When it does not run.
    pub fn lose_etcd(&mut self) -> Result<()> {
        self.etcd.kill()
    }

    /// Starts the etcd that was lost, with the data it had, and waits until the server serves from it.
    ///
    /// # Errors
    /// When either does not come up.
    pub fn bring_etcd_back(&mut self) -> Result<()> {
        self.etcd.launch()?;
        eventually(LIMIT, || self.check())
    }

    /// Keeps the state of the cluster under this name.
    ///
    /// # Errors
    /// When etcd gives none.
    pub fn save(&self, name: &str) -> Result<()> {
        self.etcd.save(name)
    }

    /// Puts a kept state back, as an administrator does after a loss: server and etcd are stopped, and started on it. Versions begin
    /// again from the kept state's.
    ///
    /// # Errors
    /// When either does not come up.
    pub fn restore(&mut self, name: &str) -> Result<()> {
        self.stop()?;
        self.etcd.kill()?;
        self.etcd.restore(name)?;
        self.start_again()
    }

    pub(super) fn check(&self) -> Result<()> {
        let ready = self.ask("GET", "/readyz", None)?;
        ensure!(ready.code == 200, "not ready: {}", ready.body);
        if self.release == Release::V1_20 {
            self.get("/api/v1/namespaces/default")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiServer")
            .field("release", &self.release)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
