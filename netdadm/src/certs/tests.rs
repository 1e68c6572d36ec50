//! Rows of folders that were written here.

use std::fs;
use std::path::Path;

use super::*;
use crate::kubeconfig::{self, Credentials, Trust};
use crate::pki::{Ca, Request, Store, suffixed};

/// Some day.
const NOW: Time = Time::new(1_795_791_600);

fn put(place: &Path, suffix: &str, text: &str) {
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    fs::write(suffixed(place, suffix), text).unwrap();
}

/// kubeadm's folder of a host below `root`, issued `days` ago.
fn kubernetes(root: &Path, days: i64) -> Store {
    let mut store = Store::open(None, None, NOW.plus_days(-days)).unwrap();
    let pki = root.join("etc/kubernetes/pki");
    for ca in [Ca::Cluster, Ca::Etcd] {
        put(&pki.join(ca.path()), "crt", &store.authority(ca).certificate_pem);
    }
    let names = ["m1", "10.4.7.21"].map(str::to_owned);
    let server = Request::client("m1", "etcd/server", Ca::Etcd, "m1").serving(Usage::Both, names);
    let kubelet = Request::client("m1", "kubelet-client", Ca::Cluster, "system:node:m1").of(Some("system:nodes"));
    for request in [server, kubelet] {
        let pair = store.issue(&request).unwrap();
        put(&pki.join(&request.path), "crt", &pair.certificate_pem);
        put(&pki.join(&request.path), "key", pair.key_pem.expose());
    }
    let admin = store.issue(&Request::client("m1", "admin", Ca::Cluster, "kubernetes-admin")).unwrap().clone();
    let trust = Trust::Inline("");
    let config =
        kubeconfig::render("a", "https://10.4.7.11:6443", trust, "kubernetes-admin", Credentials::Inline(&admin));
    put(&root.join("etc/kubernetes/admin"), "conf", config.expose());
    store
}

fn problem(rows: &[Row], file: &str) -> Option<String> {
    rows.iter().find(|row| row.file.ends_with(file)).and_then(|row| row.problem.clone())
}

#[test]
fn every_certificate_of_a_host_is_a_row_and_what_ends_first_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    kubernetes(folder.path(), 340);
    let rows = host(folder.path(), NOW);
    let shown: Vec<String> = rows
        .iter()
        .map(|row| {
            let file = row.file.rsplit("etc/kubernetes/").next().unwrap();
            let groups = row.organizations.join(" ");
            format!(
                "{:?} {file} {} {groups} [{}] {} by {}",
                row.days,
                row.subject,
                row.names.join(" "),
                row.usage,
                row.authority
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "Some(25) admin.conf kubernetes-admin  [] client by kubernetes",
            "Some(25) pki/etcd/server.crt m1  [m1 10.4.7.21] server and client by etcd-ca",
            "Some(25) pki/kubelet-client.crt system:node:m1 system:nodes [] client by kubernetes",
            "Some(3310) pki/ca.crt kubernetes  [] authority by kubernetes",
            "Some(3310) pki/etcd/ca.crt etcd-ca  [] authority by etcd-ca",
        ]
    );
    assert!(rows.iter().all(|row| row.problem.is_none()), "{rows:?}");
    assert_eq!(rows.iter().filter(|row| row.is_due(30)).count(), 3);
    assert_eq!(rows.iter().filter(|row| row.is_due(25)).count(), 0);
    assert_eq!(host(folder.path(), NOW.plus_days(26))[0].days, Some(-1));
}

#[test]
fn what_does_not_belong_together_is_named() {
    let folder = tempfile::tempdir().unwrap();
    kubernetes(folder.path(), 1);
    let other = tempfile::tempdir().unwrap();
    let store = kubernetes(other.path(), 0);
    let place = |name: &str| folder.path().join("etc/kubernetes/pki").join(name);
    let copy =
        |name: &str| assert_ne!(0, fs::copy(other.path().join("etc/kubernetes/pki").join(name), place(name)).unwrap());
    copy("etcd/server.key");
    copy("kubelet-client.crt");
    copy("kubelet-client.key");
    fs::write(place("apiserver.crt"), "garbage").unwrap();
    fs::write(place("front.crt"), store.service_account().1).unwrap();
    let rows = host(folder.path(), NOW);
    assert!(problem(&rows, "etcd/server.crt").unwrap().starts_with("its key does not fit"), "{rows:?}");
    assert!(problem(&rows, "kubelet-client.crt").unwrap().contains("another CA's of that name"), "{rows:?}");
    assert!(problem(&rows, "apiserver.crt").unwrap().starts_with("it has no PEM block `CERTIFICATE`"), "{rows:?}");
    assert_eq!(problem(&rows, "ca.crt"), None);
    let early = host(other.path(), NOW.plus_days(-1));
    assert!(problem(&early, "etcd/server.crt").unwrap().starts_with("it is not valid before 2"), "{early:?}");
    assert!(rows[0].ends.is_none(), "what cannot be read comes first: {rows:?}");
    assert!(rows.iter().filter(|row| row.problem.is_some()).all(|row| row.is_due(0)));
}

