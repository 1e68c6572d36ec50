//! The chains FORWARD and INPUT of iptables-legacy as its own tool makes them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may panic")]

mod common;

use std::process::ExitCode;

use common::{cases, feed, sh};
use kernel::Chain;
use kernel::legacy::arrival::{Denied, Input};
use kernel::legacy::{Denial, forwarding, has_table};
use kernel::nft::arrival::Arrival;
use netstate::IpFamily;

fn run(program: &str, args: &str) {
    // All machines of the tests share the lock of iptables.
    let words = ["-w"].into_iter().chain(args.split_whitespace());
    sh(program, &words.collect::<Vec<_>>());
}

/// What denies, and whether the network passes.
fn judged(family: IpFamily, network: &str) -> (Option<Denial>, bool) {
    let found = forwarding(family, "filter").unwrap();
    (found.denial, found.passes(network.parse().unwrap()))
}

fn chain_that_denies_by_policy_or_by_a_rule_is_known_from_one_that_accepts() {
    for (program, family, network, other) in [
        ("iptables-legacy", IpFamily::V4, "172.7.0.0/16", "10.0.0.0/8"),
        ("ip6tables-legacy", IpFamily::V6, "fd00:7::/48", "fd00:8::/48"),
    ] {
        assert!(!has_table(family, "filter"), "asking made no table");
        run(program, "-N USER");
        assert!(has_table(family, "filter"));
        assert_eq!(judged(family, network), (None, true));
        run(program, "-P FORWARD DROP");
        assert_eq!(judged(family, network), (Some(Denial::Policy), false));
        run(program, &format!("-A FORWARD -s {network} -m comment --comment pods -j ACCEPT"));
        assert_eq!(judged(family, network), (Some(Denial::Policy), false), "one direction is not enough");
        run(program, &format!("-A FORWARD -d {network} -p tcp -j ACCEPT"));
        run(program, &format!("-A FORWARD ! -d {network} -j ACCEPT"));
        run(program, &format!("-A FORWARD -d {network} -i eth0 -j ACCEPT"));
        run(program, &format!("-A FORWARD -d {network} -s {other} -j ACCEPT"));
        run(program, &format!("-A FORWARD -d {other} -j ACCEPT"));
        assert_eq!(judged(family, network), (Some(Denial::Policy), false), "these accept something else");
        run(program, "-A FORWARD -j USER");
        run(program, &format!("-A USER -d {network} -j ACCEPT"));
        assert_eq!(judged(family, network), (Some(Denial::Policy), true), "in a chain that every packet passes");
        run(program, "-P FORWARD ACCEPT");
        assert_eq!(judged(family, network), (None, true));
        run(program, "-I FORWARD -m comment --comment last -j REJECT");
        assert_eq!(judged(family, network), (Some(Denial::Rule), false), "what stands behind it is not reached");
        run(program, "-I FORWARD -j ACCEPT");
        assert_eq!(judged(family, network), (None, true));
        run(program, "-D FORWARD -j ACCEPT");
        run(program, "-D FORWARD 1");
        run(program, "-A USER -j DROP");
        assert_eq!(judged(family, network), (Some(Denial::Rule), true), "denied in a chain behind it");
        assert!(!has_table(family, "mangle"), "asking made no table");
        run(program, "-t mangle -P FORWARD DROP");
        assert_eq!(forwarding(family, "mangle").unwrap().denial, Some(Denial::Policy));
    }
}

/// What denies a packet of another node to the port, or one of IP protocol 4; `None` when nothing certainly does.
fn denier(family: IpFamily, port: Option<u16>) -> Option<Denied> {
    let (from, to) = match family {
        IpFamily::V4 => ("10.4.7.22", "10.4.7.21"),
        IpFamily::V6 => ("fd00:4:7::22", "fd00:4:7::21"),
    };
    let protocol = if port.is_some() { 17 } else { 4 };
    let link = ("eth0".parse().unwrap(), 2);
    let arrival = Arrival { link, from: Some(from.parse().unwrap()), to: to.parse().unwrap(), protocol, port };
    Input::of(family).unwrap().denied(&arrival)
}

/// The number of the rule that denies, 0 for the policy.
fn denied(family: IpFamily, port: Option<u16>) -> Option<u32> {
    denier(family, port).map(|denied| denied.rule.unwrap_or(0))
}

/// The table and the chain.
fn place(family: IpFamily, port: Option<u16>) -> Option<(&'static str, &'static str)> {
    denier(family, port).map(|denied| (denied.table, denied.chain))
}

