//! `Weights`: how many new connections endpoints take for each one of others, by where they run.
//!
//! Text, as in the annotation: `here=4,elsewhere=1`; who is not named has 1. Invariants: no weight is 0, which would be a real server that
//! drains; the text of a value is read as that value.

use std::fmt;
use std::str::FromStr;

use cluster::Problem;

use super::field::Field;
use super::pairs;

/// The annotation of a Service that says them.
pub(crate) const ANNOTATION: &str = "ipvs-proxy/weights";

/// See the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weights {
    /// Of an endpoint on this node.
    pub(crate) here: u16,
    /// Of every other one.
    pub(crate) elsewhere: u16,
}

impl Weights {
    /// What its text is like.
    const FORM: &str = "here=N,elsewhere=N, each once and from 1 to 65535; 1 where one is not named";

    /// What a Service's object says.
    ///
    /// # Errors
    /// Says what is accepted in place of a text that cannot be read.
    pub(super) fn of(service: &Field<'_>) -> Result<Option<Self>, Problem> {
        pairs::annotation(service, ANNOTATION, Self::FORM)
    }
}

impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "here={},elsewhere={}", self.here, self.elsewhere)
    }
}

/// A text that is not of the form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InvalidWeights;

impl FromStr for Weights {
    type Err = InvalidWeights;

    fn from_str(text: &str) -> Result<Self, InvalidWeights> {
        let [here, elsewhere] = pairs::read(text, ["here", "elsewhere"]).ok_or(InvalidWeights)?;
        Ok(Self { here: here.unwrap_or(1), elsewhere: elsewhere.unwrap_or(1) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_read_by_place_and_nothing_else_is() {
        for (text, here, elsewhere) in
            [("here=4,elsewhere=1", 4, 1), ("elsewhere=3", 1, 3), (" here = 65535 ", 65_535, 1)]
        {
            let weights: Weights = text.parse().unwrap();
            assert_eq!(weights, Weights { here, elsewhere });
            assert_eq!(weights.to_string().parse(), Ok(weights));
        }
        for text in ["", "4", "here", "here=0", "here=65536", "here=1,here=2", "there=1", "here=-1", "here=1,"] {
            assert_eq!(text.parse::<Weights>(), Err(InvalidWeights), "{text:?}");
        }
    }
}
