//! Real etcd processes on 127.0.0.1, ended by pid when dropped.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use cluster::etcd::{Client, Config, Limits, Store};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::pki::Pki;

/// How long a cluster may take to serve, on a busy machine with two cores.
const START: Duration = Duration::from_secs(40);

/// Whether etcd is installed.
pub(crate) fn installed() -> bool {
    Command::new("etcd").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// One to three members.
pub(crate) struct Server {
    members: Vec<Member>,
    pki: Option<Pki>,
    /// How long a JWT token is good for, when there are such.
    token_life: Option<&'static str>,
    // Last: removed after the processes have ended.
    dir: TempDir,
}

struct Member {
    process: Option<Child>,
    name: String,
    client_url: String,
    peer_url: String,
}

impl Server {
    pub(crate) fn single() -> Self {
        Self::start(1, None, None)
    }

    /// A copy of a single killed member, which serves beside it at another address: as a member that was cut off from the
    /// others and goes on with what it had.
    pub(crate) fn copy_of(original: &Self) -> Self {
        let addresses = free_addresses(2);
        let member = Member {
            process: None,
            name: original.members[0].name.clone(),
            client_url: format!("http://{}", addresses[0]),
            peer_url: format!("http://{}", addresses[1]),
        };
        let mut server = Self { members: vec![member], pki: None, token_life: None, dir: tempfile::tempdir().unwrap() };
        copy_folder(&original.data(0), &server.data(0));
        server.restart(0);
        server
    }

    pub(crate) fn three() -> Self {
        Self::start(3, None, None)
    }

    /// A single member that signs its tokens, each good for `life`.
    pub(crate) fn with_signed_tokens(life: &'static str) -> Self {
        Self::start(1, None, Some(life))
    }

    /// A single member that accepts only clients with a certificate of the test's CA.
    pub(crate) fn with_client_certificates() -> Self {
        Self::start(1, Some(Pki::new()), None)
    }

    fn start(size: usize, pki: Option<Pki>, token_life: Option<&'static str>) -> Self {
        let scheme = if pki.is_some() { "https" } else { "http" };
        let addresses = free_addresses(size * 2);
        let members = addresses
            .chunks(2)
            .enumerate()
            .map(|(index, pair)| Member {
                process: None,
                name: format!("m{index}"),
                client_url: format!("{scheme}://{}", pair[0]),
                peer_url: format!("http://{}", pair[1]),
            })
            .collect();
        let mut server = Self { members, pki, token_life, dir: tempfile::tempdir().unwrap() };
        (0..size).for_each(|index| server.spawn(index));
        server.wait_ready();
        server
    }

    pub(crate) fn endpoints(&self) -> String {
        self.members.iter().map(|member| member.client_url.as_str()).collect::<Vec<_>>().join(",")
    }

    /// `127.0.0.1:port` of a member.
    pub(crate) fn address(&self, index: usize) -> SocketAddr {
        let url = &self.members[index].client_url;
        url.rsplit('/').next().unwrap().parse().unwrap()
    }

    pub(crate) fn pki(&self) -> &Pki {
        self.pki.as_ref().unwrap()
    }

    /// What an operator would configure for this server.
    pub(crate) fn config(&self) -> Config {
        let mut config = Config { endpoints: self.endpoints(), ..Config::default() };
        if let Some(pki) = &self.pki {
            config.tls = pki.client().read();
        }
        config
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.config(), 1).unwrap()
    }

    pub(crate) fn store(&self) -> Store {
        Store::new(self.client())
    }

    /// The client crate's own client, to meddle with the server beside the code under test.
    pub(crate) async fn raw(&self) -> etcd_client::Client {
        etcd_client::Client::connect([&self.members[0].client_url], None).await.unwrap()
    }

    /// A member that does not lead.
    pub(crate) async fn a_follower(&self) -> usize {
        for (index, member) in self.members.iter().enumerate() {
            let mut raw = etcd_client::Client::connect([&member.client_url], None).await.unwrap();
            let status = raw.status().await.unwrap();
            if status.leader() != status.header().unwrap().member_id() {
                return index;
            }
        }
        panic!("three members cannot all lead");
    }

    /// Which member answers at `endpoint`.
    pub(crate) fn index_of(&self, endpoint: &str) -> usize {
        self.members.iter().position(|member| member.client_url == endpoint).unwrap()
    }

    /// SIGKILL, as a power cut does it.
    pub(crate) fn kill(&mut self, index: usize) {
        if let Some(mut process) = self.members[index].process.take() {
            // SIGKILL ends stopped processes as well.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// SIGSTOP: connections stay, nobody answers.
    pub(crate) fn freeze(&self, index: usize) {
        let process = self.members[index].process.as_ref().unwrap();
        kill(Pid::from_raw(i32::try_from(process.id()).unwrap()), Signal::SIGSTOP).unwrap();
    }

    /// Starts a killed member on its old data.
    pub(crate) fn restart(&mut self, index: usize) {
        self.restart_all(&[index]);
    }

    /// Starts killed members together: one alone may have no quorum to serve with.
    pub(crate) fn restart_all(&mut self, indices: &[usize]) {
        indices.iter().for_each(|index| self.spawn(*index));
        self.wait_ready();
    }

    /// As [`Self::restart`], without waiting until it serves: with users only they can know.
    pub(crate) fn respawn(&mut self, index: usize) {
        self.spawn(index);
    }

    /// Throws the data of a killed member away.
    pub(crate) fn wipe(&self, index: usize) {
        fs::remove_dir_all(self.data(index)).unwrap();
    }

    fn data(&self, index: usize) -> PathBuf {
        self.dir.path().join(&self.members[index].name)
    }

    fn log(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("{}.log", self.members[index].name))
    }

    fn spawn(&mut self, index: usize) {
        let cluster: Vec<String> =
            self.members.iter().map(|member| format!("{}={}", member.name, member.peer_url)).collect();
        let member = &self.members[index];
        // One that is alone may stand behind a wire: nobody shall learn another way to it.
        let alone = self.members.len() == 1;
        let advertised = if alone { "http://0.0.0.0:1".to_owned() } else { member.client_url.clone() };
        let log = File::options().create(true).append(true).open(self.log(index)).unwrap();
        let mut command = Command::new("etcd");
        command
            .args(["--name", &member.name, "--data-dir"])
            .arg(self.data(index))
            .args(["--listen-client-urls", &member.client_url, "--advertise-client-urls", &advertised])
            .args(["--listen-peer-urls", &member.peer_url, "--initial-advertise-peer-urls", &member.peer_url])
            .args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"])
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if let Some(life) = self.token_life {
            let key = self.dir.path().join("token.key");
            fs::write(&key, "a secret that signs tokens").unwrap();
            let key = key.display();
            command.args(["--auth-token", &format!("jwt,priv-key={key},sign-method=HS256,ttl={life}")]);
        }
        if let Some(pki) = &self.pki {
            command.arg("--client-cert-auth");
            for (flag, file) in [("cert-file", "server.pem"), ("key-file", "server.key"), ("trusted-ca-file", "ca.pem")]
            {
                command.arg(format!("--{flag}")).arg(pki.path(file));
            }
        }
        die_with_parent(&mut command);
        self.members[index].process = Some(command.spawn().unwrap());
    }

    /// Waits until a linearizable read succeeds at every running member.
    fn wait_ready(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let deadline = Instant::now() + START;
        for member in self.members.iter().filter(|member| member.process.is_some()) {
            let config = Config { endpoints: member.client_url.clone(), ..self.config() };
            runtime.block_on(async {
                let store = Store::new(Client::new(&config, 1).unwrap());
                while let Err(error) = store.get("ready?").await {
                    assert!(Instant::now() < deadline, "etcd does not serve: {error}\n{}", self.log_tails());
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            });
        }
    }

    fn log_tails(&self) -> String {
        let tail = |index: usize| {
            let text = fs::read_to_string(self.log(index)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(15)..].join("\n")
        };
        (0..self.members.len()).map(|index| format!("-- m{index}\n{}\n", tail(index))).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|index| self.kill(index));
        if thread::panicking() {
            eprintln!("{}", self.log_tails());
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A test that is killed leaves no etcd behind.
#[allow(unsafe_code)]
fn die_with_parent(command: &mut Command) {
    // SAFETY: prctl(PR_SET_PDEATHSIG) is a plain system call; it allocates nothing and takes no lock, so it may
    // run between fork and exec.
    unsafe {
        command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into));
    }
}

/// Addresses nobody listens on. All are held until all are found, so that they differ.
pub(crate) fn free_addresses(count: usize) -> Vec<SocketAddr> {
    let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap()).collect()
}

/// Limits for cases that wait for a time limit to strike.
pub(crate) fn short_limits() -> Limits {
    Limits { operation: Duration::from_secs(1), ..Limits::default() }
}

/// Certificate files are searched here.
pub(crate) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}
