//! What is done with an input, and what must hold then.

use std::cell::Cell;
use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::time::Duration;

use cni_plugin::{
    Attachment, Class, CniArgs, CniError, ContainerId, NetConf, Places, Range, RangeSet, Records, Request, Sharing,
    SpecVersion, Store, Subject, parse_result,
};

use netstate::subnet_file::SubnetFile;
use serde_json::Value;

/// What is done with one input.
pub(crate) type Target = fn(&[u8]);

/// Every target by the name of its corpus. Those that look at files and the kernel need root, to do it where nothing can be hurt.
pub(crate) const TARGETS: [(&str, Target, bool); 8] = [
    ("cni_args", cni_args, false),
    ("environment", environment, false),
    ("flannel_state", flannel_state, true),
    ("prev_result", prev_result, false),
    ("record", record_file, true),
    ("reservation", reservation, true),
    ("stdin", stdin, true),
    ("subnet_env", subnet_env, false),
];

/// Codes that an error object may have: of the specification, and this plugin's own.
const CODES: [u64; 14] = [1, 2, 3, 4, 5, 6, 7, 8, 11, 50, 51, 100, 101, 102];

/// Words that make containerd take a DEL that failed for one that had nothing to do.
const TRAPS: [&str; 3] = ["not found", "no such file or directory", "no such device"];

/// For a lock: a deletion that goes on in a process of its own (kernel::orphan) has the descriptors of every target.
const WAIT: Duration = Duration::from_secs(10);

fn attachment() -> Attachment {
    Attachment::new(ContainerId::new("web-1").unwrap(), "eth0".parse().unwrap())
}

/// Checks that the text is one error object as runtimes read it.
fn is_error(text: &str) {
    let object: Value = serde_json::from_str(text).unwrap();
    assert!(CODES.contains(&object["code"].as_u64().unwrap()), "{text}");
    assert!(!object["msg"].as_str().unwrap().is_empty(), "{text}");
    object["cniVersion"].as_str().unwrap().parse::<SpecVersion>().unwrap();
    let lower = text.to_lowercase();
    assert!(TRAPS.iter().all(|trap| !lower.contains(trap)), "{text}");
    assert!(text.len() < 64 * 1024, "an error of {} bytes", text.len());
}

fn fails_well<T>(outcome: Result<T, CniError>) -> Option<T> {
    outcome.inspect_err(|error| is_error(&error.render(SpecVersion::NEWEST))).ok()
}

fn text(input: &[u8]) -> String {
    String::from_utf8_lossy(input).into_owned()
}

fn cni_args(input: &[u8]) {
    fails_well(CniArgs::parse(&text(input)));
}

/// Lines `NAME=value`.
fn environment(input: &[u8]) {
    let text = text(input);
    let var = |name: &str| {
        let line = text.lines().find_map(|line| line.split_once('=').filter(|(key, _)| *key == name));
        line.map(|(_, value)| value.to_owned())
    };
    let call = match fails_well(Request::parse(var)) {
        Some(Request::Add(call) | Request::Check(call) | Request::Del(call)) => call,
        _ => return,
    };
    let (id, ifname) = (call.attachment.container.as_str(), call.attachment.ifname.as_str());
    for name in [id, ifname] {
        assert!(!name.is_empty() && !name.contains('/') && name != "." && name != "..", "{name:?} would be a path");
    }
    assert!(id.len() + ifname.len() < 250, "longer than a file's name can be");
    fails_well(CniArgs::parse(&call.args));
}

fn subnet_env(input: &[u8]) {
    match SubnetFile::parse(&text(input)) {
        // What flannel and netd write: a network for each subnet.
        Ok(file)
            if file.networks_v4.is_empty() == file.subnet_v4.is_none()
                && file.networks_v6.is_empty() == file.subnet_v6.is_none() =>
        {
            assert_eq!(SubnetFile::parse(&file.render()).as_ref(), Ok(&file));
        }
        Ok(_) => {}
        Err(error) => assert!(error.to_string().len() < 400, "{error}"),
    }
}

fn prev_result(input: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(input) else { return };
    let Some(result) = fails_well(parse_result(value)) else { return };
    for version in SpecVersion::ALL {
        if let Some(rendered) = fails_well(result.render(version)) {
            fails_well(parse_result(rendered)).unwrap();
        }
    }
}

