//! `Target`: what a kernel table must be able to do.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;

/// Whose a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Made by us, or by a predecessor whose place we take: removed when nobody desires it.
    Ours,
    /// Somebody else's: never touched unless its key is desired.
    Foreign,
}

/// One row as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed<V> {
    /// The row's value.
    pub value: V,
    /// Whose it is.
    pub owner: Owner,
}

/// A listed table.
pub type Rows<K, V> = BTreeMap<K, Observed<V>>;

/// A listing that is read in parts. It has means of its own, so that rows may be written between two parts.
pub type Parts<K, V, E> = Box<dyn Iterator<Item = Result<Vec<(K, Observed<V>)>, E>> + Send>;

/// A listing of the table `T` in parts.
pub type PartsOf<T> = Parts<<T as Target>::Key, <T as Target>::Value, <T as Target>::Error>;

/// One change to one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<K, V> {
    /// The row is missing: create it.
    Create(K, V),
    /// The row has the first value: make it the second, in place where the kernel can.
    Change(K, V, V),
    /// The row has this value and must go.
    Remove(K, V),
}

impl<K, V> Step<K, V> {
    /// The row's key.
    pub const fn key(&self) -> &K {
        match self {
            Self::Create(key, _) | Self::Change(key, _, _) | Self::Remove(key, _) => key,
        }
    }
}

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryClass {
    /// May go away by itself: try again after the row's back-off.
    Retry,
    /// Something that the row needs is not there yet (its link): try again when the kernel reports a change, and
    /// after the back-off.
    Wait,
    /// Will not go away without a person: try again at the slowest pace only.
    Refuse,
}

/// An error that knows what to do about it.
pub trait Classify {
    /// What to do about this error.
    fn class(&self) -> RetryClass;

    /// The operating system's number for it, where it gave one.
    fn errno(&self) -> Option<i32> {
        None
    }
}

/// One table of the kernel.
///
/// Implementations keep three rules. `observe` reads everything in one consistent listing or fails. `apply` is
/// idempotent: creating a row that exists with the same value and removing a row that is gone are successes.
/// `apply` returns for each step, in order, what is true afterwards.
pub trait Target: 'static {
    /// Identifies a row; its text names the object in logs and errors.
    type Key: Ord + Clone + fmt::Display;
    /// The rest of the row; its text, on one line, is what an operator reads behind the key's.
    type Value: Clone + PartialEq + fmt::Display;
    /// Why an operation failed.
    type Error: Classify + Error + 'static;

    /// Lists the table.
    ///
    /// # Errors
    /// When the kernel cannot be read completely.
    fn observe(&mut self) -> Result<Rows<Self::Key, Self::Value>, Self::Error>;

    /// Begins a listing that is read in parts, each of which takes a millisecond at most; `None` for a table that is listed
    /// whole.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn parts(&mut self) -> Result<Option<PartsOf<Self>>, Self::Error> {
        Ok(None)
    }

    /// Takes in that a listing in parts was read to its end and showed every row as it is known to be.
    fn confirm(&mut self) {}

    /// True when it is known without a listing that the table is as it was listed or written last: an audit need not read it.
    fn is_unchanged(&mut self) -> bool {
        false
    }

    /// True when a row that is `have` needs no change to be `want`. Override it where a desired value leaves something
    /// open that an observed one always has.
    fn satisfies(&self, have: &Self::Value, want: &Self::Value) -> bool {
        have == want
    }

    /// Who may have changed the row with this key, other than we, for an operator; `None` when that is unknown.
    fn rival(&self, key: &Self::Key) -> Option<String> {
        let _ = key;
        None
    }

    /// The desired row that takes the place of the row `key`, though its own key is another. Once it is there, `key` goes as a
    /// changed row's old value does: whoever wants the one knows that the other is out of date. `None` for tables where a row
    /// is replaced only by one with its key.
    fn successor<'a>(&self, key: &Self::Key, desired: &'a BTreeMap<Self::Key, Self::Value>) -> Option<&'a Self::Key> {
        let _ = (key, desired);
        None
    }

    /// How many steps it is given at a time: all by default, for tables whose steps are one transaction. Where each step
    /// stands for itself, fewer take less memory.
    fn batch(&self) -> usize {
        usize::MAX
    }

    /// What there is of the row `key` behind a step on it that failed; before the step there was `before`. Override it where a step may
    /// have done a part of its work.
    fn left(&mut self, key: &Self::Key, before: Option<Observed<Self::Value>>) -> Option<Observed<Self::Value>> {
        let _ = key;
        before
    }

    /// Carries out `steps` in order and returns one result for each.
    fn apply(&mut self, steps: &[Step<Self::Key, Self::Value>]) -> Vec<Result<(), Self::Error>>;
}
