//! From activities to batches: each followed stream's share of what the log has gained, every message encoded once
//! for all streams that word it the same.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bourn_protocol::chunk::ChunkLimits;
use bourn_protocol::{EntityTypes, Epoch, Scope, Selector, Seq, Wording};
use bytes::Bytes;

use crate::feed::Activity;
use crate::reading::LiveBatch;

/// The share of each followed stream that any of these activities belongs to.
pub(super) fn of_streams(
    activities: &[Activity],
    followed: &HashSet<Selector>,
    epoch: Epoch,
    limits: ChunkLimits,
) -> HashMap<Selector, Vec<Arc<LiveBatch>>> {
    let mut building: HashMap<Selector, BatchBuilder> = HashMap::new();
    let wordings: HashSet<Wording> = followed.iter().map(Selector::wording).collect();
    // The sets of several types that any stream reads, by each type of them.
    let mut sets: HashMap<&str, HashSet<&EntityTypes>> = HashMap::new();
    for stream in followed {
        if let EntityTypes::Several(names) = &stream.types {
            for name in &**names {
                sets.entry(name).or_default().insert(&stream.types);
            }
        }
    }
    for activity in activities {
        let scope = activity.organization_id.as_deref().and_then(|scope| Scope::new(scope).ok());
        let sets = sets.get(activity.entity_type.as_str()).into_iter().flatten().copied().cloned();
        let types: Vec<EntityTypes> =
            sets.chain([EntityTypes::One(activity.entity_type.as_str().into()), EntityTypes::All]).collect();
        for &wording in &wordings {
            if wording.scoped && scope.is_none() {
                continue;
            }
            let mut message: Option<Bytes> = None;
            for types in &types {
                let scope = scope.clone().filter(|_| wording.scoped);
                let Wording { kind, old_values, .. } = wording;
                let stream = Selector { kind, types: types.clone(), scope, old_values };
                if !followed.contains(&stream) {
                    continue;
                }
                let message = message.get_or_insert_with(|| {
                    let mut bytes = Vec::with_capacity(256 + activity.value.as_ref().map_or(0, String::len));
                    activity.as_ref().encode(wording, epoch, &mut bytes);
                    bytes.into()
                });
                building.entry(stream).or_insert_with(|| BatchBuilder::new(limits)).push(activity, message);
            }
        }
    }
    building.into_iter().map(|(stream, builder)| (stream, builder.finish())).collect()
}

/// Gathers a stream's messages into batches: whole transactions, as large as a chunk where they allow.
struct BatchBuilder {
    limits: ChunkLimits,
    done: Vec<Arc<LiveBatch>>,
    body: Vec<u8>,
    first: Seq,
    next: Seq,
    messages: usize,
    commit_id: i64,
}

impl BatchBuilder {
    fn new(limits: ChunkLimits) -> BatchBuilder {
        BatchBuilder {
            limits,
            done: Vec::new(),
            body: Vec::new(),
            first: Seq::ZERO,
            next: Seq::ZERO,
            messages: 0,
            commit_id: 0,
        }
    }

    fn push(&mut self, activity: &Activity, message: &Bytes) {
        let full =
            self.messages >= self.limits.messages || self.body.len() + message.len() > self.limits.bytes;
        if self.messages > 0 && full && activity.commit_id != self.commit_id {
            self.flush();
        }
        if self.messages == 0 {
            self.first = activity.seq;
        }
        self.body.push(if self.messages == 0 { b'[' } else { b',' });
        self.body.extend_from_slice(message);
        self.messages += 1;
        self.next = activity.seq;
        self.commit_id = activity.commit_id;
    }

    fn flush(&mut self) {
        if self.messages == 0 {
            return;
        }
        self.body.push(b']');
        let body = std::mem::take(&mut self.body).into_boxed_slice().into();
        self.done.push(Arc::new(LiveBatch::new(self.first, self.next, self.messages, body)));
        self.messages = 0;
    }

    fn finish(mut self) -> Vec<Arc<LiveBatch>> {
        self.flush();
        self.done
    }
}
