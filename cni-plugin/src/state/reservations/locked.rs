//! Reservations of one network, under its lock.
//!
//! An address is claimed by making its file with `O_EXCL` and writing the owner into it, all under the lock. Whoever finds a
//! file without content under the lock therefore knows that its maker is dead, and takes it. Released are only
//! reservations that still name the owner.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::pool::{Pools, Sharing};
use super::store::{StoreError, failed, open_options};
use crate::protocol::attachment::Attachment;
use crate::protocol::range::{RangeSet, Reservation};
use crate::state::safe_file::{self, Links};

/// The directory of one network, under its lock until dropped.
#[derive(Debug)]
pub struct Locked {
    dir: PathBuf,
    pools: Pools,
    _lock: File,
}

impl Locked {
    pub(super) fn new(dir: PathBuf, pools: Pools, lock: File) -> Self {
        Self { dir, pools, _lock: lock }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reserves one address per set for `owner`, in the order of `sets`. A set that contains a requested address
    /// gives exactly that one. `sharing` says what reservations of other networks mean. On failure nothing stays reserved
    /// that was not before.
    ///
    /// # Errors
    /// [`StoreError::Exhausted`], [`StoreError::Requested`], [`StoreError::Io`].
    pub fn reserve(
        &self,
        owner: &Attachment,
        sets: &[RangeSet],
        requested: &[IpAddr],
        sharing: Sharing,
    ) -> Result<Vec<Reservation>, StoreError> {
        let mut reserved = Vec::new();
        match self.reserve_each(owner, (sets, sharing), requested, &mut reserved) {
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
        (sets, sharing): (&[RangeSet], Sharing),
        requested: &[IpAddr],
        reserved: &mut Vec<Reservation>,
    ) -> Result<(), StoreError> {
        let wanted_of = |set: &RangeSet| requested.iter().find(|addr| set.range_of(**addr).is_some());
        let unused: Vec<IpAddr> =
            requested.iter().filter(|addr| !sets.iter().any(|set| wanted_of(set) == Some(*addr))).copied().collect();
        if !unused.is_empty() {
            return Err(StoreError::Unused(unused));
        }
        let text = content(owner);
        for (index, set) in sets.iter().enumerate() {
            let wanted = wanted_of(set);
            let mut last = LastReserved::open(self.dir.join(format!("last_reserved_ip.{index}")))?;
            let (addr, len) = match wanted {
                Some(addr) => self.take_requested(*addr, set, &text, sharing)?,
                None => self.take_next(set, last.addr, &text, sharing)?.ok_or_else(|| exhausted(index, set))?,
            };
            let gateway = set.range_of(addr).map_or(addr, |range| range.gateway());
            reserved.push(Reservation { addr, len, gateway });
            last.remember(addr)?;
        }
        Ok(())
    }

    fn take_requested(
        &self,
        addr: IpAddr,
        set: &RangeSet,
        text: &str,
        sharing: Sharing,
    ) -> Result<(IpAddr, u8), StoreError> {
        let refused = |why: String| StoreError::Requested { addr, why };
        if set.is_gateway(addr) {
            return Err(refused(format!("is a gateway of range set {set}")));
        }
        let range = set.range_of(addr).ok_or_else(|| refused(format!("is outside range set {set}")))?;
        if !self.claim(addr, text)? {
            return Err(refused(format!("is not available in range set {set}")));
        }
        match self.pools.holder(&self.dir, addr).filter(|_| sharing == Sharing::Exclusive) {
            None => Ok((addr, range.subnet().len())),
            Some(network) => {
                self.discard(addr)?;
                Err(refused(format!("is not available in range set {set}: network {network} has it")))
            }
        }
    }

    /// The next free address of `set`; `None` when there is none.
    fn take_next(
        &self,
        set: &RangeSet,
        last: Option<IpAddr>,
        text: &str,
        sharing: Sharing,
    ) -> Result<Option<(IpAddr, u8)>, StoreError> {
        let mut passed_over = Vec::new();
        for (addr, len) in set.candidates(last) {
            if !self.claim(addr, text)? {
                continue;
            }
            if self.pools.holder(&self.dir, addr).is_none() {
                return Ok(Some((addr, len)));
            }
            self.discard(addr)?;
            passed_over.push((addr, len));
        }
        if sharing == Sharing::Avoided {
            for (addr, len) in passed_over {
                if self.claim(addr, text)? {
                    return Ok(Some((addr, len)));
                }
            }
        }
        Ok(None)
    }

    /// Makes the reservation of `addr`; `false` when the address is taken.
    fn claim(&self, addr: IpAddr, text: &str) -> Result<bool, StoreError> {
        let path = self.dir.join(addr.to_string());
        match create(&path, text) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => self.replace_empty(&path, text),
            other => other.map(|()| true).map_err(|e| failed("reserve", &path, e)),
        }
    }

    /// A reservation without content names no owner: host-local or the file system lost it in a crash, or its maker was
    /// killed. It is taken over.
    fn replace_empty(&self, path: &Path, text: &str) -> Result<bool, StoreError> {
        if !is_empty_file(path) {
            return Ok(false);
        }
        fs::remove_file(path).map_err(|e| failed("remove empty", path, e))?;
        create(path, text).map(|()| true).map_err(|e| failed("reserve", path, e))
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

    /// Releases those of `addresses` that belong to `owner` or, without content, to nobody; others may have a new owner by
    /// now and stay.
    ///
    /// # Errors
    /// [`StoreError::Io`] when a file that exists cannot be removed.
    pub fn free(&self, owner: &Attachment, addresses: &[IpAddr]) -> Result<(), StoreError> {
        let is_free = |addr: IpAddr| self.is_owned(owner, addr) || is_empty_file(&self.dir.join(addr.to_string()));
        addresses.iter().filter(|addr| is_free(**addr)).try_for_each(|addr| self.discard(*addr))
    }

    /// Removes reservations that say nothing: their makers were killed before they could write who they are.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the directory cannot be read or a file cannot be removed.
    pub fn remove_empty(&self) -> Result<(), StoreError> {
        self.list()?.into_iter().filter(|(_, text)| is_blank(text)).try_for_each(|(addr, _)| self.discard(addr))
    }
}

fn exhausted(index: usize, set: &RangeSet) -> StoreError {
    StoreError::Exhausted { index, set: set.to_string() }
}

/// The file that remembers the address last given out of a set. It only says where the search begins: junk means from the
/// range's start. Written in place: a new file by rename(2), as well as truncation, would make ext4 write the data out at once
/// (auto_da_alloc), a tenth of a millisecond.
struct LastReserved {
    file: File,
    path: PathBuf,
    length: usize,
    addr: Option<IpAddr>,
}

impl LastReserved {
    fn open(path: PathBuf) -> Result<Self, StoreError> {
        let open = || open_options().create(true).open(&path);
        let opened = match open() {
            // Somebody planted a link; what it points to is not ours.
            Err(e) if e.raw_os_error() == Some(nix::libc::ELOOP) => fs::remove_file(&path).and_then(|()| open()),
            other => other,
        };
        let file = opened.map_err(|e| failed("open", &path, e))?;
        let mut text = [0; 64];
        let length = file.read_at(&mut text, 0).map_err(|e| failed("read", &path, e))?;
        let text = text.get(..length).and_then(|text| std::str::from_utf8(text).ok());
        let addr = text.and_then(|text| text.trim().parse().ok());
        Ok(Self { file, path, length, addr })
    }

    fn remember(&mut self, addr: IpAddr) -> Result<(), StoreError> {
        let text = addr.to_string();
        let write = || -> io::Result<()> {
            self.file.write_all_at(text.as_bytes(), 0)?;
            if self.length > text.len() { self.file.set_len(u64::try_from(text.len()).unwrap_or(0)) } else { Ok(()) }
        };
        write().map_err(|e| failed("write", &self.path, e))
    }
}

/// Makes the file `path` with `text`; one that could not be filled is removed.
fn create(path: &Path, text: &str) -> io::Result<()> {
    let mut file = open_options().create_new(true).open(path)?;
    file.write_all(text.as_bytes()).inspect_err(|_| {
        let _ = fs::remove_file(path);
    })
}

fn is_empty_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == 0)
}

