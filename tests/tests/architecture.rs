//! The rules of ARCHITECTURE.md that a program can check: which crate may use which, what pure code may not name, what the three
//! programs may not do, and what every module says of itself.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod house;
mod sources;

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use house::{PROGRAMS, Source, none_of, product, root, sources};

/// Everything that is shipped and the lab.
fn everything() -> Vec<Source> {
    product().iter().map(String::as_str).chain(["tests/src", "tests/floor/src"]).flat_map(sources).collect()
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
    forbid("bounded", &["netstate", "reconcile", "kernel", "cluster", "nix", "tokio"])?;
    forbid("netstate", &["bounded", "reconcile", "kernel", "cluster", "nix", "netlink_sys"])?;
    forbid("reconcile", &["bounded", "netstate", "kernel", "cluster", "nix", "netlink_sys"])?;
    forbid("kernel", &["cluster", "daemon", "netd", "ipvs_proxy", "cni_plugin"])?;
    forbid("cluster", &["netstate", "reconcile", "kernel", "daemon"])?;
    forbid("daemon", &["netd", "ipvs_proxy", "cni_plugin", "netdadm"])?;
    forbid("host", &["netstate", "kernel", "cluster", "daemon"])?;
    for program in PROGRAMS {
        let others: Vec<String> = PROGRAMS.iter().filter(|p| **p != program).map(|p| p.replace('-', "_")).collect();
        forbid(program, &others.iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    Ok(())
}

fn pure_rooms_do_no_io_and_import_pure_rooms_only() -> Result<()> {
    house::rooms::check_reader();
    none_of("purity", &house::rooms::impurities())
}

fn parsers_are_fuzzed() -> Result<()> {
    house::parsers::check_reader();
    none_of("parsers", &house::parsers::unlisted())
}

fn what_is_read_whole_has_a_limit() -> Result<()> {
    house::reads::check_reader();
    none_of("reads", &house::reads::unbounded())
}

fn files_and_functions_are_short() -> Result<()> {
    house::size::check_readers();
    let everything = everything();
    let files = everything.iter().filter_map(house::size::long_file);
    let functions = everything.iter().flat_map(house::size::large_functions);
    none_of("size", &files.chain(functions).collect::<Vec<_>>())
}

fn kernel_half_has_its_share_of_tests() -> Result<()> {
    let share = house::size::test_share("lib/kernel");
    let too_little =
        (share < house::size::KERNEL_TESTS).then(|| format!("lib/kernel: {share} % of its lines are tests"));
    none_of("tests", too_little.as_slice())
}

fn public_functions_say_when_they_fail() -> Result<()> {
    let silent: Vec<String> = everything().iter().flat_map(house::size::silent_failures).collect();
    none_of("errors", &silent)
}

/// What nobody outside may use the compiler can call dead.
fn programs_have_no_public_modules() -> Result<()> {
    let mut public = Vec::new();
    for program in PROGRAMS {
        for source in sources(&format!("{program}/src")) {
            let modules = source.lines.iter().filter(|(_, line)| line.trim_start().starts_with("pub mod "));
            public.extend(modules.map(|(number, line)| format!("{}:{number} {}", source.path, line.trim())));
        }
    }
    none_of("public", &public)
}

fn every_dependency_is_used() -> Result<()> {
    none_of("dependencies", &house::dependencies::unused())
}

fn licences_bans_and_sources_are_what_deny_toml_allows() -> Result<()> {
    house::deny::check_reader();
    let (wrong, several) = house::deny::check()?;
    for crate_ in several {
        eprintln!("deny: in several versions: {crate_}");
    }
    none_of("deny", &wrong)
}

fn nouns_exist_once_and_variants_stay_in_their_room() -> Result<()> {
    none_of("nouns", &house::nouns::misplaced())
}

fn words_are_the_fields() -> Result<()> {
    house::words::check_reader();
    none_of("words", &house::words::spoken())
}

fn programs_execute_no_program() -> Result<()> {
    let mut found = Vec::new();
    for source in product().iter().flat_map(|folder| sources(folder)) {
        // The numbers of the calls that the daemons have the kernel refuse them.
        let code = source.code().replace("libc::SYS_execve", "");
        let names = ["Command::new", "execv", "posix_spawn"].into_iter().filter(|name| code.contains(name));
        found.extend(names.map(|name| format!("{} has {name}", source.path)));
    }
    none_of("programs", &found)
}

fn unsafe_code_is_in_the_kernel_crate_only() -> Result<()> {
    let found: Vec<String> = product()
        .iter()
        .filter(|folder| *folder != "lib/kernel/src")
        .flat_map(|folder| sources(folder))
        .filter(|source| {
            ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|form| source.code().contains(form))
        })
        .map(|source| source.path)
        .collect();
    none_of("unsafe", &found)
}

fn every_unsafe_block_says_why_it_is_sound() -> Result<()> {
    for Source { path, text, .. } in sources("lib/kernel/src") {
        let lines: Vec<&str> = text.lines().collect();
        for (number, _) in lines.iter().enumerate().filter(|(_, line)| line.contains("unsafe {")) {
            let before = lines[number.saturating_sub(6)..number].join("\n");
            ensure!(before.contains("SAFETY:"), "{path}:{} has no SAFETY comment", number + 1);
        }
    }
    Ok(())
}

fn every_module_says_what_it_is() -> Result<()> {
    let folders = ["lib", "netd", "cni-plugin", "ipvs-proxy", "netdadm", "tests"];
    let silent: Vec<String> = folders
        .into_iter()
        .flat_map(house::every_file)
        .filter(|(_, text)| {
            let first = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!"));
            !first.is_some_and(|line| line.starts_with("//!"))
        })
        .map(|(path, _)| path)
        .collect();
    none_of("headers", &silent)
}

fn no_name_says_nothing() -> Result<()> {
    let mut found = Vec::new();
    for source in product().iter().flat_map(|folder| sources(folder)) {
        let module = source.module();
        let empty = module.iter().filter(|name| ["utils", "util", "helpers", "misc"].contains(&name.as_str()));
        found.extend(empty.map(|name| format!("{}: {name}", source.path)));
        for line in source.code().lines() {
            let declared = ["struct ", "enum ", "trait ", "type "].iter().find_map(|kind| line.split_once(kind));
            let name =
                declared.map_or("", |(_, rest)| rest.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default());
            if ["Manager", "Helper", "Handler"].iter().any(|word| name.ends_with(word)) {
                found.push(format!("{}: {name}", source.path));
            }
        }
    }
    none_of("names", &found)
}

fn main() -> ExitCode {
    lab::harness::main(
        &[],
        lab::tests![
            plugin_reaches_neither_tokio_nor_cluster_nor_tls,
            crates_point_downwards_only,
            pure_rooms_do_no_io_and_import_pure_rooms_only,
            parsers_are_fuzzed,
            what_is_read_whole_has_a_limit,
            files_and_functions_are_short,
            kernel_half_has_its_share_of_tests,
            public_functions_say_when_they_fail,
            programs_have_no_public_modules,
            every_dependency_is_used,
            licences_bans_and_sources_are_what_deny_toml_allows,
            nouns_exist_once_and_variants_stay_in_their_room,
            words_are_the_fields,
            programs_execute_no_program,
            unsafe_code_is_in_the_kernel_crate_only,
            every_unsafe_block_says_why_it_is_sound,
            every_module_says_what_it_is,
            no_name_says_nothing,
        ],
    )
}
