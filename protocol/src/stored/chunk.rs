//! Where reads of stored streams are cut, by the same idea as chunks of the log: the cut depends on the stream and the
//! start alone, and readers that start at different places fall onto the same cuts after one read. A chunk ends between
//! two appends; of the ends in the window's second half it takes the one that crosses the roundest number of bytes.

use super::content::Form;
use crate::chunk::Feed;
use crate::limits::CHUNK_APPENDS_MAX;
use crate::offset::Seq;

/// A finished chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredChunk {
    /// The bytes; of a JSON stream an array of its messages.
    pub body: Vec<u8>,
    /// How many appends it holds; of a JSON stream, messages.
    pub messages: usize,
    /// The place after it.
    pub next: Seq,
    /// More followed it: what lies between its two places is final.
    pub sealed: bool,
}

struct AppendEnd {
    position: Seq,
    /// Length of the body up to here.
    end: usize,
    messages: usize,
}

/// Takes a stream's appends in order and cuts the chunk.
pub struct StoredChunkBuilder {
    json: bool,
    start: Seq,
    bytes: usize,
    body: Vec<u8>,
    marks: Vec<AppendEnd>,
    cut: Option<usize>,
}

impl StoredChunkBuilder {
    /// Begins the chunk that follows `start`, of about so many bytes.
    #[must_use]
    pub fn new(form: Form, start: Seq, bytes: usize) -> StoredChunkBuilder {
        let json = form == Form::Json;
        let body = if json { vec![b'['] } else { Vec::new() };
        StoredChunkBuilder { json, start, bytes, body, marks: Vec::new(), cut: None }
    }

    /// The place up to which it has taken appends.
    #[must_use]
    pub fn position(&self) -> Seq {
        self.marks.last().map_or(self.start, |mark| mark.position)
    }

    /// Takes the next append, which ends at `position`.
    pub fn push(&mut self, data: &[u8], messages: usize, position: Seq) -> Feed {
        let feed = self.plan(data.len(), messages, position);
        if feed == Feed::More {
            self.write(data);
        }
        feed
    }

    /// Takes the length of the next append, which ends at `position`, so that the end of the chunk can be known before
    /// any bytes are read. The bytes up to that end must then be written.
    pub fn plan(&mut self, length: usize, messages: usize, position: Seq) -> Feed {
        let (end, before) = self.marks.last().map_or((self.length(), 0), |mark| (mark.end, mark.messages));
        let full = self.marks.len() >= CHUNK_APPENDS_MAX || end + length > self.bytes;
        if full && !self.marks.is_empty() {
            self.cut = Some(self.best_cut());
            return Feed::Done;
        }
        let comma = usize::from(self.json && !self.marks.is_empty());
        self.marks.push(AppendEnd { position, end: end + comma + length, messages: before + messages });
        Feed::More
    }

    /// Whether the cut is known.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut.is_some()
    }

    /// Where the chunk ends, as far as is known.
    #[must_use]
    pub fn end(&self) -> Seq {
        self.last().map_or(self.start, |mark| mark.position)
    }

    /// Makes room for the bytes of what was planned.
    pub fn reserve(&mut self) {
        let length = self.length() + usize::from(self.json);
        self.body.reserve(length.saturating_sub(self.body.len()));
    }

    fn last(&self) -> Option<&AppendEnd> {
        self.cut.unwrap_or(self.marks.len()).checked_sub(1).and_then(|last| self.marks.get(last))
    }

    fn length(&self) -> usize {
        self.last().map_or(usize::from(self.json), |mark| mark.end)
    }

    /// Writes the bytes of the next append that was planned.
    pub fn write(&mut self, data: &[u8]) {
        if self.json && self.body.len() > 1 {
            self.body.push(b',');
        }
        self.body.extend_from_slice(data);
    }

    fn best_cut(&self) -> usize {
        let count = self.marks.len();
        let crossed = |i: usize| {
            let before = if i == 1 { self.start } else { self.marks[i - 2].position };
            (before.get() ^ self.marks[i - 1].position.get()).checked_ilog2()
        };
        (count.div_ceil(2)..=count).max_by_key(|&i| (crossed(i), i)).unwrap_or(count)
    }

    /// Ends the chunk where it was cut, or where the stream ended.
    #[must_use]
    pub fn finish(mut self) -> StoredChunk {
        let sealed = self.cut.is_some();
        self.body.truncate(self.length());
        if self.json {
            self.body.push(b']');
        }
        let messages = self.last().map_or(0, |mark| mark.messages);
        StoredChunk { messages, next: self.end(), sealed, body: self.body }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The chunk after the first `skip` of these appends.
    fn chunk(sizes: &[usize], skip: usize, form: Form) -> StoredChunk {
        let mut end = sizes[..skip].iter().sum::<usize>();
        let seq = |at: usize| Seq::new(u64::try_from(at).unwrap()).unwrap();
        let mut builder = StoredChunkBuilder::new(form, seq(end), 100);
        for &size in &sizes[skip..] {
            end += size;
            if builder.push(&vec![b'7'; size], 1, seq(end)) == Feed::Done {
                break;
            }
        }
        builder.finish()
    }

    #[test]
    fn an_empty_chunk_is_empty_in_the_streams_own_way() {
        assert_eq!(chunk(&[], 0, Form::Json).body, b"[]");
        assert_eq!(chunk(&[], 0, Form::Binary).body, b"");
        assert_eq!(chunk(&[1, 2], 0, Form::Json).body, b"[7,77]");
        assert_eq!(chunk(&[1, 2], 0, Form::Text).body, b"777");
    }

    #[test]
    fn an_append_larger_than_the_window_is_a_chunk_of_its_own() {
        assert_eq!(chunk(&[500, 1], 0, Form::Binary).messages, 1);
    }

    proptest! {
        #[test]
        fn planned_by_lengths_a_chunk_is_the_same(sizes in prop::collection::vec(1_usize..40, 0..40), json in any::<bool>()) {
            let form = if json { Form::Json } else { Form::Text };
            let mut builder = StoredChunkBuilder::new(form, Seq::ZERO, 100);
            let (mut end, mut ends) = (0, Vec::new());
            for &size in &sizes {
                end += size;
                ends.push(Seq::new(u64::try_from(end).unwrap()).unwrap());
            }
            for (&size, &end) in sizes.iter().zip(&ends) {
                if builder.plan(size, 1, end) == Feed::Done {
                    break;
                }
            }
            builder.reserve();
            let planned = builder.end();
            for (&size, _) in sizes.iter().zip(&ends).filter(|(_, end)| **end <= planned) {
                builder.write(&vec![b'7'; size]);
            }
            prop_assert_eq!(builder.finish(), chunk(&sizes, 0, form));
        }

        #[test]
        fn sealed_chunks_are_final_and_tile_the_stream(sizes in prop::collection::vec(1_usize..40, 1..80), extra in 0_usize..40) {
            let longer: Vec<usize> = sizes.iter().copied().chain(std::iter::repeat_n(5, extra)).collect();
            let mut skip = 0;
            loop {
                let (here, later) = (chunk(&sizes, skip, Form::Text), chunk(&longer, skip, Form::Text));
                if !here.sealed {
                    prop_assert_eq!(skip + here.messages, sizes.len());
                    break;
                }
                prop_assert_eq!(&here, &later);
                prop_assert!(here.messages > 0 && here.body.len() <= 100);
                skip += here.messages;
            }
        }
    }
}
