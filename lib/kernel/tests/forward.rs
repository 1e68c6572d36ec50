//! Accepts in foreign chains of the forward hook, with packets, beside the kinds of chains that other programs make.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests may panic")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use common::{cases, ip, sh};
use kernel::nft::Nft;
use kernel::nft::forward::{Accept, Forward};
use netstate::nft::{Family, Name, TableKey};
use netstate::{IfName, Prefix};
use reconcile::{Pass, Stage};

const MARKER: &str = "netd: Pod network";

fn p(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn both_ways(networks: &[&str]) -> BTreeSet<Accept> {
    networks.iter().flat_map(|text| [Accept::From(p(text)), Accept::To(p(text))]).collect()
}

fn forward(marker: &'static str, accepts: BTreeSet<Accept>) -> Forward {
    let own = TableKey { family: Family::Ip, name: Name::new("netd").unwrap() };
    let mut forward = Forward::new(Nft::open().unwrap(), BTreeSet::from([own]), marker);
    forward.want(accepts);
    forward
}

/// One pass that reads anew.
fn run(forward: &mut Forward) -> Pass {
    forward.invalidate();
    forward.pass(true, Duration::ZERO)
}

/// A pass without failures, then one that changes nothing.
#[track_caller]
fn settle(forward: &mut Forward) -> Pass {
    let first = run(forward);
    assert_eq!(first.errors, vec![]);
    assert!(forward.status().is_done(), "{:?}", forward.status());
    let generation = Nft::open().unwrap().generation().unwrap();
    let second = run(forward);
    assert!(second.is_idle(), "second pass: {second:?}\n{}", nft("list ruleset"));
    assert_eq!(Nft::open().unwrap().generation().unwrap(), generation, "nothing to do costs no transaction");
    first
}

fn nft(args: &str) -> String {
    sh("nft", &args.split_whitespace().collect::<Vec<_>>())
}

fn iptables(args: &str) -> String {
    sh("iptables-nft", &args.split_whitespace().collect::<Vec<_>>())
}

fn load(program: &str, args: &[&str], text: &str) {
    let mut child = Command::new(program).args(args).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program} {args:?} of {text}");
}

/// A host behind the test's namespace, which routes between several.
struct Host(Child);

