//! Which programs the tests, the lab and its scripts execute, read from their sources.
//!
//! Invariant: reading errs on the side of more. A word that stands where a program would is taken for one; what is none is named in
//! the caller's list of exceptions, so a new way to start a program is found by its name, not by its form.

mod rust;
mod shell;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::sources::rust_files;

/// Programs by name, each with the files that execute it.
pub(crate) type Executed = BTreeMap<String, Vec<String>>;

/// Shell scripts outside of Rust sources; a Makefile's recipes are shell as well.
const SCRIPTS: [&str; 25] = [
    "Makefile",
    ".ci/run",
    "packaging/deb",
    "packaging/install",
    "packaging/release",
    "packaging/version",
    "packaging/debian/cluster.postrm",
    "packaging/debian/daemon.postinst",
    "packaging/debian/daemon.postrm",
    "packaging/debian/daemon.prerm",
    "packaging/debian/plugin.postrm",
    "packaging/debian/plugin.preinst",
    "packaging/debian/plugin.prerm",
    "tests/apt",
    "tests/setup",
    "tests/systemd-host",
    "tests/systemd-machine",
    "tests/kernel/build",
    "tests/kernel/run",
    "tests/kernel/init",
    "tests/kubernetes/build",
    "tests/kubernetes/tools",
    "tests/qemu/init",
    "tests/qemu/kernel",
    "tests/qemu/run",
];

/// A script with what it reads in: one shell, whose functions are no programs.
const SOURCED: (&str, [&str; 2]) =
    ("tests/kubernetes/build", ["tests/kubernetes/release-1.20", "tests/kubernetes/release-modern"]);

/// Folders whose Rust sources are tests, the lab, or both.
const FOLDERS: [&str; 9] = [
    "tests/src",
    "tests/tests",
    "tests/floor/src",
    "lib",
    "netd",
    "ipvs-proxy",
    "netdadm/src",
    "cni-plugin/tests",
    "cni-plugin/src",
];

/// Everything that is executed by name. `benchmarks` adds what only `make bench` starts.
pub(crate) fn everywhere(root: &Path) -> Executed {
    let mut executed = Executed::new();
    for script in SCRIPTS {
        let read = |name| fs::read_to_string(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut text = read(script);
        if script == SOURCED.0 {
            text.extend(SOURCED.1.map(read));
        }
        let text = if script == "Makefile" { shell::of_makefile(&text) } else { text };
        note(&mut executed, script, shell::commands(&text));
    }
    for folder in FOLDERS {
        for path in rust_files(&root.join(folder)) {
            let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
            note(&mut executed, &name, rust::commands(&text));
        }
    }
    executed
}

fn note(executed: &mut Executed, place: &str, programs: Vec<String>) {
    for program in programs {
        let places = executed.entry(program).or_default();
        if places.last().map(String::as_str) != Some(place) {
            places.push(place.to_owned());
        }
    }
}

/// The readers themselves, shown on the forms that occur.
pub(crate) fn check_readers() {
    let script = "\
#!/bin/bash\n\
say() { echo \"$*\" >&2; }  # a comment with rm in it\n\
for name in a b; do [ -e x ] || mv \"$name\" \"$(basename \"$name\")\"; done\n\
case $1 in run) exec timeout -k 3 10 nsenter --net=x ip link;; *) say no | tee log;; esac\n\
kept=$(cut -d: -f1 <list | sort -u) && env A=b strace -f true\n\
if ! command -v xz >/dev/null; then tar cJf a.tar.xz .; fi\n\
for tool in gcc bc; do command -v $tool; done; echo $(( $(numfmt --from=iec 1G) / 2 ))\n";
    let found = shell::commands(script);
    let wanted = [
        "mv", "basename", "timeout", "nsenter", "ip", "tee", "cut", "sort", "env", "strace", "xz", "tar", "gcc", "bc",
        "numfmt",
    ];
    for program in wanted {
        assert!(found.iter().any(|word| word == program), "{program} is not in {found:?}");
    }
    for word in ["say", "rm", "a", "kept", "run", "list", "name"] {
        assert!(!found.iter().any(|found| found == word), "{word} is taken for a program: {found:?}");
    }
    let source = r##"
        host.run(&["nsenter", "--net=/run/x", "ping", "-c1"])?;
        let o = Command::new("setpriv").args(["--pdeathsig", "KILL", "cat"]);
        node.command("bash").args(["-euc", "nft list ruleset | grep x"]);
        text_of("conntrack", &["-L"]); tool(&host, &[ "tc", "qdisc"]);
        try_each(&["wg show"]); // Command::new("vi")
        println!("make it so");
    "##;
    let found = rust::commands(source);
    for program in ["nsenter", "ping", "setpriv", "cat", "bash", "nft", "grep", "conntrack", "tc", "wg"] {
        assert!(found.iter().any(|word| word == program), "{program} is not in {found:?}");
    }
    assert!(!found.iter().any(|word| word == "vi" || word == "make"), "{found:?}");
}
