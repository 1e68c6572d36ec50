//! `tests/setup` installs whatever the tests, the lab and its scripts execute.
//!
//! The sources are read for the programs they name; the table below says which package brings each, and dpkg is asked whether it is true.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod executed;
mod sources;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

/// Packages that a minimal Debian has: `Essential: yes` or `Priority: required`.
const ALWAYS_THERE: [(&str, &str); 17] = [
    ("apt", "apt-cache apt-get"),
    ("bash", "bash"),
    (
        "coreutils",
        "basename cat chmod chown chroot cp cut date df dirname env expand head id install ln ls md5sum mkdir mkfifo mktemp mv nice nproc numfmt paste printf pwd readlink realpath rm \
         rmdir seq sha256sum sha512sum sleep sort stat stty sync tail tee timeout touch tr true uname",
    ),
    ("dash", "sh"),
    ("dpkg", "dpkg dpkg-deb dpkg-divert dpkg-query"),
    ("findutils", "find xargs"),
    ("grep", "grep"),
    ("gzip", "gzip"),
    ("hostname", "hostname"),
    ("init-system-helpers", "deb-systemd-helper deb-systemd-invoke"),
    ("libc-bin", "ldd"),
    ("mawk", "awk mawk"),
    ("mount", "mount umount"),
    ("perl-base", "perl"),
    ("sed", "sed"),
    ("tar", "tar"),
    ("util-linux", "flock nsenter pivot_root setpriv setsid taskset unshare"),
];

/// What `tests/setup build run qemu` and the build of the lab kernel install, with the programs that are executed from it.
const INSTALLED: [(&str, &str); 44] = [
    ("bc", "bc"),
    ("bind9-dnsutils", "dig nslookup"),
    ("binutils", "readelf strip"),
    ("bison", "bison"),
    ("bsdutils", "script"),
    ("chromium", "chromium"),
    ("conntrack", "conntrack"),
    ("containerd", "containerd ctr"),
    ("cpio", "cpio"),
    ("curl", "curl"),
    ("dbus-daemon", "dbus-daemon"),
    ("dnsmasq-base", "dnsmasq"),
    ("docker-cli", "docker"),
    ("docker.io", "dockerd"),
    ("etcd-client", "etcdctl"),
    ("etcd-server", "etcd"),
    ("firewalld", "firewall-cmd firewalld"),
    ("flex", "flex"),
    ("gcc", "gcc"),
    ("iperf3", "iperf3"),
    ("iproute2", "bridge ip ss tc"),
    (
        "iptables",
        "iptables iptables-legacy iptables-nft iptables-nft-restore iptables-nft-save iptables-save ip6tables-nft-save ip6tables-save",
    ),
    ("iputils-ping", "ping"),
    ("ipset", "ipset"),
    ("ipvsadm", "ipvsadm"),
    ("keepalived", "keepalived"),
    ("kmod", "depmod modprobe"),
    ("make", "make"),
    ("nftables", "nft"),
    ("nginx", "nginx"),
    ("openssl", "openssl"),
    ("podman", "podman"),
    ("procps", "pgrep pkill ps sysctl"),
    ("prometheus", "prometheus promtool"),
    ("python3-pip", "pip3"),
    ("qemu-system-x86", "qemu-system-x86_64"),
    ("strace", "strace"),
    ("systemd", "journalctl systemctl systemd systemd-analyze systemd-run"),
    ("tinyproxy-bin", "tinyproxy"),
    ("ufw", "ufw"),
    ("unzip", "unzip"),
    ("wireguard-tools", "wg"),
    ("wrk", "wrk"),
    ("xz-utils", "xz"),
];

/// Installed for what no source names as a program, and why.
const NOT_BY_NAME: [(&str, &str); 9] = [
    ("busybox-static", "its file becomes the image of a container"),
    ("conmon", "podman starts it"),
    ("containernetworking-plugins", "its files below /usr/lib/cni are started by path"),
    ("crun", "podman starts it"),
    ("runc", "containerd starts it"),
    ("libc6-dev", "headers and start files for linking"),
    ("libprotobuf-dev", "etcd-client's build includes google/protobuf/*.proto"),
    ("protobuf-compiler", "etcd-client's build starts protoc"),
    ("util-linux", "unshare and others; named so that a root without it is completed"),
];

/// Links that a package's installation makes and dpkg does not list.
const ALTERNATIVES: [&str; 4] = ["awk", "iptables", "iptables-save", "ip6tables-save"];

/// Rust's own programs, which the reader brings (README.md).
const RUST: [&str; 3] = ["cargo", "cargo-deny", "rustup"];

/// Words that stand where a program would and are none: our own programs, subcommands behind a function that names the program,
/// names of containers, and a program that no machine has.
const NO_PROGRAMS: &str = "add apply backup build c0 c1 delete early exec holder inspect ipvs-proxy late list load netd netd-cni netdadm network newest \
    no-such-program old-1 old-2 private remove restore run save switch type web web-1";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn programs_are_read_from_scripts_and_sources() -> Result<()> {
    executed::check_readers();
    Ok(())
}