impl Host {
    fn new(name: &str, router: &str, addresses: &[&str]) -> Self {
        let child = Command::new("unshare").args(["-n", "sleep", "600"]).spawn().unwrap();
        let (pid, own) = (child.id(), fs::read_link("/proc/thread-self/ns/net").unwrap());
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|link| link == own) {
            assert!(Instant::now() < deadline, "no namespace for {name}");
            std::thread::yield_now();
        }
        let host = Self(child);
        ip(&format!("link add {name} type veth peer name eth0 netns {pid}"));
        ip(&format!("addr add {router} dev {name}"));
        ip(&format!("link set {name} up"));
        for address in addresses {
            host.run(&format!("ip addr add {address} dev eth0"));
        }
        host.run("ip link set eth0 up");
        host.run(&format!("ip route add default via {}", router.split('/').next().unwrap()));
        host
    }

    fn command(&self, words: &str) -> Command {
        let pid = self.0.id().to_string();
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid, "-n"]).args(words.split_whitespace());
        command
    }

    fn run(&self, words: &str) {
        assert!(self.command(words).status().unwrap().success(), "{words}");
    }

    fn reaches(&self, address: &str) -> bool {
        let mut ping = self.command(&format!("ping -c1 -W1 {address}"));
        ping.stdout(Stdio::null()).status().unwrap().success()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A Pod, and a server with one address that everybody may reach and one that is forbidden.
fn pod_and_server() -> (Host, Host) {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    let pod = Host::new("pod", "172.7.21.1/24", &["172.7.21.2/24"]);
    let server = Host::new("server", "10.9.0.1/24", &["10.9.0.2/24", "10.9.0.3/24"]);
    (pod, server)
}

/// What a container engine leaves: its own chain for the administrator's denials first, and the policy.
const DOCKER: &str = "*filter
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
:DOCKER-FORWARD - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER-USER -s 172.7.21.2 -d 10.9.0.3 -j DROP
-A DOCKER-FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -i docker0 -j ACCEPT
COMMIT
";

/// Network policies as firewall chains per Pod: what no policy has marked is rejected.
const KUBE_ROUTER: &str = "*filter
:FORWARD DROP [0:0]
:KUBE-ROUTER-FORWARD - [0:0]
:KUBE-POD-FW-A - [0:0]
:KUBE-NWPLCY-A - [0:0]
-A FORWARD -j KUBE-ROUTER-FORWARD
-A KUBE-ROUTER-FORWARD -s 172.7.21.2 -j KUBE-POD-FW-A
-A KUBE-POD-FW-A -j KUBE-NWPLCY-A
-A KUBE-POD-FW-A -m mark ! --mark 0x10000/0x10000 -j REJECT
-A KUBE-POD-FW-A -j MARK --set-xmark 0x0/0x10000
-A KUBE-NWPLCY-A -d 10.9.0.2 -j MARK --set-xmark 0x10000/0x10000
COMMIT
";

/// ufw with DEFAULT_FORWARD_POLICY=REJECT: the refusal of everything stands in a chain of its own.
const UFW: &str = "*filter
:FORWARD ACCEPT [0:0]
:ufw-before-forward - [0:0]
:ufw-user-forward - [0:0]
:ufw-after-logging-forward - [0:0]
:ufw-reject-forward - [0:0]
:ufw-track-forward - [0:0]
-A FORWARD -j ufw-before-forward
-A FORWARD -j ufw-after-logging-forward
-A FORWARD -j ufw-reject-forward
-A FORWARD -j ufw-track-forward
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -j ufw-user-forward
-A ufw-user-forward -d 10.9.0.3 -j REJECT
-A ufw-after-logging-forward -m limit --limit 3/min -j LOG
-A ufw-reject-forward -j REJECT
COMMIT
";

/// A firewall of RHEL's kind: everything is rejected by the last rule, whatever the policy.
const LAST_RULE: &str = "*filter
:FORWARD ACCEPT [0:0]
-A FORWARD -d 10.9.0.3 -j DROP
-A FORWARD -j LOG
-A FORWARD -j REJECT --reject-with icmp-host-prohibited
COMMIT
";

const NATIVE: &str = "table inet strict {
    set forbidden { type ipv4_addr; elements = { 10.9.0.3 } }
    chain f {
        type filter hook forward priority 10; policy drop;
        ct state established accept
        ip daddr @forbidden drop
        iifname \"docker0\" counter accept
    }
}
";

/// Denials in a target of a jump, with a log, and beside a map of verdicts.
const NESTED: &str = "table ip strict {
    chain forbidden {
        ip daddr 10.9.0.3 log prefix \"denied \" counter drop
    }
    chain by_host {
        ip saddr 172.7.21.2 goto forbidden
    }
    chain f {
        type filter hook forward priority -5; policy drop;
        ct state vmap { established : accept, related : accept, invalid : drop }
        jump by_host
        limit rate 1/minute log prefix \"end \"
    }
}
";

/// The same, with a denial of everything behind the jump and a policy that accepts.
const NESTED_END: &str = "table inet strict {
    chain forbidden {
        meta nfproto ipv4 ip daddr 10.9.0.3 reject
    }
    chain f {
        type filter hook forward priority 5; policy accept;
        ct state established,related accept
        jump forbidden
        goto end
    }
    chain end {
        log
        drop
    }
}
";

/// The refusal of everything as nft reads it in a table of both families: `icmp` is a condition on the family.
const EACH_FAMILY: &str = "table inet strict {
    chain f {
        type filter hook forward priority 10; policy accept;
        ct state established accept
        ip daddr 10.9.0.3 drop
        reject with icmp type host-prohibited
        reject with icmpv6 type admin-prohibited
    }
}
";

/// Denials that name nothing, though they have conditions: every first packet meets them.
const NEW: &str = "table inet strict {
    chain f {
        type filter hook forward priority 10; policy accept;
        ct state established,related accept
        ip daddr 10.9.0.3 drop
        ct state invalid,new drop
    }
}
";

const NEW_LEGACY: &str = "*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -d 10.9.0.3/32 -j DROP
-A FORWARD -m conntrack --ctstate NEW -j DROP
COMMIT
";

