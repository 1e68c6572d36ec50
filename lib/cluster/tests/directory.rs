//! The directory source against a real file system and inotify: what a consumer knows after an operator, an
//! editor or a configuration tool has been at work.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests; clippy's exception covers test functions only"
)]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use cluster::manifest::Kind;
use cluster::{Event, directory};
use common::Consumer;

const KINDS: [Kind; 2] = [
    Kind { group: "", versions: &["v1"], name: "Service", namespaced: true },
    Kind { group: "discovery.k8s.io", versions: &["v1"], name: "EndpointSlice", namespaced: true },
];

impl Consumer {
    fn of(dir: &Path) -> Self {
        directory::watch(dir, &KINDS, 1).into()
    }

    fn keys(&self) -> Vec<&str> {
        self.snapshot.entries().keys().map(String::as_str).collect()
    }

    fn port(&self, key: &str) -> Option<u64> {
        let object: serde_json::Value = serde_json::from_slice(self.snapshot.get(key)?).ok()?;
        object.pointer("/spec/ports/0/port")?.as_u64()
    }

    /// Whether a key was deleted, by name or by a listing that left it out.
    fn ever_deleted(&self, key: &str) -> bool {
        self.log.iter().any(|event| matches!(event, Event::Delete { key: deleted, .. } if deleted == key))
    }
}

fn service(name: &str, port: u16) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  ports:\n  - port: {port}\n")
}

#[tokio::test]
async fn files_are_listed_and_followed() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("web.yaml"), service("web", 80)).unwrap();
    fs::write(dir.path().join("README"), "not a manifest").unwrap();
    let mut consumer = Consumer::of(dir.path());
    consumer.until("the listing", |c| c.snapshot.is_complete()).await;
    assert_eq!(consumer.keys(), ["Service/default/web"]);

    fs::write(dir.path().join("db.json"), r#"{"kind":"Service","metadata":{"name":"db","namespace":"shop"}}"#).unwrap();
    consumer.until("a new file", |c| c.snapshot.get("Service/shop/db").is_some()).await;
    fs::write(dir.path().join("web.yaml"), service("web", 8080)).unwrap();
    consumer.until("a rewritten file", |c| c.port("Service/default/web") == Some(8080)).await;
    fs::remove_file(dir.path().join("web.yaml")).unwrap();
    consumer.until("a removed file", |c| c.snapshot.get("Service/default/web").is_none()).await;
    assert_eq!(consumer.keys(), ["Service/shop/db"]);
}

#[tokio::test]
async fn an_editors_rename_replaces_a_file_without_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("web.yaml");
    fs::write(&target, service("web", 80)).unwrap();
    let mut consumer = Consumer::of(dir.path());
    consumer.until("the listing", |c| c.snapshot.is_complete()).await;
    for port in 81..91 {
        // vim: a swap file, a probe file, the old text as backup, the new one renamed over it.
        fs::write(dir.path().join(".web.yaml.swp"), "junk: [").unwrap();
        fs::write(dir.path().join("4913"), "").unwrap();
        fs::copy(&target, dir.path().join("web.yaml~")).unwrap();
        fs::write(dir.path().join("web.yaml.new"), service("web", port)).unwrap();
        fs::rename(dir.path().join("web.yaml.new"), &target).unwrap();
    }
    consumer.until("the last text", |c| c.port("Service/default/web") == Some(90)).await;
    assert!(!consumer.ever_deleted("Service/default/web"));
    assert!(consumer.snapshot.invalid().is_empty());
}

#[tokio::test]
async fn a_file_that_is_put_aside_counts_until_its_successor_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (target, aside) = (dir.path().join("web.yaml"), dir.path().join("web.yaml~"));
    fs::write(&target, service("web", 80)).unwrap();
    let mut consumer = Consumer::of(dir.path());
    consumer.until("the listing", |c| c.snapshot.is_complete()).await;
    for round in 0..3_u16 {
        fs::rename(&target, &aside).unwrap();
        // Whatever the scan meanwhile found is reported before this.
        let other = format!("Service/default/other-{round}");
        fs::write(dir.path().join("other.yaml"), service(&format!("other-{round}"), 1)).unwrap();
        consumer.until("another file", |c| c.snapshot.get(other.as_str()).is_some()).await;
        assert!(!consumer.ever_deleted("Service/default/web"));
        fs::write(&target, service("web", 81 + round)).unwrap();
        consumer.until("the new text", |c| c.port("Service/default/web") == Some(81 + u64::from(round))).await;
    }
    assert!(!consumer.ever_deleted("Service/default/web"));
    // Without a successor it is missed after all, and one that leaves the directory at once.
    fs::rename(&target, dir.path().join("web.yaml.off")).unwrap();
    consumer.until("the end of its time", |c| c.snapshot.get("Service/default/web").is_none()).await;
    fs::write(&target, service("web", 90)).unwrap();
    consumer.until("the file is back", |c| c.snapshot.get("Service/default/web").is_some()).await;
    fs::remove_file(&target).unwrap();
    consumer.until("the removal", |c| c.snapshot.get("Service/default/web").is_none()).await;
}

