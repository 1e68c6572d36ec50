//! One test binary: what cargo says of it, and its run.
//!
//! Invariant: standard output and standard error come back whole and in the order in which they were written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Those that took longest, longest first: they begin first, so that none of them runs alone at the end.
const LONG: [&str; 38] = [
    "netdadm_cluster",
    "soak",
    "kubernetes_nodes",
    "kubernetes_ipvs",
    "kubernetes_migration",
    "proxy_ipvs",
    "kubernetes_services",
    "netd_kubernetes",
    "proxy_swarm",
    "proxy_kubernetes",
    "proxy_services",
    "verbs",
    "proxy_oracle_ipvs",
    "bench",
    "lab_kubernetes",
    "netd_wireguard",
    "netd_vrf",
    "proxy_change",
    "netd_doctor",
    "lab_time",
    "netd_time",
    "proxy_takeover_ipvs",
    "proxy_oracle",
    "proxy_config",
    "netd_store",
    "proxy_store",
    "etcd",
    "netd_moving",
    "documentation",
    "netd_daemon",
    "proxy_traffic_ipvs",
    "netd_lease",
    "netd_wireguard_paths",
    "proxy_mode",
    "netd_firewalls",
    "netd_entrances",
    "netd_resilience_tunnels",
    "netd_flowtable",
];

/// The name of the tests in documentation among the binaries.
const DOCUMENTATION: &str = "documentation";

/// Exit status of the lab kernel's runner (`tests/kernel/run`) for a guest whose kernel stood still: it says nothing of the tests.
const STOOD_STILL: i32 = 122;

/// Memory of a lab kernel that a job is run inside of: the most that any of the listed ones asks for.
const GUEST_MEMORY: &str = "2048M";

/// And its time, below [`super::LIMIT`].
const GUEST_LIMIT: Duration = Duration::from_secs(840);

/// Something to run.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// Its name for people, as cargo prints it: `tests/netd_vxlan.rs`.
    pub(crate) title: String,
    /// How it is run alone.
    pub(crate) alone: String,
    program: PathBuf,
    args: Vec<String>,
    /// The folder of its package, where it is run.
    folder: PathBuf,
}

/// What became of one.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) job: Job,
    pub(crate) took: Duration,
    pub(crate) output: Vec<u8>,
    /// Its exit status, or why there is none.
    pub(crate) end: Result<ExitStatus, String>,
}

/// A message of cargo's, as far as it matters (`cargo test --message-format=json`).
#[derive(Debug, Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
    src_path: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Profile {
    test: bool,
}

/// The test binaries of these names, `package/target`, by name; nothing else is built.
///
/// # Errors
/// When cargo does not build them.
pub(crate) fn named(names: &[&str]) -> Result<BTreeMap<String, Job>> {
    let mut cargo = Command::new("cargo");
    // Of the whole workspace, whose members ask each other for the features that some tests need.
    cargo.args(["test", "--locked", "--workspace", "--no-run", "--message-format=json"]);
    for (_, target) in names.iter().filter_map(|name| name.split_once('/')) {
        cargo.args(["--test", target]);
    }
    let all = built(&mut cargo)?.into_iter().map(|(target, job)| {
        let package = job.title.split(':').next().unwrap_or_default();
        (format!("{package}/{target}"), job)
    });
    Ok(all.collect())
}

/// All binaries whose name contains one of `words`, with no word all of them and the tests in documentation; long ones first.
///
/// # Errors
/// When cargo does not build them.
pub(crate) fn all(words: &[String]) -> Result<Vec<Job>> {
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "--locked", "--workspace", "--no-run", "--message-format=json"]);
    let mut jobs = built(&mut cargo)?;
    if words.is_empty() {
        jobs.push((DOCUMENTATION.to_owned(), documentation()?));
    }
    jobs.sort_by(|(a, first), (b, second)| (rank(a), &first.title).cmp(&(rank(b), &second.title)));
    let wanted = |job: &Job| words.is_empty() || words.iter().any(|word| job.title.contains(word.as_str()));
    Ok(jobs.into_iter().map(|(_, job)| job).filter(wanted).collect())
}

