//! A real etcd of three members with TLS between members and to clients, from these certificates.

use std::fs::File;
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::*;

/// How long members may take to find each other, on a busy machine with two cores.
const START: Duration = Duration::from_secs(60);

/// Three members, ended by their numbers.
struct Members {
    folder: Folder,
    store: Store,
    clients: Vec<u16>,
    processes: Vec<Child>,
}

impl Members {
    fn start() -> Self {
        let folder = Folder::new();
        let store = Store::open(None, None, now()).unwrap();
        folder.put("ca.crt", &store.authority(Ca::Etcd).certificate_pem);
        let held: Vec<TcpListener> = (0..6).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> = held.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        drop(held);
        let mut members = Self { folder, store, clients: ports[..3].to_vec(), processes: Vec::new() };
        let client = |path: &str| Request::client("m0", path, Ca::Etcd, "kube-etcd-healthcheck-client");
        members.issue(&client("client"));
        members.issue(&Request { authority: Ca::Cluster, ..client("stranger") });
        let cluster: Vec<String> = (0..3).map(|n| format!("m{n}=https://127.0.0.1:{}", ports[3 + n])).collect();
        for number in 0..3 {
            for use_of in ["server", "peer"] {
                members.issue(&Self::member(number, use_of));
            }
            members.spawn(number, ports[number], ports[3 + number], &cluster.join(","));
        }
        members
    }

    fn member(number: usize, use_of: &str) -> Request {
        let name = format!("m{number}");
        let names = [name.as_str(), "localhost", "127.0.0.1"].map(str::to_owned);
        Request::client(&name, &format!("{name}-{use_of}"), Ca::Etcd, &*name).serving(Usage::Both, names)
    }

    fn issue(&mut self, request: &Request) {
        let pair = self.store.issue(request).unwrap().clone();
        self.put(request, &pair);
    }

    fn put(&self, request: &Request, pair: &Pair) {
        // A reader that meets the new key with the old certificate keeps what it had.
        for (suffix, text) in [("key", pair.key_pem.expose()), ("crt", &pair.certificate_pem)] {
            self.folder.put("new", text);
            fs::rename(self.folder.file("new"), self.folder.file(&format!("{}.{suffix}", request.path))).unwrap();
        }
    }

    fn spawn(&mut self, number: usize, client: u16, peer: u16, cluster: &str) {
        let (client, peer, name) =
            (format!("https://127.0.0.1:{client}"), format!("https://127.0.0.1:{peer}"), format!("m{number}"));
        let file = |name: &str| self.folder.file(name).display().to_string();
        let log = File::create(file(&format!("{name}.log"))).unwrap();
        // Who kills the test ends the members with it.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "etcd", "--name", &name, "--data-dir", &file(&name)]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
            "--initial-cluster",
            cluster,
        ]);
        command.args(["--client-cert-auth", "--peer-client-cert-auth"]);
        command.args(["--trusted-ca-file", &file("ca.crt"), "--peer-trusted-ca-file", &file("ca.crt")]);
        command.args([
            "--cert-file",
            &file(&format!("{name}-server.crt")),
            "--key-file",
            &file(&format!("{name}-server.key")),
        ]);
        command.args([
            "--peer-cert-file",
            &file(&format!("{name}-peer.crt")),
            "--peer-key-file",
            &file(&format!("{name}-peer.key")),
        ]);
        self.processes
            .push(command.stdout(Stdio::null()).stderr(log).spawn().expect("setpriv of util-linux starts etcd"));
    }

    /// etcdctl at a member as the holder of `who`.
    fn ask(&self, member: usize, who: &str, words: &[&str]) -> Output {
        let endpoint = format!("--endpoints=https://127.0.0.1:{}", self.clients[member]);
        let mut command = Command::new("etcdctl");
        command.current_dir(self.folder.path()).env("ETCDCTL_API", "3");
        command.args([&*endpoint, "--cacert=ca.crt", "--dial-timeout=2s", "--command-timeout=3s"]);
        command.args([format!("--cert={who}.crt"), format!("--key={who}.key")]);
        command.args(words).output().expect("etcdctl of Debian's etcd-client")
    }

    /// The number of the certificate that a member shows.
    fn serial(&self, member: usize) -> Vec<u8> {
        let address = format!("127.0.0.1:{}", self.clients[member]);
        let words =
            ["s_client", "-connect", &address, "-CAfile", "ca.crt", "-cert", "client.crt", "-key", "client.key"];
        let mut command = Command::new("openssl");
        command.args(words).args(["-verify_return_error", "-verify_ip", "127.0.0.1"]);
        let shown = command.current_dir(self.folder.path()).stdin(Stdio::null()).output().unwrap();
        assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
        Certificate::read(&shown.stdout).unwrap().serial
    }

    fn log(&self, member: usize) -> String {
        self.folder.get(&format!("m{member}.log"))
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

#[test]
fn etcd_of_three_members_forms_and_shows_a_renewed_certificate_at_the_next_handshake() {
    let members = Members::start();
    let deadline = Instant::now() + START;
    while !members.ask(0, "client", &["put", "a", "1"]).status.success() {
        assert!(Instant::now() < deadline, "etcd does not serve:\n{}", members.log(0));
    }
    let read = members.ask(2, "client", &["get", "a", "--print-value-only"]);
    assert_eq!(String::from_utf8_lossy(&read.stdout).trim(), "1", "{}", members.log(2));
    // Whoever the cluster's CA knows is nobody here.
    assert!(!members.ask(0, "stranger", &["get", "a"]).status.success());

    // Both files by rename, as `apply` does: the member is not started again.
    let before = members.serial(1);
    let request = Members::member(1, "server");
    let pair = members.store.authority(Ca::Etcd).sign(&request, now()).unwrap();
    members.put(&request, &pair);
    let on_disk = Certificate::read(pair.certificate_pem.as_bytes()).unwrap().serial;
    assert_ne!(before, on_disk);
    assert_eq!(members.serial(1), on_disk);
    assert!(members.ask(1, "client", &["put", "a", "2"]).status.success(), "{}", members.log(1));
}
