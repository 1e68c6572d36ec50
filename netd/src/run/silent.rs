//! What changes without a word about the kernel's tables: the subnet file, and parameters under /proc/sys.
//!
//! Invariant: a change that is missed costs time until the audit, no more. Parameters are watched twice: as files, and by
//! the kernel's notifications, which also say what was written by way of another mount of /proc.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask};
use kernel::Chain;
use kernel::netconf::Netconf;
use netstate::SysctlKey;

/// Bytes for events that are read at once.
const BUFFER: usize = 4096;

/// What may differ from what this daemon has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Changed {
    /// The subnet file.
    File,
    /// A kernel parameter.
    Parameter,
}

/// The watches; what cannot be watched is left to the audit.
pub(super) struct Silent {
    events: Option<EventStream<Vec<u8>>>,
    netconf: Option<Netconf>,
    file: PathBuf,
    folder: Option<WatchDescriptor>,
}

impl Silent {
    /// Watches the parameters of links; files when [`Self::watch`] names them. Must be called on a tokio runtime.
    pub(super) fn open(file: &Path) -> Self {
        let events = Inotify::init().and_then(|inotify| inotify.into_event_stream(vec![0; BUFFER]));
        let events = events.map_err(|error| tracing::warn!(%error, "no inotify; the audit has to do")).ok();
        let netconf = Netconf::open();
        let netconf = netconf
            .map_err(|error| tracing::warn!(error = %Chain(&error), "no monitor of parameters; the audit has to do"))
            .ok();
        Self { events, netconf, file: file.to_owned(), folder: None }
    }

    /// Watches the folder of the subnet file and `parameters` as they are now: those of a link go with it, and are others
    /// when it is made anew.
    pub(super) fn watch<'a>(&mut self, parameters: impl Iterator<Item = &'a SysctlKey>) {
        let Some(events) = &self.events else { return };
        let mut watches = events.watches();
        let names = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE | WatchMask::CLOSE_WRITE;
        let mask = names | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF | WatchMask::ONLYDIR;
        if let Some(folder) = self.file.parent() {
            // A folder that is not there is made when the file is written.
            self.folder = watches.add(folder, mask).ok();
        }
        for key in parameters {
            // The same for a parameter and its link.
            let _ = watches.add(Path::new("/proc/sys").join(key.as_str()), WatchMask::MODIFY);
        }
    }

    /// The next change. Cancel-safe.
    pub(super) async fn next(&mut self) -> Changed {
        loop {
            let Self { events, netconf, .. } = self;
            let event = tokio::select! {
                Some(event) = async { events.as_mut()?.next().await } => event,
                Some(read) = async { Some(netconf.as_mut()?.changed().await) } => match read {
                    Ok(()) => return Changed::Parameter,
                    Err(error) => {
                        tracing::warn!(error = %Chain(&error), "the monitor of parameters has ended");
                        self.netconf = None;
                        continue;
                    }
                },
                else => std::future::pending().await,
            };
            match event {
                Ok(event) => {
                    if let Some(changed) = self.meaning(&event) {
                        return changed;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "inotify has ended; the audit has to do");
                    self.events = None;
                }
            }
        }
    }

    fn meaning(&self, event: &EventOwned) -> Option<Changed> {
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            return Some(Changed::File);
        }
        if Some(&event.wd) != self.folder.as_ref() {
            return event.mask.contains(EventMask::MODIFY).then_some(Changed::Parameter);
        }
        let own: Option<OsString> = self.file.file_name().map(ToOwned::to_owned);
        (event.name.is_none() || event.name == own).then_some(Changed::File)
    }
}
