//! What a release is made of: installed files, Debian packages, and that the same programs are packed into the same bytes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod packaged;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
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
    // As `systemctl enable` has it; the second leads to the unit of a package.
    let enabled = [("multi-user.target.wants", "/etc/systemd/system"), ("rescue.target.wants", "/lib/systemd/system")];
    for (folder, units) in enabled {
        let folder = place.path().join("etc/systemd/system").join(folder);
        fs::create_dir(&folder)?;
        std::os::unix::fs::symlink(format!("{units}/netd.service"), folder.join("netd.service"))?;
    }
    words(&mut install(&["-u"])?)?;
    let left = files(place.path())?;
    let kept = [
        "/etc/cni/net.d/10-netd.conflist",
        "/etc/default/ipvs-proxy",
        "/etc/default/netd",
        "/etc/systemd/system/rescue.target.wants/netd.service",
    ];
    ensure!(left == kept.map(str::to_owned).into(), "{left:?}");
    ensure!(fs::read_to_string(&settings)? == "FLANNELD_IFACE=eth7\n", "an operator's settings were replaced");
    // Under any mask files are for everybody, a slash behind the prefix changes nothing, and what was built may be gone later.
    let masked = tempfile::tempdir()?;
    let again = |words: &str| -> Result<Command> {
        let script = install(&[])?;
        let mut command = Command::new("bash");
        command.args(["-euc", "umask 077; exec \"$0\" $1"]).arg(script.get_program()).arg(words);
        command.envs(script.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("DESTDIR", masked.path().join("root")).env("PREFIX", "/usr/local/").env_remove("CNI_BIN_DIR");
        Ok(command)
    };
    words(&mut again("")?)?;
    let closed =
        words(Command::new("find").arg(masked.path().join("root")).args(["!", "-perm", "-005", "-type", "d"]))?;
    ensure!(closed.is_empty(), "{closed}");
    ensure!(files(&masked.path().join("root"))?.contains("/usr/local/lib/systemd/system/netd.service"));
    words(again("-u")?.env("PROGRAMS", "/nowhere"))?;
    ensure!(files(&masked.path().join("root"))?.len() == 3, "{:?}", files(&masked.path().join("root"))?);
    for prefix in ["opt", "/opt/a b", "/opt/100%", "/opt/a&b", "/opt/#1", "/opt/\"x"] {
        let refused = install(&[])?.env("PREFIX", prefix).output()?;
        ensure!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains(prefix), "{refused:?}");
    }
    let refused = install(&[])?.env("PROGRAMS", "/nowhere").output()?;
    ensure!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("make build"),
        "{refused:?}"
    );
    Ok(())
}

/// A host may have the plugins of others under our names, and a list of names may be written as elsewhere.
fn plugins_of_others_come_back_and_names_that_are_none_are_refused() -> Result<()> {
    let place = tempfile::tempdir()?;
    let folder = place.path().join("opt/cni/bin");
    fs::create_dir_all(&folder)?;
    let install = |names: &str, words: &[&str]| -> Result<std::process::Output> {
        let mut command = packaging("install")?;
        Ok(command.env("DESTDIR", place.path()).env("CNI_NAMES", names).args(words).arg("netd-cni").output()?)
    };
    let theirs = |name: &str| fs::read_to_string(folder.join(name)).is_ok_and(|text| text == "theirs");
    for name in ["bridge", "portmap"] {
        fs::write(folder.join(name), "theirs")?;
    }
    // What was never installed is not taken away.
    let kept = install("", &["-u"])?;
    ensure!(kept.status.success() && theirs("bridge") && theirs("portmap"), "{kept:?}");
    // Twice, and with commas.
    for _ in 0..2 {
        let done = install("netd-cni,bridge", &[])?;
        ensure!(
            done.status.success() && !theirs("bridge") && theirs("bridge.replaced") && theirs("portmap"),
            "{done:?}"
        );
    }
    let back = install("netd-cni,bridge", &["-u"])?;
    ensure!(back.status.success(), "{back:?}");
    let left = files(&folder)?;
    ensure!(left == ["/bridge", "/portmap"].map(str::to_owned).into() && theirs("bridge"), "{left:?}");
    for bad in ["../../../evil", "flanel", "netd"] {
        let refused = install(bad, &[])?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success() && said.contains(bad) && said.contains("accepted: netd-cni"), "{said}");
    }
    Ok(())
}

