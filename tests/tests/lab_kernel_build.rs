//! The builder of the lab kernel (`tests/kernel/build`), with a source archive whose make takes a moment instead of minutes:
//! when it builds, when it does not, and what it leaves.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{eventually, lab_kernel};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SOON: Duration = Duration::from_secs(20);

/// What the build of the real kernel took on machines with 2 cores: 233 s and 570 s.
const BUILD_TIME: &str = "4 to 10 minutes";

/// Stands for the kernel's Makefile: counts the builds in the file that COUNT names, or fails where BROKEN is set.
const MAKEFILE: &str = "\
defconfig:
\ttouch $(O)/.config
linux:
\t@test -z \"$(BROKEN)\"
\t@echo '  CC      kernel/sched/core.o'
\techo built >>$(COUNT)
\tsleep 1
\tcp /bin/true $(O)/linux
";
const MERGE: &str = "#!/bin/sh\ncat \"$4\" >>\"$3\"\n";

/// A folder with the builder, a fragment, a source archive and an empty cache.
struct Workshop {
    folder: tempfile::TempDir,
}

impl Workshop {
    fn open() -> Result<Self> {
        let workshop = Self { folder: tempfile::tempdir()? };
        fs::copy(lab_kernel::script("build"), workshop.path("build"))?;
        workshop.program("run", "#!/bin/sh\nexit 0\n")?;
        fs::write(workshop.path("config.fragment"), "# a comment\nCONFIG_IP_VS=y\n# CONFIG_MODULES is not set\n")?;
        workshop.write_source(MAKEFILE)?;
        Ok(workshop)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn program(&self, name: &str, content: &str) -> Result<()> {
        fs::create_dir_all(self.path(name).parent().unwrap())?;
        fs::write(self.path(name), content)?;
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).context(name.to_owned())
    }

    fn write_source(&self, makefile: &str) -> Result<()> {
        self.program("linux/scripts/kconfig/merge_config.sh", MERGE)?;
        fs::write(self.path("linux/Makefile"), makefile)?;
        let tar = Command::new("tar").args(["cJf", "source.tar.xz", "linux"]).current_dir(&self.folder).status()?;
        ensure!(tar.success());
        Ok(())
    }

    fn start(&self, args: &[&str], broken: &str) -> Result<Child> {
        let mut command = Command::new(self.path("build"));
        command.args(args).env("NETD_LAB_SOURCE", self.path("source.tar.xz")).env("XDG_CACHE_HOME", self.path("cache"));
        command.env("COUNT", self.path("count")).env("BROKEN", broken).env_remove("NETD_LAB_KERNEL");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start the builder")
    }

    fn call(&self, args: &[&str]) -> Result<Output> {
        Ok(self.start(args, "")?.wait_with_output()?)
    }

    /// Calls the builder, which must succeed, and gives the kernel's path.
    fn build(&self) -> Result<String> {
        let output = self.call(&[])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let path = String::from_utf8(output.stdout)?.trim().to_owned();
        ensure!(
            Path::new(&path).starts_with(self.path("cache")) && Path::new(&path).is_file(),
            "{path:?} is no kernel in the cache"
        );
        Ok(path)
    }

    fn builds(&self) -> usize {
        fs::read_to_string(self.path("count")).unwrap_or_default().lines().count()
    }

    /// Processes whose working folder lies in this workshop.
    fn workers(&self) -> Result<usize> {
        let folders = fs::read_dir("/proc")?.flatten().filter_map(|entry| fs::read_link(entry.path().join("cwd")).ok());
        Ok(folders.filter(|folder| folder.starts_with(&self.folder)).count())
    }

    /// Names in the cache that begin with `prefix`.
    fn cached(&self, prefix: &str) -> Result<usize> {
        let entries = fs::read_dir(self.path("cache/netd-lab"))?;
        Ok(entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).count())
    }
}

fn kernel_is_built_once_and_announced() -> Result<()> {
    let workshop = Workshop::open()?;
    let before = workshop.call(&["--path"])?;
    let said = String::from_utf8(before.stderr)?;
    ensure!(!before.status.success() && said.contains("not built; run `make lab-kernel`"), "{said}");
    let first = workshop.call(&[])?;
    ensure!(String::from_utf8(first.stderr)?.contains(BUILD_TIME));
    let path = workshop.build()?;
    ensure!(workshop.builds() == 1, "a second call built again");
    ensure!(String::from_utf8(workshop.call(&["--path"])?.stdout)?.trim() == path);
    ensure!(workshop.cached("building")? == 0, "the build folder was left");
    Ok(())
}

fn time_of_the_build_is_the_same_wherever_it_is_named() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (file, about) in [
        ("README.md", "linux-source-6.1"),
        ("Makefile", "Build the user-mode kernel"),
        ("tests/kernel/build", "building it once"),
    ] {
        let text = fs::read_to_string(root.join(file))?;
        let (_, rest) = text.split_once(about).with_context(|| format!("{file} does not speak of {about}"))?;
        let sentence: String = rest.chars().take(120).collect();
        ensure!(sentence.contains(BUILD_TIME), "{file}: {about}{sentence}");
    }
    Ok(())
}

