//! `Chain`: an error with its causes on one line, for logs and status pages.

use std::error::Error;
use std::fmt;

/// Displays an error and the causes behind it, as `what failed: why: why that`.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|layer| layer as _)
        }
    }

    #[test]
    fn every_cause_is_named_once_from_the_outside_in() {
        let error = Layer("set link", Some(Box::new(Layer("refused", Some(Box::new(Layer("EINVAL", None)))))));
        assert_eq!(Chain(&error).to_string(), "set link: refused: EINVAL");
        assert_eq!(Chain(&Layer("alone", None)).to_string(), "alone");
    }
}
