//! Events in journald's native protocol: fields of their own, and the message as on a terminal.
//!
//! An entry is one datagram of lines `FIELD=value` (systemd, JOURNAL_NATIVE_PROTOCOL). Invariants: no text from outside begins a field;
//! what journald does not take goes to standard error, which it reads as well.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use super::Fields;
use crate::status::escape;

/// Where journald receives entries.
const SOCKET: &str = "/run/systemd/journal/socket";

/// Longest wait for journald; then the entry goes to standard error.
const LIMIT: Duration = Duration::from_secs(1);

/// True when journald reads standard error: it says device and inode of the stream that it made (systemd.exec(5)).
pub(super) fn is_read_by_journald() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(error) = io::stderr().as_fd().try_clone_to_owned() else { return false };
    File::from(error).metadata().is_ok_and(|own| stream == format!("{}:{}", own.dev(), own.ino()))
}

/// Formats an event as an entry.
pub(super) struct Entry {
    /// The program.
    pub(super) program: &'static str,
}

impl<S, N> FormatEvent<S, N> for Entry
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let (mut fields, mut message) = (Fields::default(), String::new());
        event.record(&mut fields);
        context.format_fields(Writer::new(&mut message), event)?;
        let meta = event.metadata();
        let mut line = |name: &str, value: &str| writeln!(writer, "{name}={}", escape(value));
        line("MESSAGE", &message)?;
        line("PRIORITY", priority(*meta.level()))?;
        line("SYSLOG_IDENTIFIER", self.program)?;
        line("LOGGER", fields.logger.as_deref().unwrap_or(meta.target()))?;
        let error = fields.error.map(|error| ("error".to_owned(), error));
        for (name, value) in error.into_iter().chain(fields.others) {
            let mut whole = self.program.to_uppercase();
            let _ = write!(whole, "_{}", name.to_uppercase());
            let whole = whole.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
            match value.as_str() {
                Some(text) => line(&whole, text)?,
                None => line(&whole, &value.to_string())?,
            }
        }
        Ok(())
    }
}

/// The number of syslog (RFC 5424) for a level.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    }
}

/// Sends each entry that is written as one datagram; clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Socket {
    socket: Arc<UnixDatagram>,
    path: PathBuf,
}

impl Socket {
    /// A socket towards journald, which need not run yet.
    pub(super) fn open() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(LIMIT))?;
        Ok(Self { socket: Arc::new(socket), path: SOCKET.into() })
    }
}

impl Write for Socket {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        if self.socket.send_to(entry, &self.path).is_err() {
            // The message is the first field.
            let message = entry.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let mut line = message.strip_prefix(b"MESSAGE=").unwrap_or(message).to_vec();
            line.push(b'\n');
            io::stderr().write_all(&line)?;
        }
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::Registry;
    use tracing_subscriber::fmt::layer;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn an_event_is_one_datagram_with_fields_of_its_own_that_nothing_can_forge() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        journald.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let socket = Socket { path, ..Socket::open().unwrap() };
        let lines = layer().with_writer(move || socket.clone()).event_format(Entry { program: "ipvs-proxy" });
        tracing::subscriber::with_default(Registry::default().with(lines), || {
            tracing::warn!(error = %"no route\nPRIORITY=0", rows = 3, object = "a", "{} cannot be read", "x");
            tracing::error!("second");
        });
        let mut bytes = [0; 4096];
        let length = journald.recv(&mut bytes).unwrap();
        let target = module_path!();
        assert_eq!(
            std::str::from_utf8(&bytes[..length]).unwrap(),
            format!(
                "MESSAGE=x cannot be read error=no route\\nPRIORITY=0 rows=3 object=\"a\"\nPRIORITY=4\n\
                 SYSLOG_IDENTIFIER=ipvs-proxy\nLOGGER={target}\nIPVS_PROXY_ERROR=no route\\nPRIORITY=0\n\
                 IPVS_PROXY_OBJECT=a\nIPVS_PROXY_ROWS=3\n"
            )
        );
        let length = journald.recv(&mut bytes).unwrap();
        assert!(bytes[..length].starts_with(b"MESSAGE=second\nPRIORITY=3\n"));
    }
}
