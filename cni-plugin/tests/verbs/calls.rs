//! What is counted of each call, where netd wants it counted.

use std::fs;

use netstate::calls::{Calls, PATH, Verb};
use serde_json::json;

use crate::faults::modern;
use crate::node::{Node, native, vars, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("each_call_is_counted_with_its_time_and_its_error_and_not_without_netds_file", counted),
    ("calls_at_one_time_are_all_counted", together),
];

fn calls() -> Calls {
    Calls::decode(&fs::read(PATH).unwrap()).unwrap()
}

/// Calls and errors of a verb.
fn of(verb: Verb) -> (u64, u64) {
    let calls = calls();
    let (_, of) = calls.verbs().find(|(other, _)| *other == verb).unwrap();
    (of.count(), of.errors.iter().sum())
}

fn counted(node: &Node) {
    let (conf, pod) = (modern(&native()), node.pod());
    let pod = pod.to_str().unwrap();
    let exec = |command: &str| node.exec("netd-cni", &vars(command, "c0", pod), &conf.to_string());
    exec("ADD").result();
    exec("DEL").silent();
    assert!(!fs::exists(PATH).unwrap(), "nobody wants to know");
    fs::create_dir_all("/run/netd").unwrap();
    fs::write(PATH, Calls::default().encode()).unwrap();
    let result = exec("ADD").result();
    let checked = with(&conf, "prevResult", result).to_string();
    node.exec("netd-cni", &vars("CHECK", "c0", pod), &checked).silent();
    exec("STATUS").silent();
    exec("DEL").silent();
    exec("VERSION").result();
    let bad = with(&conf, "mtu", json!("none")).to_string();
    let (code, _) = node.exec("netd-cni", &vars("ADD", "c1", pod), &bad).error();
    assert_eq!(Verb::ALL.map(of), [(2, 1), (1, 0), (1, 0), (0, 0), (1, 0)]);
    let calls = calls();
    let (_, add) = calls.verbs().next().unwrap();
    let place = netstate::calls::CODES.iter().position(|known| u64::from(*known) == code).unwrap();
    assert_eq!(add.errors[place], 1, "{add:?}");
    assert!(add.microseconds > 100, "a Pod in {} µs", add.microseconds);
    // What is none of netd's stays, and costs nothing.
    fs::write(PATH, "somebody else's").unwrap();
    exec("ADD").result();
    exec("DEL").silent();
    assert_eq!(fs::read(PATH).unwrap(), b"somebody else's");
}

fn together(node: &Node) {
    fs::create_dir_all("/run/netd").unwrap();
    fs::write(PATH, Calls::default().encode()).unwrap();
    let conf = modern(&native()).to_string();
    let pods: Vec<_> = (0..16).map(|_| node.pod()).collect();
    let named = pods.iter().enumerate().map(|(number, pod)| (format!("c{number}"), pod));
    let started: Vec<_> =
        named.map(|(id, pod)| node.start("netd-cni", &vars("ADD", &id, pod.to_str().unwrap()), &conf)).collect();
    for child in started {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    assert_eq!(of(Verb::Add), (16, 0));
}
