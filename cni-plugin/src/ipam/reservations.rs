//! Reservations of one network, under its lock.
//!
//! An address is claimed by giving the draft of a reservation its name with link(2): it comes into being with its content
//! and fails when it exists. Released are only reservations that still name the owner.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::range::RangeSet;
use super::store::{Reservation, StoreError, failed, open_options};
use crate::attachment::Attachment;

/// The directory of one network, under its lock until dropped.
#[derive(Debug)]
pub struct Locked {
    dir: PathBuf,
    _lock: File,
}

impl Locked {
    pub(super) fn new(dir: PathBuf, lock: File) -> Self {
        Self { dir, _lock: lock }
    }

    /// Reserves one address per set for `owner`, in the order of `sets`. A set that contains a requested address
    /// gives exactly that one. On failure nothing stays reserved that was not before.
    ///
    /// # Errors
    /// [`StoreError::Exhausted`], [`StoreError::Requested`], [`StoreError::Io`].
    pub fn reserve(
        &self,
        owner: &Attachment,
        sets: &[RangeSet],
        requested: &[IpAddr],
    ) -> Result<Vec<Reservation>, StoreError> {
        let mut reserved = Vec::new();
        let outcome = self.reserve_each(owner, sets, requested, &mut reserved);
        self.remove_draft();
        match outcome {
            Ok(()) => Ok(reserved),
            Err(error) => {
                for reservation in &reserved {
                    // The first cause is reported; what could not be removed is found again by its owner.
                    let _ = self.discard(reservation.addr);
                }
                Err(error)
            }
        }
    }

    fn reserve_each(
        &self,
        owner: &Attachment,
        sets: &[RangeSet],
        requested: &[IpAddr],
        reserved: &mut Vec<Reservation>,
    ) -> Result<(), StoreError> {
        let wanted_of = |set: &RangeSet| requested.iter().find(|addr| set.range_of(**addr).is_some());
        let unused: Vec<IpAddr> =
            requested.iter().filter(|addr| !sets.iter().any(|set| wanted_of(set) == Some(*addr))).copied().collect();
        if !unused.is_empty() {
            return Err(StoreError::Unused(unused));
        }
        self.write_draft(owner)?;
        for (index, set) in sets.iter().enumerate() {
            let wanted = wanted_of(set);
            let (addr, len) = match wanted {
                Some(addr) => self.take_requested(*addr, set)?,
                None => self.take_next(index, set)?,
            };
            let gateway = set.range_of(addr).map_or(addr, |range| range.gateway());
            reserved.push(Reservation { addr, len, gateway });
            self.remember_last(index, addr)?;
        }
        Ok(())
    }

    fn take_requested(&self, addr: IpAddr, set: &RangeSet) -> Result<(IpAddr, u8), StoreError> {
        let refused = |why: &str| StoreError::Requested { addr, why: format!("{why} {set}") };
        if set.is_gateway(addr) {
            return Err(refused("is a gateway of range set"));
        }
        let range = set.range_of(addr).ok_or_else(|| refused("is outside range set"))?;
        if self.claim(addr)? { Ok((addr, range.subnet().len())) } else { Err(refused("is not available in range set")) }
    }

    fn take_next(&self, index: usize, set: &RangeSet) -> Result<(IpAddr, u8), StoreError> {
        for (addr, len) in set.candidates(self.last_reserved(index)) {
            if self.claim(addr)? {
                return Ok((addr, len));
            }
        }
        Err(StoreError::Exhausted { index, set: set.to_string() })
    }

    /// Gives the draft the address's name; `false` when the address is taken.
    fn claim(&self, addr: IpAddr) -> Result<bool, StoreError> {
        let path = self.dir.join(addr.to_string());
        match fs::hard_link(self.draft(), &path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => self.replace_empty(&path),
            Err(e) => Err(failed("reserve", &path, e)),
        }
    }

    /// A reservation without content names no owner: host-local or the file system lost it in a crash. It is
    /// taken over.
    fn replace_empty(&self, path: &Path) -> Result<bool, StoreError> {
        let meta = fs::symlink_metadata(path).map_err(|e| failed("examine", path, e))?;
        if !meta.is_file() || meta.len() > 0 {
            return Ok(false);
        }
        fs::remove_file(path).map_err(|e| failed("remove empty", path, e))?;
        fs::hard_link(self.draft(), path).map(|()| true).map_err(|e| failed("reserve", path, e))
    }

    fn draft(&self) -> PathBuf {
        self.dir.join(".reserving")
    }

