//! The records of a network, each held under a lock while somebody works on its attachment.
//!
//! ```text
//! <stateDir>/<network>/<container>@<interface>              of the names that make an interface
//! <stateDir>/.ports/<network>/<container>@<interface>       of the chained `portmap`
//! <stateDir>/.shape/<network>/<container>@<interface>       of the chained `bandwidth`
//! <ipam.dataDir>/.owners/<network>/<container>@<interface>  of `host-local`: addresses given to other plugins
//! ```
//! Invariants: whoever works on an attachment holds the record's flock(2), so ADD and DEL of one attachment never run
//! at once; a record exists from before the first change until after the last removal. Nothing of ours is behind a symbolic
//! link: [`Class`] is the table of all records, and every level of each is examined. No network's name begins with `.`. A
//! container identifier has no `@`, so the name splits at the first one.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::record::{RECORD_MAX, Record, boot_id, parse, text_of};
use super::reservations::store::{is_absence, lock_within};
use super::safe_file::{self, Links};
use crate::plan::gc::Subject;
use crate::protocol::attachment::Attachment;
use crate::protocol::error::{CniError, Code};

/// Which names keep a record, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// `netd-cni`, `flannel` and `bridge`: the interface and all that was made with it.
    Attachment,
    /// `portmap`: host ports alone.
    HostPorts,
    /// `bandwidth`: the `ifb` device.
    Bandwidth,
    /// `host-local`: addresses whose link another plugin makes.
    Grant,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 4] = [Self::Attachment, Self::HostPorts, Self::Bandwidth, Self::Grant];

    /// The folder of the class below the state directory, or below `ipam.dataDir`.
    const fn folder(self) -> Option<&'static str> {
        match self {
            Self::Attachment => None,
            Self::HostPorts => Some(".ports"),
            Self::Bandwidth => Some(".shape"),
            Self::Grant => Some(".owners"),
        }
    }

    /// `ipam.dataDir` is host-local's and may be where its operator likes.
    const fn may_top_be_a_link(self) -> bool {
        matches!(self, Self::Grant)
    }
}

/// The records of one class of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Records {
    /// The levels that this plugin makes, outermost first; records are in the last one.
    levels: Vec<PathBuf>,
}

/// The record of one attachment, held until dropped.
#[derive(Debug)]
pub struct Held {
    file: File,
    path: PathBuf,
    /// The record was there before this process came.
    pub existed: bool,
    /// Nothing was ever written into it, so nothing can be left behind what is written now.
    is_blank: bool,
}

/// What a search for a record found.
#[derive(Debug)]
pub enum Found {
    /// There is none.
    None,
    /// Another call works on the attachment.
    Busy,
    /// It is ours now.
    Held(Held),
}

impl Records {
    /// The records of `class` for `network` below `top`: the state directory, or `ipam.dataDir`. Touches nothing.
    /// `network` is an identifier, hence one safe path segment.
    #[must_use]
    pub fn new(class: Class, top: &Path, network: &str) -> Self {
        let folder = class.folder().map_or_else(|| top.to_owned(), |folder| top.join(folder));
        let mut levels = Vec::with_capacity(3);
        if class.folder().is_some() && !class.may_top_be_a_link() {
            levels.push(top.to_owned());
        }
        let network = folder.join(network);
        levels.extend([folder, network]);
        Self { levels }
    }

    /// The records of the same class of another network.
    #[must_use]
    pub fn of_network(&self, network: &OsStr) -> Self {
        let mut levels = self.levels.clone();
        if let Some(dir) = levels.last_mut() {
            dir.set_file_name(network);
        }
        Self { levels }
    }

    /// The state directory, or `ipam.dataDir`.
    pub(crate) fn top(&self) -> &Path {
        self.levels.first().map_or(Path::new(""), PathBuf::as_path)
    }

    /// The records of the chained `class` for the same attachments. These are of [`Class::Attachment`].
    #[must_use]
    pub(crate) fn chained(&self, class: Class) -> Self {
        let network = self.dir().file_name().unwrap_or_default().to_string_lossy();
        Self::new(class, self.top(), &network)
    }

    /// Names of the other networks that have a record of this class for `attachment`. Takes no lock.
    pub fn elsewhere(&self, attachment: &Attachment) -> impl Iterator<Item = String> {
        let own = self.dir().file_name().map(OsStr::to_owned);
        let networks = self.refuse_links().is_ok().then(|| self.dir().parent().and_then(|dir| fs::read_dir(dir).ok()));
        let names = networks.flatten().into_iter().flatten().flatten().map(|entry| entry.file_name());
        let is_other = move |name: &OsString| Some(name) != own.as_ref() && !name.as_encoded_bytes().starts_with(b".");
        let has = |name: &OsString| self.of_network(name).has(attachment);
        names.filter(is_other).filter(has).filter_map(|name| name.into_string().ok()).collect::<Vec<_>>().into_iter()
    }

