//! `certs renew`: what is issued anew, why, and what hosts must start again for it; then it is written.
//!
//! Invariant: everything is said before anything is asked, and asked before anything is written; nothing but certificates,
//! keys and the files that hold them differs afterwards, so that no other change of the topology comes along unseen.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::args::CertsRenew;
use super::{said, verify};
use crate::output::{Changes, Folder, HostChanges, assemble};
use crate::pki::{Ca, Issued, Renewal, Store, Time, wanted, wanted_by_operators};
use crate::render::PKI;
use crate::topology::Topology;

/// Days before its end from which a CA is spoken of: as long as what it signs may live.
const CA_DAYS: i64 = 365;

/// Makes certificates anew; `confirm` asks who sits there.
///
/// # Errors
/// When the topology or the folder cannot be read, other files would differ, or something cannot be written.
pub(super) fn run(
    asked: &CertsRenew,
    now: Time,
    confirm: impl FnOnce(&str) -> Result<bool, String>,
    out: &mut impl Write,
) -> Result<ExitCode, String> {
    let Some(topology) = verify::topology(&asked.file, out)? else { return Ok(ExitCode::FAILURE) };
    let cluster = topology.cluster.as_ref().map_or_else(String::new, |cluster| cluster.value.to_string());
    let mut folder = Folder::open(&asked.output, &cluster)?;
    let before = folder.manifests();
    if before.is_empty() {
        return Err(format!("{} has no host; write it with `netdadm render` first", asked.output.display()));
    }
    let given = topology.deviations.pki.as_ref().map(|folder| PathBuf::from(folder.value.to_string()));
    let store = Store::open(Some(folder.path()), given.as_deref(), now).map_err(|fault| fault.to_string())?;
    let mut store = store.renewing(renewal(asked, &topology)?);
    let files = assemble(&topology, &mut store).map_err(|fault| fault.to_string())?;
    let changes = Changes::between(&before, &files.manifests);
    only_certificates(&changes, &asked.output)?;
    said(out, &plan(&store, &changes, now, &asked.output))?;
    if store.issued().is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    if !asked.yes && !confirm("write them?")? {
        return Err("nothing was changed".to_owned());
    }
    folder.write(&files)?;
    said(out, &format!("written into {}\n", asked.output.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Which pairs are made anew although they are good.
fn renewal(asked: &CertsRenew, topology: &Topology) -> Result<Renewal, String> {
    if asked.all {
        return Ok(Renewal::All);
    }
    let requests = topology.hosts.iter().flat_map(|host| wanted(topology, host)).chain(wanted_by_operators(topology));
    let known: BTreeSet<String> = requests.flat_map(|request| [request.path.clone(), request.label()]).collect();
    if let Some(name) = asked.only.iter().find(|name| !known.contains(*name)) {
        let known = known.into_iter().filter(|name| !name.contains(": ")).collect::<Vec<_>>().join(", ");
        return Err(format!("--only {name}: no such certificate; accepted: {known}, or one host's as \"HOST: PATH\""));
    }
    Ok(if asked.only.is_empty() { Renewal::Due } else { Renewal::Only(asked.only.clone()) })
}

/// Refuses a renewal that would bring other changes along.
fn only_certificates(changes: &Changes, folder: &Path) -> Result<(), String> {
    let other = |host: &HostChanges| {
        let because = host.restart.iter().chain(&host.reload).flat_map(|because| &because.files);
        let file = because.chain(&host.files).find(|path| !path.starts_with(PKI));
        let unit = host.start.iter().chain(&host.stop).next();
        let what = file.map(|path| path.display().to_string()).or_else(|| unit.cloned())?;
        Some(format!("{what} of {}", host.host))
    };
    changes.0.iter().find_map(other).map_or(Ok(()), |what| {
        let folder = folder.display();
        Err(format!("the topology is not the one of {folder}: {what} would change too; run `netdadm render` first"))
    })
}

/// What is issued and why, which authorities end soon, and what each host must do.
fn plan(store: &Store, changes: &Changes, now: Time, folder: &Path) -> String {
    // Writing into a text does not fail.
    let mut text = String::new();
    for ca in [Ca::Cluster, Ca::Etcd, Ca::FrontProxy] {
        let end = store.authority(ca).certificate.end;
        let days = now.days_until(end);
        if days < CA_DAYS {
            let _ = writeln!(
                text,
                "{ca} ends at {end}, in {days} days, and with it all that it signs. It is changed in three passes: every host \
                 trusts both, then gets certificates of the new one, then trusts that alone"
            );
        }
    }
    for Issued { host, path, reason } in store.issued() {
        let host = host.as_ref().map_or_else(|| "operators".to_owned(), Clone::clone);
        let _ = writeln!(text, "issue {host}: {path}: {reason}");
    }
    if store.issued().is_empty() {
        text += "nothing is due: every certificate has more than a third of its life left; --all or --only issue it anyway\n";
        return text;
    }
    if !changes.0.is_empty() {
        let folder = folder.display();
        let _ = writeln!(text, "then on one host after the other, in this order (netdadm apply --host NAME {folder}):");
    }
    changes.0.iter().for_each(|host| steps(host, &mut text));
    text
}

/// What a host must do: the units that read certificates only at their start; of the others nobody is disturbed.
fn steps(host: &HostChanges, text: &mut String) {
    let name = &host.host;
    for because in &host.restart {
        let _ = writeln!(text, "  {name}: restart {} for {}", because.unit, short(&because.files));
    }
    for because in &host.reload {
        let _ = writeln!(text, "  {name}: reload {} for {}", because.unit, short(&because.files));
    }
    let read: Vec<PathBuf> =
        host.files.iter().filter(|path| path.extension().is_some_and(|suffix| suffix == "crt")).cloned().collect();
    if !read.is_empty() {
        let _ = writeln!(text, "  {name}: no restart for {}: they are read again", short(&read));
    }
}

/// The files below the folder of certificates.
fn short(files: &[PathBuf]) -> String {
    let name = |path: &PathBuf| path.strip_prefix(PKI).unwrap_or(path).display().to_string();
    files.iter().map(name).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;
    use crate::command;

    /// A rendered folder of the reference cluster.
    struct Rendered(tempfile::TempDir);

    impl Rendered {
        fn new() -> Self {
            let rendered = Self(tempfile::tempdir().unwrap());
            let text =
                fs::read_to_string(format!("{}/fuzz/topology/reference.yaml", env!("CARGO_MANIFEST_DIR"))).unwrap();
            fs::write(rendered.0.path().join("cluster.yaml"), text).unwrap();
            rendered.netdadm(&["render"]).1.unwrap();
            rendered
        }

        fn netdadm(&self, words: &[&str]) -> (String, Result<ExitCode, String>) {
            let (file, folder) = (self.0.path().join("cluster.yaml"), self.0.path().join("out"));
            let places = ["-f", file.to_str().unwrap(), "-o", folder.to_str().unwrap()];
            let mut out = Vec::new();
            let status = command::run(["netdadm"].iter().chain(words).chain(&places).map(Into::into), &mut out);
            (String::from_utf8(out).unwrap().replace(&format!("{}/", self.0.path().display()), ""), status)
        }

        /// `days` from now, by somebody who agrees or does not.
        fn renew(&self, days: i64, only: &[&str], agrees: bool) -> (String, Result<ExitCode, String>) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            let asked = CertsRenew {
                file: self.0.path().join("cluster.yaml"),
                output: self.0.path().join("out"),
                only: only.iter().map(ToString::to_string).collect(),
                all: false,
                yes: false,
            };
            let mut out = Vec::new();
            let status = run(&asked, Time::after_1970(now).plus_days(days), |_| Ok(agrees), &mut out);
            (String::from_utf8(out).unwrap().replace(&format!("{}/", self.0.path().display()), ""), status)
        }

        /// Every file with its content.
        fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
            let (mut found, mut folders) = (BTreeMap::new(), vec![self.0.path().join("out")]);
            while let Some(folder) = folders.pop() {
                for entry in fs::read_dir(folder).unwrap() {
                    let path = entry.unwrap().path();
                    if path.is_dir() {
                        folders.push(path);
                    } else {
                        found.insert(
                            path.strip_prefix(self.0.path().join("out")).unwrap().to_path_buf(),
                            fs::read(&path).unwrap(),
                        );
                    }
                }
            }
            found
        }
    }

    /// The files that differ, without the folder's own books.
    fn differing(before: &BTreeMap<PathBuf, Vec<u8>>, after: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<String> {
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        let differ = before.iter().filter(|(path, bytes)| after.get(*path) != Some(bytes));
        differ.map(|(path, _)| path.display().to_string()).filter(|path| !path.ends_with(".json")).collect()
    }

    #[test]
    fn what_is_not_due_is_left_and_nobody_is_asked() {
        let rendered = Rendered::new();
        let before = rendered.files();
        let (printed, status) = rendered.renew(200, &[], false);
        assert_eq!(status, Ok(ExitCode::SUCCESS));
        assert!(printed.starts_with("nothing is due"), "{printed}");
        assert_eq!(rendered.files(), before);
    }

    #[test]
    fn what_is_asked_for_is_issued_alone_once_it_was_agreed_to() {
        let rendered = Rendered::new();
        let before = rendered.files();
        let only = ["hdss7-11: apiserver-etcd-client", "etcd/server"];
        let (_, status) = rendered.renew(0, &only, false);
        assert_eq!(status, Err("nothing was changed".to_owned()));
        assert_eq!(rendered.files(), before);
        let (printed, status) = rendered.renew(0, &only, true);
        assert_eq!(status, Ok(ExitCode::SUCCESS));
        for line in [
            "issue hdss7-12: etcd/server: it was asked for",
            "issue hdss7-11: apiserver-etcd-client: it was asked for",
            "  hdss7-11: restart kube-apiserver.service for apiserver-etcd-client.crt",
            "  hdss7-12: no restart for etcd/server.crt: they are read again",
            "written into out",
        ] {
            assert!(printed.lines().any(|one| one == line), "{line} in {printed}");
        }
        // Members of etcd come before API servers.
        assert!(printed.find("  hdss7-22:").unwrap() < printed.find("  hdss7-11:").unwrap(), "{printed}");
        let pki = |host: &str, path: &str| format!("hosts/{host}/root/etc/kubernetes/pki/{path}");
        let mut expected =
            vec![pki("hdss7-11", "apiserver-etcd-client.crt"), pki("hdss7-11", "apiserver-etcd-client.key")];
        for host in ["hdss7-12", "hdss7-21", "hdss7-22"] {
            expected.extend([pki(host, "etcd/server.crt"), pki(host, "etcd/server.key")]);
        }
        assert_eq!(differing(&before, &rendered.files()), expected);
        // What was written is what the next render would write.
        let after = rendered.files();
        rendered.netdadm(&["render"]).1.unwrap();
        assert_eq!(rendered.files(), after);
    }

    #[test]
    fn what_is_due_is_all_of_a_year_and_authorities_stay() {
        let rendered = Rendered::new();
        let before = rendered.files();
        let (printed, status) = rendered.renew(300, &[], true);
        assert_eq!(status, Ok(ExitCode::SUCCESS));
        assert!(printed.contains("issue operators: admin: less than a third of its life is left, "), "{printed}");
        let changed = differing(&before, &rendered.files());
        assert!(changed.contains(&"pki/admin.conf".to_owned()), "{changed:?}");
        assert!(
            !changed.iter().any(|path| path.ends_with("/ca.crt") || path.ends_with("ca.key") || path.contains("/sa.")),
            "{changed:?}"
        );
        assert!(!printed.contains("PRIVATE KEY"));
    }

    #[test]
    fn authorities_that_end_within_what_they_sign_are_spoken_of() {
        let rendered = Rendered::new();
        let (printed, _) = rendered.renew(3600, &[], false);
        assert!(
            printed.contains("etcd's CA ends at ") && printed.contains("It is changed in three passes"),
            "{printed}"
        );
    }

    #[test]
    fn a_changed_topology_is_rendered_first() {
        let rendered = Rendered::new();
        let file = rendered.0.path().join("cluster.yaml");
        let text = fs::read_to_string(&file).unwrap().replace("172.7.0.0/16", "172.8.0.0/16");
        fs::write(&file, text).unwrap();
        let before = rendered.files();
        let refused = rendered.renew(300, &[], true).1.unwrap_err();
        assert!(refused.contains("would change too; run `netdadm render` first"), "{refused}");
        assert_eq!(rendered.files(), before);
    }

    #[test]
    fn a_name_that_is_no_certificate_and_a_folder_without_hosts_are_named() {
        let rendered = Rendered::new();
        let refused = rendered.renew(0, &["etcd/servers"], false).1.unwrap_err();
        assert!(
            refused.contains("--only etcd/servers: no such certificate; accepted: admin, apiserver, "),
            "{refused}"
        );
        fs::remove_dir_all(rendered.0.path().join("out")).unwrap();
        let refused = rendered.netdadm(&["certs", "renew", "--yes"]).1.unwrap_err();
        assert!(refused.contains("has no host; write it with `netdadm render` first"), "{refused}");
    }

    #[test]
    fn yes_answers_and_names_may_be_given_several_times() {
        let rendered = Rendered::new();
        let (printed, status) =
            rendered.netdadm(&["certs", "renew", "--yes", "--only", "scheduler", "--only", "kubelet"]);
        assert_eq!(status, Ok(ExitCode::SUCCESS));
        assert!(
            printed.contains("issue hdss7-11: scheduler:") && printed.contains("issue hdss7-22: kubelet:"),
            "{printed}"
        );
        assert!(!printed.contains("[y/N]") && printed.ends_with("written into out\n"), "{printed}");
    }
}
