//! What a stream's messages add up to.

use std::collections::BTreeMap;

use serde_json::Value;

/// The state that a stream's messages add up to, checked on the way: gapless seqs, and no key twice alive.
pub fn materialize(messages: &[Value]) -> BTreeMap<String, Value> {
    add_up(messages, false)
}

/// The same where the log may get deletions of rows that it never had, which lists may have given out: PostgreSQL, while
/// a table is compared or its entity type has stopped.
pub fn materialize_with_unknown_ends(messages: &[Value]) -> BTreeMap<String, Value> {
    add_up(messages, true)
}

fn add_up(messages: &[Value], unknown_ends: bool) -> BTreeMap<String, Value> {
    let mut state = BTreeMap::new();
    for message in messages {
        let key = message["key"].as_str().unwrap().to_owned();
        match message["headers"]["operation"].as_str().unwrap() {
            "insert" => {
                assert!(state.insert(key, message["value"].clone()).is_none(), "inserted twice: {message}")
            }
            "update" => assert!(
                state.insert(key, message["value"].clone()).is_some(),
                "updated before it was there: {message}"
            ),
            _ => assert!(
                state.remove(&key).is_some() || unknown_ends,
                "deleted before it was there: {message}"
            ),
        }
    }
    state
}