    /// The directory of the records.
    pub(crate) fn dir(&self) -> &Path {
        self.levels.last().map_or(Path::new(""), PathBuf::as_path)
    }

    fn path_of(&self, attachment: &Attachment) -> PathBuf {
        self.dir().join(format!("{}@{}", attachment.container, attachment.ifname))
    }

    /// Refuses symbolic links in the place of the directories that this plugin makes; returns where one stands.
    fn refuse_links(&self) -> Result<(), (&Path, io::Error)> {
        self.levels.iter().try_for_each(|level| safe_file::refuse_link(level).map_err(|e| (level.as_path(), e)))
    }

    /// Takes the record of `attachment`, making it when it is missing.
    ///
    /// # Errors
    /// Code 11 when another call works on the attachment for longer than `wait`; 5 when the file system refuses.
    pub fn hold(&self, attachment: &Attachment, wait: Duration) -> Result<Held, CniError> {
        self.refuse_links().map_err(|(place, e)| CniError::io("use", place, &e))?;
        let path = self.path_of(attachment);
        loop {
            let (file, existed) = match open_or_create(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    let mut builder = DirBuilder::new();
                    let made = builder.recursive(true).mode(0o700).create(self.dir());
                    made.map_err(|e| CniError::io("create", self.dir(), &e))?;
                    continue;
                }
                other => other.map_err(|e| CniError::io("open", &path, &e))?,
            };
            let file = lock(file, attachment, wait, &path)?;
            if is_linked(&file, &path)? {
                return Ok(Held { file, path, existed, is_blank: !existed });
            }
        }
    }

    /// Takes the record of `attachment` if there is one.
    ///
    /// # Errors
    /// As [`Records::hold`].
    pub fn hold_existing(&self, attachment: &Attachment, wait: Duration) -> Result<Option<Held>, CniError> {
        let path = self.path_of(attachment);
        let Some(file) = self.open_existing(&path)? else { return Ok(None) };
        let file = lock(file, attachment, wait, &path)?;
        // Removed while we waited: then the other call has done all there was to do.
        Ok(is_linked(&file, &path)?.then_some(Held { file, path, existed: true, is_blank: false }))
    }

    /// Searches for the record of `attachment` without waiting.
    ///
    /// # Errors
    /// Code 5 when the file system refuses.
    pub fn find(&self, attachment: &Attachment) -> Result<Found, CniError> {
        let path = self.path_of(attachment);
        let Some(file) = self.open_existing(&path)? else { return Ok(Found::None) };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Ok(Found::Busy),
            Err(TryLockError::Error(e)) => Err(CniError::io("lock", &path, &e)),
            Ok(()) if is_linked(&file, &path)? => Ok(Found::Held(Held { file, path, existed: true, is_blank: false })),
            Ok(()) => Ok(Found::None),
        }
    }

    /// Opened before the way to it is examined: most of the time there is nothing, and nothing needs no examination. What is
    /// behind a link was never made by us.
    fn open_existing(&self, path: &Path) -> Result<Option<File>, CniError> {
        match options().open(path) {
            Err(e) if is_absence(&e) => Ok(None),
            Err(_) if self.refuse_links().is_err() => Ok(None),
            Err(e) => Err(CniError::io("open", path, &e)),
            Ok(file) => Ok(self.refuse_links().is_ok().then_some(file)),
        }
    }

    /// True when `attachment` has a record, whatever is in it. Takes no lock.
    #[must_use]
    pub fn has(&self, attachment: &Attachment) -> bool {
        fs::symlink_metadata(self.path_of(attachment)).is_ok() && self.refuse_links().is_ok()
    }

    /// What the record of `attachment` says, without taking it: `None` without a record, and within when it says nothing, as
    /// while it is being written.
    #[must_use]
    pub fn peek(&self, attachment: &Attachment) -> Option<Option<Record>> {
        match safe_file::read(&self.path_of(attachment), RECORD_MAX, Links::Refused) {
            Err(e) if is_absence(&e) => None,
            read => self.refuse_links().is_ok().then(|| read.ok().and_then(|text| parse(&text))),
        }
    }

    /// The attachments that have a record of this boot, read one by one. Records of an earlier boot speak of nothing that
    /// exists. Takes no lock: a record that is just being written may be missed.
    pub fn of_this_boot(&self) -> impl Iterator<Item = Attachment> {
        let boot = boot_id();
        self.attachments().filter(move |attachment| self.peek(attachment).flatten().is_some_and(|r| r.boot == boot))
    }

    /// Everybody who has a record.
    pub fn attachments(&self) -> impl Iterator<Item = Attachment> {
        let dir = self.refuse_links().is_ok().then(|| fs::read_dir(self.dir()).ok()).flatten();
        dir.into_iter().flatten().flatten().filter_map(|entry| match Subject::of_record(entry.file_name().to_str()?)? {
            Subject::Attachment(attachment) => Some(attachment),
            Subject::Container(_) => None,
        })
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK);
    options
}

