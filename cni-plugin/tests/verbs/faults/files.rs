//! State files, the subnet file and the disk: missing, empty, junk, unreadable, of another time.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use kernel::Rtnl;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use super::{LONG, modern, verb_within};
use crate::leases::living_foreign_pod;
use crate::node::{Node, SUBNET_ENV, flannel, host_link, native, vars, with};
use crate::state::HostState;

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("junk_in_state_files_stops_no_verb_and_gc_clears_what_says_nothing", junk_everywhere),
    ("after_a_power_cut_empty_files_are_in_nobodys_way", power_cut),
    ("one_broken_record_does_not_keep_a_full_range_from_being_reclaimed", broken_record),
    ("no_inode_free_fails_add_and_leaves_nothing", no_inode),
    ("files_in_the_place_of_directories_fail_add_and_not_del", files_for_directories),
    ("unreadable_subnet_file_is_reported_and_nothing_is_touched", unreadable_subnet_file),
    ("nothing_that_blocks_is_waited_for", nothing_blocks),
    ("clock_set_back_or_forward_decides_nothing", clock),
    ("del_without_version_and_previous_result_frees_everything", bare_del),
    ("del_after_somebody_removed_the_link_frees_the_address", link_gone),
    ("del_without_a_namespace_closes_the_ports", ports_without_namespace),
    ("add_killed_and_never_deleted_is_reclaimed_when_the_range_is_full", never_deleted),
];

const RESERVATIONS: &str = "/var/lib/cni/networks/cbr0";
const RECORDS: &str = "/var/lib/cni/netd/cbr0";
const STATES: &str = "/var/lib/cni/flannel";

/// Texts that say something, and name no container; the last in another encoding than UTF-8.
const NOBODYS: [&[u8]; 5] = [b"{", b"../../etc/passwd\r\neth0", b"reserved\n", &[b'a'; 1 << 20], b"r\xe9serv\xe9"];

/// What a crash, a bad disk or somebody's hand leaves in a file.
fn junk() -> Vec<Vec<u8>> {
    let long_id = format!("{}\r\neth0", "a".repeat(230));
    let nothing = [Vec::new(), vec![0; 4096], vec![0xff; 40], long_id.into_bytes()];
    nothing.into_iter().chain(NOBODYS.map(<[u8]>::to_vec)).collect()
}

fn junk_everywhere(node: &Node) {
    for conf in [native(), flannel()] {
        let (first, _) = node.attached(&conf, "first");
        node.del(&conf, "first", &first).silent();
        fs::create_dir_all(STATES).unwrap();
        for bytes in junk() {
            let (pod, _) = node.attached(&conf, "victim");
            fs::write(format!("{RESERVATIONS}/172.7.21.9"), &bytes).unwrap();
            fs::write(format!("{RESERVATIONS}/last_reserved_ip.0"), &bytes).unwrap();
            fs::write(format!("{RECORDS}/victim@eth0"), &bytes).unwrap();
            fs::write(format!("{RECORDS}/stranger@eth0"), &bytes).unwrap();
            fs::write(format!("{STATES}/victim"), &bytes).unwrap();
            node.attached(&conf, "other");
            node.del(&conf, "victim", &pod).silent();
            assert!(!node.links().contains(&host_link("victim")));
            node.exec(conf["type"].as_str().unwrap(), &[("CNI_COMMAND", "GC")], &modern(&conf).to_string()).silent();
            // Another plugin's state file of no readable network stays, and an address that a text of somebody's blocks.
            let _ = fs::remove_file(format!("{STATES}/victim"));
            let blocked = fs::remove_file(format!("{RESERVATIONS}/172.7.21.9")).is_ok();
            let expected = NOBODYS.contains(&&bytes[..]);
            assert_eq!(blocked, expected, "{:?}...", &bytes[..bytes.len().min(40)]);
            assert_eq!(node.files(), [], "after {:?}...", &bytes[..bytes.len().min(40)]);
        }
        Rtnl::open()
            .unwrap()
            .delete_link(&node.links().iter().find(|l| l.ends_with("br0") || *l == "cni0").unwrap().parse().unwrap())
            .unwrap();
    }
}

