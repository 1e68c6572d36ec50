//! `FollowedFile`: the text of a file, and each change of it.
//!
//! Invariant: what the file holds once it has been left alone for [`SETTLE`] is reported, however it was written (in place,
//! by a rename, by another symbolic link as in a ConfigMap); a change that inotify misses, at the audit.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};
use tokio::time::{sleep, timeout};

/// How long the folder must have been quiet before the file is read.
const SETTLE: Duration = Duration::from_millis(200);

/// Time after which the file is read although nothing was reported.
const AUDIT: Duration = Duration::from_secs(60);

/// Bytes for events that are read at once.
const BUFFER: usize = 4096;

/// A file that is followed; see the module's text.
#[derive(Debug)]
pub struct FollowedFile {
    path: PathBuf,
    /// What was reported last, if anything was.
    reported: Option<Option<Vec<u8>>>,
}

impl FollowedFile {
    /// Follows `path`.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self { path, reported: None }
    }

    /// What the file holds, first as it is now, then after each change; `None` while it is not there. A call that is given
    /// up loses nothing.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            // Watched before it is read: what changes in between is reported.
            let mut events =
                watch(&self.path).inspect_err(|error| tracing::debug!(%error, "no inotify; the audit has to do")).ok();
            match read(&self.path).await {
                Ok(text) if self.reported.as_ref() != Some(&text) => {
                    self.reported = Some(text.clone());
                    return text;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(file = %self.path.display(), %error, "the file cannot be read; it stays as it was");
                }
            }
            let changed = async {
                match &mut events {
                    Some(events) => drop(events.next().await),
                    None => std::future::pending().await,
                }
            };
            let _ = timeout(AUDIT, changed).await;
            sleep(SETTLE).await;
        }
    }
}

/// What happens to the file, and to its name.
fn watch(path: &Path) -> io::Result<EventStream<Vec<u8>>> {
    let inotify = Inotify::init()?;
    let names = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE | WatchMask::CLOSE_WRITE;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A file that is mounted by itself changes without its folder.
    let _ = inotify.watches().add(path, WatchMask::CLOSE_WRITE | WatchMask::ATTRIB);
    inotify.watches().add(folder, names)?;
    inotify.into_event_stream(vec![0; BUFFER])
}

async fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || bounded::read(&path, bounded::SETTINGS)).await;
    match read.map_err(io::Error::other)? {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    async fn next(file: &mut FollowedFile) -> Option<String> {
        let text = timeout(Duration::from_secs(20), file.next()).await.expect("a text in time");
        text.map(|text| String::from_utf8(text).unwrap())
    }

    #[tokio::test]
    async fn file_without_end_is_none_until_another_one_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net-conf.json");
        symlink("/dev/zero", &path).unwrap();
        let error = read(&path).await.unwrap_err();
        assert!(error.to_string().contains("more than 1048576 bytes"), "{error}");
        let mut texts = FollowedFile::new(path.clone());
        let whole = async {
            tokio::task::yield_now().await;
            fs::write(folder.path().join("draft"), "whole").unwrap();
            fs::rename(folder.path().join("draft"), &path).unwrap();
        };
        let (text, ()) = tokio::join!(next(&mut texts), whole);
        assert_eq!(text.as_deref(), Some("whole"));
    }

    #[tokio::test]
    async fn file_is_followed_however_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net-conf.json");
        fs::write(&path, "one").unwrap();
        let mut texts = FollowedFile::new(path.clone());
        assert_eq!(next(&mut texts).await.as_deref(), Some("one"));
        fs::write(&path, "two").unwrap();
        assert_eq!(next(&mut texts).await.as_deref(), Some("two"));
        fs::write(folder.path().join("draft"), "three").unwrap();
        fs::rename(folder.path().join("draft"), &path).unwrap();
        assert_eq!(next(&mut texts).await.as_deref(), Some("three"));
        fs::remove_file(&path).unwrap();
        assert_eq!(next(&mut texts).await, None);
        fs::write(&path, "four").unwrap();
        assert_eq!(next(&mut texts).await.as_deref(), Some("four"));
    }

    #[tokio::test]
    async fn file_of_a_config_map_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (version, text) in [("v1", "one"), ("v2", "two")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("net-conf.json"), text).unwrap();
        }
        symlink("v1", at("..data")).unwrap();
        symlink("..data/net-conf.json", at("net-conf.json")).unwrap();
        let mut texts = FollowedFile::new(at("net-conf.json"));
        assert_eq!(next(&mut texts).await.as_deref(), Some("one"));
        symlink("v2", at("..new")).unwrap();
        fs::rename(at("..new"), at("..data")).unwrap();
        assert_eq!(next(&mut texts).await.as_deref(), Some("two"));
    }
}
