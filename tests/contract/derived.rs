//! Streams that are derived from the log: each reads the types and the scope that it names, in the order of the log, to the
//! place of its last activity.

use std::sync::Arc;

use bourn::feed::Activity;
use bourn_protocol::chunk::{ChunkBuilder, ChunkLimits};
use bourn_protocol::{EntityTypes, MessageKind, Scope, Selector, Seq};

use crate::backend::Backend;

const TABLES: [&str; 3] = ["notes", "others", "pages"];
const LIMITS: ChunkLimits = ChunkLimits { messages: 7, bytes: 64_000, transaction_bytes: 256_000 };

pub async fn a_stream_has_what_the_log_has_of_its_types_and_scope<B: Backend>() {
    let others = "CREATE TABLE others (id TEXT PRIMARY KEY NOT NULL, transactions TEXT, last_client_id TEXT)";
    let db = B::open(&[others]).await;
    for i in 0..40 {
        let scope = ["'acme'", "'beta'", "NULL"][i % 3];
        db.sql(&format!(
            "BEGIN; INSERT INTO pages (id, organization_id) VALUES ('p{i}', {scope}), ('q{i}', 'acme'); \
             INSERT INTO notes (id) VALUES ('n{i}'); INSERT INTO others (id) VALUES ('o{i}'); \
             DELETE FROM notes WHERE id = 'n{i}'; COMMIT"
        ));
    }
    let log = db.log(200).await;

    let sets = (0..8).map(|bits| {
        let names = TABLES.iter().enumerate().filter(|(i, _)| bits & (1 << i) != 0);
        names.map(|(_, name)| Arc::from(*name)).collect::<Vec<Arc<str>>>()
    });
    for names in sets {
        let types = if names.is_empty() { EntityTypes::All } else { EntityTypes::of(names) };
        for scope in [None, Some("acme"), Some("beta"), Some("elsewhere")] {
            check(&db, &log, &types, scope).await;
        }
    }
}

async fn check<B: Backend>(db: &B, log: &[Activity], types: &EntityTypes, scope: Option<&str>) {
    let stream = Selector {
        kind: MessageKind::Change,
        types: types.clone(),
        scope: scope.map(|scope| Scope::new(scope).unwrap()),
        old_values: false,
    };
    let belongs = |activity: &&Activity| {
        types.names().is_none_or(|names| names.iter().any(|name| **name == *activity.entity_type))
            && scope.is_none_or(|scope| activity.organization_id.as_deref() == Some(scope))
    };
    let wanted: Vec<&Activity> = log.iter().filter(belongs).collect();
    let head = db.storage().stream_tail(&stream).await.unwrap();
    assert_eq!(head.seq, wanted.last().map(|activity| activity.seq).unwrap_or_default(), "{stream:?}");

    let (mut place, mut read) = (Seq::ZERO, 0);
    loop {
        let builder = ChunkBuilder::new(stream.wording(), head.epoch, place, LIMITS);
        let chunk = db.storage().fill(&stream, builder).await.unwrap().0.finish();
        let mut expected = vec![b'['];
        for activity in &wanted[read..read + chunk.messages] {
            if expected.len() > 1 {
                expected.push(b',');
            }
            activity.as_ref().encode(stream.wording(), head.epoch, &mut expected);
        }
        expected.push(b']');
        assert_eq!(String::from_utf8_lossy(&chunk.body), String::from_utf8_lossy(&expected), "{stream:?}");
        (place, read) = (chunk.next, read + chunk.messages);
        // A transaction over several tables arrives whole.
        let next = wanted.get(read).map(|activity| activity.commit_id);
        assert!(read == 0 || next != Some(wanted[read - 1].commit_id), "{stream:?}: cut at {place:?}");
        if !chunk.sealed {
            break;
        }
    }
    assert_eq!(read, wanted.len(), "{stream:?}");
}
