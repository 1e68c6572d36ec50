//! The rules of ARCHITECTURE.md that a program can check: which crate may use which, what pure code may not name, what the three
//! programs may not do, and what every module says of itself.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

const PROGRAMS: [&str; 3] = ["netd", "cni-plugin", "ipvs-proxy"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The Rust files below a folder of the workspace.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found
}

/// A file without its unit tests and comments: what runs.
fn code(text: &str) -> String {
    let before_tests = text.split("#[cfg(test)]").next().unwrap_or_default();
    before_tests.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Every crate that `package` links, by name.
fn linked(package: &str) -> Result<Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "-p", package, "-e", "normal", "--prefix", "none", "-f", "{lib}"])
        .current_dir(root())
        .output()
        .context("run cargo tree")?;
    ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().map(|line| line.trim().to_owned()).collect())
}

fn forbid(package: &str, crates: &[&str]) -> Result<()> {
    let linked = linked(package)?;
    for name in crates {
        ensure!(!linked.iter().any(|found| found == name), "{package} links {name}");
    }
    Ok(())
}

fn plugin_reaches_neither_tokio_nor_cluster_nor_tls() -> Result<()> {
    forbid("cni-plugin", &["tokio", "cluster", "rustls", "clap", "rtnetlink", "netlink_proto"])?;
    forbid("cni-plugin", &["daemon", "hyper", "prometheus_client", "sd_notify", "tracing_subscriber"])
}

fn crates_point_downwards_only() -> Result<()> {
    forbid("netstate", &["reconcile", "kernel", "cluster", "nix", "netlink_sys"])?;
    forbid("reconcile", &["netstate", "kernel", "cluster", "nix", "netlink_sys"])?;
    forbid("kernel", &["cluster", "daemon", "netd", "ipvs_proxy", "cni_plugin"])?;
    forbid("cluster", &["netstate", "reconcile", "kernel", "daemon"])?;
    forbid("daemon", &["netd", "ipvs_proxy", "cni_plugin"])?;
    for program in PROGRAMS {
        let others: Vec<String> = PROGRAMS.iter().filter(|p| **p != program).map(|p| p.replace('-', "_")).collect();
        forbid(program, &others.iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    Ok(())
}

fn pure_code_names_no_io_clock_or_log() -> Result<()> {
    let banned = [
        "std::fs",
        "std::net::Tcp",
        "std::net::Udp",
        "std::process",
        "std::thread",
        "std::env",
        "Instant::now",
        "SystemTime",
        "tokio",
        "tracing",
        "log::",
        "kernel::",
        "cluster::",
        "crate::run",
    ];
    for folder in [
        "lib/netstate/src",
        "lib/reconcile/src",
        "netd/src/plan",
        "ipvs-proxy/src/object",
        "ipvs-proxy/src/plan",
        "ipvs-proxy/src/dataplane",
        "cni-plugin/src/plan",
    ] {
        let files = sources(folder);
        ensure!(!files.is_empty(), "{folder} has no sources");
        for (path, text) in files {
            for name in banned {
                // `kernel::` of our own crate in a path of another name (`netstate::…`) does not occur; a plain find will do.
                ensure!(!code(&text).contains(name), "{} names {name}", path.display());
            }
        }
    }
    Ok(())
}

fn programs_execute_no_program() -> Result<()> {
    for folder in ["netd/src", "cni-plugin/src", "ipvs-proxy/src", "lib"] {
        for (path, text) in sources(folder).into_iter().filter(|(path, _)| !path.to_string_lossy().contains("/tests/"))
        {
            for name in ["Command::new", "execv", "posix_spawn"] {
                ensure!(!code(&text).contains(name), "{} has {name}", path.display());
            }
        }
    }
    Ok(())
}

fn unsafe_code_is_in_the_kernel_crate_only() -> Result<()> {
    for folder in [
        "netd/src",
        "cni-plugin/src",
        "ipvs-proxy/src",
        "lib/netstate",
        "lib/reconcile",
        "lib/cluster/src",
        "lib/daemon/src",
    ] {
        for (path, text) in sources(folder) {
            ensure!(!code(&text).contains("unsafe"), "{} has unsafe code", path.display());
        }
    }
    Ok(())
}

fn every_unsafe_block_says_why_it_is_sound() -> Result<()> {
    for (path, text) in sources("lib/kernel/src") {
        let lines: Vec<&str> = text.lines().collect();
        for (number, _) in lines.iter().enumerate().filter(|(_, line)| line.contains("unsafe {")) {
            let before = lines[number.saturating_sub(6)..number].join("\n");
            ensure!(before.contains("SAFETY:"), "{}:{} has no SAFETY comment", path.display(), number + 1);
        }
    }
    Ok(())
}

fn every_module_says_what_it_is() -> Result<()> {
    for folder in ["lib", "netd", "cni-plugin", "ipvs-proxy", "tests"] {
        for (path, text) in sources(folder) {
            let first = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!"));
            let opens = first.is_some_and(|line| line.starts_with("//!"));
            ensure!(opens, "{} does not open with //!", path.display());
        }
    }
    Ok(())
}

fn no_name_says_nothing() -> Result<()> {
    for folder in ["lib", "netd", "cni-plugin", "ipvs-proxy"] {
        for (path, text) in sources(folder) {
            let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
            ensure!(!["utils", "util", "helpers", "misc"].contains(&stem.as_str()), "{}", path.display());
            for word in ["Manager", "Helper", "Handler"] {
                let declared = ["struct ", "enum ", "trait ", "type "];
                let names = code(&text).lines().any(|line| {
                    declared.iter().any(|kind| {
                        line.split_once(kind).is_some_and(|(_, name)| {
                            name.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().ends_with(word)
                        })
                    })
                });
                ensure!(!names, "{} declares a …{word}", path.display());
            }
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[],
        lab::tests![
            plugin_reaches_neither_tokio_nor_cluster_nor_tls,
            crates_point_downwards_only,
            pure_code_names_no_io_clock_or_log,
            programs_execute_no_program,
            unsafe_code_is_in_the_kernel_crate_only,
            every_unsafe_block_says_why_it_is_sound,
            every_module_says_what_it_is,
            no_name_says_nothing,
        ],
    )
}
