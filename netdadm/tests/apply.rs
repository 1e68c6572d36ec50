//! `apply --root`: files only, as for a machine that does not run.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail by panic")]

#[path = "apply/folder.rs"]
mod folder;
#[cfg(target_arch = "x86_64")]
#[path = "apply/held.rs"]
mod held;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use folder::{Contents, HOST, apply, authority, change, command, folder, tree};
use serde_json::json;
use tempfile::TempDir;

const KEY: &str = "/etc/etcd/pki/server.key";
const FIRST: Contents<'static> =
    &[("/etc/etcd/etcd.conf", "0644", "ETCD_NAME=one\n"), (KEY, "0600", "SECRET"), ("/etc/etcd/old", "0644", "old\n")];
const SECOND: Contents<'static> = &[
    ("/etc/etcd/etcd.conf", "0644", "ETCD_NAME=two\n"),
    (KEY, "0600", "SECRET"),
    ("/etc/sysctl.d/50-new.conf", "0644", "new\n"),
];

/// In memory: what is synced a thousand times need not wait for a disk.
fn empty() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn read(root: &TempDir, path: &str) -> String {
    fs::read_to_string(root.path().join(path)).unwrap()
}

#[test]
fn files_come_with_their_modes_and_a_second_call_does_nothing_and_says_so() {
    let (out, root) = (folder(FIRST), empty());
    let (status, printed) = apply(&out, &root, &[]);
    assert_eq!(status, 0, "{printed}");
    assert!(printed.contains("write    /etc/etcd/pki/server.key 0600 root:root sha256 "), "{printed}");
    assert!(
        !printed.contains("SECRET") && !read(&root, "var/lib/netdadm/applied.json").contains("SECRET"),
        "{printed}"
    );
    let first = tree(root.path());
    assert_eq!(first[Path::new("etc/etcd/pki/server.key")], "600 1 SECRET");
    assert_eq!(first.len(), 6, "three files, three folders: {first:?}");
    let (status, printed) = apply(&out, &root, &[]);
    assert_eq!(status, 0, "{printed}");
    assert!(printed.contains("nothing to do, its 3 files and 0 units are as the folder says"), "{printed}");
    assert_eq!(tree(root.path()), first);
}

#[test]
fn a_changed_folder_changes_what_it_concerns_keeps_what_it_replaced_and_removes_what_it_wrote() {
    let root = empty();
    fs::create_dir_all(root.path().join("etc/etcd/pki")).unwrap();
    fs::write(root.path().join("etc/etcd/theirs"), "not ours").unwrap();
    assert_eq!(apply(&folder(FIRST), &root, &[]).0, 0);
    let (status, printed) = apply(&folder(SECOND), &root, &[]);
    assert_eq!(status, 0, "{printed}");
    for line in ["replace  /etc/etcd/etcd.conf", "write    /etc/sysctl.d/50-new.conf", "remove   /etc/etcd/old"] {
        assert!(printed.contains(line), "{printed}");
    }
    assert!(!printed.contains(KEY), "{printed}");
    assert_eq!(read(&root, "var/lib/netdadm/kept/2/etc/etcd/etcd.conf"), "ETCD_NAME=one\n");
    assert_eq!(read(&root, "var/lib/netdadm/kept/2/etc/etcd/old"), "old\n");
    let names: Vec<String> = tree(root.path()).keys().map(|path| path.display().to_string()).collect();
    let all = ["etc", "etc/etcd", "etc/etcd/etcd.conf", "etc/etcd/pki", "etc/etcd/pki/server.key", "etc/etcd/theirs"];
    assert_eq!(names[..6], all);
    assert_eq!(names[6..], ["etc/sysctl.d", "etc/sysctl.d/50-new.conf"]);
    // Nothing of ours is left when the folder has nothing, and nothing that is not ours goes.
    assert_eq!(apply(&folder(&[]), &root, &[]).0, 0);
    let names: Vec<String> = tree(root.path()).keys().map(|path| path.display().to_string()).collect();
    assert_eq!(names, ["etc", "etc/etcd", "etc/etcd/pki", "etc/etcd/theirs"]);
}