const EVERYWHERE: &str = "table ip strict {
    chain f {
        type filter hook forward priority 10; policy accept;
        ct state established accept
        ip daddr 10.9.0.3 drop
        ip daddr 0.0.0.0/0 drop
    }
}
";

fn denial_of_a_foreign_chain_still_denies_what_it_denied() {
    let (pod, _server) = pod_and_server();
    for (what, program, args, rules) in [
        ("docker", "iptables-nft-restore", &[][..], DOCKER),
        ("kube-router", "iptables-nft-restore", &[], KUBE_ROUTER),
        ("ufw", "iptables-nft-restore", &[], UFW),
        ("last rule", "iptables-nft-restore", &[], LAST_RULE),
        ("native", "nft", &["-f", "-"], NATIVE),
        ("nested", "nft", &["-f", "-"], NESTED),
        ("nested end", "nft", &["-f", "-"], NESTED_END),
        ("each family", "nft", &["-f", "-"], EACH_FAMILY),
        ("new", "nft", &["-f", "-"], NEW),
        ("new by iptables", "iptables-nft-restore", &[], NEW_LEGACY),
        ("everywhere", "nft", &["-f", "-"], EVERYWHERE),
    ] {
        nft("flush ruleset");
        load(program, args, rules);
        assert!(!pod.reaches("10.9.0.2"), "{what}: denied by default");
        let mut forward = forward(MARKER, both_ways(&["172.7.0.0/16"]));
        settle(&mut forward);
        assert!(pod.reaches("10.9.0.2"), "{what}: accepted\n{}", nft("list ruleset"));
        assert!(!pod.reaches("10.9.0.3"), "{what}: still denied\n{}", nft("list ruleset"));
        forward.want(BTreeSet::new());
        settle(&mut forward);
        assert!(!pod.reaches("10.9.0.2"), "{what}: taken back\n{}", nft("list ruleset"));
        assert!(!nft("list ruleset").contains("172.7.0.0"), "{what}");
    }
}

fn denials_of_several_foreign_chains_at_once_still_deny() {
    let (pod, _server) = pod_and_server();
    load("iptables-nft-restore", &[], DOCKER);
    load("nft", &["-f", "-"], NATIVE);
    load("nft", &["-f", "-"], &NESTED.replace("strict", "nested"));
    let mut forward = forward(MARKER, both_ways(&["172.7.0.0/16"]));
    for blow in ["", "flush chain inet strict f", "delete table ip nested", "delete table inet strict"] {
        if !blow.is_empty() {
            nft(blow);
        }
        settle(&mut forward);
        assert!(pod.reaches("10.9.0.2"), "{blow}: {}", nft("list ruleset"));
        assert!(!pod.reaches("10.9.0.3"), "{blow}: {}", nft("list ruleset"));
    }
    // Made again by its owner, without ours.
    load("nft", &["-f", "-"], NATIVE);
    assert!(!pod.reaches("10.9.0.2"));
    settle(&mut forward);
    assert!(pod.reaches("10.9.0.2") && !pod.reaches("10.9.0.3"), "{}", nft("list ruleset"));
}

fn denial_that_comes_later_denies() {
    let (pod, _server) = pod_and_server();
    iptables("-P FORWARD DROP");
    let mut forward = forward(MARKER, both_ways(&["172.7.0.0/16"]));
    settle(&mut forward);
    assert!(pod.reaches("10.9.0.3"));
    iptables("-A FORWARD -d 10.9.0.3 -j DROP");
    // It stands behind ours, which go behind it.
    let pass = settle(&mut forward);
    assert_eq!(pass.upserted, 1, "{pass:?}");
    assert!(!pod.reaches("10.9.0.3"), "{}", iptables("-S FORWARD"));
    assert!(pod.reaches("10.9.0.2"));
    // What accepts more may stand behind us: two programs at the end do not chase each other.
    iptables("-A FORWARD -i docker0 -j ACCEPT");
    assert!(run(&mut forward).is_idle());
}

