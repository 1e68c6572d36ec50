//! Verbs that end: each operation of a call fails once, or the call is killed at it.
//!
//! Invariant: a call that says that it is done has done all; one that does not says why with an exit status, and the next call does the rest.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use injection::{Effect, Followed, Kind, Plan, effects, launcher};
use lab::Host;

use super::{MANY, NEVER, differences, part};
use crate::proxy::SOON;

/// A verb, where it is called, and what it leaves.
pub(crate) struct Verb<'a> {
    pub(crate) host: &'a Host,
    pub(crate) program: &'static str,
    pub(crate) words: &'a [&'a str],
    /// Makes what it works on.
    pub(crate) prepare: &'a dyn Fn() -> Result<()>,
    /// What it changes, as text.
    pub(crate) state: &'a dyn Fn() -> Result<String>,
    /// Part of the words of a call that finds nothing to do and takes that for a failure.
    pub(crate) nothing: Option<&'static str>,
    /// It does all or nothing.
    pub(crate) is_whole: bool,
}

/// What is there before a call, and behind one that did all.
struct States {
    before: String,
    wanted: String,
}

/// One call with a fault.
#[derive(Debug)]
struct Call {
    /// Its exit status; none where it was killed.
    code: Option<i32>,
    said: String,
    /// The kind of the fault that it reached, and the whole in words.
    fault: Option<(String, String)>,
    operations: usize,
}

impl Call {
    /// Whether it says what the kernel or the store answered.
    fn says(&self, errno: &str) -> bool {
        // An address that is in use is another process with the lock.
        let held = if errno.contains("error 98") { "would undo each other" } else { errno };
        let words = [errno, held, "10.4.7.", "descriptors", "capabilit", "memory", "overrun"];
        words.iter().any(|word| self.said.contains(word))
    }
}

impl Verb<'_> {
    fn call(&self, plan: &Plan) -> Result<Call> {
        let command = self.host.command(launcher()[0]).args(&launcher()[1..]).arg(lab::bin(self.program)?);
        let process = command.args(self.words).start(self.program)?;
        let followed = Followed::start(&lab::bin("injection")?, process.pid(), plan);
        let status = process.wait(SOON).with_context(|| process.log())?;
        let report = followed.finish();
        let (fault, operations) = (report.faults.into_iter().next(), report.operations);
        Ok(Call { code: status.code(), said: process.log(), fault, operations })
    }

    /// A call without a fault, which does all or finds that all is done.
    fn finishes(&self, wanted: &str) -> Result<()> {
        let output = self.host.command(lab::bin(self.program)?).args(self.words).output()?;
        let is_nothing = self.nothing.is_some_and(|words| output.stderr.contains(words));
        ensure!(output.status.success() || is_nothing, "the next call: {output:?}");
        self.is(wanted).context("after the next call")
    }

    fn is(&self, wanted: &str) -> Result<()> {
        let state = (self.state)()?;
        ensure!(state == wanted, "{}", differences(&state, wanted));
        Ok(())
    }

    /// Behind a call that did not end well.
    fn is_no_half(&self, states: &States) -> Result<()> {
        let state = (self.state)()?;
        let is_half = self.is_whole && state != states.before && state != states.wanted;
        ensure!(!is_half, "a half: {}", differences(&state, &states.wanted));
        Ok(())
    }

    /// One fault; answers its kind, or none where the call has no such operation.
    fn fails(&self, at: usize, effect: Effect, states: &States) -> Result<Option<Kind>> {
        (self.prepare)()?;
        let call = self.call(&Plan::from([(at, effect)]))?;
        let Some((kind, words)) = &call.fault else { return Ok(None) };
        let kind = Kind::named(kind).with_context(|| format!("{kind} is no kind"))?;
        let held = || -> Result<()> {
            let errno = match effect {
                Effect::Fails(number) => format!("(os error {})", kind.errnos()[number % kind.errnos().len()] as i32),
                Effect::Killed => String::new(),
            };
            match call.code {
                Some(0) => self.is(&states.wanted).context("it says that it is done")?,
                Some(_) => ensure!(call.says(&errno), "it does not say {errno:?}"),
                None => ensure!(effect == Effect::Killed, "it ended by a signal"),
            }
            self.is_no_half(states)?;
            self.finishes(&states.wanted)
        };
        held().with_context(|| format!("{words}: {call:?}"))?;
        Ok(Some(kind))
    }

    /// What a call has to try at an operation.
    fn effects(at: usize) -> Vec<Effect> {
        if !injection::all() && at % 2 == 1 { vec![Effect::Killed] } else { effects(at) }
    }

    /// Walks it; without `FAULTS=all` each `sample`-th operation only. Answers how many faults there were.
    pub(crate) fn walk(&self, sample: usize) -> Result<usize> {
        let begun = Instant::now();
        (self.prepare)()?;
        let before = (self.state)()?;
        let undisturbed = self.call(&Plan::from([(NEVER, Effect::Killed)]))?;
        let wanted = (self.state)()?;
        ensure!(undisturbed.code == Some(0) && before != wanted, "it changes nothing: {undisturbed:?}\n{before}");
        let states = States { before, wanted };
        let ((part, parts), step) = (part()?, if injection::all() { 1 } else { sample });
        let (mut faults, mut failed) = (0, Vec::new());
        for at in (part * step..undisturbed.operations).step_by(parts * step) {
            if injection::all() {
                eprintln!("operation {at} of {}, {} s", undisturbed.operations, begun.elapsed().as_secs());
            }
            let mut errnos = usize::MAX;
            for effect in Self::effects(at) {
                // Its kind has fewer of them than others.
                if injection::all() && matches!(effect, Effect::Fails(number) if number >= errnos) {
                    continue;
                }
                match self.fails(at, effect, &states) {
                    Ok(None) => continue,
                    Ok(Some(kind)) => errnos = kind.errnos().len(),
                    Err(error) => failed.push(format!("{error:?}")),
                }
                faults += 1;
                ensure!(failed.len() < MANY, "{}", failed.join("\n\n"));
            }
        }
        let (words, operations, seconds) = (self.words, undisturbed.operations, begun.elapsed().as_secs());
        println!("{} {words:?}: {operations} operations, {faults} faults, {seconds} s", self.program);
        ensure!(failed.is_empty(), "{}", failed.join("\n\n"));
        Ok(faults)
    }
}
