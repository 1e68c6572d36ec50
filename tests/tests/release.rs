//! What a release is made of, as files that are installed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod packaged;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use lab::{Host, bin};
use packaged::{PROGRAMS, packaging, root, words};

/// The paths of all files below a folder, as they would be on a host.
fn files(root: &Path) -> Result<BTreeSet<String>> {
    let found = words(Command::new("find").arg(root).args(["!", "-type", "d", "-printf", "/%P\n"]))?;
    Ok(found.lines().map(str::to_owned).collect())
}

fn installed_programs_are_started_from_where_they_are_and_go_but_their_settings() -> Result<()> {
    let place = tempfile::tempdir()?;
    let install = |words: &[&str]| -> Result<Command> {
        let mut command = packaging("install")?;
        command.env("DESTDIR", place.path()).env("PREFIX", "/opt/pods").env("CNI_BIN_DIR", "/usr/lib/cni").args(words);
        Ok(command)
    };
    words(&mut install(&[])?)?;
    let (there, at) = (files(place.path())?, |path: &str| fs::read_to_string(place.path().join(&path[1..])));
    for name in ["netd", "ipvs-proxy"] {
        // systemd reads no units below this prefix.
        let unit = at(&format!("/etc/systemd/system/{name}.service"))?;
        ensure!(unit.contains(&format!("ExecStart=/opt/pods/bin/{name}\n")) && !unit.contains("/usr/local"), "{unit}");
    }
    for name in PROGRAMS {
        let folder = if name == "netd-cni" { "/usr/lib/cni" } else { "/opt/pods/bin" };
        for path in [
            format!("{folder}/{name}"),
            format!("/opt/pods/share/man/man8/{name}.8"),
            format!("/opt/pods/share/bash-completion/completions/{name}"),
            format!("/opt/pods/share/zsh/site-functions/_{name}"),
            format!("/opt/pods/share/fish/vendor_completions.d/{name}.fish"),
        ] {
            ensure!(there.contains(&path), "{path} is missing: {there:?}");
        }
    }
    let names = there.iter().filter(|path| path.starts_with("/usr/lib/cni/")).count();
    ensure!(names == 7 && at("/opt/pods/share/man/man8/netd-lease.8")?.contains(".SH OPTIONS"), "{there:?}");
    let settings = place.path().join("etc/default/netd");
    fs::write(&settings, "FLANNELD_IFACE=eth7\n")?;
    words(&mut install(&["netd"])?)?;
    words(&mut install(&["-u"])?)?;
    let left = files(place.path())?;
    let kept = ["/etc/cni/net.d/10-netd.conflist", "/etc/default/ipvs-proxy", "/etc/default/netd"];
    ensure!(left == kept.map(str::to_owned).into(), "{left:?}");
    ensure!(fs::read_to_string(&settings)? == "FLANNELD_IFACE=eth7\n", "an operator's settings were replaced");
    let refused = install(&[])?.env("PROGRAMS", "/nowhere").output()?;
    ensure!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("make build"),
        "{refused:?}"
    );
    Ok(())
}

fn settings_that_are_shipped_are_ones_that_the_programs_read() -> Result<()> {
    let host = Host::start("settings")?;
    for name in ["netd", "ipvs-proxy"] {
        let shipped = fs::read_to_string(root().join("configs/default").join(name))?;
        let help = host.command(bin(name)?).arg("--help").run()?.stdout;
        let known: BTreeSet<&str> =
            help.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next()).collect();
        let lines = shipped.lines().map(|line| line.strip_prefix('#').unwrap_or(line));
        let set: Vec<&str> = lines
            .filter(|line| !line.starts_with(' '))
            .filter_map(|line| line.split_once('='))
            .map(|(name, _)| name)
            .collect();
        ensure!(set.len() > 4, "{shipped}");
        for variable in set {
            ensure!(known.contains(variable), "{variable} is read by nobody: {known:?}");
        }
        // Nothing is set before an operator does it: by that the package knows whether the daemon can start.
        ensure!(shipped.lines().all(|line| line.is_empty() || line.starts_with('#')), "{shipped}");
    }
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[],
        lab::tests![
            installed_programs_are_started_from_where_they_are_and_go_but_their_settings,
            settings_that_are_shipped_are_ones_that_the_programs_read,
        ],
    )
}