fn rules_that_went_through_iptables_save_and_restore_stay_ours() {
    iptables("-P FORWARD DROP");
    let mut accepts = both_ways(&["172.7.0.0/16", "172.8.0.0/17"]);
    accepts.extend([Accept::Marked(0x4000), Accept::Established]);
    let mut forward = forward(MARKER, accepts);
    settle(&mut forward);
    let before = iptables("-S FORWARD");
    assert_eq!(before.matches(MARKER).count(), 6, "{before}");
    for _ in 0..3 {
        load("iptables-nft-restore", &[], &sh("iptables-nft-save", &[]));
        let pass = settle(&mut forward);
        assert!(pass.is_idle(), "{pass:?}");
        assert_eq!(iptables("-S FORWARD"), before);
    }
    // Doubled by an append of what was saved: each once again.
    load("iptables-nft-restore", &["--noflush"], &sh("iptables-nft-save", &[]));
    assert_eq!(iptables("-S FORWARD").matches(MARKER).count(), 12);
    settle(&mut forward);
    assert_eq!(iptables("-S FORWARD").matches(MARKER).count(), 6);
    // The policy goes back: nothing of ours stays, in whatever form.
    load("iptables-nft-restore", &[], &sh("iptables-nft-save", &[]));
    iptables("-P FORWARD ACCEPT");
    settle(&mut forward);
    assert_eq!(iptables("-S FORWARD"), "-P FORWARD ACCEPT\n");
}

fn rules_are_taken_back_from_every_chain_when_nothing_shall_pass() {
    load("iptables-nft-restore", &[], DOCKER);
    load("nft", &["-f", "-"], NATIVE);
    let listed = || [iptables("-S FORWARD"), nft("list chain inet strict f")];
    let before = listed();
    let mut forward = forward(MARKER, both_ways(&["172.7.0.0/16", "fd00::/48"]));
    settle(&mut forward);
    assert_eq!(forward.status().desired, 2);
    assert_eq!(iptables("-S FORWARD").matches(MARKER).count(), 2, "an IPv4 table sees no IPv6");
    assert_eq!(nft("list chain inet strict f").matches(MARKER).count(), 4);
    load("iptables-nft-restore", &[], &sh("iptables-nft-save", &[]));
    // A new run that wants nothing finds them.
    settle(&mut self::forward(MARKER, BTreeSet::new()));
    assert_eq!(listed(), before);
}

fn each_program_has_its_own_rules() {
    iptables("-P FORWARD DROP");
    let mut netd = forward(MARKER, both_ways(&["172.7.0.0/16"]));
    let mut proxy = forward("ipvs-proxy: Services", BTreeSet::from([Accept::Marked(0x4000), Accept::Established]));
    settle(&mut netd);
    settle(&mut proxy);
    assert!(run(&mut netd).is_idle() && run(&mut proxy).is_idle());
    assert_eq!(
        iptables("-S FORWARD").lines().skip(1).collect::<Vec<_>>(),
        [
            "-A FORWARD -s 172.7.0.0/16 -m comment --comment \"netd: Pod network\" -j ACCEPT",
            "-A FORWARD -d 172.7.0.0/16 -m comment --comment \"netd: Pod network\" -j ACCEPT",
            "-A FORWARD -m mark --mark 0x4000/0x4000 -m comment --comment \"ipvs-proxy: Services\" -j ACCEPT",
            "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment \"ipvs-proxy: Services\" -j ACCEPT",
        ]
    );
    netd.want(BTreeSet::new());
    settle(&mut netd);
    assert_eq!(iptables("-S FORWARD").matches("ipvs-proxy").count(), 2);
}

fn flushed_chain_and_changed_rules_are_put_right() {
    load("iptables-nft-restore", &[], DOCKER);
    let mut forward = forward(MARKER, both_ways(&["172.7.0.0/16"]));
    settle(&mut forward);
    let denying: Vec<String> = forward.denying().iter().map(ToString::to_string).collect();
    assert_eq!(denying, ["foreign chain ip filter FORWARD drops forwarded packets by policy"]);
    iptables("-F FORWARD");
    settle(&mut forward);
    assert_eq!(iptables("-S FORWARD").matches(MARKER).count(), 2);
    // A rule with our marker that does something else.
    nft("add rule ip filter FORWARD ip saddr 172.7.0.0/16 drop comment \"netd:\\ Pod\\ network\"");
    load(
        "nft",
        &["-f", "-"],
        "insert rule ip filter FORWARD ip saddr 172.7.0.0/16 drop comment \"netd: Pod network\"\n",
    );
    settle(&mut forward);
    let text = iptables("-S FORWARD");
    assert_eq!(text.matches(&format!("\"{MARKER}\" -j ACCEPT")).count(), 2, "{text}");
}

