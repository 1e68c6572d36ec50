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

/// What is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// For people: on a terminal its lines are folded, each in the colour of its tone.
    Lines(String),
    /// For programs: as it is.
    Json(String),
}

/// A text that can be shown, and the exit status with which it is shown once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// What is to be known of the text, such as its age: on standard error, and on a terminal that is cleared for the text, above it.
    pub notes: Vec<String>,
    /// The text.
    pub text: Text,
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

/// A line as a terminal gets it, and how many rows it takes there: a word that is wider than the terminal goes on in the next row.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    text: String,
    rows: usize,
}

/// The lines of `text` for a terminal of `columns`, or none, folded and then in the colour of the line that they were part of.
fn rows(text: &Text, tone: fn(&str) -> Tone, columns: Option<usize>, has_colour: bool) -> Vec<Row> {
    let (text, is_table) = match text {
        Text::Lines(text) => (text, true),
        Text::Json(text) => (text, false),
    };
    let mut rows = Vec::new();
    for line in plain(text).lines() {
        let code = colour(tone(line)).filter(|_| has_colour && is_table);
        let folded = columns.filter(|_| is_table).map(|columns| folded(line, columns));
        for part in folded.as_deref().unwrap_or(line).trim_end_matches('\n').split('\n') {
            let wide = columns.map_or(1, |columns| part.chars().count().div_ceil(columns.max(1)));
            let text = code.map_or_else(|| part.to_owned(), |code| format!("\u{1b}[{code}m{part}\u{1b}[0m"));
            rows.push(Row { text, rows: wide.max(1) });
        }
    }
    rows
}

/// Number of a colour, as terminals know it (ECMA-48, SGR).
const fn colour(tone: Tone) -> Option<&'static str> {
    match tone {
        Tone::Good => Some("32"),
        Tone::Note => Some("33"),
        Tone::Bad => Some("31"),
        Tone::Plain => None,
    }
}

/// `text` as it is for standard output: folded where that is a terminal, and coloured where its user wants that; who searches a pipe
/// finds each line whole.
#[must_use]
pub fn painted(text: &Text, tone: fn(&str) -> Tone) -> String {
    let columns = is_terminal().then(|| Size::of_output().columns);
    let rows = rows(text, tone, columns, wants_colour(is_terminal()));
    rows.into_iter().map(|row| row.text + "\n").collect()
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
        put_unchanged(painted(&text, tone).as_bytes())?;
        return Ok(exit);
    };
    loop {
        // What is asked may be away for as long as an upgrade takes.
        let (notes, text) = make()
            .map_or_else(|error| (Vec::new(), Text::Lines(format!("{error:#}\n"))), |shown| (shown.notes, shown.text));
        if !is_terminal() {
            notes.iter().for_each(|text| note(text));
        }
        let terminal = is_terminal().then(Size::of_output);
        let frame = screen(&notes, &text, tone, (terminal, wants_colour(is_terminal())));
        let mut out = io::stdout().lock();
        if out.write_all(frame.as_bytes()).and_then(|()| out.flush()).is_err() {
            // Nobody reads any more.
            return Ok(Exit::Success);
        }
        drop(out);
        std::thread::sleep(Duration::from_secs(seconds.into()));
    }
}

/// One of several texts with its notes, for a terminal or for what is none, which has the notes on standard error.
fn screen(notes: &[String], text: &Text, tone: fn(&str) -> Tone, to: (Option<Size>, bool)) -> String {
    let (Some(size), has_colour) = to else {
        return rows(text, tone, None, to.1).into_iter().map(|row| row.text + "\n").collect::<String>() + "\n";
    };
    let notes = notes.iter().map(|note| escape(note).into_owned() + "\n").collect();
    let above = rows(&Text::Lines(notes), |_| Tone::Plain, Some(size.columns), false);
    frame(above.into_iter().chain(rows(text, tone, Some(size.columns), has_colour)).collect(), size.rows)
}