#[tokio::test]
async fn a_file_is_not_read_while_it_is_being_written() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.yaml");
    fs::write(&path, service("web", 80)).unwrap();
    let mut consumer = Consumer::of(dir.path());
    consumer.until("the listing", |c| c.snapshot.is_complete()).await;

    // Truncated and half written: without care this is an empty manifest, then a malformed one.
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(b"kind: Service\nmetadata: [torn").unwrap();
    file.sync_all().unwrap();
    // Another file makes the source read the directory meanwhile.
    fs::write(dir.path().join("other.yaml"), service("other", 1)).unwrap();
    consumer.until("the other file", |c| c.snapshot.get("Service/default/other").is_some()).await;
    // Whatever that scan found is reported before what the next one finds.
    fs::write(dir.path().join("third.yaml"), service("third", 1)).unwrap();
    consumer.until("a third file", |c| c.snapshot.get("Service/default/third").is_some()).await;
    assert_eq!(consumer.port("Service/default/web"), Some(80));
    assert!(consumer.snapshot.invalid().is_empty());

    drop(file);
    consumer.until("the torn text is reported once closed", |c| c.snapshot.invalid().contains_key("web.yaml")).await;
    assert_eq!(consumer.port("Service/default/web"), Some(80), "the last good object stays");
    assert!(!consumer.ever_deleted("Service/default/web"));
}

#[tokio::test]
async fn a_malformed_file_is_reported_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), service("a", 1)).unwrap();
    fs::write(dir.path().join("broken.yaml"), "kind: Service\n").unwrap();
    let mut consumer = Consumer::of(dir.path());
    consumer.until("the listing", |c| c.snapshot.is_complete()).await;
    assert_eq!(consumer.keys(), ["Service/default/a"]);
    let reason = consumer.snapshot.invalid().get("broken.yaml").unwrap();
    assert!(reason.contains("document 1: metadata: missing"), "{reason}");

    fs::write(dir.path().join("a.yaml"), service("a", 2)).unwrap();
    consumer.until("the good file goes on", |c| c.port("Service/default/a") == Some(2)).await;
    fs::write(dir.path().join("broken.yaml"), service("b", 1)).unwrap();
    consumer.until("the file is mended", |c| c.snapshot.invalid().is_empty()).await;
    consumer.until("and counts", |c| c.snapshot.get("Service/default/b").is_some()).await;
}

#[tokio::test]
async fn objects_of_other_kinds_are_noted_and_make_no_file_unreadable() {
    // As coredns.yaml of the Kubernetes add-ons: what another program reads stands beside the Service.
    const COREDNS: &str = "apiVersion: v1
kind: ServiceAccount
metadata: {name: coredns, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: 'system:coredns'}
rules: [{apiGroups: [''], resources: [endpoints], verbs: [list, watch]}]
---
apiVersion: v1
kind: List
items:
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: coredns, namespace: kube-system}}
- {apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: kube-dns, namespace: kube-system}}
- {apiVersion: v1, kind: Service, metadata: {name: kube-dns, namespace: kube-system}, spec: {ports: [{port: 53}]}}
";
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("coredns.yaml"), COREDNS).unwrap();
    let mut consumer = Consumer::of(dir.path());
    consumer.until("the listing", |c| c.snapshot.is_complete()).await;
    assert_eq!(consumer.keys(), ["Service/kube-system/kube-dns"]);
    assert_eq!(consumer.port("Service/kube-system/kube-dns"), Some(53));
    assert!(consumer.snapshot.invalid().is_empty(), "{:?}", consumer.snapshot.invalid());
    let notes = consumer.snapshot.notes()["coredns.yaml"].join("; ");
    for title in
        ["ServiceAccount coredns", "ClusterRole system:coredns", "Deployment coredns", "Service kube-dns (serving"]
    {
        assert!(notes.contains(title), "{notes}");
    }
    fs::write(dir.path().join("coredns.yaml"), COREDNS.replace("port: 53", "port: 54")).unwrap();
    consumer.until("the change", |c| c.port("Service/kube-system/kube-dns") == Some(54)).await;
    let said = consumer.log.iter().filter(|event| matches!(event, Event::Notes { .. })).count();
    assert_eq!(said, 1, "the same notes are said once");
}

#[tokio::test]
async fn what_one_file_changes_ends_with_one_commit() {
    let slice = |port: &str| {
        format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: web-1}}, ports: [{{name: {port}}}]}}"
        )
    };
    let both = |port: &str| format!("{}    name: {port}\n---\n{}\n", service("web", 80), slice(port));
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("web.yaml"), both("http")).unwrap();
    let mut consumer = Consumer::of(dir.path());
    consumer.until("the listing", |c| c.snapshot.is_complete()).await;
    let listed = consumer.log.len();
    fs::write(dir.path().join("web.yaml"), both("www")).unwrap();
    consumer.until("the end of the change", |c| c.log.last() == Some(&Event::Commit)).await;
    let keys: Vec<_> = consumer.log[listed..].iter().filter_map(Event::key).collect();
    assert_eq!(keys, ["EndpointSlice/default/web-1", "Service/default/web"]);
    assert_eq!(consumer.log.iter().filter(|event| **event == Event::Commit).count(), 1);
}