fn power_cut(node: &Node) {
    for conf in [native(), flannel()] {
        for id in ["web-1", "web-2", "web-3"] {
            node.attached(&conf, id);
        }
        for (name, _) in node.files() {
            File::create(name).unwrap();
        }
        node.links()
            .iter()
            .filter(|name| name.starts_with("veth") || *name == "cbr0" || *name == "cni0")
            .for_each(|name| Rtnl::open().unwrap().delete_link(&name.parse().unwrap()).unwrap());
        // The runtime deletes one Pod that it remembers; another is attached; GC finds the rest.
        node.verb("DEL", &conf, "web-1", "").silent();
        let (pod, address) = node.attached(&conf, "web-4");
        assert!(["172.7.21.2", "172.7.21.5"].contains(&address.to_string().as_str()), "{address}");
        node.del(&conf, "web-4", &pod).silent();
        node.exec(conf["type"].as_str().unwrap(), &[("CNI_COMMAND", "GC")], &modern(&conf).to_string()).silent();
        let left: Vec<_> = node.files().into_iter().filter(|(name, _)| !name.starts_with(STATES)).collect();
        assert_eq!(left, [], "an empty state file names no network and stays until its Pod's DEL");
        for id in ["web-2", "web-3"] {
            node.verb("DEL", &conf, id, "").silent();
        }
        assert_eq!(node.files(), []);
        fs::remove_dir_all("/var/lib/cni").unwrap();
        node.links()
            .iter()
            .filter(|name| *name == "cbr0" || *name == "cni0")
            .for_each(|name| Rtnl::open().unwrap().delete_link(&name.parse().unwrap()).unwrap());
    }
}

