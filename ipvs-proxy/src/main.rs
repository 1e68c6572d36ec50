//! `ipvs-proxy`: see the library of the same name.

use std::process::ExitCode;

fn main() -> ExitCode {
    ipvs_proxy::main()
}
