//! What verbs print for people: colour and repetition on a terminal, neither elsewhere.
//!
//! Invariants: nothing from outside drives the terminal; text for a pipe or a file has no escape sequence; `NO_COLOR` (no-color.org) and `TERM=dumb` are respected; a verb that is
//! repeated goes on when what it asks is away for a while, and no text is wider or, where it is repeated, higher than the terminal.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use clap::Args;

use crate::lifecycle::Exit;
use crate::status::{Lines, escape};

/// Columns and rows of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    columns: usize,
    rows: usize,
}

impl Size {
    /// One whose size nobody has set, as that of `script`: the usual width, and any height.
    const UNKNOWN: Self = Self { columns: 80, rows: usize::MAX };

    /// That of standard output. A number of zero is not known.
    fn of_output() -> Self {
        let Ok(size) = rustix::termios::tcgetwinsize(io::stdout()) else { return Self::UNKNOWN };
        let known = |number: u16, unknown| if number == 0 { unknown } else { usize::from(number) };
        Self { columns: known(size.ws_col, Self::UNKNOWN.columns), rows: known(size.ws_row, Self::UNKNOWN.rows) }
    }
}

/// Shows it again and again.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Watch {
    /// Show it again every 2 seconds, or every SECONDS, until interrupted.
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "2",
        value_parser = clap::value_parser!(u16).range(1..=3600)
    )]
    pub watch: Option<u16>,
}

/// How a line is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// Worth knowing.
    Note,
    /// Something does not work.
    Bad,
    /// None of these.
    Plain,
}

/// A text that can be shown, and the exit status with which it is shown once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// What is to be known of the text, such as its age: on standard error, and on a terminal that is cleared for the text, above it.
    pub notes: Vec<String>,
    /// The text.
    pub text: String,
    /// The exit status.
    pub exit: Exit,
}

/// True when whoever reads a stream wants colour, which `is_terminal` or not.
pub(crate) fn wants_colour(is_terminal: bool) -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    is_terminal && set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb")
}

/// True when standard output is a terminal.
#[must_use]
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// `text` with each line in the colour of its tone.
#[must_use]
pub fn coloured(text: &str, tone: fn(&str) -> Tone) -> String {
    let mut coloured = String::with_capacity(text.len() + 64);
    for line in text.lines() {
        let code = match tone(line) {
            Tone::Good => "32",
            Tone::Note => "33",
            Tone::Bad => "31",
            Tone::Plain => {
                coloured.extend([line, "\n"]);
                continue;
            }
        };
        coloured.extend(["\u{1b}[", code, "m", line, "\u{1b}[0m\n"]);
    }
    coloured
}

/// The same where standard output is a terminal whose user wants colour, and `text` as it is elsewhere.
#[must_use]
pub fn painted(text: String, tone: fn(&str) -> Tone) -> String {
    if wants_colour(is_terminal()) { coloured(&text, tone) } else { text }
}

/// `text` with everything escaped that would change one of its lines.
#[must_use]
pub fn plain(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(escape).collect();
    lines.join("\n")
}

/// Prints `text`, as [`plain`]; whoever reads it may have read enough, as `head` has.
///
/// # Errors
/// When it cannot be written for another reason.
pub fn put(text: &str) -> io::Result<()> {
    put_unchanged(plain(text).as_bytes())
}

/// Prints `text` as it is, for whoever redirects it.
///
/// # Errors
/// As [`put`].
pub fn put_unchanged(text: &[u8]) -> io::Result<()> {
    put_into(&mut io::stdout().lock(), text)
}

/// Prints `text`, as [`plain`], and the end of its line on standard error. Where nobody takes it, what it is about goes on all the same.
pub fn note(text: &str) {
    aside(&(plain(text) + "\n"));
}

/// Prints `text` as it is on standard error, whether somebody takes it or not.
pub fn aside(text: &str) {
    let mut out = io::stderr().lock();
    // There is no other place to say so.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// `text` with its lines folded where standard output is a terminal; who searches a pipe finds each line whole.
#[must_use]
pub fn fitted(text: String) -> String {
    if is_terminal() { folded(&text, Size::of_output().columns) } else { text }
}

fn folded(text: &str, columns: usize) -> String {
    let mut lines = Lines::new();
    text.lines().for_each(|line| lines.push(format_args!("{line}")));
    lines.into_folded(columns)
}

fn put_into(out: &mut impl Write, text: &[u8]) -> io::Result<()> {
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(|error| io::Error::new(error.kind(), format!("write to standard output: {error}"))),
    }
}

/// Prints what `make` makes, once, or with `watch` until somebody interrupts it: on a terminal each in the place of the one before,
/// elsewhere below it. Returns the exit status of the only one.
///
/// # Errors
/// What `make` fails with, if it is asked once, or that it cannot be printed.
pub fn show<E: Display + From<io::Error>>(
    watch: Watch,
    tone: fn(&str) -> Tone,
    mut make: impl FnMut() -> Result<Shown, E>,
) -> Result<Exit, E> {
    let Some(seconds) = watch.watch else {
        let Shown { notes, text, exit } = make()?;
        notes.iter().for_each(|text| note(text));
        put_unchanged(painted(plain(&text), tone).as_bytes())?;
        return Ok(exit);
    };
    loop {
        // What is asked may be away for as long as an upgrade takes.
        let (notes, text) =
            make().map_or_else(|error| (Vec::new(), format!("{error:#}\n")), |shown| (shown.notes, shown.text));
        if !is_terminal() {
            notes.iter().for_each(|text| note(text));
        }
        let frame = frame(&notes, &painted(plain(&text), tone), is_terminal().then(Size::of_output));
        let mut out = io::stdout().lock();
        if out.write_all(frame.as_bytes()).and_then(|()| out.flush()).is_err() {
            // Nobody reads any more.
            return Ok(Exit::Success);
        }
        drop(out);
        std::thread::sleep(Duration::from_secs(seconds.into()));
    }
}

