//! What daemons may not write.
//!
//! Invariant: a panic is always a violation; an error is one unless a fault explains it.

/// Lines of a log that no fault explains; errors count only where `explained` is false.
pub(crate) fn of_lines<'a>(lines: impl Iterator<Item = &'a str>, explained: bool) -> Vec<String> {
    let bad = |line: &&str| {
        line.contains("panicked at") || (!explained && line.split_whitespace().take(3).any(|word| word == "ERROR"))
    };
    lines.filter(bad).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_is_never_explained_and_an_error_only_by_a_fault() {
        let log = ["2026-01-01T00:00:00Z  INFO ready, ERROR in no row", "2026-01-01T00:00:01Z ERROR no such device"];
        assert_eq!(of_lines(log.into_iter(), false), [log[1]]);
        assert!(of_lines(log.into_iter(), true).is_empty());
        let panic = "thread 'main' panicked at netd/src/main.rs:1:1:";
        assert_eq!(of_lines([panic].into_iter(), true), [panic]);
    }
}