fn open_or_create(path: &Path) -> io::Result<(File, bool)> {
    match options().create_new(true).open(path) {
        Ok(file) => Ok((file, false)),
        // A NotFound goes to the caller, who begins again: the file was removed meanwhile.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => options().open(path).map(|file| (file, true)),
        Err(e) => Err(e),
    }
}

fn lock(file: File, attachment: &Attachment, wait: Duration, path: &Path) -> Result<File, CniError> {
    lock_within(file, wait).map_err(|error| match error {
        TryLockError::WouldBlock => CniError::new(
            Code::TryAgainLater,
            format!("another call has worked on {attachment} for {} s", wait.as_secs()),
        )
        .details("try again later"),
        TryLockError::Error(e) => CniError::io("lock", path, &e),
    })
}

/// False when the file lost its name before it was locked.
fn is_linked(file: &File, path: &Path) -> Result<bool, CniError> {
    file.metadata().map(|meta| meta.nlink() > 0).map_err(|e| CniError::io("examine", path, &e))
}

impl Held {
    /// What the record says; `None` when it is empty or unreadable.
    #[must_use]
    pub fn read(&mut self) -> Option<Record> {
        // Room for more than the usual record saves system calls.
        let mut text = String::with_capacity(1024);
        self.file.rewind().ok()?;
        (&self.file).take(RECORD_MAX).read_to_string(&mut text).ok()?;
        parse(&text)
    }

    /// Writes `record`. In place: truncating a file to nothing makes ext4 write its next content out when it is closed
    /// (auto_da_alloc), a tenth of a millisecond. Killed between the two calls, the record is junk, which is allowed.
    ///
    /// # Errors
    /// Code 5.
    pub fn write(&mut self, record: &Record) -> Result<(), CniError> {
        let text = text_of(record);
        let write = || -> io::Result<()> {
            self.file.write_all_at(text.as_bytes(), 0)?;
            if self.is_blank { Ok(()) } else { self.file.set_len(u64::try_from(text.len()).unwrap_or(u64::MAX)) }
        };
        write().map_err(|e| CniError::io("write", &self.path, &e))?;
        self.is_blank = false;
        Ok(())
    }

    /// Empties the record: what it says is about to become untrue.
    ///
    /// # Errors
    /// Code 5.
    pub fn clear(&mut self) -> Result<(), CniError> {
        self.file.set_len(0).map_err(|e| CniError::io("empty", &self.path, &e))
    }