/// The packages of all steps that tests need.
fn all_packages() -> Result<BTreeSet<String>> {
    let steps = ["build_packages", "run_packages", "client_packages", "qemu_packages"].map(packages);
    Ok(steps.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// The packages of a step, as the variable of `tests/setup` lists them.
fn packages(variable: &str) -> Result<BTreeSet<String>> {
    let script = fs::read_to_string(root().join("tests/setup"))?;
    let line =
        script.lines().find_map(|line| line.strip_prefix(&format!("{variable}='"))).context(variable.to_owned())?;
    Ok(line.trim_end_matches('\'').split_whitespace().map(str::to_owned).collect())
}

fn provider(program: &str) -> Option<&'static str> {
    let brings = |(_, programs): &&(&str, &str)| programs.split_whitespace().any(|known| known == program);
    ALWAYS_THERE.iter().chain(&INSTALLED).find(brings).map(|(package, _)| *package)
}

fn whatever_is_executed_is_installed() -> Result<()> {
    let mut installed = all_packages()?;
    installed.extend(ALWAYS_THERE.iter().map(|(package, _)| (*package).to_owned()));
    let mut missing = Vec::new();
    for (program, places) in executed::everywhere(&root()) {
        if RUST.contains(&program.as_str()) || NO_PROGRAMS.split_whitespace().any(|word| word == program) {
            continue;
        }
        match provider(&program) {
            None => missing.push(format!("{program}: no package is known for it; {places:?}")),
            Some(package) if !installed.contains(package) => {
                missing.push(format!("{program}: tests/setup does not install {package}; {places:?}"));
            }
            Some(_) => {}
        }
    }
    ensure!(missing.is_empty(), "executed, but not installed by `tests/setup build run qemu`:\n{}", missing.join("\n"));
    Ok(())
}

/// What the demo is made of: its own program, and of the lab all but machines that boot and Kubernetes.
fn is_of_the_demo(place: &str) -> bool {
    const OTHERS: [&str; 6] = ["bin/", "booted.rs", "confined.rs", "kubernetes/", "rendered/", "generic_netlink.rs"];
    let of_the_lab =
        place.strip_prefix("tests/src/").is_some_and(|file| !OTHERS.iter().any(|other| file.starts_with(other)));
    of_the_lab || place.starts_with("tests/src/bin/demo/") || ["tests/kernel/run", "tests/kernel/init"].contains(&place)
}

fn whatever_the_demo_executes_is_installed_for_it() -> Result<()> {
    let installed = packages("demo_packages")?;
    let (mut missing, mut needed) = (Vec::new(), BTreeSet::new());
    for (program, places) in executed::everywhere(&root()) {
        let (true, Some(package)) = (places.iter().any(|place| is_of_the_demo(place)), provider(&program)) else {
            continue;
        };
        needed.insert(package.to_owned());
        if !installed.contains(package) && !ALWAYS_THERE.iter().any(|(always, _)| *always == package) {
            missing.push(format!("{program} of {package}: {places:?}"));
        }
    }
    ensure!(
        missing.is_empty(),
        "executed by the demo, but not installed by `tests/setup demo`:\n{}",
        missing.join("\n")
    );
    // What the kernel holds is shown by one of two, which the demo chooses from a table.
    needed.insert("ipvsadm".to_owned());
    let unused: Vec<_> = installed.difference(&needed).collect();
    ensure!(unused.is_empty(), "installed for the demo, and executed by nothing of it: {unused:?}");
    Ok(())
}

fn nothing_is_installed_without_a_reason() -> Result<()> {
    let executed = executed::everywhere(&root());
    for package in all_packages()? {
        let by_name = INSTALLED.iter().any(|(known, programs)| {
            *known == package && programs.split_whitespace().any(|program| executed.contains_key(program))
        });
        let otherwise = NOT_BY_NAME.iter().any(|(known, _)| *known == package);
        ensure!(by_name || otherwise, "tests/setup installs {package}, and nothing executes a program of it");
    }
    Ok(())
}

/// What dpkg prints; `None` when there is no dpkg or it does not know.
fn dpkg(args: &[&str]) -> Option<String> {
    let output = Command::new("dpkg-query").args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn packages_hold_the_programs_that_the_table_says() -> Result<()> {
    for (package, programs) in ALWAYS_THERE.iter().chain(&INSTALLED) {
        let Some(files) = dpkg(&["-L", package]) else { continue };
        let needs = dpkg(&["-W", "-f", "${Depends}", package]).unwrap_or_default();
        for program in programs.split_whitespace().filter(|program| !ALTERNATIVES.contains(program)) {
            // systemd itself is started by its path.
            let paths = [format!("bin/{program}"), format!("/lib/systemd/{program}")];
            let is_in = |files: &str| files.lines().any(|file| paths.iter().any(|path| file.ends_with(path)));
            // Debian 13 has promtool in a package of its own, which prometheus needs.
            let of_its_own = needs.split(", ").any(|need| need.split(' ').next() == Some(program));
            let holds = is_in(&files) || of_its_own && dpkg(&["-L", program]).is_some_and(|files| is_in(&files));
            ensure!(holds, "{package} has no {program}");
        }
    }
    for (package, _) in ALWAYS_THERE {
        let Some(rank) = dpkg(&["-W", "-f", "${Essential} ${Priority}", package]) else { continue };
        ensure!(rank.contains("yes") || rank.contains("required"), "a minimal Debian need not have {package}: {rank}");
    }
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[],
        lab::tests![
            programs_are_read_from_scripts_and_sources,
            whatever_is_executed_is_installed,
            whatever_the_demo_executes_is_installed_for_it,
            nothing_is_installed_without_a_reason,
            packages_hold_the_programs_that_the_table_says,
        ],
    )
}
