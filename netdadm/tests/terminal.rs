//! What every verb has in common: what changes something is done when a person at a terminal says yes and not else, keys are their owner's
//! alone, and no byte of one is in what is printed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

const REFERENCE: &str = include_str!("../../configs/clusters/reference.yaml");
/// Hosts that get files.
const HOSTS: [&str; 4] = ["hdss7-11", "hdss7-12", "hdss7-21", "hdss7-22"];
/// The private number of a P-256 key in PKCS #8: its public half stands behind it, and in certificates too.
const NUMBER: std::ops::Range<usize> = 36..68;

/// A topology, the folder that is rendered from it, and the roots of hosts. In memory: what is synced need not wait for a disk.
struct Cluster(TempDir);

impl Cluster {
    fn rendered() -> Self {
        let cluster = Self(tempfile::tempdir_in("/dev/shm").unwrap());
        fs::write(cluster.0.path().join("cluster.yaml"), REFERENCE).unwrap();
        let output = cluster.run("render -f cluster.yaml -o out");
        assert!(output.status.success(), "{output:?}");
        for host in HOSTS {
            fs::create_dir_all(cluster.0.path().join("roots").join(host)).unwrap();
        }
        cluster
    }

    /// Without a terminal, and in a network in which nobody is.
    fn run(&self, words: &str) -> Output {
        let mut netdadm = Command::new("unshare");
        let netdadm =
            netdadm.args(["--net", env!("CARGO_BIN_EXE_netdadm")]).args(words.split(' ')).current_dir(&self.0);
        netdadm.stdin(Stdio::null()).output().expect("unshare of util-linux")
    }

    /// At a terminal, with an answer typed ahead.
    fn typed(&self, words: &str, answer: &str) -> (i32, String) {
        let line = format!("{} {words}", env!("CARGO_BIN_EXE_netdadm"));
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &line, "/dev/null"]).current_dir(&self.0);
        let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script of bsdutils");
        script.stdin.take().unwrap().write_all(answer.as_bytes()).unwrap();
        let output = script.wait_with_output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Every file with its mode and content.
    fn files(&self) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
        let (mut found, mut folders) = (BTreeMap::new(), vec![self.0.path().to_owned()]);
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
                    found.insert(path.clone(), (mode, fs::read(path).unwrap()));
                }
            }
        }
        found
    }
}

fn apply(host: &str) -> String {
    format!("apply --host {host} --root roots/{host} out")
}

