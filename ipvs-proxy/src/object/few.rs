//! `Few`: a set that mostly has one element.
//!
//! Invariant: elements are in order, each once. A node of a `BTreeSet` has room for eleven: for ten thousand sets of one element
//! that is most of their memory.

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Few<T>(Vec<T>);

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Ord> Few<T> {
    /// Adds an element.
    pub(crate) fn insert(&mut self, element: T) {
        if let Err(place) = self.0.binary_search(&element) {
            self.0.reserve_exact(1);
            self.0.insert(place, element);
        }
    }

    /// Takes an element away.
    pub(crate) fn remove(&mut self, element: &T) {
        if let Ok(place) = self.0.binary_search(element) {
            self.0.remove(place);
        }
    }

    /// The elements in order.
    pub(crate) fn as_slice(&self) -> &[T] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_set_holds(steps in prop::collection::vec((any::<bool>(), 0u8..6), 0..40)) {
            let (mut few, mut set) = (Few::default(), BTreeSet::new());
            for (add, element) in steps {
                if add {
                    few.insert(element);
                    set.insert(element);
                } else {
                    few.remove(&element);
                    set.remove(&element);
                }
                prop_assert!(few.as_slice().iter().eq(&set));
            }
        }
    }
}