/// A zone per interface, each with its own end, as firewalld makes them.
const ZONES: &str = "table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority 10; policy accept;
        ct state { established, related } accept
        jump filter_FORWARD_ZONES
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD_ZONES {
        iifname \"dmz\" goto filter_FWD_dmz
        goto filter_FWD_public
    }
    chain filter_FWD_public {
        jump filter_FWD_public_deny
        iifname \"lan\" accept
        reject with icmpx admin-prohibited
    }
    chain filter_FWD_public_deny {
        ip daddr 10.9.0.3 reject
    }
    chain filter_FWD_dmz {
        iifname \"lan\" accept
        reject with icmpx admin-prohibited
    }
    chain filter_FWD_trusted {
        accept
    }
}
";

/// Replaces the last rule of `chain` in the table of zones.
fn replace_last_rule(chain: &str, rule: &str) {
    let listed = nft(&format!("-a list chain inet firewalld {chain}"));
    let last = listed.lines().rev().find_map(|line| line.rsplit_once("# handle ")).unwrap();
    nft(&format!("delete rule inet firewalld {chain} handle {}", last.1));
    nft(&format!("add rule inet firewalld {chain} {rule}"));
}

fn accept_stands_in_the_zone_that_denies_and_follows_the_default_zone() {
    let (pod, _server) = pod_and_server();
    load("nft", &["-f", "-"], ZONES);
    assert!(!pod.reaches("10.9.0.2"), "denied by default");
    let mut forward = forward(MARKER, both_ways(&["172.7.0.0/16"]));
    settle(&mut forward);
    assert!(pod.reaches("10.9.0.2"), "{}", nft("list table inet firewalld"));
    assert!(!pod.reaches("10.9.0.3"), "the zone's own denial denies: {}", nft("list table inet firewalld"));
    let denying: Vec<String> = forward.denying().iter().map(ToString::to_string).collect();
    let wanted = "foreign chain inet firewalld filter_FORWARD drops forwarded packets in its chain filter_FWD_public";
    assert_eq!(denying, [wanted]);
    assert_eq!(nft("list chain inet firewalld filter_FWD_public").matches(MARKER).count(), 2);
    // Another zone becomes the default: nothing of ours stays where it is not needed.
    replace_last_rule("filter_FORWARD_ZONES", "goto filter_FWD_dmz");
    settle(&mut forward);
    assert_eq!(nft("list table inet firewalld").matches(MARKER).count(), 2);
    assert_eq!(nft("list chain inet firewalld filter_FWD_dmz").matches(MARKER).count(), 2);
    assert!(pod.reaches("10.9.0.2"));
    // One that accepts: none is needed. A later run, which wants nothing, finds what an earlier one left.
    replace_last_rule("filter_FORWARD_ZONES", "goto filter_FWD_trusted");
    settle(&mut forward);
    assert!(!nft("list table inet firewalld").contains(MARKER));
    replace_last_rule("filter_FORWARD_ZONES", "goto filter_FWD_dmz");
    settle(&mut forward);
    settle(&mut self::forward(MARKER, BTreeSet::new()));
    assert!(!nft("list table inet firewalld").contains(MARKER));
}

/// A denial behind the jump to each zone, told from others by interfaces, as firewalld 2.3 makes them.
const PAIRS: &str = "table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority 10; policy accept;
        ct state { established, related } accept
        jump filter_FORWARD_POLICIES
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD_POLICIES {
        iifname \"lan\" oifname \"UPLINK\" jump filter_FWD_lan
        iifname \"lan\" oifname \"UPLINK\" log prefix \"filter_FWD_lan_REJECT: \"
        iifname \"lan\" oifname \"UPLINK\" reject with icmpx admin-prohibited
        iifname \"POD\" jump filter_FWD_policy
        iifname \"POD\" jump filter_FWD_work
        iifname \"POD\" drop
        oifname \"UPLINK\" jump filter_FWD_policy
        oifname \"UPLINK\" jump filter_FWD_public
        oifname \"UPLINK\" log prefix \"filter_FWD_public_REJECT: \"
        oifname \"UPLINK\" reject with icmpx admin-prohibited
        jump filter_FWD_public
        reject with icmpx admin-prohibited
    }
    chain filter_FWD_policy {
        ip daddr 10.9.0.3 drop
    }
    chain filter_FWD_lan {
    }
    chain filter_FWD_work {
        jump filter_FWD_work_deny
    }
    chain filter_FWD_work_deny {
    }
    chain filter_FWD_public {
        jump filter_FWD_policy
    }
}
";

