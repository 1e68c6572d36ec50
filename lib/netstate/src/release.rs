//! `Release`: a kernel's version, for what a kernel takes and then does otherwise than later ones: it cannot be asked for that.

/// The numbers at the beginning of what `uname -r` says, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release(pub u32, pub u32, pub u32);

impl Release {
    /// Of a text such as `5.4.0-42-generic`; missing numbers are 0. Nothing where the text begins with none.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        let mut numbers = text.trim().split(|sign: char| !sign.is_ascii_digit()).map(|number| number.parse().ok());
        let major = numbers.next()??;
        let mut next = || numbers.next().flatten().unwrap_or(0);
        Some(Self(major, next(), next()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_at_the_beginning_count() {
        assert_eq!(Release::of("5.4.0-42-generic\n"), Some(Release(5, 4, 0)));
        assert_eq!(Release::of("6.12.117-lab"), Some(Release(6, 12, 117)));
        assert_eq!((Release::of("7"), Release::of("x"), Release::of("")), (Some(Release(7, 0, 0)), None, None));
        assert!(Release(5, 10, 262) < Release(5, 13, 0) && Release(5, 13, 0) < Release(6, 1, 0));
    }
}
