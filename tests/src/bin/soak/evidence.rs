//! What is needed to find out why: left in a folder of the run.
//!
//! Invariant: what changes is dumped as soon as a violation is known; nothing of it is written where a run passes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::quiet;
use crate::world::{PREFIX, World};

/// The kernel's tables and files, as an operator would look.
const DUMP: &str = "for command in 'ip -d link' 'ip address' 'ip route show table all' 'ip neigh' 'bridge fdb' 'nft list ruleset' \
    'ipvsadm -Sn' 'ss -tunp' 'ls -lR /run/netd /run/flannel /run/ipvs-proxy /var/lib/cni /var/lib/netd /var/lib/ipvs-proxy /run/netns' 'cat /run/flannel/subnet.env'; do \
    echo \"== $command\"; $command 2>&1; done";

/// The folder of a run.
#[derive(Debug)]
pub(crate) struct Evidence {
    pub(crate) folder: PathBuf,
    dumps: u32,
}

/// The most dumps of one run.
const DUMPS: u32 = 5;

impl Evidence {
    /// Nothing is made before there is something to leave.
    pub(crate) fn new(folder: &Path, seed: u64) -> Self {
        let began = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Self { folder: folder.join(format!("{began}-seed-{seed}")), dumps: 0 }
    }

    /// What nodes and store hold now.
    pub(crate) fn dump(&mut self, world: &World) -> Result<()> {
        self.dumps += 1;
        if self.dumps > DUMPS {
            return Ok(());
        }
        let folder = self.folder.join(format!("state-{}-at-{}s", self.dumps, world.shared.now().as_secs()));
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        for name in world.names() {
            let node = world.node(&name)?;
            let kernel = node.host.command("sh").args(["-c", DUMP]).output()?.stdout;
            fs::write(folder.join(format!("{name}.txt")), kernel)?;
            for daemon in ["netd", "ipvs-proxy"] {
                let status = quiet::status(world, &name, daemon).unwrap_or_else(|error| format!("{error:#}"));
                fs::write(folder.join(format!("{name}-{daemon}.json")), status)?;
            }
        }
        for (file, prefix) in [("leases", PREFIX), ("services", "/ipvs-proxy")] {
            let held = world.etcd.etcdctl(&["get", "--prefix", "--", prefix]);
            fs::write(
                folder.join(format!("{file}.txt")),
                held.map_or_else(|error| format!("{error:#}"), |held| held.stdout),
            )?;
        }
        Ok(())
    }

    /// The report, what was done, what was found, and the logs of all daemons.
    pub(crate) fn keep(&self, world: &World, report: &str, actions: &[String]) -> Result<()> {
        let logs = self.folder.join("logs");
        fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
        let found: Vec<String> = world.shared.lock().violations.iter().map(crate::sentence).collect();
        fs::write(self.folder.join("violations.txt"), found.join("\n") + "\n")?;
        fs::write(self.folder.join("actions.txt"), actions.join("\n") + "\n")?;
        fs::write(self.folder.join("report.txt"), report)?;
        for name in world.names() {
            let node = world.node(&name)?;
            for (number, (daemon, log)) in node.logs.iter().enumerate() {
                fs::write(logs.join(format!("{name}-{daemon}-{number}.log")), log)?;
            }
            for process in [("netd", &node.netd), ("ipvs-proxy", &node.proxy)] {
                if let (daemon, Some(process)) = process {
                    fs::write(logs.join(format!("{name}-{daemon}-last.log")), process.log())?;
                }
            }
        }
        Ok(())
    }
}