fn record_file(input: &[u8]) {
    let dir = Path::new("/var/lib/cni/netd");
    fs::create_dir_all(dir.join("cbr0")).unwrap();
    fs::write(dir.join("cbr0/web-1@eth0"), input).unwrap();
    let mut held = Records::new(Class::Attachment, dir, "cbr0").hold(&attachment(), WAIT).unwrap();
    if let Some(record) = held.read() {
        held.write(&record).unwrap();
        assert_eq!(held.read(), Some(record), "what is written is read back");
    }
    held.remove().unwrap();
}

fn reservation(input: &[u8]) {
    if let Some(owner) = Subject::of_reservation(&text(input)) {
        let (Subject::Attachment(Attachment { container, .. }) | Subject::Container(container)) = owner;
        assert!(!container.as_str().contains('/') && !container.as_str().starts_with('.'), "{container}");
    }
    let dir = Path::new("/var/lib/cni/networks");
    let locked = Store::new(dir, "cbr0").lock(WAIT).unwrap();
    for name in ["172.7.21.2", "last_reserved_ip.0"] {
        fs::write(dir.join("cbr0").join(name), input).unwrap();
    }
    let range = Range::new("172.7.21.0/29".parse().unwrap(), None, None, None).unwrap();
    let sets = [RangeSet::new(vec![range]).unwrap()];
    let reserved = locked.reserve(&attachment(), &sets, &[], Sharing::Exclusive).unwrap();
    assert!(locked.is_owned(&attachment(), reserved[0].addr));
    assert!(locked.find(&attachment()).unwrap().contains(&reserved[0].addr));
    for (addr, _) in locked.list().unwrap() {
        locked.discard(addr).unwrap();
    }
}

fn flannel_state(input: &[u8]) {
    let dir = Path::new("/var/lib/cni/flannel");
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("web-1"), input).unwrap();
    let container = ContainerId::new("web-1").unwrap();
    let conf = NetConf::parse(br#"{"name":"cbr0"}"#).unwrap();
    assert!(!Places::of(&conf, Some(&container)).data_dirs.is_empty());
    for (command, conf) in [
        ("GC", r#"{"cniVersion":"1.1.0","name":"cbr0","type":"flannel"}"#),
        ("DEL", r#"{"cniVersion":"1.0.0","name":"cbr0","type":"flannel"}"#),
    ] {
        serve("flannel", command, conf.as_bytes());
    }
    let names_another = |state: Value| state.get("name").and_then(Value::as_str).is_some_and(|name| name != "cbr0");
    let is_others = input.len() <= 64 * 1024 && serde_json::from_slice(input).is_ok_and(names_another);
    assert_eq!(dir.join("web-1").exists(), is_others, "DEL removes what names no other network");
    let _ = fs::remove_file(dir.join("web-1"));
}

thread_local! {
    static TURN: Cell<usize> = const { Cell::new(0) };
}

/// Every verb of every name in turn.
fn stdin(input: &[u8]) {
    let turn = TURN.with(|turn| turn.replace(turn.get() + 1));
    let program = ["netd-cni", "netd-cni", "flannel", "portmap", "host-local", "bandwidth", "bridge", "loopback"];
    let command = ["ADD", "CHECK", "DEL", "GC", "STATUS"];
    serve(program[turn / command.len() % program.len()], command[turn % command.len()], input);
}

fn serve(program: &str, command: &str, input: &[u8]) {
    let var = |name: &str| {
        let value = match name {
            "CNI_COMMAND" => command,
            "CNI_CONTAINERID" => "web-1",
            "CNI_IFNAME" => "eth0",
            // ADD of a name that attaches ends here, before anything is made.
            "CNI_NETNS" => "/run/netns/gone",
            "CNI_ARGS" => "IgnoreUnknown=1",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let answer = cni_plugin::serve(program, var, &mut Cursor::new(input));
    match answer.code {
        0 => assert!(answer.stdout.is_empty() || serde_json::from_str::<Value>(&answer.stdout).unwrap().is_object()),
        1 => is_error(&answer.stdout),
        other => panic!("exit code {other}"),
    }
}
