//! The current state of streams, in memory. The writer puts in what it has committed; a reader that had to ask the
//! database puts in what it found, unless a stream was removed meanwhile: the reader may have looked before that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bourn_protocol::StreamPath;

use crate::streams::StreamInfo;

/// Most streams that are kept in memory.
const MOST: usize = 50_000;

#[derive(Debug, Default)]
pub(in super::super) struct Directory(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Counts the removals.
    removals: u64,
    streams: HashMap<StreamPath, Arc<StreamInfo>, foldhash::fast::RandomState>,
}

impl Directory {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream, if it is known; and the count of removals, to pass to [`Directory::put`] if it is not.
    pub(super) fn get(&self, path: &StreamPath) -> (Option<Arc<StreamInfo>>, u64) {
        let state = self.lock();
        (state.streams.get(path).cloned(), state.removals)
    }

    /// Puts in what a reader has found; returns the stream to use.
    pub(super) fn put(&self, stream: Arc<StreamInfo>, removals: u64) -> Arc<StreamInfo> {
        let mut state = self.lock();
        if state.removals != removals {
            return stream;
        }
        state.make_room();
        state.streams.entry(stream.path.clone()).or_insert(stream).clone()
    }

    /// Puts in the streams that a commit has changed, and removes those that it deleted.
    pub(super) fn committed(&self, moved: Vec<Arc<StreamInfo>>, deleted: &[StreamPath]) {
        let mut state = self.lock();
        state.make_room();
        if !deleted.is_empty() {
            state.removals += 1;
        }
        for path in deleted {
            state.streams.remove(path);
        }
        for stream in moved {
            state.streams.insert(stream.path.clone(), stream);
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        state.removals += 1;
        state.streams.clear();
    }
}

impl State {
    fn make_room(&mut self) {
        if self.streams.len() >= MOST {
            self.removals += 1;
            self.streams.clear();
        }
    }
}
