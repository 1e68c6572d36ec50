//! `Room`: the connections of one listener.
//!
//! Invariant: there are [`CONNECTIONS`] at most, and room for one more at any time: where all are taken, the one ends that has waited
//! longest for its client, so that nobody keeps others out by connections that are open and nothing else.

use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use crate::slot::locked;

/// Connections of one listener at a time.
pub(super) const CONNECTIONS: usize = 32;

/// See the module's text; clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Room(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    /// In the order in which each began to do what it does.
    places: Vec<Taker>,
    next: u64,
}

/// Who has a place; dropping this ends the connection.
#[derive(Debug)]
struct Taker {
    number: u64,
    answering: bool,
    _keep: oneshot::Sender<()>,
}

/// A place for one connection, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Place {
    room: Room,
    number: u64,
}

/// Comes true when the place is needed for somebody else.
pub(crate) type Ended = oneshot::Receiver<()>;

impl Room {
    /// A place for one more connection.
    pub(crate) fn enter(&self) -> (Place, Ended) {
        let (keep, ended) = oneshot::channel();
        let mut taken = locked(&self.0);
        if taken.places.len() >= CONNECTIONS {
            // What the daemon works at goes on, unless there is nothing else.
            let index = taken.places.iter().position(|taker| !taker.answering).unwrap_or_default();
            taken.places.remove(index);
        }
        let number = taken.next;
        taken.next = number.wrapping_add(1);
        taken.places.push(Taker { number, answering: false, _keep: keep });
        drop(taken);
        (Place { room: self.clone(), number }, ended)
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        locked(&self.0).places.len()
    }
}

impl Place {
    /// Notes that the connection waits for the daemon now, or for its client.
    pub(super) fn set_answering(&self, answering: bool) {
        let mut taken = locked(&self.room.0);
        if let Some(index) = taken.places.iter().position(|taker| taker.number == self.number) {
            let taker = taken.places.remove(index);
            taken.places.push(Taker { answering, ..taker });
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        locked(&self.room.0).places.retain(|taker| taker.number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which have been ended.
    fn ended(all: &mut [(Place, Ended)]) -> Vec<usize> {
        let over = |(index, (_, ended)): (usize, &mut (Place, Ended))| {
            ended.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed).then_some(index)
        };
        all.iter_mut().enumerate().filter_map(over).collect()
    }

    #[test]
    fn whoever_comes_last_has_a_place_and_who_waited_longest_for_a_client_has_none() {
        let room = Room::default();
        let mut all: Vec<_> = (0..CONNECTIONS).map(|_| room.enter()).collect();
        assert_eq!(ended(&mut all), [0; 0]);
        // The first one is being answered, the second one has been.
        all[0].0.set_answering(true);
        all[1].0.set_answering(true);
        all[1].0.set_answering(false);
        all.extend([room.enter(), room.enter()]);
        assert_eq!(ended(&mut all), [2, 3]);
        assert_eq!(room.len(), CONNECTIONS);
        drop(all);
        assert_eq!(room.len(), 0);
    }

    #[test]
    fn answers_that_take_long_keep_nobody_out() {
        let room = Room::default();
        let mut all: Vec<_> = (0..CONNECTIONS).map(|_| room.enter()).collect();
        all.iter().for_each(|(place, _)| place.set_answering(true));
        all.push(room.enter());
        assert_eq!(ended(&mut all), [0]);
    }
}
