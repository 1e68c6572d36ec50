//! Executes steps and, when one fails, takes back what was done.
//!
//! Invariant: the journal holds an undo for everything that this call made and that exists; after a failure it
//! is unwound in reverse order to its end, whatever fails on the way, and the caller gets the first cause with every
//! failure of the unwinding behind it.

pub(crate) mod carrier;
pub(crate) mod duplicates;
pub(crate) mod executor;
pub(crate) mod hostports;
pub(crate) mod needs;
pub(crate) mod spoof;

use crate::plan::{Step, Undo};
use kernel::{Chain, KernelError};
use netstate::IfName;

use crate::protocol::error::{CniError, Code};

impl From<KernelError> for CniError {
    fn from(error: KernelError) -> Self {
        Self::new(Code::Kernel, Chain(&error).to_string())
    }
}

/// Whether a step made what it shall make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    /// It did.
    Here,
    /// It was there before: somebody else's, who relies on it.
    Before,
}

/// What executes steps: the kernel, or a test.
pub(crate) trait Executor {
    /// Executes `step`.
    ///
    /// # Errors
    /// What the kernel said.
    fn apply(&mut self, step: &Step) -> Result<Made, CniError>;

    /// Executes `undo`. What is gone already is a success.
    ///
    /// # Errors
    /// What the kernel said.
    fn undo(&mut self, undo: &Undo) -> Result<(), CniError>;
}

/// Executes `steps` in order; on a failure undoes those that were done, and the failed one, which may have been done
/// in part.
///
/// # Errors
/// The first cause, with what could not be undone in its details.
pub(crate) fn apply(steps: &[Step], executor: &mut dyn Executor) -> Result<(), CniError> {
    let mut journal: Vec<Undo> = Vec::new();
    for step in steps {
        let outcome = executor.apply(step);
        let is_ours = match &outcome {
            Ok(made) => *made == Made::Here,
            // A name that was taken belongs to somebody else: what the step did not make, it must not remove.
            Err(error) => error.code != Code::AlreadyAttached && !step.is_shared(),
        };
        journal.extend(step.undo().filter(|_| is_ours));
        if let Err(error) = outcome {
            return Err(unwind(&journal, executor, error.details(format!("while trying to {step}"))));
        }
    }
    Ok(())
}

