//! Asking the running daemon over its unix socket: what `tables` does.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::SOCKET;

/// Bytes of an answer that are read at most.
const MOST: u64 = 256 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody is there.
    #[error("no daemon answers at {}: is it running, with this --run-dir?", .0.display())]
    Absent(PathBuf),
    /// The daemon may not be asked, or the conversation broke off.
    #[error("ask the daemon at {}: {cause}{}", path.display(), advice(cause))]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said; part of the text, so no further error behind this one.
        cause: io::Error,
    },
    /// It takes too long.
    #[error("the daemon at {} does not answer within {} s: it is stuck or very busy", path.display(), limit.as_secs())]
    Late {
        /// The socket.
        path: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
    /// It said no.
    #[error("the daemon answers {code}: {text}")]
    Refused {
        /// HTTP's status code.
        code: u16,
        /// The reason.
        text: String,
    },
}

/// What to do about a socket that only its owner may open.
fn advice(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied { "; the socket is its owner's: run this as root" } else { "" }
}

/// Gets `page`, with its query, from the daemon whose run-time folder is `folder`.
///
/// # Errors
/// When there is no daemon, it does not answer within `limit`, or there is no such page.
pub fn ask(folder: &Path, page: &str, limit: Duration) -> Result<String, AskError> {
    ask_some(folder, page, limit, MOST)
}

/// The same, of an answer that is longer than `most` bytes no more.
///
/// # Errors
/// As [`ask`]; also when it is longer and ends in the midst of a letter.
pub fn ask_some(folder: &Path, page: &str, limit: Duration, most: u64) -> Result<String, AskError> {
    let path = folder.join(SOCKET);
    let answer = talk(&path, page, limit, most).map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::Absent(path.clone()),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => AskError::Late { path: path.clone(), limit },
        _ => AskError::Io { path: path.clone(), cause },
    })?;
    let malformed = || AskError::Io { path: path.clone(), cause: io::Error::other("malformed answer") };
    let (code, body) = parse(&answer).ok_or_else(malformed)?;
    match code {
        200 => Ok(body.to_owned()),
        code => Err(AskError::Refused { code, text: body.trim_end().to_owned() }),
    }
}

/// HTTP's status code, and what is behind the header.
pub(crate) fn parse(answer: &str) -> Option<(u16, &str)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body))
}

fn talk(path: &Path, page: &str, limit: Duration, most: u64) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    // HTTP/1.0: the answer ends with the connection and is in one piece.
    write!(stream, "GET {page} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(most).read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn what_the_system_says_is_repeated_by_nobody_and_comes_with_what_to_do() {
        let path = PathBuf::from("/run/netd/http.sock");
        let denied = AskError::Io { path, cause: io::Error::from_raw_os_error(libc::EACCES) };
        // Whoever prints the errors behind one as well would say it twice.
        assert!(denied.source().is_none());
        let text = denied.to_string();
        assert_eq!(text.matches("Permission denied").count(), 1, "{text}");
        assert!(text.ends_with("run this as root"), "{text}");
    }
}
