//! The record of an attachment: what ADD did, kept for DEL, GC and a second ADD.
//!
//! ```text
//! <stateDir>/<network>/<container>@<interface>            JSON, mode 0600, in a directory of mode 0700
//! <stateDir>/.ports/<network>/<container>@<interface>     the same, of the chained `portmap`
//! <stateDir>/.shape/<network>/<container>@<interface>     the same, of the chained `bandwidth`
//! ```
//! Invariants: whoever works on an attachment holds the record's flock(2), so ADD and DEL of one attachment never run
//! at once; a record exists from before the first change until after the last removal. Nothing depends on its
//! content: a record that is empty or junk only means that DEL looks around instead of knowing where to look.
//! No network's name begins with `.`. A container identifier has no `@`, so the name splits at the first one.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use netstate::nft::ElementKey;
use netstate::{IfName, MacAddr};
use serde_json::{Value, json};

use crate::plan::gc::{self, Subject};
use crate::plan::hostports::keys;
use crate::protocol::attachment::Attachment;
use crate::protocol::error::{CniError, Code};
use crate::protocol::fields::Fields;
use crate::state::reservations::store::{is_absence, lock_within};
use crate::state::safe_file::{self, Links};

/// Where records are kept unless configured otherwise.
pub const DEFAULT_DIR: &str = "/var/lib/cni/netd";

/// Where the chained `portmap` keeps its records below the state directory.
pub const PORTS_DIR: &str = ".ports";

/// Where the chained `bandwidth` keeps its records below the state directory.
pub const BANDWIDTH_DIR: &str = ".shape";

/// The most that is read of a record, in bytes.
const RECORD_MAX: u64 = 64 * 1024;

/// What is known of an attachment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The boot that the attachment was made in: after another one nothing of it but files can exist.
    pub boot: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Ports of the host that lead to it.
    pub ports: Ports,
    /// Its port of the bridge is guarded against frames from other hardware addresses than this one.
    pub guarded: Option<MacAddr>,
    /// What it sends goes over an `ifb` device.
    pub ifb: bool,
    /// The link of this host through which it is reached, when that is not its bridge.
    pub via: Option<IfName>,
}

impl Record {
    /// True when the node was started anew since the attachment was made.
    #[must_use]
    pub fn is_of_earlier_boot(&self) -> bool {
        let boot = boot_id();
        !boot.is_empty() && !self.boot.is_empty() && self.boot != boot
    }
}

/// What is known of an attachment's host ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Ports {
    /// It has none.
    #[default]
    None,
    /// It has some: the record is of the form that did not tell which, `"ports": true`.
    Unlisted,
    /// It has these, by their keys in the table.
    Keys(Vec<ElementKey>),
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

fn path_of(dir: &Path, network: &str, attachment: &Attachment) -> PathBuf {
    dir.join(network).join(format!("{}@{}", attachment.container, attachment.ifname))
}

/// Refuses symbolic links in the place of the directories that this plugin makes; answers where one stands.
fn refuse_links(dir: &Path, network: &str) -> Result<(), (PathBuf, io::Error)> {
    let above = dir.parent().filter(|_| dir.ends_with(PORTS_DIR));
    let places = above.map(Path::to_owned).into_iter().chain([dir.to_owned(), dir.join(network)]);
    places.into_iter().try_for_each(|place| safe_file::refuse_link(&place).map_err(|e| (place, e)))
}

