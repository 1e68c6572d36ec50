//! The verbs of netd that change something: what is left on a node, and what is in its store.
//!
//! Invariant: what a verb works on is made anew for each call, and nothing else is there.

use anyhow::{Result, ensure};

use super::netd::{self, SUBNETS};
use super::verbs::Verb;
use crate::netd_node::cleanup::{self, FLANNEL, RULES};
use crate::netd_node::{Net, SOON, VXLAN, lease};

const NODE: &str = "hdss7-21";
const CONFIG: &str = "/coreos.com/network/config";

/// `cleanup` behind a daemon, behind flannel, and of flannel's rules alone.
pub(crate) fn cleanup_finishes(sample: usize) -> Result<usize> {
    let net = Net::start(VXLAN)?;
    net.put_lease("172.7.22.0-24", "10.4.7.22", "02:00:00:00:01:22")?;
    let host = net.host(NODE)?;
    let state = || Ok(format!("{}{:?}", cleanup::state(host)?, cleanup::files(host)?));
    let daemon = || {
        let netd = net.netd(NODE)?;
        ensure!(netd.terminate(SOON)?.success());
        Ok(())
    };
    let words = ["cleanup", "--yes", "--files"];
    let verb =
        Verb { host, program: "netd", words: &words, prepare: &daemon, state: &state, nothing: None, is_whole: false };
    let mut faults = verb.walk(sample)?;
    let rules = || {
        netd::clean(host)?;
        // What its rules stood in is theirs who made it.
        cleanup::cleanup(host, &["--flannel", "--yes", "--files"])?;
        host.run(&["sh", "-ec", RULES]).map(drop)
    };
    let all = || {
        rules()?;
        host.run(&["sh", "-ec", FLANNEL]).map(drop)
    };
    let words = ["cleanup", "--yes", "--files", "--flannel"];
    faults += Verb { words: &words, prepare: &all, ..verb }.walk(sample)?;
    let words = ["cleanup", "--yes", "--flannel-rules"];
    faults += Verb { words: &words, prepare: &rules, ..verb }.walk(sample)?;
    Ok(faults)
}

/// `config set` and `config edit`, and `lease reserve` and `lease release`.
pub(crate) fn store_is_changed_once(sample: usize) -> Result<usize> {
    let net = Net::start(VXLAN)?;
    let host = net.host(NODE)?;
    let endpoints = format!("--etcd-endpoints={}", net.etcd.endpoints());
    let leased = format!("{SUBNETS}/172.7.22.0-24");
    let state = || {
        let keys = net.etcd.keys("/coreos.com/network/")?;
        let values = keys.iter().map(|key| net.etcd.get(key)).collect::<Result<Vec<_>>>()?;
        Ok(format!("{keys:?}\n{values:?}\n"))
    };
    let prepare = || {
        net.etcd.put(CONFIG, VXLAN)?;
        let reserved = format!("{SUBNETS}/172.7.23.0-24");
        if net.etcd.get(&reserved)?.is_some() {
            net.etcd.delete(&reserved)?;
        }
        net.etcd.put(&leased, &lease("10.4.7.22", "02:00:00:00:01:22"))
    };
    let etcd = endpoints.as_str();
    let other = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#;
    let calls = [
        &[etcd, "config", "set", other][..],
        &[etcd, "config", "edit", "Backend.VNI=3"],
        &[etcd, "lease", "reserve", "172.7.23.0/24", "--node=10.4.7.23"],
        &[etcd, "lease", "release", "172.7.22.0/24"],
    ];
    let mut faults = 0;
    for words in calls {
        // What is released already is not there.
        let nothing = words.contains(&"release").then_some("does not exist");
        let verb = Verb { host, program: "netd", words, prepare: &prepare, state: &state, nothing, is_whole: true };
        faults += verb.walk(sample)?;
    }
    Ok(faults)
}

/// `config set` of a machine alone, and `docker-opts`: a file each.
pub(crate) fn files_are_whole(sample: usize) -> Result<usize> {
    let net = Net::start(VXLAN)?;
    let host = net.host(NODE)?;
    let state = || {
        let script = "find /run/alone /run/docker -type f ! -name '.tmp*' | sort | while read file; do stat -c '%n %a %u' $file; cat $file; done";
        Ok(host.command("sh").args(["-c", script]).output()?.stdout)
    };
    let prepare = || {
        host.run(&["sh", "-c", "rm -rf /run/alone /run/docker; mkdir -p /run/alone /run/docker"])?;
        host.write("/run/alone/subnet.env", "FLANNEL_SUBNET=172.7.21.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n")?;
        host.write("/run/alone/net-conf.json", VXLAN)?;
        host.write("/run/docker/opts.env", "DOCKER_OPTS=\"--bip=172.7.20.1/24\"\n")?;
        host.run(&["sh", "-c", "chown 1000 /run/alone/net-conf.json; chmod 640 /run/alone/net-conf.json"]).map(drop)
    };
    let other = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"host-gw"}}"#;
    let calls = [
        &["--store=local", "--net-config-path=/run/alone/net-conf.json", "config", "set", other][..],
        &["docker-opts", "-f", "/run/alone/subnet.env", "-d", "/run/docker/opts.env"],
    ];
    let mut faults = 0;
    for words in calls {
        let verb =
            Verb { host, program: "netd", words, prepare: &prepare, state: &state, nothing: None, is_whole: true };
        faults += verb.walk(sample)?;
    }
    Ok(faults)
}
