//! The folder: written once, written again, changed, interrupted, and somebody else's.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::pending::{NEW, Pending};
use super::{Changes, Folder, Outcome, assemble};
use crate::check;
use crate::pki::{Store, Time};
use crate::topology::Topology;

const REFERENCE: &str = include_str!("../../../configs/clusters/reference.yaml");
const NOW: Time = Time::new(1_800_000_000);

fn topology(text: &str) -> Topology {
    let checked = check::text(text);
    checked.topology.unwrap_or_else(|| panic!("{:#?}", checked.findings))
}

/// Renders `text` into `path`: what became of the files, and what hosts must do.
fn render(text: &str, path: &Path) -> Result<(Outcome, Changes), String> {
    let topology = topology(text);
    let mut folder = Folder::open(path, &topology.cluster.as_ref().unwrap().value.to_string())?;
    let before = folder.manifests();
    let mut store = Store::open(Some(path), None, NOW).map_err(|fault| fault.to_string())?;
    let wanted = assemble(&topology, &mut store).map_err(|fault| fault.to_string())?;
    let outcome = folder.write(&wanted)?;
    Ok((outcome, Changes::between(&before, &wanted.manifests)))
}

/// Every file below `path` with its content, mode and time.
fn state(path: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u32, i64)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![path.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let (path, about) = entry.map(|entry| (entry.path(), entry.metadata().unwrap())).unwrap();
            if about.is_dir() {
                folders.push(path);
            } else {
                let content = fs::read(&path).unwrap();
                found
                    .insert(path, (content, about.mode() & 0o7777, about.mtime_nsec() + about.mtime() * 1_000_000_000));
            }
        }
    }
    found
}

fn contents(path: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u32)> {
    let relative = |file: PathBuf| file.strip_prefix(path).unwrap().to_path_buf();
    state(path).into_iter().map(|(file, (content, mode, _))| (relative(file), (content, mode))).collect()
}

#[test]
fn rendering_twice_touches_nothing_and_keys_are_their_owners() {
    let top = tempfile::tempdir().unwrap();
    let out = top.path().join("out");
    let (first, changes) = render(REFERENCE, &out).unwrap();
    assert_eq!((first.changed.len(), first.removed.len(), first.same), (0, 0, 0));
    assert_eq!(
        changes.0.iter().map(|host| host.host.as_str()).collect::<Vec<_>>(),
        ["hdss7-12", "hdss7-21", "hdss7-22", "hdss7-11"]
    );
    let before = state(&out);
    let (second, changes) = render(REFERENCE, &out).unwrap();
    assert_eq!(second, Outcome { same: first.new.len(), ..Outcome::default() });
    assert!(changes.0.is_empty());
    assert_eq!(before, state(&out), "not even the times");
    let mode = |path: &str| fs::metadata(out.join(path)).unwrap().permissions().mode() & 0o7777;
    for private in ["", "pki", "pki/etcd", "hosts", "hosts/hdss7-12"] {
        assert_eq!(mode(private), 0o700, "{private}");
    }
    assert_eq!(mode("hosts/hdss7-12/root/etc"), 0o755, "it is copied to /etc");
    let mut keys = 0;
    for (path, (content, mode, _)) in &before {
        let text = String::from_utf8_lossy(content);
        if text.contains("PRIVATE KEY")
            || path.extension().is_some_and(|suffix| suffix == "conf") && text.contains("kind: Config")
        {
            assert_eq!(*mode, 0o600, "{}", path.display());
            keys += 1;
        }
        let is_authority = path.ends_with("ca.key") || path.ends_with("front-proxy-ca.key");
        assert!(!is_authority || path.starts_with(out.join("pki")), "{}: no host signs", path.display());
    }
    assert!(keys > 20, "{keys}");
}

#[test]
fn manifests_hold_what_lies_below_the_root() {
    let top = tempfile::tempdir().unwrap();
    render(REFERENCE, top.path()).unwrap();
    let folder = Folder::open(top.path(), "reference").unwrap();
    let manifests = folder.manifests();
    assert_eq!(manifests.len(), 4);
    for (name, manifest) in manifests {
        let root = top.path().join("hosts").join(&name).join("root");
        let below: Vec<PathBuf> = contents(&root).into_keys().map(|path| Path::new("/").join(path)).collect();
        assert_eq!(below, manifest.files.keys().cloned().collect::<Vec<_>>(), "{name}");
        for (path, entry) in &manifest.files {
            let content = fs::read(root.join(path.strip_prefix("/").unwrap())).unwrap();
            assert_eq!(entry.sha256, host::manifest::Digest::of(&content), "{name}:{}", path.display());
        }
        for path in manifest.units.iter().flat_map(|unit| unit.restart.iter().chain(&unit.reload)) {
            assert!(manifest.files.contains_key(path), "{name}: a unit waits for {}", path.display());
        }
    }
}