/// The link of the Pod in zone `work`, or in none; the server's link is in a zone, so that pairs with it stand first.
fn exception_stands_before_the_denial_of_each_zone_and_has_its_conditions() {
    let (pod, _server) = pod_and_server();
    let links: BTreeSet<IfName> = [IfName::new("pod").unwrap()].into();
    for (zone, links, rules) in [("pod", links, 6), ("other", BTreeSet::new(), 4)] {
        load("nft", &["-f", "-"], &PAIRS.replace("POD", zone).replace("UPLINK", "server"));
        assert!(!pod.reaches("10.9.0.2"), "denied by default");
        let mut forward = forward(MARKER, both_ways(&["172.7.0.0/16"]));
        forward.entered_by(links);
        settle(&mut forward);
        let all = nft("list table inet firewalld");
        assert!(pod.reaches("10.9.0.2"), "{all}");
        assert!(!pod.reaches("10.9.0.3"), "the owner's denial denies: {all}");
        let policies = nft("list chain inet firewalld filter_FORWARD_POLICIES");
        let ours: Vec<&str> = policies.lines().filter(|line| line.contains(MARKER)).collect();
        assert!(ours.iter().all(|line| !line.contains("lan")), "strangers may pass: {all}");
        assert_eq!((ours.len(), all.matches(MARKER).count()), (rules, rules), "{all}");
        // What is accepted is not logged as denied.
        let before_log = "oifname \"server\" ip daddr 172.7.0.0/16 accept";
        let (accepted, logged) = (policies.find(before_log), policies.find("filter_FWD_public_REJECT"));
        assert!(accepted.is_some() && accepted < logged, "{policies}");
        let denying: Vec<String> = forward.denying().iter().map(ToString::to_string).collect();
        assert_eq!(
            denying,
            [
                "foreign chain inet firewalld filter_FORWARD drops forwarded packets in its chain filter_FORWARD_POLICIES"
            ]
        );
        settle(&mut self::forward(MARKER, BTreeSet::new()));
        assert!(!nft("list table inet firewalld").contains(MARKER));
        nft("delete table inet firewalld");
    }
}

/// The zone of a link denies, everything else passes.
fn denial_of_a_zone_alone_is_accepted_in_or_a_row_that_says_why_not() {
    let (pod, _server) = pod_and_server();
    let closed = "iifname \"pod\" jump filter_FWD_work\n        iifname \"pod\" drop";
    let rules = format!(
        "table inet strict {{
    chain filter_FWD_work {{
        tcp dport 22 accept
    }}
    chain f {{
        type filter hook forward priority 10; policy accept;
        {closed}
    }}
}}
"
    );
    load("nft", &["-f", "-"], &rules);
    assert!(!pod.reaches("10.9.0.2"));
    let mut forward = forward(MARKER, both_ways(&["172.7.0.0/16"]));
    forward.entered_by([IfName::new("pod").unwrap()].into());
    settle(&mut forward);
    assert!(pod.reaches("10.9.0.2"), "{}", nft("list table inet strict"));
    let denying: Vec<String> = forward.denying().iter().map(ToString::to_string).collect();
    assert_eq!(denying, ["foreign chain inet strict f drops forwarded packets by a rule for some interfaces"]);
    nft("delete table inet strict");
    // The zone's chain is that of another hook as well.
    let zone = "chain work { tcp dport 22 accept; drop; }";
    let hooks = ["forward", "input"].map(|hook| {
        format!("chain {hook} {{ type filter hook {hook} priority 10; policy accept; iifname \"pod\" goto work; }}")
    });
    load("nft", &["-f", "-"], &format!("table inet strict {{ {zone}; {}; }}\n", hooks.join("; ")));
    let pass = run(&mut forward);
    assert_eq!((pass.upserted, pass.failed), (0, 1), "{pass:?}");
    assert!(pass.errors[0].to_string().contains("denied at the end of chain work"), "{pass:?}");
    assert!(forward.denying()[0].obstructed, "{:?}", forward.denying());
}