/// Takes the record of `attachment`, making it when it is missing.
///
/// # Errors
/// Code 11 when another call works on the attachment for longer than `wait`; 5 when the file system refuses.
pub fn hold(dir: &Path, network: &str, attachment: &Attachment, wait: Duration) -> Result<Held, CniError> {
    refuse_links(dir, network).map_err(|(place, e)| CniError::io("use", &place, &e))?;
    let path = path_of(dir, network, attachment);
    let parent = path.parent().unwrap_or(dir);
    loop {
        let (file, existed) = match open_or_create(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let mut builder = DirBuilder::new();
                builder.recursive(true).mode(0o700).create(parent).map_err(|e| CniError::io("create", parent, &e))?;
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
/// As [`hold`].
pub fn hold_existing(
    dir: &Path,
    network: &str,
    attachment: &Attachment,
    wait: Duration,
) -> Result<Option<Held>, CniError> {
    if refuse_links(dir, network).is_err() {
        // Never made by us, hence nothing of ours.
        return Ok(None);
    }
    let path = path_of(dir, network, attachment);
    let file = match options().open(&path) {
        Err(e) if is_absence(&e) => return Ok(None),
        other => other.map_err(|e| CniError::io("open", &path, &e))?,
    };
    let file = lock(file, attachment, wait, &path)?;
    // Removed while we waited: then the other call has done all there was to do.
    Ok(is_linked(&file, &path)?.then_some(Held { file, path, existed: true, is_blank: false }))
}

/// True when `attachment` has a record, whatever is in it. Takes no lock.
#[must_use]
pub fn is_there(dir: &Path, network: &str, attachment: &Attachment) -> bool {
    fs::symlink_metadata(path_of(dir, network, attachment)).is_ok()
}

/// What a look for a record found.
#[derive(Debug)]
pub enum Found {
    /// There is none.
    None,
    /// Another call works on the attachment.
    Busy,
    /// It is ours now.
    Held(Held),
}

/// Looks for the record of `attachment` without waiting.
///
/// # Errors
/// Code 5 when the file system refuses.
pub fn find(dir: &Path, network: &str, attachment: &Attachment) -> Result<Found, CniError> {
    if refuse_links(dir, network).is_err() {
        return Ok(Found::None);
    }
    let path = path_of(dir, network, attachment);
    let file = match options().open(&path) {
        Err(e) if is_absence(&e) => return Ok(Found::None),
        other => other.map_err(|e| CniError::io("open", &path, &e))?,
    };
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Ok(Found::Busy),
        Err(TryLockError::Error(e)) => Err(CniError::io("lock", &path, &e)),
        Ok(()) if is_linked(&file, &path)? => Ok(Found::Held(Held { file, path, existed: true, is_blank: false })),
        Ok(()) => Ok(Found::None),
    }
}

/// The attachments of `network` that have a record of this boot, read one by one. Records of an earlier boot tell of nothing
/// that exists. Takes no lock: a record that is just being written may be missed.
pub fn of_this_boot(dir: &Path, network: &str) -> impl Iterator<Item = Attachment> {
    let boot = boot_id();
    let entries = fs::read_dir(dir.join(network)).into_iter().flatten().flatten();
    entries.filter_map(move |entry| {
        let Subject::Attachment(attachment) = Subject::of_record(entry.file_name().to_str()?)? else { return None };
        let record = parse(&safe_file::read(&entry.path(), RECORD_MAX, Links::Refused).ok()?)?;
        (record.boot == boot).then_some(attachment)
    })
}

/// What the record of `attachment` says, without taking it: `None` without a record, and within when it says nothing, as while
/// it is being written.
#[must_use]
pub fn peek(dir: &Path, network: &str, attachment: &Attachment) -> Option<Option<Record>> {
    match safe_file::read(&path_of(dir, network, attachment), RECORD_MAX, Links::Refused) {
        Err(e) if is_absence(&e) => None,
        other => Some(other.ok().and_then(|text| parse(&text))),
    }
}

/// Everybody who has a record of `network`.
pub fn owners(dir: &Path, network: &str) -> impl Iterator<Item = Subject> {
    let entries = fs::read_dir(dir.join(network)).into_iter().flatten().flatten();
    entries.filter_map(|entry| Subject::of_record(entry.file_name().to_str()?))
}

/// Removes the records of `network` whose attachments are not among `valid` and that nobody holds.
///
/// # Errors
/// Code 5 when the file system refuses.
pub fn remove_stale(dir: &Path, network: &str, valid: &[Attachment]) -> Result<(), CniError> {
    for owner in gc::stale(owners(dir, network), valid) {
        if let Subject::Attachment(attachment) = owner
            && let Found::Held(held) = find(dir, network, &attachment)?
        {
            held.remove()?;
        }
    }
    Ok(())
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK);
    options
}

fn open_or_create(path: &Path) -> io::Result<(File, bool)> {
    match options().create_new(true).open(path) {
        Ok(file) => Ok((file, false)),
        // A NotFound goes to the caller, who looks again from the start: the file was removed meanwhile.
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
        let addresses: Vec<String> = record.addresses.iter().map(IpAddr::to_string).collect();
        let mut object = json!({"boot": record.boot, "addresses": addresses, "ports": ports(&record.ports),
                                "guarded": record.guarded.map(|mac| mac.to_string())});
        if let Some(map) = object.as_object_mut().filter(|_| record.ifb) {
            map.insert("ifb".to_owned(), Value::Bool(true));
        }
        if let (Some(map), Some(via)) = (object.as_object_mut(), &record.via) {
            map.insert("via".to_owned(), json!(via.as_str()));
        }
        let text = object.to_string();
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
}

fn parse(text: &str) -> Option<Record> {
    let value: Value = serde_json::from_str(text).ok()?;
    let mut fields = Fields::of(value, "record").ok()?;
    let addresses = fields.take_texts("addresses").ok()?.iter().map(|a| a.parse().ok()).collect::<Option<_>>()?;
    let ports = match fields.take("ports").ok()? {
        None | Some(Value::Bool(false)) => Ports::None,
        Some(Value::Array(keys)) => {
            let keys = keys.iter().map(|key| key.as_str().and_then(keys::parse)).collect::<Option<Vec<_>>>();
            keys.map_or(Ports::Unlisted, Ports::Keys)
        }
        Some(_) => Ports::Unlisted,
    };
    let guarded = fields.take_parsed("guarded", "a hardware address").ok()?;
    let via = fields.take_parsed("via", "a link").ok()?;
    let ifb = fields.take_bool("ifb").ok()?.unwrap_or(false);
    Some(Record { boot: fields.take_text("boot").ok()??, addresses, ports, guarded, ifb, via })
}

fn ports(ports: &Ports) -> Value {
    match ports {
        Ports::None => Value::Bool(false),
        Ports::Unlisted => Value::Bool(true),
        Ports::Keys(keys) => keys.iter().map(keys::text).collect(),
    }
}

/// The identifier of this boot; empty where the kernel does not tell.
#[must_use]
pub fn boot_id() -> String {
    let mut text = String::with_capacity(64);
    let read = File::open("/proc/sys/kernel/random/boot_id").and_then(|mut file| file.read_to_string(&mut text));
    read.map(|_| text.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::attachment::ContainerId;
    use netstate::IfName;
    use std::sync::mpsc;
    use std::thread;

    const WAIT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(20);

    fn attachment() -> Attachment {
        Attachment::new(ContainerId::new("c1").unwrap(), IfName::new("eth0").unwrap())
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
        let mut held = hold(dir.path(), "cbr0", &attachment(), WAIT).unwrap();
        assert!(!held.existed && held.read().is_none());
        let longer =
            Record { addresses: vec!["fd00:1111:2222:3333:4444:5555:6666:7777".parse().unwrap(); 4], ..record() };
        held.write(&longer).unwrap();
        held.write(&record()).unwrap();
        drop(held);
        let mut again = hold_existing(dir.path(), "cbr0", &attachment(), WAIT).unwrap().unwrap();
        assert_eq!(again.read(), Some(record()));
        again.write(&Record { addresses: Vec::new(), ..record() }).unwrap();
        assert_eq!(again.read().unwrap().addresses, Vec::<IpAddr>::new());
        again.remove().unwrap();
        assert!(hold_existing(dir.path(), "cbr0", &attachment(), WAIT).unwrap().is_none());
    }

    #[test]
    fn host_ports_of_every_form_are_known() {
        let ports = |text: &str| parse(&format!(r#"{{"boot":"b","addresses":[],"ports":{text}}}"#)).unwrap().ports;
        assert_eq!(ports("false"), Ports::None);
        assert_eq!(ports("true"), Ports::Unlisted);
        assert_eq!(ports("[]"), Ports::Keys(Vec::new()));
        assert_eq!(ports(r#"["ports4 tcp 8080"]"#), record().ports);
        for junk in [r#"["ports4 tcp"]"#, "[7]", "7", r#""x""#] {
            assert_eq!(ports(junk), Ports::Unlisted, "what cannot be read is looked for");
        }
        assert_eq!(parse(r#"{"boot":"b","addresses":[]}"#).unwrap().ports, Ports::None);
    }

    #[test]
    fn junk_is_no_record_and_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut held = hold(dir.path(), "cbr0", &attachment(), WAIT).unwrap();
        for junk in ["", "{", "[]", r#"{"boot":7}"#, r#"{"boot":"b","addresses":["x"]}"#, "\u{0}"] {
            fs::write(&held.path, junk).unwrap();
            assert_eq!(held.read(), None, "{junk:?}");
        }
    }

    #[test]
    fn a_second_call_on_the_same_attachment_waits_and_then_asks_to_try_again() {
        let dir = tempfile::tempdir().unwrap();
        let held = hold(dir.path(), "cbr0", &attachment(), WAIT).unwrap();
        let error = hold(dir.path(), "cbr0", &attachment(), WAIT).unwrap_err();
        assert_eq!(error.code, Code::TryAgainLater);
        drop(held);
        hold(dir.path(), "cbr0", &attachment(), WAIT).unwrap();
    }

    #[test]
    fn waiting_for_a_record_that_is_removed_makes_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let held = hold(dir.path(), "cbr0", &attachment(), WAIT).unwrap();
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                sender.send(()).unwrap();
                hold(dir.path(), "cbr0", &attachment(), LONG).unwrap()
            });
            receiver.recv().unwrap();
            held.remove().unwrap();
            let mut second = waiter.join().unwrap();
            second.write(&record()).unwrap();
        });
        let mut found = hold_existing(dir.path(), "cbr0", &attachment(), WAIT).unwrap().unwrap();
        assert_eq!(found.read(), Some(record()), "the second holder's file is the one with the name");
    }

    #[test]
    fn symbolic_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("cbr0")).unwrap();
        let outside = dir.path().join("outside");
        fs::write(&outside, "precious").unwrap();
        std::os::unix::fs::symlink(&outside, path_of(dir.path(), "cbr0", &attachment())).unwrap();
        assert_eq!(hold(dir.path(), "cbr0", &attachment(), WAIT).unwrap_err().code, Code::Io);
        assert_eq!(fs::read_to_string(&outside).unwrap(), "precious");
    }
}