    /// Removes the record: the attachment is gone.
    ///
    /// # Errors
    /// Code 5.
    pub fn remove(self) -> Result<(), CniError> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(CniError::io("remove", &self.path, &e)),
            _ => Ok(()),
        }
    }

    /// Removes the record after a failure, and adds to `error` what kept it from that.
    #[must_use]
    pub fn remove_after(self, error: CniError) -> CniError {
        match self.remove() {
            Ok(()) => error,
            Err(e) => error.details(format!("and could not undo: {e}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::hostports::keys;
    use crate::protocol::attachment::ContainerId;
    use crate::state::record::Ports;
    use netstate::{IfName, MacAddr};
    use std::net::IpAddr;
    use std::sync::mpsc;
    use std::thread;

    const WAIT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(20);

    fn attachment() -> Attachment {
        Attachment::new(ContainerId::new("c1").unwrap(), IfName::new("eth0").unwrap())
    }

    fn records(top: &Path) -> Records {
        Records::new(Class::Attachment, top, "cbr0")
    }

    fn record() -> Record {
        Record {
            boot: "b".to_owned(),
            addresses: vec!["172.7.21.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            ports: Ports::Keys(vec![keys::parse("ports4 tcp 8080").unwrap()]),
            guarded: Some(MacAddr([2, 0, 0, 0, 0, 1])),
            ifb: true,
            via: Some(IfName::new("cbr0.100").unwrap()),
        }
    }

    #[test]
    fn what_is_written_is_read_by_the_next_holder() {
        let dir = tempfile::tempdir().unwrap();
        let mut held = records(dir.path()).hold(&attachment(), WAIT).unwrap();
        assert!(!held.existed && held.read().is_none());
        let longer =
            Record { addresses: vec!["fd00:1111:2222:3333:4444:5555:6666:7777".parse().unwrap(); 4], ..record() };
        held.write(&longer).unwrap();
        held.write(&record()).unwrap();
        drop(held);
        let mut again = records(dir.path()).hold_existing(&attachment(), WAIT).unwrap().unwrap();
        assert_eq!(again.read(), Some(record()));
        again.write(&Record { addresses: Vec::new(), ..record() }).unwrap();
        assert_eq!(again.read().unwrap().addresses, Vec::<IpAddr>::new());
        again.remove().unwrap();
        assert!(records(dir.path()).hold_existing(&attachment(), WAIT).unwrap().is_none());
    }

    #[test]
    fn junk_is_no_record_and_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut held = records(dir.path()).hold(&attachment(), WAIT).unwrap();
        for junk in ["", "{", "[]", r#"{"boot":7}"#, r#"{"boot":"b","addresses":["x"]}"#, "\u{0}"] {
            fs::write(&held.path, junk).unwrap();
            assert_eq!(held.read(), None, "{junk:?}");
        }
    }

    #[test]
    fn a_record_of_more_than_64_kib_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut held = records(dir.path()).hold(&attachment(), WAIT).unwrap();
        let text = text_of(&record());
        for (length, read) in [(64 * 1024, Some(record())), (64 * 1024 + 1, None)] {
            fs::write(&held.path, " ".repeat(length - text.len()) + &text).unwrap();
            assert_eq!(held.read(), read, "{length}");
        }
    }

    #[test]
    fn a_second_call_on_the_same_attachment_waits_and_then_asks_to_try_again() {
        let dir = tempfile::tempdir().unwrap();
        let held = records(dir.path()).hold(&attachment(), WAIT).unwrap();
        let error = records(dir.path()).hold(&attachment(), WAIT).unwrap_err();
        assert_eq!(error.code, Code::TryAgainLater);
        drop(held);
        records(dir.path()).hold(&attachment(), WAIT).unwrap();
    }

    #[test]
    fn waiting_for_a_record_that_is_removed_makes_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let held = records(dir.path()).hold(&attachment(), WAIT).unwrap();
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                sender.send(()).unwrap();
                records(dir.path()).hold(&attachment(), LONG).unwrap()
            });
            receiver.recv().unwrap();
            held.remove().unwrap();
            let mut second = waiter.join().unwrap();
            second.write(&record()).unwrap();
        });
        let mut found = records(dir.path()).hold_existing(&attachment(), WAIT).unwrap().unwrap();
        assert_eq!(found.read(), Some(record()), "the second holder's file is the one with the name");
    }

    #[test]
    fn symbolic_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("cbr0")).unwrap();
        let outside = dir.path().join("outside");
        fs::write(&outside, "precious").unwrap();
        std::os::unix::fs::symlink(&outside, records(dir.path()).path_of(&attachment())).unwrap();
        assert_eq!(records(dir.path()).hold(&attachment(), WAIT).unwrap_err().code, Code::Io);
        assert_eq!(fs::read_to_string(&outside).unwrap(), "precious");
    }

    #[test]
    fn no_level_of_any_class_may_be_a_link() {
        for class in Class::ALL {
            for depth in 0..3 {
                let dir = tempfile::tempdir().unwrap();
                let top = dir.path().join("top");
                let records = Records::new(class, &top, "cbr0");
                let Some(level) = records.levels.get(depth) else { continue };
                let outside = dir.path().join("outside");
                let below = records.dir().strip_prefix(level).unwrap();
                fs::create_dir_all(outside.join(below)).unwrap();
                let theirs = outside.join(below).join("c1@eth0");
                fs::write(&theirs, "precious").unwrap();
                fs::create_dir_all(level.parent().unwrap()).unwrap();
                std::os::unix::fs::symlink(&outside, level).unwrap();
                let place = level.display();
                assert_eq!(records.hold(&attachment(), WAIT).unwrap_err().code, Code::Io, "{place}");
                assert!(records.hold_existing(&attachment(), WAIT).unwrap().is_none(), "{place}");
                assert!(matches!(records.find(&attachment()).unwrap(), Found::None), "{place}");
                assert!(records.peek(&attachment()).is_none() && !records.has(&attachment()), "{place}");
                assert_eq!(records.attachments().count(), 0, "{place}");
                assert_eq!(fs::read_to_string(&theirs).unwrap(), "precious");
            }
        }
    }
}
