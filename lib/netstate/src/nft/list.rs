//! `List`: what an indexed map ([`super::Set::is_list`]) holds under one key without the index, as one value.
//!
//! Chains that choose by number need the values of a key together: they come and go as one row, and ten thousand keys with ten values
//! each are ten thousand rows and not a hundred thousand.
//!
//! Invariant: values stand at the indexes from 0 on. What somebody else put behind a gap, or gave a comment, is kept apart: it makes the
//! list unequal to every desired one, and can be removed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Data, Datum, Element};

/// Addresses and ports by index; a copy shares them.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct List {
    values: Arc<[(IpAddr, u16)]>,
    strange: BTreeMap<u32, Element>,
}

impl List {
    /// The list of elements that stand in the order of their indexes.
    pub fn of_elements(elements: impl IntoIterator<Item = (u32, Element)>) -> Self {
        Self::observed(elements.into_iter().map(|(index, element)| (index, plain(&element).ok_or(element))))
    }

    /// The list of what was observed, in the order of the indexes: values, and elements that say something else.
    pub fn observed(entries: impl IntoIterator<Item = (u32, Result<(IpAddr, u16), Element>)>) -> Self {
        let (mut values, mut strange) = (Vec::new(), BTreeMap::new());
        for (index, entry) in entries {
            match entry {
                Ok(value) if usize::try_from(index) == Ok(values.len()) => values.push(value),
                Ok(value) => drop(strange.insert(index, element(value))),
                Err(element) => drop(strange.insert(index, element)),
            }
        }
        Self { values: values.into(), strange }
    }

    /// The values, first to last.
    #[must_use]
    pub fn values(&self) -> &[(IpAddr, u16)] {
        &self.values
    }

    /// The value at an index, unless that is no plain one.
    #[must_use]
    pub fn value(&self, index: u32) -> Option<(IpAddr, u16)> {
        self.values.get(usize::try_from(index).ok()?).copied()
    }

    /// Every index at which there is something.
    pub fn indexes(&self) -> impl Iterator<Item = u32> + '_ {
        (0..).zip(&*self.values).map(|(index, _)| index).chain(self.strange.keys().copied())
    }

    /// True when somebody else put something in.
    #[must_use]
    pub fn is_strange(&self) -> bool {
        !self.strange.is_empty()
    }

    /// The element at an index.
    #[must_use]
    pub fn element(&self, index: u32) -> Option<Element> {
        self.value(index).map(element).or_else(|| self.strange.get(&index).cloned())
    }
}

impl FromIterator<(IpAddr, u16)> for List {
    fn from_iter<I: IntoIterator<Item = (IpAddr, u16)>>(values: I) -> Self {
        Self { values: values.into_iter().collect(), strange: BTreeMap::new() }
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        for (index, (addr, port)) in self.values.iter().enumerate() {
            write!(f, "{between}{index} : {addr} . {port}")?;
            between = ", ";
        }
        for (index, element) in &self.strange {
            write!(f, "{between}{index} {}", super::render::element_line(element))?;
            between = ", ";
        }
        Ok(())
    }
}

fn element((addr, port): (IpAddr, u16)) -> Element {
    Element::value(vec![addr.into(), Datum::Port(port)])
}

/// The address and port of an element that says nothing else.
fn plain(element: &Element) -> Option<(IpAddr, u16)> {
    let (Data::Value(parts), None) = (&element.data, &element.comment) else { return None };
    match parts.as_slice() {
        [Datum::Ipv4(addr), Datum::Port(port)] => Some((IpAddr::V4(*addr), *port)),
        [Datum::Ipv6(addr), Datum::Port(port)] => Some((IpAddr::V6(*addr), *port)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(last: u8) -> Element {
        Element::value(vec![Datum::from(IpAddr::from([172, 7, 21, last])), Datum::Port(8080)])
    }

    #[test]
    fn a_list_is_its_elements_and_what_is_no_part_of_it_is_kept_apart() {
        let whole = List::of_elements([(0, element(2)), (1, element(3))]);
        assert_eq!(whole, [2, 3].map(|last| (IpAddr::from([172, 7, 21, last]), 8080)).into_iter().collect());
        assert_eq!(whole.to_string(), "0 : 172.7.21.2 . 8080, 1 : 172.7.21.3 . 8080");
        let strange = [
            vec![(0, element(2)), (2, element(3))],
            vec![(0, element(2)), (1, element(3).comment("mine"))],
            vec![(1, element(2))],
        ];
        for elements in strange {
            let list = List::of_elements(elements.clone());
            assert!(list.is_strange());
            assert!(list.indexes().eq(elements.iter().map(|(index, _)| *index)));
            for (index, element) in elements {
                assert_eq!(list.element(index), Some(element));
            }
        }
    }
}
