//! Whether a link that was just set up carries frames already.
//!
//! A veth's end that was set up before its peer, and a bridge before its first port, drop what they shall send until the
//! kernel's link watch has opened their queue (net/core/link_watch.c). Asking for the link makes it do so (`rtnl_getlink`
//! since Linux 6.8); older kernels get to it by themselves. Invariant: the wait ends.

use std::thread::sleep;
use std::time::{Duration, Instant};

use kernel::Rtnl;
use netstate::IfName;

use crate::protocol::error::{CniError, Code};

/// How long the kernel may take; the reference bridge plugin waits half as long.
const LIMIT: Duration = Duration::from_secs(5);

/// Time between two readings.
const PAUSE: Duration = Duration::from_millis(1);

/// Waits until the link `name`, which has `index`, is operational.
///
/// # Errors
/// Code 11 when it is not within five seconds, 100 when it was removed or the kernel cannot be asked.
pub(crate) fn await_operational(host: &mut Rtnl, name: &IfName, index: u32) -> Result<(), CniError> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match host.link_by_index(index)? {
            Some(link) if link.operational => return Ok(()),
            None => return Err(CniError::new(Code::Kernel, format!("link {name} was removed meanwhile"))),
            Some(_) if Instant::now() >= deadline => {
                let msg = format!("link {name} is up and carries no frames after 5 s");
                return Err(CniError::new(Code::TryAgainLater, msg).details("the kernel is busy; try again later"));
            }
            Some(_) => sleep(PAUSE),
        }
    }
}