    fn write_draft(&self, owner: &Attachment) -> Result<(), StoreError> {
        // A draft left by a killed process may be another name of a valid reservation: unlink, never truncate.
        self.remove_draft();
        let path = self.draft();
        let mut file = open_options().create_new(true).open(&path).map_err(|e| failed("create", &path, e))?;
        file.write_all(content(owner).as_bytes()).map_err(|e| failed("write", &path, e))
    }

    fn remove_draft(&self) {
        // Absent is what is wanted; another failure shows when the draft is created.
        let _ = fs::remove_file(self.draft());
    }

    fn last_draft(&self) -> PathBuf {
        self.dir.join(".last_reserved")
    }

    fn last_path(&self, index: usize) -> PathBuf {
        self.dir.join(format!("last_reserved_ip.{index}"))
    }

    fn last_reserved(&self, index: usize) -> Option<IpAddr> {
        read_small(&self.last_path(index))?.trim().parse().ok()
    }

    fn remember_last(&self, index: usize, addr: IpAddr) -> Result<(), StoreError> {
        let (path, draft) = (self.last_path(index), self.last_draft());
        let write = || -> io::Result<()> {
            let mut file = open_options().create(true).truncate(true).open(&draft)?;
            file.write_all(addr.to_string().as_bytes())?;
            fs::rename(&draft, &path)
        };
        write().map_err(|e| failed("write", &path, e))
    }

    /// Releases `addr`, whoever owns it.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the file exists and cannot be removed.
    pub fn discard(&self, addr: IpAddr) -> Result<(), StoreError> {
        let path = self.dir.join(addr.to_string());
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("release", &path, e)),
            _ => Ok(()),
        }
    }

    /// Every reservation with its owner's text, `<container>\r\n<interface>` or, from before host-local 0.7, the
    /// container alone. Files whose names are no addresses are passed over.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the directory cannot be read.
    pub fn list(&self) -> Result<Vec<(IpAddr, String)>, StoreError> {
        let entries = fs::read_dir(&self.dir).map_err(|e| failed("list", &self.dir, e))?;
        let mut list = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| failed("list", &self.dir, e))?;
            let Some(addr) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if let Some(text) = read_small(&entry.path()) {
                list.push((addr, text.trim().to_owned()));
            }
        }
        list.sort();
        Ok(list)
    }

    /// The addresses of `owner`, in order.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the directory cannot be read.
    pub fn find(&self, owner: &Attachment) -> Result<Vec<IpAddr>, StoreError> {
        let list = self.list()?;
        let of = |wanted: &str| -> Vec<IpAddr> {
            list.iter().filter(|(_, text)| text == wanted).map(|(addr, _)| *addr).collect()
        };
        let exact = of(&content(owner));
        Ok(if exact.is_empty() { of(owner.container.as_str()) } else { exact })
    }

    /// True when `addr` belongs to `owner`.
    #[must_use]
    pub fn is_owned(&self, owner: &Attachment, addr: IpAddr) -> bool {
        let text = read_small(&self.dir.join(addr.to_string())).unwrap_or_default();
        text.trim() == content(owner) || text.trim() == owner.container.as_str()
    }

    /// Releases those of `addresses` that belong to `owner`; others may have a new owner by now and stay.
    ///
    /// # Errors
    /// [`StoreError::Io`] when a file that exists cannot be removed.
    pub fn free(&self, owner: &Attachment, addresses: &[IpAddr]) -> Result<(), StoreError> {
        // What a killed process left behind.
        self.remove_draft();
        let _ = fs::remove_file(self.last_draft());
        addresses.iter().filter(|addr| self.is_owned(owner, **addr)).try_for_each(|addr| self.discard(*addr))
    }
}

fn content(owner: &Attachment) -> String {
    format!("{}\r\n{}", owner.container, owner.ifname)
}