/// One of several texts: a terminal is cleared behind each line and below the last one, so that nothing flickers; what stood on standard
/// error would go with that, so that notes are part of the frame. What a terminal of `height` has no rows for is counted.
fn frame(mut lines: Vec<Row>, height: usize) -> String {
    // The cursor stands behind the last line, in a row of its own.
    let room = height.saturating_sub(1);
    if lines.iter().map(|line| line.rows).sum::<usize>() > room {
        let mut left = room.saturating_sub(1);
        let fitting = lines.iter().take_while(|line| {
            let fits = line.rows <= left;
            left = left.saturating_sub(line.rows);
            fits
        });
        let (shown, all) = (fitting.count(), lines.len());
        lines.truncate(shown);
        lines.push(Row { text: format!("... {} more lines", all.saturating_sub(shown)), rows: 1 });
    }
    let lines: String = lines.into_iter().map(|line| line.text + "\u{1b}[K\r\n").collect();
    format!("\u{1b}[H{lines}\u{1b}[J")
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

    fn tone(line: &str) -> Tone {
        match line {
            "a" => Tone::Good,
            "b" => Tone::Bad,
            _ if line.starts_with('!') && line.ends_with("end") => Tone::Bad,
            _ => Tone::Plain,
        }
    }

    fn lines(text: &str, columns: Option<usize>, has_colour: bool) -> Vec<Row> {
        rows(&Text::Lines(text.to_owned()), tone, columns, has_colour)
    }

    fn texts(rows: Vec<Row>) -> Vec<String> {
        rows.into_iter().map(|row| row.text).collect()
    }

    #[test]
    fn a_line_has_the_colour_of_its_tone_and_ends_with_none() {
        let coloured = ["\u{1b}[32ma\u{1b}[0m", "\u{1b}[31mb\u{1b}[0m", "", "c"];
        assert_eq!(texts(lines("a\nb\n\nc\n", None, true)), coloured);
        assert_eq!(texts(lines("a\nb\n", Some(80), false)), ["a", "b"]);
        let json = rows(&Text::Json("a\n".to_owned()), tone, Some(80), true);
        assert_eq!(texts(json), ["a"], "it is for programs");
    }

    #[test]
    fn a_line_that_is_folded_has_the_colour_of_the_whole() {
        let folded = texts(lines(&format!("! {}end\n", "word ".repeat(10)), Some(40), true));
        assert!(folded.len() > 1 && folded.iter().all(|line| line.starts_with("\u{1b}[31m")), "{folded:?}");
    }

    #[test]
    fn nothing_of_the_text_before_stays_beside_or_below_the_next_one() {
        let shown = frame(lines("a\nb\n", Some(80), false), usize::MAX);
        assert_eq!(shown, "\u{1b}[Ha\u{1b}[K\r\nb\u{1b}[K\r\n\u{1b}[J");
    }

    #[test]
    fn frame_takes_no_more_rows_than_the_terminal_has() {
        let shown = |height| frame(lines("note\na\nb\nc\n", Some(80), false), height).replace("\u{1b}[K\r", "");
        assert_eq!(shown(5), "\u{1b}[Hnote\na\nb\nc\n\u{1b}[J");
        assert_eq!(shown(4), "\u{1b}[Hnote\na\n... 2 more lines\n\u{1b}[J");
        assert_eq!(shown(1), "\u{1b}[H... 4 more lines\n\u{1b}[J", "that one line may be too many");
        // A name that is wider than the terminal goes on in the next row.
        let wide = lines(&format!("a\n{}\nb\n", "x".repeat(100)), Some(40), false);
        assert_eq!(wide.iter().map(|row| row.rows).collect::<Vec<_>>(), [1, 3, 1]);
        assert_eq!(frame(wide, 5).replace("\u{1b}[K\r", ""), "\u{1b}[Ha\n... 2 more lines\n\u{1b}[J");
    }

    #[test]
    fn notes_stand_in_the_frame_that_clears_the_terminal_and_not_in_what_a_pipe_reads() {
        let notes = ["netd is not running".to_owned(), "word ".repeat(20)];
        let text = Text::Lines("c\n".to_owned());
        let terminal = (Some(Size { columns: 40, rows: 24 }), false);
        let shown = screen(&notes, &text, tone, terminal).replace("\u{1b}[K\r", "");
        assert!(
            shown.starts_with("\u{1b}[Hnetd is not running\nword ") && shown.ends_with("\nc\n\u{1b}[J"),
            "{shown:?}"
        );
        assert!(shown.lines().all(|line| line.chars().count() <= 40 + 3), "{shown:?}");
        assert_eq!(screen(&notes, &text, tone, (None, false)), "c\n\n");
        assert_eq!(screen(&[], &text, tone, (None, false)), "c\n\n");
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
