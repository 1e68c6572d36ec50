//! How members let this client in: user, time limits, and TLS material that is read again when it was renewed.
//!
//! Invariants: material that cannot be used (half of a renewal, a file that is gone) never replaces what is used; a
//! connection made with older material than there is now, or from an address that this host has no more, is not used for another request.

use std::sync::{Mutex, MutexGuard, PoisonError};

use etcd_client::{ConnectOptions, TlsOptions};
use tokio::sync::watch;

use super::tls::TlsMaterial;
use crate::certificates::InUse;
use crate::credentials::Credentials;

/// What connections are made with.
pub(super) struct Access {
    /// Everything but TLS and the user.
    options: ConnectOptions,
    /// Name and password.
    user: Option<(String, String)>,
    _credentials: Option<Credentials>,
    tls: Mutex<Tls>,
    /// Changes when connections that are there are to be left.
    anew: watch::Sender<()>,
}

struct Tls {
    material: TlsMaterial,
    options: Option<TlsOptions>,
    /// Of members that are spoken to over TLS.
    in_use: Option<InUse>,
    /// Grows with each renewal, and when connections are to be left.
    generation: u64,
    /// What was read last and cannot be used.
    refused: Option<TlsMaterial>,
}

impl Access {
    pub(super) fn new(options: ConnectOptions, material: TlsMaterial, tls: Option<TlsOptions>) -> Self {
        let in_use = tls.is_some().then(|| material.in_use());
        let tls = Mutex::new(Tls { material, options: tls, in_use, generation: 0, refused: None });
        Self { options, user: None, _credentials: None, tls, anew: watch::Sender::new(()) }
    }

    /// The same for a user with this name and password.
    pub(super) fn of_user(self, user: Option<(String, String)>) -> Self {
        let _credentials = user.as_ref().map(|(_, password)| Credentials::keep([password.clone()]));
        Self { user, _credentials, ..self }
    }

    /// Whether members are asked as a user.
    pub(super) const fn has_user(&self) -> bool {
        self.user.is_some()
    }

    /// `options` with which a token is asked for, if there is a user.
    pub(super) fn with_user(&self, options: ConnectOptions) -> ConnectOptions {
        match &self.user {
            Some((name, password)) => options.with_user(name, password),
            None => options,
        }
    }

    /// The options for a connection without a user, and which generation of TLS material they hold. The member's certificate must bear
    /// `name`, if that is given, instead of its host.
    pub(super) fn options(&self, name: Option<&str>) -> (u64, ConnectOptions) {
        let tls = self.tls();
        let options = tls.options.clone().map(|options| match name {
            Some(name) => options.domain_name(name),
            None => options,
        });
        let all = self.options.clone();
        (tls.generation, options.map_or(all.clone(), |options| all.with_tls(options)))
    }

    /// The generation of the material that is used now.
    pub(super) fn generation(&self) -> u64 {
        self.tls().generation
    }

    /// Has every connection left, and whoever waits on one.
    pub(super) fn dial_anew(&self) {
        {
            let mut tls = self.tls();
            tls.generation = tls.generation.wrapping_add(1);
        }
        self.anew.send_replace(());
    }

    /// Changes when connections that are there now are to be left.
    pub(super) fn left(&self) -> watch::Receiver<()> {
        self.anew.subscribe()
    }

    /// Reads the files again and uses what they hold, if that differs and is in order.
    pub(super) async fn reload(&self) {
        let files = {
            let tls = self.tls();
            if !tls.material.any() {
                return;
            }
            tls.material.files()
        };
        // A file can lie on a file system that hangs; the caller's time limit ends this.
        if let Ok(read) = tokio::task::spawn_blocking(move || files.read()).await {
            self.tls().take(read);
        }
    }

    fn tls(&self) -> MutexGuard<'_, Tls> {
        // Nothing in here panics half-way through a change.
        self.tls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tls {
    fn take(&mut self, read: TlsMaterial) {
        if read == self.material {
            self.refused = None;
            return;
        }
        if self.refused.as_ref() == Some(&read) {
            return;
        }
        match read.options() {
            Ok(options) => {
                tracing::info!(files = ?read, "TLS files towards etcd were renewed and are used from now on");
                self.options = Some(options);
                self.in_use = Some(read.in_use());
                self.generation = self.generation.wrapping_add(1);
                self.material = read;
                self.refused = None;
            }
            Err(problems) => {
                let problems = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                tracing::warn!(
                    problems,
                    "TLS files towards etcd were changed and cannot be used; the earlier ones stay"
                );
                self.refused = Some(read);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::tls::TlsFiles;
    use super::*;

    fn write(folder: &Path, name: &str) {
        let certified = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        std::fs::write(folder.join("cert"), certified.cert.pem()).unwrap();
        std::fs::write(folder.join("key"), certified.signing_key.serialize_pem()).unwrap();
    }

    #[tokio::test]
    async fn renewed_files_are_used_and_half_of_a_renewal_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| Some(folder.path().join(name));
        write(folder.path(), "first");
        let material = TlsFiles { ca: path("cert"), cert: path("cert"), key: path("key") }.read();
        let access = Access::new(ConnectOptions::new(), material.clone(), material.options().ok());
        access.reload().await;
        assert_eq!(access.generation(), 0, "nothing changed");
        let old_key = std::fs::read(folder.path().join("key")).unwrap();
        write(folder.path(), "second");
        let new_key = std::fs::read(folder.path().join("key")).unwrap();
        std::fs::write(folder.path().join("key"), old_key).unwrap();
        access.reload().await;
        assert_eq!(access.generation(), 0, "the key is still the old one");
        std::fs::write(folder.path().join("key"), new_key).unwrap();
        access.reload().await;
        assert_eq!(access.generation(), 1);
        std::fs::remove_file(folder.path().join("cert")).unwrap();
        access.reload().await;
        assert_eq!(access.generation(), 1);
    }
}
