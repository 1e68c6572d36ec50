//! Connection tracking against the running kernel, with the conntrack tool as the independent observer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests may panic")]

mod common;

use std::process::ExitCode;

use common::{cases, sh};
use kernel::conntrack::{Conntrack, Selection};
use netstate::{IpFamily, Protocol};

const UDP: Selection = Selection::all(IpFamily::V4, Protocol::Udp);

fn conntrack(args: &str) -> String {
    sh("conntrack", &args.split_whitespace().collect::<Vec<_>>())
}

/// A tracked flow to the Service 192.168.0.10:53 that `endpoint` answers.
fn flow(protocol: &str, client_port: u16, endpoint: &str) {
    flow_to("192.168.0.10", protocol, client_port, endpoint);
}

fn flow_to(service: &str, protocol: &str, client_port: u16, endpoint: &str) {
    let state = if protocol == "tcp" { "--state ESTABLISHED" } else { "" };
    conntrack(&format!(
        "-I -p {protocol} -t 600 {state} -s 172.7.21.5 -d {service} --sport {client_port} --dport 53 \
         -r {endpoint} -q 172.7.21.5 --reply-port-src 5353 --reply-port-dst {client_port}"
    ));
}

fn count() -> usize {
    conntrack("-L -f ipv4").lines().count() + conntrack("-L -f ipv6").lines().count()
}

fn stale_endpoint_loses_its_flows_and_the_others_keep_theirs() {
    for client_port in 1000..1010 {
        flow("udp", client_port, "172.7.21.2");
        flow("udp", client_port + 100, "172.7.22.2");
        flow("tcp", client_port, "172.7.21.2");
    }
    let service = "192.168.0.10".parse().unwrap();
    let gone = "172.7.21.2:5353".parse().unwrap();
    let mut conntrack_ = Conntrack::open().unwrap();
    let deleted = conntrack_
        .delete_stale(&UDP, |flow| flow.was_opened_to(service, 53) && flow.is_redirected() && flow.reply.src == gone)
        .unwrap();
    assert_eq!(deleted, 10);
    assert_eq!(conntrack("-L -p udp").lines().count(), 10);
    assert!(!conntrack("-L -p udp").contains("172.7.21.2"));
    assert_eq!(conntrack("-L -p tcp").lines().count(), 10);
}

fn only_the_family_asked_for_is_touched() {
    flow("udp", 1000, "172.7.21.2");
    conntrack("-I -p udp -t 600 -s fd00::5 -d fd00::10 --sport 1000 --dport 53");
    assert_eq!(count(), 2);
    let mut conntrack = Conntrack::open().unwrap();
    assert_eq!(conntrack.delete_stale(&Selection::all(IpFamily::V6, Protocol::Udp), |_| true).unwrap(), 1);
    let left = conntrack.flows(&UDP, |_| true).unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].original.dst, "192.168.0.10:53".parse().unwrap());
    assert_eq!(left[0].reply.src, "172.7.21.2:5353".parse().unwrap());
}

fn flow_that_took_the_place_of_a_listed_one_stays() {
    flow("udp", 1000, "172.7.21.2");
    flow("udp", 1001, "172.7.21.2");
    let mut kernel = Conntrack::open().unwrap();
    let listed = kernel.flows(&UDP, |_| true).unwrap();
    assert_eq!(listed.len(), 2);
    conntrack("-D -p udp --sport 1000");
    flow("udp", 1000, "172.7.22.2");
    assert_eq!(kernel.delete(&listed).unwrap(), 1);
    let left = conntrack("-L -p udp");
    assert_eq!(left.lines().count(), 1, "{left}");
    assert!(left.contains("172.7.22.2"), "{left}");
    // The same endpoint and client, opened to another Service.
    conntrack("-D -p udp --sport 1000");
    flow_to("192.168.0.11", "udp", 1000, "172.7.21.2");
    assert_eq!(kernel.delete(&listed).unwrap(), 0);
    assert!(conntrack("-L -p udp").contains("192.168.0.11"));
}

/// Each packet to a closed port of the loopback is a flow of its own; their source is returned.
fn flows_to_ports(ports: std::ops::Range<u16>) -> std::net::UdpSocket {
    sh("nft", &["table ip t { chain c { type filter hook output priority 0; ct state new accept; }; }"]);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for port in ports {
        // The answer to an earlier packet, port unreachable, may be what this call reports.
        let sent = || socket.send_to(b"x", ("127.0.0.1", port));
        if sent().is_err() {
            sent().unwrap();
        }
    }
    socket
}

fn of_thousands_of_connections_those_to_one_address_and_port_alone_are_read() {
    let _source = flows_to_ports(10_000..15_000);
    for client_port in 1000..1005 {
        flow("udp", client_port, "172.7.21.2");
        flow_to("192.168.0.11", "udp", client_port, "172.7.22.9");
        flow("tcp", client_port, "172.7.21.2");
    }
    let mut kernel = Conntrack::open().unwrap();
    let service = Selection::to(Protocol::Udp, "192.168.0.10".parse().unwrap(), 53);
    assert_eq!(kernel.delete_stale(&service, |_| false).unwrap(), 0);
    assert_eq!((kernel.entries_read(), kernel.filters()), (5, true));
    assert_eq!(kernel.delete_stale(&service, |_| true).unwrap(), 5);
    assert_eq!(kernel.entries_read(), 10);
    let port = Selection::to_port(IpFamily::V4, Protocol::Tcp, 53);
    assert_eq!(kernel.flows(&port, |flow| flow.is_redirected()).unwrap().len(), 5);
    assert_eq!(kernel.entries_read(), 15);
    assert!(conntrack("-L -p udp").lines().count() >= 5005);
}

fn six_thousand_flows_go_in_one_call() {
    let socket = flows_to_ports(10_000..16_000);
    let mut conntrack = Conntrack::open().unwrap();
    let source = socket.local_addr().unwrap();
    let ours = |flow: &kernel::conntrack::Flow| flow.original.src == source;
    let deleted = conntrack.delete_stale(&UDP, ours).unwrap();
    assert_eq!(deleted, 6000);
    assert_eq!(conntrack.flows(&UDP, ours).unwrap(), vec![]);
}

fn main() -> ExitCode {
    common::main(cases![
        stale_endpoint_loses_its_flows_and_the_others_keep_theirs,
        only_the_family_asked_for_is_touched,
        flow_that_took_the_place_of_a_listed_one_stays,
        of_thousands_of_connections_those_to_one_address_and_port_alone_are_read,
        six_thousand_flows_go_in_one_call,
    ])
}