/// The test binaries that `cargo` builds.
fn built(cargo: &mut Command) -> Result<Vec<(String, Job)>> {
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("start cargo")?;
    ensure!(output.status.success(), "cargo test --no-run: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(binary).collect())
}

/// The place of a binary among [`LONG`], or behind them.
fn rank(name: &str) -> usize {
    LONG.iter().position(|long| *long == name).unwrap_or(LONG.len())
}

/// Name and job of the test binary that a message of cargo's is about.
fn binary(line: &str) -> Option<(String, Job)> {
    let message: Message = serde_json::from_str(line).ok()?;
    let is_test = message.reason == "compiler-artifact" && message.profile?.test;
    let (target, program) = (message.target.filter(|_| is_test)?, message.executable?);
    let folder = message.manifest_path?.parent()?.to_owned();
    let package = folder.file_name()?.to_string_lossy().into_owned();
    let source = target.src_path.strip_prefix(&folder).unwrap_or(&target.src_path).display().to_string();
    let which = match target.kind.first().map(String::as_str) {
        Some("test") => format!("--test {}", target.name),
        Some("bin") => format!("--bin {}", target.name),
        _ => "--lib".to_owned(),
    };
    let alone = format!("cargo test --manifest-path {}/Cargo.toml {which}", folder.display());
    let job = Job { title: format!("{package}: {source}"), alone, program, args: Vec::new(), folder };
    Some((target.name, job))
}

fn documentation() -> Result<Job> {
    let args = ["test", "--locked", "--workspace", "--doc"].map(str::to_owned).to_vec();
    Ok(Job {
        title: DOCUMENTATION.to_owned(),
        alone: format!("cargo {}", args.join(" ")),
        program: PathBuf::from("cargo"),
        args,
        folder: std::env::current_dir().context("find the working folder")?,
    })
}

impl Job {
    /// The demo with this mode of the proxy, built by who calls this program.
    ///
    /// # Errors
    /// When this program's own place cannot be found.
    pub(crate) fn of_demo(mode: &str) -> Result<Self> {
        let program = std::env::current_exe().context("find this program's own path")?.with_file_name("demo");
        let args = ["--backend", "vxlan", "--proxy", mode].map(str::to_owned).to_vec();
        let alone = format!("make demo PROXY={mode}");
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        Ok(Self { title: format!("demo: {mode}"), alone, program, args, folder })
    }

    /// Those of its tests whose names contain `word`, or all, and none of the words of `without`.
    pub(crate) fn part(&self, word: Option<&str>, without: &[&str]) -> Self {
        let mut job = self.clone();
        job.args.extend(word.map(str::to_owned));
        job.args.extend(without.iter().flat_map(|other| ["--skip".to_owned(), (*other).to_owned()]));
        if !job.args.is_empty() {
            job.alone = format!("{} -- {}", job.alone, job.args.join(" "));
        }
        job.title = word.map_or_else(|| job.title.clone(), |word| format!("{}, {word}", job.title));
        job
    }

    /// The same inside the lab kernel of this version, whatever the running kernel has. Its variables come from this process.
    pub(crate) fn inside(&self, version: &str, kernel: &Path) -> Self {
        let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = |path: &Path| path.display().to_string();
        let folder = self.program.parent().unwrap_or(Path::new("/"));
        let mut args = vec!["-k".to_owned(), text(kernel), "-m".to_owned(), GUEST_MEMORY.to_owned(), "-t".to_owned()];
        args.extend([GUEST_LIMIT.as_secs().to_string(), "-s".to_owned(), text(&tree.join("..")), "-s".to_owned()]);
        args.extend([text(folder), "--".to_owned(), text(&self.program)]);
        args.extend(self.args.iter().cloned());
        let program = tree.join("kernel/run");
        let alone = format!("{} {}", text(&program), args.join(" "));
        Self { title: format!("{version}: {}", self.title), alone, program, args, folder: self.folder.clone() }
    }

    /// Runs it to its end, or for `limit`; a second time when the lab kernel stood still under it.
    pub(crate) fn run(self, limit: Duration) -> Ended {
        let begun = Instant::now();
        let (mut output, mut end) = self.once(limit);
        if end.as_ref().is_ok_and(|status| status.code() == Some(STOOD_STILL)) {
            output.extend(b"run-tests: the lab kernel stood still; all of it is run again, once\n");
            let (again, second) = self.once(limit);
            output.extend(again);
            end = second;
        }
        Ended { job: self, took: begun.elapsed(), output, end }
    }

    fn once(&self, limit: Duration) -> (Vec<u8>, Result<ExitStatus, String>) {
        match self.output(limit) {
            Ok((output, status)) => (output, Ok(status)),
            Err(error) => (Vec::new(), Err(format!("{error:#}"))),
        }
    }

    fn output(&self, limit: Duration) -> Result<(Vec<u8>, ExitStatus)> {
        // One file, opened once: both streams are in it in the order of writing.
        let mut file = tempfile::tempfile().context("make a file for the output")?;
        let copy = |file: &File| file.try_clone().context("share the file for the output");
        // In the foreground, so that an interrupt from the terminal ends it as well.
        let mut command = Command::new("timeout");
        command
            .args(["--foreground", "--signal=KILL", &limit.as_secs().to_string()])
            .arg(&self.program)
            .args(&self.args);
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        command.stdin(Stdio::null()).stdout(copy(&file)?).stderr(copy(&file)?);
        let status = command.status().with_context(|| format!("start {}", self.program.display()))?;
        let mut output = Vec::new();
        file.rewind().context("read the output")?;
        file.read_to_end(&mut output).context("read the output")?;
        Ok((output, status))
    }

    /// A job that runs a line of shell.
    #[cfg(test)]
    pub(crate) fn of_shell(script: &str) -> Self {
        Self {
            title: script.to_owned(),
            alone: format!("sh -c '{script}'"),
            program: PathBuf::from("sh"),
            args: vec!["-c".to_owned(), script.to_owned()],
            folder: PathBuf::from("/"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As cargo 1.96 writes it, without what is not read.
    const ARTIFACT: &str = r#"{"reason":"compiler-artifact","package_id":"path+file:///src/tests#0.1.0",
        "manifest_path":"/src/tests/Cargo.toml","target":{"kind":["test"],"crate_types":["bin"],"name":"netd_vxlan",
        "src_path":"/src/tests/tests/netd_vxlan.rs","edition":"2024","test":true},"profile":{"opt_level":"0","test":true},
        "features":[],"filenames":["/src/target/debug/deps/netd_vxlan-1"],"executable":"/src/target/debug/deps/netd_vxlan-1"}"#;

    #[test]
    fn test_binaries_are_those_that_cargo_would_run() {
        let (name, job) = binary(ARTIFACT).unwrap();
        assert_eq!((name.as_str(), job.title.as_str()), ("netd_vxlan", "tests: tests/netd_vxlan.rs"));
        assert_eq!(job.alone, "cargo test --manifest-path /src/tests/Cargo.toml --test netd_vxlan");
        assert_eq!((job.program, job.folder), ("/src/target/debug/deps/netd_vxlan-1".into(), "/src/tests".into()));
        let none = [
            ARTIFACT.replace(r#""test":true},"f"#, r#""test":false},"f"#),
            ARTIFACT
                .replace(r#""profile":{"opt_level":"0","test":true}"#, r#""profile":{"opt_level":"0","test":false}"#),
            ARTIFACT.replace(r#""executable":"/src/target/debug/deps/netd_vxlan-1""#, r#""executable":null"#),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
            "running 3 tests".to_owned(),
        ];
        assert!(none[1..].iter().all(|line| binary(line).is_none()), "a program, a library, and what is no artifact");
    }

    #[test]
    fn job_inside_a_kernel_is_the_same_program_behind_the_runner() {
        let (_, job) = binary(ARTIFACT).unwrap();
        let inside = job.inside("5.10", Path::new("/cache/linux-lab"));
        assert_eq!(inside.title, "5.10: tests: tests/netd_vxlan.rs");
        assert!(inside.program.ends_with("tests/kernel/run") && inside.folder == job.folder);
        assert_eq!(inside.args[..2], ["-k", "/cache/linux-lab"]);
        assert_eq!(inside.args.last().unwrap(), "/src/target/debug/deps/netd_vxlan-1");
        assert!(GUEST_LIMIT < super::super::LIMIT, "its own limit ends it, and says so");
    }

    #[test]
    fn part_of_a_binary_is_what_has_a_word_and_none_of_the_others() {
        let (_, job) = binary(ARTIFACT).unwrap();
        let (limits, rest) = (job.part(Some("limit"), &["killed"]), job.part(None, &["killed", "limit"]));
        assert_eq!(
            (limits.title.as_str(), rest.title.as_str()),
            ("tests: tests/netd_vxlan.rs, limit", job.title.as_str())
        );
        assert!(limits.alone.ends_with("--test netd_vxlan -- limit --skip killed"), "{}", limits.alone);
        let inside = rest.inside("5.10", Path::new("/cache/linux-lab"));
        assert_eq!(inside.args[inside.args.len() - 4..], ["--skip", "killed", "--skip", "limit"]);
        assert_eq!(job.part(None, &[]).alone, job.alone);
    }

    #[test]
    fn long_ones_begin_first_and_are_all_there() {
        assert!(rank("kubernetes_nodes") < rank("netd_flowtable") && rank("netd_flowtable") < rank("readme"));
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let file = |name: &&str| folder.join(format!("tests/{name}.rs")).exists();
        let others: Vec<&str> = LONG.into_iter().filter(|name| !file(name)).collect();
        assert_eq!(others, ["verbs", "etcd", DOCUMENTATION], "each other name is a file of tests");
    }

    #[test]
    fn only_what_the_lab_kernel_stood_still_under_is_run_again_and_only_once() {
        let runs = |status: i32| {
            let ended = Job::of_shell(&format!("echo run; exit {status}")).run(Duration::from_secs(60));
            (String::from_utf8(ended.output).unwrap().matches("run\n").count(), ended.end.unwrap().code())
        };
        assert_eq!((runs(STOOD_STILL), runs(124), runs(101)), ((2, Some(STOOD_STILL)), (1, Some(124)), (1, Some(101))));
    }

    #[test]
    fn output_is_whole_and_in_order_and_one_that_hangs_is_ended() {
        let ended = Job::of_shell("echo one; echo two >&2; echo three; exit 4").run(Duration::from_secs(60));
        assert_eq!((ended.output.as_slice(), ended.end.unwrap().code()), (&b"one\ntwo\nthree\n"[..], Some(4)));
        let ended = Job::of_shell("echo begun; exec sleep 1000").run(Duration::from_secs(1));
        assert!(ended.output == b"begun\n" && !ended.end.unwrap().success());
        assert!(ended.took < Duration::from_secs(100));
    }
}