/// Its owner lets nothing in by that link, and logs what he denies: no default that an accept may be an exception of.
fn denial_behind_a_chain_that_only_logs_is_meant_so() {
    let (pod, _server) = pod_and_server();
    let logs = "chain dropped { limit rate 2/minute log prefix \"dropped \"; return; }";
    let denies = "iifname pod jump dropped; iifname pod drop;";
    let base = format!("chain f {{ type filter hook forward priority 10; policy accept; {denies} }}");
    load("nft", &["-f", "-"], &format!("table inet strict {{ {logs}; {base}; }}\n"));
    assert!(!pod.reaches("10.9.0.2"));
    let mut forward = forward(MARKER, both_ways(&["172.7.0.0/16"]));
    forward.entered_by([IfName::new("pod").unwrap()].into());
    settle(&mut forward);
    let all = nft("list ruleset");
    assert!(!pod.reaches("10.9.0.2"), "the owner's denial denies: {all}");
    assert!(!all.contains(MARKER), "{all}");
}

/// What it accepts in another chain is ours, not its owner's.
fn row_that_fails_goes_on_failing_beside_our_own_accepts() {
    let zone = "chain work { tcp dport 22 accept; drop; }";
    let hooks = [("forward", "drop"), ("input", "accept")].map(|(hook, policy)| {
        format!("chain {hook} {{ type filter hook {hook} priority 10; policy {policy}; iifname \"pod\" goto work; }}")
    });
    load("nft", &["-f", "-"], &format!("table inet strict {{ {zone}; {}; }}\n", hooks.join("; ")));
    let mut forward = forward(MARKER, both_ways(&["172.7.0.0/16"]));
    forward.entered_by([IfName::new("pod").unwrap()].into());
    let first = run(&mut forward);
    assert_eq!((first.upserted, first.failed), (1, 1), "{first:?}");
    forward.invalidate();
    let second = forward.pass(true, Duration::from_secs(3600));
    assert_eq!((second.upserted, second.failed), (0, 1), "{second:?}");
}

/// A policy of firewalld's with the target DROP for what comes in by the link, in front of a zone that denies as well.
fn denial_of_a_policy_for_a_link_is_meant_so() {
    let (pod, _server) = pod_and_server();
    let policy = "chain denies { tcp dport 22 accept; drop; }; chain allow { }; chain zone { jump allow; }";
    for zone in ["iifname pod goto zone", "iifname pod jump zone; iifname pod drop"] {
        let base = "type filter hook forward priority 10; policy accept; iifname pod jump denies;";
        load("nft", &["-f", "-"], &format!("table inet strict {{ {policy}; chain f {{ {base} {zone}; }}; }}\n"));
        let mut forward = forward(MARKER, both_ways(&["172.7.0.0/16"]));
        forward.entered_by([IfName::new("pod").unwrap()].into());
        settle(&mut forward);
        let all = nft("list ruleset");
        assert!(!pod.reaches("10.9.0.2") && !all.contains(MARKER), "the owner's denial denies: {all}");
        nft("delete table inet strict");
    }
}

fn chain_that_denies_in_one_of_several_hooks_is_a_row_that_fails_and_says_why() {
    let shared = "add chain inet firewalld filter_INPUT { type filter hook input priority 10; policy accept; }\n\
                  add rule inet firewalld filter_INPUT iifname dmz goto filter_FWD_public\n";
    load("nft", &["-f", "-"], ZONES);
    load("nft", &["-f", "-"], shared);
    iptables("-P FORWARD DROP");
    let mut forward = forward(MARKER, both_ways(&["172.7.0.0/16"]));
    let pass = run(&mut forward);
    assert_eq!((pass.upserted, pass.failed), (1, 1), "the other chain is accepted in: {pass:?}");
    assert!(pass.errors[0].to_string().contains("chain filter_FWD_public"), "{pass:?}");
    assert!(!forward.status().is_done());
    assert!(!nft("list table inet firewalld").contains("172.7"), "what another hook denies is not accepted");
    // The administrator puts the network into a zone that forwards.
    for direction in ["saddr", "daddr"] {
        nft(&format!(
            "insert rule inet firewalld filter_FORWARD_ZONES ip {direction} 172.7.0.0/16 goto filter_FWD_trusted"
        ));
    }
    settle(&mut forward);
}

