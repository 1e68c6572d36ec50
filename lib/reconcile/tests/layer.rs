//! A layer is its inner target wherever it says nothing.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::collections::BTreeMap;
use std::fmt;

use reconcile::{Classify, Layer, Observed, Owner, PartsOf, RetryClass, Rows, Step, Target};

#[derive(Debug, PartialEq)]
struct Refused(usize);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused {}", self.0)
    }
}

impl std::error::Error for Refused {}

impl Classify for Refused {
    fn class(&self) -> RetryClass {
        RetryClass::Refuse
    }
}

/// Answers each question in another way than a target does by default.
#[derive(Default)]
struct Peculiar {
    confirmed: bool,
}

fn row() -> (u8, Observed<i8>) {
    (1, Observed { value: 2, owner: Owner::Foreign })
}

impl Target for Peculiar {
    type Key = u8;
    type Value = i8;
    type Error = Refused;

    fn observe(&mut self) -> Result<Rows<u8, i8>, Refused> {
        Ok(Rows::from([row()]))
    }

    fn parts(&mut self) -> Result<Option<PartsOf<Self>>, Refused> {
        Ok(Some(Box::new([Ok(vec![row()])].into_iter())))
    }

    fn confirm(&mut self) {
        self.confirmed = true;
    }

    fn is_unchanged(&mut self) -> bool {
        self.confirmed
    }

    fn satisfies(&self, have: &i8, want: &i8) -> bool {
        *have == -want
    }

    fn rival(&self, key: &u8) -> Option<String> {
        Some(format!("rival of {key}"))
    }

    fn successor<'a>(&self, key: &u8, desired: &'a BTreeMap<u8, i8>) -> Option<&'a u8> {
        desired.keys().find(|other| **other == key + 1)
    }

    fn batch(&self) -> usize {
        3
    }

    fn left(&mut self, key: &u8, before: Option<Observed<i8>>) -> Option<Observed<i8>> {
        before.map(|row| Observed { value: row.value + key.cast_signed(), ..row })
    }

    fn apply(&mut self, steps: &[Step<u8, i8>]) -> Vec<Result<(), Refused>> {
        (0..steps.len()).map(|step| Err(Refused(step))).collect()
    }
}

/// Says nothing.
struct Silent(Peculiar);

impl Layer for Silent {
    type Inner = Peculiar;

    fn inner(&self) -> &Peculiar {
        &self.0
    }

    fn inner_mut(&mut self) -> &mut Peculiar {
        &mut self.0
    }
}

fn answers_as_its_inner<T: Target<Key = u8, Value = i8, Error = Refused>>(mut target: T) {
    assert_eq!(target.observe().unwrap(), Rows::from([row()]));
    assert_eq!(target.parts().unwrap().unwrap().flat_map(Result::unwrap).collect::<Vec<_>>(), [row()]);
    assert!(!target.is_unchanged());
    target.confirm();
    assert!(target.is_unchanged());
    assert!(target.satisfies(&1, &-1) && !target.satisfies(&1, &1));
    assert_eq!(target.rival(&7), Some("rival of 7".to_owned()));
    assert_eq!(target.successor(&1, &BTreeMap::from([(2, 0)])), Some(&2));
    assert_eq!(target.batch(), 3);
    assert_eq!(target.left(&3, Some(row().1)).map(|row| row.value), Some(5));
    assert_eq!(target.apply(&[Step::Create(1, 1), Step::Remove(2, 2)]), [Err(Refused(0)), Err(Refused(1))]);
}

#[test]
fn a_layer_that_says_nothing_and_a_box_answer_every_question_as_what_is_in_them() {
    answers_as_its_inner(Peculiar::default());
    answers_as_its_inner(Silent(Peculiar::default()));
    answers_as_its_inner(Box::new(Silent(Peculiar::default())));
    let erased: Box<dyn Target<Key = u8, Value = i8, Error = Refused>> = Box::new(Peculiar::default());
    answers_as_its_inner(erased);
}
