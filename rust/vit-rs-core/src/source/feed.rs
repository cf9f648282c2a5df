//! Samples that somebody else reads: requests go out in order, encoded bytes and labels come back.
//!
//! The loader announces samples as their batches come near; their owner (a Python thread, say) asks for the next request
//! and answers it; a worker that wants a sample waits for its answer. Nobody here knows who the owner is.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Fetched, Item, Source};
use crate::error::{Error, Result};
use crate::image::Size;

/// A source whose samples are pushed into it.
#[derive(Debug)]
pub struct Feed {
    len: usize,
    state: Mutex<State>,
    asked: Condvar,
    answered: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Ticket of the next request.
    next: u64,
    /// Tickets below this one are abandoned.
    oldest: u64,
    requests: VecDeque<Request>,
    answers: HashMap<u64, Answer>,
    closed: bool,
}

#[derive(Debug)]
enum Answer {
    Bytes(Vec<u8>, i64),
    Failed { reason: String, bad_sample: bool },
}

/// One sample that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What the answer goes to.
    pub ticket: u64,
    /// The sample.
    pub index: usize,
}

/// What waiting for a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The next one in order.
    Request(Request),
    /// None yet.
    Nothing,
    /// None ever again.
    Closed,
}

impl Feed {
    /// A source of `len` samples.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self { len, state: Mutex::default(), asked: Condvar::new(), answered: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No update of the state can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next request, at most for `patience`.
    pub fn next_request(&self, patience: Duration) -> Asked {
        let idle = |state: &mut State| state.requests.is_empty() && !state.closed;
        let wait = self.asked.wait_timeout_while(self.lock(), patience, idle);
        let mut state = wait.unwrap_or_else(PoisonError::into_inner).0;
        if state.closed {
            return Asked::Closed;
        }
        state.requests.pop_front().map_or(Asked::Nothing, Asked::Request)
    }

    /// Answers a request with a file's bytes and a label.
    pub fn reply(&self, ticket: u64, bytes: Vec<u8>, label: i64) {
        self.answer(ticket, Answer::Bytes(bytes, label));
    }

    /// Answers a request with the reason why it cannot be fulfilled; `bad_sample` when another sample could be.
    pub fn fail(&self, ticket: u64, reason: String, bad_sample: bool) {
        self.answer(ticket, Answer::Failed { reason, bad_sample });
    }

    fn answer(&self, ticket: u64, answer: Answer) {
        let mut state = self.lock();
        if ticket >= state.oldest && ticket < state.next && !state.closed {
            state.answers.insert(ticket, answer);
            drop(state);
            self.answered.notify_all();
        }
    }

    fn forget(&self, closing: bool) {
        let mut state = self.lock();
        state.oldest = state.next;
        state.requests.clear();
        // Not only emptied: a wide batch of large files would keep its table.
        state.answers = HashMap::new();
        state.closed |= closing;
        drop(state);
        self.asked.notify_all();
        self.answered.notify_all();
    }
}

impl Source for Feed {
    fn len(&self) -> usize {
        self.len
    }

    fn item<'a>(&'a self, index: usize, buffer: &'a mut Vec<u8>) -> Result<Item<'a>> {
        let ticket = self.announce(index);
        Ok(self.fetch(index, ticket, buffer)?.item)
    }

    fn announce(&self, index: usize) -> u64 {
        let mut state = self.lock();
        let ticket = state.next;
        state.next += 1;
        state.requests.push_back(Request { ticket, index });
        drop(state);
        self.asked.notify_one();
        ticket
    }

    fn fetch<'a>(
        &'a self,
        index: usize,
        ticket: u64,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Fetched<'a>> {
        let mut state = self.lock();
        loop {
            if state.closed || ticket < state.oldest {
                // Only work for an abandoned epoch gets here, and its errors are dropped with it.
                return Err(Error::argument(format!("{} is wanted no more", self.name(index))));
            }
            match state.answers.remove(&ticket) {
                Some(Answer::Bytes(bytes, label)) => {
                    drop(state);
                    *buffer = bytes;
                    return Ok(Fetched { item: Item::Encoded(buffer), label: Some(label) });
                }
                Some(Answer::Failed { reason, bad_sample }) => {
                    let name = self.name(index);
                    return Err(Error::Foreign { name, reason, ticket, bad_sample });
                }
                None => {
                    state = self.answered.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn abandon(&self) {
        self.forget(false);
    }

    fn close(&self) {
        self.forget(true);
    }

    fn name(&self, index: usize) -> String {
        format!("sample {index}")
    }

    fn channels(&self) -> usize {
        3
    }

    fn size(&self) -> Option<Size> {
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn fetched(feed: &Feed, index: usize, ticket: u64) -> Result<(Vec<u8>, Option<i64>)> {
        let mut buffer = Vec::new();
        let label = feed.fetch(index, ticket, &mut buffer)?.label;
        Ok((buffer, label))
    }

    #[test]
    fn answers_find_their_requests_whatever_the_order() {
        let feed = Feed::new(10);
        assert_eq!(feed.next_request(Duration::ZERO), Asked::Nothing);
        let tickets: Vec<u64> = [3, 1, 3].map(|index| feed.announce(index)).to_vec();
        let asked: Vec<Asked> = tickets.iter().map(|_| feed.next_request(SOON)).collect();
        let expected = [(0, 3), (1, 1), (2, 3)];
        assert!(asked.iter().zip(expected).all(|(&asked, (at, index))| {
            asked == Asked::Request(Request { ticket: tickets[at], index })
        }));
        feed.reply(tickets[2], vec![2], 22);
        feed.fail(tickets[1], "gone".to_owned(), true);
        feed.reply(tickets[0], vec![0], 20);
        assert_eq!(fetched(&feed, 3, tickets[0]).unwrap(), (vec![0], Some(20)));
        assert_eq!(fetched(&feed, 3, tickets[2]).unwrap(), (vec![2], Some(22)));
        let error = fetched(&feed, 1, tickets[1]).unwrap_err();
        assert_eq!(error.to_string(), "sample 1: gone");
        assert!(error.is_bad_sample());
    }

    #[test]
    fn who_waits_is_woken_by_an_answer_and_by_the_end() {
        let feed = Feed::new(1);
        std::thread::scope(|scope| {
            let tickets = [feed.announce(0), feed.announce(0), feed.announce(0)];
            let waiting = tickets.map(|ticket| {
                let feed = &feed;
                scope.spawn(move || fetched(feed, 0, ticket))
            });
            feed.reply(tickets[1], vec![1], 1);
            let [first, second, third] = waiting;
            assert_eq!(second.join().unwrap().unwrap(), (vec![1], Some(1)));
            feed.abandon();
            assert!(first.join().unwrap().is_err() && third.join().unwrap().is_err());
            // A late answer to an abandoned request is nobody's.
            feed.reply(tickets[0], vec![9], 9);
            let ticket = feed.announce(0);
            assert_eq!(feed.next_request(SOON), Asked::Request(Request { ticket, index: 0 }));
            let asking = scope.spawn(|| feed.next_request(SOON));
            let waiting = scope.spawn({
                let feed = &feed;
                move || fetched(feed, 0, ticket)
            });
            feed.close();
            assert_eq!(asking.join().unwrap(), Asked::Closed);
            assert!(waiting.join().unwrap().is_err());
        });
        assert!(feed.lock().answers.is_empty());
        let mut buffer = Vec::new();
        assert!(feed.item(0, &mut buffer).is_err());
    }
}
