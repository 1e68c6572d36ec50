//! `Calls`: how often the CNI plugin was called, with which errors and for how long, and the file that says so.
//!
//! The file is made by netd and written by every execution of the plugin, under its lock. Invariants: it has [`LENGTH`] bytes whatever
//! happens; a file that is not whole, or somebody else's, is none.

/// Where the file stands, in netd's folder of run-time files.
pub const PATH: &str = "/run/netd/cni-calls";

/// Its name in that folder.
pub const NAME: &str = "cni-calls";

/// What the file begins with; another layout gets another number.
const MAGIC: &[u8; 16] = b"netd-cni calls 1";

/// The verbs that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Compare.
    Check,
    /// Clean up.
    Gc,
    /// Say whether ADD can be served.
    Status,
}

impl Verb {
    /// Every one, in the order of the file.
    pub const ALL: [Self; 5] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status];

    /// Its name in `CNI_COMMAND`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        }
    }

    /// The verb of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.name() == name)
    }
}

/// Codes of errors that are counted apart; all others together behind them.
pub const CODES: [u32; 14] = [1, 2, 3, 4, 5, 6, 7, 8, 11, 50, 51, 100, 101, 102];

/// Upper ends of times in microseconds; longer ones are counted behind them.
pub const BOUNDS: [u64; 11] =
    [500, 1_000, 2_000, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 1_000_000, 10_000_000];

/// Numbers of one verb in the file.
const NUMBERS: usize = 1 + BOUNDS.len() + 1 + CODES.len() + 1;

/// Bytes of the file: its beginning, the numbers, and a sum over both.
pub const LENGTH: usize = MAGIC.len() + 8 * (Verb::ALL.len() * NUMBERS + 1);

/// The calls of one verb.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OfVerb {
    /// Microseconds that they took in all.
    pub microseconds: u64,
    /// Calls by time, as [`BOUNDS`] divides them.
    pub times: [u64; BOUNDS.len() + 1],
    /// Calls that ended with an error, as [`CODES`] has them.
    pub errors: [u64; CODES.len() + 1],
}

impl OfVerb {
    /// How many they are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.times.iter().fold(0, |sum, times| sum.wrapping_add(*times))
    }

    fn numbers(&self) -> impl Iterator<Item = u64> {
        std::iter::once(self.microseconds).chain(self.times).chain(self.errors)
    }

    fn numbers_mut(&mut self) -> impl Iterator<Item = &mut u64> {
        std::iter::once(&mut self.microseconds).chain(&mut self.times).chain(&mut self.errors)
    }
}

/// The calls of all verbs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calls([OfVerb; Verb::ALL.len()]);

impl Calls {
    /// The calls of each verb.
    pub fn verbs(&self) -> impl Iterator<Item = (Verb, &OfVerb)> {
        Verb::ALL.into_iter().zip(&self.0)
    }

    /// Adds a call that took so long, and the code of its error if it failed.
    pub fn count(&mut self, verb: Verb, microseconds: u64, error: Option<u32>) {
        let Some((_, calls)) = Verb::ALL.into_iter().zip(&mut self.0).find(|(other, _)| *other == verb) else { return };
        let one_more = |number: Option<&mut u64>| {
            if let Some(number) = number {
                *number = number.wrapping_add(1);
            }
        };
        calls.microseconds = calls.microseconds.wrapping_add(microseconds);
        one_more(calls.times.get_mut(BOUNDS.iter().take_while(|bound| **bound < microseconds).count()));
        if let Some(code) = error {
            let place = CODES.iter().position(|known| *known == code).unwrap_or(CODES.len());
            one_more(calls.errors.get_mut(place));
        }
    }

    /// The file's content.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LENGTH);
        bytes.extend_from_slice(MAGIC);
        bytes.extend(self.0.iter().flat_map(OfVerb::numbers).flat_map(u64::to_le_bytes));
        bytes.extend(sum(&bytes).to_le_bytes());
        bytes
    }

    /// What a file says.
    ///
    /// # Errors
    /// Why it is none of ours, or not whole.
    pub fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let rest = bytes.strip_prefix(MAGIC).ok_or("it does not begin as a file of netd-cni's calls")?;
        if bytes.len() != LENGTH {
            return Err("it has another length than a file of netd-cni's calls");
        }
        let mut numbers = rest.as_chunks().0.iter().map(|number| u64::from_le_bytes(*number));
        let mut calls = Self::default();
        for place in calls.0.iter_mut().flat_map(OfVerb::numbers_mut) {
            *place = numbers.next().unwrap_or_default();
        }
        let (said, _) = bytes.split_at(LENGTH - 8);
        if numbers.next() == Some(sum(said)) { Ok(calls) } else { Err("it is torn: its sum is wrong") }
    }
}

/// FNV-1a, by words: it finds what is torn, and nobody's intent.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
    words.fold(0xcbf2_9ce4_8422_2325, |sum, word| (sum ^ word).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Calls {
        let mut calls = Calls::default();
        calls.count(Verb::Add, 500, None);
        calls.count(Verb::Add, 501, Some(11));
        calls.count(Verb::Del, u64::MAX, Some(4711));
        calls
    }

    #[test]
    fn a_call_is_counted_by_its_verb_its_time_and_its_error() {
        let calls = some();
        let [add, del, check, ..] = calls.0;
        assert_eq!((add.count(), add.microseconds, add.times[0], add.times[1]), (2, 1001, 1, 1));
        assert_eq!((add.errors[8], add.errors.iter().sum::<u64>()), (1, 1));
        assert_eq!((del.times[BOUNDS.len()], del.errors[CODES.len()]), (1, 1), "too long, and of no code");
        assert_eq!(check, OfVerb::default());
        assert_eq!(Verb::ALL.map(|verb| Verb::from_name(verb.name())), Verb::ALL.map(Some));
    }

    #[test]
    fn what_is_encoded_is_decoded_and_nothing_else_is() {
        let (calls, bytes) = (some(), some().encode());
        assert_eq!((bytes.len(), Calls::decode(&bytes)), (LENGTH, Ok(calls)));
        for length in 0..LENGTH {
            assert!(Calls::decode(&bytes[..length]).is_err(), "{length}");
        }
        assert!(Calls::decode(&[bytes.clone(), vec![0]].concat()).is_err());
        for place in 0..LENGTH {
            let mut torn = bytes.clone();
            torn[place] ^= 0x10;
            assert!(Calls::decode(&torn).is_err(), "{place}");
        }
        // A file whose second half is from before.
        let before = Calls::default().encode();
        assert!(Calls::decode(&[&bytes[..LENGTH / 2], &before[LENGTH / 2..]].concat()).is_err());
        assert!(Calls::decode(&vec![0; LENGTH]).is_err(), "of a disk that was cut off");
    }
}