fn content(owner: &Attachment) -> String {
    format!("{}\r\n{}", owner.container, owner.ifname)
}

/// The texts of the reservations in the directory `dir`, read one by one without its lock.
pub(crate) fn peek(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let is_address =
        |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|name| name.parse::<IpAddr>().is_ok());
    entries.filter(is_address).filter_map(|entry| read_small(&entry.path()))
}

/// True for the text of a reservation that a power cut emptied, or of which no character is one; one that says anything may be somebody's
/// way to block an address.
pub(crate) fn is_blank(text: &str) -> bool {
    text.chars().all(|c| matches!(c, '\0' | char::REPLACEMENT_CHARACTER) || c.is_whitespace())
}

/// Bytes of the longest reservation: a container and an interface, each no longer than the name of a file.
const LONGEST: usize = 1024;

/// Bytes that are read: one more shows that it is longer.
const READ: u64 = 1025;

/// What a reservation says; `None` when it cannot be read. Bytes that are no UTF-8 are replaced, and a longer text is cut and marked: it is
/// somebody's and names no container, whatever its beginning.
fn read_small(path: &Path) -> Option<String> {
    let bytes = safe_file::read_bytes(path, READ, Links::Refused).ok()?;
    let Some(beginning) = bytes.get(..LONGEST).filter(|_| bytes.len() > LONGEST) else {
        return Some(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()));
    };
    let beginning = String::from_utf8_lossy(beginning);
    Some(if is_blank(&beginning) { String::new() } else { format!("{beginning}…") })
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;
    use crate::protocol::attachment::ContainerId;
    use crate::protocol::range::Range;
    use netstate::IfName;
    use std::time::Duration;

    fn owner(container: &str) -> Attachment {
        Attachment::new(ContainerId::new(container).unwrap(), IfName::new("eth0").unwrap())
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
        let reserved = locked(&dir)
            .reserve(&owner("c1"), &[set("10.1.2.0/24"), set("fd00::/64")], &[], Sharing::Exclusive)
            .unwrap();
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
        locked.reserve(&owner("c1"), std::slice::from_ref(&tiny), &[], Sharing::Exclusive).unwrap();
        let error = locked.reserve(&owner("c2"), &[wide, tiny], &[], Sharing::Exclusive).unwrap_err();
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
            locked
                .reserve(&owner(container), &sets, &[wanted.parse().unwrap()], Sharing::Exclusive)
                .map_err(|e| e.to_string())
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
    fn a_reservation_without_content_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let locked = locked(&dir);
        for name in ["10.1.2.2", "10.1.2.3", "10.1.2.4"] {
            fs::write(dir.path().join("cbr0").join(name), "").unwrap();
        }
        let reserved = locked.reserve(&owner("c1"), &[set("10.1.2.0/24")], &[], Sharing::Exclusive).unwrap();
        assert_eq!(addresses(&reserved), ["10.1.2.2/24 via 10.1.2.1"]);
        locked.free(&owner("c2"), &["10.1.2.2".parse().unwrap(), "10.1.2.3".parse().unwrap()]).unwrap();
        locked.remove_empty().unwrap();
        assert_eq!(locked.list().unwrap(), [("10.1.2.2".parse().unwrap(), "c1\r\neth0".to_owned())]);
    }

    #[test]
    fn a_text_that_somebody_wrote_blocks_its_address_however_long_and_in_whatever_encoding() {
        let dir = tempfile::tempdir().unwrap();
        let locked = locked(&dir);
        // 1,024 bytes end inside of a character.
        let long = format!("a{}", "é".repeat(600));
        let texts: [(&[u8], bool); 6] = [
            (long.as_bytes(), false),
            (b"r\xe9serv\xe9 pour l'imprimante", false),
            (&[b'a'; 2000], false),
            (&[0; 4096], true),
            (&[0xff; 40], true),
            (b" \n", true),
        ];
        let path = dir.path().join("cbr0/10.1.2.2");
        for (text, is_nobodys) in texts {
            fs::write(&path, text).unwrap();
            let [(_, read)] = &locked.list().unwrap()[..] else { panic!("one file") };
            let shown = String::from_utf8_lossy(&text[..text.len().min(40)]);
            assert_eq!(is_blank(read), is_nobodys, "{shown}");
            assert_eq!(crate::plan::gc::Subject::of_reservation(read), None, "{shown}");
            locked.remove_empty().unwrap();
            assert_eq!(path.exists(), !is_nobodys, "{shown}");
        }
    }

    #[test]
    fn the_last_address_is_replaced_by_a_shorter_one_and_junk_means_from_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let (locked, last) = (locked(&dir), dir.path().join("cbr0").join("last_reserved_ip.0"));
        for junk in
            ["10.1.2.254", "junk that is longer than any address can be, and longer than what is read of it", ""]
        {
            fs::write(&last, junk).unwrap();
            let reserved = locked.reserve(&owner("c1"), &[set("10.1.2.0/24")], &[], Sharing::Exclusive).unwrap();
            assert_eq!(addresses(&reserved), ["10.1.2.2/24 via 10.1.2.1"], "{junk}");
            assert_eq!(fs::read_to_string(&last).unwrap(), "10.1.2.2");
            locked.discard("10.1.2.2".parse().unwrap()).unwrap();
        }
    }

    #[test]
    fn symbolic_links_are_neither_read_nor_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let locked = locked(&dir);
        let outside = dir.path().join("outside");
        fs::write(&outside, "c1\r\neth0").unwrap();
        for name in ["10.1.2.2", "last_reserved_ip.0"] {
            std::os::unix::fs::symlink(&outside, dir.path().join("cbr0").join(name)).unwrap();
        }
        assert!(locked.find(&owner("c1")).unwrap().is_empty());
        let reserved = locked.reserve(&owner("c3"), &[set("10.1.2.0/24")], &[], Sharing::Exclusive).unwrap();
        assert_eq!(addresses(&reserved), ["10.1.2.3/24 via 10.1.2.1"]);
        assert_eq!(fs::read_to_string(&outside).unwrap(), "c1\r\neth0");
        fs::remove_dir_all(dir.path().join("cbr0")).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("cbr0")).unwrap();
        assert!(Store::new(dir.path(), "cbr0").lock(Duration::from_millis(50)).is_err());
    }
}