#[test]
fn a_file_that_is_not_ours_is_touched_only_when_the_order_says_so() {
    let (out, root) = (folder(FIRST), empty());
    fs::create_dir_all(root.path().join("etc/etcd")).unwrap();
    fs::write(root.path().join("etc/etcd/etcd.conf"), "by hand").unwrap();
    let before = tree(root.path());
    let (status, printed) = apply(&out, &root, &[]);
    assert!(status == 2 && printed.contains("/etc/etcd/etcd.conf was not written by netdadm"), "{printed}");
    assert_eq!(tree(root.path()), before);
    assert_eq!(apply(&out, &root, &["--overwrite"]).0, 0);
    assert_eq!(read(&root, "var/lib/netdadm/kept/1/etc/etcd/etcd.conf"), "by hand");
    fs::write(root.path().join("etc/etcd/etcd.conf"), "by hand again").unwrap();
    let (status, printed) = apply(&folder(SECOND), &root, &[]);
    assert!(status == 2 && printed.contains("etcd.conf was changed since netdadm wrote it"), "{printed}");
    // What somebody has changed stays when the folder has it no more.
    let (status, printed) = apply(&folder(&SECOND[1..]), &root, &[]);
    assert!(status == 0 && printed.contains("leave    /etc/etcd/etcd.conf"), "{printed}");
    assert_eq!(read(&root, "etc/etcd/etcd.conf"), "by hand again");
}

#[test]
fn what_is_not_this_hosts_or_not_whole_is_refused_in_clear_words_and_touches_nothing() {
    let root = empty();
    assert_eq!(apply(&folder(FIRST), &root, &[]).0, 0);
    let before = tree(root.path());
    let refused = |out: &TempDir, more: &[&str], said: &str| {
        let (status, printed) = apply(out, &root, more);
        assert!(status == 2 && printed.contains(said), "{said}: {status} {printed}");
        assert_eq!(tree(root.path()), before, "{said}");
    };
    let out = folder(SECOND);
    refused(&out, &["--host", "hdss7-13"], "has no host \"hdss7-13\"; it has hdss7-12");
    refused(&out, &["--host", "../x"], "has no host");
    let file = out.path().join("hosts").join(HOST).join("root/etc/etcd/etcd.conf");
    fs::write(&file, "ETCD_NAME=tw").unwrap();
    refused(&out, &[], "it was changed or cut off on its way");
    fs::remove_file(&file).unwrap();
    refused(&out, &[], "the folder is not whole");
    let out = folder(SECOND);
    fs::write(out.path().join("hosts").join(HOST).join("root/etc/stray"), "").unwrap();
    refused(&out, &[], "is not in the manifest");
    let out = folder(SECOND);
    change(&out, |manifest| manifest["host"] = json!("hdss7-13"));
    refused(&out, &[], "is of host hdss7-13");
    change(&out, |manifest| manifest["host"] = json!(HOST));
    change(&out, |manifest| manifest["files"][KEY]["owner"] = json!("etcd:etcd"));
    refused(&out, &[], "useradd --system");
    let out = folder(SECOND);
    change(&out, |manifest| manifest["authority"] = json!(authority(2)));
    refused(&out, &[], "of another authority");
    let (status, printed) = apply(&out, &root, &["--adopt"]);
    assert_eq!(status, 0, "{printed}");
    assert_eq!(read(&root, "etc/etcd/etcd.conf"), "ETCD_NAME=two\n");
}

/// What is there once these folders were applied one after the other.
#[cfg(target_arch = "x86_64")]
fn applied(out: &[&TempDir]) -> BTreeMap<PathBuf, String> {
    let root = empty();
    out.iter().for_each(|out| assert_eq!(apply(out, &root, &[]).0, 0));
    tree(root.path())
}

/// Killed after every single change to a file: the next call brings the tree to its own folder, whichever that is.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_call_killed_after_any_step_leaves_nothing_half_done() {
    let (first, second) = (folder(FIRST), folder(SECOND));
    let (then, now) = (applied(&[&first]), applied(&[&first, &second]));
    let mut steps = 0;
    for calls in 1.. {
        let (root, back) = (empty(), empty());
        for root in [&root, &back] {
            assert_eq!(apply(&first, root, &[]).0, 0);
        }
        let was_killed = held::killed(folder::command(second.path(), root.path(), &[]), calls);
        let (status, printed) = apply(&second, &root, &[]);
        assert!(status == 0 && tree(root.path()) == now, "killed after change {calls}: {printed}");
        held::killed(folder::command(second.path(), back.path(), &[]), calls);
        let (status, printed) = apply(&first, &back, &[]);
        assert!(status == 0 && tree(back.path()) == then, "killed after change {calls}, then back: {printed}");
        if !was_killed {
            break;
        }
        steps = calls;
    }
    assert!(steps > 40, "only {steps} changes: the walk did not reach the work");
}

