//! `netd-cni`: executed by a container runtime, once per verb.

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;

use cni_plugin::call;

fn main() -> ExitCode {
    let program = env::args().next().unwrap_or_default();
    let answer = call::serve(&program, |name| env::var(name).ok(), &mut io::stdin().lock());
    match io::stdout().lock().write_all(answer.stdout.as_bytes()) {
        Ok(()) => ExitCode::from(answer.code),
        // The runtime closed its end: nobody is left to be told more than this.
        Err(_) => ExitCode::FAILURE,
    }
}