#[tokio::test]
async fn what_is_no_regular_file_stops_nobody() {
    let dir = tempfile::tempdir().unwrap();
    nix::unistd::mkfifo(&dir.path().join("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(dir.path().join("folder.yaml")).unwrap();
    symlink("/nowhere", dir.path().join("dangling.yaml")).unwrap();
    fs::File::create(dir.path().join("huge.yaml")).unwrap().set_len(17 << 20).unwrap();
    fs::write(dir.path().join("web.yaml"), service("web", 80)).unwrap();
    let mut consumer = Consumer::of(dir.path());
    consumer.until("the listing", |c| c.snapshot.is_complete()).await;
    assert_eq!(consumer.keys(), ["Service/default/web"]);
    let invalid: Vec<_> = consumer.snapshot.invalid().keys().map(String::as_str).collect();
    assert_eq!(invalid, ["dangling.yaml", "huge.yaml", "pipe.yaml"]);
}

#[tokio::test]
async fn a_missing_directory_is_reported_and_waited_for() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("services");
    let mut consumer = Consumer::of(&dir);
    consumer.until("the report", |c| c.snapshot.lost().is_some()).await;
    let lost = consumer.snapshot.lost().unwrap().to_string();
    assert!(lost.contains(dir.to_str().unwrap()) && lost.contains("No such file or directory"), "{lost}");
    assert!(!consumer.snapshot.is_complete(), "nothing was listed");

    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("web.yaml"), service("web", 80)).unwrap();
    consumer.until("the listing", |c| c.snapshot.is_complete() && c.keys() == ["Service/default/web"]).await;
    assert_eq!(consumer.snapshot.lost(), None);
}

#[tokio::test]
async fn a_directory_that_goes_away_removes_nothing_until_it_is_back() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("services");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.yaml"), service("a", 1)).unwrap();
    fs::write(dir.join("b.yaml"), service("b", 1)).unwrap();
    let mut consumer = Consumer::of(&dir);
    consumer.until("the listing", |c| c.snapshot.is_complete()).await;

    fs::rename(&dir, root.path().join("away")).unwrap();
    consumer.until("the report", |c| c.snapshot.lost().is_some()).await;
    assert_eq!(consumer.keys(), ["Service/default/a", "Service/default/b"]);

    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("b.yaml"), service("b", 2)).unwrap();
    let only_b = |c: &Consumer| c.keys() == ["Service/default/b"] && c.port("Service/default/b") == Some(2);
    consumer.until("the new directory counts", only_b).await;
    assert_eq!(consumer.snapshot.lost(), None);
}

#[tokio::test]
async fn a_config_map_mount_is_followed_through_its_links() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    let version = |name: &str, port| {
        fs::create_dir(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("web.yaml"), service("web", port)).unwrap();
    };
    version("..v1", 80);
    symlink("..v1", dir.join("..data")).unwrap();
    symlink("..data/web.yaml", dir.join("web.yaml")).unwrap();
    let mut consumer = Consumer::of(dir);
    consumer.until("the listing", |c| c.snapshot.is_complete()).await;
    assert_eq!(consumer.port("Service/default/web"), Some(80));

    // The kubelet's atomic writer: a new folder, then the `..data` link renamed over the old one.
    version("..v2", 8080);
    symlink("..v2", dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    consumer.until("the new version", |c| c.port("Service/default/web") == Some(8080)).await;
    assert!(!consumer.ever_deleted("Service/default/web"));
}

#[tokio::test]
async fn a_storm_of_changes_that_overruns_the_kernels_queue_ends_in_the_truth() {
    const FILES: u16 = 300;
    const ROUNDS: u16 = 30;
    // In memory where possible: ext4 flushes a file that is truncated and rewritten, 9,000 times.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let file = |index: u16| dir.path().join(format!("s{index}.yaml"));
    fs::write(dir.path().join("odd.yaml"), "").unwrap();
    let mut consumer = Consumer::of(dir.path());
    consumer.until("the listing", |c| c.snapshot.is_complete()).await;
    // Nobody reads meanwhile: this runtime has one thread and it is here. A new file gives three events, a
    // rewritten one two, 18,300 in all; fs.inotify.max_queued_events is 16,384 by default. The single event in
    // front makes the cut fall between a modification and its close.
    fs::set_permissions(dir.path().join("odd.yaml"), fs::Permissions::from_mode(0o600)).unwrap();
    for round in 0..ROUNDS {
        for index in 0..FILES {
            fs::write(file(index), service(&format!("s{index}"), 1000 + round)).unwrap();
        }
    }
    fs::remove_file(file(7)).unwrap();
    let last = u64::from(1000 + ROUNDS - 1);
    let is_last = |c: &Consumer, index: u16| c.port(&format!("Service/default/s{index}")) == Some(last);
    let others = || (0..FILES).filter(|index| *index != 7);
    consumer.until("every last text", |c| c.keys().len() == others().count() && others().all(|i| is_last(c, i))).await;
}