#[test]
fn a_changed_topology_changes_what_it_concerns_and_names_the_units() {
    let top = tempfile::tempdir().unwrap();
    render(REFERENCE, top.path()).unwrap();
    let before = state(top.path());
    let flagged = format!("{REFERENCE}flags: {{kube-scheduler: {{v: 4}}}}\n");
    let (outcome, changes) = render(&flagged, top.path()).unwrap();
    let of_host = |path: &str| PathBuf::from("hosts/hdss7-11").join(path);
    let unit = "root/etc/systemd/system/kube-scheduler.service";
    assert_eq!(outcome.changed.into_iter().collect::<Vec<_>>(), [of_host("manifest.json"), of_host(unit)]);
    assert!(outcome.new.is_empty() && outcome.removed.is_empty());
    let [host] = changes.0.as_slice() else { panic!("{changes:?}") };
    assert_eq!(host.host, "hdss7-11");
    assert_eq!(
        host.restart.iter().map(|because| because.unit.as_str()).collect::<Vec<_>>(),
        ["kube-scheduler.service"]
    );
    assert!(host.start.is_empty() && host.stop.is_empty());
    let after = state(top.path());
    let touched = before.iter().filter(|(path, about)| after.get(*path) != Some(*about)).count();
    assert_eq!(touched, 3, "both and the record");
}

#[test]
fn a_host_that_left_takes_its_files_along_and_foreign_ones_stay() {
    let top = tempfile::tempdir().unwrap();
    let out = top.path();
    let with = REFERENCE.replace("hosts:\n", "hosts:\n  hdss7-23: {address: 10.4.7.23, roles: node}\n");
    render(&with, out).unwrap();
    fs::write(out.join("hosts/hdss7-23/notes"), "mine").unwrap();
    fs::write(out.join("hosts/hdss7-23/root/etc/default/netd"), "changed").unwrap();
    let (outcome, changes) = render(REFERENCE, out).unwrap();
    assert!(outcome.removed.contains(Path::new("hosts/hdss7-23/root/etc/kubernetes/pki/kubelet.key")));
    assert_eq!(outcome.kept.into_iter().collect::<Vec<_>>(), [Path::new("hosts/hdss7-23/root/etc/default/netd")]);
    let left = contents(&out.join("hosts/hdss7-23"));
    assert_eq!(left.into_keys().collect::<Vec<_>>(), [Path::new("notes"), Path::new("root/etc/default/netd")]);
    let gone = changes.0.iter().find(|host| host.host == "hdss7-23").unwrap();
    assert_eq!(gone.stop.first().map(String::as_str), Some("ipvs-proxy.service"), "the last that started");
    fs::write(out.join("hosts/hdss7-12/root/etc/foreign"), "mine").unwrap();
    render(REFERENCE, out).unwrap();
    assert_eq!(fs::read_to_string(out.join("hosts/hdss7-12/root/etc/foreign")).unwrap(), "mine");
}

#[test]
fn a_folder_of_another_cluster_or_of_somebody_else_is_refused_and_stays() {
    let top = tempfile::tempdir().unwrap();
    let refused = |text: &str, out: &Path, said: &str| {
        let before = state(out);
        let refusal = render(text, out).unwrap_err();
        assert!(refusal.contains(said), "{refusal}");
        assert!(!refusal.contains("PRIVATE"));
        assert_eq!(before, state(out));
    };
    let (own, foreign) = (top.path().join("own"), top.path().join("foreign"));
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("file"), "mine").unwrap();
    refused(REFERENCE, &foreign, "no `netdadm render` made it");
    render(REFERENCE, &own).unwrap();
    refused(
        &REFERENCE.replace("cluster: reference", "cluster: other"),
        &own,
        "belongs to the cluster reference, not to other",
    );
    fs::remove_file(own.join("pki/ca.crt")).unwrap();
    fs::remove_file(own.join("pki/ca.key")).unwrap();
    refused(REFERENCE, &own, "put the CA with its key where it was");
    let in_the_way = top.path().join("way");
    render(REFERENCE, &in_the_way).unwrap();
    fs::create_dir_all(in_the_way.join("hosts/hdss7-23/root/etc/default")).unwrap();
    fs::write(in_the_way.join("hosts/hdss7-23/root/etc/default/netd"), "mine").unwrap();
    let with = REFERENCE.replace("hosts:\n", "hosts:\n  hdss7-23: {address: 10.4.7.23, roles: node}\n");
    refused(&with, &in_the_way, "move it away");
}