/// A folder that no release was made in is somebody's own.
fn a_release_replaces_nothing_but_a_release() -> Result<()> {
    let place = tempfile::tempdir()?;
    let out = place.path().join("out");
    release(place.path(), "022")?;
    fs::remove_file(out.join("SHA256SUMS"))?;
    for file in fs::read_dir(&out)? {
        fs::remove_file(file?.path())?;
    }
    for text in ["", "0  letter\n"] {
        fs::write(out.join("letter"), "mine")?;
        if !text.is_empty() {
            fs::write(out.join("SHA256SUMS"), text)?;
        }
        let refused = release(place.path(), "022").err().context("a release in the place of a letter")?;
        ensure!(format!("{refused:#}").contains("in it is of no release"), "{refused:#}");
        ensure!(fs::read_to_string(out.join("letter"))? == "mine");
    }
    fs::remove_file(out.join("letter"))?;
    fs::remove_file(out.join("SHA256SUMS"))?;
    // Into an empty folder, and in the place of a release, one of another version too.
    ensure!(release(place.path(), "022")?.len() == 5);
    ensure!(release(place.path(), "022")?.len() == 5);
    Ok(())
}

/// A version before a release is older than it, for dpkg as for Cargo.
fn packages_of_a_version_before_a_release_are_older_than_it() -> Result<()> {
    let place = tempfile::tempdir()?;
    for (version, debian) in [("1.2.0", "1.2.0"), ("1.2.0-rc1", "1.2.0~rc1"), ("1.2.0-rc-1.x", "1.2.0~rc.1.x")] {
        let mut deb = packaging("deb")?;
        let made = words(deb.env("VERSION", version).arg(place.path()).arg("netd-cni"))?;
        ensure!(made.contains(&format!("netd-cni_{debian}_")), "{made}");
        let field = words(Command::new("dpkg-deb").args(["-f", made.trim(), "Version"]))?;
        ensure!(field.trim() == debian, "{field}");
        let older = Command::new("dpkg").args(["--compare-versions", debian, "lt", "1.2.0"]).status()?;
        ensure!(older.success() == (debian != "1.2.0"), "{debian}");
    }
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

/// The files of a release by their names, made under this umask with scratch folders of its own. Its programs are the two smallest.
fn release(place: &Path, umask: &str) -> Result<BTreeMap<String, Vec<u8>>> {
    fs::create_dir_all(place)?;
    let script = packaging("release")?;
    let mut command = Command::new("bash");
    command.args(["-euc", "umask \"$1\"; shift; exec \"$@\"", "bash", umask]);
    command.arg(script.get_program()).arg(place.join("out")).args(["netdadm", "netd-cni"]);
    for (name, value) in script.get_envs() {
        command.env(name, value.context("a value")?);
    }
    command.env("SBOM", bin("sbom")?).env("GZIP_LEVEL", "1");
    words(command.env("SOURCE_DATE_EPOCH", "1700000000").env("TMPDIR", place))?;
    let mut made = BTreeMap::new();
    for entry in fs::read_dir(place.join("out"))? {
        let path = entry?.path();
        made.insert(path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path)?);
    }
    Ok(made)
}