fn packet_is_followed_through_input_as_the_kernel_would_lead_it() {
    for (program, family, nodes, other) in [
        ("iptables-legacy", IpFamily::V4, "10.4.7.0/24", "10.9.9.0/24"),
        ("ip6tables-legacy", IpFamily::V6, "fd00:4:7::/64", "fd00:9::/64"),
    ] {
        run(program, "-N USER");
        assert_eq!(denied(family, Some(8472)), None);
        run(program, "-P INPUT DROP");
        assert_eq!((denied(family, Some(8472)), denied(family, None)), (Some(0), Some(0)));
        // None of these is for a first packet of a node to the tunnel's port.
        for rule in [
            "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned(),
            "-m state --state ESTABLISHED -j ACCEPT".to_owned(),
            "-i lo -j ACCEPT".to_owned(),
            "-i flannel+ -j ACCEPT".to_owned(),
            "! -i eth0 -j ACCEPT".to_owned(),
            "-p tcp -j ACCEPT".to_owned(),
            "-p udp --dport 8473:9000 -j ACCEPT".to_owned(),
            "-p udp ! --dport 8472 -j ACCEPT".to_owned(),
            "-p udp -m multiport --dports 53,8473:9000 -j ACCEPT".to_owned(),
            "-p udp -m multiport ! --dports 53,8400:8500 -j ACCEPT".to_owned(),
            format!("-s {other} -j ACCEPT"),
            format!("! -s {nodes} -j ACCEPT"),
            format!("-d {other} -j ACCEPT"),
            "-j LOG".to_owned(),
        ] {
            run(program, &format!("-A INPUT {rule}"));
        }
        assert_eq!(denied(family, Some(8472)), Some(0));
        for (rule, wanted) in [
            ("-j USER".to_owned(), Some(0)),
            (format!("-s {nodes} -i eth0 -p udp --dport 8472 -j ACCEPT"), None),
            ("-p udp -m multiport --dports 53,8400:8500 -j ACCEPT".to_owned(), None),
            ("-m conntrack ! --ctstate ESTABLISHED -j ACCEPT".to_owned(), None),
            // What is open may accept.
            ("-m limit --limit 1/s -j ACCEPT".to_owned(), None),
            ("-p udp --sport 1000 -j ACCEPT".to_owned(), None),
            ("-m limit --limit 1/s -j DROP".to_owned(), Some(0)),
            ("-p udp -j REJECT".to_owned(), Some(1)),
        ] {
            run(program, &format!("-I INPUT {rule}"));
            assert_eq!(denied(family, Some(8472)), wanted, "{program} {rule}");
            run(program, &format!("-D INPUT {rule}"));
        }
        run(program, "-I INPUT -j USER");
        run(program, "-A USER -p udp -j RETURN");
        run(program, "-A USER -j DROP");
        assert_eq!((denied(family, Some(8472)), denied(family, None)), (Some(0), Some(1)), "a chain that is left");
        run(program, "-P INPUT ACCEPT");
        run(program, "-F INPUT");
        assert_eq!(denied(family, Some(8472)), None);
        // Each of these comes before the one that denied so far.
        for (table, chain) in [("mangle", "INPUT"), ("mangle", "PREROUTING"), ("raw", "PREROUTING")] {
            run(program, &format!("-t {table} -A {chain} -p tcp -j DROP"));
            run(program, &format!("-t {table} -A {chain} -s {nodes} -p udp --dport 8472 -j DROP"));
            assert_eq!((place(family, Some(8472)), denied(family, Some(8472))), (Some((table, chain)), Some(2)));
            assert_eq!(place(family, Some(53)), None);
        }
        assert!(Input::of(family).unwrap().has_chain("USER") && !Input::of(family).unwrap().has_chain("USE"));
    }
}

/// The table's places are asked for before its rules: whoever writes between the two makes them another table's.
fn chain_is_read_as_it_is_at_one_moment_while_others_write_the_table() {
    let open = "-A FORWARD -s 10.0.0.0/8 -j ACCEPT\n";
    let states = [open.to_owned(), "-A INPUT -s 10.0.0.0/8 -j ACCEPT\n".to_owned(), open.repeat(200)];
    let texts = states.map(|rules| format!("*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\n{rules}COMMIT\n"));
    let write = |text: &str| feed("iptables-legacy-restore", &["-w"], text);
    write(&texts[0]);
    std::thread::scope(|scope| {
        let own = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let writing = scope.spawn(move || {
            nix::sched::setns(own, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            (0..60).for_each(|_| texts.iter().for_each(|text| write(text)));
        });
        while !writing.is_finished() {
            let found = forwarding(IpFamily::V4, "filter").map_err(|error| Chain(&error).to_string());
            assert_eq!(found.map(|chain| chain.denial), Ok(Some(Denial::Policy)));
        }
    });
}

fn main() -> ExitCode {
    common::main(cases![
        chain_that_denies_by_policy_or_by_a_rule_is_known_from_one_that_accepts,
        packet_is_followed_through_input_as_the_kernel_would_lead_it,
        chain_is_read_as_it_is_at_one_moment_while_others_write_the_table,
    ])
}
