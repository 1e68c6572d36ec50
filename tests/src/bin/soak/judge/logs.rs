//! What daemons may not write.
//!
//! Invariant: a panic is always a violation, and so is an error, but for the one that a full disk explains while a disk is full.

/// The kernel's words for a disk that is full.
const FULL: &str = "No space left on device";

/// Lines of a log that must not be; `full` while a node's disk is full, or was a moment ago.
pub(crate) fn of_lines<'a>(lines: impl Iterator<Item = &'a str>, full: bool) -> Vec<String> {
    let explained = |line: &str| full && line.contains(FULL);
    let bad = |line: &&str| line.contains("panicked at") || (is_error(line) && !explained(line));
    lines.filter(bad).map(str::to_owned).collect()
}

/// Whether the level of a line is that of an error; a name and a time may stand before it.
pub(crate) fn is_error(line: &str) -> bool {
    line.split_whitespace().take(3).any(|word| word == "ERROR")
}

/// A line without what differs each time: its beginning up to the level, and numbers.
pub(crate) fn kind(line: &str) -> String {
    let text = line.split_once("ERROR").map_or(line, |(_, text)| text);
    let mut kind = String::new();
    for letter in text.trim().chars().take(100) {
        match letter.is_ascii_digit() {
            true if kind.ends_with('#') => {}
            true => kind.push('#'),
            false => kind.push(letter),
        }
    }
    kind
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_is_never_explained_and_an_error_only_by_a_full_disk() {
        let log = ["2026-01-01T00:00:00Z  INFO ready, ERROR in no row", "2026-01-01T00:00:01Z ERROR no such device"];
        assert_eq!(of_lines(log.into_iter(), true), [log[1]]);
        let full = [
            "n1: 2026-01-01T00:00:01Z ERROR the status file cannot be written error=No space left on device (os error 28)",
        ];
        assert!(of_lines(full.into_iter(), true).is_empty());
        assert_eq!(of_lines(full.into_iter(), false), full);
        assert_eq!(kind("n1: 2026-01-01T00:00:01Z ERROR route 172.7.31.0/24: gone"), "route #.#.#.#/#: gone");
        let panic = "thread 'main' panicked at netd/src/main.rs:1:1:";
        assert_eq!(of_lines([panic].into_iter(), true), [panic]);
    }
}