fn releases_are_the_same_bytes_wherever_and_whenever_they_are_made() -> Result<()> {
    let place = tempfile::tempdir()?;
    let (one, another) = (place.path().join("one"), place.path().join("another/deeper"));
    let (left, right) = (release(&one, "022")?, release(&another, "077")?);
    ensure!(left.keys().eq(right.keys()) && left.len() == 5, "{:?} {:?}", left.keys(), right.keys());
    for (name, bytes) in &left {
        ensure!(right.get(name) == Some(bytes), "{name} differs");
    }
    words(Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(one.join("out")))?;
    let sums = String::from_utf8_lossy(&left["SHA256SUMS"]).into_owned();
    ensure!(sums.lines().count() == 4, "{sums}");
    let version = env!("CARGO_PKG_VERSION");
    for name in left.keys().filter(|name| name.ends_with(".deb")) {
        ensure!(name.contains(&format!("_{version}_")), "{name}");
        let shown = words(Command::new("dpkg-deb").arg("-c").arg(one.join("out").join(name)))?;
        ensure!(shown.lines().all(|line| line.contains("root/root") && line.contains("2023-11-14")), "{shown}");
    }
    // What the tarball installs is what the packages and the tree install.
    let tarball = left.keys().find(|name| name.ends_with(".tar.gz")).context("no tarball")?;
    words(Command::new("tar").arg("-xzf").arg(one.join("out").join(tarball)).arg("-C").arg(&one))?;
    let unpacked = one.join(tarball.trim_end_matches(".tar.gz")).join("packaging/install");
    let from = |script: &Path, to: &str| -> Result<BTreeSet<String>> {
        let mut command = packaging("install")?;
        let programs =
            command.get_envs().find(|(name, _)| *name == "PROGRAMS").and_then(|(_, value)| value).map(Into::into);
        command = Command::new(script);
        if script != unpacked {
            command.envs(programs.map(|programs: std::ffi::OsString| ("PROGRAMS", programs)));
        }
        words(command.env("DESTDIR", place.path().join(to)).args(["netdadm", "netd-cni"]))?;
        files(&place.path().join(to))
    };
    let (ours, theirs) = (from(&root().join("packaging/install"), "of-tree")?, from(&unpacked, "of-tarball")?);
    ensure!(ours == theirs && ours.len() > 20, "{ours:?} {theirs:?}");
    Ok(())
}

fn list_of_crates_names_what_is_linked_with_licence_and_checksum() -> Result<()> {
    let print = || -> Result<String> {
        let metadata = Command::new("cargo")
            .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"])
            .current_dir(root())
            .output()?;
        let host = Host::start("crates")?;
        let sbom = host.command(bin("sbom")?).arg(root().join("Cargo.lock")).arg("2023-11-14T22:13:20Z");
        Ok(sbom.input(String::from_utf8(metadata.stdout)?).run()?.stdout)
    };
    let list: serde_json::Value = serde_json::from_str(&print()?)?;
    ensure!(list["bomFormat"] == "CycloneDX" && list["metadata"]["timestamp"] == "2023-11-14T22:13:20Z");
    let components = list["components"].as_array().context("no components")?;
    let named = |name: &str| components.iter().find(|component| component["name"] == name);
    for name in PROGRAMS {
        ensure!(named(name).is_some_and(|program| program["type"] == "application"), "{name} is missing");
    }
    let locked = fs::read_to_string(root().join("Cargo.lock"))?;
    for component in components {
        let licence = component["licenses"][0]["expression"].as_str();
        ensure!(licence.is_some_and(|licence| !licence.is_empty() && !licence.contains('/')), "{component}");
        // What the tree itself has has no checksum.
        if let Some(sum) = component["hashes"][0]["content"].as_str() {
            ensure!(locked.contains(&format!("checksum = \"{sum}\"")), "{component}");
        }
    }
    let summed = components.iter().filter(|component| component["hashes"].is_array()).count();
    ensure!(summed > 100 && components.len() - summed < 15, "{summed} of {}", components.len());
    ensure!(named("tokio").is_some() && named("libtest-mimic").is_none() && named("proptest").is_none());
    let needs = list["dependencies"].as_array().context("no dependencies")?;
    let netd = needs.iter().find(|of| of["ref"].as_str().is_some_and(|name| name.starts_with("pkg:cargo/netd@")));
    ensure!(netd.is_some_and(|netd| netd["dependsOn"].to_string().contains("pkg:cargo/kernel@")), "{needs:?}");
    Ok(())
}

