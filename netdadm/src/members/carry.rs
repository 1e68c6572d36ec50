//! Carrying a plan out: one step, then everything is asked anew.
//!
//! Invariants: no request is repeated before it was asked whether it had been carried out; what was not agreed to is not done; a
//! step that stays out ends by its time, with what is there and how to go on.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use super::plan::{Order, Step, plan};
use super::session::Session;
use super::view::View;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(500);

/// What is left is the end of what was agreed to: etcd may have chosen another leader meanwhile.
fn is_agreed(left: &[Step], agreed: &[Step]) -> bool {
    let without = |steps: &[Step]| -> Vec<Step> {
        steps.iter().filter(|step| !matches!(step, Step::MoveLeader { .. })).cloned().collect()
    };
    without(agreed).ends_with(&without(left))
}

/// Carries out `agreed`, each step within `limit`; what is begun is written to `out`.
///
/// # Errors
/// When a step is not done within its time, or the cluster became another one meanwhile.
pub(crate) fn carry(
    session: &Session,
    order: &Order,
    agreed: &[Step],
    limit: Duration,
    out: &mut impl Write,
) -> Result<(), String> {
    let (mut announced, mut since, mut reason) = (None, Instant::now(), String::new());
    loop {
        let found = session.view().and_then(|view| Ok((plan(&view, order)?, view)));
        match found {
            Ok((steps, view)) => {
                if !is_agreed(&steps, agreed) {
                    return Err("the members of etcd are others than when this began: run it again, and see what it would do now".to_owned());
                }
                let Some(step) = steps.first() else { return Ok(()) };
                if announced.as_ref() != Some(step) {
                    writeln!(out, "now: {step}").map_err(|cause| format!("write to standard output: {cause}"))?;
                    (announced, since, reason) = (Some(step.clone()), Instant::now(), String::new());
                }
                match take(session, &view, step) {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(refusal) => reason = refusal,
                }
            }
            // Right after a change nobody may lead, or serve.
            Err(refusal) => reason = refusal,
        }
        if since.elapsed() >= limit {
            let step = announced.as_ref().map_or_else(|| "the first step".to_owned(), ToString::to_string);
            let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
            return Err(format!(
                "not done within {limit:?}: {step}{because}; what was done stays, and running it again goes on from there"
            ));
        }
        thread::sleep(PAUSE);
    }
}

/// Takes a step; false when it is somebody else's to take.
fn take(session: &Session, view: &View, step: &Step) -> Result<bool, String> {
    let leader = view.leader().and_then(|leader| session.client(leader)).ok_or("no member of etcd leads")?;
    let member = session.administration(&leader)?;
    let done = match step {
        Step::Add { peer, .. } => session.wait(member.add_learner(peer)).map(drop),
        Step::Start { .. } => return Ok(false),
        Step::Promote { host, .. } => {
            let learner = view.member(host).ok_or("it is gone")?;
            session.wait(member.promote(learner.entry.id))
        }
        Step::MoveLeader { id, .. } => session.wait(member.move_leader(*id)),
        Step::Remove { id, .. } => session.wait(member.remove(*id)),
    };
    done.map(|()| true).map_err(|error| error.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_what_was_agreed_to_is_done() {
        let remove = |id| Step::Remove { name: "a".to_owned(), id, voters: 2 };
        let start = Step::Start { host: "d".to_owned() };
        let lead = Step::MoveLeader { to: "b".to_owned(), id: 2 };
        let agreed = [start.clone(), lead.clone(), remove(1)];
        assert!(is_agreed(&agreed, &agreed) && is_agreed(&[], &agreed));
        assert!(is_agreed(&[remove(1)], &agreed), "it does not lead any more");
        assert!(is_agreed(&[lead, remove(1)], &[start.clone(), remove(1)]), "it leads by now");
        assert!(!is_agreed(&[remove(7)], &agreed), "it is another member");
        assert!(!is_agreed(&[start], &agreed) && !is_agreed(&agreed, &[]));
    }
}
