//! The table of files on real folders.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;
use crate::manifest::FileOwner;

fn file(content: &[u8], mode: u32) -> File {
    let metadata = fs::metadata("/proc/self").unwrap();
    let owner = if metadata.uid() == 0 { "root:root".to_owned() } else { format!("u{0}:g{0}", metadata.uid()) };
    File { content: Content::Sha256(Digest::of(content)), mode, owner: FileOwner::try_from(owner).unwrap() }
}

/// A root whose accounts know who runs the test.
fn root() -> (tempfile::TempDir, Files) {
    let folder = tempfile::tempdir().unwrap();
    let me = fs::metadata("/proc/self").unwrap();
    fs::create_dir(folder.path().join("etc")).unwrap();
    let line = |name: &str, number: u32| match number {
        0 => "root:x:0:\n".to_owned(),
        other => format!("{name}{other}:x:{other}:\n"),
    };
    fs::write(folder.path().join("etc/passwd"), line("u", me.uid())).unwrap();
    fs::write(folder.path().join("etc/group"), line("g", me.uid())).unwrap();
    let files = Files::open(folder.path()).unwrap();
    (folder, files)
}

fn key(path: &str) -> FilePath {
    FilePath::from(Path::new(path))
}

/// Brings the root to `wanted`, with what is there now as the step's begin.
fn put(files: &mut Files, path: &str, content: &[u8], mode: u32) {
    files.offer(key(path), content.to_vec());
    let have = files.observe().unwrap().remove(&key(path));
    let want = file(content, mode);
    let step = match have {
        None => Step::Create(key(path), want),
        Some(have) => Step::Change(key(path), have.value, want),
    };
    files.apply(&[step]).into_iter().for_each(|result| result.unwrap());
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_is_made_with_its_mode_and_its_folders_and_undone_without_a_trace() {
    let (folder, mut files) = root();
    let folders = files.missing_folders(&key("/etc/etcd/pki/server.key")).unwrap();
    assert_eq!(folders, [Path::new("/etc/etcd"), Path::new("/etc/etcd/pki")]);
    put(&mut files, "/etc/etcd/pki/server.key", b"secret", 0o600);
    let path = folder.path().join("etc/etcd/pki/server.key");
    assert_eq!(fs::read(&path).unwrap(), b"secret");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(names(path.parent().unwrap()), ["server.key"]);
    let made = file(b"secret", 0o600);
    files.undo(&key("/etc/etcd/pki/server.key"), false, Some(&made)).unwrap();
    files.remove_folders(&folders).unwrap();
    assert_eq!(names(&folder.path().join("etc")), ["group", "passwd"]);
}

#[test]
fn what_was_replaced_or_removed_comes_back_as_it_was_and_is_gone_once_it_is_settled() {
    let (folder, mut files) = root();
    let path = folder.path().join("etc/x.conf");
    fs::write(&path, "old").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    put(&mut files, "/etc/x.conf", b"new", 0o644);
    assert_eq!(fs::read(&path).unwrap(), b"new");
    files.undo(&key("/etc/x.conf"), true, None).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
    // Once more does nothing.
    files.undo(&key("/etc/x.conf"), true, None).unwrap();
    assert_eq!(names(path.parent().unwrap()), ["group", "passwd", "x.conf"]);
    let have = files.observe().unwrap().remove(&key("/etc/x.conf")).unwrap().value;
    let gone = files.apply(&[Step::Remove(key("/etc/x.conf"), have)]);
    assert!(gone.iter().all(Result::is_ok) && !path.exists());
    files.undo(&key("/etc/x.conf"), true, None).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"old");
    put(&mut files, "/etc/x.conf", b"newer", 0o644);
    files.settle(&key("/etc/x.conf")).unwrap();
    files.undo(&key("/etc/x.conf"), true, None).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"newer");
    assert_eq!(names(path.parent().unwrap()), ["group", "passwd", "x.conf"]);
}

#[test]
fn undo_between_the_second_name_and_the_rename_leaves_one_file() {
    let (folder, files) = root();
    let path = folder.path().join("etc/x.conf");
    fs::write(&path, "old").unwrap();
    let place = Place::find(&files.root, Path::new("/etc/x.conf")).unwrap().unwrap();
    place.hold_earlier().unwrap();
    files.undo(&key("/etc/x.conf"), true, None).unwrap();
    assert_eq!((fs::read(&path).unwrap(), fs::metadata(&path).unwrap().nlink()), (b"old".to_vec(), 1));
}

