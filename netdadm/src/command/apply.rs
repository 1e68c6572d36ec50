//! `apply`: brings a host to what a rendered folder has for it.
//!
//! Invariant: nothing is touched before the plan was printed and somebody said yes to it; status 0 is a host as the folder says, 1 one that
//! was put back to what it was, 2 an order that was refused.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::process::ExitCode;

use super::args::Apply;
use crate::apply::{self, End, Order};

/// Carries out what was asked for.
///
/// # Errors
/// When it is refused.
pub(super) fn run(asked: &Apply, out: &mut impl Write) -> Result<ExitCode, String> {
    let order = Order {
        host: asked.host.clone(),
        out: asked.folder.clone(),
        root: asked.root.clone(),
        adopt: asked.adopt,
        overwrite: asked.overwrite,
    };
    let mut confirm = |question: &str| if asked.yes { Ok(true) } else { answer(question) };
    match apply::run(&order, out, &mut confirm)? {
        End::Applied => Ok(ExitCode::SUCCESS),
        End::Declined => Err("nothing was touched".to_owned()),
        End::Undone(text) => {
            daemon::terminal::note(&format!("netdadm: {text}"));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The most that is read of an answer, in bytes.
const LINE: u64 = 64;

/// Asks the person at the terminal.
pub(super) fn answer(question: &str) -> Result<bool, String> {
    if !io::stdin().is_terminal() {
        return Err("nothing was touched: nobody is there to say yes to it; say --yes".to_owned());
    }
    daemon::terminal::aside(&format!("{} [y/N] ", daemon::terminal::plain(question)));
    let mut line = String::new();
    io::stdin().lock().take(LINE).read_line(&mut line).map_err(|cause| format!("read the answer: {cause}"))?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