/// A program that keeps a table for itself as long as it lives, as newer firewalld does.
struct OwnerOfTable(Child);

impl OwnerOfTable {
    fn start(rules: &str) -> Self {
        let mut child = Command::new("nft").arg("-i").stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(rules.as_bytes()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !nft("list tables").contains("owned") {
            assert!(Instant::now() < deadline, "no table");
            std::thread::yield_now();
        }
        Self(child)
    }
}

impl Drop for OwnerOfTable {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn table_that_one_process_keeps_for_itself_is_a_row_that_fails_and_says_what_helps() {
    let _owner = OwnerOfTable::start(
        "add table inet owned { flags owner; chain f { type filter hook forward priority 10; policy drop; }; }\n",
    );
    let mut forward = forward(MARKER, both_ways(&["172.7.0.0/16"]));
    let pass = run(&mut forward);
    assert_eq!((pass.upserted, pass.failed), (0, 1), "{pass:?}");
    assert!(pass.errors[0].to_string().contains("--zone=trusted --add-source"), "{pass:?}");
    assert!(forward.denying()[0].obstructed);
}

/// Only packets of one link are denied, as in firewalld's zone `drop` with another default zone.
fn zone_of_a_table_that_one_process_keeps_for_itself_is_a_row_that_fails() {
    let rules = "iifname eth0 jump zone; iifname eth0 drop;";
    let _owner = OwnerOfTable::start(&format!(
        "add table inet owned {{ flags owner; chain allow {{ }}; chain zone {{ jump allow; }}; \
         chain f {{ type filter hook forward priority 10; policy accept; {rules} }}; }}\n"
    ));
    let mut forward = forward(MARKER, both_ways(&["172.7.0.0/16"]));
    assert_eq!(run(&mut forward).failed, 0, "packets come in by another link");
    forward.entered_by([IfName::new("eth0").unwrap()].into());
    let pass = run(&mut forward);
    assert_eq!((pass.upserted, pass.failed), (0, 1), "{pass:?}");
    assert!(pass.errors[0].to_string().contains("--zone=trusted --add-source"), "{pass:?}");
}

/// Tried in a namespace of its own: since Linux 5.12 (NFT_TABLE_F_OWNER).
fn tables_have_owners() -> bool {
    let tried = Command::new("unshare").args(["-n", "nft", "add table inet owned { flags owner; }"]).output();
    tried.is_ok_and(|output| output.status.success())
}

fn main() -> ExitCode {
    let cases = cases![
        denial_of_a_foreign_chain_still_denies_what_it_denied,
        denials_of_several_foreign_chains_at_once_still_deny,
        denial_that_comes_later_denies,
        rules_that_went_through_iptables_save_and_restore_stay_ours,
        rules_are_taken_back_from_every_chain_when_nothing_shall_pass,
        each_program_has_its_own_rules,
        flushed_chain_and_changed_rules_are_put_right,
        accept_stands_in_the_zone_that_denies_and_follows_the_default_zone,
        exception_stands_before_the_denial_of_each_zone_and_has_its_conditions,
        denial_of_a_zone_alone_is_accepted_in_or_a_row_that_says_why_not,
        denial_behind_a_chain_that_only_logs_is_meant_so,
        denial_of_a_policy_for_a_link_is_meant_so,
        row_that_fails_goes_on_failing_beside_our_own_accepts,
        chain_that_denies_in_one_of_several_hooks_is_a_row_that_fails_and_says_why,
    ];
    let of_owners = cases![
        table_that_one_process_keeps_for_itself_is_a_row_that_fails_and_says_what_helps,
        zone_of_a_table_that_one_process_keeps_for_itself_is_a_row_that_fails,
    ];
    common::main_with(cases, "tables of nftables with an owner", tables_have_owners(), of_owners)
}