fn broken_record(node: &Node) {
    let (pod, freed) = node.attached(&native(), "gone");
    node.remove_pod(&pod);
    let deadline = std::time::Instant::now() + LONG;
    while node.links().contains(&host_link("gone")) {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    let long = "a".repeat(250);
    for host in 2..=254 {
        let path = format!("{RESERVATIONS}/172.7.21.{host}");
        if !Path::new(&path).exists() {
            let owner = if host == 77 { long.clone() } else { format!("other{host}") };
            fs::write(path, format!("{owner}\r\neth0")).unwrap();
        }
    }
    // What cannot be a record stands where records are searched for, before the one that is a leftover in every order.
    for host in [3, 99, 254] {
        fs::create_dir(format!("{RECORDS}/other{host}@eth0")).unwrap();
    }
    living_foreign_pod();
    let (_, address) = node.attached(&native(), "web-1");
    assert_eq!(address, freed);
}

fn no_inode(node: &Node) {
    let (pod, _) = node.attached(&native(), "first");
    node.del(&native(), "first", &pod).silent();
    let before = HostState::now();
    let used = {
        let stat = nix::sys::statvfs::statvfs("/var/lib").unwrap();
        stat.files() - stat.files_free()
    };
    for spare in 0..3_u64 {
        let options = format!("nr_inodes={}", used + spare);
        mount(None::<&str>, "/var/lib", None::<&str>, MsFlags::MS_REMOUNT, Some(options.as_str())).unwrap();
        for conf in [native(), with(&flannel(), "delegate", json!({"bridge": "cbr0"}))] {
            let outcome = node.add(&conf, "web-1", &node.pod());
            if outcome.ok {
                node.verb("DEL", &conf, "web-1", "").silent();
            } else {
                let (code, text) = outcome.error();
                assert!(code == 5 && text.contains("No space left on device"), "{text}");
            }
            let _ = fs::remove_dir("/var/lib/cni/flannel");
            HostState::now().must_be(&before, &format!("{spare} inodes free"));
        }
    }
}

fn files_for_directories(node: &Node) {
    for place in ["/var/lib/cni/netd", RECORDS, "/var/lib/cni/networks", RESERVATIONS] {
        fs::create_dir_all(Path::new(place).parent().unwrap()).unwrap();
        fs::write(place, "a file").unwrap();
        let links = node.links();
        let (code, text) = node.add(&native(), "web-1", &node.pod()).error();
        assert!(code == 5 && text.contains(place), "{place}: {text}");
        assert_eq!(node.links(), links);
        node.verb("DEL", &native(), "web-1", "").silent();
        node.exec("netd-cni", &[("CNI_COMMAND", "GC")], &modern(&native()).to_string()).silent();
        assert_eq!(node.files(), [(place.to_owned(), "a file".to_owned())]);
        fs::remove_dir_all("/var/lib/cni").unwrap();
    }
}

fn unreadable_subnet_file(node: &Node) {
    const PATH: &str = "/run/flannel/subnet.env";
    let pod = node.pod();
    let before = HostState::now();
    let refused = |expected: u64, words: &str| {
        for conf in [native(), flannel()] {
            let outcome = verb_within(node, LONG, &conf, &vars("ADD", "web-1", pod.to_str().unwrap()));
            let (code, text) = outcome.error();
            assert!(code == expected && text.contains(PATH) && text.contains(words), "{code} {text}");
            let (code, text) = verb_within(node, LONG, &modern(&conf), &[("CNI_COMMAND", "STATUS")]).error();
            assert!(code == 50 && text.contains(words), "{code} {text}");
            node.verb("DEL", &conf, "web-1", "").silent();
        }
        HostState::now().must_be(&before, words);
    };
    fs::write(PATH, [0xff; 64]).unwrap();
    refused(5, "valid UTF-8");
    fs::write(PATH, vec![0; 1 << 20]).unwrap();
    refused(7, "is missing FLANNEL_NETWORK");
    fs::remove_file(PATH).unwrap();
    fs::create_dir(PATH).unwrap();
    refused(5, "Is a directory");
    fs::remove_dir(PATH).unwrap();
    std::os::unix::fs::symlink(PATH, PATH).unwrap();
    refused(5, "symbolic link");
    fs::remove_file(PATH).unwrap();
    mkfifo(PATH, Mode::S_IRWXU).unwrap();
    refused(7, "is missing FLANNEL_NETWORK");
}

fn nothing_blocks(node: &Node) {
    mkfifo("/run/netns/fifo", Mode::S_IRWXU).unwrap();
    let run = |conf: &Value, command: &str, id: &str, netns: &str| {
        verb_within(node, Duration::from_secs(5), conf, &vars(command, id, netns))
    };
    assert_eq!(run(&native(), "ADD", "web-1", "/run/netns/fifo").error().0, 8);
    // Where DEL and GC look, something stands that blocks whoever opens it without care.
    for conf in [native(), flannel()] {
        let (pod, _) = node.attached(&conf, "web-1");
        fs::remove_file(format!("{RECORDS}/web-1@eth0")).unwrap();
        let states = format!("{STATES}/web-1");
        fs::create_dir_all(STATES).unwrap();
        let _ = fs::remove_file(&states);
        mkfifo(states.as_str(), Mode::S_IRWXU).unwrap();
        mkfifo(format!("{RESERVATIONS}/172.7.21.250").as_str(), Mode::S_IRWXU).unwrap();
        run(&modern(&conf), "STATUS", "", "").silent();
        run(&modern(&conf), "GC", "", "").silent();
        assert!(!node.links().contains(&host_link("web-1")), "GC went past what blocks");
        node.remove_pod(&pod);
        let (pod, _) = node.attached(&conf, "web-2");
        fs::remove_file(format!("{RECORDS}/web-2@eth0")).unwrap();
        run(&conf, "DEL", "web-2", "/run/netns/fifo").silent();
        assert!(!node.links().contains(&host_link("web-2")));
        node.remove_pod(&pod);
        fs::remove_dir_all("/var/lib/cni").unwrap();
    }
    let resolver = with(&native(), "ipam", json!({"resolvConf": "/run/netns/fifo"}));
    run(&resolver, "ADD", "web-3", node.pod().to_str().unwrap()).result();
}

fn clock(node: &Node) {
    let day = Duration::from_secs(86_400);
    let now = SystemTime::now();
    for (number, time) in [now + 400 * day, now - 8_000 * day, SystemTime::UNIX_EPOCH].into_iter().enumerate() {
        let id = format!("web-{number}");
        let (pod, address) = node.attached(&native(), &id);
        let (dead, freed) = node.attached(&native(), "dead");
        node.links()
            .contains(&host_link("dead"))
            .then(|| Rtnl::open().unwrap().delete_link(&host_link("dead").parse().unwrap()).unwrap());
        for host in 2..=254 {
            let path = format!("{RESERVATIONS}/172.7.21.{host}");
            if !Path::new(&path).exists() {
                fs::write(path, format!("other{host}\r\neth0")).unwrap();
            }
        }
        let foreign = living_foreign_pod();
        for dir in [RESERVATIONS, RECORDS] {
            for entry in fs::read_dir(dir).unwrap() {
                File::options().write(true).open(entry.unwrap().path()).unwrap().set_modified(time).unwrap();
            }
        }
        // Full, of a time that is not now: whether that is long ago is not known, the leftover counts.
        node.exec("netd-cni", &[("CNI_COMMAND", "STATUS")], &modern(&native()).to_string()).silent();
        let (_, again) = node.attached(&native(), "next");
        assert_eq!(again, freed, "the leftover's address, and no living Pod's");
        let kept = fs::read_to_string(format!("{RESERVATIONS}/{address}")).unwrap();
        assert_eq!(kept, format!("{id}\r\neth0"));
        let alive = json!([{"containerID": id, "ifname": "eth0"}]);
        let conf = with(&modern(&native()), "cni.dev/valid-attachments", alive);
        node.exec("netd-cni", &[("CNI_COMMAND", "GC")], &conf.to_string()).silent();
        assert_eq!(node.files().len(), 2, "{:?}", node.files());
        node.del(&native(), &id, &pod).silent();
        node.remove_pod(&dead);
        Rtnl::open().unwrap().delete_link(&foreign).unwrap();
        assert_eq!(node.files(), []);
    }
}

fn bare_del(node: &Node) {
    for conf in [native(), flannel()] {
        let (pod, _) = node.attached(&conf, "first");
        node.del(&conf, "first", &pod).silent();
        let before = HostState::now();
        for netns in [Some(node.pod()), None] {
            node.attached(&conf, "web-1");
            let bare = json!({"name": "cbr0", "type": conf["type"]});
            let netns = netns.map_or(String::new(), |path| path.display().to_string());
            node.verb("DEL", &bare, "web-1", &netns).silent();
            HostState::now().must_be(&before, "DEL without version");
        }
    }
}

fn link_gone(node: &Node) {
    for conf in [native(), flannel()] {
        let (first, _) = node.attached(&conf, "first");
        node.attached(&conf, "second");
        node.del(&conf, "first", &first).silent();
        let before = HostState::now();
        let (pod, _) = node.attached(&conf, "web-1");
        Rtnl::open().unwrap().delete_link(&host_link("web-1").parse().unwrap()).unwrap();
        node.del(&conf, "web-1", &pod).silent();
        HostState::now().must_be(&before, "DEL after the link was removed");
        node.verb("DEL", &conf, "second", "").silent();
    }
}

fn ports_without_namespace(node: &Node) {
    let mapping = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
    let conf = with(&with(&native(), "runtimeConfig", mapping), "ipMasq", json!(true));
    let (pod, _) = node.attached(&conf, "first");
    node.del(&conf, "first", &pod).silent();
    let before = HostState::now();
    for (number, netns) in ["", "/run/netns/never-there", "/proc/4194304/ns/net"].into_iter().enumerate() {
        let id = format!("web-{number}");
        node.attached(&conf, &id);
        // Not even the mapping is reported.
        node.verb("DEL", &native(), &id, netns).silent();
        HostState::now().must_be(&before, "DEL without a namespace");
    }
}

fn never_deleted(node: &Node) {
    // Killed at three places: with nothing but a record, with an address as well, and with a whole attachment whose Pod then died.
    fs::create_dir_all(RECORDS).unwrap();
    File::create(format!("{RECORDS}/killed-1@eth0")).unwrap();
    let (pod, _) = node.attached(&native(), "killed-3");
    node.remove_pod(&pod);
    let deadline = std::time::Instant::now() + LONG;
    while node.links().contains(&host_link("killed-3")) {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    for host in 3..=254 {
        fs::write(format!("{RESERVATIONS}/172.7.21.{host}"), format!("killed-{host}\r\neth0")).unwrap();
        File::create(format!("{RECORDS}/killed-{host}@eth0")).unwrap();
    }
    fs::write("/run/flannel/subnet.env", SUBNET_ENV).unwrap();
    node.exec("netd-cni", &[("CNI_COMMAND", "STATUS")], &modern(&native()).to_string()).silent();
    let (_, address) = node.attached(&native(), "web-1");
    assert_eq!(address.to_string(), "172.7.21.3", "everything was reclaimed, and the order goes on");
    let names: Vec<String> = node.files().into_iter().map(|(name, _)| name).collect();
    assert!(names.contains(&format!("{RECORDS}/killed-1@eth0")) && names.len() == 3, "{names:?}");
}
