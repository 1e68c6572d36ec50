//! Manual pages and completions: made from the flags that the programs read, so that they name every verb and flag there is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::{Host, bin};

/// The programs with the verbs that some of their pages are about, and how many flags of the program itself there are at least.
const PROGRAMS: [(&str, &[&str], usize); 3] = [
    ("netd", &["status", "config-set", "lease-reserve", "doctor", "trace", "cleanup"], 11),
    ("ipvs-proxy", &["apply", "status", "explain", "doctor"], 11),
    (
        "netdadm",
        &[
            "check",
            "certs-list",
            "certs-renew",
            "preflight",
            "status",
            "etcd-replace",
            "node-remove",
            "backup",
            "restore",
        ],
        2,
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The long flags that a program's help names.
fn flags(host: &Host, program: &str, least: usize) -> Result<Vec<String>> {
    let help = host.command(bin(program)?).arg("--help").run()?.stdout;
    let words = help.lines().filter_map(|line| line.trim_start().split_once("--"));
    let names = words.filter(|(before, _)| before.is_empty() || before.trim_end().ends_with(','));
    let part = |letter: char| letter.is_alphanumeric() || "-_".contains(letter);
    let flags: Vec<String> = names.map(|(_, rest)| rest.chars().take_while(|letter| part(*letter)).collect()).collect();
    ensure!(flags.len() >= least, "{help}");
    Ok(flags)
}

fn pages_name_every_flag_whatever_the_environment_says() -> Result<()> {
    let host = Host::start("manual")?;
    for (program, verbs, least) in PROGRAMS {
        host.command(bin(program)?).args(["man", "/tmp/man"]).run()?;
        let page = host.read(format!("/tmp/man/{program}.8"))?;
        for flag in flags(&host, program, least)? {
            ensure!(page.contains(&format!("\\-\\-{}", flag.replace('-', "\\-"))), "{program}(8) lacks --{flag}");
        }
        for verb in verbs {
            let page = host.read(format!("/tmp/man/{program}-{verb}.8"))?;
            ensure!(page.contains(".SH NAME") && page.contains(".SH OPTIONS"), "{program}-{verb}(8): {page}");
        }
        host.command(bin(program)?)
            .args(["man", "/tmp/again"])
            .env("FLANNELD_IFACE", "")
            .env("FLANNELD_V", "7")
            .run()?;
        ensure!(host.read(format!("/tmp/again/{program}.8"))? == page, "the environment is in {program}(8)");
    }
    Ok(())
}

fn full_disk_leaves_no_page_that_is_half_and_is_named() -> Result<()> {
    let host = Host::start("full")?;
    host.run(&[
        "sh",
        "-c",
        "mkdir /run/full && mount -t tmpfs -o size=8k tmpfs /run/full && head -c 8192 /dev/zero >/run/full/other",
    ])?;
    for (program, ..) in PROGRAMS {
        let output = host.command(bin(program)?).args(["man", "/run/full/"]).output()?;
        let page = format!("/run/full/{program}.8");
        ensure!(!output.status.success() && output.stderr.contains(&page), "{output:?}");
        ensure!(host.run(&["ls", "-A", "/run/full"])?.stdout == "other\n", "something is left of {program}");
    }
    Ok(())
}

fn completions_name_every_flag_and_bash_completes_verbs() -> Result<()> {
    let host = Host::start("completions")?;
    for (program, _, least) in PROGRAMS {
        for shell in ["bash", "zsh", "fish"] {
            let script = host.command(bin(program)?).args(["completions", shell]).run()?.stdout;
            for flag in flags(&host, program, least)? {
                ensure!(script.contains(&flag), "{shell} does not complete --{flag} of {program}");
            }
            host.write(format!("/tmp/{program}.{shell}"), script)?;
        }
    }
    let line = "source /tmp/netd.bash; COMP_WORDS=(netd lease re); COMP_CWORD=2; _netd netd re lease; echo \"${COMPREPLY[@]}\"";
    let words = host.run(&["bash", "-c", line])?.stdout;
    ensure!(words.trim() == "reserve release", "{words}");
    for (program, verb, flag) in [
        ("netd", "docker-opts", "--help"),
        ("netd", "status", "--watch"),
        ("ipvs-proxy", "status", "--watch"),
        ("ipvs-proxy", "apply", "--filename"),
        ("netdadm", "status", "--watch"),
    ] {
        let line = format!(
            "source /tmp/{program}.bash; COMP_WORDS=({program} {verb} --); COMP_CWORD=2; _{} {program} -- {verb}; echo \"${{COMPREPLY[@]}}\"",
            program.replace('-', "__")
        );
        let words = host.run(&["bash", "-c", &line])?.stdout;
        ensure!(words.contains(flag), "{program} {verb} --: {words}");
    }
    Ok(())
}

fn page_and_completions_of_the_plugin_know_its_usage() -> Result<()> {
    let host = Host::start("plugin")?;
    let said = |word: &str| host.command(bin("netd-cni")?).arg(word).run().map(|said| said.stdout);
    for word in ["--help", "-h", "help"] {
        let usage = said(word)?;
        ensure!(usage.contains("usage: netd-cni install [--as NAME[,NAME...]] [--conflist FILE TO] DIR"), "{usage}");
        ensure!(usage.contains("usage: netd-cni cleanup [--yes] LIST...") && !usage.contains("unknown"), "{usage}");
    }
    for word in ["--version", "-V"] {
        ensure!(said(word)? == format!("netd-cni {}\n", env!("CARGO_PKG_VERSION")), "{word}: {}", said(word)?);
    }
    let refused = host.command(bin("netd-cni")?).args(["install", "/nowhere/bin"]).output()?;
    ensure!(!refused.status.success() && refused.stderr.contains("mkdir -p /nowhere/bin"), "{}", refused.stderr);
    let mut texts = vec![fs::read_to_string(root().join("docs/man/netd-cni.8"))?];
    for shell in ["bash", "zsh", "fish"] {
        texts.push(fs::read_to_string(root().join(format!("configs/completions/netd-cni.{shell}")))?);
    }
    host.run(&["mkdir", "-p", "/tmp/bin"])?;
    for name in
        ["install", "cleanup", "netd-cni", "flannel", "bridge", "host-local", "portmap", "bandwidth", "loopback"]
    {
        ensure!(texts.iter().all(|text| text.contains(name)), "{name} is missing");
        if !["install", "cleanup"].contains(&name) {
            host.command(bin("netd-cni")?).args(["install", "--as", name, "/tmp/bin"]).run().context(name)?;
        }
    }
    let script = root().join("configs/completions/netd-cni.bash");
    let line = format!(
        "source {}; COMP_WORDS=(netd-cni install --as lo); COMP_CWORD=3; _netd_cni; echo \"${{COMPREPLY[@]}}\"",
        script.display()
    );
    ensure!(host.run(&["bash", "-c", &line])?.stdout.trim() == "loopback");
    Ok(())
}

fn documents_have_a_row_for_each_check_of_a_doctor() -> Result<()> {
    for (program, page) in [("netd", "tools"), ("ipvs-proxy", "proxy-tools")] {
        let source = fs::read_to_string(root().join(program).join("src/doctor/mod.rs"))?;
        let checks: Vec<&str> =
            source.split("Check { name: \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        ensure!(checks.len() > 9, "{program}: {checks:?}");
        let text = fs::read_to_string(root().join(format!("docs/{page}.md")))?;
        for check in checks {
            ensure!(text.contains(&format!("\n| `{check}` | ")), "docs/{page}.md has no row for `{check}`");
        }
    }
    Ok(())
}

/// Who reads the README finds each page by its links.
fn every_page_is_reached_from_the_readme() -> Result<()> {
    let (mut open, mut reached) = (vec![PathBuf::from("README.md")], BTreeSet::new());
    while let Some(page) = open.pop() {
        let text = fs::read_to_string(root().join(&page)).with_context(|| page.display().to_string())?;
        let folder = page.parent().unwrap_or(Path::new(""));
        let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        for link in links.filter(|link| link.ends_with(".md") && !link.contains("://")) {
            // As a browser reads it: a page of docs/ names one beside it, or `../` one above.
            let to = link.strip_prefix("../").map_or_else(|| folder.join(link), PathBuf::from);
            if reached.insert(to.clone()) {
                open.push(to);
            }
        }
    }
    for entry in fs::read_dir(root().join("docs"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let page = Path::new("docs").join(&name);
        ensure!(!name.ends_with(".md") || reached.contains(&page), "no link leads to {}", page.display());
    }
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[],
        lab::tests![
            pages_name_every_flag_whatever_the_environment_says,
            full_disk_leaves_no_page_that_is_half_and_is_named,
            completions_name_every_flag_and_bash_completes_verbs,
            page_and_completions_of_the_plugin_know_its_usage,
            documents_have_a_row_for_each_check_of_a_doctor,
            every_page_is_reached_from_the_readme,
        ],
    )
}