fn only_a_changed_option_or_source_builds_again() -> Result<()> {
    let workshop = Workshop::open()?;
    let first = workshop.build()?;
    let fragment = fs::read_to_string(workshop.path("config.fragment"))?;
    fs::write(workshop.path("config.fragment"), format!("# another comment\n{fragment}"))?;
    ensure!(workshop.build()? == first && workshop.builds() == 1, "a comment built again");
    fs::write(workshop.path("config.fragment"), fragment.replace("# CONFIG_MODULES is not set\n", ""))?;
    ensure!(workshop.build()? != first && workshop.builds() == 2, "a changed option did not build again");
    fs::write(workshop.path("config.fragment"), fragment)?;
    ensure!(workshop.build()? == first && workshop.builds() == 2, "the first kernel was lost");
    workshop.write_source(&format!("# another source\n{MAKEFILE}"))?;
    ensure!(workshop.build()? != first && workshop.builds() == 3, "another source did not build again");
    Ok(())
}

fn calls_at_the_same_time_build_once() -> Result<()> {
    let workshop = Workshop::open()?;
    let calls = [workshop.start(&[], "")?, workshop.start(&[], "")?, workshop.start(&[], "")?];
    for call in calls {
        let output = call.wait_with_output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    ensure!(workshop.builds() == 1, "{} builds", workshop.builds());
    Ok(())
}

fn failed_build_says_why_and_leaves_no_kernel() -> Result<()> {
    let workshop = Workshop::open()?;
    let output = workshop.start(&[], "yes")?.wait_with_output()?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && said.contains("the build failed"), "{said}");
    ensure!(workshop.cached("building")? == 0 && workshop.cached("failed.log")? == 1);
    ensure!(!workshop.call(&["--path"])?.status.success());
    workshop.build()?;
    Ok(())
}

fn ended_build_ends_its_compiler_and_leaves_nothing() -> Result<()> {
    let workshop = Workshop::open()?;
    workshop.write_source(&MAKEFILE.replace("sleep 1", "sleep 1000"))?;
    let mut call = workshop.start(&[], "")?;
    eventually(SOON, || ensure_that(workshop.builds() == 1, "the compiler has not started"))?;
    ensure!(workshop.workers()? > 0, "no process of the build is found, so this test shows nothing");
    kill(Pid::from_raw(i32::try_from(call.id())?), Signal::SIGTERM)?;
    ensure!(!call.wait()?.success());
    ensure!(workshop.cached("building")? == 0, "the build folder was left");
    eventually(SOON, || ensure_that(workshop.workers()? == 0, "a process of the build lives on"))?;
    ensure!(!workshop.call(&["--path"])?.status.success());
    Ok(())
}

fn ensure_that(condition: bool, otherwise: &str) -> Result<()> {
    ensure!(condition, "{otherwise}");
    Ok(())
}

fn kernel_that_does_not_boot_is_not_taken() -> Result<()> {
    let workshop = Workshop::open()?;
    workshop.program("run", "#!/bin/sh\nexit 125\n")?;
    let output = workshop.call(&[])?;
    ensure!(!output.status.success() && String::from_utf8(output.stderr)?.contains("does not boot"));
    ensure!(!workshop.call(&["--path"])?.status.success());
    Ok(())
}

fn missing_source_and_unknown_option_name_the_cure() -> Result<()> {
    let workshop = Workshop::open()?;
    fs::remove_file(workshop.path("source.tar.xz"))?;
    let said = String::from_utf8(workshop.call(&[])?.stderr)?;
    ensure!(said.contains("apt-get install") && said.contains("linux-source-6.1"), "{said}");
    let packages = String::from_utf8(workshop.call(&["--needs"])?.stdout)?;
    ensure!(packages.split_whitespace().any(|package| package == "linux-source-6.1"), "{packages}");
    workshop.program("linux/scripts/kconfig/merge_config.sh", "#!/bin/sh\n")?;
    let tar = Command::new("tar").args(["cJf", "source.tar.xz", "linux"]).current_dir(&workshop.folder).status()?;
    let said = String::from_utf8(workshop.call(&[])?.stderr)?;
    ensure!(tar.success() && said.contains("does not know these options of config.fragment: CONFIG_IP_VS"), "{said}");
    Ok(())
}

fn kernel_that_is_named_is_taken_and_nothing_is_built() -> Result<()> {
    let workshop = Workshop::open()?;
    workshop.program("lent", "#!/bin/sh\n")?;
    let call = |kernel: &str, args: &[&str]| {
        let mut command = Command::new(workshop.path("build"));
        command.args(args).env("NETD_LAB_KERNEL", workshop.path(kernel)).env("XDG_CACHE_HOME", workshop.path("cache"));
        command.output().context("start the builder")
    };
    for args in [&[][..], &["--path"]] {
        let taken = call("lent", args)?;
        let path = String::from_utf8(taken.stdout)?;
        ensure!(taken.status.success() && Path::new(path.trim()) == workshop.path("lent"), "{path}");
        let absent = call("absent", args)?;
        let said = String::from_utf8(absent.stderr)?;
        ensure!(!absent.status.success() && said.contains("NETD_LAB_KERNEL names no program"), "{said}");
    }
    ensure!(workshop.builds() == 0 && !workshop.path("cache").exists());
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[],
        lab::tests![
            kernel_is_built_once_and_announced,
            time_of_the_build_is_the_same_wherever_it_is_named,
            only_a_changed_option_or_source_builds_again,
            calls_at_the_same_time_build_once,
            failed_build_says_why_and_leaves_no_kernel,
            ended_build_ends_its_compiler_and_leaves_nothing,
            kernel_that_does_not_boot_is_not_taken,
            kernel_that_is_named_is_taken_and_nothing_is_built,
            missing_source_and_unknown_option_name_the_cure,
        ],
    )
}
