//! What is asked of the work on its thread.

use tokio::sync::oneshot;

/// A question, whatever its answer is.
pub(super) trait Question<W>: Send {
    /// True when nobody waits for the answer any more.
    fn is_given_up(&self) -> bool;

    /// Answers it.
    fn answer(self: Box<Self>, work: &W);
}

/// A question with the way back.
pub(super) struct Asked<T, F> {
    pub(super) question: F,
    pub(super) answer: oneshot::Sender<T>,
}

impl<W, T: Send, F: FnOnce(&W) -> T + Send> Question<W> for Asked<T, F> {
    fn is_given_up(&self) -> bool {
        self.answer.is_closed()
    }

    fn answer(self: Box<Self>, work: &W) {
        // Whoever asked may have gone away meanwhile.
        let _ = self.answer.send((self.question)(work));
    }
}