/// Every change to a file fails once: the call goes on all the same or says what the system said, and the next call brings the tree to its own
/// folder, whichever that is. With `FAULTS=all` by every errno.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_call_with_any_operation_failing_is_made_good_by_the_next() {
    let (first, second) = (folder(FIRST), folder(SECOND));
    let (then, now) = (applied(&[&first]), applied(&[&first, &second]));
    let mut faults = 0;
    for at in 0.. {
        let before = faults;
        for effect in injection::effects(at) {
            let root = empty();
            assert_eq!(apply(&first, &root, &[]).0, 0);
            let command = folder::command(second.path(), root.path(), &[]);
            let run = injection::run(&command, "", injection::Plan::from([(at, effect)]));
            let Some(injected) = run.injected else { continue };
            faults += 1;
            if let (Some(code), Some(errno)) = (run.status.code(), injected.errno) {
                let said = format!("(os error {})", errno as i32);
                assert!(code == 0 || run.stderr.contains(&said), "{injected}: {}{}", run.stdout, run.stderr);
                assert!(code != 0 || tree(root.path()) == now, "{injected}: done, and it is not: {}", run.stdout);
                assert!(
                    code != 2 || tree(root.path()) == then,
                    "{injected}: refused, and not untouched: {}",
                    run.stderr
                );
            }
            // Forward, or back to what was there before, in turn.
            let (out, wanted) = if at % 2 == 0 { (&second, &now) } else { (&first, &then) };
            let (status, printed) = apply(out, &root, &[]);
            assert!(status == 0 && tree(root.path()) == *wanted, "{injected}, then: {printed}");
        }
        if faults == before {
            break;
        }
    }
    println!("{faults} faults");
    assert!(faults > 40, "only {faults} faults: the walk did not reach the work");
}

fn mode(root: &TempDir, path: &str) -> u32 {
    fs::metadata(root.path().join(path)).unwrap().permissions().mode() & 0o7777
}

#[test]
fn folders_of_the_host_are_everybodys_under_any_mask() {
    let (out, root) = (folder(FIRST), empty());
    let call = command(out.path(), root.path(), &[]);
    let mut masked = Command::new("sh");
    masked.args(["-c", "umask 077; exec \"$@\"", "sh"]).arg(call.get_program()).args(call.get_args());
    assert!(masked.status().unwrap().success());
    for folder in ["etc", "etc/etcd", "etc/etcd/pki", "var", "var/lib/netdadm"] {
        assert_eq!(mode(&root, folder), 0o755, "{folder}");
    }
}

#[test]
fn a_key_that_was_readable_is_readable_for_nobody_else_in_the_copies() {
    let (out, root) = (folder(FIRST), empty());
    fs::create_dir_all(root.path().join("etc/etcd/pki")).unwrap();
    fs::write(root.path().join(KEY.trim_start_matches('/')), "FORMER").unwrap();
    let (status, printed) = apply(&out, &root, &["--overwrite"]);
    assert_eq!(status, 0, "{printed}");
    assert_eq!(read(&root, "var/lib/netdadm/kept/1/etc/etcd/pki/server.key"), "FORMER");
    assert_eq!((mode(&root, "var/lib/netdadm/kept"), mode(&root, "var/lib/netdadm/kept/1")), (0o700, 0o700));
}

#[test]
fn what_is_no_name_of_a_host_and_a_record_of_another_version_are_named() {
    let (out, root) = (folder(FIRST), empty());
    for host in ["", ".", "..", "../hosts/hdss7-12"] {
        let mut call = Command::new(env!("CARGO_BIN_EXE_netdadm"));
        let output = call.args(["apply", "--yes", "--host", host, "--root"]).args([root.path(), out.path()]).output();
        let said = String::from_utf8(output.unwrap().stderr).unwrap();
        assert!(said.contains(&format!("has no host {host:?}; it has hdss7-12")), "{said}");
    }
    fs::create_dir_all(root.path().join("var/lib/netdadm")).unwrap();
    fs::write(root.path().join("var/lib/netdadm/applied.json"), r#"{"format": 2, "other": 1}"#).unwrap();
    let (status, printed) = apply(&out, &root, &[]);
    assert!(status == 2 && printed.contains("its format is 2, which another version"), "{printed}");
}
