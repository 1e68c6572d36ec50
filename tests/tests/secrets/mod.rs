//! Passwords, tokens and keys, and whether anything that a daemon shows has one of them, in any form in which a program may write it.
//!
//! Invariant: what is looked through has been said after the secret was used, or a text that says nothing would pass.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lab::{Host, Process, eventually};
use nix::sys::signal::Signal;

/// What must happen "at once", generous for a busy machine.
const SOON: Duration = Duration::from_secs(40);

/// What a daemon shows whoever reaches its socket, or a listener.
const PAGES: [&str; 16] = [
    "/",
    "/status",
    "/status?format=json",
    "/tables",
    "/tables?format=json",
    "/changes",
    "/changes?format=json",
    "/metrics",
    "/livez",
    "/livez?verbose",
    "/readyz",
    "/readyz?verbose",
    "/healthz",
    "/services",
    "/events",
    "/page.js",
];

/// Least length of what is searched for: a shorter piece stands in a text by chance.
const LEAST: usize = 14;

/// Secrets of a test, each with its name and its forms.
pub(crate) struct Secrets(Vec<(&'static str, BTreeSet<String>)>);

impl Secrets {
    /// These secrets by name; a key in PEM counts by each of its lines.
    pub(crate) fn new(secrets: &[(&'static str, &str)]) -> Result<Self> {
        let each = secrets.iter().map(|(name, secret)| {
            let found: BTreeSet<String> = pieces(secret).iter().flat_map(|piece| forms(piece)).collect();
            ensure!(
                !found.is_empty() && found.iter().all(|form| form.len() >= LEAST),
                "{name} is too short: {found:?}"
            );
            Ok((*name, found))
        });
        Ok(Self(each.collect::<Result<_>>()?))
    }

    /// A text has none of them.
    pub(crate) fn are_not_in(&self, place: &str, text: &str) -> Result<()> {
        for (name, forms) in &self.0 {
            if let Some(form) = forms.iter().find(|form| text.contains(*form)) {
                let line = text.lines().find(|line| line.contains(form)).unwrap_or(text);
                anyhow::bail!("{place} has the {name} as {form:?}: {line}");
            }
        }
        Ok(())
    }

    /// Nothing that the daemon shows has one: its log at its finest, its pages, its commands, and the files of
    /// the machine that everybody reads.
    pub(crate) fn are_shown_by_nothing_of(&self, host: &Host, program: &str, daemon: &Process) -> Result<()> {
        for _ in 0..2 {
            let from = daemon.log().len();
            daemon.signal(Signal::SIGUSR1)?;
            said_behind(daemon, from, "detail of the log changed")?;
        }
        daemon.signal(Signal::SIGHUP)?;
        daemon.wait_for_line("everything is compared with the kernel now", SOON)?;
        self.are_not_in("the log", &daemon.log())?;
        for page in PAGES {
            let socket = format!("/run/{program}/http.sock");
            let url = format!("http://localhost{page}");
            // The stream of events has no end.
            let limit = if page == "/events" { "1" } else { "10" };
            let asked = ["-sS", "--max-time", limit, "--unix-socket", &socket, &url];
            let output = host.command("curl").args(asked).output()?;
            let text = output.stdout;
            let is_whole = page != "/metrics" || !text.is_empty();
            ensure!(is_whole, "{program} shows nothing at {page}: {}", output.stderr);
            self.are_not_in(&format!("{program}'s page {page}"), &text)?;
        }
        for words in [&["status"][..], &["status", "--json"], &["tables"], &["tables", "--json"]] {
            let output = host.command(lab::bin(program)?).args(words).output()?;
            self.are_not_in(&format!("{program} {words:?}"), &(output.stdout + &output.stderr))?;
        }
        self.are_in_no_file_for_everybody(host)?;
        self.are_not_in("the log, once all of that was asked for", &daemon.log())
    }

    /// No file of the machine's own folders that somebody but root may read has one.
    fn are_in_no_file_for_everybody(&self, host: &Host) -> Result<()> {
        host.write("/run/for-everybody", "")?;
        let script =
            "chmod 644 /run/for-everybody; find /run /var/lib/netd /var/lib/cni -type f -perm /044 2>/dev/null; true";
        let files = host.run(&["sh", "-c", script])?.stdout;
        ensure!(files.contains("/run/for-everybody"), "what everybody reads is not found: {files}");
        for file in files.lines() {
            // One that is written anew meanwhile is read by its next name, or is gone.
            let Ok(bytes) = fs::read(host.path(file)) else { continue };
            self.are_not_in(file, &String::from_utf8_lossy(&bytes))?;
        }
        Ok(())
    }
}

/// What is searched for of a secret: itself, and of a text of lines each that is long enough.
fn pieces(secret: &str) -> Vec<&str> {
    let lines = secret.lines().map(str::trim).filter(|line| line.len() >= LEAST && !line.contains("-----"));
    if secret.trim().contains('\n') { lines.collect() } else { vec![secret.trim()] }
}

/// A piece as it is, in base64 wherever it begins there, in hexadecimal, and as a list of numbers; the same of the bytes that it is base64 of.
fn forms(piece: &str) -> Vec<String> {
    let mut found = vec![piece.to_owned()];
    let decoded = STANDARD.decode(piece).ok().filter(|bytes| bytes.len() >= LEAST);
    for bytes in std::iter::once(piece.as_bytes().to_vec()).chain(decoded) {
        for shift in 0..3 {
            let whole = STANDARD.encode([vec![0; shift], bytes.clone()].concat());
            // Its first and last letters have bits of what stands beside.
            found.extend(whole.get(4..whole.len() - 4).filter(|form| form.len() >= LEAST).map(str::to_owned));
        }
        let hexadecimal: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let numbers = bytes.iter().map(u8::to_string).collect::<Vec<_>>();
        found.extend([hexadecimal.to_uppercase(), hexadecimal, numbers.join(", "), numbers.join(",")]);
    }
    found
}

/// A secret is found in each form: what cannot find would pass everything.
pub(crate) fn each_form_is_found() -> Result<()> {
    let secret = "hunter2-of-the-store";
    let secrets = Secrets::new(&[("password", secret)])?;
    let encoded = |before: &str| STANDARD.encode(format!("{before}:{secret}@10.4.7.12"));
    for text in [secret.to_owned(), encoded(""), encoded("a"), encoded("ab"), format!("{:?}", secret.as_bytes())] {
        ensure!(secrets.are_not_in("a text", &format!("with {text} in it")).is_err(), "{text} is not found");
    }
    secrets.are_not_in("a text", "hunter2-of-another-one").context("what is no secret")
}

/// A file that root alone may read.
pub(crate) fn write(host: &Host, path: &str, content: &str) -> Result<()> {
    host.write(path, "")?;
    host.run(&["chmod", "600", path])?;
    host.write(path, content)?;
    let mode = host.run(&["stat", "-c", "%a", path])?.stdout;
    ensure!(mode.trim() == "600", "{path} has mode {mode}");
    Ok(())
}

/// Waits until the log has a line with `part` that came behind its first `from` bytes.
pub(crate) fn said_behind(daemon: &Process, from: usize, part: &str) -> Result<()> {
    eventually(SOON, || {
        let log = daemon.log();
        ensure!(log.get(from..).is_some_and(|rest| rest.contains(part)), "no {part:?} in {log}");
        Ok(())
    })
}
