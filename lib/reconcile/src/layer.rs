//! `Layer`: a target around another one.
//!
//! Invariant: what a layer does not say itself is the inner target's, whatever a target is asked for: a layer cannot leave a question out.

use std::collections::BTreeMap;

use crate::target::{Observed, PartsOf, Rows, Step, Target};

/// The rows of `T`.
type RowsOf<T> = Rows<<T as Target>::Key, <T as Target>::Value>;

/// A step of `T`.
type StepOf<T> = Step<<T as Target>::Key, <T as Target>::Value>;

/// The results of steps of `T`.
type Results<T> = Vec<Result<(), <T as Target>::Error>>;

/// A target around another one; its functions are those of [`Target`].
pub trait Layer: 'static {
    /// The other one.
    type Inner: Target + ?Sized;

    /// The other one.
    fn inner(&self) -> &Self::Inner;

    /// The other one.
    fn inner_mut(&mut self) -> &mut Self::Inner;

    /// See [`Target::observe`].
    ///
    /// # Errors
    /// When the kernel cannot be read completely.
    fn observe(&mut self) -> Result<RowsOf<Self::Inner>, <Self::Inner as Target>::Error> {
        self.inner_mut().observe()
    }

    /// See [`Target::parts`].
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn parts(&mut self) -> Result<Option<PartsOf<Self::Inner>>, <Self::Inner as Target>::Error> {
        self.inner_mut().parts()
    }

    /// See [`Target::rival`].
    fn rival(&self, key: &<Self::Inner as Target>::Key) -> Option<String> {
        self.inner().rival(key)
    }

    /// See [`Target::apply`].
    fn apply(&mut self, steps: &[StepOf<Self::Inner>]) -> Results<Self::Inner> {
        self.inner_mut().apply(steps)
    }
}

impl<L: Layer> Target for L {
    type Key = <L::Inner as Target>::Key;
    type Value = <L::Inner as Target>::Value;
    type Error = <L::Inner as Target>::Error;

    fn observe(&mut self) -> Result<Rows<Self::Key, Self::Value>, Self::Error> {
        Layer::observe(self)
    }

    fn parts(&mut self) -> Result<Option<PartsOf<Self>>, Self::Error> {
        Layer::parts(self)
    }

    fn confirm(&mut self) {
        self.inner_mut().confirm();
    }

    fn is_unchanged(&mut self) -> bool {
        self.inner_mut().is_unchanged()
    }

    fn satisfies(&self, have: &Self::Value, want: &Self::Value) -> bool {
        self.inner().satisfies(have, want)
    }

    fn rival(&self, key: &Self::Key) -> Option<String> {
        Layer::rival(self, key)
    }

    fn successor<'a>(&self, key: &Self::Key, desired: &'a BTreeMap<Self::Key, Self::Value>) -> Option<&'a Self::Key> {
        self.inner().successor(key, desired)
    }

    fn batch(&self) -> usize {
        self.inner().batch()
    }

    fn left(&mut self, key: &Self::Key, before: Option<Observed<Self::Value>>) -> Option<Observed<Self::Value>> {
        self.inner_mut().left(key, before)
    }

    fn apply(&mut self, steps: &[Step<Self::Key, Self::Value>]) -> Vec<Result<(), Self::Error>> {
        Layer::apply(self, steps)
    }
}

impl<T: Target + ?Sized> Layer for Box<T> {
    type Inner = T;

    fn inner(&self) -> &T {
        self
    }

    fn inner_mut(&mut self) -> &mut T {
        self
    }
}