#[test]
fn a_person_at_a_terminal_is_asked_and_nothing_is_done_without_a_yes() {
    let cluster = Cluster::rendered();
    let before = cluster.files();
    let verbs = [apply("hdss7-12"), "certs renew --all -f cluster.yaml -o out".to_owned()];
    for verb in &verbs {
        let alone = cluster.run(verb);
        let said = String::from_utf8_lossy(&alone.stderr).into_owned();
        assert!(alone.status.code() == Some(2) && said.contains("say --yes"), "{verb}: {alone:?}");
        for answer in ["n\n", "\n", "yess\n", ""] {
            let (status, printed) = cluster.typed(verb, answer);
            assert!(status == 2 && printed.contains("[y/N] ") && printed.contains("nothing was "), "{verb}: {printed}");
        }
    }
    let lock = |path: &Path| path.ends_with("var/lib/netdadm/lock");
    let untouched = cluster.files().into_iter().filter(|(path, _)| !lock(path)).collect::<BTreeMap<_, _>>();
    assert_eq!(untouched.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    assert!(untouched == before, "a file differs");
    for (verb, answer) in verbs.iter().zip(["y\n", "yes\n"]) {
        let before = cluster.files();
        let (status, printed) = cluster.typed(verb, answer);
        assert!(status == 0 && cluster.files() != before, "{verb}: {printed}");
    }
}

#[test]
fn a_text_of_a_file_and_its_name_drive_no_terminal() {
    let cluster = Cluster::rendered();
    let text = REFERENCE.replace("domain: host.com", r#"domain: "h\e[2J\x9b2J\u202e""#);
    fs::write(cluster.0.path().join("a\u{9b}2J\u{202e}.yaml"), text).unwrap();
    for verb in ["check --json", "check", "render -o out", "certs renew --all -o out", "preflight --json"] {
        for file in ["a", "absent"] {
            let Output { stdout, stderr, .. } = cluster.run(&format!("{verb} -f {file}\u{9b}2J\u{202e}.yaml"));
            let printed = [stdout, stderr].map(|text| String::from_utf8(text).unwrap()).concat();
            assert!(
                printed.contains("2J") && !printed.contains(['\u{1b}', '\u{9b}', '\u{202e}']),
                "{verb}: {printed:?}"
            );
        }
    }
}

/// The private half of a key, in pieces of its base64 and of hexadecimal digits.
fn pieces(pem: &str) -> Vec<String> {
    let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = STANDARD.decode(&base64).unwrap();
    let hex = der[NUMBER].chunks(4).map(|part| part.iter().map(|byte| format!("{byte:02x}")).collect());
    // A kubeconfig has the whole file in base64 once more.
    let twice = STANDARD.encode(pem);
    let parts = |text: &str, range: std::ops::Range<usize>| {
        text.as_bytes()[range].chunks(8).map(|part| String::from_utf8(part.to_vec()).unwrap()).collect::<Vec<_>>()
    };
    hex.chain(parts(&base64, 48..88)).chain(parts(&twice, 104..152)).collect()
}

#[test]
fn keys_are_their_owners_and_no_verb_prints_a_byte_of_one() {
    let cluster = Cluster::rendered();
    let mut printed = String::new();
    let mut say = |words: &str| {
        let Output { stdout, stderr, .. } = cluster.run(words);
        printed += &format!("{words}\n{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    };
    let both = "-f cluster.yaml -o out";
    HOSTS.iter().for_each(|host| say(&format!("{} --yes", apply(host))));
    let first = cluster.files();
    fs::write(cluster.0.path().join("changed.yaml"), REFERENCE.replace("1.20.2", "1.20.3")).unwrap();
    for words in [
        "check -f cluster.yaml --json",
        "render -f changed.yaml -o out --json",
        "render -f cluster.yaml -o out",
        "certs list -o out",
        "certs list -o out --json",
        "certs list --root roots/hdss7-11",
        "preflight -f cluster.yaml --host hdss7-11 --json",
        "preflight -f cluster.yaml --host hdss7-21",
        "status -f cluster.yaml -o out --timeout 1",
        "status -f cluster.yaml -o out --timeout 1 --json",
        "etcd add hdss7-12 --yes --timeout 1 -f cluster.yaml -o out",
        "etcd remove hdss7-12 --yes --timeout 1 -f cluster.yaml -o out",
        "etcd replace hdss7-12 --yes --timeout 1 -f cluster.yaml -o out",
        "backup --yes --timeout 1 -f cluster.yaml -o out snapshot",
        "restore -f cluster.yaml out/pki/ca.key",
    ] {
        say(words);
    }
    say(&format!("certs renew --all --yes {both}"));
    HOSTS.iter().for_each(|host| say(&format!("{} --yes", apply(host))));
    let now = cluster.files();
    let all = first.iter().chain(&now);
    let mut keys = 0;
    for (path, (mode, bytes)) in all {
        let text = String::from_utf8_lossy(bytes);
        let is_key = text.contains("PRIVATE KEY-----");
        if is_key || text.contains("client-key-data") {
            assert_eq!(*mode, 0o600, "{}", path.display());
        }
        // Whoever owns a key of RSA owns it by another form.
        for piece in if is_key { pieces(&text) } else { Vec::new() } {
            assert!(!printed.contains(&piece), "{piece} of {} in {printed}", path.display());
            keys += 1;
        }
    }
    assert!(keys > 1000, "{keys} pieces of keys");
    assert!(!printed.contains("PRIVATE KEY-----") && printed.contains("written into out"), "{printed}");
}

#[test]
fn folders_that_are_copied_to_a_host_are_everybodys_under_any_mask() {
    let cluster = Cluster::rendered();
    let render = format!("umask 077; {} render -f cluster.yaml -o masked", env!("CARGO_BIN_EXE_netdadm"));
    let output = Command::new("sh").args(["-c", &render]).current_dir(&cluster.0).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mode = |path: &str| fs::metadata(cluster.0.path().join("masked").join(path)).unwrap().permissions().mode();
    for folder in ["hosts/hdss7-12/root/etc", "hosts/hdss7-12/root/etc/etcd", "manifests"] {
        assert_eq!(mode(folder) & 0o777, 0o755, "{folder}: a copy of it would close the host's own");
    }
    assert_eq!((mode("hosts") & 0o777, mode("pki") & 0o777), (0o700, 0o700));
}
