//! `Few`: a set that mostly has one element.
//!
//! Invariant: elements are in order, each once. One element needs no memory of its own; a node of a `BTreeSet` has room for eleven: for
//! ten thousand sets of one element that is most of their memory.

/// See the module's text.
#[derive(Debug, Clone)]
pub(crate) enum Few<T> {
    /// Exactly one element.
    One(T),
    /// Any other number.
    Several(Vec<T>),
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

impl<T: Ord> Few<T> {
    /// Adds an element.
    pub(crate) fn insert(&mut self, element: T) {
        *self = match std::mem::take(self) {
            Self::One(one) if one == element => Self::One(one),
            Self::One(one) => Self::Several(if one < element { vec![one, element] } else { vec![element, one] }),
            Self::Several(none) if none.is_empty() => Self::One(element),
            Self::Several(mut elements) => {
                if let Err(place) = elements.binary_search(&element) {
                    elements.reserve_exact(1);
                    elements.insert(place, element);
                }
                Self::Several(elements)
            }
        }
    }

    /// Takes an element away.
    pub(crate) fn remove(&mut self, element: &T) {
        *self = match std::mem::take(self) {
            Self::One(one) if one == *element => Self::default(),
            Self::One(one) => Self::One(one),
            Self::Several(mut elements) => {
                elements.retain(|one| one != element);
                match (elements.len(), elements.pop()) {
                    (1, Some(one)) => Self::One(one),
                    (_, last) => {
                        elements.extend(last);
                        Self::Several(elements)
                    }
                }
            }
        }
    }

    /// The elements in order.
    pub(crate) fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Several(elements) => elements,
        }
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