/// The maintainer scripts of these packages, each in a folder of its name.
fn maintainer_scripts(place: &Path, names: &[&str]) -> Result<()> {
    for made in words(packaging("deb")?.arg(place).args(names))?.lines() {
        let name = Path::new(made).file_name().and_then(|name| name.to_str()).and_then(|name| name.split('_').next());
        words(Command::new("dpkg-deb").arg("-e").arg(made).arg(place.join(name.context("a package has a name")?)))?;
    }
    Ok(())
}

fn packages_go_where_folders_are_mount_points_or_links_and_programs_are_gone() -> Result<()> {
    let place = tempfile::tempdir()?;
    maintainer_scripts(place.path(), &["netd", "ipvs-proxy", "netd-cni", "netdadm"])?;
    let host = Host::start("packages")?;
    let script = |package: &str, script: &str, verb: &str| -> Result<String> {
        let path = place.path().join(package).join(script);
        let command = host.command(path).arg(verb).env("DPKG_MAINTSCRIPT_PACKAGE", package);
        Ok(command.env("PATH", "/run/stand-in:/usr/sbin:/usr/bin:/sbin:/bin").run()?.stderr)
    };
    for folder in [
        "/run/netd",
        "/run/ipvs-proxy",
        "/var/lib/netd",
        "/var/lib/ipvs-proxy",
        "/var/lib/netd-cni",
        "/var/lib/netdadm",
    ] {
        host.run(&["mkdir", "-p", folder])?;
        host.run(&["mount", "-t", "tmpfs", "tmpfs", folder])?;
    }
    // An operator's link to where Debian has its plugins.
    host.write("/opt/plugins/bridge", "somebody else's")?;
    host.run(&["bash", "-euc", "rm -rf /opt/cni; mkdir -p /opt/cni; ln -s /opt/plugins /opt/cni/bin"])?;
    script("netd-cni", "preinst", "install")?;
    ensure!(host.read("/opt/plugins/bridge.diverted")? == "somebody else's", "another's plugin is in the way");
    host.write("/var/lib/netdadm/applied.json", "{}")?;
    // A systemd that knows no such unit: somebody has deleted it.
    host.run(&["mkdir", "-p", "/run/systemd/system", "/run/stand-in"])?;
    for program in ["deb-systemd-invoke", "deb-systemd-helper", "systemctl"] {
        let path = format!("/run/stand-in/{program}");
        host.write(&path, "#!/bin/sh\necho \"Unit not loaded.\" >&2\nexit 5\n")?;
        host.run(&["chmod", "755", &path])?;
    }
    for daemon in ["netd", "ipvs-proxy", "netd-cni"] {
        let said = script(daemon, "prerm", "remove")?;
        ensure!(said.contains(&format!("{daemon}: a purge will leave")), "{daemon}, whose program is gone: {said}");
        let is_of_a_unit = daemon != "netd-cni";
        ensure!(said.contains(&format!("{daemon} could not be stopped")) == is_of_a_unit, "{said}");
    }
    // As dpkg, which takes the link for a folder of the package.
    host.run(&["bash", "-euc", "rm /opt/cni/bin; rmdir /opt/cni"])?;
    for verb in ["remove", "purge"] {
        for package in PROGRAMS {
            script(package, "postrm", verb)?;
        }
    }
    ensure!(host.read("/opt/plugins/bridge")? == "somebody else's", "the other's plugin did not come back");
    ensure!(host.path("/opt/cni/bin").is_symlink(), "the operator's link is gone");
    ensure!(!host.path("/var/lib/netdadm/applied.json").exists(), "a purge left the record of the host");
    script("netd-cni", "preinst", "install").map(drop)
}

fn main() -> ExitCode {
    lab::harness::main(
        &[],
        lab::tests![
            installed_programs_are_started_from_where_they_are_and_go_but_their_settings,
            settings_that_are_shipped_are_ones_that_the_programs_read,
            plugins_of_others_come_back_and_names_that_are_none_are_refused,
            a_release_replaces_nothing_but_a_release,
            packages_of_a_version_before_a_release_are_older_than_it,
            releases_are_the_same_bytes_wherever_and_whenever_they_are_made,
            packages_go_where_folders_are_mount_points_or_links_and_programs_are_gone,
            list_of_crates_names_what_is_linked_with_licence_and_checksum,
        ],
    )
}
