//! How a daemon begins and ends: signals, the service manager, exit codes.
//!
//! | signal | meaning |
//! |---|---|
//! | SIGTERM, SIGINT | end; the kernel stays as it is |
//! | SIGHUP | compare everything with the kernel now (`systemctl reload`) |
//! | SIGUSR1, SIGUSR2 | more detail in the log; back to what the flags say |
//!
//! Invariants: the process ends by [`Exit`] only; a panic of any thread ends it, so that no daemon goes on half dead;
//! the service manager's watchdog is fed only while the daemon makes progress.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// Exit codes. 2 is the command line's (clap).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Ended as asked.
    Success,
    /// Could not start, or what was asked for failed.
    Failure,
    /// It is not clear what was asked: clap's status for a command line that it does not understand.
    Usage,
    /// A fault of the program itself: EX_SOFTWARE of sysexits.h.
    Panic,
}

impl Exit {
    /// The number.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::Panic => 70,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Makes a panic of any thread or task end the process with [`Exit::Panic`], after its message, which goes
/// to the log where there is one: a log in JSON holds nothing else.
pub fn exit_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if tracing::dispatcher::has_been_set() {
            tracing::error!("{panic}; the program ends, the kernel stays as it is");
        } else {
            report(panic);
        }
        std::process::exit(i32::from(Exit::Panic.code()));
    }));
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// End; the signal's name.
    End(&'static str),
    /// Compare everything with the kernel now.
    Reload,
    /// More detail in the log.
    Raise,
    /// The log's detail as the flags say.
    Restore,
}

/// The signals that the daemon follows.
#[derive(Debug)]
pub struct Signals {
    terminate: Stream,
    interrupt: Stream,
    hangup: Stream,
    user1: Stream,
    user2: Stream,
}

impl Signals {
    /// Follows the signals from now on. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    /// The next signal. Cancel-safe.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::End("SIGTERM"),
            _ = self.interrupt.recv() => Signal::End("SIGINT"),
            _ = self.hangup.recv() => Signal::Reload,
            _ = self.user1.recv() => Signal::Raise,
            _ = self.user2.recv() => Signal::Restore,
        }
    }
}

/// Notifies the service manager; without one nothing happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// Ready, or ready again after [`Notice::Reloading`].
    Ready,
    /// Everything is compared anew.
    Reloading,
    /// Ending.
    Stopping,
    /// Still making progress.
    Watchdog,
    /// Still starting: the next [`EXTENSION`] may pass before this is said again.
    Starting,
}

/// What a start asks for at a time.
pub const EXTENSION: Duration = Duration::from_secs(60);

/// Sends `notice`; a service manager that cannot be reached is logged and hinders nothing.
pub fn notify(notice: Notice) {
    let sent = match notice {
        Notice::Ready => sd_notify::notify(&[NotifyState::Ready]),
        Notice::Reloading => {
            NotifyState::monotonic_usec_now().and_then(|time| sd_notify::notify(&[NotifyState::Reloading, time]))
        }
        Notice::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
        Notice::Watchdog => sd_notify::notify(&[NotifyState::Watchdog]),
        Notice::Starting => {
            let microseconds = u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX);
            sd_notify::notify(&[NotifyState::ExtendTimeoutUsec(microseconds)])
        }
    };
    if let Err(error) = sent {
        tracing::warn!(%error, ?notice, "the service manager cannot be notified");
    }
}

/// How often the watchdog wants to be fed: half of what the service manager waits, `None` without one.
#[must_use]
pub fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_documentation() {
        assert_eq!([Exit::Success, Exit::Failure, Exit::Panic].map(Exit::code), [0, 1, 70]);
    }
}
