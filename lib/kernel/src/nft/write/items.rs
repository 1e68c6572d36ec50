//! `Items`: the elements of one message, in one piece.
//!
//! Invariant: the bytes are those of the elements one after another, and each is known by where it ends: a hundred thousand elements are
//! a few hundred pieces of memory.

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Items {
    /// The row of each element, and where it ends.
    ends: Vec<(usize, usize)>,
    bytes: Vec<u8>,
}

impl Items {
    /// Adds an element of `row`.
    pub(super) fn push(&mut self, row: usize, item: &[u8]) {
        self.bytes.extend_from_slice(item);
        self.ends.push((row, self.bytes.len()));
    }

    /// The rows, one for each element.
    pub(super) fn rows(&self) -> impl Iterator<Item = usize> + '_ {
        self.ends.iter().map(|(row, _)| *row)
    }

    /// How many elements there are.
    pub(super) const fn len(&self) -> usize {
        self.ends.len()
    }

    /// All elements.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Keeps the elements of which `keep` says so, by their places and rows.
    pub(super) fn retain(&mut self, keep: impl Fn(usize, usize) -> bool) {
        let (mut kept, mut start) = (Self::default(), 0);
        for (place, (row, end)) in self.ends.iter().enumerate() {
            if keep(place, *row) {
                kept.push(*row, self.bytes.get(start..*end).unwrap_or_default());
            }
            start = *end;
        }
        *self = kept;
    }

    /// Takes the latter half off.
    pub(super) fn split_off(&mut self) -> Self {
        let first = self.len() / 2;
        let mut behind = Self { ends: self.ends.clone(), bytes: self.bytes.clone() };
        behind.retain(|place, _| place >= first);
        self.retain(|place, _| place < first);
        behind
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_stay_whole_when_some_are_taken_out_or_split_off() {
        let mut items = Items::default();
        for (row, item) in [(1, "a"), (2, "bc"), (2, "def"), (3, "g")] {
            items.push(row, item.as_bytes());
        }
        assert_eq!((items.bytes(), items.rows().collect::<Vec<_>>()), (&b"abcdefg"[..], vec![1, 2, 2, 3]));
        let behind = items.split_off();
        assert_eq!((items.bytes(), behind.bytes()), (&b"abc"[..], &b"defg"[..]));
        let mut behind = behind;
        behind.retain(|_, row| row != 2);
        assert_eq!((behind.bytes(), behind.len()), (&b"g"[..], 1));
    }
}