#[test]
fn what_cannot_be_written_changes_nothing() {
    let top = tempfile::tempdir().unwrap();
    let out = top.path();
    render(REFERENCE, out).unwrap();
    // A device that is always full lies where a new file is about to be put.
    let full = out.join(NEW).join("hosts/hdss7-11/root/etc/systemd/system/kube-scheduler.service");
    let changed = topology(&format!("{REFERENCE}flags: {{kube-scheduler: {{v: 4}}}}\n"));
    let mut folder = Folder::open(out, "reference").unwrap();
    let mut store = Store::open(Some(out), None, NOW).unwrap();
    let wanted = assemble(&changed, &mut store).unwrap();
    let before = contents(out);
    fs::create_dir_all(full.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/full", &full).unwrap();
    let refusal = folder.write(&wanted).unwrap_err();
    assert!(refusal.contains("kube-scheduler.service") && refusal.contains("space left"), "{refusal}");
    assert_eq!(before, contents(out));
}

#[test]
fn a_kill_at_any_step_ends_in_the_old_state_or_in_the_new_one() {
    let top = tempfile::tempdir().unwrap();
    let (old, new) = (top.path().join("old"), top.path().join("new"));
    let without = REFERENCE.replace(
        "  hdss7-22: {address: 10.4.7.22, roles: [etcd, node]}\n",
        "  hdss7-13: {address: 10.4.7.13, roles: etcd}\n",
    );
    render(REFERENCE, &old).unwrap();
    let copy = |to: &Path| {
        for (path, (content, mode)) in contents(&old) {
            fs::create_dir_all(to.join(&path).parent().unwrap()).unwrap();
            fs::write(to.join(&path), content).unwrap();
            fs::set_permissions(to.join(&path), fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    copy(&new);
    let (outcome, _) = render(&without, &new).unwrap();
    let wanted_state = contents(&new);
    let moved: Vec<PathBuf> =
        outcome.new.iter().chain(&outcome.changed).cloned().chain([".record.json".into()]).collect();
    let steps = Pending { moved: moved.clone(), removed: outcome.removed.iter().cloned().collect() };
    assert!(steps.moved.len() > 8 && steps.removed.len() > 30);
    let begun = |killed: &Path| {
        copy(killed);
        for path in &moved {
            fs::create_dir_all(killed.join(NEW).join(path).parent().unwrap()).unwrap();
            fs::copy(new.join(path), killed.join(NEW).join(path)).unwrap();
        }
    };
    // Before the steps are written down, the old state stands.
    let killed = top.path().join("staged");
    begun(&killed);
    Folder::open(&killed, "reference").unwrap();
    assert_eq!(contents(&killed), contents(&old));
    // Behind that, the new one is reached from any of them.
    for done in [0, 1, moved.len() / 2, moved.len(), moved.len() + 1, moved.len() + steps.removed.len()] {
        let killed = top.path().join(format!("killed-{done}"));
        begun(&killed);
        steps.write(&killed).unwrap();
        for path in moved.iter().take(done) {
            fs::create_dir_all(killed.join(path).parent().unwrap()).unwrap();
            fs::rename(killed.join(NEW).join(path), killed.join(path)).unwrap();
        }
        for path in steps.removed.iter().take(done.saturating_sub(moved.len())) {
            fs::remove_file(killed.join(path)).unwrap();
        }
        Folder::open(&killed, "reference").unwrap();
        assert_eq!(contents(&killed), wanted_state, "killed behind step {done}");
    }
}

#[test]
fn what_is_pending_or_recorded_leads_nowhere_else() {
    let top = tempfile::tempdir().unwrap();
    let out = top.path().join("out");
    render(REFERENCE, &out).unwrap();
    fs::write(top.path().join("victim"), "mine").unwrap();
    for (file, text) in [
        (".pending.json", r#"{"moved":[],"removed":["../victim"]}"#),
        (".pending.json", r#"{"moved":["/etc/passwd"],"removed":[]}"#),
        (".record.json", r#"{"../victim":"0000000000000000000000000000000000000000000000000000000000000000"}"#),
        ("netdadm.json", "{}"),
    ] {
        let kept = fs::read(out.join(file)).ok();
        fs::write(out.join(file), text).unwrap();
        let refusal = render(REFERENCE, &out).unwrap_err();
        assert!(refusal.contains(file), "{refusal}");
        match kept {
            Some(bytes) => fs::write(out.join(file), bytes).unwrap(),
            None => fs::remove_file(out.join(file)).unwrap(),
        }
    }
    assert_eq!(fs::read_to_string(top.path().join("victim")).unwrap(), "mine");
    render(REFERENCE, &out).unwrap();
}

#[test]
fn a_folder_may_be_named_from_where_the_caller_stands() {
    let top = tempfile::tempdir().unwrap();
    let work = std::env::current_dir().unwrap();
    let up: PathBuf = work.components().skip(1).map(|_| "..").collect();
    let out = up.join(top.path().strip_prefix("/").unwrap()).join("out");
    assert!(out.is_relative());
    render(REFERENCE, &out).unwrap();
    assert!(top.path().join("out/netdadm.json").is_file());
    super::folder::make(Path::new("out"), Path::new("")).unwrap();
}

#[test]
fn a_folder_with_something_of_ours_by_name_alone_is_foreign() {
    let top = tempfile::tempdir().unwrap();
    let out = top.path();
    fs::create_dir(out.join(NEW)).unwrap();
    fs::write(out.join(NEW).join("work"), "mine").unwrap();
    fs::write(out.join("notes"), "mine").unwrap();
    let before = state(out);
    let refusal = render(REFERENCE, out).unwrap_err();
    assert!(refusal.contains("no `netdadm render` made it"), "{refusal}");
    assert_eq!(before, state(out));
}

#[test]
fn what_is_no_folder_keeps_nobody_waiting() {
    let top = tempfile::tempdir().unwrap();
    let (pipe, file) = (top.path().join("pipe"), top.path().join("file"));
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(&file, "").unwrap();
    for path in [pipe, file] {
        let refused = Folder::open(&path, "reference").unwrap_err();
        assert!(refused.starts_with(&format!("read {}: Not a directory", path.display())), "{refused}");
    }
}

#[test]
fn two_calls_do_not_write_one_folder() {
    let top = tempfile::tempdir().unwrap();
    let out = top.path().join("out");
    let mut store = Store::open(Some(&out), None, NOW).unwrap();
    let wanted = assemble(&topology(REFERENCE), &mut store).unwrap();
    let mut late = Folder::open(&out, "reference").unwrap();
    render(REFERENCE, &out).unwrap();
    let before = state(&out);
    let refusal = late.write(&wanted).unwrap_err();
    assert!(refusal.contains("was written by another `netdadm` meanwhile"), "{refusal}");
    drop(late);
    let first = Folder::open(&out, "reference").unwrap();
    let refusal = Folder::open(&out, "reference").unwrap_err();
    assert!(refusal.contains("is at work in"), "{refusal}");
    drop(first);
    assert_eq!(before, state(&out));
    render(REFERENCE, &out).unwrap();
}

#[test]
fn an_authority_that_was_lost_is_not_made_anew_beside_what_it_signed() {
    let top = tempfile::tempdir().unwrap();
    for lost in ["etcd/ca.crt etcd/ca.key", "front-proxy-ca.crt front-proxy-ca.key", "sa.key sa.pub", "sa.key"] {
        let out = top.path().join(lost.replace(['/', ' '], "-"));
        render(REFERENCE, &out).unwrap();
        for file in lost.split(' ') {
            fs::remove_file(out.join("pki").join(file)).unwrap();
        }
        let before = state(&out);
        let refusal = render(REFERENCE, &out).unwrap_err();
        assert!(refusal.contains("put both halves back from the backup"), "{lost}: {refusal}");
        assert_eq!(before, state(&out), "{lost}");
    }
}

#[test]
fn nobody_is_sent_to_remove_the_keys_of_a_cluster() {
    let top = tempfile::tempdir().unwrap();
    let out = top.path();
    render(REFERENCE, out).unwrap();
    let text = fs::read_to_string(out.join("netdadm.json")).unwrap();
    for other in ["{}".to_owned(), text.replace("\"format\":1", "\"format\":2")] {
        assert_ne!(other, text);
        fs::write(out.join("netdadm.json"), other).unwrap();
        let refusal = render(REFERENCE, out).unwrap_err();
        assert!(!refusal.contains("remove this one") && refusal.contains("as the field pki"), "{refusal}");
    }
}

#[test]
fn a_link_in_the_folder_leads_nowhere_else() {
    let top = tempfile::tempdir().unwrap();
    let (out, elsewhere) = (top.path().join("out"), top.path().join("elsewhere"));
    render(REFERENCE, &out).unwrap();
    fs::create_dir(&elsewhere).unwrap();
    let etcd = out.join("hosts/hdss7-12/root/etc/etcd");
    fs::remove_dir_all(&etcd).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &etcd).unwrap();
    let refusal = render(REFERENCE, &out).unwrap_err();
    assert!(refusal.contains("root/etc/etcd is a link") && refusal.ends_with("move it away"), "{refusal}");
    assert!(state(&elsewhere).is_empty());
    // What leads to the folder is the caller's.
    let link = top.path().join("link");
    std::os::unix::fs::symlink(&out, &link).unwrap();
    fs::remove_file(&etcd).unwrap();
    render(REFERENCE, &link).unwrap();
}