#[test]
fn one_file_that_cannot_be_written_keeps_the_whole_batch_back() {
    let (folder, mut files) = root();
    let stranger = File { owner: FileOwner::named("nobody-at-all"), ..file(b"b", 0o644) };
    files.offer(key("/etc/a"), b"a".to_vec());
    files.offer(key("/etc/b"), b"b".to_vec());
    let results = files.apply(&[Step::Create(key("/etc/a"), file(b"a", 0o644)), Step::Create(key("/etc/b"), stranger)]);
    let said: Vec<String> = results.into_iter().map(|result| result.unwrap_err().to_string()).collect();
    assert!(
        said[0].contains("another failed") && said[1].starts_with("write /etc/b: no user nobody-at-all"),
        "{said:?}"
    );
    assert_eq!(names(&folder.path().join("etc")), ["group", "passwd"]);
}

#[test]
fn a_file_of_more_than_16_mib_is_named_and_not_read() {
    let (folder, mut files) = root();
    let large = fs::File::create(folder.path().join("etc/large")).unwrap();
    files.offer(key("/etc/large"), b"x".to_vec());
    let mut content = |length: u64| {
        large.set_len(length).unwrap();
        files.observe().unwrap().remove(&key("/etc/large")).unwrap().value.content
    };
    assert!(matches!(content(16 << 20), Content::Sha256(_)));
    assert_eq!(content((16 << 20) + 1), Content::Other("file of more than 16 MiB".to_owned()));
    let error = files.read(Path::new("/etc/large")).unwrap_err().to_string();
    assert!(error.contains("more than 16777216 bytes"), "{error}");
}

#[test]
fn links_of_the_tree_lead_nowhere_outside_of_it() {
    let (folder, mut files) = root();
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), folder.path().join("var")).unwrap();
    files.offer(key("/var/x"), b"x".to_vec());
    let _ = files.apply(&[Step::Create(key("/var/x"), file(b"x", 0o644))]);
    assert!(names(outside.path()).is_empty());
    // A link in the place of a file is seen as one, and replaced itself.
    let target = outside.path().join("target");
    fs::write(&target, "theirs").unwrap();
    symlink(&target, folder.path().join("etc/y")).unwrap();
    files.offer(key("/etc/y"), b"y".to_vec());
    let have = files.observe().unwrap().remove(&key("/etc/y")).unwrap();
    assert_eq!((have.value.content, have.owner), (Content::Link(target.clone()), Owner::Foreign));
    put(&mut files, "/etc/y", b"y", 0o644);
    assert_eq!(
        (fs::read_to_string(&target).unwrap(), fs::read(folder.path().join("etc/y")).unwrap()),
        ("theirs".to_owned(), b"y".to_vec())
    );
    files.undo(&key("/etc/y"), true, None).unwrap();
    assert_eq!(fs::read_link(folder.path().join("etc/y")).unwrap(), target);
}