/// Undoes everything in `journal`, last first, and adds what failed to `error`. A link that goes takes its addresses along,
/// all at once: whoever relies on it meanwhile fails, and never goes on without a gateway.
fn unwind(journal: &[Undo], executor: &mut dyn Executor, mut error: CniError) -> CniError {
    let goes =
        |link: &IfName| journal.iter().any(|undo| matches!(undo, Undo::RemoveShared { link: l, .. } if l == link));
    let is_needed = |undo: &&Undo| !matches!(undo, Undo::RemoveGateway { link, .. } if goes(link));
    for undo in journal.iter().rev().filter(is_needed) {
        if let Err(failure) = executor.undo(undo) {
            error = error.details(format!("and could not undo: {failure}"));
        }
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::End;
    use netstate::MacAddr;

    #[derive(Default)]
    struct Script {
        log: Vec<String>,
        fail_at: Option<(usize, Code)>,
        undo_fails: bool,
        finds_shared: bool,
    }

    impl Executor for Script {
        fn apply(&mut self, step: &Step) -> Result<Made, CniError> {
            let failure = self.fail_at.filter(|(at, _)| *at == self.log.len());
            self.log.push(step.to_string());
            let made = if self.finds_shared && step.is_shared() { Made::Before } else { Made::Here };
            failure.map_or(Ok(made), |(_, code)| Err(CniError::new(code, "first cause")))
        }

        fn undo(&mut self, undo: &Undo) -> Result<(), CniError> {
            self.log.push(format!("undo {undo:?}"));
            if self.undo_fails { Err(CniError::new(Code::Kernel, "still busy")) } else { Ok(()) }
        }
    }

    fn name(text: &str) -> IfName {
        IfName::new(text).unwrap()
    }

    fn veth(host: &str) -> Step {
        let end = |n: &str| End { name: name(n), mac: MacAddr([2; 6]) };
        Step::CreateVeth { host: end(host), pod: end("eth0"), bridge: name("cbr0"), mtu: 1500 }
    }

    fn steps() -> Vec<Step> {
        vec![Step::SetPromiscuous(name("cbr0")), veth("veth1"), veth("veth2"), Step::SetPromiscuous(name("cbr0"))]
    }

    #[test]
    fn all_steps_run_in_order() {
        let mut executor = Script::default();
        apply(&steps(), &mut executor).unwrap();
        assert_eq!(executor.log.len(), 4);
    }

    #[test]
    fn failure_at_any_step_unwinds_in_reverse_what_was_done_and_the_failed_step_itself() {
        let undone: Vec<usize> = (0..4)
            .map(|at| {
                let mut executor = Script { fail_at: Some((at, Code::Kernel)), ..Script::default() };
                let error = apply(&steps(), &mut executor).unwrap_err();
                assert!(error.msg == "first cause" && error.details.contains("while trying to"), "{error}");
                let undos: Vec<&String> = executor.log.iter().filter(|line| line.starts_with("undo")).collect();
                if at >= 2 {
                    assert!(undos[0].contains("veth2") && undos[1].contains("veth1"), "{undos:?}");
                }
                undos.len()
            })
            .collect();
        assert_eq!(undone, [0, 1, 2, 2]);
    }

    #[test]
    fn what_exists_already_and_is_not_ours_is_left_alone() {
        let mut executor = Script { fail_at: Some((1, Code::AlreadyAttached)), ..Script::default() };
        apply(&steps(), &mut executor).unwrap_err();
        assert!(!executor.log.iter().any(|line| line.starts_with("undo")), "{:?}", executor.log);
    }

    fn shared() -> Vec<Step> {
        let gateway = ("172.7.21.1".parse().unwrap(), 24);
        let other = ("fd00::1".parse().unwrap(), 64);
        let bridge = || name("cbr0");
        vec![
            Step::CreateBridge { name: bridge(), mac: MacAddr([2; 6]), mtu: None, filters_vlans: false },
            Step::RemoveBridgeAddress(bridge(), other),
            Step::AddGateway { bridge: bridge(), link: bridge(), gateway },
            veth("veth1"),
        ]
    }

    #[test]
    fn what_pods_share_is_undone_when_this_call_made_it_and_only_then() {
        let undone = |steps: &[Step], finds_shared| {
            let fail_at = Some((steps.len() - 1, Code::Kernel));
            let mut executor = Script { fail_at, finds_shared, ..Script::default() };
            apply(steps, &mut executor).unwrap_err();
            let undos = executor.log.into_iter().filter_map(|line| line.strip_prefix("undo ").map(str::to_owned));
            undos.map(|line| line.split([' ', '(']).next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(undone(&shared(), false), ["DeleteLink", "RestoreAddress", "RemoveShared"], "with its addresses");
        assert_eq!(undone(&shared()[1..], false), ["DeleteLink", "RemoveGateway", "RestoreAddress"]);
        assert_eq!(undone(&shared(), true), ["DeleteLink"], "somebody else's");
        assert_eq!(undone(&shared()[..3], false), ["RestoreAddress", "RemoveShared"], "what failed was not made");
    }

    #[test]
    fn failed_undo_goes_behind_the_first_cause_and_does_not_stop_the_others() {
        let mut executor = Script { fail_at: Some((3, Code::Kernel)), undo_fails: true, ..Script::default() };
        let error = apply(&steps(), &mut executor).unwrap_err();
        assert_eq!(error.details.matches("could not undo").count(), 2, "{error}");
        assert_eq!(error.msg, "first cause");
    }
}