/// One of several texts: a terminal is cleared behind each line and below the last one, so that nothing flickers; what stood on standard
/// error would go with that, so that notes are part of the frame. What the terminal has no rows for is counted.
fn frame(notes: &[String], text: &str, terminal: Option<Size>) -> String {
    let Some(Size { columns, rows }) = terminal else { return format!("{text}\n") };
    let mut above = Lines::new();
    notes.iter().for_each(|note| above.push(format_args!("{note}")));
    let whole = above.into_folded(columns) + text;
    // The cursor stands behind the last line, in a row of its own.
    let (lines, room) = (whole.lines().count(), rows.saturating_sub(1));
    let whole = if lines <= room { whole } else { cut(&whole, room) };
    format!("\u{1b}[H{}\u{1b}[J", whole.replace('\n', "\u{1b}[K\r\n"))
}

/// The first of the lines of `text`, and how many more there are: `rows` lines together.
fn cut(text: &str, rows: usize) -> String {
    let shown = rows.saturating_sub(1);
    let cut: String = text.split_inclusive('\n').take(shown).collect();
    let left = text.lines().count().saturating_sub(shown);
    cut + &format!("... {left} more lines\n")
}

/// A line on standard error that says what is waited for, while it is: on a terminal only.
#[derive(Debug)]
pub struct Waiting(bool);

impl Waiting {
    /// Says what is waited for; the line goes with the value.
    #[must_use]
    pub fn on(what: impl Display) -> Self {
        let is_terminal = io::stderr().is_terminal();
        if is_terminal {
            aside(&format!("{what} …"));
        }
        Self(is_terminal)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.0 {
            aside("\r\u{1b}[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_colour_of_its_tone_and_ends_with_none() {
        let tone = |line: &str| match line {
            "a" => Tone::Good,
            "b" => Tone::Bad,
            _ => Tone::Plain,
        };
        assert_eq!(coloured("a\nb\nc\n", tone), "\u{1b}[32ma\u{1b}[0m\n\u{1b}[31mb\u{1b}[0m\nc\n");
    }

    #[test]
    fn nothing_of_the_text_before_stays_beside_or_below_the_next_one() {
        let screen = Some(Size::UNKNOWN);
        assert_eq!(frame(&[], "a\nb\n", screen), "\u{1b}[Ha\u{1b}[K\r\nb\u{1b}[K\r\n\u{1b}[J");
        assert_eq!(frame(&[], "a\n", None), "a\n\n");
    }

    #[test]
    fn frame_has_no_more_lines_than_the_terminal_has_rows_for() {
        let notes = ["note".to_owned()];
        let shown = |rows| {
            let size = Size { columns: 80, rows };
            frame(&notes, "a\nb\nc\n", Some(size)).replace("\u{1b}[K\r", "")
        };
        assert_eq!(shown(5), "\u{1b}[Hnote\na\nb\nc\n\u{1b}[J");
        assert_eq!(shown(4), "\u{1b}[Hnote\na\n... 2 more lines\n\u{1b}[J");
        assert_eq!(shown(1), "\u{1b}[H... 4 more lines\n\u{1b}[J", "that one line may be too many");
    }

    #[test]
    fn notes_stand_in_the_frame_that_clears_the_terminal_and_not_in_what_a_pipe_reads() {
        let notes = ["netd is not running".to_owned(), "word ".repeat(20)];
        let shown = frame(&notes, "a\n", Some(Size { columns: 40, rows: 24 })).replace("\u{1b}[K\r", "");
        assert!(
            shown.starts_with("\u{1b}[Hnetd is not running\nword ") && shown.ends_with("\na\n\u{1b}[J"),
            "{shown:?}"
        );
        assert!(shown.lines().all(|line| line.chars().count() <= 40 + 3), "{shown:?}");
        assert_eq!(frame(&notes, "a\n", None), "a\n\n");
    }

    #[test]
    fn a_reader_that_has_read_enough_is_no_failure_and_a_full_disk_is_one() {
        let (reader, mut writer) = io::pipe().unwrap();
        drop(reader);
        put_into(&mut writer, b"text\n").unwrap();
        let mut full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let error = put_into(&mut full, b"text\n").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().starts_with("write to standard output: "), "{error}");
    }

    #[test]
    fn nothing_in_a_text_from_outside_drives_the_terminal() {
        let text = "netd: config: 1 problem\n  \"\u{1b}]0;x\u{7}\u{9b}2J\u{202e}\r\" is no backend: Pöd\n";
        let printed = "netd: config: 1 problem\n  \"\\u{1b}]0;x\\u{7}\\u{9b}2J\\u{202e}\\r\" is no backend: Pöd\n";
        assert_eq!(plain(text), printed);
        assert_eq!(plain(printed), printed);
    }

    #[test]
    fn lines_are_folded_for_a_terminal() {
        assert_eq!(folded("a\n", 80), "a\n");
        for columns in [40, 80, 200] {
            assert!(folded(&"word ".repeat(100), columns).lines().all(|line| line.chars().count() <= columns));
        }
    }

    #[test]
    fn pipes_have_no_colour() {
        assert!(!wants_colour(false));
    }
}
