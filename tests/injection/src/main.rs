//! `injection PID [NUMBER=ERRNO|NUMBER=kill...]`: follows a process that its launcher has stopped, and says what it has seen once it has ended.
//!
//! Invariant: it is a process of its own, because whoever has started a process would be given its stops as well.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() -> std::process::ExitCode {
    let mut words = std::env::args().skip(1);
    let process = words.next().and_then(|word| word.parse().ok());
    let plan: Option<injection::Plan> = words.map(|word| injection::planned(&word)).collect();
    match (process, plan) {
        (Some(process), Some(plan)) => {
            print!("{}", injection::follow(process, plan));
            std::process::ExitCode::SUCCESS
        }
        _ => {
            eprintln!(
                "usage: injection PID [NUMBER=ERRNO|NUMBER=kill...]; ERRNO is a number into those of the operation's kind"
            );
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {}
