//! Durations as kube-proxy's flags write them: `15m`, `1h30m`, `500ms` (Go's time.ParseDuration, without fractions).

use std::time::Duration;

/// Reads a duration; `None` when the text is none. Units: h, m, s, ms; `0` needs none.
#[must_use]
pub(crate) fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, behind) = rest.split_at_checked(digits)?;
        let letters = behind.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at_checked(letters)?;
        let number: u64 = number.parse().ok()?;
        let part = match unit {
            "h" => Duration::from_secs(number.checked_mul(3600)?),
            "m" => Duration::from_secs(number.checked_mul(60)?),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return None,
        };
        total = total.checked_add(part)?;
        rest = behind;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_add_up_and_junk_is_none() {
        for (text, seconds) in [("15m", 900), ("1h30m", 5400), ("0s", 0), ("0", 0), ("90s", 90), ("2000ms", 2)] {
            assert_eq!(parse(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for junk in ["", "15", "m", "-1s", "1d", "1.5h", "1 m", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(parse(junk), None, "{junk}");
        }
    }
}