#[test]
fn a_file_is_ours_until_somebody_changes_it() {
    let (folder, mut files) = root();
    put(&mut files, "/etc/z", b"z", 0o644);
    files.recall([(key("/etc/z"), file(b"z", 0o644))]);
    let owner = |files: &mut Files| files.observe().unwrap()[&key("/etc/z")].owner;
    assert_eq!(owner(&mut files), Owner::Ours);
    fs::set_permissions(folder.path().join("etc/z"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(owner(&mut files), Owner::Foreign);
}

#[test]
fn what_a_call_that_was_cut_off_left_beside_a_place_is_neither_followed_nor_put_back() {
    let (folder, mut files) = root();
    let outside = tempfile::tempdir().unwrap();
    let beside = |name: &str, end: &str| folder.path().join(format!("etc/.{name}.netdadm-{end}"));
    fs::write(outside.path().join("target"), "theirs").unwrap();
    fs::write(folder.path().join("etc/held"), "old").unwrap();
    for name in ["held", "made"] {
        symlink(outside.path().join("target"), beside(name, "new")).unwrap();
        fs::write(beside(name, "old"), "older").unwrap();
        put(&mut files, &format!("/etc/{name}"), b"now", 0o644);
    }
    assert_eq!(fs::read(outside.path().join("target")).unwrap(), b"theirs");
    fs::write(beside("held", "new"), "torn").unwrap();
    files.undo(&key("/etc/held"), true, None).unwrap();
    files.undo(&key("/etc/made"), false, Some(&file(b"now", 0o644))).unwrap();
    assert_eq!(names(&folder.path().join("etc")), ["group", "held", "passwd"]);
    assert_eq!(fs::read(folder.path().join("etc/held")).unwrap(), b"old");
}

#[test]
fn undo_leaves_what_the_call_did_not_make() {
    let (folder, mut files) = root();
    put(&mut files, "/etc/x", b"now", 0o644);
    files.undo(&key("/etc/x"), false, Some(&file(b"other", 0o644))).unwrap();
    files.undo(&key("/etc/x"), false, None).unwrap();
    files.undo(&key("/etc/x"), true, Some(&file(b"now", 0o644))).unwrap();
    assert_eq!(fs::read(folder.path().join("etc/x")).unwrap(), b"now");
}

#[test]
fn files_of_one_folder_are_drafted_beside_each_other() {
    let (folder, mut files) = root();
    let both = [("/etc/a", b"a"), ("/etc/b", b"b")];
    both.iter().for_each(|(path, content)| files.offer(key(path), content.to_vec()));
    let steps = both.map(|(path, content)| Step::Create(key(path), file(content, 0o644)));
    assert!(files.apply(&steps).iter().all(Result::is_ok));
    assert!(both.iter().all(|(path, content)| fs::read(folder.path().join(&path[1..])).unwrap() == *content));
}

#[test]
fn what_is_recalled_is_read_without_being_offered() {
    let (_folder, mut files) = root();
    put(&mut files, "/etc/x", b"x", 0o644);
    files.watched.clear();
    files.recall([(key("/etc/x"), file(b"x", 0o644))]);
    assert_eq!(files.observe().unwrap()[&key("/etc/x")].owner, Owner::Ours);
}

#[test]
fn owners_are_numbers_of_the_root_and_no_mask_closes_or_opens_anything() {
    let (folder, files) = root();
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("SKIPPED: files of other users are made by root");
        return;
    }
    drop(files);
    fs::write(folder.path().join("etc/passwd"), "root:x:0:0:\netcd:x:60104:60109:\n").unwrap();
    fs::write(folder.path().join("etc/group"), "root:x:0:\netcd:x:60109:\n").unwrap();
    let made = |mask: u32, name: &str| {
        // The mask of this thread alone.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
        let mut files = Files::open(folder.path()).unwrap();
        let (path, own) = (format!("/etc/{name}/key"), File { owner: FileOwner::named("etcd"), ..file(b"k", 0o640) });
        files.offer(key(&path), b"k".to_vec());
        files.apply(&[Step::Create(key(&path), own.clone())]).into_iter().for_each(|result| result.unwrap());
        assert_eq!(files.observe().unwrap()[&key(&path)].value, own);
        files.write(Path::new(&format!("/etc/{name}/state")), b"s").unwrap();
        files.copy(&key(&path), Path::new(&format!("/kept/{name}/key"))).unwrap();
    };
    for (mask, name) in [(0, "open"), (0o077, "closed")] {
        std::thread::scope(|scope| scope.spawn(|| made(mask, name)).join().unwrap());
        let is = |path: &str| {
            let found = fs::metadata(folder.path().join(path.replace("NAME", name))).unwrap();
            (found.mode() & 0o7777, found.uid(), found.gid())
        };
        assert_eq!(is("etc/NAME"), (0o755, 0, 0), "{name}");
        assert_eq!(is("etc/NAME/key"), (0o640, 60104, 60109), "{name}");
        assert_eq!(is("etc/NAME/state"), (0o600, 0, 0), "{name}");
        assert_eq!((is("kept"), is("kept/NAME")), ((0o700, 0, 0), (0o700, 0, 0)), "{name}");
        assert_eq!(is("kept/NAME/key"), (0o640, 60104, 60109), "{name}");
    }
}

#[test]
fn a_state_that_cannot_be_put_into_its_place_leaves_no_draft() {
    let (folder, files) = root();
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("SKIPPED: the program's own state is root's");
        return;
    }
    fs::create_dir(folder.path().join("etc/state")).unwrap();
    let refused = files.write(Path::new("/etc/state"), b"s").unwrap_err().to_string();
    assert!(refused.starts_with("write /etc/state: "), "{refused}");
    assert_eq!(names(&folder.path().join("etc")), ["group", "passwd", "state"]);
}