#[test]
fn a_bundle_and_a_file_with_its_key_and_a_kubeconfig_that_names_files_are_read() {
    let folder = tempfile::tempdir().unwrap();
    kubernetes(folder.path(), 1);
    let pki = folder.path().join("etc/kubernetes/pki");
    let text = |name: &str| fs::read_to_string(pki.join(name)).unwrap();
    // As kubelet keeps its own, and as a client sends its authority along.
    let current = format!("{}{}", text("kubelet-client.crt"), text("kubelet-client.key"));
    put(&folder.path().join("var/lib/kubelet/pki/kubelet-client-current"), "pem", &current);
    put(&folder.path().join("etc/etcd/chain"), "crt", &format!("{}{}", text("etcd/server.crt"), text("etcd/ca.crt")));
    put(&folder.path().join("etc/etcd/server-key"), "pem", &text("etcd/server.key"));
    let named = (pki.join("a.crt"), pki.join("a.key"));
    let config = kubeconfig::render("a", "https://a", Trust::Inline(""), "b", Credentials::Files(&named.0, &named.1));
    put(&folder.path().join("etc/kubernetes/scheduler"), "conf", config.expose());
    let rows = host(folder.path(), NOW);
    let count = |name: &str| rows.iter().filter(|row| row.file.contains(name)).count();
    assert_eq!((count("current.pem"), count("chain.crt"), count("server-key"), count("scheduler.conf")), (1, 2, 0, 0));
    assert!(rows.iter().all(|row| row.problem.is_none()), "{rows:?}");
}

#[test]
fn a_server_without_names_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = kubernetes(folder.path(), 0);
    let nameless = Request::client("m1", "b", Ca::Cluster, "m1").serving(Usage::Server, []);
    let pair = store.authority(Ca::Cluster).sign(&nameless, NOW).unwrap();
    put(&folder.path().join("etc/kubernetes/pki/nameless"), "crt", &pair.certificate_pem);
    assert!(problem(&host(folder.path(), NOW), "nameless.crt").unwrap().contains("no names beside its CN"));
}

#[test]
fn no_key_is_in_a_row() {
    let folder = tempfile::tempdir().unwrap();
    kubernetes(folder.path(), 0);
    let key = fs::read_to_string(folder.path().join("etc/kubernetes/pki/etcd/server.key")).unwrap();
    fs::write(folder.path().join("etc/kubernetes/pki/etcd/server.crt"), &key).unwrap();
    let rows = host(folder.path(), NOW);
    let printed = format!("{rows:?}{}", serde_json::to_string(&rows).unwrap());
    assert!(!key.lines().any(|line| !line.starts_with("-----") && printed.contains(&line[..20])), "{printed}");
}

#[test]
fn a_folder_that_cannot_be_listed_is_a_row_and_the_others_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    kubernetes(folder.path(), 10);
    fs::write(folder.path().join("etc/etcd"), "no folder").unwrap();
    let rows = host(folder.path(), NOW);
    let row = rows.iter().find(|row| row.file.ends_with("etc/etcd")).unwrap();
    assert!(row.problem.as_ref().is_some_and(|why| why.contains("cannot be listed: ")), "{row:?}");
    assert!(row.is_due(30));
    assert!(problem(&rows, "etcd/server.crt").is_none() && rows.len() > 3, "{rows:#?}");
}

#[test]
fn a_link_that_leads_to_no_certificate_any_more_is_a_row() {
    let folder = tempfile::tempdir().unwrap();
    kubernetes(folder.path(), 10);
    let pki = folder.path().join("var/lib/kubelet/pki");
    fs::create_dir_all(pki.join("folder.pem")).unwrap();
    std::os::unix::fs::symlink("folder.pem", pki.join("link.pem")).unwrap();
    std::os::unix::fs::symlink("kubelet-client-2026.pem", pki.join("kubelet-client-current.pem")).unwrap();
    let rows = host(folder.path(), NOW);
    assert_eq!(problem(&rows, "kubelet-client-current.pem").as_deref(), Some("it has gone"));
    assert!(!rows.iter().any(|row| row.file.ends_with("link.pem")), "{rows:#?}");
}
