//! Addresses as files, laid out as host-local does: one file per address, a lock, the last address given out.
//!
//! Invariant: an address belongs to at most one container, because its file is made with `O_EXCL` under the lock. A link named after
//! the container gives DEL the address without a search.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;

use crate::{GATEWAY, RESERVATIONS};

fn path(name: impl std::fmt::Display) -> String {
    format!("{RESERVATIONS}/{name}")
}

fn lock() -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path("lock"))?;
    file.lock()?;
    Ok(file)
}

/// Takes the next free address.
pub(crate) fn reserve(container: &str) -> io::Result<Ipv4Addr> {
    let _held = lock()?;
    let last = fs::read_to_string(path("last_reserved_ip.0")).unwrap_or_default();
    let first = last.parse::<Ipv4Addr>().unwrap_or(GATEWAY).octets()[3];
    for step in 1..=u8::MAX {
        let [a, b, c, gateway] = GATEWAY.octets();
        let host = first.wrapping_add(step);
        let addr = Ipv4Addr::new(a, b, c, host);
        if [0, gateway, u8::MAX].contains(&host) {
            continue;
        }
        match OpenOptions::new().write(true).create_new(true).open(path(addr)) {
            Ok(mut file) => {
                write!(file, "{container}\r\neth0")?;
                fs::write(path("last_reserved_ip.0"), addr.to_string())?;
                symlink(addr.to_string(), path(container))?;
                return Ok(addr);
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("every address is taken"))
}

/// Gives the container's address back.
pub(crate) fn release(container: &str) -> io::Result<()> {
    let Ok(addr) = fs::read_link(path(container)) else { return Ok(()) };
    let _held = lock()?;
    fs::remove_file(path(addr.display()))?;
    fs::remove_file(path(container))
}