/// The first KiB of a regular file as text; `None` when it is not readable as such.
fn read_small(path: &Path) -> Option<String> {
    let file =
        OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK).open(path).ok()?;
    let mut text = String::new();
    file.take(1024).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::super::{Range, Store};
    use super::*;
    use crate::attachment::ContainerId;
    use netstate::IfName;
    use std::time::Duration;

    fn owner(container: &str) -> Attachment {
        Attachment { container: ContainerId::new(container).unwrap(), ifname: IfName::new("eth0").unwrap() }
    }

    fn set(subnet: &str) -> RangeSet {
        RangeSet::new(vec![Range::new(subnet.parse().unwrap(), None, None, None).unwrap()]).unwrap()
    }

    fn locked(dir: &tempfile::TempDir) -> Locked {
        Store::new(dir.path(), "cbr0").lock(Duration::from_millis(50)).unwrap()
    }

    fn addresses(reservations: &[Reservation]) -> Vec<String> {
        reservations.iter().map(|r| format!("{}/{} via {}", r.addr, r.len, r.gateway)).collect()
    }

    #[test]
    fn one_address_per_set_in_host_locals_layout() {
        let dir = tempfile::tempdir().unwrap();
        let reserved = locked(&dir).reserve(&owner("c1"), &[set("10.1.2.0/24"), set("fd00::/64")], &[]).unwrap();
        assert_eq!(addresses(&reserved), ["10.1.2.2/24 via 10.1.2.1", "fd00::2/64 via fd00::1"]);
        let read = |name: &str| fs::read_to_string(dir.path().join("cbr0").join(name)).unwrap();
        assert_eq!(read("10.1.2.2"), "c1\r\neth0");
        assert_eq!(read("fd00::2"), "c1\r\neth0");
        assert_eq!(
            (read("last_reserved_ip.0"), read("last_reserved_ip.1")),
            ("10.1.2.2".to_owned(), "fd00::2".to_owned())
        );
        let mut names: Vec<_> = fs::read_dir(dir.path().join("cbr0"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["10.1.2.2", "fd00::2", "last_reserved_ip.0", "last_reserved_ip.1", "lock"]);
    }

    #[test]
    fn a_set_without_free_address_takes_the_others_back() {
        let dir = tempfile::tempdir().unwrap();
        let (wide, tiny) = (set("10.1.2.0/24"), set("10.9.9.0/30"));
        let locked = locked(&dir);
        locked.reserve(&owner("c1"), std::slice::from_ref(&tiny), &[]).unwrap();
        let error = locked.reserve(&owner("c2"), &[wide, tiny], &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "failed to allocate for range 1: no IP addresses available in range set: 10.9.9.1-10.9.9.2"
        );
        assert_eq!(locked.list().unwrap().len(), 1);
    }

    #[test]
    fn requested_addresses_are_given_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (sets, locked) = ([set("10.1.2.0/24"), set("10.1.3.0/24")], locked(&dir));
        let ask = |container: &str, wanted: &str| {
            locked.reserve(&owner(container), &sets, &[wanted.parse().unwrap()]).map_err(|e| e.to_string())
        };
        assert_eq!(ask("c1", "10.1.3.9").unwrap()[1].addr.to_string(), "10.1.3.9");
        assert!(ask("c2", "10.1.3.9").unwrap_err().contains("is not available"));
        assert!(ask("c2", "10.1.3.1").unwrap_err().contains("is a gateway"));
        assert_eq!(ask("c2", "10.7.0.1").unwrap_err(), "failed to allocate all requested IPs: 10.7.0.1");
        assert_eq!(locked.list().unwrap().len(), 2, "what was refused left nothing");
    }

    #[test]
    fn only_the_owners_reservations_are_found_and_freed() {
        let dir = tempfile::tempdir().unwrap();
        let locked = locked(&dir);
        for (name, text) in
            [("10.1.2.2", "c1\r\neth0"), ("10.1.2.3", "c1\r\nnet1"), ("10.1.2.4", " c2\n"), ("notes", "c1\r\neth0")]
        {
            fs::write(dir.path().join("cbr0").join(name), text).unwrap();
        }
        let text = |list: Vec<IpAddr>| list.iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(text(locked.find(&owner("c1")).unwrap()), ["10.1.2.2"]);
        assert_eq!(text(locked.find(&owner("c2")).unwrap()), ["10.1.2.4"], "from before host-local 0.7");
        let all: Vec<IpAddr> = locked.list().unwrap().into_iter().map(|(addr, _)| addr).collect();
        locked.free(&owner("c1"), &all).unwrap();
        assert_eq!(locked.list().unwrap().len(), 2);
    }

    #[test]
    fn symbolic_links_are_neither_read_nor_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let locked = locked(&dir);
        let outside = dir.path().join("outside");
        fs::write(&outside, "c1\r\neth0").unwrap();
        for name in ["10.1.2.2", ".reserving", ".last_reserved"] {
            std::os::unix::fs::symlink(&outside, dir.path().join("cbr0").join(name)).unwrap();
        }
        assert!(locked.find(&owner("c1")).unwrap().is_empty());
        let outcome = locked.reserve(&owner("c3"), &[set("10.1.2.0/24")], &[]);
        assert!(outcome.is_err(), "the draft of the last address is not written through a link: {outcome:?}");
        assert_eq!(fs::read_to_string(&outside).unwrap(), "c1\r\neth0");
        fs::remove_dir_all(dir.path().join("cbr0")).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("cbr0")).unwrap();
        assert!(Store::new(dir.path(), "cbr0").lock(Duration::from_millis(50)).is_err());
    }
}
